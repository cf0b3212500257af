//! The test suites of other runtimes and of Podman, from Debian's source packages, through our command line and through the runtime
//! they were written for, which is the control.
//!
//! `scripts/conformance.sh` fetches the suites and runs this. What passes with the control must pass with ours, unless
//! `conformance/left-out.txt` names it with a reason. The results of each file are written to `docs/oci-conformance.md`.
//!
//! `KATA_CONFORMANCE=FILE[:CASE]` runs only the files whose names contain FILE, and of them the cases whose names contain CASE;
//! `KATA_CONFORMANCE_LOGS=DIRECTORY` keeps the output, from which `KATA_CONFORMANCE_FROM=DIRECTORY` makes the table anew; `KATA_CONFORMANCE_ACCELERATOR=kvm` does not emulate the guests' processor;
//! `KATA_ENGINES=runc` (or `kata`) leaves the other runtime out.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

mod podman;
mod report;
mod results;
mod suites;

use std::{
    env, fs,
    io::Write,
    path::PathBuf,
    process::Stdio,
    time::{Duration, Instant},
};

use engines::{Handler, host::Host};

use crate::{
    report::Row,
    results::{LeftOut, Outcome, Outcomes},
    suites::{Suite, directory},
};

/// How long a file may take beside its cases, and a suite in all. Each case has a limit, too.
const FILE: Duration = Duration::from_secs(60);
const SUITE: Duration = Duration::from_secs(5 * 3600);

#[test]
fn runc() {
    run(&suites::RUNC);
}

#[test]
fn crun() {
    run(&suites::CRUN);
}

#[test]
fn podman() {
    run(&suites::PODMAN);
}

/// What `KATA_CONFORMANCE` asks for.
struct Only {
    file: String,
    case: String,
}

impl Only {
    fn read() -> Self {
        let text = env::var("KATA_CONFORMANCE").unwrap_or_default();
        let (file, case) = text.split_once(':').unwrap_or((&text, ""));
        Self { file: file.into(), case: case.into() }
    }

    fn is_all(&self) -> bool {
        self.file.is_empty() && self.case.is_empty()
    }
}

fn run(suite: &Suite) {
    let (only, left_out) = (Only::read(), LeftOut::read());
    let mut rows = Vec::new();
    let end = Instant::now() + SUITE;
    println!("{:70} {:6} kata", suite.name, suite.control);
    for file in suite.files().into_iter().filter(|file| file.contains(&only.file)) {
        assert!(Instant::now() < end, "{}: no time is left for {file} and what comes after it", suite.name);
        let all = suite.cases(&file);
        if let (Some(entry), true) = (left_out.whole_file(suite.name, &file), only.case.is_empty()) {
            let row = Row::whole_file(&file, all.len(), entry);
            println!("{row}");
            rows.push(row);
            if engines::handlers().len() == 2 {
                report::write(suite, &file, &rows);
            }
            continue;
        }
        let cases: Vec<String> = all
            .iter()
            .filter(|case| case.contains(&only.case))
            .filter(|case| {
                left_out.find(suite.name, &file, case).is_none_or(|entry| !entry.untried || !only.case.is_empty())
            })
            .cloned()
            .collect();
        let of = |handler: Handler| match engines::handlers().contains(&handler) && !cases.is_empty() {
            true => execute(suite, handler, &file, &cases),
            false => Outcomes::new(),
        };
        let mut outcomes = [of(Handler::Runc), of(Handler::Kata)];
        // The cases have deadlines of their own, which a busy machine may miss.
        let is_wrong = |case: &&String| {
            let [control, ours] = [0, 1].map(|index: usize| outcomes[index].get(*case).copied());
            let expected = left_out.find(suite.name, &file, case).is_some();
            control == Some(Outcome::Passed) && ours.is_some_and(|ours| ours != Outcome::Passed) && !expected
        };
        let again: Vec<String> = cases.iter().filter(is_wrong).cloned().collect();
        if !again.is_empty() && cases.len() > 1 {
            outcomes[1].extend(execute(suite, Handler::Kata, &file, &again));
        }
        for case in all.iter().filter(|case| case.contains(&only.case)) {
            let [control, ours] = [0, 1].map(|index: usize| outcomes[index].get(case).copied());
            let left_out = left_out.find(suite.name, &file, case).cloned();
            let row = Row { file: file.clone(), case: case.clone(), control, ours, left_out };
            println!("{row}");
            rows.push(row);
        }
        if only.case.is_empty() && engines::handlers().len() == 2 {
            report::write(suite, &file, &rows);
        }
    }
    let wrong: Vec<String> = rows.iter().filter(|row| row.is_wrong()).map(Row::name).collect();
    if only.is_all() && engines::handlers().len() == 2 {
        let stale: Vec<String> = left_out.stale(suite.name, &rows);
        assert!(stale.is_empty(), "left-out.txt names cases that are not there: {stale:?}");
    }
    println!("{}", report::summary(suite, &rows));
    assert!(rows.iter().any(|row| row.control.or(row.ours) == Some(Outcome::Passed)), "nothing passes");
    assert!(wrong.is_empty(), "what passes with {} must pass with ours: {wrong:#?}", suite.control);
}

/// Runs cases of a file on a machine of their own.
fn execute(suite: &Suite, handler: Handler, file: &str, cases: &[String]) -> Outcomes {
    if let Some(text) = kept(suite, handler, file) {
        return named(results::parse(&text), cases);
    }
    let tools = directory();
    let paths = [tools.join("bin"), tools.join("tools/usr/bin")];
    let host = Host::start(&paths);
    let own = host.directory().display().to_string();
    // Ours is there as if it was installed. Without KVM each case would read a warning beside what it asks for.
    let accelerator = env::var("KATA_CONFORMANCE_ACCELERATOR").unwrap_or_else(|_| "tcg".into());
    host.sh(&format!(
        "mkdir {own}/opt {own}/tmp {own}/suite; ln -s {} {own}/opt/kata; mount --bind {own}/opt /opt; chmod 755 {own}; chmod 1777 {own}/tmp
        mkdir -p /etc/kata-containers
        printf '[hypervisor.qemu]\\naccelerator = \"%s\"\\n' {accelerator} >/etc/kata-containers/configuration.toml
        cp -a {}/. {own}/suite",
        e2e::stage_directory().display(),
        tools.join(suite.name).display(),
    ));
    (suite.prepare)(&host);
    let program = match handler {
        Handler::Runc => tools.join("bin").join(suite.control),
        Handler::Kata => e2e::stage().join("bin/kata-runtime"),
    };
    let log = host.directory().join("output");
    let script = suite.script(&program, file, cases);
    fs::write(host.directory().join("script"), format!("export TMPDIR={own}/tmp; cd {own}/suite\n{script}")).unwrap();
    // The suites want a terminal to be there.
    let mut child = host
        .command("script", ["-qec", &format!("bash {own}/script"), "/dev/null"])
        .stdout(fs::File::create(&log).unwrap())
        .stderr(Stdio::inherit())
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    let end = Instant::now() + FILE + suite.limit * u32::try_from(cases.len()).unwrap();
    while child.try_wait().unwrap().is_none() && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(100));
    }
    let text = String::from_utf8_lossy(&fs::read(&log).unwrap()).replace('\r', "");
    keep(suite, handler, file, &text);
    let mut outcomes = named(results::parse(&text), cases);
    for case in cases {
        outcomes.entry(case.clone()).or_insert(Outcome::Unfinished);
    }
    drop(host);
    let _ = child.kill();
    let _ = child.wait();
    outcomes
}

/// The outcomes under the names that the files have for the cases.
fn named(mut reported: Outcomes, cases: &[String]) -> Outcomes {
    for case in cases {
        if let Some(outcome) = reported.remove(&Suite::reported(case)) {
            reported.insert(case.clone(), outcome);
        }
    }
    reported
}

/// The output of an earlier run, if `KATA_CONFORMANCE_FROM` names where it was kept.
fn kept(suite: &Suite, handler: Handler, file: &str) -> Option<String> {
    let directory = PathBuf::from(env::var_os("KATA_CONFORMANCE_FROM")?);
    fs::read_to_string(directory.join(format!("{}-{file}-{}.log", suite.name, handler.name()))).ok()
}

/// Keeps the output where `KATA_CONFORMANCE_LOGS` says. That of cases which are repeated follows that of the first time.
fn keep(suite: &Suite, handler: Handler, file: &str, text: &str) {
    if let Some(directory) = env::var_os("KATA_CONFORMANCE_LOGS").map(PathBuf::from) {
        fs::create_dir_all(&directory).unwrap();
        let path = directory.join(format!("{}-{file}-{}.log", suite.name, handler.name()));
        let mut log = fs::File::options().create(true).append(true).open(path).unwrap();
        log.write_all(text.as_bytes()).unwrap();
    }
}
