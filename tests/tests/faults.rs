//! Something breaks at a step of a sandbox's life: the caller hears of it in time and is told the step, everything can be removed, and
//! the neighbours do not notice.
//!
//! The steps are those that the product says it comes to (`debug_steps`), once each operation goes well; none is listed here. `make faults`
//! tries every [`Fault`] at each of them; otherwise a choice of both is tried. docs/faults.md explains it, and has the table.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

use std::{
    fs,
    path::PathBuf,
    process::Command,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use e2e::{
    Background, Bundle, Output, Runtime, Snapshot,
    debugger::{Answer, Debugger},
    fault::{Fault, Place, Process, SOON, SmallDisk, is_gone, processes},
    matrix::{Operation as _, Outcome, Row, Table, Tried, check},
};

/// The columns of the table.
const FAULTS: [Fault; 13] = [
    Fault::Error,
    Fault::Kill(Process::Qemu),
    Fault::Kill(Process::VirtioFs),
    Fault::Kill(Process::Daemon),
    Fault::Kill(Process::Caller),
    Fault::Stop(Process::Qemu),
    Fault::Stop(Process::VirtioFs),
    Fault::Stop(Process::Daemon),
    Fault::DiskFull,
    Fault::NoMemory,
    Fault::NoDescriptors,
    Fault::NoPids,
    Fault::Reboot,
];
/// What the tests' sandboxes are run with: a machine without a sign of life is given up after so many seconds.
const SETTINGS: &str = "[agent.kata]\nliveness_timeout = 8\n";

/// What a caller asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    Create,
    Start,
    Exec,
    Update,
    Delete,
    /// `run` in the foreground, once the container runs.
    Run,
}

impl e2e::matrix::Operation for Operation {
    fn name(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Start => "start",
            Self::Exec => "exec",
            Self::Update => "update",
            Self::Delete => "delete",
            Self::Run => "run",
        }
    }
}

impl Operation {
    pub const ALL: [Self; 6] = [Self::Create, Self::Start, Self::Exec, Self::Update, Self::Delete, Self::Run];

    /// What its errors call it.
    fn steps(self) -> &'static [&'static str] {
        match self {
            Self::Create => &["create the container", "boot the guest"],
            Self::Start => &["start the container"],
            Self::Exec => &["start the process", "execute the process"],
            Self::Update => &["change the container's limits"],
            Self::Delete => &["delete the container"],
            // What it waits for has no other name.
            Self::Run => &["run failed"],
        }
    }

    /// Does what comes before it.
    fn prepare(self, runtime: &Runtime, bundle: &Bundle, id: &str) {
        match self {
            Self::Create | Self::Run => {}
            Self::Start => drop(runtime.ok(["create", "--bundle", bundle.arg(), id])),
            Self::Exec | Self::Update | Self::Delete => {
                drop(runtime.ok(["run", "--detach", "--bundle", bundle.arg(), id]));
            }
        }
    }

    fn begin(self, runtime: &Runtime, bundle: &Bundle, id: &str) -> Background {
        let arguments: &[&str] = match self {
            Self::Create => &["create", "--bundle", bundle.arg(), id],
            Self::Start => &["start", id],
            Self::Exec => &["exec", id, "true"],
            Self::Update => &["update", "--pids-limit", "100", id],
            Self::Delete => &["delete", "--force", id],
            Self::Run => &["run", "--bundle", bundle.arg(), id],
        };
        Background::start(&mut runtime.command(arguments))
    }

    /// The steps that it comes to. Those of the foreground's `run` are those of `create` and `start`: what is left of it is waiting.
    pub fn rows(self) -> Vec<Row<Self>> {
        if self == Self::Run {
            let there = [Process::Qemu, Process::VirtioFs, Process::Daemon].to_vec();
            let (step, may_fail) = (WHILE_IT_RUNS.into(), false);
            return vec![Row { operation: self, step, nth: 1, may_fail, is_call: true, there }];
        }
        let stage = Stage::new(false);
        self.prepare(&stage.runtime, &stage.bundle, &stage.id);
        let rows = Row::record(self, &stage.debugger, stage.directory());
        let done = self.begin(&stage.runtime, &stage.bundle, &stage.id).finish();
        assert_eq!(done.code, 0, "{}: {}", self.name(), done.stderr);
        stage.debugger.answer(|_| Answer::Go);
        stage.runtime.ok(["delete", "--force", &stage.id]);
        let rows = std::mem::take(&mut *rows.lock().unwrap());
        assert!(!rows.is_empty(), "{} comes to no step", self.name());
        rows
    }
}

/// The moment at which a command waits for its process.
const WHILE_IT_RUNS: &str = "while it runs";

/// Whether there is something to do it to.
fn can_have(row: &Row<Operation>, fault: Fault) -> bool {
    match fault {
        Fault::Error => row.may_fail,
        Fault::Kill(process) | Fault::Stop(process) => process == Process::Caller || row.there.contains(&process),
        Fault::Reboot => true,
        // What waits needs nothing more.
        _ => row.step != WHILE_IT_RUNS,
    }
}

/// A runtime with a debugger, and a container that is to be.
struct Stage {
    debugger: Debugger,
    runtime: Runtime,
    bundle: Bundle,
    id: String,
    disk: Option<SmallDisk>,
}

impl Stage {
    fn new(small: bool) -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let debugger = Debugger::new();
        let socket = debugger.socket();
        let runtime = Runtime::kata_with(&format!("{SETTINGS}[runtime]\ndebug_steps = {socket:?}\n"));
        let disk = small.then(|| SmallDisk::mount(runtime.root()));
        fs::create_dir_all(runtime.root()).unwrap();
        let id = format!("fault-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        Self { debugger, runtime, bundle: Bundle::sh("echo up; exec sleep 1000"), id, disk }
    }

    fn directory(&self) -> PathBuf {
        self.runtime.root().join(&self.id)
    }

    /// What may be left of it, by its two names.
    fn snapshot(&self) -> [Snapshot; 2] {
        let root = self.runtime.root();
        [&self.id, &root.display().to_string()].map(|mine| Snapshot::take(mine, &root))
    }
}

/// A sandbox that nothing is done to.
struct Neighbour {
    runtime: Runtime,
    processes: Vec<(u32, u64)>,
    /// Executing reads it again.
    _bundle: Bundle,
}

impl Neighbour {
    fn new() -> Self {
        let runtime = Runtime::kata();
        let bundle = Bundle::new(["sleep", "100000"]);
        runtime.ok(["run", "--detach", "--bundle", bundle.arg(), "neighbour"]);
        let processes = processes(&runtime.root().join("neighbour"));
        assert_eq!(processes.len(), 3);
        Self { runtime, processes, _bundle: bundle }
    }

    fn lives(&self) -> Result<(), String> {
        let gone = self.processes.iter().find(|process| is_gone(**process));
        gone.map_or(Ok(()), |process| Err(format!("the neighbour's process {process:?} is gone")))
    }

    fn answers(&self) {
        assert_eq!(self.runtime.ok(["exec", "neighbour", "echo", "here"]).text(), "here\n");
    }
}

/// Does `fault` at a step, and checks all that must hold then.
fn attempt(row: &Row<Operation>, fault: Fault) -> Tried {
    if !can_have(row, fault) {
        return Ok((Outcome::Nothing, String::new()));
    }
    let stage = Stage::new(fault == Fault::DiskFull);
    let before = stage.snapshot();
    let operation = row.operation;
    operation.prepare(&stage.runtime, &stage.bundle, &stage.id);
    let caller: Arc<Mutex<u32>> = Arc::default();
    // Nobody passes a step before the caller's number is known.
    let mut number = caller.lock().unwrap();
    let known = caller.clone();
    let (disk, directory, id) = (stage.runtime.root(), stage.directory(), stage.id.clone());
    let inject = move |caller, at| {
        Place { directory: &directory, disk: &disk, id: &id, caller, at, number: &|pid| pid }.inject(fault)
    };
    let while_it_runs = inject.clone();
    let done = row.when_reached(&stage.debugger, fault, move |reached| inject(*known.lock().unwrap(), reached.pid));
    let running = operation.begin(&stage.runtime, &stage.bundle, &stage.id);
    *number = running.id();
    drop(number);
    if row.step == WHILE_IT_RUNS {
        let end = Instant::now() + SOON;
        while !running.said().contains("up") {
            check(Instant::now() < end, || "it does not come to run".into())?;
            std::thread::sleep(Duration::from_millis(20));
        }
        *done.lock().unwrap() = Some(while_it_runs(running.id(), processes(&stage.directory())[0].0));
    }
    let output = running.finish_or_kill(SOON);
    // It waits for a fault that is just being done.
    stage.debugger.answer(|_| Answer::Go);
    let injected = done.lock().unwrap().take();
    let finished = match injected {
        None => Err("it did not come to the step".into()),
        Some(None) => Ok(Outcome::Nothing),
        Some(Some(mut done)) => {
            let late = || "the caller got no answer in time".to_owned();
            let judged = output.as_ref().ok_or_else(late).and_then(|output| judge(row, fault, output));
            let removed = remove(&stage);
            let spared = check(done.spared(), || "a process of somebody else was killed".into());
            drop(done);
            removed.and(spared).and(judged)
        }
    };
    stage.runtime.run(["delete", "--force", &stage.id]);
    // What has stood for the container's process ends by itself.
    let end = Instant::now() + SOON;
    let mut after = stage.snapshot();
    while after != before && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(20));
        after = stage.snapshot();
    }
    check(after == before, || format!("something is left: {after:?} instead of {before:?}"))?;
    drop(stage.disk);
    finished.map(|outcome| (outcome, output.map(|output| output.stderr).unwrap_or_default()))
}

/// Removes the container by force, and looks whether its processes are gone.
fn remove(stage: &Stage) -> Result<(), String> {
    let left = processes(&stage.directory());
    let command = &mut stage.runtime.command(["delete", "--force", &stage.id]);
    let deleted = Background::start(command).finish_or_kill(SOON).ok_or("delete --force got no answer in time")?;
    check(deleted.code == 0, || format!("delete --force failed: {}", deleted.stderr))?;
    check(!stage.directory().exists(), || "delete --force left the state directory".into())?;
    check(left.iter().all(|process| is_gone(*process)), || format!("of the processes {left:?} one is left"))
}

/// Whether what the caller was told is as it must be.
fn judge(row: &Row<Operation>, fault: Fault, output: &Output) -> Result<Outcome, String> {
    let said = &output.stderr;
    if matches!(fault, Fault::Kill(Process::Caller) | Fault::Reboot) {
        return Ok(Outcome::Failed);
    }
    if output.code == 0 {
        // What has an effect for sure has to be told, except to who removes the sandbox anyway.
        let certain = fault == Fault::Error || (row.is_call && fault == Fault::Kill(Process::Daemon));
        check(!certain || row.operation == Operation::Delete, || "it succeeded nevertheless".into())?;
        return Ok(Outcome::Succeeded);
    }
    // A program whose memory is refused cannot choose its words.
    if fault == Fault::NoMemory {
        return Ok(Outcome::Failed);
    }
    let names = row.operation.steps().iter().copied().chain([row.step.as_str()]);
    let step = || format!("the step is not named: {said}");
    let is_named = names.into_iter().any(|name| said.contains(name));
    match fault {
        Fault::Error => check(said.contains(&row.step) && said.contains("made to fail"), step)?,
        Fault::Kill(process) | Fault::Stop(process) => {
            check(said.contains(process.named()), || format!("{process:?} is not named: {said}"))?;
            check(is_named || row.operation == Operation::Create, step)?;
        }
        _ => check(said.contains("level=error"), step)?,
    }
    Ok(Outcome::Failed)
}

/// Tries some faults at one step of an operation: the last call of the agent, or where there is none, the first step.
#[track_caller]
fn choice(operation: Operation, faults: &[Fault]) {
    if !is_chosen() {
        return;
    }
    let neighbour = Neighbour::new();
    let rows = operation.rows();
    let row = rows.iter().rev().find(|row| row.is_call).unwrap_or(&rows[0]);
    for fault in faults {
        let outcome = attempt(row, *fault);
        eprintln!("{} / {} / {}: {outcome:?}", operation.name(), row.step, fault.name());
        let (outcome, _) =
            outcome.unwrap_or_else(|e| panic!("{} at {:?} of {}: {e}", fault.name(), row.step, operation.name()));
        assert_ne!(outcome, Outcome::Nothing);
        neighbour.lives().unwrap();
    }
    neighbour.answers();
}

/// With other guests it is the same.
fn is_chosen() -> bool {
    let chosen = std::env::var_os(config::FILE_VARIABLE).is_none();
    if !chosen {
        println!("skipped: faults are of the host, and tried with one guest");
    }
    chosen
}

#[test]
fn of_create() {
    use Process::{Daemon, Qemu, VirtioFs};
    let kills = [Qemu, VirtioFs, Daemon].map(Fault::Kill);
    choice(Operation::Create, &[kills.as_slice(), &[Fault::DiskFull, Fault::Reboot]].concat());
}

#[test]
fn of_start() {
    choice(Operation::Start, &[Fault::Error, Fault::Kill(Process::Qemu), Fault::NoDescriptors]);
}

#[test]
fn of_exec() {
    choice(Operation::Exec, &[Fault::Stop(Process::Qemu), Fault::Kill(Process::Daemon)]);
}

#[test]
fn of_update() {
    choice(Operation::Update, &[Fault::Error, Fault::Stop(Process::Daemon)]);
}

#[test]
fn of_delete() {
    choice(Operation::Delete, &[Fault::Kill(Process::Daemon), Fault::Stop(Process::Qemu)]);
}

#[test]
fn of_run() {
    choice(Operation::Run, &[Process::Qemu, Process::VirtioFs, Process::Daemon].map(Fault::Kill));
}

#[test]
fn of_the_agent_at_every_step() {
    for step in ["create", "start", "running", "exec"] {
        // Pid 1 cannot be killed, it can only die.
        let runtime = Runtime::kata_with(&format!("[hypervisor.qemu]\nkernel_params = \"agent.crash_at={step}\"\n"));
        fs::create_dir_all(runtime.root()).unwrap();
        let snapshot = || Snapshot::take(&runtime.root().display().to_string(), &runtime.root());
        let before = snapshot();
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
        runtime.ok(["delete", "--force", "c"]);
        assert_eq!(snapshot(), before, "{step}");
    }
}

#[test]
fn a_host_without_a_tap_device() {
    if !is_chosen() {
        return;
    }
    let netns = Netns::new();
    let mut stage = Stage::new(false);
    stage.bundle.join("network", &format!("/run/netns/{}", netns.0));
    let before = stage.snapshot();
    let command = stage.runtime.command(["create", "--bundle", stage.bundle.arg(), &stage.id]);
    // Where the device is, there is nothing for this command and what it starts.
    let mut hidden = Command::new("unshare");
    hidden.args(["--mount", "sh", "-c", "mount -t tmpfs none /dev/net && exec \"$0\" \"$@\""]);
    hidden.arg(command.get_program()).args(command.get_args());
    hidden.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let told = Background::start(&mut hidden).finish_within(SOON);
    assert_ne!(told.code, 0);
    assert!(told.stderr.contains("/dev/net/tun"), "{}", told.stderr);
    remove(&stage).unwrap();
    assert_eq!(stage.snapshot(), before);
}

/// A network namespace with one interface.
struct Netns(String);

impl Netns {
    fn new() -> Self {
        let netns = Self(format!("kata-fault-{}", std::process::id()));
        let ip = |args: &str| {
            assert!(Command::new("ip").args(args.split(' ')).status().unwrap().success(), "ip {args}");
        };
        ip(&format!("netns add {}", netns.0));
        ip(&format!("-n {} link add eth0 type veth peer name eth1", netns.0));
        ip(&format!("-n {} link set eth0 up", netns.0));
        netns
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "delete", &self.0]).status();
    }
}

#[test]
fn every_fault_at_every_step() {
    if std::env::var_os("KATA_FAULTS").is_none() {
        return println!("skipped: it takes a quarter of an hour; `make faults` runs it");
    }
    let pattern = std::env::var("KATA_FAULTS").unwrap();
    let neighbour = Neighbour::new();
    let rows: Vec<_> = Operation::ALL.into_iter().flat_map(Operation::rows).collect();
    let marks = ["<!-- the table begins -->", "<!-- the table ends -->"];
    let table = Table { faults: &FAULTS, document: "docs/faults.md", marks, workers: 3 };
    table.fill(&pattern, &rows, |row, fault| attempt(row, fault).and_then(|tried| neighbour.lives().map(|()| tried)));
    neighbour.answers();
}
