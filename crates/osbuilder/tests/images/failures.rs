//! A full disk, and interrupts.

use std::{
    fs,
    io::Read,
    net::TcpListener,
    os::unix::process::ExitStatusExt,
    process::{Child, Stdio},
    thread,
    time::{Duration, Instant},
};

use rustix::{
    mount::{MountFlags, UnmountFlags, mount, unmount},
    process::{Pid, Signal, kill_process},
};

use crate::lab::{Lab, have, have_root, names};

/// Longest that anything may take to end after a signal.
const DEADLINE: Duration = Duration::from_secs(20);

/// A small file system of its own, unmounted when dropped.
struct Small(std::path::PathBuf);

impl Small {
    fn mount(at: std::path::PathBuf) -> Small {
        let size = std::ffi::CString::new("size=1m").unwrap();
        mount("none", &at, "tmpfs", MountFlags::empty(), Some(size.as_c_str())).unwrap();
        Small(at)
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        unmount(&self.0, UnmountFlags::DETACH).unwrap();
    }
}

#[test]
fn a_full_disk_is_told_and_leaves_nothing() {
    if !have_root() {
        return;
    }
    let lab = Lab::new();
    let root = lab.at("root");
    fs::create_dir(&root).unwrap();
    fs::write(root.join("large"), vec![7; 3 << 20]).unwrap();
    let source = format!("dir:{}", root.display());
    for place in ["out", "tmp"] {
        let _small = Small::mount(lab.at(place));
        for arguments in [&["--format", "initrd"][..], &["--format", "image"], &["--format", "image", "--fs", "ext4"]] {
            // An initrd needs no room for temporary files.
            if place == "tmp" && arguments[1] == "initrd" {
                continue;
            }
            let said = lab.build(&[&["--source", &source], arguments].concat());
            assert!(!said.success);
            let lower = said.stderr.to_lowercase();
            assert!(
                lower.contains("no space left on device") || lower.contains("could not allocate"),
                "{}",
                said.stderr
            );
            assert_eq!(names(&lab.at("out")), [""; 0]);
            assert_eq!(names(&lab.at("tmp")), [""; 0]);
        }
    }
}

/// Waits for the end and returns what was written to standard error.
fn end_of(mut child: Child) -> (std::process::ExitStatus, String) {
    let begun = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if begun.elapsed() > DEADLINE {
            child.kill().unwrap();
            panic!("it did not end within {DEADLINE:?}");
        }
        thread::sleep(Duration::from_millis(10));
    };
    let mut text = String::new();
    child.stderr.take().unwrap().read_to_string(&mut text).unwrap();
    (status, text)
}

/// Whether a process runs whose command line names the lab's directory.
fn processes_of(lab: &Lab) -> Vec<String> {
    let wanted = lab.at("tmp");
    let wanted = wanted.to_str().unwrap();
    let lines = fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter_map(|entry| fs::read_to_string(entry.path().join("cmdline")).ok());
    lines.filter(|line| line.contains(wanted)).collect()
}

/// A repository whose server takes the call and never answers.
fn interrupted(source: &str, manager: &str) {
    if !have(&[(manager, manager), ("rpm", "rpm")]) || !have_root() {
        return;
    }
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/", server.local_addr().unwrap());
    for signal in [Signal::INT, Signal::TERM, Signal::HUP] {
        let lab = Lab::new();
        let mut command = lab.command(&["--source", source, "--repository", &url]);
        let child = command.stderr(Stdio::piped()).spawn().unwrap();
        // It has called: so the package manager runs, in its namespaces.
        let (_call, _) = server.accept().unwrap();
        assert_ne!(processes_of(&lab), [""; 0]);
        kill_process(Pid::from_child(&child), signal).unwrap();
        let (status, text) = end_of(child);
        assert_eq!((status.code(), status.signal()), (Some(1), None));
        assert_eq!(text, "kata-osbuilder: interrupted; nothing is left of the output\n");
        lab.is_clean();
        assert_eq!(processes_of(&lab), [""; 0]);
    }
}

#[test]
fn an_interrupt_while_dnf_waits_ends_everything() {
    interrupted("fedora", "dnf");
}

#[test]
fn an_interrupt_while_mmdebstrap_waits_ends_everything() {
    interrupted("debian", "mmdebstrap");
}

/// Wherever it is interrupted, either it was done or nothing is left.
#[test]
fn an_interrupt_at_any_time_leaves_all_or_nothing() {
    let lab = Lab::new();
    let root = lab.at("root");
    fs::create_dir(&root).unwrap();
    for number in 0..300 {
        fs::write(root.join(number.to_string()), vec![7; 20_000]).unwrap();
    }
    let source = format!("dir:{}", root.display());
    for file_system in ["erofs", "ext4"] {
        let mut seen = [false; 2];
        for delay in [0, 5, 10, 20, 40, 60, 80, 120, 160, 240, 400, 800, 1500, 3000, 10_000] {
            let mut command = lab.command(&["--source", &source, "--format", "image", "--fs", file_system]);
            let child = command.stderr(Stdio::piped()).spawn().unwrap();
            thread::sleep(Duration::from_millis(delay));
            let _ = kill_process(Pid::from_child(&child), Signal::TERM);
            let (status, text) = end_of(child);
            if text.contains("is needed; install it") {
                eprintln!("skipped: {text}");
                return;
            }
            let done = status.success();
            seen[usize::from(done)] = true;
            if done {
                assert_eq!(names(&lab.at("out")), ["image", "image.spdx.json", "image.verity"]);
                for name in names(&lab.at("out")) {
                    fs::remove_file(lab.at("out").join(name)).unwrap();
                }
                break;
            }
            // Before the signals are taken over, they end it as they end any program.
            assert!(
                text.contains("interrupted") || (text.is_empty() && status.signal() == Some(15)),
                "{status} {text}"
            );
            lab.is_clean();
        }
        assert!(seen[0], "it was never interrupted");
    }
}
