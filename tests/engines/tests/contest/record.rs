//! What tests came to, kept in files as they end, so that a run that was interrupted can be resumed.

use std::{env, fs, path::PathBuf};

use engines::Handler;

use crate::results::{Outcome, Outcomes};

/// The outcomes of a suite with a runtime.
pub struct Record {
    name: String,
    outcomes: Outcomes,
    /// Those that need not be run again.
    done: Vec<String>,
    logs: usize,
    /// Parts of a suite do not replace the record of the whole.
    whole: bool,
}

fn directory() -> PathBuf {
    let directory = env::var_os("KATA_CONTEST_LOGS").map(PathBuf::from);
    let directory = directory.unwrap_or_else(|| PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("contest"));
    fs::create_dir_all(&directory).unwrap();
    directory
}

/// Keeps a file where `KATA_CONTEST_LOGS` says.
pub fn keep(name: &str, text: &str) -> PathBuf {
    let path = directory().join(name);
    fs::write(&path, text).unwrap();
    path
}

impl Record {
    /// A new one, or the one that is there if it is to be resumed.
    pub fn open(suite: &str, handler: Handler, only: Option<&str>) -> Self {
        let name = format!("{suite}-{}", handler.name());
        let mut record = Self { name, outcomes: Outcomes::new(), done: Vec::new(), logs: 0, whole: only.is_none() };
        if env::var_os("KATA_CONTEST_RESUME").is_some() && record.whole {
            let text = fs::read_to_string(record.path()).unwrap_or_default();
            let well =
                read(&text).into_iter().filter(|(_, outcome)| matches!(outcome, Outcome::Passed | Outcome::Skipped));
            record.outcomes = well.collect();
            record.done = record.outcomes.keys().cloned().collect();
        }
        record
    }

    fn path(&self) -> PathBuf {
        directory().join(format!("{}.outcomes", self.name))
    }

    /// The tests that were found to have ended well before.
    pub fn done(&self) -> impl Iterator<Item = &str> {
        self.done.iter().map(String::as_str)
    }

    /// All that is known.
    pub fn outcomes(&self) -> &Outcomes {
        &self.outcomes
    }

    /// All that is known, in the end.
    pub fn into_outcomes(self) -> Outcomes {
        self.outcomes
    }

    /// Takes what a run knows so far.
    pub fn note(&mut self, outcomes: &Outcomes) {
        let mut changed = false;
        for (name, outcome) in outcomes {
            if self.outcomes.insert(name.clone(), *outcome) != Some(*outcome) {
                changed = true;
                if *outcome != Outcome::Unfinished {
                    println!("{}: {name} {outcome}", self.name);
                }
            }
        }
        if changed && self.whole {
            let text: String = self.outcomes.iter().map(|(name, outcome)| format!("{name} {outcome}\n")).collect();
            keep(&format!("{}.outcomes", self.name), &text);
        }
    }

    /// Keeps the output of a run.
    pub fn keep_log(&mut self, text: &str) -> PathBuf {
        self.logs += 1;
        keep(&format!("{}-{}.log", self.name, self.logs), text)
    }
}

fn read(text: &str) -> Outcomes {
    let outcome = |word: &str| {
        [Outcome::Passed, Outcome::Failed, Outcome::Skipped, Outcome::Unfinished]
            .into_iter()
            .find(|outcome| outcome.to_string() == word)
    };
    let lines = text.lines().filter_map(|line| line.split_once(' '));
    lines.filter_map(|(name, word)| Some((name.to_owned(), outcome(word)?))).collect()
}

#[test]
fn a_record_is_read_as_it_was_written() {
    let outcomes = read("TestA pass\nTestB FAIL\nTestC HA");
    assert_eq!(
        outcomes,
        [("TestA", Outcome::Passed), ("TestB", Outcome::Failed)].map(|(n, o)| (n.to_owned(), o)).into()
    );
}
