//! Something breaks at a step of a sandbox that containerd has started: `ctr` hears of it in time, everything can be removed by it, and the
//! neighbours do not notice. The steps are those that the shim says it comes to, as with `kata-runtime` (docs/faults.md).
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

use std::{
    path::PathBuf,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use e2e::{
    Background, Output,
    debugger::{Answer, Debugger},
    fault::{Fault, Place, Process, SOON},
    matrix::{Operation as _, Outcome, Row, Table, Tried, check},
};
use engines::{Containerd, Handler, Version, containerd::run_arguments};

/// The columns of the table.
const FAULTS: [Fault; 11] = [
    Fault::Error,
    Fault::Kill(Process::Qemu),
    Fault::Kill(Process::VirtioFs),
    Fault::Kill(Process::Shim),
    Fault::Kill(Process::Caller),
    Fault::Stop(Process::Qemu),
    Fault::Stop(Process::VirtioFs),
    Fault::DiskFull,
    Fault::NoMemory,
    Fault::NoDescriptors,
    Fault::NoPids,
];
/// Machines for engines, each of which tries one fault at a time.
const ENGINES: usize = 2;
const STATE: &str = "/run/kata-containers";

/// What a caller asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Operation {
    Run,
    Exec,
    Delete,
}

impl e2e::matrix::Operation for Operation {
    fn name(self) -> &'static str {
        match self {
            Self::Run => "ctr run",
            Self::Exec => "ctr tasks exec",
            Self::Delete => "ctr tasks delete",
        }
    }
}

impl Operation {
    const ALL: [Self; 3] = [Self::Run, Self::Exec, Self::Delete];

    /// Whether `fault` can be done to `row`.
    fn can_have(row: &Row<Self>, fault: Fault) -> bool {
        match fault {
            Fault::Error => row.may_fail,
            Fault::Kill(process) | Fault::Stop(process) => process == Process::Caller || row.there.contains(&process),
            _ => true,
        }
    }
}

/// A containerd with a container that nothing is done to.
struct Engine {
    containerd: Containerd,
    neighbour: Vec<u32>,
}

impl Engine {
    fn new() -> Self {
        let containerd = Containerd::start(Version::V1_7);
        // A file system that can be filled.
        containerd.host.sh(&format!("mkdir -p {STATE}; mount -t tmpfs -o size=2m,mode=711 none {STATE}"));
        let neighbour = run_arguments(Handler::Kata, &["--detach"], "neighbour", &["sleep", "100000"]);
        containerd.ctr_ok(neighbour);
        let neighbour = containerd.host.processes_with("neighbour");
        assert!(!neighbour.is_empty());
        Self { containerd, neighbour }
    }

    fn neighbour_lives(&self) -> Result<(), String> {
        let now = self.containerd.host.processes_with("neighbour");
        let is_there = self.neighbour.iter().all(|pid| now.contains(pid));
        check(is_there, || format!("the neighbour's processes are {now:?} instead of {:?}", self.neighbour))
    }

    fn neighbour_answers(&self) {
        let said = self.containerd.ctr_ok(["tasks", "exec", "--exec-id", "last", "neighbour", "echo", "here"]);
        assert_eq!(said, "here\n");
    }
}

/// A container that is to be, and somebody who hears of its steps.
struct Stage<'a> {
    engine: &'a Engine,
    debugger: Debugger,
    id: String,
    configuration: String,
}

impl<'a> Stage<'a> {
    fn new(engine: &'a Engine) -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let debugger = Debugger::new();
        let id = format!("fault-{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let configuration = engine.containerd.host.directory().join(format!("{id}.toml"));
        let settings =
            format!("[agent.kata]\nliveness_timeout = 8\n[runtime]\ndebug_steps = {:?}\n", debugger.socket());
        std::fs::write(&configuration, settings).unwrap();
        Self { engine, debugger, id, configuration: configuration.display().to_string() }
    }

    fn containerd(&self) -> &Containerd {
        &self.engine.containerd
    }

    /// The sandbox's state directory, as it is seen from here.
    fn directory(&self) -> PathBuf {
        let host = &self.containerd().host;
        host.seen(format!("{STATE}/shim/{}/{}", host.name(), self.id))
    }

    fn run(&self) -> Vec<String> {
        let options = ["--detach", "--null-io", "--runtime-config-path", &self.configuration];
        run_arguments(Handler::Kata, &options, &self.id, &["sleep", "100000"])
    }

    /// Does what comes before an operation.
    fn prepare(&self, operation: Operation) {
        if operation != Operation::Run {
            self.containerd().ctr_ok(self.run());
        }
        if operation == Operation::Delete {
            self.containerd().ctr_ok(["tasks", "kill", "--signal", "SIGKILL", &self.id]);
            self.containerd().wait_for(&self.id, "STOPPED");
        }
    }

    fn begin(&self, operation: Operation) -> Background {
        let args = match operation {
            Operation::Run => self.run(),
            Operation::Exec => ["tasks", "exec", "--exec-id", "e", &self.id, "true"].map(String::from).into(),
            Operation::Delete => ["tasks", "delete", &self.id].map(String::from).into(),
        };
        Background::start(&mut self.containerd().ctr_command(args))
    }

    /// Removes the container as its user would who knows nothing of what happened.
    fn remove(&self) -> Result<(), String> {
        let end = Instant::now() + SOON;
        let mut said = Vec::new();
        while Instant::now() < end {
            for args in [&["tasks", "delete", "--force", &self.id][..], &["containers", "delete", &self.id]] {
                let done = Background::start(&mut self.containerd().ctr_command(args)).finish_or_kill(SOON);
                said.push(done.ok_or_else(|| format!("{args:?} does not end"))?.stderr);
            }
            let containers = self.containerd().ctr_ok(["containers", "list", "--quiet"]);
            if !containers.lines().any(|name| name == self.id) {
                return Ok(());
            }
            thread::sleep(Duration::from_millis(200));
        }
        Err(format!("it cannot be removed: {said:?}"))
    }

    /// The steps that an operation comes to.
    fn rows(&self, operation: Operation) -> Vec<Row<Operation>> {
        self.prepare(operation);
        let rows = Row::record(operation, &self.debugger, self.directory());
        let done = self.begin(operation).finish();
        assert_eq!(done.code, 0, "{}: {}", operation.name(), done.stderr);
        self.debugger.answer(|_| Answer::Go);
        self.remove().unwrap();
        let rows = std::mem::take(&mut *rows.lock().unwrap());
        assert!(!rows.is_empty(), "{} comes to no step", operation.name());
        rows
    }
}

/// Does `fault` at a step, and checks all that must hold then.
fn attempt(engine: &Engine, row: &Row<Operation>, fault: Fault) -> Tried {
    if !Operation::can_have(row, fault) {
        return Ok((Outcome::Nothing, String::new()));
    }
    let host = &engine.containerd.host;
    let before = host.traces();
    let stage = Stage::new(engine);
    stage.prepare(row.operation);
    // What is done to it is done in the debugger's thread, which knows no engine.
    let (numbers, directory, disk) = (host.numbers(), stage.directory(), host.seen(STATE));
    let (id, caller) = (format!("{}-{}", host.name(), stage.id), std::sync::Arc::new(Mutex::new(0)));
    let known = caller.clone();
    // Nobody passes a step before the caller's number is known.
    let mut number = caller.lock().unwrap();
    let done = row.when_reached(&stage.debugger, fault, move |reached| {
        // nsenter(1) has a child that is the command.
        let caller = engines::host::child(*known.lock().unwrap());
        let at = numbers.outside(reached.pid);
        let number = |pid| numbers.outside(pid);
        Place { directory: &directory, disk: &disk, id: &id, caller, at, number: &number }.inject(fault)
    });
    let running = stage.begin(row.operation);
    *number = running.id();
    drop(number);
    let output = running.finish_or_kill(SOON);
    stage.debugger.answer(|_| Answer::Go);
    let injected = done.lock().unwrap().take();
    let outcome = match injected {
        None => Err("it did not come to the step".into()),
        Some(None) => Ok(Outcome::Nothing),
        Some(Some(done)) => {
            let late = || "ctr got no answer in time".to_owned();
            let judged = output.as_ref().ok_or_else(late).and_then(|output| judge(row, fault, output));
            // With a full disk, too, it can be removed.
            let removed = stage.remove();
            drop(done);
            removed.and(judged)
        }
    };
    stage.remove()?;
    // What ctr has made for its streams is its own to remove.
    let of_ctr = |trace: &str| fault == Fault::Kill(Process::Caller) && trace.starts_with("file run/containerd/fifo/");
    // A shim that containerd has forgotten ends after 15 s.
    host.left_behind(&before, SOON, of_ctr)?;
    engine.neighbour_lives()?;
    outcome.map(|outcome| (outcome, output.map(|output| output.stderr).unwrap_or_default()))
}

/// Whether what `ctr` was told is as it must be.
fn judge(row: &Row<Operation>, fault: Fault, output: &Output) -> Result<Outcome, String> {
    let said = &output.stderr;
    match fault {
        Fault::Kill(Process::Caller) => return Ok(Outcome::Failed),
        _ if output.code == 0 => {
            // A pod whose cgroup of the host cannot be had runs nevertheless, with a warning.
            let is_optional = row.step == "write state.json: cgroups";
            let certain = fault == Fault::Error || (row.is_call && fault == Fault::Kill(Process::Shim));
            check(!certain || is_optional || row.operation == Operation::Delete, || {
                "it succeeded nevertheless".into()
            })?;
            return Ok(Outcome::Succeeded);
        }
        Fault::Error => {
            let is_named = said.contains(&row.step) && said.contains("made to fail");
            check(is_named, || format!("the step is not named: {said}"))?;
        }
        Fault::Kill(process @ (Process::Qemu | Process::VirtioFs)) | Fault::Stop(process) => {
            check(said.contains(process.named()), || format!("{process:?} is not named: {said}"))?;
        }
        // containerd is who tells of a shim that is no more, in its own words.
        _ => check(!said.is_empty(), || "nothing is said".into())?,
    }
    Ok(Outcome::Failed)
}

#[test]
fn some_faults_under_containerd() {
    if !engines::handlers().contains(&Handler::Kata) {
        return;
    }
    let engine = Engine::new();
    let rows = Stage::new(&engine).rows(Operation::Run);
    let row = rows.iter().rev().find(|row| row.is_call).expect("the agent is called");
    for fault in [Fault::Error, Fault::Kill(Process::Qemu), Fault::Kill(Process::Shim)] {
        let (outcome, said) =
            attempt(&engine, row, fault).unwrap_or_else(|e| panic!("{} at {:?}: {e}", fault.name(), row.step));
        assert_eq!(outcome, Outcome::Failed, "{}: {said}", fault.name());
    }
    engine.neighbour_answers();
}

#[test]
fn every_fault_at_every_step_under_containerd() {
    let Ok(pattern) = std::env::var("KATA_FAULTS") else {
        return println!("skipped: it takes a quarter of an hour; `make faults` runs it");
    };
    let engines = Mutex::new((0..ENGINES).map(|_| Engine::new()).collect::<Vec<_>>());
    let rows: Vec<_> = {
        let engines = engines.lock().unwrap();
        Operation::ALL.into_iter().flat_map(|operation| Stage::new(&engines[0]).rows(operation)).collect()
    };
    let marks = ["<!-- the shim's table begins -->", "<!-- the shim's table ends -->"];
    let table = Table { faults: &FAULTS, document: "docs/faults.md", marks, workers: ENGINES };
    table.fill(&pattern, &rows, |row, fault| {
        let engine = engines.lock().unwrap().pop().expect("an engine for each worker");
        let tried = attempt(&engine, row, fault);
        engines.lock().unwrap().push(engine);
        tried
    });
    engines.lock().unwrap().iter().for_each(Engine::neighbour_answers);
}
