//! The daemon or the shim dies under running tasks.

use engines::{Containerd, Handler, cases};
use serde_json::{Value, json};

use super::{Shared, detached, seen, wait_until};

cases!(containerd_comes_back, the_shim_is_killed, a_task_ends_while_containerd_is_away, options_of_the_runtime);

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
