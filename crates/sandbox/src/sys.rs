//! The few system calls that need more than the standard library.

use std::{
    os::{
        fd::{AsFd, OwnedFd},
        unix::process::CommandExt,
    },
    process::Command,
    time::Duration,
};

use rustix::{
    event::{PollFd, PollFlags, poll},
    process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal},
    time::Timespec,
};
use tokio::io::{Interest, unix::AsyncFd};

/// A stable handle on a process; `None` if there is no such process.
pub(crate) fn open_process(pid: u32) -> Option<OwnedFd> {
    let pid = Pid::from_raw(i32::try_from(pid).ok()?)?;
    pidfd_open(pid, PidfdFlags::empty()).ok()
}

/// Sends SIGKILL. A process that is gone already is no error.
pub(crate) fn kill_process(handle: &OwnedFd) {
    let _gone = pidfd_send_signal(handle, Signal::KILL);
}

/// Waits until the process has ended; false when the deadline passed first.
pub(crate) fn wait_gone(handle: &OwnedFd, deadline: Duration) -> bool {
    let end = std::time::Instant::now() + deadline;
    loop {
        let left = end.saturating_duration_since(std::time::Instant::now());
        let timeout = Timespec { tv_sec: left.as_secs() as _, tv_nsec: left.subsec_nanos().into() };
        match poll(&mut [PollFd::new(handle, PollFlags::IN)], Some(&timeout)) {
            Ok(0) => return false,
            Ok(_) => return true,
            Err(rustix::io::Errno::INTR) => {}
            Err(_) => return false,
        }
    }
}

/// Closes every descriptor but 0, 1 and 2.
pub(crate) fn close_all_but_stdio() -> std::io::Result<()> {
    // SAFETY: close_range(2) touches no memory, and nothing in this process has opened a descriptor yet that safe code
    // would still use: it is called first thing in a new process image.
    let result = unsafe { libc::syscall(libc::SYS_close_range, 3u32, u32::MAX, 0u32) };
    if result == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}

/// Takes what is open as standard input and puts `/dev/null` there.
pub(crate) fn take_stdin() -> std::io::Result<OwnedFd> {
    let stdin = rustix::stdio::stdin();
    let taken = rustix::io::fcntl_dupfd_cloexec(stdin, 3)?;
    let null = std::fs::File::open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    Ok(taken)
}

/// A descriptor whose readability can be awaited.
pub(crate) fn watch(descriptor: OwnedFd) -> std::io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` is open as long as it lives, and nothing replaces it while the `AsyncFd` owns it.
    unsafe { AsyncFd::register_with_interest(descriptor, Interest::READABLE) }.map_err(|error| error.into_parts().1)
}

/// Has a program begin with no signal blocked: it would inherit the mask of the thread that starts it.
pub(crate) fn unblock_signals_of(command: &mut Command) {
    // SAFETY: between fork and exec the closure only calls two async-signal-safe functions, on a set of its own.
    unsafe {
        command.pre_exec(|| {
            let mut set = std::mem::zeroed::<libc::sigset_t>();
            libc::sigemptyset(&mut set);
            libc::sigprocmask(libc::SIG_SETMASK, &set, std::ptr::null_mut());
            Ok(())
        });
    }
}

/// Gives the calling thread a working directory and a root of its own, which entering a mount namespace asks for.
///
/// # Errors
/// When the kernel has no memory left.
pub fn own_directories() -> std::io::Result<()> {
    // SAFETY: touches no memory and no descriptors; only the calling thread's directories are concerned.
    if unsafe { libc::unshare(libc::CLONE_FS) } < 0 { Err(std::io::Error::last_os_error()) } else { Ok(()) }
}

/// Takes the calling thread into the mount namespace of a process.
///
/// # Errors
/// There is no such process, or no `CAP_SYS_ADMIN` for it.
pub(crate) fn enter_mounts_of(pid: u32) -> std::io::Result<()> {
    let namespace = std::fs::File::open(format!("/proc/{pid}/ns/mnt"))?;
    own_directories()?;
    Ok(rustix::thread::move_into_link_name_space(namespace.as_fd(), Some(rustix::thread::LinkNameSpaceType::Mount))?)
}
