//! Where on the host the process is that stands for a container's: callers look through `/proc/PID` at what a container has of the host.
//!
//! Namespaces belong to threads, and `/proc/PID` shows those of the main one. So the main thread moves, and waits; the work is done by another
//! that stays where the caller is, with its files, sockets and programs.

use std::{path::PathBuf, sync::mpsc, thread};

use network::Namespace;
use sandbox::{cgroup::HostCgroup, systemd::Scope};
use serde::{Deserialize, Serialize};

use crate::{Error, Result, view::View};

/// A network namespace of the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Network {
    /// A new one, with nothing but its loopback.
    New,
    /// The one at this path.
    At(PathBuf),
}

/// What of the host is the container's.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Place {
    /// Its network namespace, if not the caller's.
    pub network: Option<Network>,
    /// Its cgroup, as `linux.cgroupsPath` has it, which exists.
    pub cgroup: Option<PathBuf>,
    /// The scope of systemd that it is in instead.
    #[serde(default)]
    pub scope: Option<Scope>,
    /// Whether it has mounts of its own: hooks may mount there what the guest is to see and the host is not.
    pub mounts: bool,
}

impl Place {
    fn enter(&self) -> Result<Option<HostCgroup>> {
        let cgroup = match (&self.scope, &self.cgroup) {
            (Some(scope), _) => Some(HostCgroup::enter_scope(scope)?),
            (None, Some(path)) => Some(HostCgroup::enter(path, &mut |_| Ok(()))?),
            (None, None) => None,
        };
        match &self.network {
            None => Ok(()),
            Some(Network::New) => Namespace::create().and_then(|namespace| namespace.enter()),
            Some(Network::At(path)) => Namespace::open(path).and_then(|namespace| namespace.enter()),
        }
        .map_err(|error| Error::Sandbox(error.into()))?;
        if self.mounts {
            own_mounts()?;
        }
        Ok(cgroup)
    }

    /// Takes the main thread there, from which this must be called, and does the work on another, which is told how that went and may ask
    /// for more. Returns when the work is done.
    pub(crate) fn stand<T: Send>(&self, work: impl FnOnce(Result<Standing>) -> T + Send) -> T {
        thread::scope(|scope| {
            let (told, entered) = mpsc::channel();
            let (asks, asked) = mpsc::channel::<View>();
            // Begun before the main thread has moved: a thread begins where the one is that starts it.
            let worker = scope.spawn(move || {
                let placed = entered.recv().unwrap_or_else(|_| Err(Error::refused("interrupted")));
                work(placed.map(|cgroup| Standing { asks, answers: entered, cgroup }))
            });
            let mut last = told.send(self.enter());
            // Until the work is done.
            while let Ok(view) = asked.recv() {
                last = told.send(view.enter().map(|()| None));
            }
            let _nobody_waits = last;
            worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }
}

/// Gives the calling thread mounts of its own, in which those that the host makes later still arrive.
///
/// # Errors
/// The usual cause is a missing `CAP_SYS_ADMIN`.
pub(crate) fn own_mounts() -> Result<()> {
    sandbox::own_directories().map_err(|e| Error::io("give a thread directories of its own", e))?;
    devices::share::enter_private_namespace().map_err(|e| Error::Sandbox(e.into()))
}

/// A way to have the main thread move further.
pub(crate) struct Standing {
    asks: mpsc::Sender<View>,
    answers: mpsc::Receiver<Result<Option<HostCgroup>>>,
    cgroup: Option<HostCgroup>,
}

impl Standing {
    /// Has it show these files.
    ///
    /// # Errors
    /// When they cannot be shown.
    pub(crate) fn show(&self, view: View) -> Result<()> {
        let _main_answers = self.asks.send(view);
        self.answers.recv().unwrap_or_else(|_| Err(Error::refused("interrupted"))).map(drop)
    }

    /// Leaves the container's cgroup, so that it can be removed.
    pub(crate) fn leave_cgroup(&mut self) {
        if let Some(mut cgroup) = self.cgroup.take() {
            cgroup.leave();
        }
    }
}
