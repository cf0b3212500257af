//! The host's network for a guest that has none of its own: passt(1) turns the guest's frames into connections of its own, so that the
//! guest reaches what the host reaches.
//!
//! passt ends when the machine closes its end of the socket, so it leaves nothing behind even if this process is killed.

use std::io::Read;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use agent_api::network::{Address, Interface, Network, Route};
use jail::Confinement;
use netlink::Socket;
use netlink::route;

use crate::error::Error;

/// What the guest's interface is called by its hardware. Nobody but passt sees it.
const MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0x02];
/// passt's own largest packet: frames stay in memory, so the larger the better.
const MTU: u32 = 65520;
/// The guest's routers. passt takes their addresses for the host's loopback, so they cannot be those of the host's routers, which may have
/// services of their own.
const ROUTERS: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(169, 254, 2, 1)), IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 2, 1))];
/// `RT_TABLE_MAIN`, `RTN_UNICAST`, `RTPROT_STATIC`, `RT_SCOPE_LINK`.
const MAIN: u32 = 254;
const UNICAST: u8 = 1;
const STATIC: u8 = 4;
const LINK: u8 = 253;

/// A running passt.
#[derive(Debug)]
pub struct Passt {
    child: Child,
    /// For the machine's interface. passt ends when all copies are closed.
    pub socket: Option<OwnedFd>,
    /// Hardware address that the guest's interface has to have.
    pub mac: [u8; 6],
    /// What the guest is told.
    pub network: Network,
}

impl Passt {
    /// Starts `program` in the network namespace that the calling thread is in, as `user` if one is named and confined as [`jail::PASST`] says.
    /// It lives no longer than that thread. The guest is given the addresses of the host's interface that the default route goes by, which is
    /// what passt expects.
    ///
    /// # Errors
    /// [`Error::NoDefaultRoute`], [`Error::Passt`] and [`Error::Kernel`].
    pub fn start(program: &Path, user: Option<u32>) -> Result<Self, Error> {
        let uplink = Uplink::find()?;
        let failed = |step, source| Error::Passt { program: program.into(), step, source };
        let (ours, theirs) = UnixStream::pair().map_err(|source| failed("make a socket for it", source))?;
        let mut command = Command::new(program);
        command.args(["--foreground", "--quiet", "--stderr", "--one-off", "--fd", "0"]);
        // The guest is configured by its agent, and published by us.
        command.args(["--no-dhcp", "--no-dhcpv6", "--no-ra", "--tcp-ports", "none", "--udp-ports", "none"]);
        command.args(["--mtu", &MTU.to_string()]).args(uplink.options());
        command.stdin(OwnedFd::from(theirs)).stdout(Stdio::null()).stderr(Stdio::piped()).current_dir("/").env_clear();
        // Where it is looked for.
        command.envs(std::env::var_os("PATH").map(|path| ("PATH", path)));
        // It takes namespaces of its own with a user's means, so it is started as that user.
        let privileged = rustix::process::geteuid().is_root();
        let confinement = Confinement { uid: user, privileged, ..Confinement::new(&jail::PASST) };
        let child = jail::spawn(command, confinement).map_err(|(step, source)| failed(step, source))?;
        Ok(Self { child, socket: Some(ours.into()), mac: MAC, network: uplink.network() })
    }

    /// What passt said, if it has ended.
    pub fn last_words(&mut self) -> Option<String> {
        let status = self.child.try_wait().ok()??;
        let mut said = String::new();
        if let Some(stderr) = &mut self.child.stderr {
            // It has ended, so nothing is waited for.
            let _ = stderr.take(4096).read_to_string(&mut said);
        }
        Some(format!("{status}: {}", said.trim().replace('\n', "; ")))
    }
}

impl Drop for Passt {
    fn drop(&mut self) {
        // It has ended already if the machine has.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The interface that leads out, and what it has of each address family.
struct Uplink {
    name: String,
    ways: Vec<Way>,
}

/// The address by which the host is reached, and the guest's router.
struct Way {
    address: Address,
    gateway: IpAddr,
}

impl Uplink {
    fn find() -> Result<Self, Error> {
        let mut socket = Socket::route().map_err(Error::kernel("open", "a socket to rtnetlink"))?;
        let links = route::links(&mut socket).map_err(Error::kernel("read", "the interfaces of the host"))?;
        let addresses = route::addresses(&mut socket).map_err(Error::kernel("read", "the addresses of the host"))?;
        let mut routes = route::routes(&mut socket).map_err(Error::kernel("read", "the routes of the host"))?;
        routes.retain(|routed| {
            let route = &routed.route;
            route.destination.is_none_or(|to| to.prefix == 0) && route.table == MAIN && route.kind == UNICAST
        });
        routes.sort_by_key(|routed| routed.route.metric.unwrap_or(0));
        let leaving = |routed: &route::Routed| routed.interfaces.one.or(routed.interfaces.hops.first().copied());
        let gateway = |routed: &route::Routed| {
            routed.route.gateway.or(routed.route.next_hops.first().and_then(|hop| hop.gateway))
        };
        let is_v6 = |routed: &route::Routed| {
            gateway(routed).or(routed.route.destination.map(|to| to.ip)).is_some_and(|ip| ip.is_ipv6())
        };
        // passt has one interface: that of IPv4, if there is one.
        let first = routes.iter().find(|routed| !is_v6(routed)).or(routes.first());
        let index = first.and_then(leaving).ok_or(Error::NoDefaultRoute)?;
        let name = links.iter().find(|link| link.index == index).map(|link| link.name.clone());
        let name = name.ok_or(Error::NoDefaultRoute)?;
        let global = |ip: IpAddr| match ip {
            IpAddr::V4(ip) => !ip.is_loopback() && !ip.is_link_local(),
            IpAddr::V6(ip) => !ip.is_loopback() && !ip.is_unicast_link_local(),
        };
        let way = |v6: bool| {
            let of_family = |ip: IpAddr| ip.is_ipv6() == v6;
            routes.iter().find(|routed| is_v6(routed) == v6 && leaving(routed) == Some(index))?;
            let assigned = addresses.iter().find(|assigned| {
                assigned.index == index && of_family(assigned.address.ip) && global(assigned.address.ip)
            })?;
            Some(Way { address: assigned.address, gateway: ROUTERS[usize::from(v6)] })
        };
        let ways: Vec<Way> = [way(false), way(true)].into_iter().flatten().collect();
        if ways.is_empty() {
            return Err(Error::NoDefaultRoute);
        }
        Ok(Self { name, ways })
    }

    fn options(&self) -> Vec<String> {
        let mut options = vec!["--interface".to_owned(), self.name.clone()];
        for Way { address, gateway } in &self.ways {
            options.extend(["--address".into(), address.ip.to_string()]);
            if address.ip.is_ipv4() {
                options.extend(["--netmask".into(), address.prefix.to_string()]);
            }
            options.extend(["--gateway".into(), gateway.to_string()]);
        }
        match self.ways[..] {
            [Way { address, .. }] if address.ip.is_ipv4() => options.push("--ipv4-only".into()),
            [_] => options.push("--ipv6-only".into()),
            _ => {}
        }
        options
    }

    /// One interface with the host's addresses. Everything is reached by way of it: passt answers for every neighbour.
    fn network(&self) -> Network {
        let interface = Interface {
            name: self.name.clone(),
            mac: MAC,
            mtu: MTU,
            up: true,
            addresses: self.ways.iter().map(|way| way.address).collect(),
        };
        let route = |destination, gateway: Option<IpAddr>, scope| Route {
            destination,
            gateway,
            interface: Some(self.name.clone()),
            source: None,
            scope,
            kind: UNICAST,
            protocol: STATIC,
            metric: None,
            // The router is not in the network of the address.
            flags: if gateway.is_some() { ONLINK } else { 0 },
            table: MAIN,
            mtu: None,
            next_hops: Vec::new(),
        };
        let routes = self.ways.iter().flat_map(|Way { address, gateway }| {
            [route(Some(network_of(*address)), None, LINK), route(None, Some(*gateway), 0)]
        });
        Network { interfaces: vec![interface], routes: routes.collect(), neighbours: Vec::new() }
    }
}

/// `RTNH_F_ONLINK`.
const ONLINK: u32 = 4;

/// The address with the bits of the host cleared.
fn network_of(Address { ip, prefix }: Address) -> Address {
    let ip = match ip {
        IpAddr::V4(ip) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
            IpAddr::V4((ip.to_bits() & mask).into())
        }
        IpAddr::V6(ip) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0);
            IpAddr::V6((ip.to_bits() & mask).into())
        }
    };
    Address { ip, prefix }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str, prefix: u8) -> Address {
        Address { ip: text.parse().unwrap(), prefix }
    }

    #[test]
    fn a_network_is_its_addresses_first_bits() {
        assert_eq!(network_of(address("192.168.7.9", 24)), address("192.168.7.0", 24));
        assert_eq!(network_of(address("192.168.7.9", 32)), address("192.168.7.9", 32));
        assert_eq!(network_of(address("192.168.7.9", 0)), address("0.0.0.0", 0));
        assert_eq!(network_of(address("2001:db8::7", 64)), address("2001:db8::", 64));
    }

    #[test]
    fn the_guest_is_told_what_passt_is_told() {
        let ways = vec![
            Way { address: address("10.1.2.3", 24), gateway: ROUTERS[0] },
            Way { address: address("2001:db8::3", 64), gateway: ROUTERS[1] },
        ];
        let uplink = Uplink { name: "eth7".into(), ways };
        let options = uplink.options().join(" ");
        assert_eq!(
            options,
            "--interface eth7 --address 10.1.2.3 --netmask 24 --gateway 169.254.2.1 --address 2001:db8::3 --gateway fe80::2:1"
        );
        let network = uplink.network();
        assert_eq!(network.interfaces[0].addresses, [address("10.1.2.3", 24), address("2001:db8::3", 64)]);
        let told: Vec<_> = network.routes.iter().map(|route| (route.destination, route.gateway)).collect();
        assert_eq!(told[0], (Some(address("10.1.2.0", 24)), None));
        assert_eq!(told[1], (None, Some(ROUTERS[0])));
        assert_eq!(told[3], (None, Some(ROUTERS[1])));
    }
}
