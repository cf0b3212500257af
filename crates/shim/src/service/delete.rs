//! Delete.

use std::{rc::Rc, time::Duration};

use containerd_shim_protos::{
    api::{DeleteRequest, DeleteResponse},
    events::task as events,
};
use tokio::time::timeout;

use super::{
    Pod,
    container::{Container, Kind, Process},
};
use crate::{
    Error, Result,
    state::{Exit, State},
    translate::timestamp,
};

/// How long the output of a process may still take, as containerd's own shim has it.
const DRAIN: Duration = Duration::from_secs(10);
/// How long a killed process may take to end.
const KILL_DEADLINE: Duration = Duration::from_secs(20);

impl Pod {
    /// Forgets a process, or a container with all that is left of it.
    pub(super) async fn delete(self: &Rc<Self>, request: &DeleteRequest) -> Result<DeleteResponse> {
        let container = self.container(&request.id)?;
        let process = container.process(&request.exec_id)?;
        let exit = if request.exec_id.is_empty() {
            self.delete_container(&container).await?
        } else {
            delete_exec(&container, &process).await?
        };
        let mut response = DeleteResponse::new();
        response.pid = Self::pid();
        response.exit_status = exit.status;
        response.exited_at = Some(timestamp(exit.at)).into();
        Ok(response)
    }

    async fn delete_container(self: &Rc<Self>, container: &Rc<Container>) -> Result<Exit> {
        let init = &container.init;
        if init.state.get() == State::Created {
            self.kill_created(container).await?;
        }
        let _turn = init.turn.lock().await;
        // Somebody else may have had the turn before.
        self.container(&container.id)?;
        init.state.get().may_delete()?;
        init.drained(DRAIN, DRAIN).await;
        let machine = self.machine.borrow().clone();
        if let Some(machine) = machine {
            machine.remove(&container.id).await?;
        }
        if self.machine_ends_with(container) {
            self.stop_machine().await?;
        }
        let execs: Vec<Rc<Process>> = container.execs.borrow_mut().drain().map(|(_, process)| process).collect();
        for process in execs {
            process.release().await;
        }
        init.release().await;
        self.containers.borrow_mut().remove(&container.id);
        let exit = init.state.get().exit().unwrap_or_else(unknown);
        let mut event = events::TaskDelete::new();
        event.container_id = container.id.clone();
        event.pid = Self::pid();
        event.exit_status = exit.status;
        event.exited_at = Some(timestamp(exit.at)).into();
        self.publish(&event);
        Ok(exit)
    }

    /// Whether the machine ends with a container.
    fn machine_ends_with(&self, container: &Container) -> bool {
        match container.kind {
            Kind::Pause | Kind::Api => true,
            Kind::Member => false,
            Kind::Single | Kind::Joined => {
                let containers = self.containers.borrow();
                containers.keys().all(|other| *other == container.id) && self.creating.borrow().is_empty()
            }
        }
    }

    /// A container that was never started ends before it is deleted, so that its end is told first.
    async fn kill_created(&self, container: &Container) -> Result<()> {
        let Ok(machine) = self.machine() else { return Ok(()) };
        match machine.signal(&container.id, None, libc::SIGKILL, true).await {
            Ok(()) | Err(Error::NotFound(_)) => {}
            // The guest says so, too, when it has just ended.
            Err(Error::Sandbox(sandbox::Error::Sandbox { kind: Some(agent_api::FaultKind::NotFound), .. })) => {}
            Err(error) => return Err(error),
        }
        let ended = timeout(KILL_DEADLINE, container.init.wait()).await;
        ended.map(drop).map_err(|_| Error::Deadline {
            what: format!("the end of container {}, which was killed,", container.id),
            seconds: KILL_DEADLINE.as_secs(),
        })
    }
}

async fn delete_exec(container: &Container, process: &Process) -> Result<Exit> {
    let _turn = process.turn.lock().await;
    container.process(&process.id)?;
    process.state.get().may_delete()?;
    process.drained(DRAIN, DRAIN).await;
    process.release().await;
    container.execs.borrow_mut().remove(&process.id);
    let exit = process.state.get().exit();
    // It was never started; whoever waits for it need not any more.
    Ok(exit.unwrap_or_else(|| {
        let exit = unknown();
        process.finish(exit);
        exit
    }))
}

fn unknown() -> Exit {
    Exit { status: 0, at: std::time::SystemTime::now() }
}
