//! Changing what is there into what is to be there.

use std::cmp::Reverse;

use agent_api::Fault;
use agent_api::network::{Interface, Neighbour, Network, Route};
use netlink::Socket;
use netlink::route::{self, Interfaces, Known, Link, LinkChange};
use rustix::io::Errno;

use super::failed;
use super::wait::find;
use crate::fault::internal;

/// Names of interfaces and their numbers. There are few.
type Indices = Vec<(String, u32)>;

fn number(indices: &Indices, name: &str) -> Option<u32> {
    indices.iter().find(|(known, _)| known == name).map(|(_, index)| *index)
}

/// Removes what was given before and is given no more.
pub(super) fn remove(socket: &mut Socket, links: &[Link], before: &Network, now: &Network) -> Result<(), Fault> {
    let indices = before_renaming(links, before);
    // Routes and neighbours go by names: if one is another interface's now, nothing is the same.
    let same_names = before.interfaces.iter().all(|old| {
        let named = now.interfaces.iter().find(|new| new.name == old.name);
        named.is_none_or(|new| new.mac == old.mac)
    });
    for route in before.routes.iter().filter(|route| !(same_names && now.routes.contains(route))) {
        // One that went with its interface is not there.
        let Some(interfaces) = interfaces_of(&indices, route) else { continue };
        gone(route::delete_route(socket, &interfaces, route))
            .map_err(failed(|| format!("removing the route to {}", destination(route))))?;
    }
    for neighbour in before.neighbours.iter().filter(|known| !(same_names && now.neighbours.contains(known))) {
        let Some(index) = number(&indices, &neighbour.interface) else { continue };
        gone(route::delete_neighbour(socket, &known(neighbour, index)))
            .map_err(failed(|| format!("removing the neighbour {}", neighbour.ip)))?;
    }
    for old in &before.interfaces {
        let Some(link) = find(links, old.mac) else { continue };
        let new = now.interfaces.iter().find(|new| new.mac == old.mac);
        for &address in &old.addresses {
            if new.is_some_and(|new| new.addresses.contains(&address)) {
                continue;
            }
            gone(route::delete_address(socket, link.index, address)).map_err(failed(|| {
                format!("removing the address {}/{} of {}", address.ip, address.prefix, old.name)
            }))?;
        }
        if new.is_none() {
            let down = LinkChange { up: Some(false), ..LinkChange::default() };
            gone(route::change_link(socket, link.index, &down))
                .map_err(failed(|| format!("taking down {}, which is given no more", old.name)))?;
        }
    }
    Ok(())
}

/// Names as they were given before, which is what they are still called.
fn before_renaming(links: &[Link], before: &Network) -> Indices {
    let numbered = |old: &Interface| Some((old.name.clone(), find(links, old.mac)?.index));
    let mut indices: Indices = before.interfaces.iter().filter_map(numbered).collect();
    indices.extend(links.iter().filter(|link| link.is_loopback()).map(|link| (link.name.clone(), link.index)));
    indices
}

/// Adds and changes what is given.
pub(super) fn apply(socket: &mut Socket, links: &[Link], network: &Network) -> Result<(), Fault> {
    let mut indices = Indices::new();
    indices.extend(links.iter().filter(|link| link.is_loopback()).map(|link| (link.name.clone(), link.index)));
    for interface in &network.interfaces {
        let link = find(links, interface.mac).ok_or_else(|| internal(format!("{} has gone again", interface.name)))?;
        indices.push((interface.name.clone(), link.index));
    }
    rename(socket, links, &indices)?;
    for interface in &network.interfaces {
        if let Some(index) = number(&indices, &interface.name) {
            set_up(socket, index, interface)?;
        }
    }
    add_routes(socket, &indices, &network.routes)?;
    for neighbour in &network.neighbours {
        if let Some(index) = number(&indices, &neighbour.interface) {
            route::add_neighbour(socket, &known(neighbour, index))
                .map_err(failed(|| format!("adding the neighbour {} of {}", neighbour.ip, neighbour.interface)))?;
        }
    }
    Ok(())
}

/// Gives links their names. Those that have another's name give way first.
fn rename(socket: &mut Socket, links: &[Link], indices: &Indices) -> Result<(), Fault> {
    let mut set = |link: &Link, name: &str| {
        let change = LinkChange { name: Some(name), ..LinkChange::default() };
        let mut result = route::change_link(socket, link.index, &change);
        // Older kernels do not rename what is up. It is brought up again later.
        if result.as_ref().is_err_and(|error| error.is(Errno::BUSY)) {
            let down = LinkChange { up: Some(false), ..LinkChange::default() };
            result = route::change_link(socket, link.index, &down)
                .and_then(|()| route::change_link(socket, link.index, &change));
        }
        result.map_err(failed(|| format!("renaming the interface {} to {name}", link.name)))
    };
    for link in links {
        if number(indices, &link.name).is_some_and(|index| index != link.index) {
            set(link, &format!("was{}", link.index))?;
        }
    }
    for (name, index) in indices {
        if let Some(link) = links.iter().find(|link| link.index == *index && link.name != *name) {
            set(link, name)?;
        }
    }
    Ok(())
}

/// Sets an interface's MTU, state and addresses.
fn set_up(socket: &mut Socket, index: u32, interface: &Interface) -> Result<(), Fault> {
    let Interface { name, mtu, up, addresses, .. } = interface;
    let change = LinkChange { mtu: Some(*mtu), ..LinkChange::default() };
    route::change_link(socket, index, &change).map_err(failed(|| format!("setting the MTU of {name} to {mtu}")))?;
    // The namespace on the host has found out that nobody else has this link-local address: it is made of the same hardware address. Where
    // there is no such file there is no IPv6 either, or it just takes a second longer.
    let _ = std::fs::write(format!("/proc/sys/net/ipv6/conf/{name}/accept_dad"), "0");
    let change = LinkChange { up: Some(*up), ..LinkChange::default() };
    let state = if *up { "up" } else { "down" };
    route::change_link(socket, index, &change).map_err(failed(|| format!("bringing {name} {state}")))?;
    for &address in addresses {
        there(route::add_address(socket, index, address))
            .map_err(failed(|| format!("adding the address {}/{} to {name}", address.ip, address.prefix)))?;
    }
    Ok(())
}

/// Adds routes. The kernel takes one by way of a gateway only if it has one to the gateway already, and that has to be of a narrower
/// scope, which is a greater number.
fn add_routes(socket: &mut Socket, indices: &Indices, routes: &[Route]) -> Result<(), Fault> {
    let mut routes: Vec<_> = routes.iter().collect();
    routes.sort_by_key(|route| (route.gateway.is_some() || !route.next_hops.is_empty(), Reverse(route.scope)));
    for route in routes {
        let Some(interfaces) = interfaces_of(indices, route) else { continue };
        there(route::add_route(socket, &interfaces, route)).map_err(|error| not_added(route, error))?;
    }
    Ok(())
}

fn not_added(route: &Route, error: netlink::Error) -> Fault {
    let via = route.gateway.map_or_else(String::new, |gateway| format!(" via {gateway}"));
    let dev = route.interface.as_ref().map_or_else(String::new, |name| format!(" on {name}"));
    failed(|| format!("adding the route to {}{via}{dev}", destination(route)))(error)
}

/// The numbers of a route's interfaces; nothing if one is not there.
fn interfaces_of(indices: &Indices, route: &Route) -> Option<Interfaces> {
    let index = |name: &String| number(indices, name);
    let one = match &route.interface {
        None => None,
        Some(name) => Some(index(name)?),
    };
    Some(Interfaces { one, hops: route.next_hops.iter().map(|hop| index(&hop.interface)).collect::<Option<_>>()? })
}

/// A route's destination as it is written.
pub(super) fn destination(route: &Route) -> String {
    route.destination.map_or_else(|| "everywhere".to_owned(), |to| format!("{}/{}", to.ip, to.prefix))
}

fn known(neighbour: &Neighbour, index: u32) -> Known {
    Known { index, ip: neighbour.ip, mac: neighbour.mac, state: neighbour.state, flags: neighbour.flags }
}

/// What was to be added and is there is added.
fn there(result: Result<(), netlink::Error>) -> Result<(), netlink::Error> {
    result.or_else(|error| if error.is(Errno::EXIST) { Ok(()) } else { Err(error) })
}

/// What was to be removed and is not there is removed.
fn gone(result: Result<(), netlink::Error>) -> Result<(), netlink::Error> {
    const GONE: [Errno; 4] = [Errno::SRCH, Errno::NOENT, Errno::NODEV, Errno::ADDRNOTAVAIL];
    result.or_else(|error| if GONE.iter().any(|errno| error.is(*errno)) { Ok(()) } else { Err(error) })
}
