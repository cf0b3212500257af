//! containerd's own tests of a runtime, from Debian's source package, through our shim and through runc's, which is the control.
//!
//! `scripts/contest.sh` builds the test programs and runs this. What passes with runc must pass with ours, unless
//! `contest/left-out.txt` names it with a reason. A test that fails by itself with runc says nothing and is only told.
//!
//! `KATA_CONTEST=PATTERN` runs only the tests that a pattern of Go fits, `KATA_CONTEST_LOGS=DIRECTORY` keeps the output.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

mod cri;
mod registry;
mod results;

use std::{
    env, fs,
    path::PathBuf,
    process::Stdio,
    time::{Duration, Instant},
};

use engines::{Handler, host::Host, images};

use crate::results::{LeftOut, Outcome, Outcomes};

/// How long all tests of a suite may take, and one that is repeated alone.
const SUITE: Duration = Duration::from_secs(900);
const ALONE: Duration = Duration::from_secs(120);

/// A test program.
struct Suite {
    name: &'static str,
    /// Starts what the program expects to be there, and gives the command.
    command: fn(&Host, Handler) -> Vec<String>,
}

/// The tests of containerd's client: they start a containerd of their own.
const CLIENT: Suite = Suite {
    name: "client",
    command: |_, handler| {
        let environment = format!("TEST_RUNTIME={}", handler.runtime());
        let program = programs().join("client.test").display().to_string();
        vec![environment, program, "-test.root".into(), "-no-criu".into()]
    },
};

/// The tests of the CRI: they want a containerd that somebody starts again when they end it.
const CRI: Suite = Suite {
    name: "cri",
    command: |host, handler| {
        cri::start(host);
        let program = programs().join("cri.test").display().to_string();
        vec![
            program,
            "-cri-root=/var/lib/containerd/io.containerd.grpc.v1.cri".into(),
            format!("-runtime-handler={}", handler.name()),
        ]
    },
};

fn programs() -> PathBuf {
    let programs = e2e::cache().join("contest/1.7");
    assert!(programs.join("client.test").exists(), "there is no {}; run scripts/contest.sh", programs.display());
    programs
}

#[test]
fn client() {
    run(&CLIENT);
}

#[test]
fn cri() {
    run(&CRI);
}

fn run(suite: &Suite) {
    let left_out = LeftOut::read();
    let only = env::var("KATA_CONTEST").ok();
    let mut all = Vec::new();
    for handler in engines::handlers() {
        let pattern = only.as_deref().unwrap_or(".");
        let mut outcomes = execute(suite, handler, pattern, &left_out, SUITE);
        // What went wrong among others, or did not have its turn, is repeated alone: the reference decides what there is to run.
        let known: Vec<String> = match all.first() {
            Some((_, control)) if only.is_none() => Outcomes::keys(control).cloned().collect(),
            _ => outcomes.keys().cloned().collect(),
        };
        for name in known {
            let well = matches!(outcomes.get(&name), Some(Outcome::Passed | Outcome::Skipped));
            let expected = handler.is_kata() && left_out.reason(suite.name, &name).is_some();
            if well || expected || only.is_some() {
                continue;
            }
            outcomes.extend(execute(suite, handler, &format!("^{name}$"), &left_out, ALONE));
        }
        all.push((handler, outcomes));
    }
    let outcome_of = |handler: Handler, name: &str| {
        let outcomes = all.iter().find(|(of, _)| *of == handler)?;
        outcomes.1.get(name).copied()
    };
    let mut names: Vec<&String> = all.iter().flat_map(|(_, outcomes)| outcomes.keys()).collect();
    names.sort();
    names.dedup();
    let mut wrong = Vec::new();
    println!("{:52} {:6} {:6}", suite.name, "runc", "kata");
    for name in names {
        let [runc, kata] = [Handler::Runc, Handler::Kata].map(|handler| outcome_of(handler, name));
        let reason = left_out.reason(suite.name, name);
        let note = match (runc, kata, reason) {
            (_, Some(Outcome::Passed), Some(_)) => "is left out, and passes: take it off the list".into(),
            (_, _, Some(reason)) => format!("left out: {reason}"),
            (Some(Outcome::Passed), Some(Outcome::Failed | Outcome::Skipped | Outcome::Unfinished), None) => {
                wrong.push(name.clone());
                "WRONG".into()
            }
            _ => String::new(),
        };
        let [runc, kata] = [runc, kata].map(|outcome| outcome.map_or("-".into(), |outcome| outcome.to_string()));
        println!("{name:52} {runc:6} {kata:6} {note}");
    }
    for entry in left_out.untried(suite.name) {
        println!("{:52} {:6} {:6} not run: {}", entry.name(), "-", "-", entry.reason);
    }
    assert!(wrong.is_empty(), "what passes with runc's shim must pass with ours: {wrong:?}");
    if let (Some((Handler::Runc, control)), None) = (all.first(), &only) {
        assert!(control.values().any(|outcome| *outcome == Outcome::Passed), "nothing passes with runc");
        let stale: Vec<&str> = left_out.stale(suite.name, control).collect();
        assert!(stale.is_empty(), "left-out.txt names tests that are not there: {stale:?}");
    }
}

/// Runs the tests that a pattern of Go fits, on a machine of their own.
fn execute(suite: &Suite, handler: Handler, pattern: &str, left_out: &LeftOut, limit: Duration) -> Outcomes {
    let engine = images::unpacked("containerd-1.7").join("usr/bin");
    let paths = [Some(engine), engines::kata_programs(), Some(programs())];
    let host = Host::start(&paths.into_iter().flatten().collect::<Vec<_>>());
    let own = host.directory().display().to_string();
    // The tests remove the directory they gave to their containerd, and snapshots need a real file system below it.
    // Ours is there as if it was installed, for the test that copies the shim's program away from what is beside it.
    host.sh(&format!(
        "mkdir {own}/lib {own}/opt {own}/tmp; ln -s {} {own}/opt/kata; mount --bind {own}/lib /var/lib; mount --bind {own}/opt /opt",
        e2e::stage_directory().display()
    ));
    registry::serve(&host);
    let mut command = vec![format!("TMPDIR={own}/tmp")];
    command.extend((suite.command)(&host, handler));
    command.extend([
        "-test.v=test2json".into(),
        format!("-test.timeout={}s", limit.as_secs()),
        format!("-test.run={pattern}"),
    ]);
    if env::var_os("KATA_CONTEST").is_none() {
        command.push(format!("-test.skip={}", left_out.skip_pattern(suite.name)));
    }
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
    let end = Instant::now() + limit + Duration::from_secs(60);
    while child.try_wait().unwrap().is_none() && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(100));
    }
    let mut text = String::from_utf8_lossy(&fs::read(&log).unwrap()).into_owned();
    let outcomes = results::parse(&text);
    text += &fs::read_to_string(cri::log(&host)).unwrap_or_default();
    keep(suite, handler, pattern, &text);
    if outcomes.is_empty() {
        let lines: Vec<&str> = text.lines().collect();
        panic!(
            "{} with {} ran no test; its output ends:\n{}",
            suite.name,
            handler.name(),
            lines[lines.len().saturating_sub(40)..].join("\n")
        );
    }
    drop(host);
    let _ = child.kill();
    let _ = child.wait();
    outcomes
}

/// Keeps the output where `KATA_CONTEST_LOGS` says.
fn keep(suite: &Suite, handler: Handler, pattern: &str, text: &str) {
    if let Some(directory) = env::var_os("KATA_CONTEST_LOGS").map(PathBuf::from) {
        let name: String = pattern.chars().filter(char::is_ascii_alphanumeric).take(60).collect();
        fs::create_dir_all(&directory).unwrap();
        fs::write(directory.join(format!("{}-{}-{name}.log", suite.name, handler.name())), text).unwrap();
    }
}
