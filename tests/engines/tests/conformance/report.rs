//! The table of what came out.

use std::{fmt, fs, path::Path};

use crate::{
    results::{Entry, Outcome},
    suites::{Suite, directory},
};

/// A case.
pub struct Row {
    pub file: String,
    pub case: String,
    pub control: Option<Outcome>,
    pub ours: Option<Outcome>,
    pub left_out: Option<Entry>,
}

impl Row {
    /// How it is called in messages.
    pub fn name(&self) -> String {
        format!("{}: {}", self.file, self.case)
    }

    /// Whether it passes with the control and not with ours, and nobody said why.
    pub fn is_wrong(&self) -> bool {
        self.left_out.is_none()
            && self.control == Some(Outcome::Passed)
            && self.ours.is_some_and(|outcome| outcome != Outcome::Passed)
    }

    fn note(&self) -> String {
        match &self.left_out {
            Some(_) if self.ours == Some(Outcome::Passed) => "is left out, and passes: take it off the list".into(),
            Some(entry) if entry.untried => format!("not run: {}", entry.reason),
            Some(entry) => format!("left out: {}", entry.reason),
            None if self.is_wrong() => "WRONG".into(),
            None => String::new(),
        }
    }
}

fn shown(outcome: Option<Outcome>) -> String {
    outcome.map_or("-".into(), |outcome| outcome.to_string())
}

impl fmt::Display for Row {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(to, "{:70} {:6} {:6} {}", self.name(), shown(self.control), shown(self.ours), self.note())
    }
}

fn count(rows: &[Row], what: impl Fn(&Row) -> bool) -> usize {
    rows.iter().filter(|row| what(row)).count()
}

/// One line for a suite.
pub fn summary(suite: &Suite, rows: &[Row]) -> String {
    let passed = |outcome: Option<Outcome>| outcome == Some(Outcome::Passed);
    format!(
        "{}: {} cases; {} pass with {}, {} with ours, {} with both; {} are left out",
        suite.name,
        rows.len(),
        count(rows, |row| passed(row.control)),
        suite.control,
        count(rows, |row| passed(row.ours)),
        count(rows, |row| passed(row.control) && passed(row.ours)),
        count(rows, |row| row.left_out.is_some()),
    )
}

/// Puts the table of a suite between its marks in the document.
pub fn write(suite: &Suite, rows: &[Row]) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/oci-conformance.md");
    let text = fs::read_to_string(&path).unwrap();
    let [begin, end] = ["begin", "end"].map(|word| format!("<!-- {word} {} -->\n", suite.name));
    let (before, rest) = text.split_once(&begin).unwrap_or_else(|| panic!("{} has no {begin}", path.display()));
    let (_, after) = rest.split_once(&end).unwrap_or_else(|| panic!("{} has no {end}", path.display()));
    let version = fs::read_to_string(directory().join(suite.name).join(".version")).unwrap();
    let mut table = format!("{} ({}).\n\n", summary(suite, rows), version.trim());
    table += &format!("| file | case | {} | ours | why |\n| --- | --- | --- | --- | --- |\n", suite.control);
    for row in rows {
        let cell = |text: &str| text.replace('|', "\\|");
        let why = row.left_out.as_ref().map_or("", |entry| &entry.reason);
        table += &format!(
            "| {} | {} | {} | {} | {} |\n",
            row.file,
            cell(&row.case),
            shown(row.control),
            shown(row.ours),
            cell(why)
        );
    }
    fs::write(&path, format!("{before}{begin}{table}{end}{after}")).unwrap();
}
