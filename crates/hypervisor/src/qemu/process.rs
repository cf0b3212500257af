//! QEMU's process: signalled and awaited by a descriptor, so that its number is never mistaken for another's.

use std::{
    io,
    os::{fd::OwnedFd, unix::process::ExitStatusExt},
    process::{Child, ExitStatus},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, poll},
    io::Errno,
    process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal},
    time::Timespec,
};
use tokio::io::unix::AsyncFd;

use crate::sys;

/// How long a killed process may take to go. Giving back a guest's memory takes a fraction of a second.
const DROP_DEADLINE: Duration = Duration::from_secs(5);

/// A child process that does not outlive this.
#[derive(Debug)]
pub(super) struct Process {
    child: Mutex<Child>,
    pid: u32,
    handle: OwnedFd,
    killed: AtomicBool,
}

impl Process {
    /// Takes charge of a child. If that fails, the child is ended.
    pub(super) fn new(mut child: Child) -> io::Result<Self> {
        let pid = child.id();
        let raw = Pid::from_raw(pid.cast_signed()).ok_or(Errno::SRCH);
        match raw.and_then(|raw| pidfd_open(raw, PidfdFlags::NONBLOCK)) {
            Ok(handle) => Ok(Self { child: Mutex::new(child), pid, handle, killed: AtomicBool::new(false) }),
            Err(error) => {
                child.kill()?;
                child.wait()?;
                Err(error.into())
            }
        }
    }

    pub(super) fn pid(&self) -> u32 {
        self.pid
    }

    /// Something that becomes readable when the process has ended.
    pub(super) fn watch(&self) -> io::Result<AsyncFd<OwnedFd>> {
        sys::watch(self.handle.try_clone()?)
    }

    /// Sends SIGKILL.
    pub(super) fn kill(&self) {
        self.killed.store(true, Ordering::Relaxed);
        // It has ended already, which is what was wanted.
        let _gone = pidfd_send_signal(&self.handle, Signal::KILL);
    }

    /// How it ended, once it has; this also reaps it.
    pub(super) fn status(&self) -> Option<ExitStatus> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner).try_wait().ok().flatten()
    }

    /// Whether this status is that of a process that was ended by [`Process::kill`].
    pub(super) fn was_killed(&self, status: ExitStatus) -> bool {
        self.killed.load(Ordering::Relaxed) && status.signal() == Some(libc::SIGKILL)
    }

    /// Ends and reaps it. Blocks until that is done, for [`DROP_DEADLINE`] at most.
    pub(super) fn end(&self) {
        if self.status().is_some() {
            return;
        }
        self.kill();
        let end = Instant::now() + DROP_DEADLINE;
        while self.status().is_none() {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            let timeout = Timespec { tv_sec: left.as_secs() as _, tv_nsec: left.subsec_nanos().into() };
            // Whether it became readable or was interrupted, the loop looks at the process itself.
            let _woken = poll(&mut [PollFd::new(&self.handle, PollFlags::IN)], Some(&timeout));
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.end();
    }
}
