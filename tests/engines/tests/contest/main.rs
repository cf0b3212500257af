//! containerd's own tests of a runtime, from Debian's source package, through our shim and through runc's, which is the control.
//!
//! `scripts/contest.sh` builds the test programs and runs this. What passes with runc must pass with ours, unless
//! `contest/left-out.txt` names it with a reason. A test that fails by itself with runc says nothing and is only told.
//!
//! `KATA_CONTEST=PATTERN` runs only the tests that a pattern of Go fits. What each test came to is kept while the tests run, with the output, in
//! `KATA_CONTEST_LOGS=DIRECTORY` (`target/tmp/contest` unless told); `KATA_CONTEST_RESUME=1` runs only what did not end well there.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

mod cri;
mod pulled;
mod record;
mod results;
mod session;

use std::{env, path::PathBuf};

use engines::{Handler, host::Host};

use crate::{
    record::Record,
    results::{LeftOut, Outcome, Outcomes},
};

/// A test program.
pub struct Suite {
    name: &'static str,
    /// Starts what the program, whose path is given, expects to be there, and gives the command.
    command: fn(&Host, Handler, String) -> Vec<String>,
}

/// The tests of containerd's client: they start a containerd of their own.
const CLIENT: Suite = Suite {
    name: "client",
    command: |_, handler, program| {
        let environment = format!("TEST_RUNTIME={}", handler.runtime());
        vec![environment, program, "-test.root".into(), "-no-criu".into()]
    },
};

/// The tests of the CRI: they want a containerd that somebody starts again when they end it.
const CRI: Suite = Suite {
    name: "cri",
    command: |host, handler, program| {
        cri::start(host);
        vec![
            program,
            "-cri-root=/var/lib/containerd/io.containerd.grpc.v1.cri".into(),
            format!("-runtime-handler={}", handler.name()),
        ]
    },
};

/// Path of a suite's program.
fn program(suite: &Suite) -> PathBuf {
    let name = suite.name;
    let path = e2e::cache().join(format!("contest/1.7/{name}.test"));
    assert!(path.exists(), "there is no {}; run `scripts/contest.sh build {name}`", path.display());
    path
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
    let mut wrong = Vec::new();
    let mut all: Vec<(Handler, Outcomes)> = Vec::new();
    for handler in engines::handlers() {
        let mut record = Record::open(suite.name, handler, only.as_deref());
        let control = all.first().map(|(_, control)| control);
        wrong.extend(execute(suite, handler, only.as_deref(), &left_out, control, &mut record));
        all.push((handler, record.into_outcomes()));
    }
    let outcome_of = |handler: Handler, name: &str| {
        let outcomes = all.iter().find(|(of, _)| *of == handler)?;
        outcomes.1.get(name).copied()
    };
    let mut names: Vec<&String> = all.iter().flat_map(|(_, outcomes)| outcomes.keys()).collect();
    names.sort();
    names.dedup();
    let mut table = format!("{:52} {:6} {:6}\n", suite.name, "runc", "kata");
    let mut line = |name: &str, runc: &str, kata: &str, note: &str| {
        let line = format!("{name:52} {runc:6} {kata:6} {note}");
        table += line.trim_end();
        table.push('\n');
    };
    let mut excused = 0;
    for name in names {
        let [runc, kata] = [Handler::Runc, Handler::Kata].map(|handler| outcome_of(handler, name));
        let reason = left_out.reason(suite.name, name);
        let note = match (runc, kata, reason) {
            (_, Some(Outcome::Passed), Some((_, false))) => {
                wrong.push(format!("{name} is left out, and passes"));
                "is left out, and passes: take it off the list".into()
            }
            (_, _, Some((reason, _))) => format!("left out: {reason}"),
            (Some(Outcome::Passed), Some(Outcome::Failed | Outcome::Skipped | Outcome::Unfinished), None)
            | (None, Some(Outcome::Failed | Outcome::Unfinished), None) => {
                wrong.push(name.clone());
                "WRONG".into()
            }
            _ => String::new(),
        };
        excused += usize::from(kata.is_some_and(|outcome| outcome != Outcome::Passed) && reason.is_some());
        let [runc, kata] = [runc, kata].map(|outcome| outcome.map_or("-".into(), |outcome| outcome.to_string()));
        line(name, &runc, &kata, &note);
    }
    for entry in left_out.untried(suite.name).filter(|_| only.is_none()) {
        line(entry.name(), "-", "-", &format!("not run: {}", entry.reason));
    }
    let passed = |outcomes: &Outcomes| outcomes.values().filter(|outcome| **outcome == Outcome::Passed).count();
    let passed: Vec<String> =
        all.iter().map(|(handler, outcomes)| format!("{} pass with {}", passed(outcomes), handler.name())).collect();
    let (passed, wrong_ones) = (passed.join(", "), wrong.len());
    table += &format!("{}: {passed}; {excused} left out with a reason, {wrong_ones} wrong\n", suite.name);
    record::keep(&format!("{}.table", suite.name), &table);
    println!("{table}");
    assert!(wrong.is_empty(), "what passes with runc's shim must pass with ours, and leave nothing: {wrong:#?}");
    for (handler, outcomes) in all.iter().filter(|_| only.is_none()) {
        assert!(outcomes.values().any(|outcome| *outcome == Outcome::Passed), "nothing passes with {}", handler.name());
    }
    if let (Some((Handler::Runc, control)), None) = (all.first(), &only) {
        let stale: Vec<&str> = left_out.stale(suite.name, control).collect();
        assert!(stale.is_empty(), "left-out.txt names tests that are not there: {stale:?}");
    }
}

/// Runs a suite's tests through a runtime: all together, then alone what did not end well, since it may have been a neighbour's fault. Tells
/// what was left behind.
fn execute(
    suite: &Suite,
    handler: Handler,
    only: Option<&str>,
    left_out: &LeftOut,
    control: Option<&Outcomes>,
    record: &mut Record,
) -> Vec<String> {
    let may_fail: Vec<String> = left_out.failing(suite.name).filter(|_| handler.is_kata()).map(Into::into).collect();
    let always = if only.is_none() { left_out.skipped(suite.name, handler.is_kata()) } else { Vec::new() };
    let mut excluded = always.clone();
    excluded.extend(record.done().map(exactly));
    if only.is_none() {
        excluded.extend(may_fail.iter().map(|name| exactly(name)));
    }
    let mut left = all_of(suite, handler, only.unwrap_or("."), &excluded, record);
    let again: Vec<String> = match control {
        // A test that only the control had did not have its turn.
        Some(control) if only.is_none() => control.keys().cloned().collect(),
        _ => record.outcomes().keys().cloned().collect(),
    };
    let well = |record: &Record, name: &String| {
        matches!(record.outcomes().get(name), Some(Outcome::Passed | Outcome::Skipped)) || may_fail.contains(name)
    };
    for name in again {
        if !well(record, &name) {
            left.extend(all_of(suite, handler, &exactly(&name), &always, record));
        }
    }
    if only.is_none() && !may_fail.is_empty() {
        // What these leave is told as little as what they come to.
        let excluded: Vec<String> = record.done().map(exactly).collect();
        all_of(suite, handler, &exactly(&format!("({})", may_fail.join("|"))), &excluded, record);
    }
    left
}

/// Runs tests until each has had its turn: one that hangs, or ends the program, ends only this run of it.
fn all_of(suite: &Suite, handler: Handler, pattern: &str, excluded: &[String], record: &mut Record) -> Vec<String> {
    let mut excluded = excluded.to_vec();
    let mut left = Vec::new();
    loop {
        let report = session::run(suite, handler, pattern, &excluded.join("|"), |outcomes| record.note(outcomes));
        let log = record.keep_log(&report.text);
        if report.outcomes.is_empty() && !(report.whole && report.text.contains("no tests to run")) {
            let lines: Vec<&str> = report.text.lines().collect();
            let end = lines[lines.len().saturating_sub(40)..].join("\n");
            panic!("{} with {} ran no test; its output ends:\n{end}", suite.name, handler.name());
        }
        for trace in &report.left {
            let told = format!("{} left behind: {trace} ({})", handler.name(), log.display());
            println!("{told}");
            // What runc leaves is its own business.
            left.extend(handler.is_kata().then_some(told));
        }
        excluded.extend(report.outcomes.keys().map(|name| exactly(name)));
        if report.whole || report.outcomes.is_empty() {
            return left;
        }
    }
}

/// A pattern of Go for exactly this name.
fn exactly(name: &str) -> String {
    format!("^{name}$")
}
