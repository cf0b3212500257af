//! Containers that share namespaces of another one. Ours are in one machine then.

use engines::{Client, Docker, Door, Handler, docker_cases};
use serde_json::{Value, json};

use super::{network::SERVER, seen, wait_until};

docker_cases!(network_processes_and_ipc, the_first_goes_and_comes, what_cannot_be_shared);

const FOREVER: &str = "trap 'exit 0' TERM; while :; do sleep 0.1; done";

fn machines(docker: &Docker) -> usize {
    docker.host.processes_with("qemu-system").len()
}

fn network_processes_and_ipc(docker: &Docker, handler: Handler) -> Value {
    docker.detached(handler, &["--hostname", "first", "--ipc", "shareable"], "owner", SERVER);
    let read = |file: &str| docker.ok(["exec", "owner", "cat", file]);
    let link = |name: &str| docker.ok(["exec", "owner", "readlink", &format!("/proc/self/ns/{name}")]);
    let script = "cat /sys/class/net/eth0/address; until nc -w 5 127.0.0.1 8080; do sleep 0.2; done; hostname; cat /etc/hosts | wc -l";
    let output = docker.run(handler, &["--rm", "--network", "container:owner"], &["sh", "-c", script]);
    assert_eq!(output.text().lines().next(), read("/sys/class/net/eth0/address").lines().next(), "{}", output.stderr);
    let network: Vec<String> = output.text().lines().skip(1).map(str::to_owned).collect();
    assert_eq!(network[..2], ["hello", "first"], "{}", output.stderr);

    docker.ok(["exec", "owner", "sh", "-c", "echo shared >/dev/shm/file"]);
    let all = ["--rm", "--network", "container:owner", "--pid", "container:owner", "--ipc", "container:owner"];
    let script =
        "for i in pid ipc; do readlink /proc/self/ns/$i; done; cat /dev/shm/file; tr '\\0' ' ' </proc/1/cmdline";
    let output = docker.run(handler, &all, &["sh", "-c", script]);
    let text = output.text();
    assert!(text.starts_with(&format!("{}{}shared\nsh -c ", link("pid"), link("ipc"))), "{text}{}", output.stderr);
    assert!(!handler.is_kata() || machines(docker) == 1);

    // Only what is asked for.
    let script = "for i in pid ipc mnt; do readlink /proc/self/ns/$i; done";
    let apart = docker.run(handler, &all[..3], &["sh", "-c", script]).text();
    assert_eq!(apart.lines().count(), 3, "{apart}");
    assert!(
        apart.lines().all(|line| ![link("pid"), link("ipc"), link("mnt")].contains(&format!("{line}\n"))),
        "{apart}"
    );
    docker.remove(&["owner"]);
    json!(network)
}

fn the_first_goes_and_comes(docker: &Docker, handler: Handler) -> Value {
    docker.detached(handler, &[], "owner", FOREVER);
    docker.detached(handler, &["--network", "container:owner", "--memory", "64m"], "second", FOREVER);
    docker.ok(["stop", "owner"]);
    let owner = docker.inspect("owner", "{{.State.Status}} {{.State.ExitCode}}");
    assert_eq!(docker.ok(["exec", "second", "echo", "alive"]), "alive\n");
    docker.ok(["start", "owner"]);
    assert_eq!(docker.ok(["exec", "owner", "echo", "back"]), "back\n");
    wait_until("it has its network", || {
        docker.call(["exec", "owner", "ping", "-c", "1", "-W", "2", "172.17.0.1"]).code == 0
    });
    // By path it has a machine of its own then, as with runc it has a network of its own.
    assert!(!handler.is_kata() || machines(docker) == if docker.door == Door::Shim { 1 } else { 2 });
    docker.ok(["stop", "second"]);
    let second = docker.inspect("second", "{{.State.Status}} {{.State.ExitCode}}");
    assert_eq!(docker.ok(["exec", "owner", "echo", "alive"]), "alive\n");
    // A killed machine takes both with it, and nothing of either stays.
    docker.ok(["start", "second"]);
    if handler.is_kata() {
        assert_eq!(machines(docker), 1);
        docker.host.kill("KILL", docker.host.processes_with("qemu-system")[0]);
        for name in ["owner", "second"] {
            docker.wait_for(name, "{{.State.Status}}", "exited");
        }
    }
    docker.remove(&["owner"]);
    docker.remove(&["second"]);
    json!([owner, second])
}

fn what_cannot_be_shared(docker: &Docker, handler: Handler) -> Value {
    if !handler.is_kata() {
        return Value::Null;
    }
    docker.detached(Handler::Runc, &[], "stranger", FOREVER);
    docker.detached(handler, &[], "owner", FOREVER);
    let cases = [
        (["--network", "container:stranger"], ["of another runtime", "no container of this runtime"]),
        (["--pid", "container:stranger"], ["--network container:NAME", "no container of this runtime"]),
        (["--pid", "container:owner"], ["--network container:NAME", "--network container:"]),
    ];
    for (options, words) in cases {
        let refused = docker.run(handler, &[&["--rm"][..], &options].concat(), &["true"]);
        assert!(
            refused.code == 125 && words.iter().any(|words| refused.stderr.contains(words)),
            "{options:?}: {}",
            seen(&refused)
        );
    }
    // Which of two?
    docker.detached(handler, &["--network", "container:owner"], "second", FOREVER);
    let options = ["--rm", "--network", "container:owner", "--pid", "container:owner"];
    let refused = docker.run(handler, &options, &["true"]);
    // By path a process of the host stands for each.
    let ambiguous = docker.door == Door::Shim;
    assert!(refused.code == if ambiguous { 125 } else { 0 }, "{}", seen(&refused));
    assert!(!ambiguous || refused.stderr.contains("does not tell"), "{}", seen(&refused));
    for name in ["stranger", "owner", "second"] {
        assert_eq!(docker.call(["exec", name, "ping", "-c", "1", "-W", "5", "172.17.0.1"]).code, 0, "{name}");
    }
    docker.remove(&["stranger", "owner", "second"]);
    Value::Null
}
