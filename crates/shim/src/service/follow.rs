//! The end of a process: it is waited for, its output is let through, and then it is told.

use std::{
    rc::Rc,
    time::{Duration, SystemTime},
};

use containerd_shim_protos::events::task as events;
use tokio::time::timeout;

use super::{
    Pod,
    container::{Container, Kind, Process},
};
use crate::{
    Result, log,
    state::{Exit, State},
};

/// How long the output of a process that has ended may rest before its end is told: a process that it left behind may hold it open.
const PATIENCE: Duration = Duration::from_secs(1);
/// How long it may take in all, as long as it moves.
const DRAIN: Duration = Duration::from_secs(10);
/// How long executed processes may take to end with their container, and containers with their pod.
const OTHERS: Duration = Duration::from_secs(10);
/// The status of a process whose end nobody saw.
const UNKNOWN: u32 = 255;

impl Pod {
    /// Starts to wait for the end of a process.
    pub(super) fn follow(self: &Rc<Self>, container: Rc<Container>, process: Rc<Process>) -> Result<()> {
        let init = Rc::ptr_eq(&container.init, &process);
        let exec = (!init).then_some(process.id.as_str());
        let ending = self.machine()?.ending(&container.id, exec)?;
        let pod = self.clone();
        tokio::task::spawn_local(async move {
            let outcome = sandbox::ended(ending).await;
            let at = SystemTime::now();
            if let Err(reason) = &outcome {
                log::error(&format!("process {} of container {}: {reason}", process.id, container.id));
            }
            if init {
                container.leaving.set(true);
                pod.wait_for_others(&container).await;
            }
            process.drained(PATIENCE, DRAIN).await;
            let _turn = process.turn.lock().await;
            let status = outcome.map_or(UNKNOWN, |status| status.shell_code().cast_unsigned());
            pod.finish(&container, &process, Exit { status, at });
        });
        Ok(())
    }

    /// Tells the end of a process.
    fn finish(&self, container: &Container, process: &Process, exit: Exit) {
        process.state.set(State::Stopped(exit));
        if container.kind != Kind::Api {
            let mut event = events::TaskExit::new();
            event.container_id = container.id.clone();
            event.id = process.id.clone();
            event.pid = Self::pid();
            event.exit_status = exit.status;
            event.exited_at = Some(crate::translate::timestamp(exit.at)).into();
            self.publish(&event);
        }
        process.finish(exit);
    }

    /// A container's executed processes are told before it, and a pod's containers before their sandbox: its machine is ended for that.
    async fn wait_for_others(&self, container: &Rc<Container>) {
        let mut others: Vec<Rc<Process>> = container.execs.borrow().values().cloned().collect();
        if !container.kind.runs_processes() {
            if let Err(error) = self.stop_machine().await {
                log::error(&format!("end the machine: {}", error.chain()));
            }
            let containers = self.containers.borrow();
            others =
                containers.values().filter(|other| !Rc::ptr_eq(other, container)).map(|c| c.init.clone()).collect();
        }
        let all = async {
            for other in others {
                // Whoever is about to start it finishes first.
                drop(other.turn.lock().await);
                if matches!(other.state.get(), State::Running | State::Paused)
                    || (!container.kind.runs_processes() && other.state.get() == State::Created)
                {
                    let _shutting_down = other.wait().await;
                }
            }
        };
        if timeout(OTHERS, all).await.is_err() {
            log::warn(&format!("container {} has ended, but not everything in it", container.id));
        }
    }
}
