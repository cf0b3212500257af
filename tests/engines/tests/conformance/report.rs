//! The table of what came out.

use std::{fmt, fs, path::Path};

use crate::{
    results::{Entry, Outcome},
    suites::{Suite, directory},
};

/// What all cases of a file are called together, before their number.
const ALL: &str = "all ";

fn cases(name: &str) -> usize {
    name.strip_prefix(ALL).and_then(|number| number.parse().ok()).unwrap_or(1)
}

/// A case, or all those of a file.
pub struct Row {
    pub file: String,
    pub case: String,
    pub control: Option<Outcome>,
    pub ours: Option<Outcome>,
    pub left_out: Option<Entry>,
}

impl Row {
    /// A file of which nothing is run.
    pub fn whole_file(file: &str, cases: usize, entry: &Entry) -> Self {
        let case = format!("{ALL}{cases}");
        Self { file: file.into(), case, control: None, ours: None, left_out: Some(entry.clone()) }
    }

    /// How many cases it stands for.
    fn cases(&self) -> usize {
        cases(&self.case)
    }

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
    rows.iter().filter(|row| what(row)).map(Row::cases).sum()
}

/// One line for a suite.
pub fn summary(suite: &Suite, rows: &[Row]) -> String {
    let passed = |outcome: Option<Outcome>| outcome == Some(Outcome::Passed);
    format!(
        "{}: {} cases; {} pass with {}, {} with ours, {} with both; {} are left out",
        suite.name,
        count(rows, |_| true),
        count(rows, |row| passed(row.control)),
        suite.control,
        count(rows, |row| passed(row.ours)),
        count(rows, |row| passed(row.control) && passed(row.ours)),
        count(rows, |row| row.left_out.is_some()),
    )
}

/// Puts the rows of a file among those of its suite in the document, in place of those that it had.
pub fn write(suite: &Suite, file: &str, rows: &[Row]) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/oci-conformance.md");
    let text = fs::read_to_string(&path).unwrap();
    let [begin, end] = ["begin", "end"].map(|word| format!("<!-- {word} {} -->\n", suite.name));
    let (before, rest) = text.split_once(&begin).unwrap_or_else(|| panic!("{} has no {begin}", path.display()));
    let (table, after) = rest.split_once(&end).unwrap_or_else(|| panic!("{} has no {end}", path.display()));
    let own = format!("| {file} |");
    let others = table.lines().skip_while(|line| !line.starts_with("| ---")).skip(1);
    let mut lines: Vec<String> = others.filter(|line| !line.starts_with(&own)).map(Into::into).collect();
    for row in rows.iter().filter(|row| row.file == file) {
        let why = row.left_out.as_ref().map_or("", |entry| &entry.reason);
        let [case, why] = [&row.case, why].map(|text| text.replace('|', "\\|"));
        lines.push(format!("{own} {case} | {} | {} | {why} |", shown(row.control), shown(row.ours)));
    }
    // The order of the cases in a file stays.
    lines.sort_by_key(|line| line.split(" | ").next().unwrap_or_default().to_owned());
    let version = fs::read_to_string(directory().join(suite.name).join(".version")).unwrap();
    let table = format!(
        "{} ({}).\n\n| file | case | {} | ours | why |\n| --- | --- | --- | --- | --- |\n{}\n",
        totals(suite, &lines),
        version.trim(),
        suite.control,
        lines.join("\n")
    );
    fs::write(&path, format!("{before}{begin}{table}{end}{after}")).unwrap();
}

fn totals(suite: &Suite, lines: &[String]) -> String {
    let outcome = |line: &str, from_end: usize| line.rsplit(" | ").nth(from_end).unwrap_or_default() == "pass";
    let count = |what: &dyn Fn(&String) -> bool| -> usize {
        lines.iter().filter(|line| what(line)).map(|line| cases(line.split(" | ").nth(1).unwrap_or_default())).sum()
    };
    format!(
        "{} cases; {} pass with {}, {} with ours, {} with both; {} are left out",
        count(&|_| true),
        count(&|line| outcome(line, 2)),
        suite.control,
        count(&|line| outcome(line, 1)),
        count(&|line| outcome(line, 2) && outcome(line, 1)),
        count(&|line| !line.ends_with("|  |"))
    )
}
