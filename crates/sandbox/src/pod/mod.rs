//! A sandbox: one machine and the containers in it, whichever door their user came in by.
//!
//! It belongs to one thread (`tokio::task::LocalSet`) of the process that hosts it: containerd's shim, or the daemon of the OCI command
//! line. Its methods may be called from many tasks of that thread at once.
//!
//! # Life of a container
//!
//! ```text
//! Prepared::new     everything that can be refused is refused; trees and disks are opened
//! Sandbox::create   trees are attached below the shared directory, disks are plugged, one call creates the container
//! Sandbox::start    one call
//! Sandbox::remove   one call ends what is left of it; trees and disks are taken away again
//! ```
//!
//! # Pods
//!
//! A pod's sandbox container (the "pause" container) exists on the host only: there is no process in the guest whose sole work is to keep
//! namespaces alive, because the agent keeps them. It ends when it is signalled.

mod forward;
mod members;
mod names;
mod network;
mod pinning;
mod publish;
mod size;
mod volumes;

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use agent_api::{
    CreateContainer, Exec, ExitStatus, Pod, ProcessInfo, Reply, Request, WindowSize, frame, statistics::Statistics,
};
use devices::share::{Access, SharedDir};
use oci_spec::runtime::{LinuxResources, Process};
use tokio::sync::Mutex;

pub(crate) use self::pinning::HostCpus;
pub use self::size::{Demand, Limits};
use self::{members::Member, network::PodNetwork, pinning::Pinning, size::Size};
pub use crate::machine::relay::{Io, Sink, Source};
use crate::{
    Error, Result,
    hooks::Point,
    journal::Journal,
    machine::{
        CALL_DEADLINE, Ending, Machine, Observer,
        boot::{Order, boot},
        out_of_turn, relay,
    },
    plan::Plan,
    steps,
    timeline::{Timeline, Tracer, late},
    translate::{FirstDisks, Prepared},
};

/// How long the agent may take to create a container once it answers.
const CREATE_DEADLINE: Duration = Duration::from_secs(45);
/// How long the agent may take to make a container's processes go.
const REMOVE_DEADLINE: Duration = Duration::from_secs(30);

/// What a sandbox is made from.
pub struct Birth {
    /// Its machine.
    pub plan: Plan,
    /// The size of the machine.
    pub demand: Demand,
    /// Where it is written down; its directory is the sandbox's.
    pub journal: Rc<Journal>,
    /// Who is told of what happens in it.
    pub observer: Rc<dyn Observer>,
    /// What its containers share, if they do.
    pub pod: Option<Pod>,
    /// Where the guest's network comes from.
    pub network: GuestNetwork,
    /// Disks of its first container ([`Prepared::take_disks`]), so that they need not be plugged.
    pub disks: FirstDisks,
    /// `CLOCK_MONOTONIC` when the caller began, nanoseconds; the timeline counts from it.
    pub begun_ns: u64,
    /// The network namespace that a collector of traces is reached from, unless that is the calling thread's.
    pub home: Option<Arc<::network::Namespace>>,
}

/// Where a guest's network comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GuestNetwork {
    /// It has its loopback only.
    None,
    /// The network namespace that the calling thread is in, whose interfaces it is given.
    Namespace,
    /// The host's, which the calling thread is in, behind passt(1).
    Host,
}

/// A running sandbox. See the [module](self).
pub struct Sandbox {
    machine: Rc<Machine>,
    /// Its containers share what a pod's do.
    is_pod: bool,
    shared: SharedDir,
    journal: Rc<Journal>,
    timeline: RefCell<Timeline>,
    tracer: RefCell<Option<Tracer>>,
    members: RefCell<HashMap<String, Member>>,
    volumes: RefCell<HashMap<String, volumes::Watch>>,
    network: Mutex<Option<PodNetwork>>,
    /// The guest asks for names through the host.
    names: Cell<bool>,
    size: Size,
    /// Held while the machine's size changes.
    sizing: Mutex<()>,
    pinning: Pinning,
}

impl Sandbox {
    /// Boots the machine. The process must be in a private mount namespace
    /// ([`enter_private_namespace`](devices::share::enter_private_namespace)).
    ///
    /// # Errors
    /// Whatever went wrong, with its step; the machine is gone then, the state directory is not.
    pub async fn boot(birth: Birth) -> Result<Rc<Self>> {
        let Birth { plan, demand, journal, observer, pod, network, disks, begun_ns, home } = birth;
        let mut timeline = Timeline::new(begun_ns);
        timeline.mark("host-started");
        let shared = SharedDir::create(&journal.dir().file("shared"))?;
        let begun = async {
            let model = plan.config.runtime.internetworking_model;
            let network = match network {
                GuestNetwork::None => None,
                GuestNetwork::Namespace => PodNetwork::open(model, demand.vcpus)?,
                GuestNetwork::Host => Some(PodNetwork::of_host()?),
            };
            let (network, nics) = network.map_or((None, Vec::new()), |(network, nics)| (Some(network), nics));
            timeline.mark("network-mirrored");
            let order = Order {
                plan: &plan,
                demand,
                shared: shared.path(),
                journal: &journal,
                observer,
                nics,
                disks: disks.into(),
            };
            Ok::<_, Error>((boot(order, &mut timeline).await?, network))
        };
        let (machine, network) = match begun.await {
            Ok(begun) => begun,
            Err(error) => {
                // The error that matters is the one being returned.
                let _ = shared.unmount();
                return Err(late(&mut timeline, journal.dir(), error));
            }
        };
        let runtime = &plan.config.runtime;
        let tracer =
            runtime.enable_tracing.then(|| Tracer::new(runtime.otlp_endpoint.clone(), home, journal.dir().id()));
        let sandbox = Rc::new(Self {
            machine,
            is_pod: pod.is_some(),
            shared,
            journal,
            timeline: timeline.into(),
            tracer: tracer.into(),
            members: RefCell::default(),
            volumes: RefCell::default(),
            network: Mutex::new(network),
            names: Cell::new(false),
            size: Size::new(demand),
            sizing: Mutex::new(()),
            pinning: Pinning::default(),
        });
        let settled = sandbox.settle(pod).await;
        if settled.is_err() {
            sandbox.stop().await;
        }
        settled.map(|()| sandbox.clone()).map_err(|error| sandbox.late(error))
    }

    /// Neither call needs the other's answer, so neither waits for it.
    async fn settle(self: &Rc<Self>, pod: Option<Pod>) -> Result<()> {
        let shared = async {
            if let Some(pod) = pod {
                self.machine.done("make what the pod's containers share", &Request::ConfigurePod(pod)).await?;
                self.timeline.borrow_mut().mark("pod-configured");
            }
            Ok(())
        };
        let network = async {
            self.settle_network().await?;
            self.timeline.borrow_mut().mark("network-configured");
            Ok(())
        };
        tokio::try_join!(shared, network).map(|_| ())
    }

    /// What is known of it.
    pub fn journal(&self) -> &Rc<Journal> {
        &self.journal
    }

    /// Tells the [`Observer`] what happens in the guest, from now on.
    pub fn listen(self: &Rc<Self>) {
        let machine = self.machine.clone();
        tokio::task::spawn_local(async move {
            let mut called = match machine.opener().open() {
                Ok(stream) => stream,
                Err(error) => return eprintln!("listen to the guest's events: {error}"),
            };
            if let Err(error) = frame::write(&mut called, &Request::Events).await {
                return eprintln!("listen to the guest's events: {error}");
            }
            // It ends with the machine, whose death is told by others.
            while let Ok(Reply::Event(event)) = frame::read::<Reply>(&mut called, frame::MAX_REPLY).await {
                match event {
                    agent_api::Event::OutOfMemory { container } => machine.observer().out_of_memory(&container),
                }
            }
        });
    }

    /// Creates a container and, if asked, starts it. Gives its process's id in the guest.
    ///
    /// # Errors
    /// What the guest says, or what failed on the host; nothing of the container stays.
    pub async fn create(self: &Rc<Self>, id: &str, prepared: Prepared, io: Io, start: bool) -> Result<u32> {
        let limits = Limits::of(&prepared.parts.spec);
        limits.check()?;
        self.admit(id, limits, prepared.parts.cpus.clone())?;
        let created = self.create_member(id, prepared, io, start).await;
        match created {
            Ok(guest_pid) => {
                self.timeline.borrow_mut().mark(if start { "container-started" } else { "container-created" });
                Ok(guest_pid)
            }
            Err(error) => {
                let error = self.late(error);
                self.vacate(id).await;
                Err(error)
            }
        }
    }

    async fn create_member(self: &Rc<Self>, id: &str, prepared: Prepared, io: Io, start: bool) -> Result<u32> {
        let Prepared { mut parts, trees, disks } = prepared;
        self.choose_namespaces(id, &mut parts.spec)?;
        self.fit().await?;
        self.pin()?;
        self.timeline.borrow_mut().mark("machine-fits");
        self.plug_disks(id, &parts.disks, disks).await?;
        for (share, tree) in parts.shares.iter().zip(trees) {
            let name = std::path::Path::new(&share.name);
            self.shared.attach(name, tree, Access { read_only: share.read_only, follow: share.follow })?;
            if let Some(member) = self.members.borrow_mut().get_mut(id) {
                member.shares.push(share.name.clone());
            }
        }
        self.watch_volumes(&parts.volumes);
        parts.read_volumes()?;
        self.note_resolver(id, &parts.spec);
        if start {
            self.stand_in_for_resolver().await;
        }
        let connected = relay::connect(self.machine.opener(), io, || self.machine.token())?;
        let patience =
            parts.spec.hooks().as_ref().map(|hooks| Point::StartContainer.patience(hooks)).unwrap_or_default();
        if let Some(member) = self.members.borrow_mut().get_mut(id) {
            member.patience = patience;
        }
        let create = CreateContainer {
            id: id.into(),
            spec: parts.spec,
            stdio: connected.stdio,
            seccomp: parts.seccomp,
            start,
            storages: parts.storages,
            disks: parts.devices,
            all_devices: parts.all_devices,
            told: parts.told,
        };
        let step = if start { "run the container" } else { "create the container" };
        let request = Request::CreateContainer(Box::new(create));
        let deadline = CREATE_DEADLINE + if start { patience } else { Duration::ZERO };
        self.machine.start_process(step, (id, None), &request, connected.input, deadline).await
    }

    /// Enters a pod's sandbox container, which has no process in the guest. It ends by [`Sandbox::signal`].
    ///
    /// # Errors
    /// When the name is taken.
    pub fn create_pause(&self, id: &str) -> Result<()> {
        self.admit(id, Limits::default(), None)?;
        let told = self.machine.watch_process(id, None);
        if let Some(member) = self.members.borrow_mut().get_mut(id) {
            member.pause = Some(told);
        }
        Ok(())
    }

    fn is_pause(&self, container: &str) -> bool {
        self.members.borrow().get(container).is_some_and(|member| member.pause.is_some())
    }

    /// Lets a created container run.
    ///
    /// # Errors
    /// What the guest says, e.g. that the program cannot be run.
    pub async fn start(self: &Rc<Self>, container: &str) -> Result<()> {
        if self.is_pause(container) {
            return Ok(());
        }
        self.stand_in_for_resolver().await;
        let patience = self.members.borrow().get(container).map(|member| member.patience).unwrap_or_default();
        let (step, request) = ("start the container", Request::StartContainer { container: container.into() });
        match self.machine.call_within(step, &request, CALL_DEADLINE + patience).await? {
            (Reply::Done, _) => {}
            (other, _) => return Err(out_of_turn(step, &other)),
        }
        self.timeline.borrow_mut().mark("container-started");
        Ok(())
    }

    /// Starts a further process. Gives its id in the guest.
    ///
    /// # Errors
    /// What the guest says, e.g. that the program is not there.
    pub async fn exec(&self, container: &str, id: &str, process: Process, io: Io) -> Result<u32> {
        let connected = relay::connect(self.machine.opener(), io, || self.machine.token())?;
        let exec = Exec { container: container.into(), id: id.into(), process, stdio: connected.stdio };
        let request = Request::Exec(Box::new(exec));
        let (step, name) = ("execute the process", (container, Some(id)));
        self.machine.start_process(step, name, &request, connected.input, CALL_DEADLINE).await
    }

    /// Sends a signal to a process, or to all of the container's.
    ///
    /// # Errors
    /// What the guest says.
    pub async fn signal(&self, container: &str, exec: Option<&str>, signal: i32, all: bool) -> Result<()> {
        if self.is_pause(container) {
            self.end_pause(container, signal);
            return Ok(());
        }
        let request = Request::Signal { container: container.into(), exec: exec.map(Into::into), signal, all };
        self.machine.done("send a signal", &request).await
    }

    /// As the usual pause program: it ends in peace by the signals that ask for it.
    fn end_pause(&self, container: &str, signal: i32) {
        let status = match signal {
            libc::SIGTERM | libc::SIGINT => ExitStatus::Code(0),
            libc::SIGKILL => ExitStatus::Signal(libc::SIGKILL as u8),
            _ => return,
        };
        let members = self.members.borrow();
        if let Some(told) = members.get(container).and_then(|member| member.pause.as_ref())
            && told.borrow().is_none()
        {
            self.machine.process_ended(container, None, Ok(status), told);
        }
    }

    /// Sets the size of a process's terminal.
    ///
    /// # Errors
    /// What the guest says.
    pub async fn resize(&self, container: &str, exec: Option<&str>, size: WindowSize) -> Result<()> {
        let request = Request::ResizeTty { container: container.into(), exec: exec.map(Into::into), size };
        self.machine.done("resize the terminal", &request).await
    }

    /// Freezes a container.
    ///
    /// # Errors
    /// What the guest says.
    pub async fn pause(&self, container: &str) -> Result<()> {
        self.machine.done("pause the container", &Request::Pause { container: container.into() }).await
    }

    /// Thaws a container.
    ///
    /// # Errors
    /// What the guest says.
    pub async fn resume(&self, container: &str) -> Result<()> {
        self.machine.done("resume the container", &Request::Resume { container: container.into() }).await
    }

    /// Lists a container's processes, as the guest numbers them.
    ///
    /// # Errors
    /// What the guest says.
    pub async fn processes(&self, container: &str) -> Result<Vec<ProcessInfo>> {
        if self.is_pause(container) {
            return Ok(Vec::new());
        }
        let step = "list the processes";
        match self.machine.call(step, &Request::Processes { container: container.into() }).await? {
            (Reply::Processes(processes), _) => Ok(processes.into_iter().map(fit_to_be_shown).collect()),
            (other, _) => Err(out_of_turn(step, &other)),
        }
    }

    /// What a container uses. Of a pod's sandbox container that is nothing but the pod's network.
    ///
    /// # Errors
    /// What the guest says.
    pub async fn statistics(&self, container: &str) -> Result<Statistics> {
        if self.is_pause(container) {
            return Ok(Statistics::default());
        }
        let step = "ask for the statistics";
        match self.machine.call(step, &Request::Statistics { container: container.into() }).await? {
            (Reply::Statistics(statistics), _) => Ok(*statistics),
            (other, _) => Err(out_of_turn(step, &other)),
        }
    }

    /// Figures of the guest and the agent, in the text format of Prometheus.
    ///
    /// # Errors
    /// What the guest says.
    pub async fn guest_metrics(&self) -> Result<String> {
        let step = "ask for the guest's metrics";
        match self.machine.call(step, &Request::Metrics).await? {
            (Reply::Metrics(text), _) => Ok(text),
            (other, _) => Err(out_of_turn(step, &other)),
        }
    }

    /// Changes a container's limits.
    ///
    /// # Errors
    /// What the guest says.
    pub async fn update(&self, container: &str, mut resources: LinuxResources) -> Result<()> {
        if self.is_pause(container) {
            return Ok(());
        }
        let cpus = HostCpus::take(&mut resources)
            .map_err(|problem| Error::State(format!("linux.resources.cpu.cpus {problem}")))?;
        let had = self.members.borrow().get(container).map(|member| member.limits).unwrap_or_default();
        let wants = had.changed(&resources);
        wants.check()?;
        let set = |limits| {
            if let Some(member) = self.members.borrow_mut().get_mut(container) {
                member.limits = limits;
            }
        };
        // The machine grows before the container's limit does, and shrinks after it.
        let larger = Limits { milli_cpus: had.milli_cpus.max(wants.milli_cpus), memory: had.memory.max(wants.memory) };
        set(larger);
        let request = Request::UpdateContainer { container: container.into(), resources };
        let changed = match self.fit().await {
            Ok(()) => self.machine.done("change the container's limits", &request).await,
            Err(error) => Err(error),
        };
        set(if changed.is_ok() { wants } else { had });
        let fitted = self.fit().await;
        changed.and(fitted)?;
        if cpus.is_some() { self.pin_member(container, cpus) } else { Ok(()) }
    }

    /// The end of a process, to be waited for ([`ended`](crate::machine::ended)).
    ///
    /// # Errors
    /// [`Error::Sandbox`] when there is no such process.
    pub fn ending(&self, container: &str, exec: Option<&str>) -> Result<Ending> {
        self.machine.ending(container, exec)
    }

    /// Whether a process lives.
    pub fn is_running(&self, container: &str, exec: Option<&str>) -> bool {
        self.machine.is_running(container, exec)
    }

    /// Kills what is left of a container and removes every trace of it.
    ///
    /// # Errors
    /// What the guest says, e.g. that something does not end; then it can be tried again.
    pub async fn remove(self: &Rc<Self>, container: &str) -> Result<()> {
        if !self.is_pause(container) {
            let request = Request::DeleteContainer { container: container.into() };
            match self.machine.call_within("delete the container", &request, REMOVE_DEADLINE).await {
                Ok((Reply::Done, _)) => {}
                Ok((other, _)) => return Err(out_of_turn("delete the container", &other)),
                // A dead machine has no containers.
                Err(_) if self.is_dead() => {}
                Err(Error::Sandbox { kind: Some(agent_api::FaultKind::NotFound), .. }) => {}
                Err(error) => return Err(error),
            }
        }
        self.vacate(container).await;
        self.machine.forget(container);
        // What it might have used goes back to the host; nobody needs to wait until the guest has let go of it.
        let sandbox = self.clone();
        tokio::task::spawn_local(async move {
            if !sandbox.is_dead()
                && let Err(error) = sandbox.fit().await
                && !sandbox.is_dead()
            {
                eprintln!("{}", error.chain());
            }
        });
        Ok(())
    }

    /// Whether the machine has ended.
    pub fn is_dead(&self) -> bool {
        self.machine.is_dead()
    }

    /// Ends the machine and returns once its processes are gone.
    pub async fn stop(&self) {
        steps::passed("machine-ending");
        self.machine.end().await;
        steps::passed("machine-ended");
        self.close_network().await;
        if let Err(error) = self.shared.unmount() {
            eprintln!("{}", crate::error::chain(&error));
        }
    }

    /// If an error is that the time was over, says where it went.
    fn late(&self, error: Error) -> Error {
        late(&mut self.timeline.borrow_mut(), self.journal.dir(), error)
    }

    /// When each step of the start was finished.
    pub fn timeline(&self) -> Timeline {
        self.timeline.borrow().clone()
    }

    /// Writes down when each step of the start was finished, and has it exported if that is wanted.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn save_timeline(&self) -> Result<()> {
        let mut timeline = self.timeline.borrow_mut();
        timeline.sort();
        if let Some(tracer) = &mut *self.tracer.borrow_mut() {
            tracer.export(&timeline);
        }
        timeline.save(self.journal.dir())
    }

    /// Opens a connection to a TCP port of the guest's loopback.
    ///
    /// # Errors
    /// What the guest says, e.g. that nobody listens.
    pub async fn dial(&self, port: u16) -> Result<impl tokio::io::AsyncRead + tokio::io::AsyncWrite + use<>> {
        let step = "connect to a port in the guest";
        match self.machine.call(step, &Request::Dial { port }).await? {
            (Reply::Done, stream) => Ok(stream),
            (other, _) => Err(out_of_turn(step, &other)),
        }
    }
}

/// Longest text of a process that is shown, bytes.
const TEXT_LIMIT: usize = 4096;

/// A process that the guest tells of, for a caller's terminal.
fn fit_to_be_shown(process: ProcessInfo) -> ProcessInfo {
    let clean = |text: &str| hypervisor::printable(&text.replace(['\n', '\r'], " "), TEXT_LIMIT);
    let (tty, state, command) = (clean(&process.tty), clean(&process.state), clean(&process.command));
    ProcessInfo { tty, state, command, ..process }
}
