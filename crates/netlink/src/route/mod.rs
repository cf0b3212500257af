//! Links, addresses, routes and neighbours (rtnetlink(7)).

mod read;
mod write;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use agent_api::network::{Address, Route};

pub use read::{addresses, link, links, neighbours, routes};
pub use write::{
    LinkChange, add_address, add_link, add_neighbour, add_route, change_link, delete_address, delete_link,
    delete_neighbour, delete_route,
};

/// `RTPROT_KERNEL`: what the kernel makes because of an address.
pub const MADE_BY_KERNEL: u8 = 2;

/// `RTPROT_RA`: what a router has advertised.
pub const MADE_BY_ADVERTISEMENT: u8 = 9;

/// `RT_TABLE_LOCAL`.
pub const LOCAL_TABLE: u32 = 255;

/// `RTNH_F_ONLINK`: the gateway is on the link, whatever the addresses say.
pub const ON_LINK: u32 = 4;

/// `NUD_PERMANENT`.
pub const PERMANENT: u16 = 0x80;

/// A link, that is a network interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Its number.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// `ARPHRD_*`; 1 is Ethernet.
    pub hardware: u16,
    /// Hardware address, if it has one of six bytes that are not all zero.
    pub mac: Option<[u8; 6]>,
    /// Largest packet, bytes.
    pub mtu: u32,
    /// `IFF_*`.
    pub flags: u32,
    /// Number of the bridge or the like that it is a port of.
    pub master: Option<u32>,
    /// What kind it is, e.g. `veth`. Hardware has none.
    pub kind: Option<String>,
    /// A text that somebody has put on it.
    pub alias: Option<String>,
}

impl Link {
    /// Whether it is up, as its owner wants it; not whether there is a carrier.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.flags & libc::IFF_UP.cast_unsigned() != 0
    }

    /// Whether it is the loopback.
    #[must_use]
    pub fn is_loopback(&self) -> bool {
        self.flags & libc::IFF_LOOPBACK.cast_unsigned() != 0
    }
}

/// An address on a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Assigned {
    /// The link's number.
    pub index: u32,
    /// The address.
    pub address: Address,
    /// The other end's, if the link is between two points.
    pub peer: Option<IpAddr>,
    /// `IFA_F_*`.
    pub flags: u32,
    /// `RT_SCOPE_*`.
    pub scope: u8,
    /// `IFAPROT_*`: who made it, 0 if that is unknown.
    pub protocol: u8,
}

/// The numbers of the interfaces that a route names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Interfaces {
    /// Its own.
    pub one: Option<u32>,
    /// Those of its next hops, if it has several.
    pub hops: Vec<u32>,
}

/// A route, with the numbers of its interfaces in place of the names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Routed {
    /// The numbers.
    pub interfaces: Interfaces,
    /// The rest.
    pub route: Route,
    /// Why it is more than a [`Route`] can say, e.g. because it encapsulates.
    pub beyond: Option<&'static str>,
}

/// `struct rtnexthop` without its attributes.
const NEXT_HOP: usize = 8;

/// A neighbour, with the number of its interface in place of the name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    /// The interface's number.
    pub index: u32,
    /// Its address.
    pub ip: IpAddr,
    /// Its hardware address.
    pub mac: [u8; 6],
    /// `ndm_state`.
    pub state: u16,
    /// `ndm_flags`.
    pub flags: u8,
}

/// `AF_INET` or `AF_INET6`.
fn family(ip: IpAddr) -> u8 {
    u8::try_from(if ip.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 }).unwrap_or_default()
}

fn bytes(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

fn ip(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => Some(IpAddr::V4(Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?))),
        16 => Some(IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?))),
        _ => None,
    }
}

/// The address of a family in which no bit is set.
fn zero(family: u8) -> IpAddr {
    if i32::from(family) == libc::AF_INET { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() }
}
