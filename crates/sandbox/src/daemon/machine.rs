//! A running machine, and calls to the agent in it.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    rc::Rc,
    time::Duration,
};

use agent_api::{ExitStatus, FaultKind, Reply, Request, StreamToken, frame};
use tokio::sync::watch;

use crate::{
    Error, Result,
    store::{ContainerState, StateDir, Status},
};

/// How long the agent may take for one call.
pub(super) const CALL_DEADLINE: Duration = Duration::from_secs(30);
/// How long after the channel broke the reason may take to show: a killed process has to be reaped first.
const EPITAPH_DEADLINE: Duration = Duration::from_secs(3);
/// How a process ends that is killed.
const KILLED: ExitStatus = ExitStatus::Signal(9);
/// Ended processes whose status is kept for a later `wait`.
const REMEMBERED: usize = 256;

/// How a process ended, or why nobody knows.
pub(super) type Outcome = std::result::Result<ExitStatus, Rc<str>>;

/// The end of a process, once and for everybody who waits.
pub(super) type Ending = watch::Receiver<Option<Outcome>>;

/// What the tasks of a daemon share.
pub(super) struct Machine {
    dir: StateDir,
    state: RefCell<ContainerState>,
    opener: proxy::Opener,
    /// Why the machine is dead, once it is.
    death: watch::Receiver<Option<Rc<str>>>,
    processes: RefCell<VecDeque<(Option<String>, Ending)>>,
    next_token: Cell<StreamToken>,
    /// Ends the virtual machine and the virtio-fs server.
    kill: watch::Sender<bool>,
}

impl Machine {
    pub(super) fn new(
        dir: StateDir,
        state: ContainerState,
        opener: proxy::Opener,
        death: watch::Receiver<Option<Rc<str>>>,
        kill: watch::Sender<bool>,
    ) -> Rc<Self> {
        Rc::new(Self {
            dir,
            state: RefCell::new(state),
            opener,
            death,
            processes: RefCell::default(),
            next_token: Cell::new(1),
            kill,
        })
    }

    pub(super) fn opener(&self) -> &proxy::Opener {
        &self.opener
    }

    pub(super) fn id(&self) -> String {
        self.dir.id().to_owned()
    }

    pub(super) fn dir(&self) -> &StateDir {
        &self.dir
    }

    pub(super) fn state(&self) -> ContainerState {
        self.state.borrow().clone()
    }

    pub(super) fn status(&self) -> Status {
        self.state.borrow().status
    }

    /// Changes the state and writes it down.
    pub(super) fn update(&self, change: impl FnOnce(&mut ContainerState)) -> Result<()> {
        let mut state = self.state.borrow_mut();
        change(&mut state);
        self.dir.save(&state)
    }

    /// [`Machine::update`] where nobody is there to be told of a failure: it goes to the log.
    pub(super) fn update_or_log(&self, change: impl FnOnce(&mut ContainerState)) {
        if let Err(error) = self.update(change) {
            eprintln!("{}", error.chain());
        }
    }

    pub(super) fn token(&self) -> StreamToken {
        self.next_token.replace(self.next_token.get() + 1)
    }

    /// Resolves when the machine is dead, with the reason.
    pub(super) async fn died(&self) -> Rc<str> {
        let mut death = self.death.clone();
        match death.wait_for(Option::is_some).await {
            Ok(reason) => reason.clone().unwrap_or_else(|| "the machine ended".into()),
            Err(_) => "the machine ended".into(),
        }
    }

    /// Ends the machine and returns once its processes are gone.
    pub(super) async fn end(&self) {
        self.kill.send_replace(true);
        self.died().await;
    }

    fn dead(&self, step: &str, reason: &str) -> Error {
        Error::Sandbox { kind: None, message: format!("{step}: {reason}") }
    }

    /// What to say of a call that broke down: who died, if somebody did.
    async fn why(&self, step: &str, error: frame::FrameError) -> Error {
        match tokio::time::timeout(EPITAPH_DEADLINE, self.died()).await {
            Ok(reason) => self.dead(step, &reason),
            Err(_) => Error::Frame { step: format!("{step}: speak to the agent in the guest"), source: error },
        }
    }

    /// One call to the agent. Its stream is returned beside the first reply, for calls that have more.
    pub(super) async fn call(&self, step: &str, request: &Request) -> Result<(Reply, proxy::Stream)> {
        self.call_within(step, request, CALL_DEADLINE).await
    }

    /// [`Machine::call`] with a deadline of its own.
    pub(super) async fn call_within(
        &self,
        step: &str,
        request: &Request,
        deadline: Duration,
    ) -> Result<(Reply, proxy::Stream)> {
        let talk = async {
            let mut stream = self.opener.open().map_err(|e| frame::FrameError::Io(std::io::Error::other(e)))?;
            frame::write(&mut stream, request).await?;
            let reply: Reply = frame::read(&mut stream, frame::MAX_REPLY).await?;
            Ok((reply, stream))
        };
        let answered = tokio::select! {
            answered = tokio::time::timeout(deadline, talk) => answered,
            reason = self.died() => return Err(self.dead(step, &reason)),
        };
        match answered {
            Ok(Ok((Reply::Fault(fault), _))) => Err(Error::Sandbox { kind: Some(fault.kind), message: fault.message }),
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(self.why(step, error).await),
            Err(_) => Err(Error::Deadline {
                what: format!("{step}: an answer of the agent in the guest"),
                seconds: deadline.as_secs(),
            }),
        }
    }

    /// A call that is answered by `Done`.
    pub(super) async fn done(&self, step: &str, request: &Request) -> Result<()> {
        match self.call(step, request).await? {
            (Reply::Done, _) => Ok(()),
            (other, _) => Err(out_of_turn(step, &other)),
        }
    }

    /// A call that starts a process. Its end is watched from now on.
    pub(super) async fn start_process(
        self: &Rc<Self>,
        step: &str,
        exec: Option<String>,
        request: &Request,
        deadline: Duration,
    ) -> Result<u32> {
        let (pid, mut stream) = match self.call_within(step, request, deadline).await? {
            (Reply::Created { pid }, stream) => (pid, stream),
            (other, _) => return Err(out_of_turn(step, &other)),
        };
        let (told, ending) = watch::channel(None);
        self.remember(exec.clone(), ending);
        let machine = self.clone();
        tokio::task::spawn_local(async move {
            let read = async {
                match frame::read::<Reply>(&mut stream, frame::MAX_REPLY).await {
                    Ok(Reply::Exited(status)) => Ok(status),
                    Ok(other) => Err(out_of_turn("wait for the process", &other)),
                    Err(error) => Err(machine.why("wait for the process", error).await),
                }
            };
            let outcome = tokio::select! {
                read = read => read.map_err(|error| Rc::from(error.chain())),
                reason = machine.died() => Err(reason),
            };
            // Deleting a sandbox kills what runs in it, as whoever waits for a process is to hear.
            let outcome = outcome.or_else(|reason| if *machine.kill.borrow() { Ok(KILLED) } else { Err(reason) });
            if exec.is_none() {
                machine.first_process_ended(&outcome);
            }
            told.send_replace(Some(outcome));
        });
        Ok(pid)
    }

    fn remember(&self, exec: Option<String>, ending: Ending) {
        let mut processes = self.processes.borrow_mut();
        // A name may be used again once its process has ended.
        processes.retain(|(name, old)| *name != exec || old.borrow().is_none());
        if processes.len() >= REMEMBERED
            && let Some(ended) = processes.iter().position(|(name, old)| name.is_some() && old.borrow().is_some())
        {
            processes.remove(ended);
        }
        processes.push_back((exec, ending));
    }

    fn first_process_ended(&self, outcome: &Outcome) {
        self.update_or_log(|state| {
            state.status = Status::Stopped;
            state.pid = 0;
            state.exit = outcome.as_ref().ok().copied();
            if let Err(reason) = outcome {
                state.failure.get_or_insert_with(|| reason.to_string());
            }
        });
    }

    /// The end of a process, to be waited for.
    pub(super) fn ending(&self, exec: Option<&str>) -> Result<Ending> {
        let processes = self.processes.borrow();
        let found = processes.iter().rev().find(|(name, _)| name.as_deref() == exec);
        found.map(|(_, ending)| ending.clone()).ok_or_else(|| Error::Sandbox {
            kind: Some(FaultKind::NotFound),
            message: format!("there is no process {:?} in container {:?}", exec.unwrap_or("init"), self.dir.id()),
        })
    }

    /// Whether a live process has this name.
    pub(super) fn is_running(&self, exec: &str) -> bool {
        self.ending(Some(exec)).is_ok_and(|ending| ending.borrow().is_none())
    }
}

/// Waits for a process's end.
pub(super) async fn ended(mut ending: Ending) -> Outcome {
    match ending.wait_for(Option::is_some).await {
        Ok(outcome) => outcome.clone().unwrap_or_else(|| Err("the process is gone".into())),
        Err(_) => Err("the process is gone".into()),
    }
}

pub(super) fn out_of_turn(step: &str, reply: &Reply) -> Error {
    Error::State(format!("{step}: the agent answered out of turn: {reply:?}"))
}
