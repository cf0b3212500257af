//! What a sandbox remembers of each container, and how it takes that away again.

use std::path::Path;

use tokio::{sync::watch, task::JoinHandle};

use super::Sandbox;
use crate::{Error, Result, machine::Outcome};

/// What copies a process's input.
pub(super) type Input = Option<JoinHandle<()>>;

/// One container.
#[derive(Default)]
pub(super) struct Member {
    /// What is attached for it below the shared directory.
    pub(super) shares: Vec<String>,
    /// For a pod's sandbox container: tells its end.
    pub(super) pause: Option<watch::Sender<Option<Outcome>>>,
}

impl Sandbox {
    /// Takes a name for a container.
    pub(super) fn admit(&self, id: &str) -> Result<()> {
        let mut members = self.members.borrow_mut();
        if members.contains_key(id) {
            return Err(Error::State(format!("a container {id:?} exists already in this sandbox")));
        }
        members.insert(id.into(), Member::default());
        Ok(())
    }

    /// Has a process's input end with the process, whose caller may keep it open.
    pub(super) fn keep_input(&self, container: &str, exec: Option<&str>, input: Input) {
        let (Some(input), Ok(ending)) = (input, self.machine.ending(container, exec)) else { return };
        let stop = input.abort_handle();
        tokio::task::spawn_local(async move {
            let _ended = crate::machine::ended(ending).await;
            stop.abort();
        });
    }

    /// Takes away what was there for a container on the host.
    pub(super) async fn vacate(&self, id: &str) {
        let Some(member) = self.members.borrow_mut().remove(id) else { return };
        for share in member.shares {
            if let Err(error) = self.shared.detach(Path::new(&share)) {
                eprintln!("{}", crate::error::chain(&error));
            }
        }
    }
}
