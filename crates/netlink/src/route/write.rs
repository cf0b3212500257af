//! Changing the tables.

use std::net::{IpAddr, Ipv4Addr};

use agent_api::network::{Address, Route};

use super::{Interfaces, Known, bytes, family, zero};
use crate::Error;
use crate::message::Message;
use crate::socket::Socket;

/// What to change of a link; what is absent stays.
#[derive(Debug, Clone, Default)]
pub struct LinkChange<'a> {
    /// Its name.
    pub name: Option<&'a str>,
    /// Its largest packet, bytes.
    pub mtu: Option<u32>,
    /// Whether it is up.
    pub up: Option<bool>,
    /// The text on it.
    pub alias: Option<&'a str>,
    /// That the kernel gives it no IPv6 address by itself.
    pub no_own_address: bool,
}

/// `struct ifinfomsg`.
fn ifinfomsg(index: u32, flags: u32, change: u32) -> Vec<u8> {
    [0, index, flags, change].iter().flat_map(|word: &u32| word.to_ne_bytes()).collect()
}

/// Changes a link.
///
/// # Errors
/// Those of [`Socket::ask`].
pub fn change_link(socket: &mut Socket, index: u32, change: &LinkChange<'_>) -> Result<(), Error> {
    const AF_SPEC: u16 = 26;
    const INET6_ADDR_GEN_MODE: u16 = 8;
    const GENERATE_NONE: u8 = 1;
    let up = libc::IFF_UP.cast_unsigned();
    let flags = change.up.map_or(0, |want| if want { up } else { 0 });
    let mut message = Message::new(libc::RTM_NEWLINK, 0);
    message.fixed(&ifinfomsg(index, flags, change.up.map_or(0, |_| up)));
    if let Some(name) = change.name {
        message.text(libc::IFLA_IFNAME, name);
    }
    if let Some(mtu) = change.mtu {
        message.number(libc::IFLA_MTU, mtu);
    }
    if let Some(alias) = change.alias {
        message.attribute(libc::IFLA_IFALIAS, alias.as_bytes());
    }
    if change.no_own_address {
        message.nest(AF_SPEC, |families| {
            families.nest(libc::AF_INET6.unsigned_abs() as u16, |inet6| {
                inet6.attribute(INET6_ADDR_GEN_MODE, &[GENERATE_NONE]);
            });
        });
    }
    socket.ask(message)
}

/// Makes a link of a kind. `fill` appends the attributes that it needs besides (`IFLA_LINK` and the like), and `data`
/// those of the kind (`IFLA_INFO_DATA`).
///
/// # Errors
/// Those of [`Socket::ask`].
pub fn add_link(
    socket: &mut Socket,
    name: &str,
    kind: &str,
    fill: impl FnOnce(&mut Message),
    data: impl FnOnce(&mut Message),
) -> Result<(), Error> {
    const KIND: u16 = 1;
    const DATA: u16 = 2;
    let mut message = Message::new(libc::RTM_NEWLINK, libc::NLM_F_CREATE | libc::NLM_F_EXCL);
    message.fixed(&ifinfomsg(0, 0, 0)).text(libc::IFLA_IFNAME, name);
    fill(&mut message);
    message.nest(libc::IFLA_LINKINFO, |info| {
        info.text(KIND, kind).nest(DATA, data);
    });
    socket.ask(message)
}

/// Removes a link.
///
/// # Errors
/// Those of [`Socket::ask`].
pub fn delete_link(socket: &mut Socket, index: u32) -> Result<(), Error> {
    let mut message = Message::new(libc::RTM_DELLINK, 0);
    message.fixed(&ifinfomsg(index, 0, 0));
    socket.ask(message)
}

fn address_message(kind: u16, flags: i32, index: u32, address: Address) -> Message {
    let mut message = Message::new(kind, flags);
    message.fixed(&[family(address.ip), address.prefix, 0, 0]).fixed(&index.to_ne_bytes());
    message.attribute(libc::IFA_LOCAL, &bytes(address.ip)).attribute(libc::IFA_ADDRESS, &bytes(address.ip));
    message
}

/// Puts an address on a link. The kernel makes no route because of it, and does not look for a duplicate.
///
/// # Errors
/// Those of [`Socket::ask`]; `EEXIST` if it is there.
pub fn add_address(socket: &mut Socket, index: u32, address: Address) -> Result<(), Error> {
    let mut message = address_message(libc::RTM_NEWADDR, libc::NLM_F_CREATE | libc::NLM_F_EXCL, index, address);
    let flags = libc::IFA_F_NOPREFIXROUTE | if address.ip.is_ipv6() { libc::IFA_F_NODAD } else { 0 };
    message.number(libc::IFA_FLAGS, flags);
    if let (IpAddr::V4(ip), 1..=30) = (address.ip, address.prefix) {
        let broadcast = Ipv4Addr::from_bits(ip.to_bits() | (u32::MAX >> address.prefix));
        message.attribute(libc::IFA_BROADCAST, &broadcast.octets());
    }
    socket.ask(message)
}

/// Takes an address off a link.
///
/// # Errors
/// Those of [`Socket::ask`]; `EADDRNOTAVAIL` if it is not there.
pub fn delete_address(socket: &mut Socket, index: u32, address: Address) -> Result<(), Error> {
    socket.ask(address_message(libc::RTM_DELADDR, 0, index, address))
}

/// Appends a gateway of a route of some family.
fn gateway(message: &mut Message, route_is_v4: bool, gateway: IpAddr) {
    const VIA: u16 = 18;
    if gateway.is_ipv4() == route_is_v4 {
        message.attribute(libc::RTA_GATEWAY, &bytes(gateway));
    } else {
        let mut via = u16::from(family(gateway)).to_ne_bytes().to_vec();
        via.extend(bytes(gateway));
        message.attribute(VIA, &via);
    }
}

fn route_message(kind: u16, flags: i32, interfaces: &Interfaces, route: &Route) -> Message {
    const MULTIPATH: u16 = 9;
    const METRIC_MTU: u16 = 2;
    const UNSPECIFIED: u8 = 0;
    let destination = route.destination.unwrap_or_else(|| {
        let family = route.gateway.map_or(libc::AF_INET.unsigned_abs() as u8, family);
        Address { ip: zero(family), prefix: 0 }
    });
    let mut message = Message::new(kind, flags);
    let table = u8::try_from(route.table).unwrap_or(UNSPECIFIED);
    message.fixed(&[family(destination.ip), destination.prefix, 0, 0, table, route.protocol, route.scope, route.kind]);
    message.fixed(&route.flags.to_ne_bytes()).number(libc::RTA_TABLE, route.table);
    if destination.prefix != 0 {
        message.attribute(libc::RTA_DST, &bytes(destination.ip));
    }
    if let Some(index) = interfaces.one {
        message.number(libc::RTA_OIF, index);
    }
    if let Some(address) = route.gateway {
        gateway(&mut message, destination.ip.is_ipv4(), address);
    }
    if !route.next_hops.is_empty() {
        message.nest(MULTIPATH, |list| {
            for (hop, index) in route.next_hops.iter().zip(&interfaces.hops) {
                let [a, b, c, d] = index.to_ne_bytes();
                let flags = u8::try_from(hop.flags).unwrap_or_default();
                list.structure(&[0, 0, flags, hop.weight, a, b, c, d], |message| {
                    if let Some(address) = hop.gateway {
                        gateway(message, destination.ip.is_ipv4(), address);
                    }
                });
            }
        });
    }
    if let Some(source) = route.source {
        message.attribute(libc::RTA_PREFSRC, &bytes(source));
    }
    if let Some(metric) = route.metric {
        message.number(libc::RTA_PRIORITY, metric);
    }
    if let Some(mtu) = route.mtu {
        message.nest(libc::RTA_METRICS, |metrics| {
            metrics.number(METRIC_MTU, mtu);
        });
    }
    message
}

/// Adds a route behind those to the same destination.
///
/// # Errors
/// Those of [`Socket::ask`]; `EEXIST` if it is there.
pub fn add_route(socket: &mut Socket, interfaces: &Interfaces, route: &Route) -> Result<(), Error> {
    socket.ask(route_message(libc::RTM_NEWROUTE, libc::NLM_F_CREATE | libc::NLM_F_APPEND, interfaces, route))
}

/// Removes a route.
///
/// # Errors
/// Those of [`Socket::ask`]; `ESRCH` if it is not there.
pub fn delete_route(socket: &mut Socket, interfaces: &Interfaces, route: &Route) -> Result<(), Error> {
    socket.ask(route_message(libc::RTM_DELROUTE, 0, interfaces, route))
}

fn neighbour_message(kind: u16, flags: i32, known: &Known) -> Message {
    let mut message = Message::new(kind, flags);
    message.fixed(&[family(known.ip), 0, 0, 0]).fixed(&known.index.to_ne_bytes());
    let state = known.state.to_ne_bytes();
    message.fixed(&[state[0], state[1], known.flags, 0]).attribute(libc::NDA_DST, &bytes(known.ip));
    message
}

/// Adds or changes a neighbour.
///
/// # Errors
/// Those of [`Socket::ask`].
pub fn add_neighbour(socket: &mut Socket, known: &Known) -> Result<(), Error> {
    let mut message = neighbour_message(libc::RTM_NEWNEIGH, libc::NLM_F_CREATE | libc::NLM_F_REPLACE, known);
    message.attribute(libc::NDA_LLADDR, &known.mac);
    socket.ask(message)
}

/// Removes a neighbour.
///
/// # Errors
/// Those of [`Socket::ask`]; `ENOENT` if it is not there.
pub fn delete_neighbour(socket: &mut Socket, known: &Known) -> Result<(), Error> {
    socket.ask(neighbour_message(libc::RTM_DELNEIGH, 0, known))
}
