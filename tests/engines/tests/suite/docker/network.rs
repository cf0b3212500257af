//! Docker's networks, with the guest at their end.

use engines::{Client, Docker, Handler, docker_cases};
use serde_json::{Value, json};

use super::{seen, wait_until};

docker_cases!(bridge, published_ports, a_network_of_their_own, networks_come_and_go, none,);

/// Answers every connection to a port with a text and where it came from.
pub(super) const SERVER: &str =
    "trap 'exit 0' TERM; while :; do echo hello | nc -l -p 8080 >/dev/null; done & while :; do sleep 0.1; done";

fn bridge(docker: &Docker, handler: Handler) -> Value {
    let script = "ip -o addr show | sed 's/ *[0-9]*: //; s/if[0-9]*//'; ip route; cat /etc/resolv.conf; ping -c 1 -W 5 172.17.0.1 >/dev/null; echo $?";
    let options = ["--rm", "--mac-address", "02:42:ac:11:00:77"];
    let output = docker.run(handler, &options, &["sh", "-c", script]);
    let text = output.text();
    assert!(text.contains("172.17.0.2/16") && text.contains("default via 172.17.0.1"), "{text}{}", output.stderr);
    assert!(text.ends_with("\n0\n"), "{text}{}", output.stderr);
    let mac = docker.run(handler, &options, &["cat", "/sys/class/net/eth0/address", "/sys/class/net/eth0/mtu"]);
    let addresses: Vec<&str> =
        text.lines().filter(|line| line.contains("inet 172") || line.starts_with("default")).collect();
    // The guest's routes are told one by one, so its addresses make none.
    json!([addresses.join("\n").replace(" noprefixroute", ""), mac.text()])
}

fn published_ports(docker: &Docker, handler: Handler) -> Value {
    docker.detached(handler, &["--publish", "18080:8080", "--publish", "127.0.0.1:18081:8080"], "server", SERVER);
    // Through the proxy, through the rules of the firewall, and directly. The server takes one after the other.
    let ways = [("127.0.0.1", 18080), ("127.0.0.1", 18081), ("172.17.0.1", 18080), ("172.17.0.2", 8080)];
    for (address, port) in ways {
        wait_until(&format!("an answer on {address}:{port}"), || docker.connect(address, port) == "hello\n");
    }
    let shown = docker.ok(["port", "server"]);
    docker.remove(&["server"]);
    json!(shown)
}

fn a_network_of_their_own(docker: &Docker, handler: Handler) -> Value {
    docker.ok(["network", "create", "--subnet", "10.77.0.0/24", "lan"]);
    docker.detached(handler, &["--network", "lan", "--ip", "10.77.0.9"], "server", SERVER);
    let script = "until nc -w 5 server 8080; do sleep 0.2; done; grep ^nameserver /etc/resolv.conf; ip route";
    let output = docker.run(handler, &["--rm", "--network", "lan"], &["sh", "-c", script]);
    let text = output.text();
    assert!(text.starts_with("hello\nnameserver 127.0.0.11\n"), "{text}{}", output.stderr);
    docker.remove(&["server"]);
    docker.ok(["network", "rm", "lan"]);
    json!(text.replace("scope link  src", "scope link src"))
}

fn networks_come_and_go(docker: &Docker, handler: Handler) -> Value {
    docker.ok(["network", "create", "--subnet", "10.77.0.0/24", "lan"]);
    docker.detached(handler, &[], "moving", "while :; do sleep 0.1; done");
    let addresses =
        || docker.ok(["exec", "moving", "sh", "-c", "ip -4 -o addr show | grep -o '10.77[^ ]*'; ip -o link | wc -l"]);
    let before = addresses();
    docker.ok(["network", "connect", "lan", "moving"]);
    wait_until("the interface comes", || addresses().starts_with("10.77.0.2/24\n"));
    let reached = docker.ok(["exec", "moving", "ping", "-c", "1", "-W", "5", "10.77.0.1"]);
    assert!(reached.contains("1 packets received"), "{reached}");
    docker.ok(["network", "disconnect", "lan", "moving"]);
    wait_until("the interface goes", || addresses() == before);
    docker.remove(&["moving"]);
    docker.ok(["network", "rm", "lan"]);
    Value::Null
}

fn none(docker: &Docker, handler: Handler) -> Value {
    let output = docker.run(
        handler,
        &["--rm", "--network", "none"],
        &["sh", "-c", "ls /sys/class/net; ip route; ping -c 1 127.0.0.1 >/dev/null; echo $?"],
    );
    assert_eq!(output.text(), "lo\n0\n", "{}", output.stderr);
    seen(&output)
}
