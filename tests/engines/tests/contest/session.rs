//! One run of a test program, on a machine of its own.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    process::{Child, Stdio},
    thread,
    time::{Duration, Instant},
};

use engines::{Handler, host::Host, images};

use crate::{
    Suite, cri, program, pulled,
    results::{self, Outcome, Outcomes},
};

/// How long one test may take. The longest take a minute with runc; a machine that is emulated takes several times as long to start.
const TEST: Duration = Duration::from_secs(180);
/// How long the program may take beside that, to begin and to end.
const IDLE: Duration = Duration::from_secs(60);
/// How long what a test has removed may take to be gone.
const SETTLE: Duration = Duration::from_secs(20);
const PAUSE: Duration = Duration::from_millis(200);

/// Names of the control groups that the tests make at the top: by containerd's namespaces, and for shims.
const CGROUPS: &[&str] = &["testing", "testing-*", "k8s.io", "containerd", "nnnnnnnnnnnnnnnnnnnn*"];

/// What a run came to.
pub struct Report {
    /// How each test ended.
    pub outcomes: Outcomes,
    /// Whether the program came to its end: it has run every test that it was to.
    pub whole: bool,
    /// What the tests left behind, where all ended well: a failed one may not have come to its own cleaning up.
    pub left: Vec<String>,
    /// The program's output, with containerd's log.
    pub text: String,
}

/// Runs the tests that a pattern of Go fits but another does not.
pub fn run(suite: &Suite, handler: Handler, pattern: &str, skip: &str, mut progress: impl FnMut(&Outcomes)) -> Report {
    let program = program(suite);
    let engine = images::unpacked("containerd-1.7").join("usr/bin");
    let paths = [Some(engine), engines::kata_programs(), program.parent().map(Path::to_owned)];
    let host = Host::start(&paths.into_iter().flatten().collect::<Vec<_>>());
    let own = host.directory().display().to_string();
    // The tests remove the directory they gave to their containerd, and snapshots need a real file system below it.
    // Ours is there as if it was installed, for the test that copies the shim's program away from what is beside it.
    host.sh(&format!(
        "mkdir {own}/lib {own}/opt {own}/tmp; ln -s {} {own}/opt/kata; mount --bind {own}/lib /var/lib; mount --bind {own}/opt /opt",
        e2e::stage_directory().display()
    ));
    host.remove_cgroups(CGROUPS);
    pulled::serve(&host);
    let mut command = vec![format!("TMPDIR={own}/tmp")];
    command.extend((suite.command)(&host, handler, program.display().to_string()));
    command.extend(["-test.v=test2json".into(), "-test.timeout=0".into(), format!("-test.run={pattern}")]);
    if !skip.is_empty() {
        command.push(format!("-test.skip={skip}"));
    }
    let before = traces(&host);
    let log = host.directory().join("output");
    let output = fs::File::create(&log).unwrap();
    let mut child = host
        .command("env", &command)
        .current_dir(host.directory())
        .stdout(output.try_clone().unwrap())
        .stderr(output)
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    let ended = watch(&mut child, || {
        let outcomes = results::parse(&String::from_utf8_lossy(&fs::read(&log).unwrap()));
        progress(&outcomes);
        outcomes
    });
    if !ended {
        // It says where each of its threads is.
        for pid in host.processes_with(&format!("{}.test ", suite.name)) {
            host.kill("QUIT", pid);
        }
        thread::sleep(Duration::from_secs(2));
    }
    let mut text = String::from_utf8_lossy(&fs::read(&log).unwrap()).into_owned();
    text += &fs::read_to_string(cri::log(&host)).unwrap_or_default();
    let outcomes = results::parse(&text);
    progress(&outcomes);
    let whole = ended && outcomes.values().all(|outcome| *outcome != Outcome::Unfinished);
    let well = whole && outcomes.values().all(|outcome| *outcome != Outcome::Failed);
    let left = if well { left_behind(&host, &before) } else { Vec::new() };
    drop(host);
    let _gone = (child.kill(), child.wait());
    Report { outcomes, whole, left, text }
}

/// Waits for the program's end; false if a test, or what is around the tests, takes too long.
fn watch(child: &mut Child, mut look: impl FnMut() -> Outcomes) -> bool {
    let mut since: BTreeMap<String, Instant> = BTreeMap::new();
    let mut idle = Instant::now();
    loop {
        let ended = child.try_wait().unwrap().is_some();
        let outcomes = look();
        if ended {
            return true;
        }
        let now = Instant::now();
        let running = |name: &String| outcomes.get(name) == Some(&Outcome::Unfinished);
        since.retain(|name, _| running(name));
        for name in outcomes.keys().filter(|name| running(name)) {
            since.entry(name.clone()).or_insert(now);
        }
        if !since.is_empty() {
            idle = now;
        }
        if idle + IDLE < now || since.values().any(|begin| *begin + TEST < now) {
            return false;
        }
        thread::sleep(PAUSE);
    }
}

/// What a container could leave.
fn traces(host: &Host) -> BTreeSet<String> {
    host.traces().into_iter().filter(|trace| is_of_a_container(trace)).collect()
}

/// What an engine keeps for itself, and a test's own files, are no runtime's.
fn is_of_a_container(trace: &str) -> bool {
    let Some((kind, what)) = trace.split_once(' ') else { return true };
    match kind {
        "process" => ["containerd-shim", "qemu-system", "kata", "runc"].iter().any(|name| what.contains(name)),
        "mount" => what.contains("/rootfs") || what.contains("kata"),
        "file" => ["run/kata", "run/vc"].iter().any(|place| what.starts_with(place)),
        _ => true,
    }
}

fn left_behind(host: &Host, before: &BTreeSet<String>) -> Vec<String> {
    let end = Instant::now() + SETTLE;
    loop {
        let left: Vec<String> = traces(host).difference(before).cloned().collect();
        if left.is_empty() || Instant::now() > end {
            return left;
        }
        thread::sleep(PAUSE);
    }
}

#[test]
fn what_a_runtime_leaves_is_told_from_what_an_engine_keeps() {
    let of_runtimes = [
        "process 7 /usr/bin/containerd-shim-kata-v2 -namespace testing -id a",
        "process 8 /opt/kata/lib/kata-containers/qemu/bin/qemu-system-x86_64 -name x",
        "mount /run/containerd/io.containerd.runtime.v2.task/testing/a/rootfs",
        "file run/kata-containers/shim/testing",
        "file run/vc/sbs",
        "interface veth1",
        "cgroup /sys/fs/cgroup/memory/a",
    ];
    assert!(of_runtimes.iter().all(|trace| is_of_a_container(trace)));
    let others = ["process 9 containerd --config x", "mount /run/netns", "file run/containerd/fifo/1"];
    assert!(!others.iter().any(|trace| is_of_a_container(trace)));
}
