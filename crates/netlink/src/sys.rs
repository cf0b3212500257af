//! The one socket option that `rustix` does not offer.

use std::os::fd::{AsRawFd, BorrowedFd};

/// Asks for the kernel's own words with each refusal. A kernel without them still gives numbers, so no error is reported.
pub(crate) fn explain(socket: BorrowedFd<'_>) {
    let on: libc::c_int = 1;
    let length = libc::socklen_t::try_from(size_of_val(&on)).unwrap_or_default();
    // SAFETY: the option's value is an int that lives through the call, and its length is given.
    unsafe {
        libc::setsockopt(socket.as_raw_fd(), libc::SOL_NETLINK, libc::NETLINK_EXT_ACK, (&raw const on).cast(), length);
    }
}
