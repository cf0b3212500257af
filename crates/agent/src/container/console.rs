//! Programs outside of containers, for whoever looks for a fault: only where the configuration of the sandbox allowed that when it was started.

use std::cell::RefCell;
use std::collections::HashMap;
use std::path::Path;
use std::rc::Rc;

use agent_api::{Fault, FaultKind, WindowSize};
use tokio::task::spawn_local;

use super::Process;
use super::child::become_outside;
use super::launch::launch;
use crate::agent::Agent;
use crate::fault::{NOT_STARTED, fault, internal, reason};
use crate::spec::Exec;
use crate::sys::{Cloned, clone3};

/// What a shell may be called, in the order of preference.
const SHELLS: [&str; 2] = ["/bin/bash", "/bin/sh"];

/// Programs that run outside of containers, by their names.
#[derive(Default)]
pub struct Consoles(RefCell<HashMap<String, Rc<Process>>>);

impl Consoles {
    /// One of them.
    ///
    /// # Errors
    /// There is none of that name.
    pub fn get(&self, name: Option<&str>) -> Result<Rc<Process>, Fault> {
        let found = name.and_then(|name| self.0.borrow().get(name).cloned());
        found.ok_or_else(|| fault(FaultKind::NotFound, format!("there is no process {name:?} outside of containers")))
    }

    /// Sets the size of one's terminal.
    ///
    /// # Errors
    /// It is gone, or has no terminal.
    pub fn resize(&self, name: Option<&str>, size: WindowSize) -> Result<(), Fault> {
        self.get(name)?.resize(size)
    }

    /// Signals one.
    ///
    /// # Errors
    /// It is gone.
    pub fn signal(&self, name: Option<&str>, signal: i32) -> Result<(), Fault> {
        let pid = self.get(name)?.pid;
        crate::sys::kill(pid, signal).map_err(|error| internal(format!("signal process {pid}: {}", reason(&error))))
    }
}

/// Starts a program. Returns once it has become the one that was asked for; without one it is a shell.
///
/// # Errors
/// It is not allowed, or there is no such program.
pub async fn run(agent: &Rc<Agent>, request: Exec) -> Result<Rc<Process>, Fault> {
    if !agent.options.debug_console {
        return Err(fault(
            FaultKind::InvalidState,
            "programs outside of containers are not allowed in this sandbox: set debug_console_enabled = true in [agent.kata] of the \
             configuration and start it anew",
        ));
    }
    let Exec { container: _, id, mut process, stdio } = request;
    if process.args.is_empty() {
        let shell = SHELLS.iter().find(|shell| Path::new(shell).exists()).ok_or_else(|| {
            fault(
                FaultKind::NotFound,
                format!(
                    "the guest image has no shell ({}): name a program that it has, or use an image with a system in it, as \
                     `kata-osbuilder build --source debian` makes it",
                    SHELLS.join(", ")
                ),
            )
        })?;
        process.args = vec![(*shell).to_owned()];
    }
    let streams = agent.tokens.claim(&stdio, process.terminal).await?;
    let started = launch(agent, streams, process.terminal, |wiring, child_end| match clone3(0, None) {
        Ok(Cloned::Child) => become_outside(&process, wiring, child_end),
        Ok(Cloned::Parent(pid)) => Ok(pid),
        Err(error) => Err(internal(format!("{NOT_STARTED}clone3: {}", reason(&error)))),
    })
    .await?;
    agent.consoles.0.borrow_mut().insert(id.clone(), started.clone());
    let (agent, mut exit) = (agent.clone(), started.exit.clone());
    spawn_local(async move {
        exit.ended().await;
        agent.consoles.0.borrow_mut().remove(&id);
    });
    Ok(started)
}
