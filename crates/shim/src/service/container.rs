//! What is known of each container and its processes.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    path::PathBuf,
    rc::Rc,
    time::Duration,
};

use oci_spec::runtime::Process as Spec;
use tokio::sync::{Mutex, watch};

use crate::{
    Error, Result,
    state::{Exit, State},
    stdio::{Names, Streams},
};

/// What a container is here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// The first container of its machine, usually the only one: the machine ends with the last.
    Single,
    /// One that has joined it.
    Joined,
    /// A pod's sandbox container, which runs nothing; the machine ends with it.
    Pause,
    /// The sandbox of the sandbox API, which is no container for the task service.
    Api,
    /// A container of a pod.
    Member,
}

impl Kind {
    /// How its bundle is to be read.
    pub(super) fn bundle_role(self) -> sandbox::bundle::Role {
        match self {
            Self::Single => sandbox::bundle::Role::Alone,
            Self::Joined => sandbox::bundle::Role::Beside,
            Self::Pause | Self::Api => sandbox::bundle::Role::Pod,
            Self::Member => sandbox::bundle::Role::Member,
        }
    }

    /// Whether there are processes of it in the guest.
    pub(super) fn runs_processes(self) -> bool {
        matches!(self, Self::Single | Self::Joined | Self::Member)
    }
}

/// A container.
pub(super) struct Container {
    pub(super) id: String,
    pub(super) bundle: PathBuf,
    pub(super) kind: Kind,
    pub(super) init: Rc<Process>,
    pub(super) execs: RefCell<HashMap<String, Rc<Process>>>,
    /// Its first process has ended, though that may not be known to anybody yet.
    pub(super) leaving: Cell<bool>,
}

impl Container {
    /// A process of it: its first one for an empty name.
    pub(super) fn process(&self, exec: &str) -> Result<Rc<Process>> {
        if exec.is_empty() {
            return Ok(self.init.clone());
        }
        let found = self.execs.borrow().get(exec).cloned();
        found.ok_or_else(|| Error::NotFound(format!("process does not exist {exec}")))
    }

    /// The state that a process shows: a frozen container's processes are frozen.
    pub(super) fn shown(&self, process: &Process) -> State {
        match (self.init.state.get(), process.state.get()) {
            (frozen @ (State::Pausing | State::Paused), State::Running) => frozen,
            (_, own) => own,
        }
    }
}

/// A process.
pub(super) struct Process {
    /// Its name: the container's for its first one.
    pub(super) id: String,
    pub(super) names: Names,
    pub(super) state: Cell<State>,
    /// How it ended, once that has been published.
    pub(super) ended: watch::Sender<Option<Exit>>,
    pub(super) streams: RefCell<Option<Rc<Streams>>>,
    /// What is to be run, of an executed one that was not started yet.
    pub(super) spec: RefCell<Option<Spec>>,
    /// Whose turn it is to change it.
    pub(super) turn: Mutex<()>,
}

impl Process {
    pub(super) fn new(id: &str, names: Names, spec: Option<Spec>) -> Rc<Self> {
        Rc::new(Self {
            id: id.into(),
            names,
            state: Cell::new(State::Created),
            ended: watch::Sender::new(None),
            streams: RefCell::default(),
            spec: RefCell::new(spec),
            turn: Mutex::default(),
        })
    }

    /// Waits for its end.
    pub(super) async fn wait(&self) -> Result<Exit> {
        let mut ended = self.ended.subscribe();
        let exit = ended.wait_for(Option::is_some).await.map_err(|_| Error::ShuttingDown)?;
        exit.ok_or(Error::ShuttingDown)
    }

    /// It has ended and everybody may know.
    pub(super) fn finish(&self, exit: Exit) {
        self.state.set(State::Stopped(exit));
        self.ended.send_replace(Some(exit));
    }

    /// Waits until its output is where it was to go; see [`Streams::drained`].
    pub(super) async fn drained(&self, patience: Duration, bound: Duration) -> bool {
        let streams = self.streams.borrow().clone();
        match streams {
            Some(streams) => streams.drained(patience, bound).await,
            None => true,
        }
    }

    /// Releases its streams.
    pub(super) async fn release(&self) {
        let streams = self.streams.take();
        if let Some(streams) = streams {
            streams.release().await;
        }
    }
}
