//! When each step of a start was finished, on one clock; and what is made of that: spans, a table, a picture, traces.

mod late;
mod otlp;
mod spans;
mod svg;

use std::{path::Path, time::SystemTime};

use serde::{Deserialize, Serialize};

pub use self::spans::{Phase, Span};
pub(crate) use self::{late::late, otlp::Tracer};
use crate::{Result, steps, store::StateDir};

/// File in the state directory.
pub const FILE: &str = "timeline.json";

/// Steps that are kept: those of the machine and of its first containers. A pod may start containers for months.
const MOST_STEPS: usize = 64;

/// Longest name of a step, bytes.
const MOST_LETTERS: usize = 64;

/// One finished step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// Who did it: `host`, `vmm` or `guest`.
    pub actor: String,
    /// What was finished.
    pub name: String,
    /// The host's `CLOCK_MONOTONIC`, nanoseconds since the caller's command began.
    pub at_ns: u64,
}

/// The steps of one start.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Timeline {
    begun_ns: u64,
    /// When the caller's command began, nanoseconds since 1970.
    #[serde(default)]
    begun_unix_ns: u64,
    /// In the order of their time.
    pub steps: Vec<Step>,
    /// The last lines of the guest's console, if the start was given up.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub console: Vec<String>,
    /// How many of the steps the file has.
    #[serde(skip)]
    saved: usize,
}

/// `CLOCK_MONOTONIC`, nanoseconds: by which callers say when they began.
pub fn now_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

impl Timeline {
    pub(crate) fn new(begun_ns: u64) -> Self {
        let unix = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_nanos() as u64;
        let begun_unix_ns = unix.saturating_sub(now_ns().saturating_sub(begun_ns));
        Self { begun_ns, begun_unix_ns, ..Self::default() }
    }

    /// Notes that something was finished just now.
    pub(crate) fn mark(&mut self, name: &str) {
        steps::passed(name);
        self.mark_at("host", name, now_ns());
    }

    /// Notes that something was finished at a moment of `CLOCK_MONOTONIC`.
    pub(crate) fn mark_at(&mut self, actor: &str, name: &str, at_ns: u64) {
        if self.steps.len() >= MOST_STEPS {
            return;
        }
        // The guest names its own steps.
        let name = hypervisor::printable(name, MOST_LETTERS);
        self.steps.push(Step { actor: actor.into(), name, at_ns: at_ns.saturating_sub(self.begun_ns) });
    }

    /// Adds the guest's stages. Its clock is tied to ours by one reply: `guest_now_ns` was read there at about `here_ns` here.
    pub(crate) fn mark_guest(&mut self, stages: &[agent_api::Stage], guest_now_ns: u64, here_ns: u64) {
        for stage in stages {
            let ago = guest_now_ns.saturating_sub(stage.at_ns);
            self.mark_at("guest", &stage.name, here_ns.saturating_sub(ago));
        }
    }

    /// Brings the steps into the order of their time.
    pub(crate) fn sort(&mut self) {
        self.steps.sort_by_key(|step| step.at_ns);
    }

    pub(crate) fn save(&mut self, dir: &StateDir) -> Result<()> {
        if self.saved == self.steps.len() && self.console.is_empty() {
            return Ok(());
        }
        self.sort();
        let json = serde_json::to_vec(self).map_err(|e| crate::Error::io("encode the timeline", e))?;
        dir.replace(FILE, &json)?;
        self.saved = self.steps.len();
        Ok(())
    }

    /// Reads the timeline of a container from its state directory.
    ///
    /// # Errors
    /// [`crate::Error::Io`].
    pub fn load(dir: &Path) -> Result<Self> {
        let path = dir.join(FILE);
        let failed = |e: std::io::Error| crate::Error::io(format!("read {}", path.display()), e);
        serde_json::from_slice(&std::fs::read(&path).map_err(failed)?).map_err(|e| failed(e.into()))
    }

    /// The lines of a table: what was finished when, and how long it took.
    pub fn table(&self) -> Vec<String> {
        let mut lines =
            vec![format!("{:<10} {:<8} {:<24} {:>10} {:>10}", "PHASE", "ACTOR", "STEP", "AT MS", "TOOK MS")];
        lines.extend(self.spans().iter().filter(|span| span.step.is_some()).map(|span| {
            let (at, took) = (span.end_ns as f64 / 1e6, (span.end_ns - span.start_ns) as f64 / 1e6);
            let (actor, name) = span.step.as_ref().map_or(("", ""), |step| (&step.actor, &step.name));
            format!("{:<10} {actor:<8} {name:<24} {at:>10.1} {took:>10.1}", span.phase.name())
        }));
        lines
    }

    /// A picture of it, as SVG.
    pub fn svg(&self) -> String {
        svg::draw(&self.spans())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn usual() -> Timeline {
        let mut timeline = Timeline { begun_unix_ns: 1_700_000_000_000_000_000, ..Timeline::default() };
        for (ms, actor, name) in [
            (2, "host", "host-started"),
            (3, "host", "network-mirrored"),
            (5, "host", "virtio-fs-started"),
            (9, "vmm", "qemu-spawned"),
            (40, "vmm", "qemu-running"),
            (900, "guest", "agent-started"),
            (950, "guest", "channel-open"),
            (960, "host", "agent-answered"),
            (970, "host", "network-configured"),
            (971, "host", "machine-fits"),
            (1100, "host", "container-created"),
        ] {
            timeline.mark_at(actor, name, ms * 1_000_000);
        }
        timeline
    }

    #[test]
    fn guest_stages_are_placed_before_the_reply_that_carried_them() {
        let mut timeline = Timeline::new(1_000);
        let stage = agent_api::Stage { name: "agent-started".into(), at_ns: 40 };
        timeline.mark_guest(&[stage], 100, 5_000);
        assert_eq!(timeline.steps[0].at_ns, 3_940);
    }

    #[test]
    fn it_does_not_grow_for_ever() {
        let mut timeline = Timeline::new(0);
        (0..1_000).for_each(|_| timeline.mark("container-created"));
        assert_eq!(timeline.steps.len(), MOST_STEPS);
    }

    #[test]
    fn the_table_says_when_and_how_long() {
        let table = usual().table();
        assert_eq!(table.len(), 12);
        assert_eq!(table[6], "kernel     guest    agent-started                 900.0      860.0");
    }

    #[test]
    fn a_file_of_an_older_version_is_read() {
        let timeline: Timeline = serde_json::from_str(r#"{"begun_ns":1,"steps":[]}"#).unwrap();
        assert!(timeline.table().len() == 1 && timeline.spans().is_empty());
    }
}
