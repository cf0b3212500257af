//! Waiting for NICs that have been plugged in.

use std::os::fd::AsFd;
use std::time::Duration;

use agent_api::Fault;
use agent_api::network::Interface;
use netlink::Socket;
use netlink::route::{self, Link};
use rustix::io::Errno;
use tokio::io::Interest;

use super::{failed, written};
use crate::fault::{Context, internal};
use crate::sys;

/// Waits until all of these are there. Gives all links that there are then.
pub(super) async fn for_interfaces(wanted: &[Interface], deadline: Duration) -> Result<Vec<Link>, Fault> {
    // Heard before looked, so that none is missed.
    let mut events = Socket::events(libc::RTMGRP_LINK).map_err(failed(|| "listening for interfaces".into()))?;
    let mut socket = Socket::route().map_err(failed(|| "opening a socket to rtnetlink".into()))?;
    let mut links = route::links(&mut socket).map_err(failed(|| "reading the interfaces".into()))?;
    if missing(wanted, &links).is_none() {
        return Ok(links);
    }
    let waiting = || "waiting for interfaces".to_owned();
    let same = events.as_fd().try_clone_to_owned().context(waiting)?;
    let ready = sys::register(same, Interest::READABLE).context(waiting)?;
    let appeared = async {
        while missing(wanted, &links).is_some() {
            ready.readable().await.context(waiting)?.clear_ready();
            match events.heard() {
                // More has happened than was kept. The interfaces are read anyway.
                Err(error) if !error.is(Errno::NOBUFS) => return Err(failed(waiting)(error)),
                _ => {}
            }
            links = route::links(&mut socket).map_err(failed(|| "reading the interfaces".into()))?;
        }
        Ok(())
    };
    match tokio::time::timeout(deadline, appeared).await {
        Ok(result) => result.map(|()| links),
        Err(_) => {
            let of = missing(wanted, &links).map_or_else(String::new, |interface| {
                format!("for {:?} with the hardware address {}", interface.name, written(interface.mac))
            });
            Err(internal(format!(
                "no interface {of} appeared within {} s: the hypervisor has to plug in its NIC, and the guest kernel needs virtio_net",
                deadline.as_secs()
            )))
        }
    }
}

fn missing<'a>(wanted: &'a [Interface], links: &[Link]) -> Option<&'a Interface> {
    wanted.iter().find(|interface| find(links, interface.mac).is_none())
}

/// The link with a hardware address. Hardware comes before what may have been made on top of it with the same address.
pub(super) fn find(links: &[Link], mac: [u8; 6]) -> Option<&Link> {
    links.iter().filter(|link| link.mac == Some(mac)).min_by_key(|link| link.kind.is_some())
}
