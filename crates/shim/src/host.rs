//! The sandbox library, hosted by this process.

use std::{
    cell::RefCell,
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use ::sandbox::{
    Observer, Prepared,
    bundle::{self, Bundle},
    cgroup::HostCgroup,
    hooks::Point,
    journal::Journal,
    launch,
    plan::Plan,
    pod::{self, Birth, Demand, GuestNetwork, Limits},
    rootfs::{self, RootfsMount},
    store::{ContainerState, StateDir, Status, Store},
    systemd::{self, Scope},
};
use agent_api::{Pod, WindowSize, statistics::Statistics};
use config::{Config, Internetworking};
use network::Namespace;
use oci_spec::runtime::{LinuxNamespaceType, LinuxResources, Process, Spec};
use tokio::sync::mpsc;

use crate::{
    Error, Result,
    backend::{Boot, Booter, Ending, Io, Local, NewContainer, Outcome, Sandbox, Unbundled, state_root},
    group::{Network, Role},
    hooks::{Hooks, Origin},
    log,
    monitor::Durations,
};

/// Gives this process a mount namespace of its own, so that what a sandbox mounts is seen by nobody else and goes with it, and the pod's
/// network namespace: that is where its interfaces are mirrored from, and where Docker, which only knows the task's process id, puts them.
///
/// # Errors
/// Without the privilege to do that, or when the network namespace is gone.
pub(crate) fn enter_namespaces(network: &Network) -> Result<()> {
    devices::share::enter_private_namespace().map_err(|error| Error::Sandbox(error.into()))?;
    match network {
        // Create refuses the host's network, with the field, or gives it behind passt; the sandbox API names the namespace later.
        Network::Host => Ok(()),
        Network::New => Namespace::create().and_then(|made| made.enter()).map_err(of_network),
        Network::At(path) => enter_network(path),
    }
}

fn enter_network(path: &Path) -> Result<()> {
    let namespace = Namespace::open(path).map_err(of_network)?;
    if namespace.is_host().map_err(of_network)? {
        return Err(Error::Invalid(format!(
            "the network namespace {} is the host's, which a virtual machine cannot be in; leave hostNetwork out",
            path.display()
        )));
    }
    namespace.enter().map_err(of_network)
}

fn of_network(error: network::Error) -> Error {
    Error::Sandbox(error.into())
}

/// Boots machines in this process.
pub(crate) struct Host {
    origin: Arc<Origin>,
}

impl Host {
    /// To be made before [`enter_namespaces`]: hooks run where this process was then.
    ///
    /// # Errors
    /// When `/proc` is not what it should be.
    pub(crate) fn new() -> Result<Self> {
        Ok(Self { origin: Arc::new(Origin::here()?) })
    }
}

impl Booter for Host {
    fn boot(&self, boot: Boot) -> Local<'_, Result<Rc<dyn Sandbox>>> {
        let origin = self.origin.clone();
        Box::pin(async move { Ok(Rc::new(Hosted::boot(boot, origin).await?) as Rc<dyn Sandbox>) })
    }
}

/// Where a sandbox's network comes from. Enters the network namespace that the sandbox API has named.
fn guest_network(
    bundle: Option<&Bundle>,
    unbundled: Option<&Unbundled>,
    model: Internetworking,
) -> Result<GuestNetwork> {
    if let Some(bundle) = bundle {
        bundle.check_host_network(model)?;
        return Ok(match bundle.network_namespace() {
            bundle::NetworkNamespace::Host => GuestNetwork::Host,
            _ => GuestNetwork::Namespace,
        });
    }
    match unbundled.and_then(|pod| pod.netns.as_deref()) {
        Some(netns) => enter_network(netns).map(|()| GuestNetwork::Namespace),
        None if model == Internetworking::Passt => Ok(GuestNetwork::Host),
        // The namespace that this process is in is the host's, whose interfaces are none of a guest's business.
        None => Err(Error::Invalid(
            "the pod has no network namespace, which asks for the host's network; leave hostNetwork out, or set \
             internetworking_model = \"passt\" for one that reaches what the host reaches"
                .into(),
        )),
    }
}

/// Reads a bundle.
fn load(dir: &Path, role: bundle::Role) -> Result<Bundle> {
    let bundle = Bundle::load(dir, role)?;
    bundle.refuse_hooks(&[Point::CreateContainer])?;
    Ok(bundle)
}

/// A sandbox of the library.
struct Hosted {
    sandbox: Rc<pod::Sandbox>,
    plan: Plan,
    network: GuestNetwork,
    dir: StateDir,
    /// Of the container that the machine was booted for: its disks are in it from the start.
    first: RefCell<Option<Prepared>>,
    /// In the order in which they were entered.
    cgroups: RefCell<Vec<HostCgroup>>,
    /// It is one container's.
    alone: bool,
    origin: Arc<Origin>,
    hooks: RefCell<HashMap<String, Hooks>>,
}

impl Hosted {
    async fn boot(boot: Boot, origin: Arc<Origin>) -> Result<Self> {
        let begun_ns = ::sandbox::timeline::now_ns();
        let store = Store::new(state_root(&boot.namespace));
        store.check_free(&boot.sandbox)?;
        let alone = boot.role == Role::Single;
        let role = if alone { bundle::Role::Alone } else { bundle::Role::Pod };
        let bundle = if boot.unbundled.is_none() { Some(load(&boot.bundle, role)?) } else { None };
        let unbundled = boot.unbundled.as_ref();
        let spec = bundle.as_ref().map(|bundle| &bundle.spec).or(unbundled.map(|pod| &pod.spec));
        let spec = spec.cloned().unwrap_or_default();
        let mut config = Config::load(boot.options.config_path.as_deref()).map_err(::sandbox::Error::from)?;
        let annotations = spec.annotations().clone().unwrap_or_default();
        let ignored = config.annotate(&annotations).map_err(::sandbox::Error::from)?;
        ignored.iter().for_each(|ignored| log::warn(ignored));
        let plan = Plan::new(&config, &mut |warning| log::warn(warning))?;
        plan.observe();
        let limits = if alone { Limits::of(&spec) } else { limits_of_pod(&annotations) };
        limits.check()?;
        let demand = Demand::growing(limits, &plan);
        let model = plan.config.runtime.internetworking_model;
        let network = guest_network(bundle.as_ref(), unbundled, model)?;
        let hooks = bundle.as_ref().and_then(|bundle| Hooks::of(&origin, &boot.sandbox, bundle));
        let id = boot.sandbox.clone();
        let mut state = match &bundle {
            Some(bundle) => launch::initial_state(&id, bundle),
            None => ContainerState::new(&id, &boot.bundle),
        };
        if boot.options.systemd_cgroup {
            systemd::check()?;
            state.cgroup = cgroup_of(&spec);
            state.ask_for_scope(&store.root().join(&id))?;
        }
        let dir = store.reserve(&id)?;
        let mut cgroups = Vec::new();
        let booted = async {
            let scope = state.scope.clone();
            let journal = Journal::claim(dir.clone(), state)?;
            let mut first = match &bundle {
                Some(bundle) if alone => Some(prepare(&boot.sandbox, bundle, &boot.rootfs, &dir, &plan)?),
                _ => None,
            };
            let disks = first.as_mut().map(Prepared::take_disks).unwrap_or_default();
            if let Some(hooks) = &hooks {
                // They may be what brings the interfaces that the machine is booted with.
                hooks.creating().await?;
            }
            let shims = boot.options.shim_cgroup.as_deref();
            if let Some(path) = shims {
                // It is left for the pod's while the machine is started; that it can be entered is found out before.
                cgroups.push(enter_cgroup(path, &journal)?);
            }
            match scope {
                Some(scope) => cgroups.push(enter_scope(scope).await?),
                None => cgroups.extend(enter_cgroup_of_pod(&spec, &journal)),
            }
            let observer = Rc::new(Watcher {
                journal: journal.clone(),
                out_of_memory: boot.out_of_memory,
                agent_calls: boot.agent_calls,
            });
            let pod = (!alone).then(|| shared_by(&spec));
            let birth = Birth {
                plan: plan.clone(),
                demand,
                journal: journal.clone(),
                observer,
                pod,
                network,
                disks,
                begun_ns,
                home: Some(origin.network.clone()),
            };
            let sandbox = pod::Sandbox::boot(birth).await?;
            cgroups.extend(shims.and_then(|path| warned(path, enter_cgroup(path, sandbox.journal()))));
            // The host's own loopback is not ours to redirect.
            let forwarded = !alone && network != GuestNetwork::Host;
            if let Err(error) = serve(&sandbox, plan.config.agent.debug_console_enabled, forwarded) {
                sandbox.stop().await;
                return Err(error);
            }
            Ok::<_, Error>((sandbox, first))
        };
        match booted.await {
            Ok((sandbox, first)) => Ok(Self {
                sandbox,
                plan,
                network,
                dir,
                first: first.into(),
                cgroups: cgroups.into(),
                alone,
                origin,
                hooks: RefCell::new(hooks.map(|hooks| (id, hooks)).into_iter().collect()),
            }),
            Err(error) => {
                tell_details(&error);
                remove(&dir, cgroups).unwrap_or_else(|error| log::warn(&error.chain()));
                if let Some(hooks) = hooks {
                    hooks.gone().await;
                }
                Err(error)
            }
        }
    }

    async fn create_container(&self, container: NewContainer) -> Result<()> {
        let NewContainer { id, bundle, rootfs, io, role } = container;
        let first = self.first.take();
        let created = async {
            let prepared = match first {
                // Its hooks have run.
                Some(first) => first,
                None => self.prepare_member(&id, &bundle, &rootfs, role).await?,
            };
            Ok(self.sandbox.create(&id, prepared, io, false).await.map(drop)?)
        };
        if role == bundle::Role::Beside {
            self.sandbox.journal().update(|state| state.joined.push(id.clone()))?;
        }
        let created = created.await;
        match &created {
            Ok(()) => tell_times(&self.sandbox),
            Err(error) => {
                tell_details(error);
                self.forget_joined(&id)?;
                self.run_last_hooks(&id).await;
            }
        }
        created
    }

    async fn prepare_member(
        &self,
        id: &str,
        bundle: &Path,
        rootfs: &[RootfsMount],
        role: bundle::Role,
    ) -> Result<Prepared> {
        let bundle = load(bundle, role)?;
        if self.network != GuestNetwork::Host {
            // Of a pod that has a network of its own, no container has the host's.
            bundle.check_host_network(Internetworking::None)?;
        }
        let prepared = prepare(id, &bundle, rootfs, &self.dir, &self.plan)?;
        if let Some(hooks) = Hooks::of(&self.origin, id, &bundle) {
            let ran = hooks.creating().await;
            self.hooks.borrow_mut().insert(id.into(), hooks);
            ran?;
        }
        Ok(prepared)
    }

    async fn start_container(&self, id: &str) -> Result<()> {
        if self.alone {
            // Docker from 27.4 on puts its interfaces into the namespace between Create and Start.
            self.sandbox.sync_network().await?;
        }
        self.sandbox.start(id).await?;
        tell_times(&self.sandbox);
        let hooks = self.hooks.borrow_mut().remove(id);
        if let Some(hooks) = hooks {
            hooks.started().await;
            self.hooks.borrow_mut().insert(id.into(), hooks);
        }
        Ok(())
    }

    fn forget_joined(&self, id: &str) -> Result<()> {
        if self.sandbox.journal().state().joined.iter().any(|joined| joined == id) {
            self.sandbox.journal().update(|state| state.joined.retain(|joined| joined != id))?;
        }
        Ok(())
    }

    async fn run_last_hooks(&self, id: &str) {
        let hooks = self.hooks.borrow_mut().remove(id);
        if let Some(hooks) = hooks {
            hooks.gone().await;
        }
    }
}

/// Logs where the time went of a start that took too long.
fn tell_details(error: &Error) {
    if let Error::Sandbox(error) = error {
        error.details().iter().for_each(|line| log::warn(line));
    }
}

/// Writes down when what was finished. A pod does without if that fails.
fn tell_times(sandbox: &pod::Sandbox) {
    sandbox.save_timeline().unwrap_or_else(|error| log::warn(&error.chain()));
}

/// Opens all that a container needs of the host.
fn prepare(id: &str, bundle: &Bundle, mounts: &[RootfsMount], dir: &StateDir, plan: &Plan) -> Result<Prepared> {
    let staging = dir.file("rootfs");
    match fs::create_dir(&staging) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
            return Err(Error::io(format!("create {}", staging.display()), error));
        }
        _ => {}
    }
    let root = rootfs::open(mounts, &bundle.rootfs, &staging);
    let _not_empty = fs::remove_dir(&staging);
    Ok(Prepared::new(id, bundle, root?, plan.arch())?)
}

/// What all containers of a pod may use, as the CRI tells before any of them is there.
fn limits_of_pod(annotations: &HashMap<String, String>) -> Limits {
    let number = |name: &str| {
        let value = annotations.get(&format!("io.kubernetes.cri.sandbox-{name}"));
        value.and_then(|value| value.parse::<u64>().ok()).unwrap_or(0)
    };
    let milli_cpus = (number("cpu-quota") * 1000).checked_div(number("cpu-period")).unwrap_or(0);
    Limits { milli_cpus, memory: number("memory") }
}

fn cgroup_of(spec: &Spec) -> Option<PathBuf> {
    spec.linux().as_ref()?.cgroups_path().clone().filter(|path| !path.as_os_str().is_empty())
}

/// The same where systemd manages cgroups. It is asked beside this thread, on which callers are answered.
async fn enter_scope(scope: Scope) -> Result<HostCgroup> {
    let entered = tokio::task::spawn_blocking(move || HostCgroup::enter_scope(&scope)).await;
    Ok(entered.map_err(|error| Error::io("wait for systemd", error))??)
}

/// Moves this process, and so the machine, to where the pod is accounted for. Where that cannot be the pod runs nevertheless.
fn enter_cgroup_of_pod(spec: &Spec, journal: &Journal) -> Option<HostCgroup> {
    let path = cgroup_of(spec)?;
    warned(&path, enter_cgroup(&path, journal))
}

fn warned(path: &Path, entered: Result<HostCgroup>) -> Option<HostCgroup> {
    entered.inspect_err(|error| log::warn(&format!("enter the cgroup {}: {}", path.display(), error.chain()))).ok()
}

fn enter_cgroup(path: &Path, journal: &Journal) -> Result<HostCgroup> {
    let mut made = |made| journal.update(|state| drop(state.cgroups.splice(0..0, made)));
    Ok(HostCgroup::enter(path, &mut made)?)
}

/// What the containers of a pod share, as its sandbox container's configuration has it.
fn shared_by(spec: &Spec) -> Pod {
    let sysctl = spec.linux().as_ref().and_then(|linux| linux.sysctl().clone()).unwrap_or_default();
    let namespaces = spec.linux().as_ref().and_then(|linux| linux.namespaces().as_ref());
    let has_name = namespaces.into_iter().flatten().any(|namespace| namespace.typ() == LinuxNamespaceType::Uts);
    let of_host = || rustix::system::uname().nodename().to_string_lossy().into_owned();
    let name = spec.hostname().clone().filter(|name| !name.is_empty());
    Pod {
        // Without a name of its own it has the host's.
        hostname: name.unwrap_or_else(|| if has_name { String::new() } else { of_host() }),
        domainname: spec.domainname().clone().unwrap_or_default(),
        sysctl: sysctl.into_iter().collect(),
        shm_size: 0,
    }
}

/// Has a machine that was booted do what goes on for as long as it runs, and writes down that it does.
fn serve(sandbox: &Rc<pod::Sandbox>, console: bool, forwarded: bool) -> Result<()> {
    sandbox.listen();
    tell_times(sandbox);
    if console {
        ::sandbox::daemon::serve_console(sandbox)?;
    }
    if forwarded && let Err(error) = sandbox.forward_ports() {
        // A pod of which no port can be forwarded is still a pod.
        log::warn(&format!("ports cannot be forwarded: {}", error.chain()));
    }
    Ok(sandbox.journal().update(|state| state.status = Status::Running)?)
}

/// Removes a state directory whose sandbox this process has ended.
fn remove(dir: &StateDir, mut cgroups: Vec<HostCgroup>) -> Result<()> {
    cgroups.iter_mut().rev().for_each(HostCgroup::leave);
    dir.purge()?;
    if let Some(root) = dir.path().parent() {
        Store::new(root).remove_if_empty(1);
    }
    Ok(())
}

/// Writes down and passes on what happens.
struct Watcher {
    journal: Rc<Journal>,
    out_of_memory: mpsc::UnboundedSender<String>,
    agent_calls: Rc<RefCell<Durations>>,
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

    fn answered(&self, call: &'static str, took: Duration) {
        self.agent_calls.borrow_mut().note(call, took);
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
        Box::pin(self.start_container(id))
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

    fn guest_metrics(&self) -> Local<'_, Result<String>> {
        Box::pin(async { Ok(self.sandbox.guest_metrics().await?) })
    }

    fn host_processes(&self) -> Vec<(&'static str, u32)> {
        let state = self.sandbox.journal().state();
        let processes = [("hypervisor", state.vmm), ("virtiofsd", state.virtiofs)];
        processes.into_iter().filter_map(|(name, process)| Some((name, process?.pid))).collect()
    }

    fn failure(&self) -> Option<String> {
        self.sandbox.journal().state().failure
    }

    fn ending(&self, id: &str, exec: Option<&str>) -> Result<Ending> {
        Ok(self.sandbox.ending(id, exec)?)
    }

    fn remove<'a>(&'a self, id: &'a str) -> Local<'a, Result<()>> {
        Box::pin(async {
            self.sandbox.remove(id).await?;
            self.forget_joined(id)?;
            self.run_last_hooks(id).await;
            Ok(())
        })
    }

    fn stop(&self) -> Local<'_, Result<()>> {
        Box::pin(async {
            self.sandbox.stop().await;
            remove(&self.dir, self.cgroups.take())
        })
    }
}
