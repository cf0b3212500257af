//! What a test program of Go reported, and what is allowed to differ.

use std::path::Path;

pub use engines::outcome::{Outcome, Outcomes};

/// Reads the output of `-test.v=test2json`, in which a mark precedes each report even where a test's own output has no end of line.
pub fn parse(output: &str) -> Outcomes {
    let mut outcomes = Outcomes::new();
    for report in output.split('\x16').skip(1) {
        let mut words = report.lines().next().unwrap_or_default().split_whitespace();
        let outcome = match (words.next(), words.next()) {
            (Some("==="), Some("RUN" | "CONT")) => Outcome::Unfinished,
            // It waits for its turn among those that may run at once, and has not begun if the turn does not come.
            (Some("==="), Some("PAUSE")) => {
                if let Some(name) = words.next() {
                    outcomes.remove(name);
                }
                continue;
            }
            (Some("---"), Some("PASS:")) => Outcome::Passed,
            (Some("---"), Some("FAIL:")) => Outcome::Failed,
            (Some("---"), Some("SKIP:")) => Outcome::Skipped,
            _ => continue,
        };
        if let Some(name) = words.next().filter(|name| !name.contains('/')) {
            outcomes.insert(name.into(), outcome);
        }
    }
    outcomes
}

/// What becomes of a test that is left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum How {
    /// It is not even run.
    NotRun,
    /// It is run, and fails.
    Fails,
    /// It is run, and fails by chance.
    MayFail,
}

/// A line of `left-out.txt`.
#[derive(Debug)]
pub struct Entry {
    suite: String,
    name: String,
    how: How,
    /// Why.
    pub reason: String,
}

/// What may differ.
#[derive(Debug)]
pub struct LeftOut(Vec<Entry>);

impl LeftOut {
    /// Reads the list.
    pub fn read() -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("contest/left-out.txt");
        let text = std::fs::read_to_string(&path).unwrap();
        let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
        Self(
            lines
                .map(|line| {
                    let mut words = line.split_whitespace();
                    let [suite, name, how] = [words.next(), words.next(), words.next()].map(Option::unwrap_or_default);
                    let reason = words.collect::<Vec<_>>().join(" ");
                    let how = match how {
                        _ if reason.is_empty() => None,
                        "not-run" => Some(How::NotRun),
                        "fails" => Some(How::Fails),
                        "may-fail" => Some(How::MayFail),
                        _ => None,
                    };
                    let expected = "SUITE TEST not-run|fails|may-fail REASON";
                    let how =
                        how.unwrap_or_else(|| panic!("{}: expected `{expected}`, found {line:?}", path.display()));
                    Entry { suite: suite.into(), name: name.into(), how, reason }
                })
                .collect(),
        )
    }

    /// Those of a suite that are not run.
    pub fn untried(&self, suite: &str) -> impl Iterator<Item = &Entry> {
        self.0.iter().filter(move |entry| entry.suite == suite && entry.how == How::NotRun)
    }

    /// The patterns of Go for what is not run of a suite: tests, and of others parts, those with our runtime only.
    pub fn skipped(&self, suite: &str, with_parts: bool) -> Vec<String> {
        let patterns = self.untried(suite).map(|entry| entry.name.replace('*', ".*"));
        patterns
            .filter_map(|name| match name.split_once('/') {
                Some((test, part)) => with_parts.then(|| format!("^{test}$/^{part}$")),
                None => Some(format!("^{name}$")),
            })
            .collect()
    }

    /// Those of a suite that may fail with our runtime.
    pub fn failing(&self, suite: &str) -> impl Iterator<Item = &str> {
        let entries = self.0.iter().filter(move |entry| entry.suite == suite && entry.how != How::NotRun);
        entries.map(|entry| entry.name.as_str())
    }

    /// Why a test may fail with our runtime, and whether it may pass as well.
    pub fn reason(&self, suite: &str, name: &str) -> Option<(&str, bool)> {
        let is_it = |entry: &&Entry| match entry.name.strip_suffix('*') {
            Some(beginning) => name.starts_with(beginning),
            None => entry.name == name,
        };
        let entry = self.0.iter().filter(|entry| entry.suite == suite).find(is_it);
        entry.map(|entry| (entry.reason.as_str(), entry.how != How::Fails))
    }

    /// What is listed but was not there.
    pub fn stale<'a>(&'a self, suite: &'a str, control: &'a Outcomes) -> impl Iterator<Item = &'a str> {
        self.failing(suite).filter(|name| !control.contains_key(*name))
    }
}

impl Entry {
    /// The name of the test, or what its name begins with and `*`.
    pub fn name(&self) -> &str {
        &self.name
    }
}

#[test]
fn reports_are_read_wherever_they_begin() {
    let output = "log\n\x16=== RUN   TestA\nno end of line\x16--- PASS: TestA (0.01s)\n\x16=== RUN   TestB\n\x16=== RUN   TestB/part\n\
        \x16--- FAIL: TestB (1.00s)\n    \x16--- FAIL: TestB/part (0.50s)\n\x16=== RUN   TestC\n\x16=== PAUSE TestC\n\x16=== RUN   TestD\n\x16=== PAUSE TestD\n\x16=== CONT  TestC\npanic: broken\n";
    let expected = [("TestA", Outcome::Passed), ("TestB", Outcome::Failed), ("TestC", Outcome::Unfinished)];
    assert_eq!(parse(output), expected.map(|(name, outcome)| (name.to_owned(), outcome)).into());
}

#[test]
fn what_is_left_out_is_found_by_its_name() {
    let entry = |name: &str, how| Entry { suite: "cri".into(), name: name.into(), how, reason: "so".into() };
    let parts = entry("TestC/part", How::NotRun);
    let list =
        LeftOut(vec![entry("TestA*", How::NotRun), entry("TestB", How::Fails), parts, entry("TestD", How::MayFail)]);
    assert_eq!(list.skipped("cri", true), ["^TestA.*$", "^TestC$/^part$"]);
    assert_eq!(list.skipped("cri", false), ["^TestA.*$"]);
    assert_eq!(list.failing("cri").collect::<Vec<_>>(), ["TestB", "TestD"]);
    assert_eq!(list.reason("cri", "TestAny"), Some(("so", true)));
    assert_eq!(list.reason("cri", "TestB"), Some(("so", false)));
    assert_eq!((list.reason("cri", "TestC"), list.reason("client", "TestB")), (None, None));
}
