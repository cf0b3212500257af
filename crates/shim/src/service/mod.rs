//! The services that containerd calls, and the one task that they are the door to.
//!
//! ttrpc wants handlers that may run on any thread; a sandbox belongs to one. So a handler puts its work into a queue ([`Desk`]) and waits for
//! the answer, and each piece of work becomes a task of the thread that owns the [`Pod`]. A caller that hangs up does not stop what it began: containerd
//! deletes what it does not want.
//!
//! # Order
//!
//! What changes a process (Start, Pause, Resume, Delete, and its end) takes turns, by a lock of that process. That is what puts TaskStart
//! before TaskExit however short-lived the process was. A container's first process is reported last: executed processes end with it, and are waited for.

mod container;
mod create;
mod delete;
mod follow;
mod pod;
mod sandbox;
mod task;

use std::{rc::Rc, time::Duration};

use containerd_shim_protos::ttrpc;
use tokio::sync::{mpsc, oneshot};

pub(crate) use self::{
    pod::{Pod, Settings},
    sandbox::service as sandbox_service,
    task::services as task_services,
};
use crate::{Error, Result, backend::Local, log};

/// How long a shim waits to be asked to shut down when there is nothing left to answer for. containerd asks within 5 s.
const IDLE: Duration = Duration::from_secs(15);

/// A piece of work for the thread that owns the pod.
pub(crate) type Job = Box<dyn FnOnce(Rc<Pod>) -> Local<'static, ()> + Send>;

/// Where handlers bring their work.
#[derive(Clone)]
pub(crate) struct Desk {
    jobs: mpsc::UnboundedSender<Job>,
}

impl Desk {
    /// A desk, and what is brought to it.
    pub(crate) fn new() -> (Self, mpsc::UnboundedReceiver<Job>) {
        let (jobs, queue) = mpsc::unbounded_channel();
        (Self { jobs }, queue)
    }

    /// Has `work` done and gives its result.
    async fn ask<R, F>(&self, name: &'static str, work: F) -> ttrpc::Result<R>
    where
        R: Send + 'static,
        F: FnOnce(Rc<Pod>) -> Local<'static, Result<R>> + Send + 'static,
    {
        let (reply, answer) = oneshot::channel();
        let job: Job = Box::new(move |pod| {
            Box::pin(async move {
                let begun = std::time::Instant::now();
                let result = work(pod.clone()).await;
                pod.leave_when_idle(IDLE);
                pod.calls.borrow_mut().note(name, begun.elapsed());
                match &result {
                    Ok(_) => log::debug(name),
                    Err(error) => log::info(&format!("{name}: {}", error.chain())),
                }
                let _hung_up = reply.send(result.map_err(ttrpc::Error::from));
            })
        });
        if self.jobs.send(job).is_err() {
            return Err(Error::ShuttingDown.into());
        }
        answer.await.unwrap_or_else(|_| Err(Error::ShuttingDown.into()))
    }
}

#[cfg(test)]
mod tests;
