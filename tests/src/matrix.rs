//! Every fault at every step of some operations, as a table.

use std::{
    collections::VecDeque,
    fmt::Write,
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use crate::{
    debugger::{Answer, Debugger, Reached},
    fault::{Done, Fault, Process},
};

/// What a caller asks for.
pub trait Operation: Copy + Send + Sync + 'static {
    /// Its name in the table.
    fn name(self) -> &'static str;
}

/// A step of an operation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row<O> {
    /// The operation.
    pub operation: O,
    /// What the product calls it.
    pub step: String,
    /// The how manieth of that name it is.
    pub nth: usize,
    /// Whether it can be made to fail.
    pub may_fail: bool,
    /// Whether the agent is called.
    pub is_call: bool,
    /// Processes that are known then.
    pub there: Vec<Process>,
}

/// What became of an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It failed, and said how.
    Failed,
    /// It succeeded nevertheless.
    Succeeded,
    /// There was nobody, or nothing, to do it to.
    Nothing,
}

/// What came of a fault, and what the caller was told; or what is wrong with it.
pub type Tried = Result<(Outcome, String), String>;

/// What is wrong if something does not hold.
///
/// # Errors
/// That.
pub fn check(holds: bool, otherwise: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(otherwise()) }
}

/// Whether a fault was done: not yet, done to nothing, or done.
pub type Noted = Arc<Mutex<Option<Option<Done>>>>;

impl<O: Operation> Row<O> {
    /// Has every step of `operation` that `debugger` hears of noted from now on. `directory` is the sandbox's.
    pub fn record(operation: O, debugger: &Debugger, directory: PathBuf) -> Arc<Mutex<Vec<Self>>> {
        let rows: Arc<Mutex<Vec<Self>>> = Arc::default();
        let noted = rows.clone();
        debugger.answer(move |Reached { may_fail, step, .. }| {
            let mut rows = noted.lock().unwrap();
            let nth = 1 + rows.iter().filter(|row| row.step == *step).count();
            let (is_call, there) = (*may_fail && !step.starts_with("write "), Process::written_down(&directory));
            rows.push(Self { operation, step: step.clone(), nth, may_fail: *may_fail, is_call, there });
            Answer::Go
        });
        rows
    }

    /// Has `inject` called when `debugger` hears of this step, and the step fail if that is the fault.
    pub fn when_reached(
        &self,
        debugger: &Debugger,
        fault: Fault,
        mut inject: impl FnMut(&Reached) -> Option<Done> + Send + 'static,
    ) -> Noted {
        let noted: Noted = Arc::default();
        let (done, wanted, mut seen) = (noted.clone(), self.clone(), 0);
        debugger.answer(move |reached| {
            seen += usize::from(reached.step == wanted.step);
            if reached.step != wanted.step || seen != wanted.nth {
                return Answer::Go;
            }
            *done.lock().unwrap() = Some(inject(reached));
            if fault == Fault::Error { Answer::Fail } else { Answer::Go }
        });
        noted
    }

    fn title(&self) -> String {
        if self.nth == 1 { self.step.clone() } else { format!("{} ({})", self.step, self.nth) }
    }

    fn name(&self, fault: Fault) -> String {
        format!("{} / {} / {}", self.operation.name(), self.title(), fault.name())
    }
}

/// A table in a document, each of whose columns is a fault.
pub struct Table<'a> {
    /// The columns.
    pub faults: &'a [Fault],
    /// The document, from the top of the repository.
    pub document: &'a str,
    /// The lines that stand before and behind it there.
    pub marks: [&'a str; 2],
    /// How many faults are tried at a time: most of the time of a fault is waiting.
    pub workers: usize,
}

type Cell = (usize, usize, Result<Outcome, String>);

impl Table<'_> {
    /// Tries all, or those in whose name is what `pattern` says, and writes the table if that is `all` and all is well.
    pub fn fill<O: Operation>(&self, pattern: &str, rows: &[Row<O>], attempt: impl Fn(&Row<O>, Fault) -> Tried + Sync) {
        let all = (0..rows.len()).flat_map(|row| (0..self.faults.len()).map(move |column| (row, column)));
        let chosen = |(row, column): &(usize, usize)| {
            pattern == "all" || rows[*row].name(self.faults[*column]).contains(pattern)
        };
        let todo: VecDeque<_> = all.filter(chosen).collect();
        let (count, todo, cells) = (todo.len(), Mutex::new(todo), Mutex::new(Vec::<Cell>::new()));
        std::thread::scope(|scope| {
            for _ in 0..self.workers {
                scope.spawn(|| {
                    loop {
                        let next = todo.lock().unwrap().pop_front();
                        let Some((row, column)) = next else { return };
                        let tried = attempt(&rows[row], self.faults[column]);
                        let said =
                            tried.as_ref().map_or_else(String::as_str, |(_, said)| said.as_str()).trim_end().to_owned();
                        let outcome = tried.map(|(outcome, _)| outcome);
                        let word = outcome.as_ref().map_or("FAILED", |outcome| outcome.word());
                        let mut cells = cells.lock().unwrap();
                        cells.push((row, column, outcome));
                        let name = rows[row].name(self.faults[column]);
                        eprintln!("{}/{count} {name}: {word}: {said}", cells.len());
                    }
                });
            }
        });
        let cells = cells.into_inner().unwrap();
        let table = self.text(rows, &cells);
        let top = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let copy = format!("faults-{}.md", rows.first().map_or("none", |row| row.operation.name()));
        fs::write(target(&top).join(copy), &table).unwrap();
        let wrong = |(row, column, outcome): &Cell| {
            Some((rows[*row].name(self.faults[*column]), outcome.as_ref().err()?.clone()))
        };
        let failed: Vec<_> = cells.iter().filter_map(wrong).collect();
        assert!(failed.is_empty(), "{} of {count} failed: {failed:#?}", failed.len());
        if pattern == "all" {
            self.replace(&top.join(self.document), &table);
        }
    }

    fn text<O: Operation>(&self, rows: &[Row<O>], cells: &[Cell]) -> String {
        let mut text = String::from("| operation | step |");
        self.faults.iter().for_each(|fault| write!(text, " {} |", fault.name()).unwrap());
        text.push_str("\n| --- | --- |");
        self.faults.iter().for_each(|_| text.push_str(" --- |"));
        text.push('\n');
        for (number, row) in rows.iter().enumerate() {
            write!(text, "| {} | {} |", row.operation.name(), row.title()).unwrap();
            for column in 0..self.faults.len() {
                let cell = cells.iter().find(|(row, of, _)| (*row, *of) == (number, column));
                let word =
                    cell.map_or("", |(_, _, outcome)| outcome.as_ref().map_or("FAILED", |outcome| outcome.word()));
                write!(text, " {word} |").unwrap();
            }
            text.push('\n');
        }
        text
    }

    /// Puts the table where the last one was.
    fn replace(&self, document: &Path, table: &str) {
        let text = fs::read_to_string(document).unwrap();
        let [begin, end] = self.marks;
        let (before, rest) = text.split_once(begin).expect("the mark of the table's begin");
        let (_, after) = rest.split_once(end).expect("the mark of the table's end");
        let new = format!("{before}{begin}\n\n{table}\n{end}{after}");
        if new != text {
            eprintln!("the table in {} is another now", document.display());
            fs::write(document, new).unwrap();
        }
    }
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

fn target(top: &Path) -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| top.join("target"), PathBuf::from)
}
