//! What is printed, and how samples become one figure.

use std::time::Duration;

use sandbox::timeline::Timeline;

/// Lines to be printed when no progress line can fall between them.
#[derive(Default)]
pub struct Report(Vec<String>);

impl Report {
    /// Adds a line.
    pub fn line(&mut self, text: impl Into<String>) {
        self.0.push(text.into());
    }

    /// Adds the heads of the columns.
    pub fn head(&mut self, unit: &str, ours: &str, theirs: &str) {
        self.line(format!("{unit:<34} {ours:>10} {theirs:>10} {:>8}", "ratio"));
    }

    /// Adds two durations, in milliseconds, and their ratio.
    pub fn compare(&mut self, what: &str, ours: Duration, theirs: Duration) {
        self.figures(what, milliseconds(ours), milliseconds(theirs));
    }

    /// Adds two figures and their ratio.
    pub fn figures(&mut self, what: &str, ours: f64, theirs: f64) {
        self.line(format!("{what:<34} {ours:>10.1} {theirs:>10.1} {:>8.2}", ours / theirs));
    }

    /// Adds where the time of a start goes.
    pub fn phases(&mut self, of: &str, timeline: &Timeline) {
        self.line("");
        self.line(format!("phases of {of}"));
        timeline.table().into_iter().for_each(|line| self.line(format!("  {line}")));
    }

    /// Prints what there is.
    pub fn print(&mut self) {
        println!();
        self.0.drain(..).for_each(|line| println!("{line}"));
    }
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// The median.
pub fn median<T: PartialOrd + Copy>(samples: &mut [T]) -> T {
    samples.sort_by(|one, other| one.partial_cmp(other).unwrap_or(std::cmp::Ordering::Equal));
    samples[samples.len() / 2]
}
