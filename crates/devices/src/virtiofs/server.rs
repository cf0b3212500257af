//! The parent's half: starting the server and watching it.

use std::{
    ffi::CString,
    io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::{
            ffi::OsStrExt,
            net::{UnixListener, UnixStream},
            process::ExitStatusExt,
        },
    },
    path::Path,
    process::ExitStatus,
    time::Duration,
};

use ::jail::FILE_SERVER;
use rustix::{
    event::{PollFd, PollFlags, Timespec},
    fs::OFlags,
    pipe::PipeFlags,
    process::{Pid, Signal, WaitId, WaitIdOptions},
};

use super::{Config, LISTENER, arguments, messages::Tail};
use crate::{Error, share, sys};

/// How long the kernel may take to execute the server's executable, which lies on a local file system.
const EXECUTE: Duration = Duration::from_secs(10);
/// How long a killed server may take to be gone. It does take long if a file system it serves has stopped answering.
const DIE: Duration = Duration::from_secs(5);

/// A running file server. As a descriptor ([`AsFd`]) it becomes readable when the server has ended, for a loop to wait on.
/// Dropping it kills the server.
#[derive(Debug)]
pub struct Server {
    pid: Pid,
    pidfd: OwnedFd,
    status: Option<ExitStatus>,
    tail: Tail,
}

/// Starts a server for `config` by executing `executable` (usually `/proc/self/exe`) as [`ROLE`](super::ROLE), and returns it with a
/// connected vhost-user socket for the VMM. It does not wait for the server, whose failures show as its end and its
/// [messages](Server::stderr_tail).
///
/// To be called by a thread that lives as long as the server shall: the server is killed when that thread ends.
///
/// # Errors
/// [`Error::Path`] when `executable` cannot be executed; [`Error::Step`] without `CAP_SYS_ADMIN`.
pub fn spawn(config: &Config, executable: &Path) -> Result<(Server, OwnedFd), Error> {
    let arguments = arguments::write(config)?;
    let file =
        CString::new(executable.as_os_str().as_bytes()).map_err(|_| Error::ZeroByte { path: executable.to_owned() })?;
    let (listener, socket) = connected_pair().map_err(Error::step("make the vhost-user socket"))?;
    let (messages, messages_end) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)
        .map_err(Error::step("make the pipe for the file server's messages"))?;
    let (failure, failure_end) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)
        .map_err(Error::step("make the pipe for the file server's start"))?;
    let null = rustix::fs::open("/dev/null", OFlags::RDONLY | OFlags::CLOEXEC, rustix::fs::Mode::empty())
        .map_err(Error::path("open", Path::new("/dev/null")))?;

    let descriptors = [null.as_fd(), messages_end.as_fd(), messages_end.as_fd(), listener.as_fd()];
    debug_assert_eq!(descriptors.len(), LISTENER as usize + 1);
    let (pid, pidfd) = sys::spawn(&sys::Command {
        executable: &file,
        arguments: &arguments,
        descriptors: &descriptors,
        namespaces: FILE_SERVER.namespaces,
        failure: failure_end.as_fd(),
    })
    .map_err(Error::step("start the file server in namespaces of its own"))?;
    drop(failure_end);

    let server = Server { pid, pidfd, status: None, tail: Tail::new(messages) };
    if !readable(failure.as_fd(), EXECUTE) {
        return Err(Error::ExecuteDeadline { executable: executable.to_owned(), seconds: EXECUTE.as_secs() });
    }
    let mut code = [0; 4];
    match rustix::io::read(&failure, &mut code) {
        Ok(0) => Ok((server, socket)),
        Ok(_) => {
            let error = io::Error::from_raw_os_error(i32::from_ne_bytes(code));
            Err(Error::path("execute as the file server", executable)(error))
        }
        Err(error) => Err(Error::step("learn whether the file server was executed")(error)),
    }
}

impl Server {
    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.pid.as_raw_nonzero().get().cast_unsigned()
    }

    /// How it ended, if it has: exit code 0 when the VMM closed the connection.
    ///
    /// # Errors
    /// [`Error::Step`] when somebody else has waited for it.
    pub fn try_wait(&mut self) -> Result<Option<ExitStatus>, Error> {
        if self.status.is_none() {
            let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
            let waited = rustix::process::waitid(WaitId::PidFd(self.pidfd.as_fd()), options)
                .map_err(Error::step("wait for the file server"))?;
            self.status = waited.map(|status| {
                // The layout of wait(2): the code in the second byte, the signal in the first.
                let code = status.exit_status().map(|code| (code & 0xff) << 8);
                ExitStatus::from_raw(code.or(status.terminating_signal()).unwrap_or(0))
            });
        }
        Ok(self.status)
    }

    /// Ends it, and waits until it is gone, 5 s at most.
    ///
    /// # Errors
    /// [`Error::Step`] when it is still there after that: the kernel holds it in a file system that does not answer.
    pub fn kill(&mut self) -> Result<(), Error> {
        if self.try_wait()?.is_some() {
            return Ok(());
        }
        rustix::process::pidfd_send_signal(&self.pidfd, Signal::KILL).map_err(Error::step("kill the file server"))?;
        readable(self.pidfd.as_fd(), DIE);
        match self.try_wait()? {
            Some(_) => Ok(()),
            None => {
                Err(Error::step("see the killed file server end within 5 s")(io::Error::from(io::ErrorKind::TimedOut)))
            }
        }
    }

    /// The last lines that it wrote, oldest first, with the reason if it ended by itself. At most 64 lines of 512 bytes.
    pub fn stderr_tail(&mut self) -> Vec<String> {
        self.tail.drain();
        self.tail.lines()
    }

    /// Where its messages arrive: readable when there are some. When the pipe is full, further messages are lost, so a
    /// loop that lives long should call [`Self::drain_stderr`] when it is readable.
    pub fn stderr(&self) -> BorrowedFd<'_> {
        self.tail.as_fd()
    }

    /// Takes its messages out of the pipe, without blocking; false when there will be no more of them.
    pub fn drain_stderr(&mut self) -> bool {
        self.tail.drain()
    }
}

impl AsFd for Server {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Nobody is left to be told; what the kernel does not let go of now it will kill when it does.
        let _ = self.kill();
    }
}

/// A listening socket and one connected to it. They meet in a tmpfs that is mounted nowhere, so nobody else can connect.
fn connected_pair() -> io::Result<(UnixListener, OwnedFd)> {
    let nowhere = share::empty_tmpfs(&[("size", "4k"), ("mode", "700")])?;
    let path = format!("/proc/self/fd/{}/socket", nowhere.as_raw_fd());
    let listener = UnixListener::bind(&path)?;
    let stream = UnixStream::connect(&path)?;
    Ok((listener, stream.into()))
}

fn readable(fd: BorrowedFd<'_>, deadline: Duration) -> bool {
    let end = std::time::Instant::now() + deadline;
    loop {
        let left = end.saturating_duration_since(std::time::Instant::now());
        let timeout = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) };
        match rustix::event::poll(&mut [PollFd::from_borrowed_fd(fd, PollFlags::IN)], Some(&timeout)) {
            Err(rustix::io::Errno::INTR) => {}
            result => return result.is_ok_and(|ready| ready > 0),
        }
    }
}
