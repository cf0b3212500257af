//! Create and Start.

use std::{
    cell::{Cell, RefCell},
    path::Path,
    rc::Rc,
};

use containerd_shim_protos::{
    api::{CreateTaskRequest, CreateTaskResponse, StartRequest, StartResponse},
    events::task as events,
};

use super::{
    Pod,
    container::{Container, Kind, Process},
};
use crate::{
    Error, Result,
    backend::{Boot, NewContainer, RootfsMount, Sandbox, Unbundled},
    group::{Brief, Role},
    options::Options,
    state::{Exit, State},
    stdio::{self, Names},
};

/// A name that is taken until this is dropped.
struct Reserved<'a> {
    names: &'a RefCell<Vec<String>>,
    id: &'a str,
}

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        self.names.borrow_mut().retain(|name| name != self.id);
    }
}

impl Pod {
    fn reserve<'a>(&'a self, id: &'a str) -> Result<Reserved<'a>> {
        let mut creating = self.creating.borrow_mut();
        if self.containers.borrow().contains_key(id) || creating.iter().any(|name| name == id) {
            return Err(Error::AlreadyExists(format!("task {id} already exists")));
        }
        creating.push(id.into());
        Ok(Reserved { names: &self.creating, id })
    }

    /// Creates a container, after booting the machine if it is the first.
    pub(super) async fn create(self: &Rc<Self>, request: &CreateTaskRequest) -> Result<CreateTaskResponse> {
        let id = request.id.as_str();
        sandbox::store::Store::check_id(id)?;
        if !request.checkpoint.is_empty() || !request.parent_checkpoint.is_empty() {
            return Err(Error::Unimplemented(format!(
                "container {id:?}: restoring from a checkpoint is not supported; create it without one"
            )));
        }
        let options = match request.options.as_ref() {
            Some(options) => Options::from_any(options)?,
            None => Options::default(),
        };
        let bundle = Path::new(&request.bundle);
        let brief = Brief::read(bundle)?.ok_or_else(|| Error::Bundle {
            file: bundle.join("config.json"),
            problem: "is not there; the container's configuration is expected".into(),
        })?;
        let reserved = self.reserve(id)?;
        let kind = match brief.role() {
            Role::Single => Kind::Single,
            Role::Sandbox => Kind::Pause,
            Role::Member(sandbox) if sandbox == self.settings.sandbox => Kind::Member,
            Role::Joined(sandbox) if sandbox == self.settings.sandbox => Kind::Joined,
            Role::Member(sandbox) | Role::Joined(sandbox) => {
                return Err(Error::Precondition(format!(
                    "container {id:?} belongs to {sandbox:?}, but this shim has {:?}",
                    self.settings.sandbox
                )));
            }
        };
        if brief.has_terminal() != request.terminal {
            return Err(Error::Invalid(format!(
                "container {id:?}: the request and process.terminal of the configuration differ about a terminal"
            )));
        }
        let names = Names {
            stdin: request.stdin.clone(),
            stdout: request.stdout.clone(),
            stderr: request.stderr.clone(),
            terminal: request.terminal,
        };
        let init = Process::new(id, names, None);
        let booted = Cell::new(false);
        let made = self.create_body(request, kind, (brief.role(), options), &init, &booted).await;
        if let Err(error) = made {
            init.release().await;
            if booted.get() {
                let stopped = self.stop_machine().await;
                stopped.unwrap_or_else(|error| crate::log::warn(&error.chain()));
            }
            return Err(error);
        }
        let container = Rc::new(Container {
            id: id.into(),
            bundle: bundle.into(),
            kind,
            init,
            execs: RefCell::default(),
            leaving: false.into(),
        });
        self.containers.borrow_mut().insert(id.into(), container.clone());
        drop(reserved);
        self.publish(&created(request));
        self.follow(container.clone(), container.init.clone())?;
        let mut response = CreateTaskResponse::new();
        response.pid = Self::pid();
        Ok(response)
    }

    async fn create_body(
        self: &Rc<Self>,
        request: &CreateTaskRequest,
        kind: Kind,
        (role, options): (Role, Options),
        init: &Process,
        booted: &Cell<bool>,
    ) -> Result<()> {
        let bundle = Path::new(&request.bundle);
        // One that others have joined may have ended and come back to them.
        let id_is_sandbox = request.id == self.settings.sandbox;
        let joins = match kind {
            Kind::Member | Kind::Joined => true,
            Kind::Single => self.machine.borrow().is_some() && id_is_sandbox,
            Kind::Pause | Kind::Api => false,
        };
        if joins {
            // Found before anything is opened.
            self.machine()?;
        }
        let io = match kind {
            // A pause program says nothing, and its streams are opened by nobody.
            Kind::Pause | Kind::Api => None,
            Kind::Single | Kind::Joined | Kind::Member => {
                let (io, streams) = stdio::open(&init.names, &request.id, &self.settings.namespace).await?;
                *init.streams.borrow_mut() = Some(Rc::new(streams));
                Some(io)
            }
        };
        let mounts = request.rootfs.iter().map(|mount| RootfsMount {
            fs_type: mount.type_.clone(),
            source: mount.source.clone(),
            target: mount.target.clone(),
            options: mount.options.clone(),
        });
        let rootfs: Vec<RootfsMount> = mounts.collect();
        let machine = if joins {
            self.machine()?
        } else {
            let machine = self.boot(bundle, role, rootfs.clone(), options, None).await?;
            booted.set(true);
            machine
        };
        let Some(io) = io else { return machine.create_pause(&request.id) };
        let container =
            NewContainer { id: request.id.clone(), bundle: bundle.into(), rootfs, io, role: kind.bundle_role() };
        machine.create(container).await
    }

    /// Boots the machine; there is one for each shim.
    pub(super) async fn boot(
        &self,
        bundle: &Path,
        role: Role,
        rootfs: Vec<RootfsMount>,
        options: Options,
        unbundled: Option<Unbundled>,
    ) -> Result<Rc<dyn Sandbox>> {
        if self.machine.borrow().is_some() || self.booting.replace(true) {
            return Err(Error::AlreadyExists(format!(
                "the sandbox {:?} has its machine already; this container needs a shim of its own",
                self.settings.sandbox
            )));
        }
        let boot = Boot {
            namespace: self.settings.namespace.clone(),
            sandbox: self.settings.sandbox.clone(),
            bundle: bundle.into(),
            role,
            rootfs,
            options,
            unbundled,
            out_of_memory: self.out_of_memory.clone(),
            agent_calls: self.agent_calls.clone(),
        };
        let machine = self.booter.boot(boot).await;
        self.booting.set(false);
        let machine = machine?;
        *self.machine.borrow_mut() = Some(machine.clone());
        Ok(machine)
    }

    /// Starts a container, or a process that was announced by Exec.
    pub(super) async fn start(self: &Rc<Self>, request: &StartRequest) -> Result<StartResponse> {
        let container = self.container(&request.id)?;
        let process = container.process(&request.exec_id)?;
        let _turn = process.turn.lock().await;
        if !request.exec_id.is_empty() && container.leaving.get() {
            return Err(Error::Precondition(format!("container {} init process is not running", container.id)));
        }
        process.state.get().may_start().map_err(|error| self.with_failure(error))?;
        if request.exec_id.is_empty() {
            self.machine()?.start(&container.id).await?;
            process.state.set(State::Running);
            let mut event = events::TaskStart::new();
            event.container_id = container.id.clone();
            event.pid = Self::pid();
            self.publish(&event);
        } else {
            self.start_exec(&container, &process).await?;
        }
        let mut response = StartResponse::new();
        response.pid = Self::pid();
        Ok(response)
    }

    /// Says why a process has ended that ended with its machine.
    fn with_failure(&self, error: Error) -> Error {
        let failure = self.machine.borrow().as_ref().and_then(|machine| machine.failure());
        match (error, failure) {
            (Error::Precondition(problem), Some(failure)) => Error::Precondition(format!("{problem}: {failure}")),
            (error, _) => error,
        }
    }

    async fn start_exec(self: &Rc<Self>, container: &Rc<Container>, process: &Rc<Process>) -> Result<()> {
        let started = async {
            let spec = process.spec.take();
            let spec = spec.ok_or_else(|| Error::Precondition("cannot start a process twice".into()))?;
            let (io, streams) = stdio::open(&process.names, &process.id, &self.settings.namespace).await?;
            *process.streams.borrow_mut() = Some(Rc::new(streams));
            self.machine()?.exec(&container.id, &process.id, spec, io).await
        };
        if let Err(error) = started.await {
            process.release().await;
            // Whoever waits for it waits no longer; that it never ran is told by the error.
            process.finish(Exit { status: 255, at: std::time::SystemTime::now() });
            return Err(error);
        }
        process.state.set(State::Running);
        let mut event = events::TaskExecStarted::new();
        event.container_id = container.id.clone();
        event.exec_id = process.id.clone();
        event.pid = Self::pid();
        self.publish(&event);
        self.follow(container.clone(), process.clone())
    }
}

fn created(request: &CreateTaskRequest) -> events::TaskCreate {
    let mut event = events::TaskCreate::new();
    event.container_id = request.id.clone();
    event.bundle = request.bundle.clone();
    event.rootfs = request.rootfs.clone();
    event.pid = Pod::pid();
    let io = event.io.mut_or_insert_default();
    io.stdin = request.stdin.clone();
    io.stdout = request.stdout.clone();
    io.stderr = request.stderr.clone();
    io.terminal = request.terminal;
    event
}
