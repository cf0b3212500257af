//! Taps.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};

use netlink::Socket;
use netlink::route;

use crate::error::Error;
use crate::sys;

const DEVICE: &str = "/dev/net/tun";

/// Makes a tap that lasts as long as its descriptors. Gives them and its number.
pub(super) fn make(socket: &mut Socket, name: &str, queues: u16) -> Result<(Vec<OwnedFd>, u32), Error> {
    let mut flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    if queues > 1 {
        flags |= libc::IFF_MULTI_QUEUE;
    }
    let mut taps = Vec::new();
    for queue in 0..queues {
        let file = File::options().read(true).write(true).open(DEVICE).map_err(Error::device("open", DEVICE))?;
        // The first makes the tap, and must not find another's that is called alike.
        let flags = if queue == 0 { flags | libc::IFF_TUN_EXCL } else { flags };
        sys::set_interface(file.as_fd(), name, flags).map_err(Error::device("make the tap", name))?;
        taps.push(OwnedFd::from(file));
    }
    let links = route::links(socket).map_err(Error::kernel("read", "the interfaces of the pod"))?;
    let made = links.iter().find(|link| link.name == name);
    let index = made.map(|link| link.index).ok_or_else(|| Error::NoInterface { name: name.to_owned() })?;
    Ok((taps, index))
}
