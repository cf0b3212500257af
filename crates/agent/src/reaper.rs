//! Waiting for processes to end.
//!
//! As pid 1 the agent is the parent of its containers' processes and of every orphan. It waits for all of them, and tells
//! those who asked for one. A process is registered right after it was forked, before the reaper can run again, so no end
//! is missed; and until the reaper has waited for it, its number cannot be used again.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;

use agent_api::ExitStatus;
use rustix::process::{WaitOptions, wait};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;

/// Waits for every child.
pub struct Reaper {
    signals: AsyncFd<OwnedFd>,
    watched: RefCell<HashMap<u32, watch::Sender<Option<ExitStatus>>>>,
}

/// Tells when one process has ended, and how.
#[derive(Debug, Clone)]
pub struct ExitWatch(watch::Receiver<Option<ExitStatus>>);

impl ExitWatch {
    /// How it ended, if it has.
    pub fn status(&self) -> Option<ExitStatus> {
        *self.0.borrow()
    }

    /// Waits until it has ended.
    pub async fn ended(&mut self) -> ExitStatus {
        match self.0.wait_for(Option::is_some).await {
            Ok(status) => status.unwrap_or(ExitStatus::Code(255)),
            // The reaper lives as long as the agent, and keeps the sender until the end is known.
            Err(_) => std::future::pending().await,
        }
    }
}

impl Reaper {
    /// Blocks SIGCHLD, from which the reaper learns that there is something to do.
    ///
    /// # Errors
    /// Those of signalfd(2) and epoll_ctl(2).
    pub fn new() -> io::Result<Self> {
        let signals = crate::sys::register(crate::sys::signalfd_of_children()?, Interest::READABLE)?;
        Ok(Self { signals, watched: RefCell::default() })
    }

    /// Asks to be told about the end of a child that was forked just now.
    pub fn watch(&self, pid: u32) -> ExitWatch {
        let (sender, receiver) = watch::channel(None);
        self.watched.borrow_mut().insert(pid, sender);
        ExitWatch(receiver)
    }

    /// Waits for children for ever.
    pub async fn run(&self) {
        loop {
            while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
                self.tell(pid.as_raw_nonzero().get().cast_unsigned(), status.as_raw());
            }
            // Children that end between the last wait and this read leave the signal pending.
            let mut info = [0u8; size_of::<libc::signalfd_siginfo>()];
            let read = self.signals.async_io(Interest::READABLE, |fd| Ok(rustix::io::read(fd, &mut info)?)).await;
            if read.is_err() {
                return;
            }
        }
    }

    fn tell(&self, pid: u32, status: i32) {
        if let (Some(status), Some(sender)) = (exit_status(status), self.watched.borrow_mut().remove(&pid)) {
            sender.send_replace(Some(status));
        }
    }
}

/// What a status of wait(2) means; `None` if the process has not ended.
fn exit_status(status: i32) -> Option<ExitStatus> {
    if libc::WIFEXITED(status) {
        Some(ExitStatus::Code(libc::WEXITSTATUS(status) as u8))
    } else {
        libc::WIFSIGNALED(status).then(|| ExitStatus::Signal(libc::WTERMSIG(status) as u8))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_and_signals_are_told_apart() {
        assert_eq!(exit_status(42 << 8), Some(ExitStatus::Code(42)));
        assert_eq!(exit_status(9), Some(ExitStatus::Signal(9)));
        assert_eq!(exit_status(0x80 | 6), Some(ExitStatus::Signal(6)), "with a core dump");
        assert_eq!(exit_status(0x137f), None, "stopped");
    }

    #[tokio::test(flavor = "current_thread")]
    async fn who_asked_is_told() {
        let reaper = Reaper::new().unwrap();
        let mut first = reaper.watch(7);
        let mut also = first.clone();
        let other = reaper.watch(8);
        reaper.tell(7, 3 << 8);
        assert_eq!(first.ended().await, ExitStatus::Code(3));
        assert_eq!(also.ended().await, ExitStatus::Code(3));
        assert_eq!(other.status(), None);
    }
}
