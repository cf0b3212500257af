//! The sandbox library, hosted by this process.

use std::{fs, os::fd::AsFd, path::Path, rc::Rc, time::SystemTime};

use ::sandbox::{
    Demand, Observer, Prepared,
    bundle::{self, Bundle},
    journal::Journal,
    launch,
    plan::Plan,
    pod::{self, Birth},
    rootfs,
    store::{ContainerState, ProcessRef, StateDir, Status, Store},
};
use agent_api::{Pod, WindowSize, statistics::Statistics};
use config::Config;
use oci_spec::runtime::{LinuxResources, Process, Spec};
use tokio::sync::mpsc;

use crate::{
    Error, Result,
    backend::{Boot, Booter, Ending, Io, Local, NewContainer, Outcome, Sandbox, state_root},
    group::{Network, Role},
    log, sys,
};

/// Gives this process a mount namespace of its own, so that what a sandbox mounts is seen by nobody else and goes with it, and the pod's
/// network namespace: that is where its interfaces are mirrored from, and where Docker, which only knows the task's process id, puts them.
///
/// # Errors
/// Without the privilege to do that, or when the network namespace is gone.
pub(crate) fn enter_namespaces(network: &Network) -> Result<()> {
    devices::share::enter_private_namespace().map_err(|error| Error::Sandbox(error.into()))?;
    match network {
        // Create refuses the host's network, with the field; the sandbox API names the namespace later.
        Network::Host => Ok(()),
        Network::New => sys::new_network_namespace().map_err(|e| Error::io("make a network namespace for the pod", e)),
        Network::At(path) => enter_network(path),
    }
}

fn enter_network(path: &Path) -> Result<()> {
    let failed = |e: std::io::Error| Error::io(format!("enter the network namespace {}", path.display()), e);
    let namespace = fs::File::open(path).map_err(failed)?;
    let kind = Some(rustix::thread::LinkNameSpaceType::Network);
    rustix::thread::move_into_link_name_space(namespace.as_fd(), kind).map_err(|e| failed(e.into()))
}

/// Boots machines in this process.
pub(crate) struct Host;

impl Booter for Host {
    fn boot(&self, boot: Boot) -> Local<'_, Result<Rc<dyn Sandbox>>> {
        Box::pin(async move { Ok(Rc::new(Hosted::boot(boot).await?) as Rc<dyn Sandbox>) })
    }
}

/// A sandbox of the library.
struct Hosted {
    sandbox: Rc<pod::Sandbox>,
    plan: Plan,
    dir: StateDir,
}

impl Hosted {
    async fn boot(boot: Boot) -> Result<Self> {
        let begun_ns = monotonic_ns();
        let store = Store::new(state_root(&boot.namespace));
        store.check_free(&boot.sandbox)?;
        let role = if boot.role == Role::Single { bundle::Role::Alone } else { bundle::Role::Pod };
        // A sandbox of the sandbox API has no bundle.
        let has_bundle = boot.bundle.join("config.json").exists();
        let bundle = if has_bundle { Some(Bundle::load(&boot.bundle, role)?) } else { None };
        let spec = bundle.as_ref().map(|bundle| bundle.spec.clone()).unwrap_or_default();
        let mut config = Config::load(boot.options.config_path.as_deref()).map_err(::sandbox::Error::from)?;
        let annotations = spec.annotations().clone().unwrap_or_default();
        let ignored = config.annotate(&annotations).map_err(::sandbox::Error::from)?;
        ignored.iter().for_each(|ignored| log::warn(ignored));
        let plan = Plan::new(&config, &mut |warning| log::warn(warning))?;
        let demand = Demand::of(&spec, &config.qemu);
        if let Some(netns) = &boot.netns {
            enter_network(netns)?;
        }
        let dir = store.reserve(&boot.sandbox)?;
        let booted = async {
            let mut state = match &bundle {
                Some(bundle) => launch::initial_state(&boot.sandbox, bundle),
                None => state_without_bundle(&boot),
            };
            state.daemon = ProcessRef::of(std::process::id());
            state.creator = None;
            state.network_namespace = boot.netns.clone();
            let journal = Journal::new(dir.clone(), state);
            journal.update(|_| ())?;
            let observer = Rc::new(Watcher { journal: journal.clone(), out_of_memory: boot.out_of_memory });
            let pod = (boot.role != Role::Single).then(|| shared_by(&spec));
            let birth = Birth { plan: plan.clone(), demand, journal: journal.clone(), observer, pod, begun_ns };
            let sandbox = pod::Sandbox::boot(birth).await?;
            sandbox.listen();
            journal.update(|state| state.status = Status::Running)?;
            Ok::<_, Error>(sandbox)
        };
        match booted.await {
            Ok(sandbox) => Ok(Self { sandbox, plan, dir }),
            Err(error) => {
                remove(&dir).unwrap_or_else(|error| log::warn(&error.chain()));
                Err(error)
            }
        }
    }

    async fn create_container(&self, container: NewContainer) -> Result<()> {
        let NewContainer { id, bundle, role, rootfs: mounts, terminal, io, .. } = container;
        let role = if role == Role::Single { bundle::Role::Alone } else { bundle::Role::Member };
        let bundle = Bundle::load(&bundle, role)?;
        let asks = bundle.spec.process().as_ref().and_then(Process::terminal).unwrap_or(false);
        if asks != terminal {
            return Err(Error::Invalid(format!(
                "container {id:?}: process.terminal of its configuration is {asks}, but the request says {terminal}"
            )));
        }
        let staging = self.dir.file("rootfs");
        match fs::create_dir(&staging) {
            Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
                return Err(Error::io(format!("create {}", staging.display()), error));
            }
            _ => {}
        }
        let root = rootfs::open(&mounts, &bundle.rootfs, &staging);
        let _not_empty = fs::remove_dir(&staging);
        let prepared = Prepared::new(&id, &bundle, root?, self.plan.arch()?)?;
        self.sandbox.create(&id, prepared, io, false).await?;
        Ok(())
    }
}

/// What the containers of a pod share, as its sandbox container's configuration has it.
fn shared_by(spec: &Spec) -> Pod {
    let sysctl = spec.linux().as_ref().and_then(|linux| linux.sysctl().clone()).unwrap_or_default();
    Pod {
        hostname: spec.hostname().clone().unwrap_or_default(),
        domainname: spec.domainname().clone().unwrap_or_default(),
        sysctl: sysctl.into_iter().collect(),
        shm_size: 0,
    }
}

fn state_without_bundle(boot: &Boot) -> ContainerState {
    ContainerState {
        oci_version: "1.0.2".into(),
        id: boot.sandbox.clone(),
        status: Status::Creating,
        pid: 0,
        bundle: boot.bundle.clone(),
        rootfs: boot.bundle.join("rootfs"),
        created: humantime::format_rfc3339_nanos(SystemTime::now()).to_string(),
        annotations: Default::default(),
        exit: None,
        failure: None,
        creator: None,
        daemon: None,
        vmm: None,
        virtiofs: None,
        guest_kernel: None,
        network_namespace: None,
        cgroups: Vec::new(),
    }
}

/// Removes a state directory whose sandbox this process has ended.
fn remove(dir: &StateDir) -> Result<()> {
    // It is mounted in this process's namespace, by nobody else's leave; the library leaves it to the end of the process.
    let _not_mounted = rustix::mount::unmount(dir.file("shared"), rustix::mount::UnmountFlags::DETACH);
    // Purging kills whoever hosts the sandbox, which is this process.
    if let Ok(mut state) = dir.load() {
        state.daemon = None;
        dir.save(&state)?;
    }
    Ok(dir.purge()?)
}

/// `CLOCK_MONOTONIC`, nanoseconds.
fn monotonic_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec.cast_unsigned() * 1_000_000_000 + now.tv_nsec.cast_unsigned()
}

/// Writes down and passes on what happens.
struct Watcher {
    journal: Rc<Journal>,
    out_of_memory: mpsc::UnboundedSender<String>,
}

impl Observer for Watcher {
    fn process_ended(&self, _: &str, _: Option<&str>, _: &Outcome) {}

    fn died(&self, reason: &str) {
        log::error(&format!("the virtual machine has died: {reason}"));
        self.journal.died(reason);
    }

    fn out_of_memory(&self, container: &str) {
        let _shutting_down = self.out_of_memory.send(container.into());
    }
}

impl Sandbox for Hosted {
    fn create(&self, container: NewContainer) -> Local<'_, Result<()>> {
        Box::pin(self.create_container(container))
    }

    fn create_pause(&self, id: &str) -> Result<()> {
        Ok(self.sandbox.create_pause(id)?)
    }

    fn start<'a>(&'a self, id: &'a str) -> Local<'a, Result<()>> {
        Box::pin(async { Ok(self.sandbox.start(id).await?) })
    }

    fn exec<'a>(&'a self, id: &'a str, exec: &'a str, process: Process, io: Io) -> Local<'a, Result<()>> {
        Box::pin(async { Ok(self.sandbox.exec(id, exec, process, io).await.map(drop)?) })
    }

    fn signal<'a>(&'a self, id: &'a str, exec: Option<&'a str>, signal: i32, all: bool) -> Local<'a, Result<()>> {
        Box::pin(async move { Ok(self.sandbox.signal(id, exec, signal, all).await?) })
    }

    fn resize<'a>(&'a self, id: &'a str, exec: Option<&'a str>, size: WindowSize) -> Local<'a, Result<()>> {
        Box::pin(async move { Ok(self.sandbox.resize(id, exec, size).await?) })
    }

    fn pause<'a>(&'a self, id: &'a str) -> Local<'a, Result<()>> {
        Box::pin(async { Ok(self.sandbox.pause(id).await?) })
    }

    fn resume<'a>(&'a self, id: &'a str) -> Local<'a, Result<()>> {
        Box::pin(async { Ok(self.sandbox.resume(id).await?) })
    }

    fn update<'a>(&'a self, id: &'a str, resources: LinuxResources) -> Local<'a, Result<()>> {
        Box::pin(async { Ok(self.sandbox.update(id, resources).await?) })
    }

    fn statistics<'a>(&'a self, id: &'a str) -> Local<'a, Result<Statistics>> {
        Box::pin(async { Ok(self.sandbox.statistics(id).await?) })
    }

    fn ending(&self, id: &str, exec: Option<&str>) -> Result<Ending> {
        Ok(self.sandbox.ending(id, exec)?)
    }

    fn remove<'a>(&'a self, id: &'a str) -> Local<'a, Result<()>> {
        Box::pin(async { Ok(self.sandbox.remove(id).await?) })
    }

    fn stop(&self) -> Local<'_, Result<()>> {
        Box::pin(async {
            self.sandbox.stop().await;
            remove(&self.dir)
        })
    }
}
