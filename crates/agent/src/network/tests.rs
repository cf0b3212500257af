//! The guest's network is made in a namespace that the test makes, with veths in place of NICs, and read by what the host uses.

use std::time::Duration;

use agent_api::network::{Address, Interface, Neighbour, Network, NextHop, Route};
use agent_api::{Fault, FaultKind};
use netlink::Socket;
use netlink::route::{self, LinkChange};
use network::Namespace;

use super::GuestNetwork;

/// The deadline of waits that are to fail.
const SOON: Duration = Duration::from_millis(200);

/// Runs something in a new namespace; nothing, with the reason printed, where that is not possible.
fn guest(work: impl AsyncFnOnce() + Send) {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: only root may make network namespaces");
        return;
    }
    let run = || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(work());
    };
    Namespace::create().unwrap().run(run).unwrap();
}

fn mac(number: u8) -> [u8; 6] {
    [2, 0, 0, 0, 1, number]
}

/// Plugs in a NIC, as far as the agent can tell.
fn plug(number: u8) {
    let mut socket = Socket::route().unwrap();
    let with_address = |link: &mut netlink::Message| {
        link.attribute(libc::IFLA_ADDRESS, &mac(number));
    };
    route::add_link(&mut socket, &format!("nic{number}"), "veth", with_address, |_| {}).unwrap();
    // The cable's other end has to be up for there to be a carrier.
    let links = route::links(&mut socket).unwrap();
    let other = links.iter().filter(|link| link.name.starts_with("veth")).max_by_key(|link| link.index).unwrap();
    // Without this it would be taken for another NIC.
    let other_end = LinkChange { up: Some(true), no_own_address: true, ..LinkChange::default() };
    route::change_link(&mut socket, other.index, &other_end).unwrap();
}

fn address(text: &str) -> Address {
    let (ip, prefix) = text.split_once('/').unwrap();
    Address { ip: ip.parse().unwrap(), prefix: prefix.parse().unwrap() }
}

fn interface(name: &str, number: u8, addresses: &[&str]) -> Interface {
    let addresses = addresses.iter().map(|text| address(text)).collect();
    Interface { name: name.into(), mac: mac(number), mtu: 1400, up: true, addresses }
}

fn to(destination: &str, gateway: Option<&str>, name: &str) -> Route {
    let destination = (destination != "default").then(|| address(destination));
    let v6 = gateway.is_some_and(|gateway| gateway.contains(':')) || destination.is_some_and(|to| to.ip.is_ipv6());
    Route {
        destination,
        gateway: gateway.map(|gateway| gateway.parse().unwrap()),
        interface: Some(name.into()),
        source: None,
        scope: if gateway.is_none() && !v6 { 253 } else { 0 },
        kind: 1,
        protocol: 3,
        metric: v6.then_some(1024),
        flags: 0,
        table: 254,
        mtu: None,
        next_hops: vec![],
    }
}

/// Half of it by either way.
fn by_two(destination: &str, gateways: [&str; 2], name: &str) -> Route {
    let next_hops = gateways.map(|gateway| NextHop {
        gateway: Some(gateway.parse().unwrap()),
        interface: name.into(),
        weight: 0,
        flags: 0,
    });
    Route { scope: 0, interface: None, next_hops: next_hops.into(), ..to(destination, None, name) }
}

/// A pod as CNI's bridge and Calico would leave it, with routes in the worst order.
fn pod() -> Network {
    Network {
        interfaces: vec![interface("eth0", 1, &["10.9.0.2/24", "10.9.0.3/24", "fd09::2/64", "fe80::77/64"])],
        routes: vec![
            to("203.0.113.0/24", Some("192.0.2.1"), "eth0"),
            Route { scope: 253, ..to("192.0.2.1/32", Some("169.254.1.1"), "eth0") },
            to("default", Some("10.9.0.1"), "eth0"),
            to("default", Some("fd09::1"), "eth0"),
            Route { scope: 254, ..to("169.254.1.1/32", None, "eth0") },
            Route { protocol: 2, source: Some("10.9.0.2".parse().unwrap()), ..to("10.9.0.0/24", None, "eth0") },
            Route { protocol: 2, metric: Some(256), ..to("fd09::/64", None, "eth0") },
            Route { flags: 4, mtu: Some(1300), table: 300, ..to("198.51.100.0/24", Some("172.16.0.1"), "eth0") },
            by_two("100.100.0.0/16", ["10.9.0.7", "10.9.0.8"], "eth0"),
            by_two("fd10::/16", ["fd09::7", "fd09::8"], "eth0"),
            Route { kind: 6, interface: None, scope: 0, ..to("100.64.0.0/10", None, "eth0") },
        ],
        neighbours: vec![
            Neighbour { interface: "eth0".into(), ip: "10.9.0.1".parse().unwrap(), mac: mac(9), state: 0x80, flags: 0 },
            Neighbour { interface: "eth0".into(), ip: "fd09::1".parse().unwrap(), mac: mac(9), state: 0x80, flags: 0 },
        ],
    }
}

/// What the guest shows, the cables' other ends left out, in an order to compare by.
fn shown() -> Network {
    sorted(network::scan().unwrap())
}

fn sorted(mut network: Network) -> Network {
    network.interfaces.retain(|interface| interface.mac[..5] == mac(0)[..5]);
    network.interfaces.sort_by_key(|interface| interface.mac);
    network.interfaces.iter_mut().for_each(|interface| interface.addresses.sort_by_key(|address| address.ip));
    // Whose order the kernel keeps is not theirs to choose.
    network.routes.sort_by_key(|route| format!("{route:?}"));
    network.neighbours.sort_by_key(|neighbour| neighbour.ip);
    network
}

async fn configure(guest: &GuestNetwork, network: &Network) -> Result<(), Fault> {
    guest.configure(network.clone()).await
}

#[test]
fn the_guest_shows_what_the_host_has_told_however_often() {
    guest(async || {
        plug(1);
        let guest = GuestNetwork::default();
        for _ in 0..3 {
            configure(&guest, &pod()).await.unwrap();
            assert_eq!(shown(), sorted(pod()));
        }
        // An agent that knows nothing of what is there finds it as it should be.
        configure(&GuestNetwork::default(), &pod()).await.unwrap();
        assert_eq!(shown(), sorted(pod()));
    });
}

#[test]
fn what_is_told_no_more_is_removed_and_what_a_container_has_added_stays() {
    guest(async || {
        plug(1);
        plug(2);
        let guest = GuestNetwork::default();
        let mut first = pod();
        first.interfaces.push(interface("net1", 2, &["10.8.0.2/24"]));
        first.routes.push(to("10.8.0.0/24", None, "net1"));
        configure(&guest, &first).await.unwrap();
        assert_eq!(shown(), sorted(first));

        let mut socket = Socket::route().unwrap();
        let eth0 = route::links(&mut socket).unwrap().into_iter().find(|link| link.name == "eth0").unwrap();
        route::add_address(&mut socket, eth0.index, address("10.9.0.77/32")).unwrap();
        let on_eth0 = route::Interfaces { one: Some(eth0.index), ..Default::default() };
        route::add_route(&mut socket, &on_eth0, &to("10.77.0.0/16", Some("10.9.0.1"), "eth0")).unwrap();

        let mut second = pod();
        second.interfaces[0].addresses.retain(|address| address.ip.to_string() != "fd09::2");
        second.interfaces[0].mtu = 1350;
        second.routes.retain(|route| route.metric.is_none() && route.table == 254);
        second.neighbours.clear();
        configure(&guest, &second).await.unwrap();
        let mut expected = second.clone();
        expected.interfaces[0].addresses.push(address("10.9.0.77/32"));
        expected.routes.push(to("10.77.0.0/16", Some("10.9.0.1"), "eth0"));
        let mut shown = shown();
        let net1 = shown.interfaces.pop().unwrap();
        assert!(!net1.up && net1.addresses.is_empty(), "{net1:?}");
        assert_eq!(shown, sorted(expected));
    });
}

#[test]
fn interfaces_may_exchange_their_names() {
    guest(async || {
        plug(1);
        plug(2);
        let guest = GuestNetwork::default();
        let two = |a: u8, b: u8| Network {
            interfaces: vec![interface("eth0", a, &["10.9.0.2/24"]), interface("eth1", b, &["10.8.0.2/24"])],
            routes: vec![to("10.9.0.0/24", None, "eth0"), to("10.8.0.0/24", None, "eth1")],
            neighbours: vec![],
        };
        for (a, b) in [(1, 2), (2, 1), (1, 2)] {
            configure(&guest, &two(a, b)).await.unwrap();
            assert_eq!(shown(), sorted(two(a, b)));
        }
    });
}

#[test]
fn a_nic_that_comes_later_is_waited_for() {
    guest(async || {
        plug(1);
        let guest = GuestNetwork::default();
        let two = || Network {
            interfaces: vec![interface("eth0", 1, &[]), interface("net1", 2, &["10.8.0.2/24"])],
            ..Network::default()
        };
        let fault = guest.configure_within(two(), SOON).await.unwrap_err();
        assert!(
            fault.message.contains("no interface for \"net1\" with the hardware address 02:00:00:00:01:02"),
            "{fault}"
        );
        let network = two();
        let (configured, ()) = tokio::join!(configure(&guest, &network), async {
            tokio::time::sleep(SOON).await;
            plug(2);
        });
        configured.unwrap();
        assert_eq!(shown(), sorted(two()));
        // And one that goes.
        let mut socket = Socket::route().unwrap();
        let net1 = route::links(&mut socket).unwrap().into_iter().find(|link| link.name == "net1").unwrap();
        route::delete_link(&mut socket, net1.index).unwrap();
        let one = Network { interfaces: vec![interface("eth0", 1, &[])], ..Network::default() };
        configure(&guest, &one).await.unwrap();
        assert_eq!(shown(), sorted(one));
    });
}

#[test]
fn errors_name_the_step_and_the_object() {
    guest(async || {
        plug(1);
        let guest = GuestNetwork::default();
        let mut bad = pod();
        bad.interfaces[0].mtu = 100_000;
        let fault = configure(&guest, &bad).await.unwrap_err();
        assert_eq!(
            fault.message,
            "configuring the network: setting the MTU of eth0 to 100000: invalid argument: mtu greater than device maximum"
        );
        let mut bad = pod();
        bad.routes.push(to("10.1.0.0/16", Some("10.200.0.1"), "eth0"));
        let fault = configure(&guest, &bad).await.unwrap_err();
        assert!(
            fault.message.contains("adding the route to 10.1.0.0/16 via 10.200.0.1 on eth0: network is unreachable"),
            "{fault}"
        );
        // A call that failed half-way is put right by the next.
        configure(&guest, &pod()).await.unwrap();
        assert_eq!(shown(), sorted(pod()));
        configure(&guest, &Network::default()).await.unwrap();
        assert_eq!((shown().routes, shown().neighbours), (vec![], vec![]));
    });
}

#[test]
fn what_cannot_be_right_is_refused() {
    type Change = fn(&mut Network);
    let cases: [(&str, Change); 9] = [
        ("cannot be the name of an interface", |n| n.interfaces[0].name = "lo".into()),
        ("cannot be the name of an interface", |n| n.interfaces[0].name = "a/b".into()),
        ("cannot be the name of an interface", |n| n.interfaces[0].name = "sixteen-or-more-1".into()),
        ("two interfaces are to be named", |n| n.interfaces.push(interface("eth0", 2, &[]))),
        ("is not one interface's own", |n| n.interfaces.push(interface("eth1", 1, &[]))),
        ("the MTU 20 of \"eth0\"", |n| n.interfaces[0].mtu = 20),
        ("expected a prefix of 0 to 32 bits", |n| n.interfaces[0].addresses[0].prefix = 33),
        ("is of \"eth7\", which is none of the interfaces", |n| n.routes[0].interface = Some("eth7".into())),
        ("the neighbour 10.9.0.1 is of \"eth7\"", |n| n.neighbours[0].interface = "eth7".into()),
    ];
    for (expected, change) in cases {
        let mut network = pod();
        change(&mut network);
        let fault = super::check::check(&network).unwrap_err();
        assert!(fault.message.contains(expected) && fault.kind == FaultKind::InvalidArgument, "{fault}");
    }
}
