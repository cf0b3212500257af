//! The few system calls that need more than the standard library.

use std::{
    io,
    os::fd::{AsRawFd, OwnedFd, RawFd},
};

/// Gives this process, and what it starts from now on, a core scheduling cookie of its own (Linux `admin-guide/hw-vuln/core-scheduling.rst`).
pub(crate) fn share_cores_with_nobody() -> io::Result<()> {
    /// `PIDTYPE_PGID`: the whole process group.
    const PROCESS_GROUP: libc::c_ulong = 2;
    // SAFETY: this operation of prctl(2) takes numbers only.
    let result = unsafe { libc::prctl(libc::PR_SCHED_CORE, libc::PR_SCHED_CORE_CREATE, 0, PROCESS_GROUP, 0) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The listening socket that [`crate::bootstrap`] put in place of standard input; `/dev/null` takes that place.
pub(crate) fn take_stdin() -> io::Result<OwnedFd> {
    let taken = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3)?;
    let null = std::fs::File::open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    Ok(taken)
}

/// Lets `command` have `descriptors` as its descriptors 3, 4, 5 and so on.
pub(crate) fn pass_descriptors(command: &mut tokio::process::Command, descriptors: &[&OwnedFd]) -> io::Result<()> {
    /// Above every number that is to be taken.
    const CLEAR: RawFd = 64;
    let copies = descriptors
        .iter()
        .map(|descriptor| rustix::io::fcntl_dupfd_cloexec(descriptor, CLEAR).map_err(Into::into))
        .collect::<io::Result<Vec<OwnedFd>>>()?;
    // SAFETY: between fork and exec the closure only calls dup2(2), which is async-signal-safe, on descriptors that it owns; the numbers
    // it writes to are below CLEAR, so it never overwrites one that is still to be read.
    unsafe {
        command.pre_exec(move || {
            for (target, copy) in (3..).zip(&copies) {
                if libc::dup2(copy.as_raw_fd(), target) < 0 {
                    return Err(io::Error::last_os_error());
                }
            }
            Ok(())
        });
    }
    Ok(())
}

/// Makes a socket the server's.
pub(crate) fn ttrpc_listener(
    socket: std::os::unix::net::UnixListener,
) -> io::Result<containerd_shim_protos::ttrpc::asynchronous::transport::Listener> {
    socket.set_nonblocking(true)?;
    socket.try_into()
}
