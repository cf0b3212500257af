//! The guest's loopback interface.

use std::os::fd::AsFd;

use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

use crate::error::{Error, Step};

/// Brings `lo` up; the kernel gives it 127.0.0.1 and ::1 by itself.
///
/// # Errors
/// [`Error::Boot`].
pub fn loopback_up() -> Result<(), Error> {
    let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)
        .step("opening a socket for", "lo")?;
    crate::sys::interface_up(socket.as_fd(), "lo").step("bringing up", "lo")
}
