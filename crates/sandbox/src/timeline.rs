//! When each step of a start was finished, on one clock.

use std::path::Path;

use serde::{Deserialize, Serialize};

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
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Timeline {
    begun_ns: u64,
    /// In the order of their time.
    pub steps: Vec<Step>,
    /// How many of them the file has.
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
        Self { begun_ns, steps: Vec::new(), saved: 0 }
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

    pub(crate) fn save(&mut self, dir: &StateDir) -> Result<()> {
        if self.saved == self.steps.len() {
            return Ok(());
        }
        self.steps.sort_by_key(|step| step.at_ns);
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
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
