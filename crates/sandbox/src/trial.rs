//! Trying what a sandbox needs, without a container: the file server, and a whole guest. Nothing is left behind.

use std::{
    fs,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    rc::Rc,
    time::Duration,
};

use agent_api::Pod;
use devices::{share::SharedDir, virtiofs};

use crate::{
    Error, Observer, Outcome, Result,
    journal::Journal,
    plan::Plan,
    pod::{Birth, Demand, GuestNetwork, Limits, Sandbox},
    store::{ContainerState, StateDir, Store},
    sys,
    timeline::Timeline,
    translate::FirstDisks,
};

/// How long a file server may take to see that nobody is there to be served.
const SERVER_DEADLINE: Duration = Duration::from_secs(5);

/// Does something on a thread of its own, in a mount namespace that goes with it.
fn aside<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let alone = || {
        sys::own_directories().map_err(|e| Error::io("give a thread directories of its own", e))?;
        devices::share::enter_private_namespace()?;
        work()
    };
    std::thread::scope(|scope| scope.spawn(alone).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
}

/// A directory that goes with this value.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Result<Self> {
        let path = std::env::temp_dir().join(format!("kata-check-{}", std::process::id()));
        let made = fs::DirBuilder::new().mode(0o700).create(&path);
        made.map_err(|e| Error::io(format!("create {}", path.display()), e))?;
        Ok(Self(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}

/// Starts the file server behind virtio-fs in its jail, and ends it again by hanging up, as a virtual machine does.
///
/// # Errors
/// What it died of.
pub fn file_server() -> Result<()> {
    let scratch = Scratch::new()?;
    let path = scratch.0.clone();
    aside(move || {
        let shared = SharedDir::create(&path)?;
        let config = virtiofs::Config::new(shared.path());
        let (mut server, socket) = virtiofs::spawn(&config, Path::new("/proc/self/exe"))?;
        drop(socket);
        let ended = sys::open_process(server.pid()).is_none_or(|handle| sys::wait_gone(&handle, SERVER_DEADLINE));
        if !ended {
            let what = "the end of the virtio-fs server after its connection was closed".into();
            return Err(Error::Deadline { what, seconds: SERVER_DEADLINE.as_secs() });
        }
        match server.try_wait()? {
            Some(status) if !status.success() => {
                Err(Error::State(format!("the virtio-fs server died ({status}): {}", server.stderr_tail().join("; "))))
            }
            _ => Ok(()),
        }
    })
}

/// Boots a guest without a container and without a network, asks its agent something, and ends it. Gives where the time went.
///
/// # Errors
/// Whatever went wrong, with its step.
pub fn boot(store: &Store, plan: &Plan) -> Result<Timeline> {
    let begun_ns = crate::timeline::now_ns();
    let dir = store.reserve(&format!("trial-{}", std::process::id()))?;
    let booted = aside(|| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|e| Error::io("start the event loop", e))?;
        tokio::task::LocalSet::new().block_on(&runtime, boot_in(&dir, plan, begun_ns))
    });
    forget(&dir, store)?;
    booted
}

async fn boot_in(dir: &StateDir, plan: &Plan, begun_ns: u64) -> Result<Timeline> {
    let journal = Journal::claim(dir.clone(), ContainerState::new(dir.id(), "/"))?;
    let pod = Pod { hostname: "trial".into(), domainname: String::new(), sysctl: Default::default(), shm_size: 0 };
    let sandbox = Sandbox::boot(Birth {
        plan: plan.clone(),
        demand: Demand::fixed(Limits::default(), &plan.config.qemu),
        journal,
        observer: Rc::new(Nobody),
        pod: Some(pod),
        network: GuestNetwork::None,
        disks: FirstDisks::default(),
        begun_ns,
        home: None,
    })
    .await?;
    let asked = sandbox.guest_metrics().await;
    sandbox.stop().await;
    asked.map(|_| sandbox.timeline())
}

fn forget(dir: &StateDir, store: &Store) -> Result<()> {
    // Purging kills whoever hosts the sandbox, which was this process.
    dir.update_daemonless()?;
    dir.purge()?;
    store.remove_if_empty(0);
    Ok(())
}

/// Nobody is to be told: whoever waits for an answer hears of a death.
struct Nobody;

impl Observer for Nobody {
    fn process_ended(&self, _: &str, _: Option<&str>, _: &Outcome) {}
    fn died(&self, _: &str) {}
    fn out_of_memory(&self, _: &str) {}
}
