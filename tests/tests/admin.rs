//! What an administrator does: looks where the time went, looks into a guest, cleans up, asks what is the matter.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

use std::{
    fs,
    io::{Read, Write},
    net::TcpListener,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use e2e::{Bundle, Runtime, Snapshot, message};
use serde_json::Value;

fn snapshot(runtime: &Runtime) -> Snapshot {
    let mine = runtime.root();
    Snapshot::take(mine.to_str().unwrap(), &mine)
}

/// Kills what answers for a container, and waits until it is gone with its machine.
fn kill_daemon(runtime: &Runtime, id: &str) {
    let state = runtime.state_file(id);
    let pid = |name: &str| state[name]["pid"].as_u64().unwrap().to_string();
    assert_eq!(e2e::run(std::process::Command::new("kill").args(["-KILL", &pid("daemon")])).code, 0);
    let end = Instant::now() + e2e::DEADLINE;
    for name in ["daemon", "vmm", "virtiofs"] {
        let status = format!("/proc/{}/status", pid(name));
        let lives = || fs::read_to_string(&status).is_ok_and(|text| !text.contains("State:\tZ"));
        while lives() {
            assert!(Instant::now() < end, "{name} is left");
            thread::sleep(Duration::from_millis(20));
        }
    }
}

#[test]
fn gc_removes_what_a_killed_daemon_left_and_leaves_the_living_alone() {
    let runtime = Runtime::kata();
    let bundle = Bundle::new(["sleep", "1000"]);
    runtime.ok(["run", "--detach", "--bundle", bundle.arg(), "living"]);
    let before = snapshot(&runtime);
    assert!(runtime.ok(["gc"]).text().contains("nothing is left over"));
    runtime.ok(["run", "--detach", "--bundle", bundle.arg(), "killed"]);
    kill_daemon(&runtime, "killed");
    // A directory that is none of ours.
    fs::create_dir_all(runtime.root().join("foreign/data")).unwrap();

    let dry = runtime.ok(["gc", "--dry-run"]).text();
    assert!(dry.contains("/killed") && !dry.contains("living") && !dry.contains("foreign"), "{dry}");
    assert!(dry.contains("dry run") && runtime.root().join("killed").exists(), "{dry}");
    let listed: Value = serde_json::from_slice(&runtime.ok(["gc", "--dry-run", "--json"]).stdout).unwrap();
    assert_eq!((listed["items"][0]["kind"].as_str(), listed["removed"].as_bool()), (Some("sandbox"), Some(false)));
    runtime.ok(["gc"]);
    assert!(runtime.root().join("foreign/data").exists());
    fs::remove_dir_all(runtime.root().join("foreign")).unwrap();
    assert_eq!(snapshot(&runtime), before);
    assert_eq!(runtime.ok(["exec", "living", "echo", "alive"]).text(), "alive\n");
    // The name is free.
    assert_eq!(runtime.ok(["run", "--bundle", Bundle::new(["true"]).arg(), "killed"]).code, 0);

    let refused = runtime.run(["console", "living", "/init", "--version"]);
    assert_eq!(refused.code, 1);
    assert!(
        message(&refused.stderr).contains("set debug_console_enabled = true in [agent.kata]"),
        "{}",
        refused.stderr
    );
}

#[test]
fn gc_after_a_reboot_kills_nobody_who_has_a_number_that_was_ours() {
    let runtime = Runtime::kata();
    let bundle = Bundle::new(["sleep", "1000"]);
    runtime.ok(["run", "--detach", "--bundle", bundle.arg(), "c"]);
    kill_daemon(&runtime, "c");
    // The state directory survives; this process has the numbers that were the sandbox's.
    let stat = fs::read_to_string("/proc/self/stat").unwrap();
    let start: u64 = stat[stat.rfind(')').unwrap() + 2..].split(' ').nth(19).unwrap().parse().unwrap();
    let mut state = runtime.state_file("c");
    for name in ["daemon", "vmm", "virtiofs"] {
        state[name] = serde_json::json!({"pid": std::process::id(), "start_ticks": start});
    }
    state["boot"] = "the one before".into();
    fs::write(runtime.root().join("c/state.json"), state.to_string()).unwrap();
    assert_eq!(runtime.state_of("c")["status"], "stopped");
    let text = runtime.ok(["gc"]).text();
    assert!(text.contains("started anew"), "{text}");
    assert!(!runtime.root().join("c").exists());
}

#[test]
fn a_guest_that_hangs_is_given_up_with_the_step_and_the_timeline() {
    // Without a first program the kernel waits for a root that never comes.
    let runtime = Runtime::kata_with(
        "[hypervisor.qemu]\nkernel_params = \"rdinit=/none root=/dev/none rootwait\"\n[agent.kata]\ndial_timeout = 10\n",
    );
    fs::create_dir_all(runtime.root()).unwrap();
    let before = snapshot(&runtime);
    let failed = runtime.run(["run", "--bundle", Bundle::new(["true"]).arg(), "late"]);
    assert_eq!(failed.code, 1, "{}", failed.stderr);
    let error = message(&failed.stderr);
    let expected = "boot the guest: an answer of the agent in the guest did not happen within 10 s; what hangs is the guest's kernel";
    assert!(error.contains(expected), "{}", failed.stderr);
    assert!(error.contains("the last finished step was qemu-running"), "{error}");
    for row in ["virtio-fs-started", "qemu-running"] {
        let told = |line: &&str| line.contains("level=warning") && line.contains(row);
        assert!(failed.stderr.lines().any(|line| told(&line)), "{row}: {}", failed.stderr);
    }
    assert_eq!(snapshot(&runtime), before);
}

/// Takes one message of spans, as a collector does.
fn collect(listener: &TcpListener) -> Value {
    let (mut stream, _) = listener.accept().unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let mut request = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let read = stream.read(&mut buffer).unwrap();
        request.extend_from_slice(&buffer[..read]);
        let text = String::from_utf8_lossy(&request);
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        assert!(head.starts_with("POST /v1/traces HTTP/1.1\r\n"), "{head}");
        let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: ")).unwrap();
        if body.len() == length.parse::<usize>().unwrap() {
            let value = serde_json::from_str(body).unwrap();
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}").unwrap();
            return value;
        }
    }
}

#[test]
fn a_start_is_told_drawn_and_exported_and_a_guest_is_looked_into() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let runtime = Runtime::kata_with(&format!(
        "[agent.kata]\ndebug_console_enabled = true\n[runtime]\nenable_tracing = true\notlp_endpoint = \"http://127.0.0.1:{port}\"\n"
    ));
    let collector = thread::spawn(move || collect(&listener));
    let bundle = Bundle::new(["sleep", "1000"]);
    runtime.ok(["run", "--detach", "--bundle", bundle.arg(), "c"]);

    let table = runtime.ok(["timeline", "c"]).text();
    for step in
        ["caller", "virtio-fs-started", "qemu-running", "qemu-channel-opened", "agent-started", "container-started"]
    {
        assert!(table.contains(step), "{step}: {table}");
    }
    let told: Value = serde_json::from_slice(&runtime.ok(["timeline", "--json", "c"]).stdout).unwrap();
    let phases: Vec<&str> = told["spans"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|span| span["step"].is_null())
        .map(|span| span["phase"].as_str().unwrap())
        .collect();
    assert_eq!(phases, ["caller", "host", "vmm", "kernel", "agent", "container"]);
    let picture = bundle.path().join("start.svg");
    runtime.ok(["timeline", "--svg", picture.to_str().unwrap(), "c"]);
    assert!(fs::read_to_string(picture).unwrap().ends_with("</svg>\n"));
    let unknown = runtime.run(["timeline", "nobody"]);
    assert_eq!(unknown.code, 1);
    assert!(unknown.stderr.contains("nobody") && unknown.stderr.contains("does not exist"), "{}", unknown.stderr);

    let exported = collector.join().unwrap();
    let spans = exported["resourceSpans"][0]["scopeSpans"][0]["spans"].as_array().unwrap();
    assert!(spans.iter().any(|span| span["name"] == "container-started"), "{exported}");

    // The agent is the only program of that image, and it can say its version.
    let version = runtime.run(["console", "c", "/init", "--version"]);
    if is_agent_only() {
        assert_eq!((version.code, version.text().starts_with("kata-agent ")), (0, true), "{}", version.stderr);
        let shell = runtime.run(["console", "c"]);
        assert_eq!(shell.code, 1);
        assert!(message(&shell.stderr).contains("the guest image has no shell"), "{}", shell.stderr);
    }
    let missing = runtime.run(["console", "c", "/no/such/program"]);
    assert!(missing.code == 1 && missing.stderr.contains("/no/such/program"), "{}", missing.stderr);
}

/// Whether the guest's image is the one that comes along.
fn is_agent_only() -> bool {
    config::Config::load(None).unwrap().qemu.locate_guest().is_err() || {
        let config = config::Config::load(None).unwrap();
        config.qemu.image.is_none() && config.qemu.initrd.is_none()
    }
}

#[test]
fn the_doctor_boots_a_guest_and_leaves_nothing() {
    let runtime = Runtime::kata();
    fs::create_dir_all(runtime.root()).unwrap();
    let before = snapshot(&runtime);
    let told = runtime.run(["doctor", "--boot"]);
    let text = told.text();
    assert!(text.contains("a guest was booted and ended") && text.contains("agent-answered"), "{text}{}", told.stderr);
    assert_eq!(told.code, i32::from(text.contains("not healthy")), "{text}");
    assert!(text.contains("works  virtio-fs") && text.contains("works  qemu") && text.contains("works  tap"), "{text}");
    fs::create_dir_all(runtime.root()).unwrap();
    assert_eq!(snapshot(&runtime), before);
}

#[test]
fn a_dead_collector_costs_a_start_nothing() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    let runtime =
        Runtime::kata_with(&format!("[runtime]\nenable_tracing = true\notlp_endpoint = \"http://127.0.0.1:{port}\"\n"));
    let output = runtime.ok(["run", "--bundle", Bundle::new(["echo", "here"]).arg(), "c"]);
    assert_eq!(output.text(), "here\n");
    assert!(!Path::new(&runtime.root().join("c")).exists());
}
