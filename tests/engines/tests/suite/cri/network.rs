//! Pods on a network: over the node's bridge in both address families, by ports of the node, by what the node's firewall does with it.

use std::{
    io::{Read, Write},
    net::SocketAddr,
};

use engines::{
    Containerd, Handler, cases,
    cri::{Node, Pod},
    stream,
};
use serde_json::{Value, json};

use super::PLAIN;

cases!(
    a_network_as_the_namespace_shows,
    pods_reach_each_other,
    ports_of_the_node,
    addresses_of_services,
    policies,
    interfaces_come_and_go,
    a_network_of_the_host,
);

/// A server in the pod that answers every address of it: with the name of the pod, on port 80.
fn server(pod: &Pod<'_>) -> String {
    let script = "mkdir /www; hostname >/www/name; exec httpd -f -p '[::]:80' -h /www";
    pod.run("server", &["sh", "-c", script], &PLAIN)
}

/// The first line that a web server gives, seen from the node.
fn fetch(node: &Node<'_>, address: &str) -> Result<String, String> {
    let address: SocketAddr = address.parse().unwrap();
    let mut tcp = stream::connect(&node.engine.host.network(), address).map_err(|error| error.to_string())?;
    let mut answer = String::new();
    let asked = tcp.write_all(b"GET /name HTTP/1.0\r\n\r\n").and_then(|()| tcp.read_to_string(&mut answer));
    asked.map_err(|error| error.to_string())?;
    Ok(answer.lines().last().unwrap_or_default().to_owned())
}

/// Name of the one network namespace of a pod that the node has.
fn namespace(node: &Node<'_>) -> String {
    let names = node.engine.host.sh("ls /run/netns");
    assert_eq!(names.lines().count(), 1, "{names}");
    names.trim().to_owned()
}

/// What a network looks like, in words that have no numbers of interfaces.
const LOOK: &str = "
    for i in $(ls /sys/class/net | grep -v -e kata-tap); do
        echo $i $(cat /sys/class/net/$i/address /sys/class/net/$i/mtu)
        ip -4 addr show $i | grep -o 'inet [^ ]*' || :
        ip -6 addr show $i | grep -o 'inet6 [^ ]* scope [^ ]*' || :
    done
    ip -4 route | sort
    ip -6 route | grep -v -e multicast -e ^ff00 | sed 's/ pref [a-z]*//; s/  */ /g; s/ *$//' | sort";

fn a_network_as_the_namespace_shows(engine: &Containerd, handler: Handler) -> Value {
    let node = Node::new(engine, handler);
    let pod = node.pod("shown", &PLAIN);
    let container = pod.idle("main", &PLAIN);
    node.until(&container, "! ip -6 addr | grep tentative");
    let seen = node.sh(&container, LOOK);
    // sysfs belongs to a network namespace, so it has to be mounted there.
    let busybox = engines::images::unpacked("busybox").join("usr/bin/busybox");
    let shown =
        engine.host.ok("ip", &["netns", "exec", &namespace(&node), &busybox.display().to_string(), "sh", "-ec", LOOK]);
    assert_eq!(seen, shown, "the container has the first, the namespace the second");
    for part in
        ["inet 10.88.0.", "inet6 fd00:88::", "inet6 fe80:", "default via 10.88.0.1 dev eth0", "inet 127.0.0.1/8"]
    {
        assert!(seen.contains(part), "{part} in {seen}");
    }
    pod.remove();
    Value::Null
}

fn pods_reach_each_other(engine: &Containerd, handler: Handler) -> Value {
    let node = Node::new(engine, handler);
    let (first, second) = (node.pod("first", &PLAIN), node.pod("second", &PLAIN));
    server(&first);
    let client = server(&second);
    let [v4, v6] = &first.addresses()[..] else { panic!("{:?}", first.addresses()) };
    assert!(v4.starts_with("10.88.0.") && v6.starts_with("fd00:88::"), "{v4} {v6}");
    for address in [v4.clone(), format!("[{v6}]")] {
        assert_eq!(node.until(&client, &format!("wget -T 5 -qO- http://{address}/name")), "first\n");
        assert_eq!(fetch(&node, &format!("{address}:80")).unwrap(), "first");
    }
    let pinged = node.sh(
        &client,
        &format!("ping -c 2 -W 5 {v4} | grep -c ' bytes from'; ping6 -c 2 -W 5 {v6} | grep -c ' bytes from'"),
    );
    assert_eq!(pinged, "2\n2\n");
    // Much at once, of which every byte arrives: what the offloads of a NIC would get wrong.
    node.sh(&client, "head -c 20000000 /dev/urandom >/www/much");
    let sum = node.sh(&client, "md5sum </www/much");
    let peer = first.idle("peer", &PLAIN);
    let second_v6 = second.addresses()[1].clone();
    assert_eq!(node.sh(&peer, &format!("wget -qO- http://[{second_v6}]/much | md5sum")), sum);
    first.remove();
    second.remove();
    json!(pinged)
}

fn ports_of_the_node(engine: &Containerd, handler: Handler) -> Value {
    let node = Node::new(engine, handler);
    let ports = json!({"port_mappings": [{"container_port": 80, "host_port": 8080}]});
    let pod = node.pod("published", &ports);
    server(&pod);
    let [v4, v6] = &pod.addresses()[..] else { panic!("{:?}", pod.addresses()) };
    super::wait_until("the server answers", || fetch(&node, &format!("{v4}:80")).is_ok());
    assert_eq!(fetch(&node, &format!("[{v6}]:80")).unwrap(), "published");
    // From the node, by its own address, and from another pod by the same.
    assert_eq!(fetch(&node, "10.88.0.1:8080").unwrap(), "published");
    assert_eq!(fetch(&node, "127.0.0.1:8080").unwrap(), "published");
    let other = node.pod("other", &PLAIN);
    let client = other.idle("main", &PLAIN);
    assert_eq!(node.sh(&client, "wget -T 5 -qO- http://10.88.0.1:8080/name"), "published\n");
    pod.remove();
    let refused = fetch(&node, "10.88.0.1:8080");
    other.remove();
    assert!(refused.is_err(), "{refused:?}");
    Value::Null
}

/// An address that nobody has and the node's kernel turns into a pod's, as `kube-proxy` has it.
fn addresses_of_services(engine: &Containerd, handler: Handler) -> Value {
    let node = Node::new(engine, handler);
    let (pod, other) = (node.pod("backend", &PLAIN), node.pod("client", &PLAIN));
    server(&pod);
    let client = other.idle("main", &PLAIN);
    let [v4, v6] = &pod.addresses()[..] else { panic!("{:?}", pod.addresses()) };
    for (iptables, service, to) in
        [("iptables", "10.96.7.7", format!("{v4}:80")), ("ip6tables", "fd00:96::7", format!("[{v6}]:80"))]
    {
        engine.host.sh(&format!(
            "{iptables} -t nat -A PREROUTING -d {service} -p tcp --dport 8000 -j DNAT --to-destination {to}
             {iptables} -t nat -A POSTROUTING -m conntrack --ctorigdst {service} -j MASQUERADE"
        ));
    }
    let v4 = node.until(&client, "wget -T 5 -qO- http://10.96.7.7:8000/name");
    let v6 = node.until(&client, "wget -T 5 -qO- 'http://[fd00:96::7]:8000/name'");
    pod.remove();
    other.remove();
    assert_eq!((v4.as_str(), v6.as_str()), ("backend\n", "backend\n"));
    Value::Null
}

fn policies(engine: &Containerd, handler: Handler) -> Value {
    let node = Node::new(engine, handler);
    let pod = node.pod("guarded", &PLAIN);
    server(&pod);
    let addresses = pod.addresses();
    let all = [format!("{}:80", addresses[0]), format!("[{}]:80", addresses[1])];
    super::wait_until("the server answers", || all.iter().all(|address| fetch(&node, address).is_ok()));
    let rule = |action: &str| {
        let [v4, v6] = &addresses[..] else { panic!("{addresses:?}") };
        engine.host.sh(&format!(
            "iptables {action} OUTPUT -d {v4} -p tcp --dport 80 -j REJECT; ip6tables {action} OUTPUT -d {v6} -p tcp --dport 80 -j REJECT"
        ));
    };
    rule("-I");
    let refused: Vec<bool> = all.iter().map(|address| fetch(&node, address).is_err()).collect();
    rule("-D");
    let again: Vec<bool> = all.iter().map(|address| fetch(&node, address).is_ok()).collect();
    pod.remove();
    assert_eq!((&refused[..], &again[..]), (&[true, true][..], &[true, true][..]));
    Value::Null
}

fn interfaces_come_and_go(engine: &Containerd, handler: Handler) -> Value {
    let node = Node::new(engine, handler);
    let pod = node.pod("changing", &PLAIN);
    let container = pod.idle("main", &PLAIN);
    let name = namespace(&node);
    let inside = |script: &str| engine.host.sh(&format!("ip() {{ command ip -n {name} \"$@\"; }}; {script}"));
    // A further address and a route of an interface that is there.
    inside("ip addr add 10.99.0.5/24 dev eth0; ip route add 10.98.0.0/16 via 10.99.0.1; ip link set eth0 mtu 1400");
    node.until(
        &container,
        "ip addr show eth0 | grep 10.99.0.5/24 && ip route | grep 10.98.0.0/16 && ip link show eth0 | grep 'mtu 1400'",
    );
    inside("ip route del 10.98.0.0/16; ip addr del 10.99.0.5/24 dev eth0");
    node.until(&container, "! ip addr show eth0 | grep 10.99.0.5 && ! ip route | grep 10.98.0.0");
    // One that comes, is of use, and goes, twice.
    for turn in 0..2 {
        engine.host.sh(&format!(
            "ip link add more0 type veth peer name more1 netns {name}; ip addr add 10.77.{turn}.1/24 dev more0; ip link set more0 up"
        ));
        inside(&format!("ip addr add 10.77.{turn}.2/24 dev more1; ip link set more1 up"));
        node.until(&container, &format!("ip addr show more1 | grep 10.77.{turn}.2/24; ping -c 1 -W 2 10.77.{turn}.1"));
        engine.host.sh("ip link del more0");
        node.until(&container, "! ip link show more1");
    }
    // What was there before is still of use.
    node.until(&container, "ping -c 1 -W 2 10.88.0.1");
    pod.remove();
    Value::Null
}

/// What a virtual machine cannot share is refused before there is one.
fn a_network_of_the_host(engine: &Containerd, handler: Handler) -> Value {
    let node = Node::new(engine, handler);
    for (option, words) in [("network", "hostNetwork"), ("pid", "hostPID"), ("ipc", "hostIPC")] {
        // The name is the node's, too, then.
        let change = json!({"hostname": "", "linux": {"security_context": {"namespace_options": {option: 2}}}});
        let pod = node.try_pod("hosts", &change);
        match (pod, handler) {
            (Ok(pod), Handler::Runc) => pod.remove(),
            (Err(failure), Handler::Kata) => {
                assert!(failure.message.contains(words), "{failure}");
                assert!(!engine.whole_log().contains("agent-answered"), "{}", engine.log());
            }
            (Ok(_), _) => panic!("a pod with {words} was started"),
            (Err(failure), _) => panic!("{words}: {failure}"),
        }
    }
    Value::Null
}
