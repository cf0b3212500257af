//! Starting a sandbox, or one more container in one that exists: the caller's half.
//!
//! Everything is checked before the first side effect. The side effects, in order: the state directory, the cgroup, what hooks do, the daemon. If
//! any later step fails, all but what hooks did is removed again before the error is returned.

use std::{
    fs,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::{fs::OpenOptionsExt, net::UnixStream, process::CommandExt},
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use config::Config;
use oci_spec::runtime::Hooks;
use serde::{Deserialize, Serialize};

use crate::{
    Error, Result,
    api::{Reply, Request, StdioSet},
    bundle::{Bundle, NetworkNamespace, Role},
    client::{Connection, Running, StdioEnds},
    daemon,
    hooks::{self, Point, Told},
    joining::Joining,
    plan::Plan,
    pod::{Demand, Limits},
    steps,
    store::{ContainerState, ProcessRef, StateDir, Store},
    sys,
    systemd::Scope,
    timeline::Timeline,
    translate::{Parts, Prepared, Rootfs, open_tree},
};

/// What is to be started.
pub struct Launch<'a> {
    /// Where its state goes.
    pub store: &'a Store,
    /// Name of the container and of its sandbox.
    pub id: &'a str,
    /// What to run.
    pub bundle: &'a Bundle,
    /// The sandbox that it goes into, if not one of its own.
    pub joining: Option<&'a Joining>,
    /// The machine's configuration.
    pub config: &'a Config,
    /// Whether systemd is asked for a scope, instead of making a cgroup.
    pub systemd: bool,
    /// Whether interfaces, disks, memory and processors may come while the machine runs.
    pub growing: bool,
    /// `CLOCK_MONOTONIC` when the caller's command began, nanoseconds; the timeline counts from it.
    pub begun_ns: u64,
}

/// A sandbox that was checked and has a state directory, and nothing else yet. If it goes no further, the directory and the cgroup go with it,
/// which is why whatever is in that has to end before this is dropped.
pub struct Launching<'a> {
    dir: StateDir,
    state: ContainerState,
    bundle: &'a Bundle,
    prepared: Option<Prepared>,
    plan: Plan,
    demand: Demand,
    network: Option<PathBuf>,
    begun_ns: u64,
    joining: Option<&'a Joining>,
    /// Whether it is somebody else's to remove.
    done: bool,
}

/// A container for a sandbox that exists; the descriptors come with it as with [`Boot`].
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Member {
    pub(crate) dir: PathBuf,
    pub(crate) state: ContainerState,
    pub(crate) parts: Parts,
    pub(crate) stdio: StdioSet,
    pub(crate) start: bool,
}

/// First and only message to a new daemon; the descriptors of `parts.shares`, `parts.disks` and `stdio` come with it, in this order.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Boot {
    pub(crate) dir: PathBuf,
    pub(crate) state: ContainerState,
    pub(crate) parts: Parts,
    pub(crate) stdio: StdioSet,
    pub(crate) start: bool,
    pub(crate) plan: Plan,
    pub(crate) demand: Demand,
    /// The network namespace whose interfaces the guest shall have; it has been checked.
    pub(crate) network: Option<PathBuf>,
    /// Whether it shall have the host's network, which the daemon is in, instead.
    pub(crate) host_network: bool,
    /// The cgroup of the host that it shall be in.
    pub(crate) cgroup: Option<PathBuf>,
    pub(crate) begun_ns: u64,
}

/// Longest the daemon may take for what comes after the guest has answered.
const AFTER_BOOT: Duration = Duration::from_secs(60);

impl<'a> Launch<'a> {
    /// Checks all that can be checked, takes the name, and makes the cgroup. `warn` is told what the user should know but what is no error, in
    /// whole sentences.
    ///
    /// # Errors
    /// What is wrong, with its step; nothing is left behind.
    pub fn prepare(self, warn: &mut dyn FnMut(&str)) -> Result<Launching<'a>> {
        let Launch { store, id, bundle, joining, config, systemd, growing, begun_ns } = self;
        store.check_free(id)?;
        let plan = Plan::new(config, warn)?;
        plan.observe();
        bundle.check_host_network(config.runtime.internetworking_model)?;
        let network = check_network(bundle)?;
        if joining.is_some() && bundle.role != Role::Beside {
            return Err(Error::State("the bundle was not read as one that goes into another's sandbox".into()));
        }
        let limits = Limits::of(&bundle.spec);
        limits.check()?;
        let demand = if growing { Demand::growing(limits, &plan) } else { Demand::fixed(limits, &config.qemu) };
        let prepared = Some(prepare(id, bundle, &plan)?);
        let mut state = initial_state(id, bundle);
        if systemd {
            state.ask_for_scope(&store.root().join(id))?;
        }
        let dir = store.reserve(id)?;
        state.sandbox = joining.map(|joining| joining.sandbox.clone());
        let mut launching =
            Launching { dir, state, bundle, prepared, plan, demand, network, begun_ns, joining, done: false };
        launching.dir.save(&launching.state)?;
        launching.make_cgroup(warn)?;
        Ok(launching)
    }
}

/// Opens what the container's guest is to see, as the calling thread sees it.
fn prepare(id: &str, bundle: &Bundle, plan: &Plan) -> Result<Prepared> {
    let root = Rootfs::Tree { tree: open_tree(&bundle.rootfs, true)?, read_only: false };
    Prepared::new(id, bundle, root, plan.arch())
}

impl Launching<'_> {
    /// Makes the cgroup that the bundle names. Where that cannot be the container runs nevertheless.
    fn make_cgroup(&mut self, warn: &mut dyn FnMut(&str)) -> Result<()> {
        let Some(path) = self.state.cgroup.clone() else { return Ok(()) };
        let (dir, state) = (&self.dir, &mut self.state);
        let made = crate::cgroup::make(&path, &mut |made| {
            state.cgroups.splice(0..0, made);
            dir.save(state)
        });
        if let Err(error) = made {
            warn(&format!("make the cgroup {}: {}", path.display(), error.chain()));
            state.cgroup = None;
            dir.save(state)?;
        }
        Ok(())
    }

    /// Writes something that the user should know into the sandbox's log.
    pub fn note(&self, text: &str) {
        let log = fs::OpenOptions::new().create(true).append(true).mode(0o600).open(self.dir.file("daemon.log"));
        // It is the place for what cannot be said elsewhere.
        let _lost = log.and_then(|mut log| std::io::Write::write_all(&mut log, format!("{text}\n").as_bytes()));
    }

    /// The cgroup of the host in which the container's processes of the host shall be.
    pub fn cgroup(&self) -> Option<&Path> {
        self.state.cgroup.as_deref()
    }

    /// The scope of systemd that they shall be in instead. It is made by the first that enters it.
    pub fn scope(&self) -> Option<&Scope> {
        self.state.scope.as_ref()
    }

    /// Whether the container is to have the host's network.
    pub fn has_host_network(&self) -> bool {
        self.bundle.network_namespace() == NetworkNamespace::Host
    }

    /// The network namespace that the bundle names, if it names one.
    pub fn network(&self) -> Option<&Path> {
        self.network.as_deref()
    }

    /// Starts the daemon and waits until the container is created or, if asked, runs. `network` is the file of the network namespace whose
    /// interfaces it has. What is `told` to hooks is told to those that run in the container's namespaces.
    ///
    /// # Errors
    /// Whatever went wrong, with its step; nothing of the sandbox is left behind.
    pub fn go(
        &mut self,
        stdio: StdioEnds,
        start: bool,
        network: Option<&Path>,
        told: Option<&Told>,
    ) -> Result<Running> {
        let mut prepared = self.prepared.take();
        if let Some((hooks, told)) = self.bundle.spec.hooks().as_ref().zip(told) {
            // They may have changed what is shared.
            drop(prepared.take());
            prepared = Some(self.prepare_beside(hooks, told, network)?);
        }
        let prepared = prepared.map_or_else(|| prepare(self.dir.id(), self.bundle, &self.plan), Ok)?;
        if let Some(joining) = self.joining {
            let running = enter(&joining.door, &self.dir, self.state.clone(), prepared, &stdio, start)?;
            self.done = true;
            return Ok(running);
        }
        let Prepared { parts, trees, disks } = prepared;
        let boot = Boot {
            dir: self.dir.path().into(),
            state: self.state.clone(),
            parts,
            stdio: stdio.set(),
            start,
            plan: self.plan.clone(),
            demand: self.demand,
            network: network.map(Into::into),
            host_network: self.has_host_network(),
            cgroup: self.state.cgroup.clone(),
            begun_ns: self.begun_ns,
        };
        let attached: Vec<BorrowedFd<'_>> = trees.iter().chain(&disks).map(AsFd::as_fd).collect();
        let running = converse(&self.dir, &boot, attached, &stdio)?;
        self.done = true;
        Ok(running)
    }

    /// Runs the hooks that belong into the container's namespaces, in those of them that the host has: its network, and the mounts of the
    /// process that stands for it. Then opens what is shared, as it is seen there: earlier hooks may have mounted there, too.
    fn prepare_beside(&self, hooks: &Hooks, told: &Told, network: Option<&Path>) -> Result<Prepared> {
        let network = network.map(network::Namespace::open).transpose()?;
        let work = || {
            if let Some(pid) = told.pid() {
                sys::enter_mounts_of(pid).map_err(|e| Error::io(format!("enter the mounts of process {pid}"), e))?;
            }
            if let Some(network) = &network {
                network.enter()?;
            }
            hooks::run(Point::CreateContainer, hooks, told)?;
            prepare(self.dir.id(), self.bundle, &self.plan)
        };
        std::thread::scope(|scope| scope.spawn(work).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    }
}

impl Drop for Launching<'_> {
    fn drop(&mut self) {
        // The error that matters is the one that led here; what cannot be removed now, `delete --force` will.
        if !self.done
            && let Err(leftover) = self.dir.purge()
        {
            let id = self.dir.id();
            eprintln!("could not remove everything of {id}: {}; run delete --force {id}", leftover.chain());
        }
    }
}

/// The network namespace that the bundle names, if it names one.
fn check_network(bundle: &Bundle) -> Result<Option<PathBuf>> {
    let NetworkNamespace::Path(path) = bundle.network_namespace() else { return Ok(None) };
    // A relative path would mean something else to the daemon.
    let path = fs::canonicalize(&path).unwrap_or(path);
    if network::Namespace::open(&path)?.is_host()? {
        return Err(Error::Bundle {
            file: bundle.file.clone(),
            field: "linux.namespaces".into(),
            problem: format!(
                "the network namespace {} is the host's; a virtual machine cannot share it: leave `path` out for a new one",
                path.display()
            ),
        });
    }
    Ok(Some(path))
}

/// What is written down of a sandbox before anything of it exists.
pub fn initial_state(id: &str, bundle: &Bundle) -> ContainerState {
    ContainerState {
        oci_version: bundle.spec.version().clone(),
        rootfs: bundle.rootfs.clone(),
        config: Some(bundle.file.clone()),
        annotations: bundle.spec.annotations().clone().unwrap_or_default(),
        hooks: bundle.spec.hooks().clone(),
        cgroup: bundle
            .spec
            .linux()
            .as_ref()
            .and_then(|linux| linux.cgroups_path().clone())
            .filter(|path| !path.as_os_str().is_empty()),
        ..ContainerState::new(id, &bundle.dir)
    }
}

/// Starts the daemon, tells it what to do and waits for what became of it.
fn converse(dir: &StateDir, boot: &Boot, attached: Vec<BorrowedFd<'_>>, stdio: &StdioEnds) -> Result<Running> {
    let (ours, theirs) = UnixStream::pair().map_err(|e| Error::io("make a socket pair for the sandbox daemon", e))?;
    let log = dir.file("daemon.log");
    let log = fs::OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(&log)
        .map_err(|e| Error::io(format!("create {}", log.display()), e))?;
    let mut command = Command::new("/proc/self/exe");
    command.arg0(daemon::ROLE).arg(&boot.state.id).stdin(OwnedFd::from(theirs)).stdout(Stdio::null()).stderr(log);
    // Never waited for: it outlives this process, whose successor as its parent reaps it.
    let child = command.spawn().map_err(|e| Error::io("start the sandbox daemon", e))?;
    drop(command);
    steps::passed("daemon-spawned");

    // Written by us as well as by the daemon, so that there is no moment in which nobody knows of it.
    let mut state = boot.state.clone();
    state.daemon = ProcessRef::of(child.id());
    dir.save(&state)?;

    let mut connection =
        Connection::new(ours, dir.clone(), if boot.start { "run the container" } else { "create the container" });
    let descriptors: Vec<BorrowedFd<'_>> = attached.into_iter().chain(stdio.descriptors()).collect();
    connection.send(boot, &descriptors)?;
    let patience = patience(&boot.parts, boot.start);
    match connection.reply(Some(boot.plan.config.agent.dial_timeout + AFTER_BOOT + patience))? {
        Reply::Created { pid } => Ok(Running::new(connection, pid)),
        other => {
            let error = connection.unexpected(other);
            // Of a start that failed, the daemon leaves a timeline only if it took too long.
            Err(match Timeline::load(dir.path()) {
                Ok(timeline) => Error::Late { message: error.chain(), timeline: Box::new(timeline) },
                Err(_) => error,
            })
        }
    }
}

/// How long hooks before the program may take, if it is to be started.
fn patience(parts: &Parts, start: bool) -> Duration {
    let hooks = parts.spec.hooks().as_ref().filter(|_| start);
    hooks.map(|hooks| Point::StartContainer.patience(hooks)).unwrap_or_default()
}

/// Has the daemon of a sandbox create another container in it.
fn enter(
    door: &Path,
    dir: &StateDir,
    state: ContainerState,
    prepared: Prepared,
    stdio: &StdioEnds,
    start: bool,
) -> Result<Running> {
    let Prepared { parts, trees, disks } = prepared;
    let deadline = AFTER_BOOT + patience(&parts, start);
    let attached = trees.iter().chain(&disks).map(AsFd::as_fd);
    let descriptors: Vec<BorrowedFd<'_>> = attached.chain(stdio.descriptors()).collect();
    let member = Member { dir: dir.path().into(), state, parts, stdio: stdio.set(), start };
    let step = if start { "run the container" } else { "create the container" };
    let mut connection = Connection::open(&StateDir::at(door), step)?;
    connection.send(&Request::Create(Box::new(member)), &descriptors)?;
    match connection.reply(Some(deadline))? {
        Reply::Created { pid } => Ok(Running::new(connection, pid)),
        other => Err(connection.unexpected(other)),
    }
}
