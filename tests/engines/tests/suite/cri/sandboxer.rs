//! Pods that containerd 2 asks the shim for by its Sandbox service, instead of a sandbox container.

use engines::{Containerd, Handler, Version, compare_configured, cri::Node};
use serde_json::{Value, json};

use super::{PLAIN, wait_until};

/// The same runtimes once more.
const SETTINGS: &str = r#"
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc-shim]
  runtime_type = "io.containerd.runc.v2"
  sandboxer = "podsandbox"
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.kata-shim]
  runtime_type = "io.containerd.kata.v2"
  sandboxer = "shim"
"#;

#[test]
fn pods_of_the_sandbox_service() {
    // runc's shim has no such service: what its pods show is the control.
    compare_configured(Version::V2_1, SETTINGS, "cri::sandboxer::pods_of_the_sandbox_service", case);
}

fn case(engine: &Containerd, handler: Handler) -> Value {
    let node = Node::named(engine, handler, if handler.is_kata() { "kata-shim" } else { "runc-shim" });
    let pod = node.pod("served", &PLAIN);
    let container =
        pod.run("main", &["sh", "-c", "echo begun; trap 'exit 0' TERM; while :; do sleep 0.2; done"], &PLAIN);
    wait_until("its line is in the log", || pod.log("main").len() == 1);
    let seen = node.sh(&container, "hostname; cat /proc/1/comm; ls /sys/class/net");
    let other = pod.run("other", &["sh", "-c", "exit 7"], &PLAIN);
    let ended = node.wait(&other);
    node.stop(&container, 10);
    node.remove(&container);
    node.remove(&other);
    pod.remove();
    json!({"seen": seen, "code": ended["exit_code"]})
}
