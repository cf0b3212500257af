//! Running a container to its end: output, exit code and errors are runc's.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

use e2e::{Bundle, Runtime, both, message, same};

#[test]
fn the_kernel_is_the_guests_own() {
    let output = Runtime::kata().ok(["run", "--bundle", Bundle::new(["uname", "-r"]).arg(), "kernel"]);
    let host = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    assert!(!output.text().trim().is_empty());
    assert_ne!(output.text().trim(), host.trim());
}

#[test]
fn an_exit_code_arrives() {
    let output = same(&Bundle::sh("echo out; echo err >&2; exit 42"));
    assert_eq!((output.code, output.text().as_str()), (42, "out\n"));
    assert!(output.stderr.contains("err"));
}

#[test]
fn a_process_that_kills_itself_gives_the_code_runc_gives() {
    for signal in ["TERM", "KILL", "SEGV"] {
        // The first process of a pid namespace is immune to its own signals; a child is not.
        same(&Bundle::sh(&format!("sh -c 'kill -{signal} $$'; echo $?")));
    }
}

#[track_caller]
fn fails_alike(bundle: &Bundle, words: &str) {
    let (ours, reference) = both(bundle);
    assert_eq!(ours.code, reference.code, "ours: {}\nrunc: {}", ours.stderr, reference.stderr);
    assert!(ours.stderr.contains(words), "{}", ours.stderr);
    assert_eq!(message(&ours.stderr), message(&reference.stderr));
}

#[test]
fn a_missing_program_is_reported_as_runc_does() {
    fails_alike(&Bundle::new(["no-such-program"]), "executable file not found in $PATH");
    fails_alike(&Bundle::new(["/no/such/program"]), "no such file or directory");
}

#[test]
fn a_program_that_may_not_run_is_reported_as_runc_does() {
    fails_alike(&Bundle::new(["/etc/passwd"]), "permission denied");
}

#[test]
fn what_a_container_is_given_is_what_runc_gives() {
    // Which of the masked directories below /proc and /sys there are to mask is the kernel's affair.
    let mut bundle = Bundle::sh(
        "id; pwd; umask; hostname; env | sort; grep -E '^(Cap|NoNewPrivs|Seccomp:)' /proc/self/status; ulimit -n; \
         cat /proc/sys/kernel/msgmax /proc/self/oom_score_adj; ls /dev /proc/self/fd | grep -v core; readlink /dev/fd /dev/stdin; \
         echo x 2>&1 > /proc/sys/kernel/hostname; touch /file 2>&1; mount | grep tmpfs | grep -vcE ' /(proc|sys)/'",
    );
    bundle.edit(|config| {
        config["process"]["user"] =
            serde_json::json!({"uid": 1000, "gid": 1001, "umask": 23, "additionalGids": [5, 10]});
        config["process"]["cwd"] = "/tmp".into();
        config["process"]["env"] = serde_json::json!(["PATH=/usr/bin:/bin", "HOME=/", "A=b c"]);
        config["process"]["rlimits"] = serde_json::json!([{"type": "RLIMIT_NOFILE", "hard": 512, "soft": 256}]);
        config["process"]["oomScoreAdj"] = 100.into();
        config["linux"]["sysctl"] = serde_json::json!({"kernel.msgmax": "12345"});
        config["hostname"] = "guesthost".into();
    });
    same(&bundle);
}

#[test]
fn a_seccomp_profile_is_enforced() {
    let mut bundle = Bundle::sh("mkdir /tmp/a; mkdir /tmp/b 2>&1; chmod 700 /tmp/a 2>&1; echo $?");
    bundle.mount(serde_json::json!({"destination": "/tmp", "type": "tmpfs", "source": "tmpfs"})).edit(|config| {
        config["linux"]["seccomp"] = serde_json::json!({
            "defaultAction": "SCMP_ACT_ALLOW",
            "architectures": ["SCMP_ARCH_X86_64"],
            "syscalls": [{"names": ["fchmodat", "chmod"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38}],
        });
    });
    assert!(same(&bundle).text().contains("Function not implemented"));
}

#[test]
fn a_memory_limit_kills_what_exceeds_it() {
    let mut bundle = Bundle::sh("head -c 200M /dev/zero | tail | wc -c; echo ended");
    bundle.edit(|config| {
        config["linux"]["resources"]["memory"] = serde_json::json!({"limit": 64 << 20, "swap": 64 << 20});
    });
    let output = Runtime::kata().run(["run", "--bundle", bundle.arg(), "oom"]);
    assert!(!output.text().contains("209715200"), "{}", output.text());
}

/// The host's processor 0 and its memory are not the guest's, whose own the container sees.
#[test]
fn a_set_of_processors_is_the_host_s() {
    let mut bundle = Bundle::sh("grep -c ^processor /proc/cpuinfo; nproc; cat /sys/fs/cgroup/cpuset.cpus");
    bundle.edit(|config| config["linux"]["resources"]["cpu"] = serde_json::json!({"cpus": "0", "mems": "0"}));
    let output = Runtime::kata().run(["run", "--bundle", bundle.arg(), "cpus"]);
    assert_eq!((output.code, output.text().as_str()), (0, "1\n1\n\n"), "{}", output.stderr);
}

#[test]
fn a_limit_on_processes_holds() {
    let mut bundle = Bundle::sh("for i in 1 2 3 4 5 6 7 8 9 10 11 12; do sleep 5 & done; wait");
    bundle.edit(|config| config["linux"]["resources"]["pids"] = serde_json::json!({"limit": 6}));
    let output = Runtime::kata().run(["run", "--bundle", bundle.arg(), "pids"]);
    assert!(output.stderr.contains("ork"), "{}", output.stderr);
}
