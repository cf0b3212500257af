//! What is known of a sandbox, in memory and, before each further step, in its state directory.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    rc::Rc,
};

use tokio::sync::broadcast;

use crate::{
    Result,
    machine::{Observer, Outcome},
    store::{ContainerState, ProcessRef, StateDir, Status},
};

/// The state of a sandbox and where it is written to.
pub struct Journal {
    dir: StateDir,
    state: RefCell<ContainerState>,
}

impl Journal {
    /// A journal that goes on from `state`, with this process as the one that hosts the sandbox. That is written down.
    ///
    /// # Errors
    /// [`Error::Io`](crate::Error::Io).
    pub fn claim(dir: StateDir, mut state: ContainerState) -> Result<Rc<Self>> {
        state.daemon = ProcessRef::of(std::process::id());
        state.creator = None;
        dir.save(&state)?;
        Ok(Rc::new(Self { dir, state: RefCell::new(state) }))
    }

    /// The state directory.
    pub fn dir(&self) -> &StateDir {
        &self.dir
    }

    /// The state as it is now.
    pub fn state(&self) -> ContainerState {
        self.state.borrow().clone()
    }

    /// The status as it is now.
    pub fn status(&self) -> Status {
        self.state.borrow().status
    }

    /// Changes the state and writes it down.
    ///
    /// # Errors
    /// [`Error::Io`](crate::Error::Io); the change holds in memory.
    pub fn update(&self, change: impl FnOnce(&mut ContainerState)) -> Result<()> {
        let mut state = self.state.borrow_mut();
        change(&mut state);
        self.dir.save(&state)
    }

    /// [`Journal::update`] where nobody is there to be told of a failure: it goes to the log.
    pub fn update_or_log(&self, change: impl FnOnce(&mut ContainerState)) {
        if let Err(error) = self.update(change) {
            eprintln!("{}", error.chain());
        }
    }

    /// The sandbox is dead.
    pub fn died(&self, reason: &str) {
        self.update_or_log(|state| {
            state.status = Status::Stopped;
            state.pid = 0;
            state.failure.get_or_insert_with(|| reason.into());
        });
    }
}

/// How many events a slow listener may be behind; it only learns that there were some.
const BACKLOG: usize = 16;

/// Writes down what happens to the containers of a sandbox, and tells whoever listens.
pub(crate) struct Recorder {
    journals: RefCell<HashMap<String, Rc<Journal>>>,
    /// Containers that ran out of memory.
    out_of_memory: broadcast::Sender<String>,
    /// Whether somebody has listened before.
    heard: Cell<bool>,
}

impl Default for Recorder {
    fn default() -> Self {
        let (out_of_memory, _) = broadcast::channel(BACKLOG);
        Self { journals: RefCell::default(), out_of_memory, heard: Cell::new(false) }
    }
}

impl Recorder {
    /// The names of containers that run out of memory, and whether nobody has listened before.
    pub(crate) fn listen(&self) -> (broadcast::Receiver<String>, bool) {
        (self.out_of_memory.subscribe(), !self.heard.replace(true))
    }

    /// One more container.
    pub(crate) fn add(&self, journal: &Rc<Journal>) {
        self.journals.borrow_mut().insert(journal.dir().id().into(), journal.clone());
    }

    /// A container is no more.
    pub(crate) fn remove(&self, container: &str) {
        self.journals.borrow_mut().remove(container);
    }

    /// Those of all containers.
    pub(crate) fn all(&self) -> Vec<Rc<Journal>> {
        self.journals.borrow().values().cloned().collect()
    }
}

impl Observer for Recorder {
    fn process_ended(&self, container: &str, exec: Option<&str>, outcome: &Outcome) {
        let journal = self.journals.borrow().get(container).cloned();
        let Some(journal) = journal.filter(|_| exec.is_none()) else { return };
        journal.update_or_log(|state| {
            state.status = Status::Stopped;
            state.pid = 0;
            state.exit = outcome.as_ref().ok().copied();
            if let Err(reason) = outcome {
                state.failure.get_or_insert_with(|| reason.to_string());
            }
        });
    }

    fn died(&self, reason: &str) {
        self.all().iter().for_each(|journal| journal.died(reason));
    }

    fn out_of_memory(&self, container: &str) {
        // Nobody may be listening.
        let _ = self.out_of_memory.send(container.into());
    }
}
