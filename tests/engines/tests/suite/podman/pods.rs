//! Pods and shared namespaces: containers of one virtual machine.

use engines::{Client, Handler, Podman, images, podman_cases};
use serde_json::{Value, json};

use super::{FOREVER, seen};

podman_cases!(a_pod, namespaces_of_another_container, a_container_of_somebody_else);

fn a_pod(podman: &Podman, handler: Handler) -> Value {
    podman.ok(["pod", "create", "--name", "pod", "--hostname", "podded", &podman.group(), "--publish", "18080:8080"]);
    podman.detached(
        &["--pod", "pod"],
        "server",
        "while :; do hostname | nc -l -p 8080; done & while :; do sleep 0.1; done",
    );
    let script = "until nc 127.0.0.1 8080 </dev/null; do sleep 0.1; done; hostname; cat /proc/sys/kernel/random/boot_id; ls /sys/class/net";
    let output = podman.run(&["--rm", "--pod", "pod"], &["sh", "-c", script]);
    let lines: Vec<String> = output.text().lines().map(str::to_owned).collect();
    assert_eq!(lines.len(), 5, "{}{}", output.text(), output.stderr);
    assert_eq!((lines[0].as_str(), lines[1].as_str()), ("podded", "podded"));
    let boot = podman.ok(["exec", "server", "cat", "/proc/sys/kernel/random/boot_id"]);
    assert_eq!(boot.trim_end(), lines[2]);
    let machines = podman.host.processes_with("qemu-system").len();
    assert_eq!(machines, usize::from(handler.is_kata()));
    super::wait_until("an answer of the pod", || podman.connect("127.0.0.1", 18080) == "podded\n");
    let states = podman.ok(["pod", "ps", "--format", "{{.Name}} {{.Status}} {{.NumberOfContainers}}"]);
    podman.ok(["pod", "stop", "--time", "1", "pod"]);
    let stopped = podman.ok(["pod", "ps", "--format", "{{.Name}} {{.Status}}"]);
    podman.ok(["pod", "start", "pod"]);
    super::wait_until("an answer of the pod that was started again", || {
        podman.connect("127.0.0.1", 18080) == "podded\n"
    });
    podman.ok(["pod", "rm", "--force", "--time", "0", "pod"]);
    json!([lines[3..], states, stopped])
}

fn namespaces_of_another_container(podman: &Podman, handler: Handler) -> Value {
    podman.detached(&["--ipc", "shareable"], "owner", &format!("{FOREVER}; : owner"));
    let joins = ["--network", "container:owner", "--pid", "container:owner", "--ipc", "container:owner"];
    podman.detached(&joins, "member", FOREVER);
    let script = "ps -o args | grep -c '[:] owner'; cat /sys/class/net/eth0/address; ls /dev/shm";
    podman.ok(["exec", "owner", "sh", "-c", "echo kept >/dev/shm/file"]);
    let member = podman.ok(["exec", "member", "sh", "-c", script]);
    let owner = podman.ok(["exec", "owner", "sh", "-c", script]);
    assert_eq!(member, owner);
    assert!(member.ends_with("\nfile\n"), "{member}");
    // What does not join the network as well would have to be in two machines at once.
    let alone = podman.run(&["--rm", "--pid", "container:owner"], &["true"]);
    if handler.is_kata() {
        assert_ne!(alone.code, 0);
        assert!(alone.stderr.contains("--network container:"), "{}", alone.stderr);
    }
    // The machine lives as long as its last container.
    podman.ok(["kill", "--signal", "KILL", "owner"]);
    podman.wait_for("owner", "{{.State.Status}}", "exited");
    let lives = handler.is_kata().then(|| podman.call(["exec", "member", "true"]).code);
    podman.remove(&["member"]);
    podman.remove(&["owner"]);
    // With its process ids' first process all others go.
    assert!(matches!(lives, None | Some(_)));
    json!(member.lines().next())
}

/// A container of runc's is another kernel's.
fn a_container_of_somebody_else(podman: &Podman, handler: Handler) -> Value {
    let other = Podman::runtime_of(Handler::Runc);
    let group = podman.group();
    let run = ["--runtime", &other, "run", &group, "--detach", "--name", "other", images::BUSYBOX, "sh", "-c", FOREVER];
    podman.ok(run);
    let output = podman.run(&["--rm", "--network", "container:other"], &["true"]);
    if handler.is_kata() {
        assert_ne!(output.code, 0);
        assert!(output.stderr.contains("no container of this runtime"), "{}", output.stderr);
    } else {
        assert_eq!(seen(&output)["code"], 0);
    }
    podman.ok(["--runtime", &other, "rm", "--force", "--time", "0", "other"]);
    Value::Null
}
