//! What the agent knows: everything that lives as long as it does.

use std::cell::Cell;
use std::time::Duration;

use crate::boot::{CrashPoint, Options, SharedFs, Stages};
use crate::container::{Consoles, Containers, OwnNamespaces};
use crate::events::Events;
use crate::log::Log;
use crate::metrics::Metrics;
use crate::network::GuestNetwork;
use crate::pod::Pod;
use crate::reaper::Reaper;
use crate::storage::Storages;
use crate::tokens::Tokens;

/// The agent's state. There is one, and one thread, so parts that change are cells.
pub struct Agent {
    /// Its log.
    pub log: Log,
    /// Its options.
    pub options: Options,
    /// The stages of the start.
    pub stages: Stages,
    /// The shared file system.
    pub shared: SharedFs,
    /// Streams that wait for calls.
    pub tokens: Tokens,
    /// Who waits for processes.
    pub reaper: Reaper,
    /// The containers.
    pub containers: Containers,
    /// Programs that run outside of them.
    pub consoles: Consoles,
    /// The network.
    pub network: GuestNetwork,
    /// What they share.
    pub pod: Pod,
    /// Their storages.
    pub storages: Storages,
    /// What the host is to be told.
    pub events: Events,
    /// What is counted for metrics.
    pub metrics: Metrics,
    /// The namespaces it was started in.
    pub namespaces: OwnNamespaces,
    /// A host that speaks our version has said hello.
    pub greeted: Cell<bool>,
}

impl Agent {
    /// Aborts if that is what the command line asks for at this step.
    pub fn crash_at(&self, step: CrashPoint) {
        if self.options.crash_at == Some(step) {
            self.log.error(format_args!("aborting, as agent.crash_at asks for at this step: {step:?}"));
            std::process::abort();
        }
    }

    /// Aborts half a second from now if that is what the command line asks for.
    pub fn crash_soon(&self, step: CrashPoint) {
        if self.options.crash_at == Some(step) {
            let log = self.log;
            tokio::task::spawn_local(async move {
                tokio::time::sleep(Duration::from_millis(500)).await;
                log.error(format_args!("aborting, as agent.crash_at asks for at this step: {step:?}"));
                std::process::abort();
            });
        }
    }
}
