//! What the services need of a sandbox.

use std::{
    cell::RefCell,
    future::Future,
    path::{Path, PathBuf},
    pin::Pin,
    rc::Rc,
};

pub(crate) use ::sandbox::{
    Ending, Outcome,
    pod::{Io, Sink, Source},
    rootfs::RootfsMount,
};
use agent_api::{WindowSize, statistics::Statistics};
use oci_spec::runtime::{LinuxResources, Process, Spec};
use tokio::sync::mpsc;

use crate::{Result, group::Role, monitor::Durations, options::Options};

/// A future of the one thread that sandboxes belong to.
pub(crate) type Local<'a, T> = Pin<Box<dyn Future<Output = T> + 'a>>;

/// What a machine is booted for.
pub(crate) struct Boot {
    /// containerd's namespace.
    pub(crate) namespace: String,
    /// Name of the sandbox.
    pub(crate) sandbox: String,
    /// Bundle of the sandbox container, of the only container, or of the sandbox.
    pub(crate) bundle: PathBuf,
    /// Whether it is for a pod; never [`Role::Member`].
    pub(crate) role: Role,
    /// Root file system of the only container.
    pub(crate) rootfs: Vec<RootfsMount>,
    /// Options of the runtime.
    pub(crate) options: Options,
    /// What a pod without a bundle is told by.
    pub(crate) unbundled: Option<Unbundled>,
    /// Takes the names of containers that ran out of memory.
    pub(crate) out_of_memory: mpsc::UnboundedSender<String>,
    /// Takes how long the agent's answers take.
    pub(crate) agent_calls: Rc<RefCell<Durations>>,
}

/// What the Sandbox service says of a pod; its bundle is empty.
#[derive(Debug)]
pub(crate) struct Unbundled {
    /// As much of a configuration as is known.
    pub(crate) spec: Spec,
    /// The network namespace.
    pub(crate) netns: Option<PathBuf>,
}

/// A container that is to be created.
pub(crate) struct NewContainer {
    /// Its name.
    pub(crate) id: String,
    /// Its bundle.
    pub(crate) bundle: PathBuf,
    /// Its root file system; empty if the bundle has it.
    pub(crate) rootfs: Vec<RootfsMount>,
    /// Its first process's stdio.
    pub(crate) io: Io,
    /// Whose it is.
    pub(crate) role: ::sandbox::bundle::Role,
}

/// Boots sandboxes.
pub(crate) trait Booter {
    /// Boots one.
    fn boot(&self, boot: Boot) -> Local<'_, Result<Rc<dyn Sandbox>>>;
}

/// A sandbox: a machine and its containers. An `exec` that is absent means the container's first process.
pub(crate) trait Sandbox {
    /// Creates a container.
    fn create(&self, container: NewContainer) -> Local<'_, Result<()>>;
    /// Enters a pod's sandbox container, which runs nothing.
    fn create_pause(&self, id: &str) -> Result<()>;
    /// Lets a container's first process run.
    fn start<'a>(&'a self, id: &'a str) -> Local<'a, Result<()>>;
    /// Starts a further process.
    fn exec<'a>(&'a self, id: &'a str, exec: &'a str, process: Process, io: Io) -> Local<'a, Result<()>>;
    /// Sends a signal.
    fn signal<'a>(&'a self, id: &'a str, exec: Option<&'a str>, signal: i32, all: bool) -> Local<'a, Result<()>>;
    /// Sets the size of a terminal.
    fn resize<'a>(&'a self, id: &'a str, exec: Option<&'a str>, size: WindowSize) -> Local<'a, Result<()>>;
    /// Freezes a container.
    fn pause<'a>(&'a self, id: &'a str) -> Local<'a, Result<()>>;
    /// Thaws it.
    fn resume<'a>(&'a self, id: &'a str) -> Local<'a, Result<()>>;
    /// Changes its limits.
    fn update<'a>(&'a self, id: &'a str, resources: LinuxResources) -> Local<'a, Result<()>>;
    /// What it uses.
    fn statistics<'a>(&'a self, id: &'a str) -> Local<'a, Result<Statistics>>;
    /// Figures of the guest and its agent, in the text format of Prometheus.
    fn guest_metrics(&self) -> Local<'_, Result<String>>;
    /// Processes on the host that belong to the machine, by what they are: `hypervisor`, `virtiofsd`.
    fn host_processes(&self) -> Vec<(&'static str, u32)>;
    /// Why the machine died, if it did.
    fn failure(&self) -> Option<String>;
    /// The end of a process.
    fn ending(&self, id: &str, exec: Option<&str>) -> Result<Ending>;
    /// Removes what is left of a container.
    fn remove<'a>(&'a self, id: &'a str) -> Local<'a, Result<()>>;
    /// Ends the machine; it and its state directory are gone afterwards.
    fn stop(&self) -> Local<'_, Result<()>>;
}

/// Where the sandboxes of all shims are.
pub(crate) const STATE_ROOT: &str = "/run/kata-containers/shim";

/// Where the sandboxes of a namespace of containerd are: two namespaces may have containers of one name.
pub(crate) fn state_root(namespace: &str) -> PathBuf {
    Path::new(STATE_ROOT).join(namespace)
}

/// Whether there are containers that have joined a sandbox's first one.
pub(crate) fn is_joined(namespace: &str, sandbox: &str) -> bool {
    let state = ::sandbox::store::Store::new(state_root(namespace)).state(sandbox);
    state.is_ok_and(|state| !state.joined.is_empty())
}

/// Kills what is left of a sandbox whose shim is gone and removes its state directory; gives the shim's process id, 0 if there was no sandbox.
///
/// # Errors
/// When something does not go away.
pub(crate) fn purge(namespace: &str, sandbox: &str) -> Result<u32> {
    let store = ::sandbox::store::Store::new(state_root(namespace));
    let dir = match store.find(sandbox) {
        Ok(dir) => dir,
        Err(::sandbox::Error::NotFound { .. }) => return Ok(0),
        Err(error) => return Err(error.into()),
    };
    let pid = dir.load().ok().and_then(|state| state.daemon).map_or(0, |shim| shim.pid);
    dir.purge()?;
    store.remove_if_empty(1);
    Ok(pid)
}
