//! Starting a sandbox: the caller's half.
//!
//! Everything is checked before the first side effect. The side effects, in order: the state directory, the daemon. If
//! any later step fails, both are removed again before the error is returned.

use std::{
    fs,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::{fs::OpenOptionsExt, net::UnixStream, process::CommandExt},
    },
    path::PathBuf,
    process::{Command, Stdio},
    time::Duration,
};

use config::Config;
use serde::{Deserialize, Serialize};

use crate::{
    Error, Result,
    api::{Reply, StdioSet},
    bundle::{Bundle, NetworkNamespace},
    client::{Connection, Running, StdioEnds},
    daemon,
    plan::Plan,
    pod::{Demand, Limits},
    store::{ContainerState, ProcessRef, StateDir, Store},
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
    /// The machine's configuration.
    pub config: &'a Config,
    /// The first process's stdio.
    pub stdio: StdioEnds,
    /// Start the first process at once.
    pub start: bool,
    /// `CLOCK_MONOTONIC` when the caller's command began, nanoseconds; the timeline counts from it.
    pub begun_ns: u64,
    /// Told what the user should know but what is no error, in whole sentences.
    pub warn: &'a mut dyn FnMut(&str),
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
    pub(crate) begun_ns: u64,
}

/// Longest the daemon may take for what comes after the guest has answered.
const AFTER_BOOT: Duration = Duration::from_secs(60);

/// Starts a sandbox with one container and waits until that is created or, if asked, runs.
///
/// # Errors
/// Whatever went wrong, with its step; nothing of the sandbox is left behind.
pub fn launch(launch: Launch<'_>) -> Result<Running> {
    let Launch { store, id, bundle, config, stdio, start, begun_ns, warn } = launch;
    store.check_free(id)?;
    let plan = Plan::new(config, warn)?;
    let root = Rootfs::Tree { tree: open_tree(&bundle.rootfs, true)?, read_only: false };
    let network = check_network(bundle)?;
    let limits = Limits::of(&bundle.spec);
    limits.check()?;
    let demand = Demand::fixed(limits, &config.qemu);
    let Prepared { parts, trees, disks } = Prepared::new(id, bundle, root, plan.arch())?;

    let dir = store.reserve(id)?;
    let launched = (|| {
        let state = initial_state(id, bundle);
        dir.save(&state)?;
        let boot =
            Boot { dir: dir.path().into(), state, parts, stdio: stdio.set(), start, plan, demand, network, begun_ns };
        let attached: Vec<BorrowedFd<'_>> = trees.iter().chain(&disks).map(AsFd::as_fd).collect();
        converse(&dir, &boot, attached, &stdio)
    })();
    match launched {
        Ok(running) => Ok(running),
        Err(error) => {
            // The first error is the one that matters; what cannot be removed now, `delete --force` will.
            if let Err(leftover) = dir.purge() {
                warn(&format!("could not remove everything of {id}: {}; run delete --force {id}", leftover.chain()));
            }
            Err(error)
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
            file: bundle.dir.join("config.json"),
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
        annotations: bundle.spec.annotations().clone().unwrap_or_default(),
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

    // Written by us as well as by the daemon, so that there is no moment in which nobody knows of it.
    let mut state = boot.state.clone();
    state.daemon = ProcessRef::of(child.id());
    dir.save(&state)?;

    let mut connection =
        Connection::new(ours, dir.clone(), if boot.start { "run the container" } else { "create the container" });
    let descriptors: Vec<BorrowedFd<'_>> = attached.into_iter().chain(stdio.descriptors()).collect();
    connection.send(boot, &descriptors)?;
    match connection.reply(Some(boot.plan.config.agent.dial_timeout + AFTER_BOOT))? {
        Reply::Created { pid } => Ok(Running::new(connection, pid)),
        other => Err(connection.unexpected(other)),
    }
}
