//! The system calls that neither std nor rustix wraps.
#![allow(unsafe_code)]

use std::{
    io,
    mem::MaybeUninit,
    os::{
        fd::{FromRawFd, OwnedFd},
        unix::process::CommandExt,
    },
    process::Command,
};

/// What ends a build in order.
const ENDING: [libc::c_int; 3] = [libc::SIGINT, libc::SIGTERM, libc::SIGHUP];

fn ending() -> libc::sigset_t {
    let mut set = MaybeUninit::uninit();
    // SAFETY: sigemptyset initialises the set; the signals' numbers are valid.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        for signal in ENDING {
            libc::sigaddset(set.as_mut_ptr(), signal);
        }
        set.assume_init()
    }
}

/// Blocks the signals that end a build, for this thread and those it starts, and returns a descriptor that becomes readable
/// when one of them comes.
pub(crate) fn block_ending_signals() -> io::Result<OwnedFd> {
    let set = ending();
    // SAFETY: both calls only read the set, which is initialised.
    let fd = unsafe {
        let failed = libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut());
        if failed != 0 {
            return Err(io::Error::from_raw_os_error(failed));
        }
        libc::signalfd(-1, &set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK)
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call has just made this descriptor, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Makes the program that `command` runs die with this thread, and takes signals again.
pub(crate) fn die_with_us(command: &mut Command) {
    // SAFETY: what runs in the child between fork and exec are two system calls on data of its own.
    unsafe {
        command.pre_exec(|| {
            let set = ending();
            if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) != 0
                || libc::pthread_sigmask(libc::SIG_UNBLOCK, &set, std::ptr::null_mut()) != 0
            {
                return Err(io::Error::last_os_error());
            }
            Ok(())
        });
    }
}
