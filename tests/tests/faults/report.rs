//! Every fault at every step, as a table.

use std::{
    collections::VecDeque,
    fmt::Write,
    fs,
    path::{Path, PathBuf},
    sync::Mutex,
};

use crate::{Neighbour, Operation, Outcome, Row, attempt, fault::Fault};

/// How many are tried at a time: most of the time of a fault is waiting.
const WORKERS: usize = 3;
/// Where the table stands in the document.
const MARKS: [&str; 2] = ["<!-- the table begins -->\n", "<!-- the table ends -->\n"];

type Cell = (usize, usize, Result<Outcome, String>);

/// Tries all, or those in whose name is what `KATA_FAULTS` says.
pub fn matrix() {
    let pattern = std::env::var("KATA_FAULTS").unwrap();
    let neighbour = Neighbour::new();
    let rows: Vec<Row> = Operation::ALL.into_iter().flat_map(Operation::rows).collect();
    let all = (0..rows.len()).flat_map(|row| (0..Fault::ALL.len()).map(move |column| (row, column)));
    let chosen =
        |(row, column): &(usize, usize)| pattern == "all" || name(&rows[*row], Fault::ALL[*column]).contains(&pattern);
    let todo: VecDeque<_> = all.filter(chosen).collect();
    let (count, todo, cells) = (todo.len(), Mutex::new(todo), Mutex::new(Vec::<Cell>::new()));
    std::thread::scope(|scope| {
        for _ in 0..WORKERS {
            scope.spawn(|| {
                loop {
                    let next = todo.lock().unwrap().pop_front();
                    let Some((row, column)) = next else { return };
                    let fault = Fault::ALL[column];
                    let tried = if rows[row].can_have(fault) {
                        attempt(&rows[row], fault)
                    } else {
                        Ok((Outcome::Nothing, String::new()))
                    };
                    let tried = tried.and_then(|outcome| neighbour.lives().map(|()| outcome));
                    let said =
                        tried.as_ref().map_or_else(String::as_str, |(_, said)| said.as_str()).trim_end().to_owned();
                    let outcome = tried.map(|(outcome, _)| outcome);
                    let word = outcome.as_ref().map_or("FAILED", |outcome| outcome.word());
                    let mut cells = cells.lock().unwrap();
                    cells.push((row, column, outcome));
                    eprintln!("{}/{count} {}: {word}: {said}", cells.len(), name(&rows[row], fault));
                }
            });
        }
    });
    neighbour.answers();
    let cells = cells.into_inner().unwrap();
    let table = table(&rows, &cells);
    let top = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    fs::write(target(&top).join("faults.md"), &table).unwrap();
    let failed: Vec<_> = cells
        .iter()
        .filter_map(|(row, column, outcome)| Some((name(&rows[*row], Fault::ALL[*column]), outcome.as_ref().err()?)))
        .collect();
    assert!(failed.is_empty(), "{} of {count} failed: {failed:#?}", failed.len());
    if pattern == "all" {
        replace(&top.join("docs/faults.md"), &table);
    }
}

fn target(top: &Path) -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| top.join("target"), PathBuf::from)
}

fn name(row: &Row, fault: Fault) -> String {
    format!("{} / {} / {}", row.operation.name(), row.title(), fault.name())
}

impl Outcome {
    fn word(self) -> &'static str {
        match self {
            Self::Failed => "told",
            Self::Succeeded => "done",
            Self::Nothing => "–",
        }
    }
}

impl Row {
    fn title(&self) -> String {
        if self.nth == 1 { self.step.clone() } else { format!("{} ({})", self.step, self.nth) }
    }
}

fn table(rows: &[Row], cells: &[Cell]) -> String {
    let mut text = String::from("| operation | step |");
    Fault::ALL.iter().for_each(|fault| write!(text, " {} |", fault.name()).unwrap());
    text.push_str("\n| --- | --- |");
    Fault::ALL.iter().for_each(|_| text.push_str(" --- |"));
    text.push('\n');
    for (number, row) in rows.iter().enumerate() {
        write!(text, "| {} | {} |", row.operation.name(), row.title()).unwrap();
        for column in 0..Fault::ALL.len() {
            let cell = cells.iter().find(|(row, of, _)| (*row, *of) == (number, column));
            let word = cell.map_or("", |(_, _, outcome)| outcome.as_ref().map_or("FAILED", |outcome| outcome.word()));
            write!(text, " {word} |").unwrap();
        }
        text.push('\n');
    }
    text
}

/// Puts the table where the last one was.
fn replace(document: &Path, table: &str) {
    let text = fs::read_to_string(document).unwrap();
    let (before, rest) = text.split_once(MARKS[0]).expect("the mark of the table's begin");
    let (_, after) = rest.split_once(MARKS[1]).expect("the mark of the table's end");
    let new = format!("{before}{}\n{table}\n{}{after}", MARKS[0], MARKS[1]);
    if new != text {
        eprintln!("the table in {} is another now", document.display());
        fs::write(document, new).unwrap();
    }
}
