//! What is KVM's alone: run in the lab (`make lab`) where the host has none.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

use std::{fs, path::PathBuf};

use e2e::{Bundle, Runtime};

/// Whether a sandbox of these tests is one with KVM. Says so on standard error if not.
fn has_kvm() -> bool {
    let checked = Runtime::kata().run(["check", "--json", "kvm"]);
    let checked: serde_json::Value = serde_json::from_slice(&checked.stdout).unwrap();
    let works = checked.to_string().contains("a small guest ran on /dev/kvm\"");
    if !works {
        eprintln!(
            "skipped in part: guests do not run with KVM here ({checked}); `make lab` has a machine where they do"
        );
    }
    works
}

/// The program and the arguments of a container's QEMU.
fn qemu(runtime: &Runtime, id: &str) -> (PathBuf, String) {
    let pid = &runtime.state_file(id)["vmm"]["pid"];
    let line = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap();
    (fs::read_link(format!("/proc/{pid}/exe")).unwrap(), line.replace('\0', " "))
}

#[test]
fn a_guest_runs_on_the_host_s_processor_and_what_is_told_of_it_is_true() {
    let works = has_kvm();
    let runtime = Runtime::kata();
    let bundle = Bundle::sh("cat /proc/cpuinfo; exec sleep 600");
    let output = runtime.ok(["run", "--detach", "--bundle", bundle.arg(), "processor"]);
    let (program, arguments) = qemu(&runtime, "processor");
    assert_eq!(arguments.contains(" -accel kvm "), works, "{arguments} {}", output.stderr);
    let environment: serde_json::Value = serde_json::from_slice(&runtime.ok(["env", "--json"]).stdout).unwrap();
    let told = fs::canonicalize(environment["Hypervisor"]["Path"].as_str().unwrap()).unwrap();
    assert_eq!(told, program);
    let explained = runtime.ok(["config", "explain", "hypervisor.qemu.path"]).text();
    assert!(explained.contains(program.to_str().unwrap()), "{program:?}: {explained}");
    let checked = runtime.run(["check", "qemu"]).text();
    assert!(checked.contains(program.to_str().unwrap()), "{program:?}: {checked}");
    if !works {
        return;
    }
    // QEMU's own processors are named after it.
    let model = |text: &str| text.lines().find(|line| line.starts_with("model name")).map(str::to_owned).unwrap();
    let inside = runtime.ok(["exec", "processor", "cat", "/proc/cpuinfo"]).text();
    assert_eq!(model(&inside), model(&fs::read_to_string("/proc/cpuinfo").unwrap()));
    assert!(inside.contains(" hypervisor "), "{inside}");
    runtime.ok(["delete", "--force", "processor"]);
}
