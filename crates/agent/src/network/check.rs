//! What can be wrong about a network without looking at the guest.

use std::net::IpAddr;

use agent_api::Fault;
use agent_api::network::{Address, Network};

use super::written;
use crate::fault::invalid;

/// The shortest packet that IPv4 has to carry.
const LEAST_MTU: u32 = 68;

/// Refuses what cannot be right.
pub(super) fn check(network: &Network) -> Result<(), Fault> {
    for (position, interface) in network.interfaces.iter().enumerate() {
        let name = &interface.name;
        let others = &network.interfaces[..position];
        if !is_name(name) {
            return Err(invalid(format!(
                "{name:?} cannot be the name of an interface: expected 1 to 15 characters without \"/\", \":\" and spaces, and not \"lo\""
            )));
        }
        if others.iter().any(|other| other.name == *name) {
            return Err(invalid(format!("two interfaces are to be named {name:?}")));
        }
        if interface.mac == [0; 6] || interface.mac[0] & 1 != 0 || others.iter().any(|other| other.mac == interface.mac)
        {
            let mac = written(interface.mac);
            return Err(invalid(format!("the hardware address {mac} of {name:?} is not one interface's own")));
        }
        if interface.mtu < LEAST_MTU {
            return Err(invalid(format!("the MTU {} of {name:?} is less than {LEAST_MTU}", interface.mtu)));
        }
        for address in &interface.addresses {
            prefix(address, || format!("of {name:?}"))?;
        }
    }
    let known = |name: &str, of: &dyn Fn() -> String| {
        let is_known = name == "lo" || network.interfaces.iter().any(|interface| interface.name == name);
        is_known
            .then_some(())
            .ok_or_else(|| invalid(format!("{} is of {name:?}, which is none of the interfaces", of())))
    };
    for route in &network.routes {
        let described = || format!("the route to {}", super::apply::destination(route));
        if let Some(destination) = &route.destination {
            prefix(destination, || "of a route".to_owned())?;
        }
        for name in route.interface.iter().chain(route.next_hops.iter().map(|hop| &hop.interface)) {
            known(name, &described)?;
        }
    }
    for neighbour in &network.neighbours {
        known(&neighbour.interface, &|| format!("the neighbour {}", neighbour.ip))?;
    }
    Ok(())
}

fn is_name(name: &str) -> bool {
    let bad = |c: char| c == '/' || c == ':' || c == '\0' || c.is_whitespace();
    (1..=15).contains(&name.len()) && !matches!(name, "lo" | "." | "..") && !name.contains(bad)
}

fn prefix(address: &Address, of: impl FnOnce() -> String) -> Result<(), Fault> {
    let most = if matches!(address.ip, IpAddr::V4(_)) { 32 } else { 128 };
    if address.prefix > most {
        let Address { ip, prefix } = address;
        return Err(invalid(format!("the address {ip}/{prefix} {}: expected a prefix of 0 to {most} bits", of())));
    }
    Ok(())
}
