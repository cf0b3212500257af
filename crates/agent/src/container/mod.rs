//! Containers and their processes.
//!
//! A container goes through these phases, and never back:
//!
//! ```text
//!            create            start              its first process ends
//! (nothing) ───────▶ Created ───────▶ Running ───────▶ Stopped
//!                       └──────────────────────────────▶ (killed before it was started)
//! ```
//!
//! While it is being created its name is taken but nothing can be done with it; if that fails, nothing of it stays. `delete`
//! is possible in every phase and kills what runs. Paused is not a phase but a property of the cgroup.
//!
//! * [`mod@create`] and [`mod@exec`] make processes; what these do until they become the user's program is in [`child`], and what the
//!   two sides say to each other meanwhile in [`status`].
//! * [`rootfs`], [`mount`], [`mount_options`], [`devices`], [`in_root`], [`copy_up`] make the root file system.
//! * [`cgroup`], [`resources`], [`device_cgroup`], [`mod@update`] limit what it may use; [`statistics`] says what it does use.
//! * [`console`] runs programs outside of containers, where that is allowed.
//! * [`namespaces`], [`capabilities`], [`rlimits`], [`user`], [`sysctl`], [`lookup`] are about single processes.

mod capabilities;
mod cgroup;
mod child;
mod console;
mod copy_up;
mod create;
mod device_cgroup;
mod devices;
mod exec;
mod hooks;
mod in_root;
mod launch;
mod lookup;
mod mount;
mod mount_options;
mod namespaces;
mod processes;
mod resources;
mod rlimits;
mod rootfs;
mod statistics;
pub mod status;
pub mod sysctl;
mod update;
mod user;

pub use capabilities::limit_to_none as limit_to_no_capabilities;
pub use console::{Consoles, run as run_outside};
pub use create::{create, start};
pub use exec::exec;
pub use mount::{attach, open_source};
pub use mount_options::{MountOptions, parse as parse_options};
pub use namespaces::{Join, Own as OwnNamespaces, Shared, owner};
pub use rootfs::{empty_tmpfs, pivot};
pub use update::update;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::rc::{Rc, Weak};
use std::time::Duration;

use agent_api::statistics::Statistics;
use agent_api::{Event, Fault, FaultKind, ProcessInfo, SeccompFilter, WindowSize};
use tokio::task::JoinHandle;

use crate::agent::Agent;
use crate::events::Events;
use crate::fault::{fault, internal, invalid, reason};
use crate::io::Pollable;
use crate::reaper::ExitWatch;
use crate::storage;
use crate::tokens::within;
use cgroup::Cgroup;
use namespaces::Namespaces;
use status::AgentEnd;

/// How long a killed process may take to end.
const KILL_DEADLINE: Duration = Duration::from_secs(10);

/// A process of a container that the host knows.
pub struct Process {
    /// Its id in the guest's first pid namespace.
    pub pid: u32,
    /// Tells its end.
    pub exit: ExitWatch,
    /// Its terminal, while somebody uses it.
    terminal: RefCell<Weak<Pollable>>,
}

impl Process {
    /// Sets the size of its terminal.
    ///
    /// # Errors
    /// When it has none.
    pub fn resize(&self, size: WindowSize) -> Result<(), Fault> {
        let terminal = self.terminal.borrow().upgrade();
        let terminal = terminal.ok_or_else(|| fault(FaultKind::InvalidState, "the process has no terminal"))?;
        crate::tty::resize(terminal.fd(), size)
    }
}

/// A container that has been created.
pub struct Container {
    /// Its name.
    pub id: String,
    /// Its first process.
    pub init: Rc<Process>,
    /// Stands for the first process when its namespaces are joined.
    pidfd: OwnedFd,
    cgroup: Cgroup,
    namespaces: Namespaces,
    seccomp: Option<SeccompFilter>,
    /// The first process waits at the other end of this to be started.
    unstarted: RefCell<Option<AgentEnd>>,
    /// What of the host is bound into it.
    shared: Vec<PathBuf>,
    /// How long its hooks may take.
    patience: std::time::Duration,
    paused: Cell<bool>,
    execs: RefCell<HashMap<String, Option<Rc<Process>>>>,
    /// The storages that go with it.
    storages: RefCell<Vec<String>>,
    /// How many of its processes were killed for want of memory, as the host was told.
    oom_kills: Cell<u64>,
    /// The task that watches that number.
    oom_watch: RefCell<Option<JoinHandle<()>>>,
}

impl Container {
    /// Whether the first process has ended.
    pub fn is_stopped(&self) -> bool {
        self.init.exit.status().is_some()
    }

    /// The first process, or a further one by its name.
    fn process(&self, exec: Option<&str>) -> Result<Rc<Process>, Fault> {
        let Some(exec) = exec else { return Ok(self.init.clone()) };
        let found = self.execs.borrow().get(exec).cloned().flatten();
        found.ok_or_else(|| fault(FaultKind::NotFound, format!("container {:?} has no process {exec:?}", self.id)))
    }

    /// Sends a signal to one process, or to all.
    ///
    /// # Errors
    /// When the process has ended.
    pub fn signal(&self, exec: Option<&str>, signal: i32, all: bool) -> Result<(), Fault> {
        if !(0..=64).contains(&signal) {
            return Err(invalid(format!("signal {signal} does not exist, expected 0 to 64")));
        }
        if all {
            return self.cgroup.signal(signal);
        }
        let process = self.process(exec)?;
        if process.exit.status().is_some() {
            return Err(fault(FaultKind::InvalidState, "container not running"));
        }
        // A process that waits to be started has no handlers, and as the init of its pid namespace would not notice the
        // usual ways of ending it.
        let unstarted = exec.is_none() && self.unstarted.borrow().is_some();
        let ends = matches!(signal, libc::SIGHUP | libc::SIGINT | libc::SIGQUIT | libc::SIGTERM);
        let sent = if unstarted && ends { libc::SIGKILL } else { signal };
        // The number is still the process's: it has not been waited for.
        crate::sys::kill(process.pid, sent)
            .map_err(|error| internal(format!("signal {signal} to process {}: {}", process.pid, reason(&error))))
    }

    /// Sets the size of a process's terminal.
    ///
    /// # Errors
    /// When it has none.
    pub fn resize(&self, exec: Option<&str>, size: WindowSize) -> Result<(), Fault> {
        self.process(exec)?.resize(size)
    }

    /// Freezes or thaws all processes.
    ///
    /// # Errors
    /// When the container is not in a state for that, or the kernel does not do it in time.
    pub async fn pause(&self, pause: bool) -> Result<(), Fault> {
        if self.is_stopped() {
            return Err(fault(FaultKind::InvalidState, "container not running"));
        }
        if !pause && !self.paused.get() {
            return Err(fault(FaultKind::InvalidState, "container not paused"));
        }
        self.cgroup.freeze(pause).await?;
        self.paused.set(pause);
        Ok(())
    }

    /// All processes, those included that the host did not start.
    ///
    /// # Errors
    /// When the cgroup cannot be read.
    pub fn processes(&self) -> Result<Vec<ProcessInfo>, Fault> {
        Ok(processes::list(&self.cgroup.processes()?))
    }

    /// What has to be done when the first process has ended: processes in the guest's pid namespace would go on without it.
    pub fn ended(&self) {
        if !self.namespaces.pid {
            // A cgroup that is gone has no processes.
            let _ = self.cgroup.signal(libc::SIGKILL);
        }
    }

    /// What it uses.
    pub fn statistics(&self) -> Statistics {
        statistics::read(self.cgroup.path())
    }

    /// Notes an event if the kernel has killed a process of it for want of memory since the last time.
    pub fn note_out_of_memory(&self, events: &Events) {
        let kills = self.cgroup.oom_kills();
        if kills > self.oom_kills.replace(kills) {
            events.push(Event::OutOfMemory { container: self.id.clone() });
        }
    }

    /// Starts to note such events when they happen.
    fn watch_memory(self: &Rc<Self>, agent: &Rc<Agent>) {
        let Some(memory) = self.cgroup.memory_events() else { return };
        let (agent, container) = (agent.clone(), Rc::downgrade(self));
        let note = move || {
            let container = container.upgrade();
            container.inspect(|container| container.note_out_of_memory(&agent.events)).is_some()
        };
        self.oom_watch.replace(Some(tokio::task::spawn_local(Cgroup::watch_memory(memory, note))));
    }

    async fn remove(&self, agent: &Agent) -> Result<(), Fault> {
        self.cgroup.remove().await?;
        if let Some(watch) = self.oom_watch.take() {
            watch.abort();
        }
        let mut exit = self.init.exit.clone();
        within(KILL_DEADLINE, "the end of the container's first process", exit.ended()).await?;
        let mut storages = self.storages.take();
        let unmounted = storage::unmount(agent, &mut storages).await;
        // For another attempt.
        self.storages.replace(storages);
        unmounted
    }
}

/// Every container of the guest, by name. `None` is one that is being created or deleted.
#[derive(Default)]
pub struct Containers(RefCell<HashMap<String, Option<Rc<Container>>>>);

impl Containers {
    /// Finds a container.
    ///
    /// # Errors
    /// When there is none of that name, or it is being created or deleted.
    pub fn get(&self, id: &str) -> Result<Rc<Container>, Fault> {
        match self.0.borrow().get(id) {
            Some(Some(container)) => Ok(container.clone()),
            Some(None) => Err(busy(id)),
            None => Err(fault(FaultKind::NotFound, format!("container {id:?} does not exist"))),
        }
    }

    /// Takes a name for a container that is about to be created.
    fn reserve(&self, id: &str) -> Result<Reservation<'_>, Fault> {
        if id.is_empty() || id.contains('/') || id.contains('\0') || id == "." || id == ".." {
            return Err(invalid(format!("the container's name is {id:?}, expected one without slashes")));
        }
        let mut containers = self.0.borrow_mut();
        if containers.contains_key(id) {
            return Err(fault(FaultKind::InvalidState, "container with given ID already exists"));
        }
        containers.insert(id.to_owned(), None);
        Ok(Reservation { containers: self, id: id.to_owned(), container: None })
    }

    /// Kills what is left of a container and forgets it.
    ///
    /// # Errors
    /// When it does not exist, or something of it does not go away; then it can be tried again.
    pub async fn delete(&self, agent: &Agent, id: &str) -> Result<(), Fault> {
        let container = self.get(id)?;
        self.0.borrow_mut().insert(id.to_owned(), None);
        let mut reservation = Reservation { containers: self, id: id.to_owned(), container: None };
        // A first process that was never started ends when nobody is left to start it.
        container.unstarted.borrow_mut().take();
        let removed = container.remove(agent).await;
        if removed.is_err() {
            reservation.container = Some(container);
        }
        removed
    }
}

/// A taken name. When it is dropped, the name belongs to the container, or is free if there is none.
struct Reservation<'a> {
    containers: &'a Containers,
    id: String,
    container: Option<Rc<Container>>,
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        let mut containers = self.containers.0.borrow_mut();
        match self.container.take() {
            Some(container) => containers.insert(self.id.clone(), Some(container)),
            None => containers.remove(&self.id),
        };
    }
}

fn busy(id: &str) -> Fault {
    fault(FaultKind::InvalidState, format!("container {id:?} is being created or deleted"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_taken_until_creation_fails() {
        let containers = Containers::default();
        let reservation = containers.reserve("c1").ok().unwrap();
        assert_eq!(containers.reserve("c1").err().unwrap().message, "container with given ID already exists");
        assert_eq!(containers.get("c1").err().unwrap().kind, FaultKind::InvalidState);
        drop(reservation);
        assert_eq!(containers.get("c1").err().unwrap().kind, FaultKind::NotFound);
        assert!(containers.reserve("../x").is_err());
    }
}
