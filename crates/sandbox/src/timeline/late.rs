//! What to say of a start that was given up because its time was over: which step hangs.

use super::{Timeline, now_ns};
use crate::{Error, store::StateDir};

impl Timeline {
    /// What has not been finished, by what was finished last.
    fn hanging(&self) -> &'static str {
        match self.steps.iter().max_by_key(|step| step.at_ns).map(|step| step.name.as_str()) {
            None | Some("host-started" | "network-mirrored") => "setting up the host's side",
            Some("virtio-fs-started" | "qemu-spawned" | "qemu-qmp-ready") => "the virtual machine monitor",
            Some("qemu-running") => "the guest's kernel, or the agent before it opens its channel",
            Some("qemu-channel-opened" | "channel-open") => "the agent in the guest",
            Some("agent-answered") => "telling the agent of pod and network",
            Some("machine-fits") => "the agent, which creates the container",
            Some("container-created") => "the agent, which starts the container",
            Some(_) => "fitting the machine to the container",
        }
    }

    fn hint(&self) -> String {
        let elapsed = now_ns().saturating_sub(self.begun_ns);
        let last = self.steps.iter().max_by_key(|step| step.at_ns);
        let last = last.map_or_else(String::new, |step| {
            let seconds = |ns: u64| ns as f64 / 1e9;
            format!(
                "; the last finished step was {} at {:.1} s of {:.1} s",
                step.name,
                seconds(step.at_ns),
                seconds(elapsed)
            )
        });
        format!("what hangs is {}{last}", self.hanging())
    }
}

/// If an error is that the time was over, says where it went, and writes it down for whoever reports it.
pub(crate) fn late(timeline: &mut Timeline, dir: &StateDir, error: Error) -> Error {
    if !matches!(error, Error::Deadline { .. }) {
        return error;
    }
    timeline.sort();
    let message = format!("{}; {}", error.chain(), timeline.hint());
    // What is said is worth more than what could not be written.
    let _lost = timeline.save(dir);
    Error::Late { message, timeline: Box::new(timeline.clone()) }
}

#[cfg(test)]
mod tests {
    use super::{super::tests::usual, *};
    use crate::store::Store;

    #[test]
    fn the_step_that_hangs_is_named_and_the_timeline_is_left_for_the_caller() {
        let root = tempfile::tempdir().unwrap();
        let dir = Store::new(root.path()).reserve("c").unwrap();
        for (steps, hangs) in [
            (0, "setting up the host's side"),
            (4, "the virtual machine monitor"),
            (5, "the guest's kernel, or the agent before it opens its channel"),
            (7, "the agent in the guest"),
            (10, "the agent, which creates the container"),
        ] {
            let mut timeline = usual();
            timeline.steps.truncate(steps);
            let error = Error::Deadline { what: "boot the guest: an answer".into(), seconds: 5 };
            let text = late(&mut timeline, &dir, error).chain();
            let expected = format!("boot the guest: an answer did not happen within 5 s; what hangs is {hangs}");
            assert!(text.starts_with(&expected), "{text}");
            assert_eq!(text.lines().count(), 1);
        }
        assert_eq!(Timeline::load(dir.path()).unwrap().steps.len(), 10);
    }

    #[test]
    fn another_error_stays_as_it_is() {
        let root = tempfile::tempdir().unwrap();
        let dir = Store::new(root.path()).reserve("c").unwrap();
        let error = late(&mut usual(), &dir, Error::State("no".into()));
        assert!(matches!(error, Error::State(_)) && Timeline::load(dir.path()).is_err());
    }
}
