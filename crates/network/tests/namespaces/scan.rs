//! What a namespace shows, and hearing of changes.

use std::time::Duration;

use agent_api::network::{Address, Network};
use network::{Error, Namespace, Watch, scan};

use crate::world::{MAC, world};

fn address(text: &str) -> Address {
    let (ip, prefix) = text.split_once('/').unwrap();
    Address { ip: ip.parse().unwrap(), prefix: prefix.parse().unwrap() }
}

fn routes(network: &Network) -> Vec<String> {
    let mut routes: Vec<_> = network
        .routes
        .iter()
        .map(|route| {
            let destination = route.destination.map_or("default".into(), |to| format!("{}/{}", to.ip, to.prefix));
            let gateway = route.gateway.map_or(String::new(), |gateway| format!(" via {gateway}"));
            let interface = route.interface.as_ref().map_or(String::new(), |name| format!(" dev {name}"));
            let onlink = if route.flags == 4 { " onlink" } else { "" };
            let hops: String = route
                .next_hops
                .iter()
                .map(|hop| format!(" next {} dev {} +{}", hop.gateway.unwrap(), hop.interface, hop.weight))
                .collect();
            format!("{destination}{gateway}{interface}{hops} table {}{onlink}", route.table)
        })
        .collect();
    routes.sort();
    routes
}

#[test]
fn everything_that_was_set_is_seen_and_nothing_that_a_guest_makes_by_itself() {
    let Some(world) = world() else { return };
    world.in_pod(&[
        "addr add fe80::77/64 dev eth0 nodad",
        "addr add 10.9.0.3/24 dev eth0",
        "route add 169.254.1.1 dev eth0 scope link",
        "route add 192.0.2.0/24 via 169.254.1.1 dev eth0 onlink mtu 1300 metric 7",
        "route add 100.100.0.0/16 nexthop via 10.9.0.1 weight 3 nexthop via 10.9.0.7",
        "route add fd10::/16 nexthop via fd09::1 nexthop via fd09::7",
        "route add blackhole 198.51.100.0/24",
        "route add 203.0.113.0/24 via 10.9.0.1 table 300",
        "neigh add 10.9.0.1 lladdr 02:00:00:00:00:01 dev eth0 nud permanent",
        "neigh add fd09::1 lladdr 02:00:00:00:00:01 dev eth0 nud permanent",
        "neigh add 10.9.0.9 lladdr 02:00:00:00:00:09 dev eth0 nud reachable",
    ]);
    let network = world.pod.run(scan).unwrap().unwrap();
    let [eth0] = &network.interfaces[..] else { panic!("{network:?}") };
    assert_eq!((eth0.name.as_str(), eth0.mac, eth0.mtu, eth0.up), ("eth0", MAC, 1400, true));
    for expected in ["10.9.0.2/24", "10.9.0.3/24", "fd09::2/64", "fe80::77/64"] {
        assert!(eth0.addresses.contains(&address(expected)), "{expected}: {:?}", eth0.addresses);
    }
    assert_eq!(eth0.addresses.len(), 4, "{:?}", eth0.addresses);
    assert_eq!(
        routes(&network),
        [
            "10.9.0.0/24 dev eth0 table 254",
            "100.100.0.0/16 next 10.9.0.1 dev eth0 +2 next 10.9.0.7 dev eth0 +0 table 254",
            "169.254.1.1/32 dev eth0 table 254",
            "192.0.2.0/24 via 169.254.1.1 dev eth0 table 254 onlink",
            "198.51.100.0/24 table 254",
            "203.0.113.0/24 via 10.9.0.1 dev eth0 table 300",
            "default via 10.9.0.1 dev eth0 table 254",
            "default via fd09::1 dev eth0 table 254",
            "fd09::/64 dev eth0 table 254",
            "fd10::/16 next fd09::1 dev eth0 +0 next fd09::7 dev eth0 +0 table 254",
        ]
    );
    let far = network.routes.iter().find(|route| route.metric == Some(7)).unwrap();
    assert_eq!(far.mtu, Some(1300));
    assert_eq!(network.neighbours.len(), 2, "{:?}", network.neighbours);
}

#[test]
fn several_interfaces_are_seen_and_ports_of_a_bridge_are_not() {
    let Some(world) = world() else { return };
    world.in_pod(&[
        "link add link eth0 name net1 address 02:00:00:00:00:11 type macvlan mode bridge",
        "tuntap add tap7 mode tap",
        "link add name port type veth peer name far",
        "link add name inner type bridge",
        "link set port master inner",
    ]);
    let network = world.pod.run(scan).unwrap().unwrap();
    let mut names: Vec<_> = network.interfaces.iter().map(|interface| interface.name.as_str()).collect();
    names.sort_unstable();
    assert_eq!(names, ["eth0", "far", "inner", "net1", "tap7"]);
}

#[test]
fn what_cannot_be_told_is_refused_by_name() {
    let Some(world) = world() else { return };
    world.in_pod(&["route add fd11::/16 from fd09::2 via fd09::1"]);
    let error = world.pod.run(scan).unwrap().unwrap_err();
    assert!(matches!(&error, Error::Route { destination, .. } if destination == "fd11::/16"), "{error}");
    world.in_pod(&["route del fd11::/16 from fd09::2", "tuntap add tun7 mode tun", "link set tun7 up"]);
    let error = world.pod.run(scan).unwrap().unwrap_err();
    assert!(error.to_string().contains("\"tun7\" cannot be given to a virtual machine"), "{error}");
}

#[test]
fn namespaces_are_told_apart() {
    let Some(world) = world() else { return };
    assert!(!world.pod.is_host().unwrap());
    assert!(Namespace::current().unwrap().is_host().unwrap());
    assert!(world.pod.run(|| Namespace::current().unwrap().is(&world.pod).unwrap()).unwrap());
    assert!(!world.node.is(&world.pod).unwrap());
    for wrong in ["/dev/null", "/proc/self/ns/mnt"] {
        assert!(matches!(Namespace::open(wrong), Err(Error::NotANamespace { .. })), "{wrong}");
    }
    let error = Namespace::open("/nonexistent/netns").unwrap_err();
    assert_eq!(error.to_string(), "cannot open the network namespace /nonexistent/netns");
}

#[test]
fn a_name_outlives_the_descriptor() {
    let Some(world) = world() else { return };
    let path = std::env::temp_dir().join(format!("kata-network-test-{}", std::process::id()));
    world.pod.bind(&path).unwrap();
    assert!(world.pod.bind(&path).is_err(), "the name is in use");
    drop(world);
    let named = Namespace::open(&path).unwrap();
    assert_eq!(named.run(scan).unwrap().unwrap().interfaces[0].name, "eth0");
    drop(named);
    Namespace::unbind(&path).unwrap();
    assert!(!path.exists());
    Namespace::unbind(&path).unwrap();
}

#[test]
fn changes_are_heard() {
    let Some(world) = world() else { return };
    let watching = || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut watch = Watch::open().unwrap();
            let soon = Duration::from_secs(20);
            let quiet = Duration::from_millis(300);
            for change in [
                "link set eth0 mtu 1390",
                "addr add 10.9.0.4/24 dev eth0",
                "route add 192.0.2.0/24 via 10.9.0.1",
                "neigh add 10.9.0.1 lladdr 02:00:00:00:00:01 dev eth0 nud permanent",
                "link add name extra type veth peer name extra2",
                "link del extra",
            ] {
                // What is left of the last change.
                while tokio::time::timeout(quiet, watch.changed()).await.is_ok() {}
                world.in_pod(&[change]);
                tokio::time::timeout(soon, watch.changed()).await.expect(change).unwrap();
            }
            while tokio::time::timeout(quiet, watch.changed()).await.is_ok() {}
            world.in_pod(&["neigh add 10.9.0.8 lladdr 02:00:00:00:00:08 dev eth0 nud reachable"]);
            assert!(
                tokio::time::timeout(quiet, watch.changed()).await.is_err(),
                "a neighbour that was found is no change"
            );
        });
    };
    world.pod.run(watching).unwrap();
}
