//! The network of a sandbox: what its network namespace on the host showed, and what the guest is to show the same.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// A whole network.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    /// Every interface but the loopback.
    #[serde(default)]
    pub interfaces: Vec<Interface>,
    /// Every route but those of the local table, those of IPv6 link-local addresses and those that routers advertise.
    /// Those that the kernel makes because of an address are among them: the guest's makes none.
    #[serde(default)]
    pub routes: Vec<Route>,
    /// Permanent entries of the neighbour tables.
    #[serde(default)]
    pub neighbours: Vec<Neighbour>,
}

/// An interface. The guest finds it by its hardware address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interface {
    /// Name that the guest shall give it, e.g. `eth0`.
    pub name: String,
    /// Hardware address, six bytes.
    pub mac: [u8; 6],
    /// Largest packet, bytes.
    pub mtu: u32,
    /// Whether it is up.
    pub up: bool,
    /// Addresses.
    #[serde(default)]
    pub addresses: Vec<Address>,
}

/// An address of an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Address {
    /// The address.
    pub ip: IpAddr,
    /// Length of the prefix, bits.
    pub prefix: u8,
}

/// A route (rtnetlink(7), `struct rtmsg`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// Where to; absent is the default route of the family of `gateway`, or of IPv4.
    #[serde(default)]
    pub destination: Option<Address>,
    /// By way of.
    #[serde(default)]
    pub gateway: Option<IpAddr>,
    /// Interface, by name.
    #[serde(default)]
    pub interface: Option<String>,
    /// Preferred source address.
    #[serde(default)]
    pub source: Option<IpAddr>,
    /// `rtm_scope`.
    #[serde(default)]
    pub scope: u8,
    /// `rtm_type`: 1 is unicast.
    pub kind: u8,
    /// `rtm_protocol`.
    #[serde(default)]
    pub protocol: u8,
    /// `RTA_PRIORITY`.
    #[serde(default)]
    pub metric: Option<u32>,
    /// `rtm_flags` and the next hop's: `RTNH_F_ONLINK` (4) is the one that matters.
    #[serde(default)]
    pub flags: u32,
    /// Table; 254 is the main one.
    pub table: u32,
    /// `RTAX_MTU` of the metrics, bytes.
    #[serde(default)]
    pub mtu: Option<u32>,
    /// The next hops, if there are several. Then the route itself has neither `gateway` nor `interface`.
    #[serde(default)]
    pub next_hops: Vec<NextHop>,
}

/// One of several next hops of a route (`struct rtnexthop`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NextHop {
    /// By way of.
    #[serde(default)]
    pub gateway: Option<IpAddr>,
    /// Interface, by name.
    pub interface: String,
    /// `rtnh_hops`: its share of the traffic, less one.
    #[serde(default)]
    pub weight: u8,
    /// `rtnh_flags`, as those of the route.
    #[serde(default)]
    pub flags: u32,
}

/// A neighbour.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Neighbour {
    /// Interface, by name.
    pub interface: String,
    /// Its address.
    pub ip: IpAddr,
    /// Its hardware address.
    pub mac: [u8; 6],
    /// `ndm_state`.
    pub state: u16,
    /// `ndm_flags`.
    #[serde(default)]
    pub flags: u8,
}
