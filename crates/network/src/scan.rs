//! What a network namespace shows.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};

use agent_api::network::{Address, Interface, Neighbour, Network, Route};
use netlink::Socket;
use netlink::route::{self, Assigned, Link, MADE_BY_ADVERTISEMENT, MADE_BY_KERNEL, Routed};

use crate::error::Error;
use crate::mirror::{is_ours, unsuitable};

/// `IFAPROT_KERNEL_LL`: the link-local address that the kernel has made.
const OWN_LINK_LOCAL: u8 = 3;

/// `RTN_UNICAST`.
const UNICAST: u8 = 1;

/// `RTN_LOCAL`, `RTN_BROADCAST`, `RTN_ANYCAST` and `RTN_MULTICAST`: a host makes them of its addresses.
const OF_ADDRESSES: [u8; 4] = [2, 3, 4, 5];

/// The network of the namespace that the calling thread is in, as a guest is to be told.
///
/// Left out is what a guest makes by itself: the loopback, IPv6 link-local addresses and their routes, what routers
/// advertise, the local table. Routes that the kernel has made because of an address are in, because the guest
/// makes none: CNI plugins replace some of them. Interfaces that nobody has set up yet and that have no hardware address, such
/// as the `tunl0` of every namespace on some hosts, are no part of a pod's network; neither are ports of a bridge.
///
/// # Errors
/// [`Error::Unsuitable`] for an interface in use that a guest cannot have, [`Error::Route`] and [`Error::Kernel`].
pub fn scan() -> Result<Network, Error> {
    let mut socket = Socket::route().map_err(Error::kernel("open", "a socket to rtnetlink"))?;
    let links = route::links(&mut socket).map_err(Error::kernel("read", "the interfaces of the pod"))?;
    let addresses = route::addresses(&mut socket).map_err(Error::kernel("read", "the addresses of the pod"))?;
    let routes = route::routes(&mut socket).map_err(Error::kernel("read", "the routes of the pod"))?;
    let neighbours = route::neighbours(&mut socket).map_err(Error::kernel("read", "the neighbours of the pod"))?;

    let mut network = Network::default();
    let mut names = HashMap::new();
    for link in links {
        let assigned: Vec<_> = addresses.iter().filter(|address| address.index == link.index).collect();
        if !belongs(&link, !assigned.is_empty()) {
            continue;
        }
        if let Some(reason) = unsuitable(&link) {
            return Err(Error::Unsuitable { name: link.name, reason });
        }
        let Some(mac) = link.mac else { continue };
        names.insert(link.index, link.name.clone());
        // The route to the other end of one between two points is among the routes.
        let kept = assigned.iter().filter(|assigned| is_told(assigned, mac)).map(|assigned| match assigned.peer {
            Some(_) => {
                Address { ip: assigned.address.ip, prefix: if assigned.address.ip.is_ipv4() { 32 } else { 128 } }
            }
            None => assigned.address,
        });
        network.interfaces.push(Interface {
            addresses: kept.collect(),
            up: link.is_up(),
            name: link.name,
            mac,
            mtu: link.mtu,
        });
    }
    for Routed { interfaces, mut route, beyond } in routes {
        // A route of an interface that is no part of the network is none either. The loopback is such an interface.
        let name = |index: u32| names.get(&index).cloned();
        let (one, hops) = (interfaces.one.map(name), interfaces.hops.into_iter().map(name).collect::<Option<Vec<_>>>());
        let (None | Some(Some(_)), Some(hops)) = (&one, hops) else { continue };
        if !is_routed(&route) {
            continue;
        }
        if let Some(what) = beyond {
            let destination =
                route.destination.map_or_else(|| "everywhere".to_owned(), |to| format!("{}/{}", to.ip, to.prefix));
            return Err(Error::Route { destination, what });
        }
        route.interface = one.flatten();
        route.next_hops.iter_mut().zip(hops).for_each(|(hop, name)| hop.interface = name);
        network.routes.push(route);
    }
    network.neighbours.extend(neighbours.into_iter().filter_map(|known| {
        let interface = names.get(&known.index)?.clone();
        Some(Neighbour { interface, ip: known.ip, mac: known.mac, state: known.state, flags: known.flags })
    }));
    Ok(network)
}

/// Whether an interface is part of the pod's network.
fn belongs(link: &Link, has_addresses: bool) -> bool {
    let in_use = link.is_up() || has_addresses || link.mac.is_some();
    !link.is_loopback() && !is_ours(link) && link.master.is_none() && in_use
}

/// Whether the guest is told of an address.
fn is_told(assigned: &Assigned, mac: [u8; 6]) -> bool {
    if assigned.flags & libc::IFA_F_TEMPORARY != 0 && assigned.address.ip.is_ipv6() {
        return false;
    }
    match assigned.address.ip {
        // Before Linux 5.18 nothing says who has made it, so one that anybody would make of the hardware address is the kernel's.
        IpAddr::V6(ip) if ip.is_unicast_link_local() => assigned.protocol != OWN_LINK_LOCAL && ip != link_local(mac),
        _ => true,
    }
}

/// The link-local address of a hardware address (RFC 4291, appendix A).
fn link_local([a, b, c, d, e, f]: [u8; 6]) -> Ipv6Addr {
    Ipv6Addr::from([0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 2, b, c, 0xff, 0xfe, d, e, f])
}

/// Whether the guest is told of a route.
fn is_routed(route: &Route) -> bool {
    let of_link_local =
        matches!(route.destination, Some(Address { ip: IpAddr::V6(ip), .. }) if ip.is_unicast_link_local());
    let by_itself = route.protocol == MADE_BY_ADVERTISEMENT
        || (route.protocol == MADE_BY_KERNEL && (of_link_local || OF_ADDRESSES.contains(&route.kind)));
    // The route of last resort that some kernels have in every namespace.
    let last_resort = route.metric == Some(u32::MAX) && route.kind != UNICAST;
    !by_itself && !last_resort
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn link_local_addresses_are_made_of_hardware_addresses() {
        assert_eq!(link_local([0x52, 0x54, 0, 0x12, 0x34, 0x56]).to_string(), "fe80::5054:ff:fe12:3456");
    }
}
