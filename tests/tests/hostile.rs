//! A guest that lies to its host, in a real virtual machine: the caller is told why in time, what the host holds for the guest stays bounded
//! meanwhile, and everything can be removed. tests/hostile is the guest.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

use std::{
    fs,
    path::PathBuf,
    process::{Command, Stdio},
    sync::OnceLock,
    time::{Duration, Instant},
};

use e2e::{Background, Bundle, Output, Runtime, Snapshot, needs_monolithic_kernel, stage};

/// Longest until the caller must have been told.
const SOON: Duration = Duration::from_secs(45);
/// Most memory that the daemon may take for a guest, KiB; an honest one costs it about a sixth of that.
const MOST_MEMORY: u64 = 96 << 10;
/// Most files that it may have open.
const MOST_FILES: usize = 64;

/// The guest's image, made once.
fn image() -> PathBuf {
    static IMAGE: OnceLock<tempfile::TempDir> = OnceLock::new();
    let made = IMAGE.get_or_init(|| {
        let directory = tempfile::tempdir().unwrap();
        let program = e2e::static_program("hostile-guest").unwrap();
        let mut osbuilder = Command::new(stage().join("bin/kata-osbuilder"));
        osbuilder.args(["initrd", "--agent"]).arg(program).arg("--output").arg(directory.path().join("initrd"));
        let made = e2e::run(&mut osbuilder);
        assert_eq!(made.code, 0, "{}", made.stderr);
        directory
    });
    made.path().join("initrd")
}

struct Lie {
    runtime: Runtime,
    bundle: Bundle,
    id: String,
    before: Snapshot,
}

/// What the daemon has taken at most.
#[derive(Debug, Default, Clone, Copy)]
struct Taken {
    memory: u64,
    files: usize,
}

impl Lie {
    fn new(name: &str) -> Self {
        // Of that one it is waited for.
        let patience = if name == "drip" { 12 } else { 60 };
        let runtime = Runtime::kata_with(&format!(
            "[hypervisor.qemu]\ninitrd = {:?}\nkernel_params = \"hostile={name}\"\n[agent.kata]\ndial_timeout = {patience}\nliveness_timeout = 6\n",
            image()
        ));
        fs::create_dir_all(runtime.root()).unwrap();
        let id = format!("hostile-{name}-{}", std::process::id());
        let before = Snapshot::take(&id, &runtime.root());
        Self { runtime, bundle: Bundle::new(["true"]), id, before }
    }

    fn command(&self, verb: &str) -> Command {
        self.runtime.command([verb, "--bundle", self.bundle.arg(), &self.id])
    }

    /// Runs a container in it, which comes to an end, and measures.
    fn told(&self, expected: &[&str]) -> Taken {
        let mut running = Background::start(&mut self.command("run"));
        let begun = Instant::now();
        let mut taken = Taken::default();
        while !running.has_ended() {
            assert!(begun.elapsed() < SOON, "nobody was told");
            self.measure(&mut taken);
            std::thread::sleep(Duration::from_millis(20));
        }
        let Output { code, stderr, .. } = running.finish();
        let start: String = stderr.chars().take(2000).collect();
        assert_ne!(code, 0, "{start}");
        assert!(expected.iter().all(|words| stderr.contains(words)), "{expected:?} was expected: {start}");
        assert!(!stderr.contains(['\u{1b}', '\u{7}']), "the terminal would obey the guest: {start}");
        assert!(stderr.len() < 64 << 10, "{} bytes are a flood: {start}", stderr.len());
        self.remove();
        taken
    }

    /// What is written down of it, if anything is.
    fn state(&self) -> serde_json::Value {
        let state = fs::read(self.runtime.root().join(&self.id).join("state.json")).unwrap_or_default();
        serde_json::from_slice(&state).unwrap_or_default()
    }

    fn measure(&self, taken: &mut Taken) {
        let process = format!("/proc/{}", self.state()["daemon"]["pid"]);
        let status = fs::read_to_string(format!("{process}/status")).unwrap_or_default();
        let peak =
            status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB")?.parse().ok());
        taken.memory = taken.memory.max(peak.unwrap_or(0));
        taken.files = taken.files.max(fs::read_dir(format!("{process}/fd")).map_or(0, Iterator::count));
    }

    fn remove(&self) {
        let deleted = Background::start(&mut self.runtime.command(["delete", "--force", &self.id])).finish_within(SOON);
        assert_eq!(deleted.code, 0, "{}", deleted.stderr);
        assert_eq!(Snapshot::take(&self.id, &self.runtime.root()), self.before);
    }
}

#[track_caller]
fn bounded(taken: Taken) {
    assert!(taken.memory > 0 && taken.memory < MOST_MEMORY, "{taken:?}");
    assert!(taken.files < MOST_FILES, "{taken:?}");
}

/// The guest needs a kernel that has all built in, and what it says is of the host alone.
fn is_chosen() -> bool {
    needs_monolithic_kernel() && std::env::var_os(config::FILE_VARIABLE).is_none()
}

/// Each lie, with what the caller is to be told.
#[track_caller]
fn each(lies: &[(&str, &[&str])]) {
    if !is_chosen() {
        return println!("skipped: the host is the same with other guests");
    }
    for (name, expected) in lies {
        let taken = Lie::new(name).told(expected);
        eprintln!("{name}: {taken:?}");
        bounded(taken);
    }
}

#[test]
fn replies_that_are_none() {
    each(&[
        ("oversized", &["boot the guest", "a frame of 4294967295 bytes was announced"]),
        ("truncated", &["boot the guest", "speak to the agent in the guest"]),
        ("garbage", &["boot the guest", "not what was expected"]),
        ("wrong", &["boot the guest", "out of turn"]),
    ]);
}

#[test]
fn replies_to_a_container_that_are_out_of_turn() {
    each(&[
        ("twice", &["wait for the process", "out of turn"]),
        ("early", &["run the container", "out of turn"]),
        ("escape", &["evil"]),
        ("dead", &["no sign of life for 6 s"]),
    ]);
}

#[test]
fn frames_against_the_rules() {
    each(&[("overrun", &["boot the guest", "the channel into the guest broke"]), ("open", &["boot the guest"])]);
}

#[test]
fn floods_last_no_longer_than_the_host_has_patience() {
    each(&[
        ("drip", &["boot the guest", "did not happen within 12 s"]),
        ("flood", &["no sign of life for 6 s"]),
        ("console", &["no sign of life for 6 s", "xxxx"]),
    ]);
}

#[test]
fn output_without_an_end_is_held_back_until_it_is_read() {
    if !is_chosen() {
        return println!("skipped: the host is the same with other guests");
    }
    let lie = Lie::new("output");
    // Of what it writes nothing is read.
    let mut running = lie.command("run").stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let begun = Instant::now();
    while lie.state()["status"] != "running" {
        assert!(begun.elapsed() < e2e::DEADLINE, "it does not come to run: {}", lie.state());
        std::thread::sleep(Duration::from_millis(50));
    }
    let (begun, mut taken) = (Instant::now(), Taken::default());
    while begun.elapsed() < Duration::from_secs(3) {
        lie.measure(&mut taken);
        std::thread::sleep(Duration::from_millis(50));
    }
    bounded(taken);
    lie.remove();
    drop(running.stdout.take());
    running.wait().unwrap();
}
