//! The system calls that no safe library offers: signals, and what a child process does before it becomes another program.

use std::{io, mem, os::unix::process::CommandExt, process::Command, ptr};

/// Signals that ask a program to end.
const ENDING: [i32; 4] = [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGTERM];

fn ending() -> libc::sigset_t {
    // SAFETY: sigset_t is plain memory, for which all zeroes are valid; the calls only write to it. They fail for signals
    // that do not exist, of which there are none in the list.
    unsafe {
        let mut set: libc::sigset_t = mem::zeroed();
        libc::sigemptyset(&mut set);
        for signal in ENDING {
            libc::sigaddset(&mut set, signal);
        }
        set
    }
}

/// Blocks, in this thread and those it will start, every signal that [`next_signal`] returns.
pub(crate) fn block_signals() {
    let set = ending();
    // SAFETY: the set is initialised; no old set is asked for.
    unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &set, ptr::null_mut()) };
}

/// Waits for a signal that [`block_signals`] holds back and returns its number.
pub(crate) fn next_signal() -> i32 {
    let set = ending();
    loop {
        // SAFETY: the set is initialised; no further information is asked for.
        let signal = unsafe { libc::sigwaitinfo(&set, ptr::null_mut()) };
        if signal > 0 {
            return signal;
        }
    }
}

/// Ends this process by a signal, so that whoever started it sees why it ended.
pub(crate) fn die_by(signal: i32) -> ! {
    // SAFETY: plain system calls on initialised values. Setting a default action installs no handler.
    unsafe {
        libc::signal(signal, libc::SIG_DFL);
        let mut set: libc::sigset_t = mem::zeroed();
        libc::sigemptyset(&mut set);
        libc::sigaddset(&mut set, signal);
        libc::pthread_sigmask(libc::SIG_UNBLOCK, &set, ptr::null_mut());
        libc::raise(signal);
    }
    std::process::exit(128 + signal)
}

/// Makes the program that `command` starts take signals as usual, and end when the thread that started it ends, even if
/// this process is killed.
pub(crate) fn tie(command: &mut Command) {
    // SAFETY: the closure runs between fork and exec. It allocates nothing and calls only sigemptyset, sigprocmask and prctl,
    // which are async-signal-safe, on memory of its own.
    unsafe {
        command.pre_exec(|| {
            let mut set: libc::sigset_t = mem::zeroed();
            libc::sigemptyset(&mut set);
            libc::sigprocmask(libc::SIG_SETMASK, &set, ptr::null_mut());
            if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM) == 0 {
                Ok(())
            } else {
                Err(io::Error::last_os_error())
            }
        });
    }
}
