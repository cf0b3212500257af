//! Further processes of running containers.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::rc::Rc;

use agent_api::{Fault, FaultKind};
use rustix::fs::{Mode, OFlags};
use tokio::task::spawn_local;

use super::child::{Further, become_further};
use super::launch::launch;
use super::status::ChildEnd;
use super::{Container, Process};
use crate::agent::Agent;
use crate::boot::{CGROUP_ROOT, CrashPoint};
use crate::fault::{NOT_STARTED, fault, internal, reason};
use crate::io::Wiring;
use crate::spec::Exec;
use crate::sys::{Cloned, clone3};

/// Starts a process in a container. Returns once it has become the user's program.
///
/// # Errors
/// What runc would say.
pub async fn exec(agent: &Agent, request: Exec) -> Result<Rc<Process>, Fault> {
    agent.crash_at(CrashPoint::Exec);
    let Exec { container, id, process, stdio } = request;
    let container = agent.containers.get(&container)?;
    let name = Name::take(&container, &id)?;
    let has_terminal = process.terminal;
    let streams = agent.tokens.claim(&stdio, has_terminal).await?;
    // It may have ended while the streams were waited for.
    check_running(&container)?;
    let further = Further {
        id: &container.id,
        process: &process,
        namespaces: container.namespaces,
        pidfd: &container.pidfd,
        seccomp: container.seccomp.as_ref(),
    };
    let started = launch(agent, streams, has_terminal, |wiring, child_end| {
        fork(agent, &container, &further, wiring, child_end)
            .map_err(|error| internal(format!("{NOT_STARTED}clone3 into the container: {}", reason(&error))))
    })
    .await?;
    name.keep(&started);
    Ok(started)
}

fn check_running(container: &Container) -> Result<(), Fault> {
    if container.is_stopped() {
        return Err(fault(FaultKind::InvalidState, "cannot exec in a stopped container"));
    }
    if container.paused.get() {
        return Err(fault(FaultKind::InvalidState, "cannot exec in a paused container"));
    }
    Ok(())
}

fn fork(
    agent: &Agent,
    container: &Container,
    further: &Further<'_>,
    wiring: &Wiring,
    child_end: &ChildEnd,
) -> std::io::Result<u32> {
    let into = |cgroup: &dyn AsFd| {
        let fork = || match clone3(0, Some(cgroup.as_fd()))? {
            Cloned::Parent(pid) => Ok(pid),
            Cloned::Child => become_further(further, wiring, child_end),
        };
        if container.namespaces.has_pids() { agent.namespaces.forked_into(&container.pidfd, fork) } else { fork() }
    };
    match into(&container.cgroup.dir()) {
        // The container made cgroups below its own, which may have no processes itself any more: go to its first process.
        Err(error) if error.raw_os_error() == Some(libc::EBUSY) => into(&cgroup_of(container.init.pid)?),
        other => other,
    }
}

/// The cgroup that a process is in.
fn cgroup_of(pid: u32) -> std::io::Result<OwnedFd> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
    let path = text.lines().find_map(|line| line.strip_prefix("0::/")).ok_or(std::io::ErrorKind::NotFound)?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::open(Path::new(CGROUP_ROOT).join(path), flags, Mode::empty())?)
}

/// The name of a process that is being started; free again unless it is kept.
struct Name<'a> {
    container: &'a Rc<Container>,
    name: Option<String>,
}

impl<'a> Name<'a> {
    fn take(container: &'a Rc<Container>, name: &str) -> Result<Self, Fault> {
        check_running(container)?;
        let mut execs = container.execs.borrow_mut();
        if execs.contains_key(name) {
            return Err(fault(
                FaultKind::InvalidState,
                format!("container {:?} has a process {name:?} already", container.id),
            ));
        }
        execs.insert(name.to_owned(), None);
        Ok(Self { container, name: Some(name.to_owned()) })
    }

    /// Gives the name to a process until that ends.
    fn keep(mut self, process: &Rc<Process>) {
        let Some(name) = self.name.take() else { return };
        self.container.execs.borrow_mut().insert(name.clone(), Some(process.clone()));
        let (container, mut exit) = (self.container.clone(), process.exit.clone());
        spawn_local(async move {
            exit.ended().await;
            container.execs.borrow_mut().remove(&name);
        });
    }
}

impl Drop for Name<'_> {
    fn drop(&mut self) {
        if let Some(name) = &self.name {
            self.container.execs.borrow_mut().remove(name);
        }
    }
}
