//! Each process of a sandbox is killed at each moment: the caller hears who died, and nothing is left; nor is of containers that share one.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

use std::{
    fs,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use e2e::{Background, Bundle, Output, Runtime, Snapshot};

/// Longest it may take until the caller hears of a death.
const SOON: Duration = Duration::from_secs(20);

#[derive(Debug, Clone, Copy)]
enum Victim {
    Qemu,
    VirtioFs,
    Daemon,
}

impl Victim {
    const ALL: [Self; 3] = [Self::Qemu, Self::VirtioFs, Self::Daemon];

    fn key(self) -> &'static str {
        match self {
            Self::Qemu => "vmm",
            Self::VirtioFs => "virtiofs",
            Self::Daemon => "daemon",
        }
    }

    fn named(self, text: &str) -> bool {
        match self {
            Self::Qemu => text.contains("QEMU"),
            Self::VirtioFs => text.contains("virtio-fs server"),
            Self::Daemon => text.contains("daemon"),
        }
    }

    fn pid(self, runtime: &Runtime, id: &str) -> Option<String> {
        let state = fs::read(runtime.root().join(id).join("state.json")).ok()?;
        let state: serde_json::Value = serde_json::from_slice(&state).ok()?;
        state[self.key()]["pid"].as_u64().map(|pid| pid.to_string())
    }

    fn kill(self, runtime: &Runtime, id: &str) {
        let end = Instant::now() + SOON;
        loop {
            // While it is being created, the state file appears and fills.
            if let Some(pid) = self.pid(runtime, id) {
                assert!(Command::new("kill").args(["-KILL", &pid]).status().unwrap().success());
                return;
            }
            assert!(Instant::now() < end, "{self:?} does not appear");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

fn snapshot(runtime: &Runtime) -> Snapshot {
    Snapshot::take(&runtime.root().display().to_string(), &runtime.root())
}

/// Whether a process has ended. Its parent, by then the machine's init, may still have to take note of it.
fn is_gone(pid: &str) -> bool {
    match fs::read_to_string(Path::new("/proc").join(pid).join("stat")) {
        Ok(stat) => stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('Z')),
        Err(_) => true,
    }
}

#[track_caller]
fn clean_up(runtime: &Runtime, id: &str) {
    let pids: Vec<String> = Victim::ALL.iter().filter_map(|victim| victim.pid(runtime, id)).collect();
    let deleted = Background::start(&mut runtime.command(["delete", "--force", id])).finish_within(SOON);
    assert_eq!(deleted.code, 0, "{}", deleted.stderr);
    assert!(!runtime.root().join(id).exists());
    for pid in pids {
        assert!(is_gone(&pid), "process {pid} is left");
    }
}

#[track_caller]
fn told(victim: Victim, output: &Output) {
    assert_ne!(output.code, 0, "{victim:?}: {}", output.stderr);
    assert!(victim.named(&output.stderr), "{victim:?} is not named: {}", output.stderr);
}

fn prepared() -> (Runtime, Bundle, Snapshot) {
    let runtime = Runtime::kata();
    fs::create_dir_all(runtime.root()).unwrap();
    let before = snapshot(&runtime);
    (runtime, Bundle::new(["sleep", "1000"]), before)
}

#[test]
fn at_create() {
    for victim in Victim::ALL {
        let (runtime, bundle, before) = prepared();
        let creating = Background::start(&mut runtime.command(["create", "--bundle", bundle.arg(), "c"]));
        victim.kill(&runtime, "c");
        told(victim, &creating.finish_within(SOON));
        clean_up(&runtime, "c");
        assert_eq!(snapshot(&runtime), before, "{victim:?}");
    }
}

#[test]
fn at_start() {
    for victim in Victim::ALL {
        let (runtime, bundle, before) = prepared();
        runtime.ok(["create", "--bundle", bundle.arg(), "c"]);
        victim.kill(&runtime, "c");
        told(victim, &Background::start(&mut runtime.command(["start", "c"])).finish_within(SOON));
        clean_up(&runtime, "c");
        assert_eq!(snapshot(&runtime), before, "{victim:?}");
    }
}

#[test]
fn while_running() {
    for victim in Victim::ALL {
        let (runtime, bundle, before) = prepared();
        let running = Background::start(&mut runtime.command(["run", "--bundle", bundle.arg(), "c"]));
        let end = Instant::now() + e2e::DEADLINE;
        while !fs::read_to_string(runtime.root().join("c/state.json")).is_ok_and(|s| s.contains("\"running\"")) {
            assert!(Instant::now() < end);
            std::thread::sleep(Duration::from_millis(20));
        }
        victim.kill(&runtime, "c");
        told(victim, &running.finish_within(SOON));
        clean_up(&runtime, "c");
        assert_eq!(snapshot(&runtime), before, "{victim:?}");
    }
}

#[test]
fn during_exec() {
    for victim in Victim::ALL {
        let (runtime, bundle, before) = prepared();
        runtime.ok(["run", "--detach", "--bundle", bundle.arg(), "c"]);
        let executing = Background::start(&mut runtime.command(["exec", "c", "sleep", "1000"]));
        std::thread::sleep(Duration::from_millis(500));
        victim.kill(&runtime, "c");
        told(victim, &executing.finish_within(SOON));
        clean_up(&runtime, "c");
        assert_eq!(snapshot(&runtime), before, "{victim:?}");
    }
}

/// A runtime under which the agent aborts at a step: pid 1 cannot be killed, it can only die.
fn crashing_at(step: &str) -> Runtime {
    Runtime::kata_with(&format!("[hypervisor.qemu]\nkernel_params = \"agent.crash_at={step}\"\n"))
}

#[test]
fn of_the_agent_at_every_step() {
    for step in ["create", "start", "running", "exec"] {
        let runtime = crashing_at(step);
        fs::create_dir_all(runtime.root()).unwrap();
        let before = snapshot(&runtime);
        let bundle = Bundle::new(["sleep", "1000"]);
        let run = |args: &[&str]| Background::start(&mut runtime.command(args)).finish_within(SOON);
        let failed = match step {
            "create" => run(&["create", "--bundle", bundle.arg(), "c"]),
            "running" => run(&["run", "--bundle", bundle.arg(), "c"]),
            "start" => {
                runtime.ok(["create", "--bundle", bundle.arg(), "c"]);
                run(&["start", "c"])
            }
            _ => {
                runtime.ok(["run", "--detach", "--bundle", bundle.arg(), "c"]);
                run(&["exec", "c", "true"])
            }
        };
        assert_ne!(failed.code, 0, "{step}: {}", failed.stderr);
        assert!(failed.stderr.contains("Attempted to kill init"), "{step}: {}", failed.stderr);
        clean_up(&runtime, "c");
        assert_eq!(snapshot(&runtime), before, "{step}");
    }
}

/// A container in the machine of another one.
fn beside(runtime: &Runtime, id: &str) -> Bundle {
    let pid = runtime.state_of(id)["pid"].clone();
    let mut bundle = Bundle::new(["sleep", "1000"]);
    bundle.edit(|config| {
        for namespace in config["linux"]["namespaces"].as_array_mut().unwrap() {
            if namespace["type"] == "network" {
                namespace["path"] = format!("/proc/{pid}/ns/net").into();
            }
        }
    });
    bundle
}

#[test]
fn of_two_in_one_machine_at_once() {
    let (runtime, bundle, before) = prepared();
    for _ in 0..3 {
        runtime.ok(["run", "--detach", "--bundle", bundle.arg(), "first"]);
        let other = beside(&runtime, "first");
        runtime.ok(["run", "--detach", "--bundle", other.arg(), "other"]);
        let deleting = ["first", "other"].map(|id| Background::start(&mut runtime.command(["delete", "--force", id])));
        for deleted in deleting.map(|deleting| deleting.finish_within(SOON)) {
            assert_eq!(deleted.code, 0, "{}", deleted.stderr);
        }
        assert_eq!(snapshot(&runtime), before);
        assert!(fs::read_dir(runtime.root()).unwrap().next().is_none());
    }
}

/// The first of a machine is deleted and comes again while that machine lives for another one, in the same cgroup.
#[test]
fn of_one_that_comes_again_into_its_cgroup() {
    let (runtime, mut bundle, before) = prepared();
    let cgroup = format!("/e2e-again-{}", std::process::id());
    bundle.edit(|config| config["linux"]["cgroupsPath"] = cgroup.as_str().into());
    runtime.ok(["run", "--detach", "--bundle", bundle.arg(), "first"]);
    let other = beside(&runtime, "first");
    runtime.ok(["run", "--detach", "--bundle", other.arg(), "other"]);
    for _ in 0..2 {
        runtime.ok(["delete", "--force", "first"]);
        runtime.ok(["run", "--detach", "--bundle", bundle.arg(), "first"]);
    }
    runtime.ok(["delete", "--force", "other"]);
    runtime.ok(["delete", "--force", "first"]);
    assert_eq!(snapshot(&runtime), before);
}
