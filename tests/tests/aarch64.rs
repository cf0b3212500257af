//! Containers in a guest of another architecture than the host's, through the same runtime. `make aarch64` makes what the guest
//! boots from; where that was not done these tests are skipped.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

use std::{
    env,
    path::{Path, PathBuf},
};

use e2e::{Bundle, Output, Runtime, run_with_input};

const ARCHITECTURE: &str = "aarch64";

/// The runtime with a configuration for aarch64 guests, and what its containers run on.
struct Foreign {
    runtime: Runtime,
    rootfs: PathBuf,
}

impl Foreign {
    /// `None`, with the reason printed, where something is missing. `make aarch64` does not accept that.
    fn new() -> Option<Self> {
        let prepared = prepare();
        if let Err(reason) = &prepared {
            assert!(env::var_os("KATA_NO_SKIP").is_none(), "{reason}");
            eprintln!("skipped: {reason}");
        }
        prepared.ok()
    }

    fn bundle(&self, script: &str) -> Bundle {
        let mut bundle = Bundle::sh(script);
        bundle.edit(|config| config["root"]["path"] = self.rootfs.to_str().unwrap().into());
        bundle
    }

    fn run(&self, bundle: &Bundle) -> Output {
        self.runtime.run(["run", "--bundle", bundle.arg(), "foreign"])
    }
}

fn prepare() -> Result<Foreign, String> {
    let cache = e2e::cache();
    let existing = |path: PathBuf| match path.exists() {
        true => Ok(path),
        false => Err(format!("{} is missing; `make {ARCHITECTURE}` makes it", path.display())),
    };
    let rootfs = existing(cache.join(format!("rootfs-{ARCHITECTURE}")))?;
    let guest = cache.join("guest").join(ARCHITECTURE);
    let kernel = existing(guest.join("vmlinux.container"))?;
    let initrd = existing(guest.join("kata-containers-initrd.img"))?;
    let protocol = std::fs::read_to_string(guest.join("protocol")).unwrap_or_default();
    if protocol.trim() != agent_api::PROTOCOL_VERSION.to_string() {
        return Err(format!(
            "the guest in {} is of another release; `make {ARCHITECTURE}` makes it anew",
            guest.display()
        ));
    }
    let program = format!("qemu-system-{ARCHITECTURE}");
    let found = env::split_paths(&env::var_os("PATH").unwrap_or_default()).any(|dir| dir.join(&program).exists());
    if !found {
        return Err(format!("{program} is not installed; `make {ARCHITECTURE}` does it"));
    }
    Ok(Foreign { runtime: Runtime::kata_with(&settings(&kernel, &initrd)), rootfs })
}

fn settings(kernel: &Path, initrd: &Path) -> String {
    // The program is found by the kernel's architecture. The machine may be another one in the configuration that all tests run with.
    // Emulated on a busy machine a boot takes its time.
    format!(
        "[hypervisor.qemu]\nkernel = {kernel:?}\ninitrd = {initrd:?}\nmachine_type = \"virt\"\n[agent.kata]\ndial_timeout = 110\n"
    )
}

#[test]
fn a_container_has_the_guests_architecture_its_streams_and_its_exit_code() {
    let Some(foreign) = Foreign::new() else { return };
    let bundle = foreign.bundle("uname -m; cat; echo complaint >&2; exit 7");
    let mut command = foreign.runtime.command(["run", "--bundle", bundle.arg(), "foreign"]);
    let output = run_with_input(&mut command, |stdin| stdin.write_all(b"through the guest\n").unwrap());
    assert_eq!((output.code, output.text().as_str()), (7, "aarch64\nthrough the guest\n"), "{}", output.stderr);
    assert!(output.stderr.contains("complaint"), "{}", output.stderr);
    // That it is slow must not come as a surprise.
    assert!(output.stderr.contains("emulated") && output.stderr.contains(ARCHITECTURE), "{}", output.stderr);
}

#[test]
fn a_seccomp_profile_is_compiled_for_the_guest() {
    let Some(foreign) = Foreign::new() else { return };
    let mut bundle = foreign.bundle(
        "mkdir /tmp/d 2>&1 | grep -o 'Permission denied'; setarch -R true 2>&1 | grep -o 'Operation not permitted'; \
         setarch linux64 echo other personality",
    );
    bundle.edit(|config| {
        // mkdir(2) is a call that x86-64 has and aarch64 has not.
        config["linux"]["seccomp"] = serde_json::json!({
            "defaultAction": "SCMP_ACT_ALLOW",
            "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"],
            "syscalls": [
                {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 13},
                {"names": ["personality"], "action": "SCMP_ACT_ERRNO",
                 "args": [{"index": 0, "value": 0x0004_0000, "op": "SCMP_CMP_EQ"}]},
            ],
        });
    });
    bundle.mount(serde_json::json!({"destination": "/tmp", "type": "tmpfs", "source": "tmpfs"}));
    let output = foreign.run(&bundle);
    let expected = "Permission denied\nOperation not permitted\nother personality\n";
    assert_eq!((output.code, output.text().as_str()), (0, expected), "{}", output.stderr);
}

#[test]
fn a_detached_container_is_executed_in_limited_and_killed() {
    let Some(foreign) = Foreign::new() else { return };
    let mut bundle = foreign.bundle("while :; do sleep 1; done");
    bundle.edit(|config| {
        config["linux"]["resources"]["memory"] = serde_json::json!({"limit": 48 << 20, "swap": 48 << 20});
    });
    let runtime = &foreign.runtime;
    runtime.ok(["run", "--detach", "--bundle", bundle.arg(), "foreign"]);
    assert_eq!(runtime.state_of("foreign")["status"], "running");
    let limit = runtime.ok(["exec", "foreign", "cat", "/sys/fs/cgroup/memory.max"]);
    assert_eq!(limit.text(), format!("{}\n", 48 << 20));
    let exec = runtime.run(["exec", "foreign", "sh", "-c", "uname -m; exit 5"]);
    assert_eq!((exec.code, exec.text().as_str()), (5, "aarch64\n"), "{}", exec.stderr);
    // tail keeps all of a line that does not end.
    let greedy = runtime.run(["exec", "foreign", "sh", "-c", "head -c 100M /dev/zero | tail | wc -c"]);
    assert!(!greedy.text().contains("104857600"), "more than the limit was held");
    runtime.run(["kill", "foreign", "KILL"]);
    runtime.wait_for("foreign", "stopped");
    runtime.ok(["delete", "foreign"]);
    assert_eq!(runtime.run(["state", "foreign"]).code, 1);
}
