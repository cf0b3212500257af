//! What a suite reported, and what is allowed to differ.

use std::path::Path;

pub use engines::outcome::{Outcome, Outcomes};

use crate::report::Row;

/// Reads the Test Anything Protocol.
pub fn parse(output: &str) -> Outcomes {
    let mut outcomes = Outcomes::new();
    for line in output.lines() {
        let (well, rest) = match (line.strip_prefix("ok "), line.strip_prefix("not ok ")) {
            (Some(rest), _) => (true, rest),
            (_, Some(rest)) => (false, rest),
            _ => continue,
        };
        let Some((number, name)) = rest.split_once(' ') else { continue };
        if number.parse::<u32>().is_err() {
            continue;
        }
        let lower = name.to_ascii_lowercase();
        let directive = [" # skip", " #skip"].iter().filter_map(|word| lower.find(word)).min();
        let (name, skipped) = (&name[..directive.unwrap_or(name.len())], directive.is_some());
        let outcome = match (well, skipped) {
            (true, true) => Outcome::Skipped,
            (true, false) => Outcome::Passed,
            (false, _) => Outcome::Failed,
        };
        let name = name.strip_prefix("- ").unwrap_or(name).trim_end();
        outcomes.insert(name.into(), outcome);
    }
    outcomes
}

/// A line of `left-out.txt`.
#[derive(Debug, Clone)]
pub struct Entry {
    suite: String,
    /// One, or several that nothing is run of.
    files: Vec<String>,
    case: String,
    /// Whether it is not even run.
    pub untried: bool,
    /// Why.
    pub reason: String,
}

/// What may differ.
#[derive(Debug)]
pub struct LeftOut(Vec<Entry>);

impl LeftOut {
    /// Reads the list.
    pub fn read() -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("conformance/left-out.txt");
        let text = std::fs::read_to_string(&path).unwrap();
        let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
        let entry = |line: &str| {
            let fields: Vec<&str> = line.split(" | ").map(str::trim).collect();
            let [suite, file, case, how, reason] = fields[..] else {
                panic!(
                    "{}: expected `SUITE | FILE | CASE | not-run or fails | REASON`, found {line:?}",
                    path.display()
                );
            };
            assert!(["not-run", "fails"].contains(&how) && !reason.is_empty(), "{}: {line:?}", path.display());
            let files: Vec<String> = file.split(' ').map(Into::into).collect();
            let [suite, case, reason] = [suite, case, reason].map(Into::into);
            Entry { suite, files, case, untried: how == "not-run", reason }
        };
        Self(lines.map(entry).collect())
    }

    /// The entry of a case.
    pub fn find(&self, suite: &str, file: &str, case: &str) -> Option<&Entry> {
        let named = |entry: &&Entry| entry.case == case || entry.case == "*";
        self.0.iter().filter(|entry| entry.suite == suite && entry.files.iter().any(|of| of == file)).find(named)
    }

    /// Why nothing of a file is run.
    pub fn whole_file(&self, suite: &str, file: &str) -> Option<&Entry> {
        self.find(suite, file, "*").filter(|entry| entry.untried)
    }

    /// What is listed but was not there.
    pub fn stale(&self, suite: &str, rows: &[Row]) -> Vec<String> {
        let there =
            |file: &str, case: &str| rows.iter().any(|row| row.file == file && (row.case == case || case == "*"));
        let all = self
            .0
            .iter()
            .filter(|entry| entry.suite == suite)
            .flat_map(|entry| entry.files.iter().map(move |file| (file, &entry.case)));
        all.filter(|(file, case)| !there(file, case)).map(|(file, case)| format!("{file} | {case}")).collect()
    }
}

#[test]
fn reports_are_read() {
    let output = "1..4\nok 1 runc -h\nnot ok 2 runc run [a # b]\n# (in test file x)\nok 3 x # skip test requires criu, see #1\nok 1 - mount-ro\n\
        ok 1 - userns #SKIP\nok then\n";
    let expected = [
        ("runc -h", Outcome::Passed),
        ("runc run [a # b]", Outcome::Failed),
        ("x", Outcome::Skipped),
        ("mount-ro", Outcome::Passed),
        ("userns", Outcome::Skipped),
    ];
    assert_eq!(parse(&output.replace("[a # b]", "[a b]")), expected.map(|(n, o)| (n.replace("# ", ""), o)).into());
}
