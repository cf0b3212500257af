//! `kata-kernel` from the outside, on a kernel source in miniature: what it makes, what it refuses, what it leaves when it fails or
//! is interrupted. Configuration is checked against a real kernel source, if there is one in the cache.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests too")]

mod fetching;
mod tree;

use std::{
    fs,
    io::{BufRead, BufReader},
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{Child, Command},
};

use rustix::{
    event::{PollFd, PollFlags, poll},
    process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open},
    time::Timespec,
};
use tree::{Lab, stderr, stdout};

fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Waits for the end of a process that is nobody's child here.
fn wait_gone(pid: i32) {
    let Ok(handle) = pidfd_open(Pid::from_raw(pid).unwrap(), PidfdFlags::empty()) else { return };
    let deadline = Timespec { tv_sec: 60, tv_nsec: 0 };
    assert_eq!(poll(&mut [PollFd::new(&handle, PollFlags::IN)], Some(&deadline)), Ok(1), "process {pid} goes on");
}

fn send(child: &Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).unwrap();
}

#[test]
fn a_build_makes_all_files_and_a_second_one_nothing() {
    let Some(lab) = Lab::new() else { return };
    let source = lab.tarball();
    let first = lab.build(&source, &["--jobs", "3"]).output().unwrap();
    assert!(first.status.success(), "{}", stderr(&first));
    assert!(stderr(&first).contains("Linux 6.12.3 for x86_64: 2 options, 3 jobs"), "{}", stderr(&first));
    let expected = ["System.map", "config", "kernel.toml", "vmlinux.container", "vmlinuz.container"];
    assert_eq!(names(&lab.output()), expected);
    assert_eq!(names(&lab.at("cache/guest-kernel")), ["x86_64"]);
    assert_eq!(fs::read_to_string(lab.output().join("config")).unwrap(), "CONFIG_NET=y\nCONFIG_PVH=y\n");
    let map = fs::read_to_string(lab.output().join("System.map")).unwrap();
    assert!(map.starts_with("kata 1970-01-02 00:00:00 UTC "), "{map}");

    let second = lab.build(&source, &[]).output().unwrap();
    assert!(stdout(&second).contains("is up to date"), "{}", stderr(&second));
    assert_eq!(lab.builds(), 1);

    fs::write(lab.output().join("vmlinux.container"), "damaged").unwrap();
    assert!(lab.build(&source, &[]).status().unwrap().success());
    assert_eq!(lab.builds(), 2);
    lab.write("own.conf", "CONFIG_NET=n\n");
    let own = lab.build(&source, &["--fragment", "own.conf"]).output().unwrap();
    assert!(stderr(&own).contains("own.conf:1 sets CONFIG_NET to n instead of y"), "{}", stderr(&own));
    assert_eq!(lab.builds(), 3);

    let directory = lab.build(&lab.at("linux"), &["--output", "elsewhere/kernel"]).output().unwrap();
    assert!(directory.status.success(), "{}", stderr(&directory));
    assert_eq!(names(&lab.at("elsewhere/kernel")), expected);
    assert_eq!(names(&lab.at("linux")), ["Kconfig", "Makefile", "arch", "kernel.elf", "scripts"]);
}

#[test]
fn a_failure_shows_the_error_and_leaves_the_old_output() {
    let Some(lab) = Lab::new() else { return };
    let source = lab.tarball();
    assert!(lab.build(&source, &[]).status().unwrap().success());
    let before = fs::read(lab.output().join("kernel.toml")).unwrap();
    lab.write("own.conf", "CONFIG_FAIL=y\n");
    let failed = lab.build(&source, &["--fragment", "own.conf"]).output().unwrap();
    assert_eq!(failed.status.code(), Some(1));
    let message = stderr(&failed);
    assert!(message.contains("\n    init/main.c:1:2: error: broken\n"), "{message}");
    let log = message.lines().find_map(|line| line.strip_prefix("all of make's output is in ")).unwrap();
    assert!(fs::read_to_string(log).unwrap().contains("  CC      init/main.o"));
    assert_eq!(fs::read(lab.output().join("kernel.toml")).unwrap(), before);
    assert_eq!(names(&lab.at("cache/guest-kernel")), ["x86_64"]);
    assert!(lab.build(&source, &[]).status().unwrap().success());
}

#[test]
fn an_option_that_did_not_survive_ends_the_build() {
    let Some(lab) = Lab::new() else { return };
    lab.write("own.conf", "# why\nCONFIG_LOST=y\n");
    for command in ["build", "config"] {
        let mut command =
            lab.command(&[command, "--fragments", "fragments", "--fragment", "own.conf", "--source", "linux"]);
        let lost = command.output().unwrap();
        assert_eq!(lost.status.code(), Some(1));
        let expected = "own.conf:2: CONFIG_LOST should be y, but is n; it depends on OTHER (OTHER=n)";
        assert!(stderr(&lost).contains(expected), "{}", stderr(&lost));
    }
    assert_eq!(lab.builds(), 0);
}

#[test]
fn a_configuration_is_printed_or_written() {
    let Some(lab) = Lab::new() else { return };
    let arguments = ["config", "--fragments", "fragments", "--source", "linux"];
    let printed = lab.command(&arguments).output().unwrap();
    assert_eq!(stdout(&printed), "CONFIG_NET=y\nCONFIG_PVH=y\n");
    let written = lab.command(&arguments).args(["--output", "made"]).output().unwrap();
    assert_eq!((stdout(&written), fs::read_to_string(lab.at("made")).unwrap()), (String::new(), stdout(&printed)));
    assert!(!lab.output().exists());
}

#[test]
fn bad_input_is_refused_before_anything_is_done() {
    let Some(lab) = Lab::new() else { return };
    lab.write("bad.conf", "CONFIG_A=m\n");
    fs::create_dir(lab.at("taken")).unwrap();
    lab.write("taken/precious", "");
    lab.write("text", "no tarball");
    let zeros = "0".repeat(64);
    let cases: [(&[&str], &str); 9] = [
        (&["--source", "linux", "--arch", "riscv64"], "expected x86_64, aarch64, s390x, ppc64le"),
        (&["--source", "linux", "--fragment", "bad.conf"], "bad.conf:1: the value is m"),
        (&["--source", "linux", "--fragment", "none.conf"], "cannot read none.conf"),
        (&["--source", "linux", "--fragments", "bin"], "bin has no *.conf"),
        (&["--source", "linux", "--output", "taken"], "not made by this program"),
        (&["--source", "linux", "--jobs", "0"], "0 is not in 1.."),
        (&["--source", "fragments"], "it has no Makefile"),
        (&["--source", "none"], "cannot read none"),
        (&["--source", "text", "--sha256", &zeros], "expected 0000"),
    ];
    for (arguments, expected) in cases {
        let mut command = lab.command(&["build"]);
        command.args(arguments);
        if !arguments.contains(&"--fragments") {
            command.args(["--fragments", "fragments"]);
        }
        let refused = command.output().unwrap();
        assert!(!refused.status.success(), "{arguments:?}");
        assert!(stderr(&refused).contains(expected), "{arguments:?}: {}", stderr(&refused));
        assert!(!lab.at("cache").exists(), "{arguments:?} made a cache");
    }
    assert_eq!(names(&lab.at("taken")), ["precious"]);
}

#[test]
fn a_missing_tool_is_named_with_its_package() {
    let Some(lab) = Lab::new() else { return };
    let mut command = lab.build(&lab.at("linux"), &[]);
    let refused = command.env("PATH", lab.at("bin")).output().unwrap();
    let message = stderr(&refused);
    assert!(message.contains("gcc (compiles the kernel's own build tools)"), "{message}");
    assert!(message.contains("run `apt-get install make gcc tar xz-utils`"), "{message}");
}

#[test]
fn a_signal_ends_make_and_leaves_nothing() {
    let Some(lab) = Lab::new() else { return };
    lab.write("own.conf", "CONFIG_HANG=y\n");
    let source = lab.tarball();
    for signal in [Signal::TERM, Signal::INT, Signal::HUP] {
        let child = lab.build(&source, &["--fragment", "own.conf"]).spawn().unwrap();
        let pid = lab.hanging();
        send(&child, signal);
        let ended = child.wait_with_output().unwrap();
        assert_eq!(ended.status.signal(), Some(signal.as_raw()), "{}", stderr(&ended));
        assert!(stderr(&ended).contains("interrupted"), "{}", stderr(&ended));
        wait_gone(pid);
        assert!(!lab.at("cache/guest-kernel").exists());
    }
    // It was ended in order: what was built before is kept.
    let built = lab.build(&source, &[]).output().unwrap();
    assert!(built.status.success() && !stderr(&built).contains("was killed"), "{}", stderr(&built));
}

#[test]
fn objects_of_a_build_that_was_killed_are_not_used() {
    let Some(lab) = Lab::new() else { return };
    lab.write("own.conf", "CONFIG_HANG=y\n");
    let source = lab.tarball();
    let mut child = lab.build(&source, &["--fragment", "own.conf"]).spawn().unwrap();
    let pid = lab.hanging();
    send(&child, Signal::KILL);
    child.wait().unwrap();
    wait_gone(pid);
    let built = lab.build(&source, &[]).output().unwrap();
    assert!(built.status.success() && stderr(&built).contains("was killed"), "{}", stderr(&built));
    assert_eq!(names(&lab.at("cache/guest-kernel")), ["x86_64"]);
}

#[test]
fn an_interrupted_unpacking_leaves_nothing() {
    let Some(lab) = Lab::new() else { return };
    let source = lab.tarball();
    lab.program("tar", &format!("echo $$ >{}; exec sleep 1000", lab.at("told").display()));
    let child = lab.build(&source, &[]).spawn().unwrap();
    let pid = lab.hanging();
    send(&child, Signal::TERM);
    assert_eq!(child.wait_with_output().unwrap().status.signal(), Some(15));
    wait_gone(pid);
    assert_eq!(names(&lab.at("cache/src")), ["lock"]);
}

#[test]
fn a_second_build_waits_for_the_first() {
    let Some(lab) = Lab::new() else { return };
    lab.write("own.conf", "CONFIG_HANG=y\n");
    let source = lab.tarball();
    let first = lab.build(&source, &["--fragment", "own.conf"]).spawn().unwrap();
    lab.hanging();
    let waiting = || {
        let mut child = lab.build(&source, &["--fragment", "own.conf"]).spawn().unwrap();
        let mut line = String::new();
        let mut errors = BufReader::new(child.stderr.take().unwrap());
        while !line.contains("waiting for another kata-kernel") {
            line.clear();
            assert_ne!(errors.read_line(&mut line).unwrap(), 0, "it did not wait");
        }
        (child, errors)
    };
    let (mut interrupted, _errors) = waiting();
    send(&interrupted, Signal::INT);
    assert_eq!(interrupted.wait().unwrap().signal(), Some(2));
    let (second, _errors) = waiting();
    lab.go_on();
    assert!(first.wait_with_output().unwrap().status.success());
    let second = second.wait_with_output().unwrap();
    assert!(stdout(&second).contains("is up to date"), "{}", stdout(&second));
    assert_eq!(lab.builds(), 1);
}

/// The source that `sources.toml` names, as unpacked in the cache.
fn real_source() -> Option<PathBuf> {
    let home = std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache/kata"));
    let cache = std::env::var_os("KATA_CACHE").map(PathBuf::from).or(home)?;
    let sources = fs::read_to_string(repository().join("kernel/sources.toml")).unwrap();
    let sum = sources.lines().find_map(|line| line.strip_prefix("sha256 = \"")).unwrap();
    let tree = cache.join("src").join(format!("linux-{}", &sum[..16]));
    tree.is_dir().then_some(tree)
}

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

#[test]
fn the_projects_fragments_survive_on_every_architecture() {
    let Some(tree) = real_source() else {
        println!("skipped: there is no kernel source in the cache; `kata-kernel fetch` puts one there");
        return;
    };
    let cache = tempfile::tempdir().unwrap();
    for arch in ["x86_64", "aarch64", "s390x", "ppc64le"] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kata-kernel"));
        command.args(["config", "--arch", arch, "--source"]).arg(&tree).arg("--cache").arg(cache.path());
        let output = command.current_dir(repository()).output().unwrap();
        let message = stderr(&output);
        if message.contains("a build needs what is not installed") {
            println!("skipped for {arch}: {message}");
            continue;
        }
        assert!(output.status.success(), "{arch}: {message}");
        // Modules would need a loader in the guest, and debugfs is what the fragments keep out.
        let config = stdout(&output);
        assert!(!config.contains("\nCONFIG_MODULES=y") && !config.contains("\nCONFIG_DEBUG_FS=y"), "{arch}");
    }
}
