//! Hearing of changes.

use std::os::fd::{AsFd, OwnedFd};

use netlink::route::{PERMANENT, link};
use netlink::{Answer, Socket};
use rustix::io::Errno;
use tokio::io::unix::AsyncFd;

use crate::error::Error;
use crate::mirror::is_ours;
use crate::sys;

/// Watches the namespace in which it was opened.
#[derive(Debug)]
pub struct Watch {
    socket: Socket,
    /// The same socket, for waiting.
    ready: AsyncFd<OwnedFd>,
}

impl Watch {
    /// Watches the namespace that the calling thread is in. What changes from here on is heard of, so open it before [`scan`](crate::scan).
    /// Needs a tokio runtime.
    ///
    /// # Errors
    /// [`Error::Kernel`] and [`Error::Device`].
    pub fn open() -> Result<Self, Error> {
        let groups = libc::RTMGRP_LINK
            | libc::RTMGRP_NEIGH
            | libc::RTMGRP_IPV4_IFADDR
            | libc::RTMGRP_IPV4_ROUTE
            | libc::RTMGRP_IPV6_IFADDR
            | libc::RTMGRP_IPV6_ROUTE;
        let socket = Socket::events(groups).map_err(Error::kernel("watch", "the pod's network namespace"))?;
        let same =
            socket.as_fd().try_clone_to_owned().map_err(Error::device("watch", "the pod's network namespace"))?;
        let ready = sys::readable(same).map_err(Error::device("watch", "the pod's network namespace"))?;
        Ok(Self { socket, ready })
    }

    /// Waits until an interface, address, route or permanent neighbour may have changed since the last call. Changes come in
    /// bursts: wait a moment before scanning. Nothing is lost if the future is dropped.
    ///
    /// # Errors
    /// [`Error::Kernel`] and [`Error::Device`].
    pub async fn changed(&mut self) -> Result<(), Error> {
        loop {
            let mut ready =
                self.ready.readable().await.map_err(Error::device("watch", "the pod's network namespace"))?;
            match self.socket.heard() {
                Ok(heard) => {
                    ready.clear_ready();
                    if heard.iter().any(matters) {
                        return Ok(());
                    }
                }
                // More has happened than was kept.
                Err(error) if error.is(Errno::NOBUFS) => return Ok(()),
                Err(error) => return Err(Error::kernel("watch", "the pod's network namespace")(error)),
            }
        }
    }
}

/// Whether a message is about something that [`scan`](crate::scan) shows. Neighbours that are found and forgotten are not, nor are our
/// own taps.
fn matters(answer: &Answer) -> bool {
    match answer.kind {
        libc::RTM_NEWNEIGH | libc::RTM_DELNEIGH => {
            let state = answer.payload.get(8..10).map_or(0, |state| u16::from_ne_bytes([state[0], state[1]]));
            state & PERMANENT != 0
        }
        _ => !link(answer).is_some_and(|link| is_ours(&link)),
    }
}
