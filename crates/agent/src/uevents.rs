//! Waiting for devices: the kernel tells of every change over a netlink socket (`kobject-uevent`).

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use agent_api::Fault;
use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, bind, netlink, recv, socket_with};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::timeout;

use crate::fault::{Context, internal};

/// How long a device that the host has plugged may take to appear.
pub const DEADLINE: Duration = Duration::from_secs(20);

/// A non-blocking socket that hears every event from now on.
///
/// # Errors
/// Those of socket(2) and bind(2).
pub fn socket() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::NETLINK, SocketType::DGRAM, flags, Some(netlink::KOBJECT_UEVENT))?;
    bind(&socket, &SocketAddrNetlink::new(0, 1))?;
    Ok(socket)
}

/// Events from its making on.
pub struct Uevents(AsyncFd<OwnedFd>);

impl Uevents {
    /// Starts to listen.
    ///
    /// # Errors
    /// When the kernel gives no socket.
    pub fn listen() -> Result<Self, Fault> {
        let made = socket().and_then(|socket| crate::sys::register(socket, Interest::READABLE));
        made.map(Self).context(|| "listening for device events".into())
    }

    /// Waits until `look` finds something: it looks at once, and after every event.
    ///
    /// # Errors
    /// `look`'s, or that nothing was found before the deadline; `missing` then says what.
    pub async fn until<T>(
        &self,
        limit: Duration,
        missing: impl Fn() -> String,
        mut look: impl FnMut() -> Result<Option<T>, Fault>,
    ) -> Result<T, Fault> {
        let search = async {
            loop {
                if let Some(found) = look()? {
                    return Ok(found);
                }
                self.next().await.context(|| "waiting for device events".into())?;
            }
        };
        match timeout(limit, search).await {
            Ok(done) => done,
            Err(_) => Err(internal(format!("{} within {} s", missing(), limit.as_secs()))),
        }
    }

    async fn next(&self) -> io::Result<()> {
        // What it says does not matter: whoever waits looks again.
        let mut event = [0; 4096];
        let read = self.0.async_io(Interest::READABLE, |fd| match recv(fd, &mut event[..], RecvFlags::empty()) {
            // Some were lost, which is as good as one.
            Ok(_) | Err(Errno::NOBUFS | Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        });
        read.await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "current_thread", start_paused = true)]
    async fn what_does_not_appear_is_named() {
        let events = Uevents::listen().unwrap();
        let missing = || "no disk with the serial number \"x\" appeared".to_owned();
        let fault = events.until(DEADLINE, missing, || Ok(None::<()>)).await.unwrap_err();
        assert_eq!(fault.message, "no disk with the serial number \"x\" appeared within 20 s");
        assert_eq!(events.until(DEADLINE, missing, || Ok(Some(5))).await.unwrap(), 5);
    }
}
