//! Steps as spans: each begins where the one before it ended, and belongs to a phase.

use serde::Serialize;

use super::{Step, Timeline};

/// Whose time it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Until a process hosts the sandbox: the command line, its checks and hooks; or containerd's shim.
    Caller,
    /// Network, shared directory, file server.
    Host,
    /// The virtual machine monitor until the guest runs.
    Vmm,
    /// The guest's kernel until its first program.
    Kernel,
    /// The agent until it has answered and has been told of pod and network.
    Agent,
    /// Creating and starting containers.
    Container,
}

impl Phase {
    /// All of them, in the order of a start.
    pub const ALL: [Self; 6] = [Self::Caller, Self::Host, Self::Vmm, Self::Kernel, Self::Agent, Self::Container];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Caller => "caller",
            Self::Host => "host",
            Self::Vmm => "vmm",
            Self::Kernel => "kernel",
            Self::Agent => "agent",
            Self::Container => "container",
        }
    }

    /// To which the time before the end of a step belongs.
    pub(super) fn of(step: &Step) -> Self {
        match (step.actor.as_str(), step.name.as_str()) {
            ("vmm", "qemu-channel-opened") => Self::Agent,
            ("vmm", _) => Self::Vmm,
            ("guest", "agent-started") => Self::Kernel,
            ("guest", _) | (_, "agent-answered" | "pod-configured" | "network-configured") => Self::Agent,
            (_, "host-started") => Self::Caller,
            (_, "network-mirrored" | "virtio-fs-started") => Self::Host,
            _ => Self::Container,
        }
    }
}

/// A stretch of time, nanoseconds since the caller's command began.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Span {
    /// Whose it is.
    pub phase: Phase,
    /// The step that ended with it; none for a whole phase.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub step: Option<Step>,
    /// Its beginning.
    pub start_ns: u64,
    /// Its end.
    pub end_ns: u64,
}

impl Timeline {
    /// The phases, each before its steps, by the time of their beginning.
    pub fn spans(&self) -> Vec<Span> {
        let mut steps = self.steps.clone();
        steps.sort_by_key(|step| step.at_ns);
        let mut before = 0;
        let steps: Vec<Span> = steps
            .into_iter()
            .map(|step| {
                let start_ns = std::mem::replace(&mut before, step.at_ns);
                Span { phase: Phase::of(&step), start_ns, end_ns: step.at_ns, step: Some(step) }
            })
            .collect();
        let mut spans = Vec::new();
        for phase in Phase::ALL {
            let of_phase: Vec<&Span> = steps.iter().filter(|span| span.phase == phase).collect();
            let (Some(first), Some(last)) = (of_phase.first(), of_phase.last()) else { continue };
            spans.push(Span { phase, step: None, start_ns: first.start_ns, end_ns: last.end_ns });
            spans.extend(of_phase.into_iter().cloned());
        }
        spans
    }
}

#[cfg(test)]
mod tests {
    use super::{super::tests::usual, *};

    #[test]
    fn every_phase_has_its_steps_and_they_leave_no_gap() {
        let spans = usual().spans();
        let phases: Vec<_> = spans.iter().filter(|span| span.step.is_none()).collect();
        let ms = |span: &Span| (span.phase.name(), span.start_ns / 1_000_000, span.end_ns / 1_000_000);
        assert_eq!(
            phases.into_iter().map(ms).collect::<Vec<_>>(),
            [
                ("caller", 0, 2),
                ("host", 2, 5),
                ("vmm", 5, 40),
                ("kernel", 40, 900),
                ("agent", 900, 970),
                ("container", 970, 1100)
            ]
        );
        let mut steps: Vec<_> = spans.iter().filter(|span| span.step.is_some()).collect();
        steps.sort_by_key(|span| span.start_ns);
        assert!(steps.windows(2).all(|pair| pair[0].end_ns == pair[1].start_ns));
        assert_eq!(steps.len(), 11);
    }
}
