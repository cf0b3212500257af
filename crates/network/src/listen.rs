//! Listening at one address of one family.

use std::io;
use std::net::{SocketAddr, TcpListener as StdListener};

use rustix::io::Errno;
use rustix::net::{self, AddressFamily, SocketFlags, SocketType, sockopt};
use tokio::net::TcpListener;

/// Connections that may wait.
const BACKLOG: i32 = 128;

/// Listens there, and nowhere in the other family. Needs a tokio runtime.
///
/// # Errors
/// Those of bind(2) and listen(2), e.g. that the port is taken.
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    TcpListener::from_std(open(address)?)
}

/// Whether an address of IPv6 could not be listened at because the kernel or the namespace has none.
pub fn is_without_ipv6(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::AFNOSUPPORT | Errno::ADDRNOTAVAIL))
}

fn open(address: SocketAddr) -> Result<StdListener, Errno> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = net::socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    if address.is_ipv6() {
        // The other family has a listener of its own.
        sockopt::set_ipv6_v6only(&socket, true)?;
    }
    net::bind(&socket, &address)?;
    net::listen(&socket, BACKLOG)?;
    Ok(StdListener::from(socket))
}
