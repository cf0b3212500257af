//! Reading the tables.

use std::net::IpAddr;

use agent_api::network::{Address, NextHop, Route};

use super::{Assigned, Interfaces, Known, Link, NEXT_HOP, Routed, ip, zero};
use crate::Error;
use crate::message::{Message, attributes, number};
use crate::socket::{Answer, Socket};

/// `RTA_VIA`: a gateway of the other family.
const VIA: u16 = 18;

/// `RTA_ENCAP`.
const ENCAPSULATION: u16 = 22;

/// All links of the namespace.
///
/// # Errors
/// Those of [`Socket::dump`].
pub fn links(socket: &mut Socket) -> Result<Vec<Link>, Error> {
    let mut message = Message::new(libc::RTM_GETLINK, 0);
    message.fixed(&[0; 16]);
    Ok(socket.dump(&message)?.iter().filter_map(link).collect())
}

/// A link that a message is about, if it is about one.
#[must_use]
pub fn link(answer: &Answer) -> Option<Link> {
    const KIND: u16 = 1;
    if answer.kind != libc::RTM_NEWLINK {
        return None;
    }
    let fixed = &answer.payload;
    let mut link = Link {
        index: number(fixed.get(4..)?)?,
        name: String::new(),
        hardware: u16::from_ne_bytes([*fixed.get(2)?, *fixed.get(3)?]),
        mac: None,
        mtu: 0,
        flags: number(fixed.get(8..)?)?,
        master: None,
        kind: None,
        alias: None,
    };
    for (kind, value) in answer.attributes(16) {
        match kind {
            libc::IFLA_IFNAME => link.name = text(value),
            libc::IFLA_ADDRESS => link.mac = <[u8; 6]>::try_from(value).ok().filter(|mac| *mac != [0; 6]),
            libc::IFLA_MTU => link.mtu = number(value).unwrap_or_default(),
            libc::IFLA_MASTER => link.master = number(value),
            libc::IFLA_IFALIAS => link.alias = Some(text(value)),
            libc::IFLA_LINKINFO => {
                link.kind = attributes(value).find(|(kind, _)| *kind == KIND).map(|(_, value)| text(value));
            }
            _ => {}
        }
    }
    Some(link)
}

/// All addresses of the namespace, in the kernel's order: the first of an interface and a network is its primary one.
///
/// # Errors
/// Those of [`Socket::dump`].
pub fn addresses(socket: &mut Socket) -> Result<Vec<Assigned>, Error> {
    let mut message = Message::new(libc::RTM_GETADDR, 0);
    message.fixed(&[0; 8]);
    Ok(socket.dump(&message)?.iter().filter_map(address).collect())
}

fn address(answer: &Answer) -> Option<Assigned> {
    const PROTOCOL: u16 = 11;
    let fixed = &answer.payload;
    let (mut local, mut remote) = (None, None);
    let (mut flags, mut protocol) = (u32::from(*fixed.get(2)?), 0);
    for (kind, value) in answer.attributes(8) {
        match kind {
            libc::IFA_LOCAL => local = ip(value),
            libc::IFA_ADDRESS => remote = ip(value),
            libc::IFA_FLAGS => flags = number(value)?,
            PROTOCOL => protocol = *value.first()?,
            _ => {}
        }
    }
    let own = local.or(remote)?;
    Some(Assigned {
        index: number(fixed.get(4..)?)?,
        address: Address { ip: own, prefix: *fixed.get(1)? },
        peer: remote.filter(|remote| *remote != own),
        flags,
        scope: *fixed.get(3)?,
        protocol,
    })
}

/// All routes of both families, those of the local table and copies that the kernel has made for itself left out.
///
/// # Errors
/// Those of [`Socket::dump`].
pub fn routes(socket: &mut Socket) -> Result<Vec<Routed>, Error> {
    let mut message = Message::new(libc::RTM_GETROUTE, 0);
    message.fixed(&[0; 12]);
    Ok(socket
        .dump(&message)?
        .iter()
        .filter_map(route)
        .filter(|found| found.route.table != super::LOCAL_TABLE)
        .collect())
}

fn route(answer: &Answer) -> Option<Routed> {
    const MULTIPATH: u16 = 9;
    const METRIC_MTU: u16 = 2;
    let fixed: [u8; 12] = answer.payload.get(..12)?.try_into().ok()?;
    let [family, length, source_length, tos, table, protocol, scope, kind, ..] = fixed;
    let flags = number(&fixed[8..])?;
    let of_ip = matches!(i32::from(family), libc::AF_INET | libc::AF_INET6);
    if !of_ip || flags & libc::RTM_F_CLONED != 0 {
        return None;
    }
    let mut found = Routed {
        interfaces: Interfaces::default(),
        route: Route {
            destination: None,
            gateway: None,
            interface: None,
            source: None,
            scope,
            kind,
            protocol,
            metric: None,
            // Only what is asked for: the rest is the state of the link.
            flags: flags & super::ON_LINK,
            table: table.into(),
            mtu: None,
            next_hops: Vec::new(),
        },
        beyond: None,
    };
    let mut destination = None;
    for (attribute, value) in answer.attributes(12) {
        let route = &mut found.route;
        match attribute {
            libc::RTA_DST => destination = ip(value),
            libc::RTA_OIF => found.interfaces.one = number(value),
            libc::RTA_GATEWAY => route.gateway = ip(value),
            VIA => route.gateway = ip(value.get(2..)?),
            libc::RTA_PREFSRC => route.source = ip(value),
            libc::RTA_PRIORITY => route.metric = number(value),
            libc::RTA_TABLE => route.table = number(value)?,
            libc::RTA_METRICS => {
                let mtu = attributes(value).find(|(kind, _)| *kind == METRIC_MTU);
                route.mtu = mtu.and_then(|(_, value)| number(value));
            }
            MULTIPATH => next_hops(value, &mut found),
            ENCAPSULATION => found.beyond = Some("an encapsulation"),
            _ => {}
        }
    }
    if source_length != 0 {
        found.beyond = Some("a source it is for");
    } else if tos != 0 {
        found.beyond = Some("a type of service it is for");
    }
    let implied = found.route.gateway.is_none_or(|gateway| super::family(gateway) == family);
    let is_default = length == 0
        && implied
        && found.interfaces.hops.is_empty()
        && (found.route.gateway.is_some() || i32::from(family) == libc::AF_INET);
    found.route.destination =
        (!is_default).then(|| Address { ip: destination.unwrap_or_else(|| zero(family)), prefix: length });
    Some(found)
}

/// Reads the next hops of a route that has several. Their names are for the caller to add.
fn next_hops(mut bytes: &[u8], found: &mut Routed) {
    while let Some(fixed) = bytes.get(..NEXT_HOP) {
        let length = usize::from(u16::from_ne_bytes([fixed[0], fixed[1]]));
        let Some(rest) = bytes.get(NEXT_HOP..length) else { return };
        let mut hop = NextHop {
            gateway: None,
            interface: String::new(),
            weight: fixed[3],
            flags: u32::from(fixed[2]) & super::ON_LINK,
        };
        for (kind, value) in attributes(rest) {
            match kind {
                libc::RTA_GATEWAY => hop.gateway = ip(value),
                VIA => hop.gateway = value.get(2..).and_then(ip),
                ENCAPSULATION => found.beyond = Some("an encapsulation"),
                _ => {}
            }
        }
        found.interfaces.hops.push(number(&fixed[4..]).unwrap_or_default());
        found.route.next_hops.push(hop);
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
}

/// All permanent neighbours of both families.
///
/// # Errors
/// Those of [`Socket::dump`].
pub fn neighbours(socket: &mut Socket) -> Result<Vec<Known>, Error> {
    let mut message = Message::new(libc::RTM_GETNEIGH, 0);
    message.fixed(&[0; 12]);
    let found = socket.dump(&message)?;
    Ok(found.iter().filter_map(neighbour).filter(|known| known.state & super::PERMANENT != 0).collect())
}

fn neighbour(answer: &Answer) -> Option<Known> {
    let fixed = answer.payload.get(..12)?;
    let mut address: Option<IpAddr> = None;
    let mut mac = None;
    for (kind, value) in answer.attributes(12) {
        match kind {
            libc::NDA_DST => address = ip(value),
            libc::NDA_LLADDR => mac = <[u8; 6]>::try_from(value).ok(),
            _ => {}
        }
    }
    Some(Known {
        index: number(&fixed[4..])?,
        ip: address?,
        mac: mac?,
        state: u16::from_ne_bytes([fixed[8], fixed[9]]),
        flags: fixed[10],
    })
}

fn text(value: &[u8]) -> String {
    String::from_utf8_lossy(value).trim_end_matches('\0').to_owned()
}
