//! Mirrors: a responder on the tap stands for the guest.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use network::{Error, Mirror, Model, mirror, mirror_leftovers, scan};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::world::{MAC, World, output, world};

/// Length of the virtio-net header that a tap has by default.
const HEADER: usize = 10;

fn mirrored(world: &World, interface: &str, queues: u16, model: Model) -> Result<Mirror, Error> {
    world.pod.run(|| mirror(interface, queues, model)).unwrap()
}

/// Answers ARP and echoes UDP over IPv4 and IPv6, as a guest with the interface's addresses would, until the deadline or until it is told
/// to stop. Gives how many packets it has echoed.
fn respond(tap: &OwnedFd, stop: mpsc::Receiver<()>) -> u32 {
    let mut echoed = 0;
    let deadline = Instant::now() + Duration::from_secs(30);
    while Instant::now() < deadline && stop.try_recv().is_err() {
        let wait = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
        if poll(&mut [PollFd::new(tap, PollFlags::IN)], Some(&wait)).unwrap() == 0 {
            continue;
        }
        let mut frame = [0; 65536];
        let length = rustix::io::read(tap, &mut frame).unwrap();
        let frame = &mut frame[..length];
        if let Some(answer) = answer(&frame[HEADER..]) {
            echoed += u32::from(answer[12..14] != [8, 6]);
            // What the header says of the checksum holds for the answer too.
            let mut out = frame[..HEADER].to_vec();
            out.extend(answer);
            rustix::io::write(tap, &out).unwrap();
        }
    }
    echoed
}

fn answer(frame: &[u8]) -> Option<Vec<u8>> {
    let mut answer = frame.to_vec();
    answer[0..6].copy_from_slice(&frame[6..12]);
    answer[6..12].copy_from_slice(&MAC);
    match [frame[12], frame[13]] {
        // Who has 10.9.0.2?
        [8, 6] if frame[21] == 1 && frame[38..42] == [10, 9, 0, 2] => {
            answer[21] = 2;
            answer[22..28].copy_from_slice(&MAC);
            answer[28..32].copy_from_slice(&frame[38..42]);
            answer[32..42].copy_from_slice(&frame[22..32]);
            Some(answer)
        }
        // UDP: the checksums of the answer are of the same words in another order.
        [8, 0] if frame[23] == 17 => {
            answer[26..30].copy_from_slice(&frame[30..34]);
            answer[30..34].copy_from_slice(&frame[26..30]);
            answer[34..36].copy_from_slice(&frame[36..38]);
            answer[36..38].copy_from_slice(&frame[34..36]);
            Some(answer)
        }
        [0x86, 0xdd] if frame[20] == 17 => {
            answer[22..38].copy_from_slice(&frame[38..54]);
            answer[38..54].copy_from_slice(&frame[22..38]);
            answer[54..56].copy_from_slice(&frame[56..58]);
            answer[56..58].copy_from_slice(&frame[54..56]);
            Some(answer)
        }
        _ => None,
    }
}

/// Sends from the node to the pod until an echo comes.
fn echo(world: &World, from: &str, to: &str) -> bool {
    let ask = || {
        let socket = UdpSocket::bind(from).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
        let mut buffer = [0; 64];
        (0..20).any(|_| {
            // A neighbour that could not be found is an error of the next send.
            let _ = socket.send_to(b"hello", to);
            matches!(socket.recv(&mut buffer), Ok(length) if &buffer[..length] == b"hello")
        })
    };
    world.node.run(ask).unwrap()
}

fn traffic_reaches_the_guest_and_nobody_else(world: &World, model: Model) {
    // Before, the namespace's own stack answers: a port without a listener refuses.
    let connect = || TcpStream::connect_timeout(&"10.9.0.2:7777".parse().unwrap(), Duration::from_secs(2)).unwrap_err();
    assert_eq!(world.node.run(connect).unwrap().kind(), std::io::ErrorKind::ConnectionRefused);

    let before = world.shown("ip", "addr show dev eth0");
    let mut mirror = mirrored(world, "eth0", 1, model).unwrap();
    assert_eq!((mirror.mac, mirror.mtu, mirror.taps.len()), (MAC, 1400, 1));
    assert!(world.shown("ip", &format!("link show dev {}", mirror.tap)).contains("mtu 1400"));
    if model == Model::TcFilter {
        assert_eq!(world.shown("ip", "addr show dev eth0"), before, "the interface stays as it was");
    }

    // Now nobody answers, although the namespace still has the address.
    let error = world.node.run(connect).unwrap();
    assert_ne!(error.kind(), std::io::ErrorKind::ConnectionRefused, "the namespace answers in the guest's place");
    world.on_node(&["neigh flush all"]);
    let before = output(&world.node, "ip", "neigh show 10.9.0.2");
    assert!(!before.contains("lladdr"), "{before}");

    // Until the guest does.
    let tap = mirror.taps.remove(0);
    let (stop, stopped) = mpsc::channel();
    std::thread::scope(|scope| {
        let tap = &tap;
        let responder = scope.spawn(move || respond(tap, stopped));
        let v4 = echo(world, "10.9.0.1:0", "10.9.0.2:7777");
        // The responder speaks no neighbour discovery.
        world.on_node(&["neigh replace fd09::2 lladdr 02:00:00:00:00:02 dev br0 nud permanent"]);
        let v6 = echo(world, "[fd09::1]:0", "[fd09::2]:7777");
        stop.send(()).unwrap();
        assert!(responder.join().unwrap() > 0, "no packet came out of the tap");
        assert!(v4 && v6, "what was written to the tap did not come to the node: IPv4 {v4}, IPv6 {v6}");
    });

    let name = mirror.tap.clone();
    mirror.undo().unwrap();
    let links = world.shown("ip", "link");
    assert!(!links.contains(&name), "{links}");
    let qdiscs = world.shown("tc", "qdisc show dev eth0");
    assert!(!qdiscs.contains("ingress"), "{qdiscs}");
    // The namespace is its own again.
    assert_eq!(world.node.run(connect).unwrap().kind(), std::io::ErrorKind::ConnectionRefused);
}

#[test]
fn a_tap_with_filters_carries_everything_both_ways() {
    let Some(world) = world() else { return };
    traffic_reaches_the_guest_and_nobody_else(&world, Model::TcFilter);
}

#[test]
fn a_macvtap_carries_everything_both_ways() {
    let Some(world) = world() else { return };
    traffic_reaches_the_guest_and_nobody_else(&world, Model::Macvtap);
}

/// What another test's child has of this process until it executes something is an earlier socket of the same address.
fn once_free<T>(bind: impl Fn() -> std::io::Result<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        match bind() {
            Err(error) if error.kind() == std::io::ErrorKind::AddrInUse && Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(5));
            }
            bound => return bound.unwrap(),
        }
    }
}

/// What a name server on the node says to somebody in the pod; nothing if its answer goes elsewhere.
fn asked_in_the_pod(world: &World, server: &str, own_ports: bool) -> [bool; 2] {
    world
        .node
        .run(|| {
            let udp = once_free(|| UdpSocket::bind(server));
            let tcp = once_free(|| TcpListener::bind(server));
            let patience = Duration::from_millis(if own_ports { 2000 } else { 300 });
            udp.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
            tcp.set_nonblocking(true).unwrap();
            let ask = || {
                if own_ports {
                    network::own_ports().unwrap();
                }
                let any = if server.starts_with('[') { "[::]:0" } else { "0.0.0.0:0" };
                let socket = UdpSocket::bind(any).unwrap();
                socket.connect(server).unwrap();
                socket.set_read_timeout(Some(patience)).unwrap();
                socket.send(b"name?").unwrap();
                let datagram = socket.recv(&mut [0; 8]).is_ok();
                [datagram, TcpStream::connect_timeout(&server.parse().unwrap(), patience).is_ok()]
            };
            std::thread::scope(|scope| {
                let asked = scope.spawn(|| world.pod.run(ask).unwrap());
                // An earlier question may come now, having waited for the hardware address.
                while !asked.is_finished() {
                    if let Ok((_, peer)) = udp.recv_from(&mut [0; 8]) {
                        udp.send_to(b"answer", peer).unwrap();
                    }
                }
                asked.join().unwrap()
            })
        })
        .unwrap()
}

#[test]
fn answers_of_name_servers_reach_the_namespace_s_own_stack_when_that_is_asked_for() {
    let Some(world) = world() else { return };
    world.on_node(&["neigh replace fd09::2 lladdr 02:00:00:00:00:02 dev br0 nud permanent"]);
    let mut mirror = mirrored(&world, "eth0", 1, Model::TcFilter).unwrap();
    let servers = ["10.9.0.1:53", "[fd09::1]:53"];
    for server in servers {
        assert_eq!(asked_in_the_pod(&world, server, false), [false, false], "{server}");
    }
    mirror.share_names().unwrap();
    // Its ports are the guest's still.
    assert_eq!(asked_in_the_pod(&world, servers[0], false), [false, false]);
    for server in servers {
        assert_eq!(asked_in_the_pod(&world, server, true), [true, true], "{server}");
    }
    // Only what comes from port 53.
    assert_eq!(asked_in_the_pod(&world, "10.9.0.1:54", true), [false, false]);
    // What tells hardware addresses reaches the guest, too: here the answer to the pod's own stack.
    let tap = &mirror.taps[0];
    let wait = Timespec { tv_sec: 1, tv_nsec: 0 };
    let mut told = false;
    while !told && poll(&mut [PollFd::new(tap, PollFlags::IN)], Some(&wait)).unwrap() > 0 {
        let mut frame = [0; 2048];
        let length = rustix::io::read(tap, &mut frame).unwrap();
        told = frame[..length][HEADER + 12..HEADER + 14] == [8, 6] && frame[HEADER + 21] == 2;
    }
    assert!(told, "no answer of ARP came to the guest");
    mirror.undo().unwrap();
    assert!(!world.shown("tc", "qdisc show dev eth0").contains("ingress"));
    // In a qdisc that stays.
    world.shown("tc", "qdisc add dev eth0 clsact");
    let mut mirror = mirrored(&world, "eth0", 1, Model::TcFilter).unwrap();
    mirror.share_names().unwrap();
    mirror.undo().unwrap();
    let left = world.shown("tc", "filter show dev eth0 ingress");
    assert!(!left.contains("u32"), "{left}");
}

#[test]
fn a_macvlan_can_be_mirrored_by_a_tap_only() {
    let Some(world) = world() else { return };
    world.in_pod(&[
        "link add link eth0 name net1 address 02:00:00:00:00:11 type macvlan mode bridge",
        "link set net1 up",
    ]);
    let mirror = mirrored(&world, "net1", 1, Model::TcFilter).unwrap();
    assert_eq!(mirror.mac, [2, 0, 0, 0, 0, 0x11]);
    let error = mirrored(&world, "net1", 1, Model::Macvtap).unwrap_err();
    assert!(error.to_string().contains("it has a tap already"), "{error}");
    drop(mirror);
    let error = mirrored(&world, "net1", 1, Model::Macvtap).unwrap_err();
    assert!(error.to_string().contains("it is a macvlan itself"), "{error}");
}

#[test]
fn there_are_as_many_queues_as_asked_for_and_the_taps_are_no_interfaces_of_the_pod() {
    let Some(world) = world() else { return };
    for model in [Model::TcFilter, Model::Macvtap] {
        let before = world.pod.run(scan).unwrap().unwrap();
        let mirror = mirrored(&world, "eth0", 2, model).unwrap();
        assert_eq!(mirror.taps.len(), 2);
        let during = world.pod.run(scan).unwrap().unwrap();
        assert_eq!(during.interfaces.len(), before.interfaces.len(), "{during:?}");
        drop(mirror);
        assert_eq!(world.pod.run(scan).unwrap().unwrap(), before);
    }
    assert!(matches!(mirrored(&world, "eth0", 0, Model::TcFilter), Err(Error::Queues { .. })));
    assert!(matches!(mirrored(&world, "eth9", 1, Model::TcFilter), Err(Error::NoInterface { .. })));
    assert!(matches!(mirrored(&world, "lo", 1, Model::TcFilter), Err(Error::Unsuitable { .. })));
}

#[test]
fn a_qdisc_that_was_there_stays_and_one_that_was_left_behind_does_not() {
    let Some(world) = world() else { return };
    world.shown("tc", "qdisc add dev eth0 clsact");
    let mirror = mirrored(&world, "eth0", 1, Model::TcFilter).unwrap();
    assert!(world.shown("tc", "filter show dev eth0 ingress").contains("mirred"));
    mirror.undo().unwrap();
    assert!(!world.shown("tc", "filter show dev eth0 ingress").contains("mirred"));
    assert!(world.shown("tc", "qdisc show dev eth0").contains("clsact"));
    world.shown("tc", "qdisc del dev eth0 clsact");
    // A sandbox that was killed: its tap is gone, its filter is not.
    let left = mirrored(&world, "eth0", 1, Model::TcFilter).unwrap();
    world.in_pod(&[&format!("link del {}", left.tap)]);
    std::mem::forget(left);
    assert!(world.shown("tc", "qdisc show dev eth0").contains("ingress"));
    mirrored(&world, "eth0", 1, Model::TcFilter).unwrap().undo().unwrap();
    assert!(!world.shown("tc", "qdisc show dev eth0").contains("ingress"));
}

#[test]
fn what_a_killed_sandbox_has_left_is_found_and_removed_and_nothing_else() {
    let Some(world) = world() else { return };
    let leftovers = || world.pod.run(mirror_leftovers).unwrap().unwrap();
    let shown = || leftovers().iter().map(ToString::to_string).collect::<Vec<_>>();
    let remove = || leftovers().iter().for_each(|left| world.pod.run(|| left.remove()).unwrap().unwrap());
    assert!(leftovers().is_empty());
    let mut living = mirrored(&world, "eth0", 1, Model::TcFilter).unwrap();
    living.share_names().unwrap();
    assert!(leftovers().is_empty(), "what leads to a tap that is there is in use");
    // The process that had the tap open is gone.
    living.taps.clear();
    std::mem::forget(living);
    assert_eq!(shown(), ["the redirection of eth0"]);
    remove();
    assert!(leftovers().is_empty() && !world.shown("tc", "qdisc show dev eth0").contains("ingress"));

    world.shown("tc", "qdisc add dev eth0 clsact");
    let mut mirror = mirrored(&world, "eth0", 1, Model::TcFilter).unwrap();
    mirror.taps.clear();
    std::mem::forget(mirror);
    remove();
    assert!(!world.shown("tc", "filter show dev eth0 ingress").contains("mirred"));
    assert!(world.shown("tc", "qdisc show dev eth0").contains("clsact"), "that is somebody else's");
    world.shown("tc", "qdisc del dev eth0 clsact");

    let mut mirror = mirrored(&world, "eth0", 1, Model::Macvtap).unwrap();
    let name = mirror.tap.clone();
    mirror.taps.clear();
    std::mem::forget(mirror);
    assert_eq!(shown(), [format!("the macvtap {name}")]);
    remove();
    assert!(!world.shown("ip", "link").contains(&name));
}

#[test]
fn a_mirror_can_be_tried_and_leaves_nothing() {
    if world().is_some() {
        network::try_mirror().unwrap();
    }
}

#[test]
fn an_interface_that_has_gone_is_no_error() {
    let Some(world) = world() else { return };
    let mut mirror = mirrored(&world, "eth0", 1, Model::TcFilter).unwrap();
    mirror.set_mtu(1300).unwrap();
    assert!(world.shown("ip", &format!("link show dev {}", mirror.tap)).contains("mtu 1300"));
    assert!(mirror.is_current().unwrap());
    world.in_pod(&["link del eth0", "link add name eth0 address 02:00:00:00:00:02 type veth peer name other"]);
    assert!(!mirror.is_current().unwrap(), "another of the same name and hardware address");
    mirror.undo().unwrap();
    assert!(!world.shown("ip", "link").contains("kata-tap"));
    drop(world);
}

#[test]
fn what_the_tap_shows_is_what_a_hypervisor_expects() {
    let Some(world) = world() else { return };
    let mirror = mirrored(&world, "eth0", 2, Model::TcFilter).unwrap();
    let shown = world.shown("ip", &format!("-d link show dev {}", mirror.tap));
    for expected in ["type tap", "pi off", "vnet_hdr on", "multi_queue", "persist off"] {
        assert!(shown.contains(expected), "{expected}: {shown}");
    }
    // Closing the last descriptor is enough for the tap to go, whoever is killed.
    let name = mirror.tap.clone();
    let mut mirror = mirror;
    mirror.taps.clear();
    assert!(!world.shown("ip", "link").contains(&name));
    mirror.undo().unwrap();
}

#[test]
fn nothing_is_sent_to_the_guest_that_is_not_for_it() {
    let Some(world) = world() else { return };
    let mirror = mirrored(&world, "eth0", 1, Model::TcFilter).unwrap();
    let shown = world.shown("ip", &format!("addr show dev {}", mirror.tap));
    assert!(!shown.contains("inet"), "the tap has an address: {shown}");
    let mut file = std::fs::File::from(mirror.taps[0].try_clone().unwrap());
    file.write_all(&[0; 5]).unwrap_err();
    let wait = Timespec { tv_sec: 0, tv_nsec: 200_000_000 };
    let mut frame = [0; 2048];
    while poll(&mut [PollFd::new(&file, PollFlags::IN)], Some(&wait)).unwrap() > 0 {
        let length = file.read(&mut frame).unwrap();
        // The node's bridge may announce itself; the tap's own address may not.
        assert_ne!(frame[HEADER + 6..HEADER + 12], MAC, "{:?}", &frame[..length]);
    }
}
