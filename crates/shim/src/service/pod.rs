//! The pod: its machine, its containers, and what may be asked of them that needs no more than a few lines.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    rc::Rc,
    time::Duration,
};

use agent_api::{WindowSize, statistics::Statistics};
use containerd_shim_protos::{
    api::{
        CloseIORequest, ConnectRequest, ConnectResponse, ExecProcessRequest, KillRequest, PidsRequest, PidsResponse,
        ProcessInfo, ResizePtyRequest, StateRequest, StateResponse, StatsRequest, StatsResponse, Status,
        UpdateTaskRequest, WaitRequest, WaitResponse,
    },
    events::task as events,
    shim::oci::ProcessDetails,
};
use tokio::{
    sync::{mpsc, watch},
    time::sleep,
};

use super::container::{Container, Process};
use crate::{
    Error, Result,
    backend::{Booter, Sandbox},
    events::{Event, Publisher},
    log,
    monitor::Durations,
    state::{Exit, State},
    stdio::Names,
    translate::{any, metrics, oci, timestamp},
};

/// What a pod's shim is told when it starts.
#[derive(Debug, Clone, Default)]
pub(crate) struct Settings {
    /// containerd's namespace.
    pub(crate) namespace: String,
    /// The sandbox's name, which is its first container's.
    pub(crate) sandbox: String,
    /// Whether containerd on this host expects figures of cgroup v2.
    pub(crate) unified: bool,
}

/// A pod. Its methods may run in many tasks of its thread at once; nothing stays borrowed while one of them waits.
pub(crate) struct Pod {
    pub(super) settings: Settings,
    pub(super) booter: Rc<dyn Booter>,
    pub(super) machine: RefCell<Option<Rc<dyn Sandbox>>>,
    pub(super) containers: RefCell<HashMap<String, Rc<Container>>>,
    /// Names of containers that are being created.
    pub(super) creating: RefCell<Vec<String>>,
    /// The sandbox of the sandbox API.
    pub(super) api: RefCell<Option<super::sandbox::Made>>,
    pub(super) out_of_memory: mpsc::UnboundedSender<String>,
    publisher: Publisher,
    leaving: watch::Sender<bool>,
    pub(super) booting: Cell<bool>,
    /// Counts what it was asked.
    turns: Cell<u64>,
    /// How long containerd's calls took.
    pub(crate) calls: RefCell<Durations>,
    /// How long the agent's took.
    pub(crate) agent_calls: Rc<RefCell<Durations>>,
}

impl Pod {
    /// A pod without a machine. `out_of_memory` takes names of containers, for [`Pod::out_of_memory`].
    pub(crate) fn new(
        settings: Settings,
        booter: Rc<dyn Booter>,
        publisher: Publisher,
        out_of_memory: mpsc::UnboundedSender<String>,
    ) -> Rc<Self> {
        Rc::new(Self {
            settings,
            booter,
            machine: RefCell::default(),
            containers: RefCell::default(),
            creating: RefCell::default(),
            api: RefCell::default(),
            out_of_memory,
            publisher,
            leaving: watch::Sender::new(false),
            booting: Cell::new(false),
            turns: Cell::new(0),
            calls: RefCell::default(),
            agent_calls: Rc::default(),
        })
    }

    /// Process id of every task: the guest's mean nothing to the host, and this process is in the pod's network namespace.
    pub(super) fn pid() -> u32 {
        std::process::id()
    }

    pub(super) fn publish<E: Event>(&self, event: &E) {
        self.publisher.publish(event);
    }

    pub(super) fn container(&self, id: &str) -> Result<Rc<Container>> {
        let found = self.containers.borrow().get(id).cloned();
        found.ok_or_else(|| Error::NotFound("container not created".into()))
    }

    fn process(&self, id: &str, exec: &str) -> Result<(Rc<Container>, Rc<Process>)> {
        let container = self.container(id)?;
        let process = container.process(exec)?;
        Ok((container, process))
    }

    /// What the containers use in all: memory in bytes, processor time in seconds.
    pub(crate) async fn used(&self) -> (u64, f64) {
        let Ok(machine) = self.machine() else { return (0, 0.0) };
        let names: Vec<String> = self.containers.borrow().keys().cloned().collect();
        let mut used = (0, 0.0);
        for name in names {
            // One that goes meanwhile uses nothing.
            if let Ok(statistics) = machine.statistics(&name).await {
                used.0 += statistics.memory.usage;
                used.1 += statistics.cpu.usage_ns as f64 / 1e9;
            }
        }
        used
    }

    /// The machine; without one nothing runs any more.
    pub(crate) fn machine(&self) -> Result<Rc<dyn Sandbox>> {
        self.machine.borrow().clone().ok_or_else(|| Error::NotFound("process already finished".into()))
    }

    /// Ends the machine, if there is one.
    pub(crate) async fn stop_machine(&self) -> Result<()> {
        let machine = self.machine.take();
        match machine {
            Some(machine) => machine.stop().await,
            None => Ok(()),
        }
    }

    /// The guest's kernel killed a process of a container for want of memory.
    pub(crate) fn out_of_memory(&self, container: &str) {
        if self.containers.borrow().contains_key(container) {
            let mut event = events::TaskOOM::new();
            event.container_id = container.into();
            self.publish(&event);
        }
    }

    /// Announces a further process. It is started by Start.
    pub(super) fn exec(&self, request: &ExecProcessRequest) -> Result<()> {
        let container = self.container(&request.id)?;
        if !container.kind.runs_processes() {
            return Err(Error::Precondition(format!(
                "the sandbox container {:?} runs nothing, so nothing can be executed in it; name a container of the pod",
                request.id
            )));
        }
        sandbox::store::Store::check_id(&request.exec_id)?;
        if container.execs.borrow().contains_key(&request.exec_id) {
            return Err(Error::AlreadyExists(format!("id {}", request.exec_id)));
        }
        container.init.state.get().may_exec()?;
        let spec: oci_spec::runtime::Process = oci(request.spec.as_ref(), "Process")?;
        sandbox::bundle::check_process(&container.bundle.join("config.json"), "exec", &spec)?;
        let names = Names {
            stdin: request.stdin.clone(),
            stdout: request.stdout.clone(),
            stderr: request.stderr.clone(),
            terminal: request.terminal,
        };
        let process = Process::new(&request.exec_id, names, Some(spec));
        container.execs.borrow_mut().insert(request.exec_id.clone(), process);
        let mut event = events::TaskExecAdded::new();
        event.container_id = container.id.clone();
        event.exec_id = request.exec_id.clone();
        self.publish(&event);
        Ok(())
    }

    pub(super) fn state(&self, request: &StateRequest) -> Result<StateResponse> {
        let (container, process) = self.process(&request.id, &request.exec_id)?;
        let mut response = StateResponse::new();
        response.id = process.id.clone();
        response.bundle = container.bundle.display().to_string();
        response.exec_id = request.exec_id.clone();
        // A process that was not started has no number yet.
        let started = process.state.get() != State::Created || request.exec_id.is_empty();
        response.pid = if started { Self::pid() } else { 0 };
        let state = container.shown(&process);
        response.status = match state {
            State::Created => Status::CREATED,
            State::Running => Status::RUNNING,
            State::Pausing => Status::PAUSING,
            State::Paused => Status::PAUSED,
            State::Stopped(_) => Status::STOPPED,
        }
        .into();
        response.stdin = process.names.stdin.clone();
        response.stdout = process.names.stdout.clone();
        response.stderr = process.names.stderr.clone();
        response.terminal = process.names.terminal;
        if let Some(Exit { status, at }) = state.exit() {
            response.exit_status = status;
            response.exited_at = Some(timestamp(at)).into();
        }
        Ok(response)
    }

    pub(super) async fn wait(&self, request: &WaitRequest) -> Result<WaitResponse> {
        let (_, process) = self.process(&request.id, &request.exec_id)?;
        let exit = process.wait().await?;
        let mut response = WaitResponse::new();
        response.exit_status = exit.status;
        response.exited_at = Some(timestamp(exit.at)).into();
        Ok(response)
    }

    pub(super) async fn kill(&self, request: &KillRequest) -> Result<()> {
        let (container, process) = self.process(&request.id, &request.exec_id)?;
        let signal = i32::try_from(request.signal).ok().filter(|signal| (0..=64).contains(signal));
        let signal =
            signal.ok_or_else(|| Error::Invalid(format!("signal {} does not exist; 0 to 64 do", request.signal)))?;
        if request.exec_id.is_empty() {
            process.state.get().may_signal()?;
            self.machine()?.signal(&container.id, None, signal, request.all).await
        } else {
            process.state.get().may_signal_exec()?;
            self.machine()?.signal(&container.id, Some(&process.id), signal, false).await
        }
    }

    pub(super) async fn resize(&self, request: &ResizePtyRequest) -> Result<()> {
        let (container, process) = self.process(&request.id, &request.exec_id)?;
        let state = process.state.get();
        state.may_resize()?;
        let exec = (!request.exec_id.is_empty()).then_some(request.exec_id.as_str());
        // As containerd's own shim: what has no terminal, or none yet, has nothing to be resized.
        if !process.names.terminal || (exec.is_some() && state == State::Created) {
            return Ok(());
        }
        let number = |value: u32| u16::try_from(value).unwrap_or(u16::MAX);
        let size = WindowSize { rows: number(request.height), cols: number(request.width) };
        self.machine()?.resize(&container.id, exec, size).await
    }

    pub(super) fn close_io(&self, request: &CloseIORequest) -> Result<()> {
        let (_, process) = self.process(&request.id, &request.exec_id)?;
        if request.stdin
            && let Some(streams) = process.streams.borrow().as_ref()
        {
            streams.close_input();
        }
        Ok(())
    }

    pub(super) async fn pause(&self, id: &str) -> Result<()> {
        let container = self.container(id)?;
        let _turn = container.init.turn.lock().await;
        container.init.state.get().may_pause()?;
        if !container.kind.runs_processes() {
            return Err(Error::Precondition(format!(
                "the sandbox container {id:?} runs nothing that could be paused; pause the containers of the pod"
            )));
        }
        container.init.state.set(State::Pausing);
        let paused = async { self.machine()?.pause(id).await }.await;
        container.init.state.set(if paused.is_ok() { State::Paused } else { State::Running });
        paused?;
        let mut event = events::TaskPaused::new();
        event.container_id = id.into();
        self.publish(&event);
        Ok(())
    }

    pub(super) async fn resume(&self, id: &str) -> Result<()> {
        let container = self.container(id)?;
        let _turn = container.init.turn.lock().await;
        container.init.state.get().may_resume()?;
        self.machine()?.resume(id).await?;
        container.init.state.set(State::Running);
        let mut event = events::TaskResumed::new();
        event.container_id = id.into();
        self.publish(&event);
        Ok(())
    }

    pub(super) async fn update(&self, request: &UpdateTaskRequest) -> Result<()> {
        let container = self.container(&request.id)?;
        container.init.state.get().may_update()?;
        let resources = oci(request.resources.as_ref(), "LinuxResources")?;
        self.machine()?.update(&container.id, resources).await
    }

    pub(super) async fn stats(&self, request: &StatsRequest) -> Result<StatsResponse> {
        let container = self.container(&request.id)?;
        let statistics = match container.init.state.get() {
            State::Stopped(_) => Statistics::default(),
            _ => self.machine()?.statistics(&container.id).await?,
        };
        let mut response = StatsResponse::new();
        response.stats = Some(metrics(&statistics, self.settings.unified)?).into();
        Ok(response)
    }

    /// One entry for the container and one for each further process; the guest's own numbers would mislead whoever looks for them on the host.
    pub(super) fn pids(&self, request: &PidsRequest) -> Result<PidsResponse> {
        let container = self.container(&request.id)?;
        let mut response = PidsResponse::new();
        let entry = || {
            let mut entry = ProcessInfo::new();
            entry.pid = Self::pid();
            entry
        };
        if container.init.state.get().exit().is_none() {
            response.processes.push(entry());
        }
        for process in container.execs.borrow().values().filter(|process| process.state.get() == State::Running) {
            let mut details = ProcessDetails::new();
            details.exec_id = process.id.clone();
            let mut entry = entry();
            entry.info = Some(any("containerd.runc.v1.ProcessDetails", &details)?).into();
            response.processes.push(entry);
        }
        Ok(response)
    }

    pub(super) fn connect(&self, request: &ConnectRequest) -> ConnectResponse {
        let mut response = ConnectResponse::new();
        response.shim_pid = Self::pid();
        response.task_pid = if self.containers.borrow().contains_key(&request.id) { Self::pid() } else { 0 };
        response
    }

    fn has_containers(&self) -> bool {
        !self.containers.borrow().is_empty() || !self.creating.borrow().is_empty()
    }

    /// Ends this process, unless there is something left to answer for.
    pub(super) fn shutdown(&self) {
        let busy = self.has_containers() || self.api.borrow().as_ref().is_some_and(super::sandbox::Made::is_running);
        if busy { log::debug("Shutdown: there are containers left") } else { self.leave() }
    }

    /// Ends this process after `patience` if there is nothing to answer for until then. containerd asks for it, unless whoever asked containerd
    /// was killed meanwhile; then it has forgotten this pod, and nobody would ever ask.
    pub(crate) fn leave_when_idle(self: &Rc<Self>, patience: Duration) {
        let turn = self.turns.get() + 1;
        self.turns.set(turn);
        // A sandbox of the sandbox API may have ended and is asked about until it is shut down.
        let is_idle = |pod: &Self| !pod.has_containers() && pod.api.borrow().is_none();
        if !is_idle(self) {
            return;
        }
        let pod = self.clone();
        tokio::task::spawn_local(async move {
            sleep(patience).await;
            if pod.turns.get() == turn && is_idle(&pod) {
                log::info("nothing is left to answer for, and nobody has asked to shut down");
                pod.leave();
            }
        });
    }

    /// Ends this process.
    pub(super) fn leave(&self) {
        self.leaving.send_replace(true);
    }

    /// Waits until this process is to end.
    pub(crate) fn left(&self) -> impl Future<Output = ()> + use<> {
        let mut leaving = self.leaving.subscribe();
        async move { drop(leaving.wait_for(|leaving| *leaving).await) }
    }

    /// Delivers what events are left, but does not wait longer than `deadline`.
    pub(crate) async fn close(&self, deadline: Duration) {
        self.publisher.close(deadline).await;
    }
}
