//! The daemon or the shim dies under running tasks.

use engines::{Containerd, Handler, cases};
use serde_json::{Value, json};

use super::{Shared, detached, seen, wait_until};

cases!(
    containerd_comes_back,
    the_shim_is_killed,
    what_a_killed_shim_left_is_collected,
    a_task_ends_while_containerd_is_away,
    options_of_the_runtime
);

fn containerd_comes_back(engine: &Containerd, handler: Handler) -> Value {
    let shared = Shared::new(engine, "shared");
    let script = "trap 'exit 21' TERM; n=0; while :; do n=$((n + 1)); echo $n >/shared/count; sleep 0.1; done";
    detached(engine, handler, &["--mount", &shared.option], "on", script);
    shared.expect("count");
    engine.kill();
    let before = shared.read("count");
    wait_until("it goes on without containerd", || shared.read("count") != before);
    engine.launch();
    engine.wait_for("on", "RUNNING");
    let more = engine.ctr(["tasks", "exec", "--exec-id", "e", "on", "sh", "-c", "echo reached; exit 3"]);
    assert_eq!((more.code, more.text().as_str()), (3, "reached\n"), "{}", more.stderr);
    engine.ctr_ok(["tasks", "kill", "--signal", "SIGTERM", "on"]);
    engine.wait_for("on", "STOPPED");
    assert_eq!(engine.delete("on"), 21);
    engine.ctr_ok(["containers", "delete", "on"]);
    seen(&more)
}

fn a_task_ends_while_containerd_is_away(engine: &Containerd, handler: Handler) -> Value {
    let shared = Shared::new(engine, "shared");
    let script = "until [ -e /shared/go ]; do sleep 0.1; done; echo >/shared/gone; exit 22";
    detached(engine, handler, &["--mount", &shared.option], "away", script);
    engine.kill();
    std::fs::write(shared.path.join("go"), "").unwrap();
    shared.expect("gone");
    engine.launch();
    // One that has no process any more when containerd finds it is cleaned up; it may also end a moment later.
    let ended = |status: &Option<String>| status.as_ref().is_none_or(|status| status == "STOPPED");
    wait_until("containerd knows that it ended", || ended(&engine.status("away")));
    engine.remove("away");
    json!("ended")
}

fn the_shim_is_killed(engine: &Containerd, handler: Handler) -> Value {
    detached(engine, handler, &[], "shimless", "while :; do sleep 0.1; done");
    let shims = engine.host.processes_with("containerd-shim-");
    assert!(!shims.is_empty());
    for pid in shims {
        engine.host.kill("KILL", pid);
    }
    wait_until("containerd notices", || engine.status("shimless").is_none_or(|status| status != "RUNNING"));
    let status = engine.status("shimless");
    if status.is_some() {
        engine.ctr(["tasks", "delete", "shimless"]);
    }
    engine.ctr_ok(["containers", "delete", "shimless"]);
    json!(status)
}

/// containerd, which would have called `delete`, was killed with it.
fn what_a_killed_shim_left_is_collected(engine: &Containerd, handler: Handler) -> Value {
    if handler.is_kata() {
        let runtime = e2e::stage().join("bin/kata-runtime").display().to_string();
        let gc = |args: &[&str]| engine.host.ok(&runtime, &[&["gc"], args].concat());
        detached(engine, handler, &[], "left", "while :; do sleep 0.1; done");
        let state = engine.host.sh("echo /run/kata-containers/shim/*/left").trim().to_owned();
        let there = |path: &str| engine.host.run("test", &["-e", path]).code == 0;
        let table = engine.host.ok(&runtime, &["timeline", "left"]);
        assert!(table.contains("container-started") && table.contains("qemu-running"), "{table}");
        assert!(gc(&[]).contains("nothing is left over") && there(&state));
        engine.kill();
        let socket = engine.host.sh("cat /run/containerd/io.containerd.runtime.v2.task/*/left/address");
        let socket = socket.trim().trim_start_matches("unix://").to_owned();
        for pid in engine.host.processes_with("containerd-shim-") {
            engine.host.kill("KILL", pid);
        }
        wait_until("the machine is gone", || engine.host.processes_with("qemu-system").is_empty());
        assert!(there(&state) && there(&socket));
        let dry = gc(&["--dry-run"]);
        assert!(dry.contains(&state) && dry.contains(&socket) && dry.contains("shim-monitor.sock"), "{dry}");
        gc(&[]);
        assert!(!there(&state) && !there(&socket) && !there("/run/kata/left"));
        engine.launch();
        engine.remove("left");
    }
    Value::Null
}

fn options_of_the_runtime(engine: &Containerd, handler: Handler) -> Value {
    if handler.is_kata() {
        let missing = engine.run(handler, &["--rm", "--runtime-config-path", "/no/such.toml"], "missing", &["true"]);
        assert_ne!(missing.code, 0);
        assert!(missing.stderr.contains("/no/such.toml"), "{}", missing.stderr);
        let wrong = engine.host.directory().join("wrong.toml");
        std::fs::write(&wrong, "[hypervisor.qemu]\nno_such_key = 1\n").unwrap();
        let wrong = wrong.display().to_string();
        let refused = engine.run(handler, &["--rm", "--runtime-config-path", &wrong], "wrong", &["true"]);
        assert_ne!(refused.code, 0);
        assert!(refused.stderr.contains("no_such_key"), "{}", refused.stderr);
    }
    Value::Null
}
