//! Hooks of a bundle ([`sandbox::hooks`]). Docker before 27.4 gives a container its network by one: it is told the process id, and puts
//! interfaces into that process's network namespace.
//!
//! They run where this process was started, not in the pod's network namespace.

use std::{os::fd::OwnedFd, sync::Arc};

use network::Namespace;
use rustix::{
    fs::{Mode, OFlags},
    thread::{LinkNameSpaceType, move_into_link_name_space},
};
use sandbox::{
    bundle::Bundle,
    hooks::{self, Point, Told},
};
use tokio::sync::oneshot;

use crate::{Error, Result, log};

/// Where the process was when it started.
#[derive(Debug)]
pub(crate) struct Origin {
    /// Its network namespace.
    pub(crate) network: Arc<Namespace>,
    mounts: OwnedFd,
}

impl Origin {
    /// Where the calling thread is.
    ///
    /// # Errors
    /// When `/proc` is not what it should be.
    pub(crate) fn here() -> Result<Self> {
        const MOUNTS: &str = "/proc/thread-self/ns/mnt";
        let network = Namespace::current().map_err(|error| Error::Sandbox(error.into()))?;
        let mounts = rustix::fs::open(MOUNTS, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
        Ok(Self { network: Arc::new(network), mounts: mounts.map_err(|e| Error::io(format!("open {MOUNTS}"), e))? })
    }

    /// Takes the calling thread there, for good.
    fn enter(&self) -> Result<()> {
        let failed = |e| Error::io("return to the host's mounts for a hook", e);
        sandbox::own_directories().map_err(failed)?;
        move_into_link_name_space(std::os::fd::AsFd::as_fd(&self.mounts), Some(LinkNameSpaceType::Mount))
            .map_err(|e| failed(e.into()))?;
        self.network.enter().map_err(|error| Error::Sandbox(error.into()))
    }
}

/// The hooks of a container.
#[derive(Clone)]
pub(crate) struct Hooks {
    origin: Arc<Origin>,
    hooks: oci_spec::runtime::Hooks,
    told: Told,
}

impl Hooks {
    /// Those that a bundle names, if any.
    pub(crate) fn of(origin: &Arc<Origin>, id: &str, bundle: &Bundle) -> Option<Self> {
        let hooks = bundle.spec.hooks().clone()?;
        let told = Told::of_bundle(id, bundle, std::process::id());
        Some(Self { origin: origin.clone(), hooks, told })
    }

    /// The container is being created, and its network namespace is there.
    ///
    /// # Errors
    /// The first that fails, with what it said; no further one is run.
    pub(crate) async fn creating(&self) -> Result<()> {
        self.there(|this| {
            hooks::run(Point::Prestart, &this.hooks, &this.told)?;
            Ok(hooks::run(Point::CreateRuntime, &this.hooks, &this.told)?)
        })
        .await
    }

    /// The container has started. What fails does not concern it.
    pub(crate) async fn started(&self) {
        self.try_all(Point::Poststart).await;
    }

    /// The container is gone. What fails does not concern it.
    pub(crate) async fn gone(&self) {
        self.try_all(Point::Poststop).await;
    }

    async fn try_all(&self, point: Point) {
        if point.of(&self.hooks).is_empty() {
            return;
        }
        let ran = self.there(move |this| {
            hooks::run_all(point, &this.hooks, &this.told, |error| log::warn(&error.chain()));
            Ok(())
        });
        ran.await.unwrap_or_else(|error| log::warn(&error.chain()));
    }

    /// Does something where this process was started.
    async fn there(&self, work: impl FnOnce(&Self) -> Result<()> + Send + 'static) -> Result<()> {
        let (told, outcome) = oneshot::channel();
        let this = self.clone();
        // A thread of its own, because it leaves the namespaces of this process.
        let work = move || drop(told.send(this.origin.enter().and_then(|()| work(&this))));
        let thread = std::thread::Builder::new().name("hook".into()).spawn(work);
        thread.map_err(|e| Error::io("start a thread for hooks", e))?;
        outcome.await.map_err(|_| Error::io("run hooks", std::io::Error::other("their thread panicked")))?
    }
}
