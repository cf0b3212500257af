//! Names in networks that users have made: Docker's resolver answers for them, and asks the outside for others.

use engines::{Client, Docker, Handler, docker_cases, names};
use serde_json::{Value, json};

use super::{network::SERVER, wait_until};

docker_cases!(names_of_containers_and_of_the_outside, names_come_with_a_network);

fn lan(docker: &Docker, handler: Handler) {
    docker.ok(["network", "create", "--subnet", "10.77.0.0/24", "lan"]);
    docker.detached(handler, &["--network", "lan", "--ip", "10.77.0.9", "--network-alias", "alias"], "server", SERVER);
}

fn remove(docker: &Docker, containers: &[&str]) {
    docker.remove(containers);
    docker.ok(["network", "rm", "lan"]);
}

fn names_of_containers_and_of_the_outside(docker: &Docker, handler: Handler) -> Value {
    let outside = names::NameServer::start(&docker.host);
    lan(docker, handler);
    let script = format!(
        "grep ^nameserver /etc/resolv.conf
        until nc -w 5 server 8080; do sleep 0.2; done
        until nc -w 5 alias 8080; do sleep 0.2; done
        ping -c 1 -W 1 {} | head -n 1
        ping -c 1 -W 1 {} | head -n 1
        nslookup nobody.outside.test 2>&1 | grep -o NXDOMAIN | head -n 1
        nslookup nobody 2>&1 | grep -o NXDOMAIN | head -n 1
        nc -l -p 53 </dev/null & sleep 0.5; kill -0 $! && echo port 53 is free; kill $!",
        names::SMALL,
        names::BIG
    );
    let output = docker.run(handler, &["--rm", "--network", "lan"], &["sh", "-c", &script]);
    let text = output.text();
    let expected = format!(
        "nameserver 127.0.0.11\nhello\nhello\nPING {} (192.0.2.1): 56 data bytes\nPING {} (192.0.2.",
        names::SMALL,
        names::BIG
    );
    assert!(text.starts_with(&expected), "{text}{}", output.stderr);
    assert!(text.ends_with("NXDOMAIN\nNXDOMAIN\nport 53 is free\n"), "{text}{}", output.stderr);
    assert!(outside.connections() > 0, "the long answer was not fetched over TCP");
    remove(docker, &["server"]);
    json!(text.lines().filter(|line| !line.contains(names::BIG)).collect::<Vec<_>>())
}

/// A container that is connected to such a network while it runs.
fn names_come_with_a_network(docker: &Docker, handler: Handler) -> Value {
    lan(docker, handler);
    docker.detached(handler, &[], "moving", "while :; do sleep 0.1; done");
    let ask = || docker.call(["exec", "moving", "nc", "-w", "5", "server", "8080"]).text();
    assert_eq!(ask(), "");
    docker.ok(["network", "connect", "lan", "moving"]);
    wait_until("the name is found", || ask() == "hello\n");
    remove(docker, &["server", "moving"]);
    Value::Null
}
