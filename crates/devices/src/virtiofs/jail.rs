//! What the server does to itself before it reads from the VMM. It was born in namespaces of its own ([`spawn`](super::spawn)).

use std::{
    os::fd::{AsFd, OwnedFd},
    path::Path,
};

use ::jail::{FILE_SERVER, filter::Filter};
use rustix::{
    event::{PollFd, PollFlags, Timespec},
    fs::{CWD, Mode, OFlags},
    mount::{MountFlags, MountPropagationFlags, OpenTreeFlags, UnmountFlags},
    process::{Resource, Rlimit, Signal},
};
use virtiofsd::seccomp::SeccompAction;

use crate::{
    Error,
    sys::{self, Propagation},
};

/// With fewer, a guest cannot even list a large directory.
const FEWEST_FILES: u64 = 1024;

/// Has the kernel kill this process when its parent dies.
pub(super) fn die_with_parent() -> Result<(), Error> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
        .map_err(Error::step("ask to be killed with the parent"))?;
    // It may have died before. It is outside this pid namespace, so that getppid(2) does not tell; but it alone has the
    // other end of the messages' pipe.
    let stderr = std::io::stderr();
    let mut pipe = [PollFd::new(&stderr, PollFlags::empty())];
    rustix::event::poll(&mut pipe, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))
        .map_err(Error::step("see whether the parent lives"))?;
    if pipe[0].revents().contains(PollFlags::ERR) { Err(Error::ParentDied) } else { Ok(()) }
}

/// Raises the limit of open files as far as it goes and forbids core dumps, which would hold the guest's memory. Returns the limit.
pub(super) fn set_limits() -> Result<u64, Error> {
    let step = || Error::step("set the resource limits");
    let hard = rustix::process::getrlimit(Resource::Nofile).maximum;
    let files = FILE_SERVER.open_files.into_iter().chain(hard).min().unwrap_or(u64::MAX);
    if files < FEWEST_FILES {
        return Err(Error::FewFiles { limit: files, needed: FEWEST_FILES });
    }
    rustix::process::setrlimit(Resource::Nofile, Rlimit { current: Some(files), maximum: Some(files) })
        .map_err(step())?;
    let core = Some(FILE_SERVER.core);
    rustix::process::setrlimit(Resource::Core, Rlimit { current: core, maximum: core }).map_err(step())?;
    Ok(files)
}

/// Makes `shared_dir` the root directory and the only thing there is. Returns this process's `/proc/self/fd`, as a mount of its
/// own: it has no parent directory to climb to.
pub(super) fn enter(shared_dir: &Path) -> Result<OwnedFd, Error> {
    // Nothing that is done here may reach the parent's namespace; what the parent mounts still arrives.
    rustix::mount::mount_change("/", MountPropagationFlags::REC | MountPropagationFlags::DOWNSTREAM)
        .map_err(Error::step("make all mounts of the jail slaves"))?;

    // The directory's root becomes the jail's, so it must be opened before /proc, above which it might lie, is covered.
    let root = rustix::fs::open(shared_dir, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map_err(Error::path("open the shared directory", shared_dir))?;

    let harmless = MountFlags::NODEV | MountFlags::NOSUID | MountFlags::NOEXEC;
    rustix::mount::mount("proc", "/proc", "proc", harmless, None)
        .map_err(Error::step("mount the jail's /proc for the time of its set-up"))?;
    let clone = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let own_descriptors = rustix::mount::open_tree(CWD, "/proc/self/fd", clone)
        .map_err(Error::step("keep /proc/self/fd for the jail"))?;

    // The old root ends up mounted over the new one, and is unmounted from there.
    rustix::process::fchdir(&root).map_err(Error::path("enter", shared_dir))?;
    rustix::process::pivot_root(".", ".").map_err(Error::path("make the root directory of", shared_dir))?;
    rustix::mount::unmount(".", UnmountFlags::DETACH).map_err(Error::step("unmount the jail's old root"))?;
    rustix::process::chdir("/").map_err(Error::step("enter the jail's root"))?;
    let root = rustix::fs::open("/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map_err(Error::step("open the jail's root"))?;
    sys::mount_setattr(root.as_fd(), sys::INERT | sys::READ_ONLY, Propagation::Keep, false)
        .map_err(Error::step("make the jail's root read-only"))?;
    Ok(own_descriptors)
}

/// Keeps what serving files needs, for good. To be called before there is a second thread.
pub(super) fn give_up_privileges() -> Result<(), Error> {
    match rustix::thread::set_thread_groups(&[]) {
        // A user namespace may forbid it. Who has none need not leave any.
        Err(rustix::io::Errno::PERM) if rustix::process::getgroups().is_ok_and(|groups| groups.is_empty()) => {}
        left => left.map_err(Error::step("leave the supplementary groups"))?,
    }
    ::jail::empty_bounding_set().map_err(Error::step("empty the capability bounding set"))?;
    FILE_SERVER.keep_capabilities().map_err(Error::step("give up capabilities"))?;
    rustix::thread::set_no_new_privs(true).map_err(Error::step("renounce new privileges"))?;

    let filter = Filter::new(FILE_SERVER.refused, FILE_SERVER.verdict);
    filter.install().map_err(|error| Error::Seccomp { reason: error.to_string() })?;
    virtiofsd::seccomp::enable_seccomp(SeccompAction::Kill, false)
        .map_err(|error| Error::Seccomp { reason: error.to_string() })
}
