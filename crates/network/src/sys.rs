//! The system calls that `rustix` does not offer, each behind a safe function. All unsafe code of this crate is here.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

fn check(returned: libc::c_int) -> io::Result<libc::c_int> {
    if returned < 0 { Err(io::Error::last_os_error()) } else { Ok(returned) }
}

/// The kind of a namespace (`CLONE_NEW*`) by its file, which the caller knows to be on nsfs.
pub(crate) fn namespace_type(file: BorrowedFd<'_>) -> Option<libc::c_int> {
    // SAFETY: this ioctl(2) takes no argument and touches no memory of ours; other files refuse its number.
    check(unsafe { libc::ioctl(file.as_raw_fd(), libc::NS_GET_NSTYPE as _) }).ok()
}

/// Moves the calling thread into a new network namespace.
///
/// # Errors
/// Those of unshare(2).
pub(crate) fn unshare_network() -> io::Result<()> {
    // SAFETY: a network namespace concerns no memory and no descriptor.
    check(unsafe { libc::unshare(libc::CLONE_NEWNET) }).map(drop)
}

/// Registers a descriptor with the runtime, for waiting until it is readable.
///
/// # Errors
/// Those of epoll(7).
pub(crate) fn readable(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` always gives the number that it owns until it is dropped, and nothing takes it out.
    Ok(unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }?)
}

/// Makes a tap of the file, or the file a further queue of it (`TUNSETIFF`).
///
/// # Errors
/// Those of the ioctl(2).
pub(crate) fn set_interface(file: BorrowedFd<'_>, name: &str, flags: libc::c_int) -> io::Result<()> {
    // SAFETY: all zero is a valid `ifreq`.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if name.len() >= request.ifr_name.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (slot, byte) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *slot = byte as _;
    }
    request.ifr_ifru.ifru_flags = (flags & 0xffff) as libc::c_short;
    // SAFETY: `request` is the structure that this ioctl reads and writes, with a name that is ended by a zero byte, and lives
    // through the call.
    check(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF as _, &raw mut request) }).map(drop)
}

/// Where an accepted connection was going before it was redirected here.
///
/// # Errors
/// Those of getsockopt(2).
pub(crate) fn original_destination(socket: BorrowedFd<'_>, v6: bool) -> io::Result<SocketAddr> {
    const ORIGINAL: libc::c_int = 80;
    if v6 {
        // SAFETY: all zero is a valid `sockaddr_in6`.
        let mut address: libc::sockaddr_in6 = unsafe { std::mem::zeroed() };
        let mut length = size_of_val(&address) as libc::socklen_t;
        // SAFETY: the option's value is that structure; it and its length live through the call.
        check(unsafe {
            libc::getsockopt(socket.as_raw_fd(), libc::SOL_IPV6, ORIGINAL, (&raw mut address).cast(), &raw mut length)
        })?;
        let ip = Ipv6Addr::from(address.sin6_addr.s6_addr);
        return Ok(SocketAddr::new(ip.into(), u16::from_be(address.sin6_port)));
    }
    // SAFETY: all zero is a valid `sockaddr_in`.
    let mut address: libc::sockaddr_in = unsafe { std::mem::zeroed() };
    let mut length = size_of_val(&address) as libc::socklen_t;
    // SAFETY: the option's value is that structure; it and its length live through the call.
    check(unsafe {
        libc::getsockopt(socket.as_raw_fd(), libc::SOL_IP, ORIGINAL, (&raw mut address).cast(), &raw mut length)
    })?;
    let ip = Ipv4Addr::from(u32::from_be(address.sin_addr.s_addr));
    Ok(SocketAddr::new(ip.into(), u16::from_be(address.sin_port)))
}
