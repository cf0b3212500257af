//! `--systemd-cgroup` where systemd runs: a scope of its own for each sandbox. Elsewhere these only say that they are skipped.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

use std::{
    fs,
    path::Path,
    process::{Child, Command},
    time::{Duration, Instant},
};

use e2e::{Bundle, Runtime, run};
use serde_json::Value;

fn no_systemd_runs() -> bool {
    let none = !Path::new("/run/systemd/system").is_dir();
    if none {
        eprintln!("skipped: systemd does not run here");
    }
    none
}

/// A name that no other run of the tests has.
fn name(test: &str) -> String {
    format!("{test}-{}", std::process::id())
}

/// A property of a unit, as `systemctl show` has it.
fn property(unit: &str, name: &str) -> String {
    let shown = run(Command::new("systemctl").args(["show", "--value", "--property", name, unit]));
    assert_eq!(shown.code, 0, "{}", shown.stderr);
    shown.text().trim().into()
}

#[track_caller]
fn assert_gone(unit: &str) {
    assert_eq!(property(unit, "LoadState"), "not-found", "{unit}");
}

fn cgroup_of(pid: &Value) -> String {
    fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap()
}

fn create(runtime: &Runtime, bundle: &Bundle, id: &str) {
    runtime.ok(["--systemd-cgroup", "create", "--bundle", bundle.arg(), id]);
}

#[test]
fn a_sandbox_has_a_scope_in_the_slice_that_its_path_names() {
    if no_systemd_runs() {
        return;
    }
    let (runtime, id) = (Runtime::kata(), name("scope"));
    let mut bundle = Bundle::new(["sleep", "1000"]);
    bundle.edit(|config| {
        config["linux"]["cgroupsPath"] = format!("kata-test.slice:kata:{id}").into();
        config["annotations"] = serde_json::json!({"org.systemd.property.TimeoutStopSec": "7"});
    });
    create(&runtime, &bundle, &id);
    let unit = format!("kata-{id}.scope");
    for (name, value) in [
        ("Slice", "kata-test.slice"),
        ("ControlGroup", &format!("/kata.slice/kata-test.slice/{unit}")),
        ("Delegate", "yes"),
        ("DefaultDependencies", "no"),
        ("ActiveState", "active"),
        ("TimeoutStopUSec", "7s"),
        ("Description", &format!("Kata container {id} ({})", runtime.root().join(&id).display())),
    ] {
        assert_eq!(property(&unit, name), value, "{name}");
    }
    let pid_file = bundle.path().join("exec");
    runtime.ok(["start", &id]);
    runtime.ok(["exec", "--detach", "--pid-file", pid_file.to_str().unwrap(), &id, "sleep", "1000"]);
    let exec: Value = fs::read_to_string(&pid_file).unwrap().parse().unwrap();
    let (state, file) = (runtime.state_of(&id), runtime.state_file(&id));
    let inside = [&state["pid"], &exec, &file["daemon"]["pid"], &file["vmm"]["pid"], &file["virtiofs"]["pid"]];
    for pid in inside {
        assert!(cgroup_of(pid).contains(&format!("/kata-test.slice/{unit}\n")), "{pid}: {}", cgroup_of(pid));
    }
    runtime.ok(["delete", "--force", &id]);
    assert_gone(&unit);
    assert!(fs::read_dir(runtime.root()).is_ok_and(|mut left| left.next().is_none()), "the state directory stays");
}

#[test]
fn a_scope_that_is_stopped_takes_its_container_along() {
    if no_systemd_runs() {
        return;
    }
    let (runtime, id) = (Runtime::kata(), name("stopped"));
    let bundle = Bundle::new(["sleep", "1000"]);
    create(&runtime, &bundle, &id);
    runtime.ok(["start", &id]);
    let unit = format!("runc-{id}.scope");
    assert_eq!(property(&unit, "Slice"), "system.slice");
    assert_eq!(run(Command::new("systemctl").args(["stop", &unit])).code, 0);
    runtime.wait_for(&id, "stopped");
    runtime.ok(["delete", &id]);
    assert_gone(&unit);
}

#[test]
fn in_the_foreground_the_scope_goes_with_the_container() {
    if no_systemd_runs() {
        return;
    }
    let (runtime, id) = (Runtime::kata(), name("foreground"));
    let ran = runtime.ok(["--systemd-cgroup", "run", "--bundle", Bundle::new(["echo", "here"]).arg(), &id]);
    assert_eq!(ran.text(), "here\n");
    assert_gone(&format!("runc-{id}.scope"));
}

#[test]
fn what_was_killed_is_collected_with_its_scope() {
    if no_systemd_runs() {
        return;
    }
    let (runtime, id) = (Runtime::kata(), name("killed"));
    create(&runtime, &Bundle::new(["sleep", "1000"]), &id);
    let unit = format!("runc-{id}.scope");
    let pid = |pid: &Value| rustix::process::Pid::from_raw(pid.as_i64().unwrap() as i32).unwrap();
    // So that the scope is not empty afterwards.
    rustix::process::kill_process(pid(&runtime.state_of(&id)["pid"]), rustix::process::Signal::STOP).unwrap();
    let daemon = runtime.state_file(&id)["daemon"]["pid"].clone();
    rustix::process::kill_process(pid(&daemon), rustix::process::Signal::KILL).unwrap();
    let end = Instant::now() + e2e::DEADLINE;
    while runtime.state_of(&id)["status"] != "stopped" {
        assert!(Instant::now() < end, "the daemon does not end");
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(property(&unit, "ActiveState"), "active");
    let collected = runtime.ok(["gc"]);
    assert!(collected.text().contains(&unit), "{}", collected.text());
    assert_gone(&unit);
    assert!(!runtime.root().join(&id).exists());
}

/// A scope of somebody else, with a process in it.
struct Foreign {
    unit: String,
    process: Child,
}

impl Foreign {
    fn start(unit: String) -> Self {
        let mut command = Command::new("systemd-run");
        let process = command.args(["--scope", "--quiet", "--unit", &unit, "sleep", "1000"]).spawn().unwrap();
        let foreign = Self { unit, process };
        let end = Instant::now() + e2e::DEADLINE;
        while property(&foreign.unit, "ActiveState") != "active" {
            assert!(Instant::now() < end, "{} does not start", foreign.unit);
            std::thread::sleep(Duration::from_millis(20));
        }
        foreign
    }
}

impl Drop for Foreign {
    fn drop(&mut self) {
        let _ = Command::new("systemctl").args(["stop", &self.unit]).status();
        let _ = self.process.wait();
    }
}

#[test]
fn a_scope_of_somebody_else_is_refused_and_left_alone() {
    if no_systemd_runs() {
        return;
    }
    let (runtime, id) = (Runtime::kata(), name("foreign"));
    let foreign = Foreign::start(format!("runc-{id}.scope"));
    let bundle = Bundle::new(["true"]);
    for verb in ["create", "run"] {
        let refused = runtime.run(["--systemd-cgroup", verb, "--bundle", bundle.arg(), &id]);
        assert_eq!(refused.code, 1);
        let expected = format!("ask systemd for the scope {} in system.slice: it exists already", foreign.unit);
        assert!(refused.stderr.contains(&expected), "{}", refused.stderr);
        assert!(!runtime.root().join(&id).exists());
    }
    assert_eq!(property(&foreign.unit, "ActiveState"), "active");
}

#[test]
fn a_path_that_names_no_scope_is_refused_before_anything_is_made() {
    if no_systemd_runs() {
        return;
    }
    let (runtime, id) = (Runtime::kata(), name("path"));
    let mut bundle = Bundle::new(["true"]);
    bundle.edit(|config| config["linux"]["cgroupsPath"] = "/a/b".into());
    let refused = runtime.run(["--cgroup-manager", "systemd", "create", "--bundle", bundle.arg(), &id]);
    assert_eq!(refused.code, 1);
    assert!(refused.stderr.contains("expected cgroupsPath to be of format"), "{}", refused.stderr);
    assert!(!runtime.root().join(&id).exists());
}
