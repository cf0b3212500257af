//! How the tests of other projects end.

use std::{collections::BTreeMap, fmt};

/// How a test ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Well.
    Passed,
    /// Badly.
    Failed,
    /// The test found that it does not apply.
    Skipped,
    /// It never reported its end: it hung, or the program broke down.
    Unfinished,
}

impl fmt::Display for Outcome {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.pad(match self {
            Self::Passed => "pass",
            Self::Failed => "FAIL",
            Self::Skipped => "skip",
            Self::Unfinished => "HANG",
        })
    }
}

/// The outcome of each test by its name.
pub type Outcomes = BTreeMap<String, Outcome>;
