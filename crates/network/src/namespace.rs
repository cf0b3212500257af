//! Network namespaces.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use netlink::Socket;
use netlink::route::{LinkChange, change_link};
use rustix::fs::{Mode, OFlags, fstat, fstatfs};
use rustix::io::Errno;
use rustix::mount::{UnmountFlags, mount_bind, unmount};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::error::Error;

/// The file of the calling thread's network namespace.
const OWN: &str = "/proc/thread-self/ns/net";

/// Number of the loopback interface in every namespace.
const LOOPBACK: u32 = 1;

/// `f_type` of namespaces' files (linux/magic.h).
const NSFS_MAGIC: u64 = 0x6e73_6673;

/// What tells namespaces apart: device and inode of their file.
type Identity = (u64, u64);

/// Where this process was when it first had to do with namespaces here.
static START: OnceLock<Option<Identity>> = OnceLock::new();

/// A network namespace, held open.
#[derive(Debug)]
pub struct Namespace {
    fd: OwnedFd,
    path: PathBuf,
}

impl Namespace {
    /// Opens one by its file.
    ///
    /// # Errors
    /// [`Error::Namespace`] and [`Error::NotANamespace`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self, Error> {
        remember_start();
        let path = path.as_ref();
        let failed = |step| move |source: Errno| Error::Namespace { step, path: path.into(), source: source.into() };
        // A name that was left behind may be a FIFO as well as a file.
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let fd = rustix::fs::open(path, flags, Mode::empty()).map_err(failed("open"))?;
        let type_of_namespace = crate::sys::namespace_type(fd.as_fd());
        let of_nsfs = fstatfs(&fd).map_err(failed("look at"))?.f_type as u64 == NSFS_MAGIC;
        if !of_nsfs || type_of_namespace != Some(libc::CLONE_NEWNET) {
            return Err(Error::NotANamespace { path: path.into() });
        }
        Ok(Self { fd, path: path.into() })
    }

    /// The one that the calling thread is in.
    ///
    /// # Errors
    /// [`Error::Namespace`].
    pub fn current() -> Result<Self, Error> {
        Self::open(OWN)
    }

    /// Makes one without a name, with its loopback up. It lasts as long as somebody is in it or has it open.
    ///
    /// # Errors
    /// [`Error::Namespace`], and [`Error::Kernel`] for the loopback.
    pub fn create() -> Result<Self, Error> {
        remember_start();
        let failed = |source| Error::Namespace { step: "make", path: "for the pod".into(), source };
        // A thread of its own, which ends: the caller stays where it is.
        let made = std::thread::Builder::new().name("new-netns".into()).spawn(move || {
            crate::sys::unshare_network().map_err(failed)?;
            let up = LinkChange { up: Some(true), ..LinkChange::default() };
            Socket::route()
                .and_then(|mut socket| change_link(&mut socket, LOOPBACK, &up))
                .map_err(Error::kernel("bring up", "the loopback of the pod's new network namespace"))?;
            Self::current()
        });
        let joined = made.map_err(failed)?.join();
        joined.unwrap_or_else(|_| Err(failed(std::io::Error::other("the thread that makes it panicked"))))
    }

    /// Moves the calling thread into it. A process with more threads has to do so before it starts them.
    ///
    /// # Errors
    /// [`Error::Namespace`].
    pub fn enter(&self) -> Result<(), Error> {
        move_into_link_name_space(self.fd.as_fd(), Some(LinkNameSpaceType::Network))
            .map_err(|source| self.failed("enter", source))
    }

    /// Runs something in it on a thread of its own.
    ///
    /// # Errors
    /// [`Error::Namespace`], if it cannot be entered.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, Error> {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| self.enter().map(|()| work()));
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Gives it a name: an empty file that is made there and covered by it. Undone by [`Namespace::unbind`].
    ///
    /// # Errors
    /// [`Error::Namespace`]; nothing is left behind.
    pub fn bind(&self, path: &Path) -> Result<(), Error> {
        let failed = |source| Error::Namespace { step: "bind", path: path.into(), source };
        File::create_new(path).map_err(failed)?;
        let source = format!("/proc/self/fd/{}", self.fd.as_raw_fd());
        mount_bind(source.as_str(), path).map_err(|errno| {
            let _ = std::fs::remove_file(path);
            failed(errno.into())
        })
    }

    /// Removes a name that [`Namespace::bind`] has given. A name that is not there is none.
    ///
    /// # Errors
    /// [`Error::Namespace`].
    pub fn unbind(path: &Path) -> Result<(), Error> {
        let failed = |source| Error::Namespace { step: "unbind", path: path.into(), source };
        match unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            // It was covered no more.
            Ok(()) | Err(Errno::INVAL | Errno::NOENT) => {}
            Err(errno) => return Err(failed(errno.into())),
        }
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(failed(error)),
            _ => Ok(()),
        }
    }

    /// Whether it is the host's own: that of process 1, or the one in which this process was when it first used this type.
    ///
    /// # Errors
    /// [`Error::Namespace`].
    pub fn is_host(&self) -> Result<bool, Error> {
        let own = identity(self.fd.as_fd()).map_err(|source| self.failed("look at", source))?;
        let first = rustix::fs::stat("/proc/1/ns/net").ok().map(|stat| (stat.st_dev, stat.st_ino));
        Ok(Some(own) == first || Some(own) == remember_start())
    }

    /// Whether both are the same namespace.
    ///
    /// # Errors
    /// [`Error::Namespace`].
    pub fn is(&self, other: &Self) -> Result<bool, Error> {
        let ours = identity(self.fd.as_fd()).map_err(|source| self.failed("look at", source))?;
        let theirs = identity(other.fd.as_fd()).map_err(|source| other.failed("look at", source))?;
        Ok(ours == theirs)
    }

    fn failed(&self, step: &'static str, source: Errno) -> Error {
        Error::Namespace { step, path: self.path.clone(), source: source.into() }
    }
}

impl AsFd for Namespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn identity(fd: BorrowedFd<'_>) -> Result<Identity, Errno> {
    fstat(fd).map(|stat| (stat.st_dev, stat.st_ino))
}

fn remember_start() -> Option<Identity> {
    *START.get_or_init(|| rustix::fs::stat(OWN).ok().map(|stat| (stat.st_dev, stat.st_ino)))
}
