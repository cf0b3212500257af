//! A running machine: calls to the agent in it, the processes that were started by them, and its death.
//!
//! Three kinds of task exist for a machine: one that **watches** for its death ([`boot`]): QEMU, the virtio-fs server or the
//! channel ending. It says once, to all, who died and why; every other task that waits for the guest waits for that too,
//! so no call hangs on a dead machine. One per **process**, that waits for its end and remembers it. One per **stream** of a
//! process's stdio ([`relay`]).

pub(crate) mod boot;
mod liveness;
pub(crate) mod relay;

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    rc::Rc,
    time::Duration,
};

use agent_api::{ExitStatus, FaultKind, Reply, Request, StreamToken, frame};
use hypervisor::Vm;
use tokio::{sync::watch, task::JoinHandle};

use crate::{Error, Result, steps};

/// How long the agent may take for one call.
pub(crate) const CALL_DEADLINE: Duration = Duration::from_secs(30);
/// How long after the channel broke the reason may take to show: a killed process has to be reaped first.
const EPITAPH_DEADLINE: Duration = Duration::from_secs(3);
/// Longest line of what the guest says of a failure, bytes: it names paths.
const LINE_LIMIT: usize = 8 << 10;
/// How much is told of a reply that should not be, bytes.
const TOLD_OF_REPLY: usize = 200;
/// How a process ends that is killed.
const KILLED: ExitStatus = ExitStatus::Signal(9);
/// Ended processes whose status is kept for a later `wait`.
const REMEMBERED: usize = 256;

/// How a process ended, or why nobody knows.
pub type Outcome = std::result::Result<ExitStatus, Rc<str>>;

/// The end of a process, once and for everybody who waits.
pub type Ending = watch::Receiver<Option<Outcome>>;

/// Who is told of what happens, before anybody who waits for it.
pub trait Observer {
    /// A process has ended: of `container`, its first one if `exec` is absent.
    fn process_ended(&self, container: &str, exec: Option<&str>, outcome: &Outcome);
    /// The machine has died by itself.
    fn died(&self, reason: &str);
    /// The guest's kernel has killed a process of a container for want of memory.
    fn out_of_memory(&self, container: &str);
    /// The agent has answered a call.
    fn answered(&self, call: &'static str, took: Duration) {
        let _ = (call, took);
    }
}

/// A process, by its container and, unless it is the first one, its name.
type Name = (String, Option<String>);

/// What the tasks of a sandbox share.
pub(crate) struct Machine {
    vm: Rc<dyn Vm>,
    opener: proxy::Opener,
    observer: Rc<dyn Observer>,
    /// Why the machine is dead, once it is.
    death: watch::Receiver<Option<Rc<str>>>,
    processes: RefCell<VecDeque<(Name, Ending)>>,
    next_token: Cell<StreamToken>,
    /// Ends the virtual machine and the virtio-fs server.
    kill: watch::Sender<bool>,
}

impl Machine {
    pub(crate) fn new(
        vm: Rc<dyn Vm>,
        opener: proxy::Opener,
        observer: Rc<dyn Observer>,
        death: watch::Receiver<Option<Rc<str>>>,
        kill: watch::Sender<bool>,
    ) -> Rc<Self> {
        Rc::new(Self { vm, opener, observer, death, processes: RefCell::default(), next_token: Cell::new(1), kill })
    }

    pub(crate) fn opener(&self) -> &proxy::Opener {
        &self.opener
    }

    pub(crate) fn vm(&self) -> &dyn Vm {
        self.vm.as_ref()
    }

    pub(crate) fn observer(&self) -> &dyn Observer {
        self.observer.as_ref()
    }

    pub(crate) fn token(&self) -> StreamToken {
        self.next_token.replace(self.next_token.get() + 1)
    }

    /// Resolves when the machine is dead, with the reason.
    pub(crate) async fn died(&self) -> Rc<str> {
        let mut death = self.death.clone();
        match death.wait_for(Option::is_some).await {
            Ok(reason) => reason.clone().unwrap_or_else(|| "the machine ended".into()),
            Err(_) => "the machine ended".into(),
        }
    }

    /// Whether the machine has ended.
    pub(crate) fn is_dead(&self) -> bool {
        self.death.borrow().is_some()
    }

    /// Ends the machine and returns once its processes are gone.
    pub(crate) async fn end(&self) {
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
    pub(crate) async fn call(&self, step: &str, request: &Request) -> Result<(Reply, proxy::Stream)> {
        self.call_within(step, request, CALL_DEADLINE).await
    }

    /// [`Machine::call`] with a deadline of its own.
    pub(crate) async fn call_within(
        &self,
        step: &str,
        request: &Request,
        deadline: Duration,
    ) -> Result<(Reply, proxy::Stream)> {
        steps::reach(step)?;
        let talk = async {
            let mut stream = self.opener.open().map_err(|e| frame::FrameError::Io(std::io::Error::other(e)))?;
            frame::write(&mut stream, request).await?;
            let reply: Reply = frame::read(&mut stream, frame::MAX_REPLY).await?;
            Ok((reply, stream))
        };
        let asked = std::time::Instant::now();
        let answered = tokio::select! {
            answered = tokio::time::timeout(deadline, talk) => answered,
            reason = self.died() => return Err(self.dead(step, &reason)),
        };
        if matches!(answered, Ok(Ok(_))) {
            self.observer.answered(request.name(), asked.elapsed());
        }
        match answered {
            Ok(Ok((Reply::Fault(fault), _))) => Err(Error::Sandbox {
                kind: Some(fault.kind),
                message: hypervisor::printable(&fault.message, LINE_LIMIT),
            }),
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(self.why(step, error).await),
            Err(_) => Err(Error::Deadline {
                what: format!("{step}: an answer of the agent in the guest"),
                seconds: deadline.as_secs(),
            }),
        }
    }

    /// A call that is answered by `Done`.
    pub(crate) async fn done(&self, step: &str, request: &Request) -> Result<()> {
        match self.call(step, request).await? {
            (Reply::Done, _) => Ok(()),
            (other, _) => Err(out_of_turn(step, &other)),
        }
    }

    /// A call that starts a process. Its end is watched from now on, and is that of what copies its `input`, too: whoever writes
    /// that may keep it open.
    pub(crate) async fn start_process(
        self: &Rc<Self>,
        step: &str,
        name: (&str, Option<&str>),
        request: &Request,
        input: Option<JoinHandle<()>>,
        deadline: Duration,
    ) -> Result<u32> {
        let stop_input = move || {
            if let Some(input) = input {
                input.abort();
            }
        };
        let (pid, mut stream) = match self.call_within(step, request, deadline).await {
            Ok((Reply::Created { pid }, stream)) => (pid, stream),
            not_started => {
                stop_input();
                return Err(not_started.map_or_else(|error| error, |(other, _)| out_of_turn(step, &other)));
            }
        };
        let told = self.watch_process(name.0, name.1);
        let (container, exec) = (name.0.to_owned(), name.1.map(str::to_owned));
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
            machine.process_ended(&container, exec.as_deref(), outcome, &told);
            stop_input();
        });
        Ok(pid)
    }

    /// Begins to remember a process. Whoever knows how it ended calls [`Machine::process_ended`].
    pub(crate) fn watch_process(&self, container: &str, exec: Option<&str>) -> watch::Sender<Option<Outcome>> {
        let (told, ending) = watch::channel(None);
        self.remember((container.to_owned(), exec.map(str::to_owned)), ending);
        told
    }

    /// A process that was watched has ended.
    pub(crate) fn process_ended(
        &self,
        container: &str,
        exec: Option<&str>,
        outcome: Outcome,
        told: &watch::Sender<Option<Outcome>>,
    ) {
        // Deleting a sandbox kills what runs in it, as whoever waits for a process is to hear.
        let outcome = outcome.or_else(|reason| if *self.kill.borrow() { Ok(KILLED) } else { Err(reason) });
        self.observer.process_ended(container, exec, &outcome);
        told.send_replace(Some(outcome));
    }

    fn remember(&self, name: Name, ending: Ending) {
        let mut processes = self.processes.borrow_mut();
        // A name may be used again once its process has ended.
        processes.retain(|(known, old)| *known != name || old.borrow().is_none());
        if processes.len() >= REMEMBERED
            && let Some(ended) = processes.iter().position(|((_, exec), old)| exec.is_some() && old.borrow().is_some())
        {
            processes.remove(ended);
        }
        processes.push_back((name, ending));
    }

    /// Forgets the processes of a container that is gone.
    pub(crate) fn forget(&self, container: &str) {
        self.processes.borrow_mut().retain(|((of, _), _)| of != container);
    }

    /// The end of a process, to be waited for.
    pub(crate) fn ending(&self, container: &str, exec: Option<&str>) -> Result<Ending> {
        let processes = self.processes.borrow();
        let found = processes.iter().rev().find(|((of, name), _)| of == container && name.as_deref() == exec);
        found.map(|(_, ending)| ending.clone()).ok_or_else(|| Error::Sandbox {
            kind: Some(FaultKind::NotFound),
            message: format!("there is no process {:?} in container {container:?}", exec.unwrap_or("init")),
        })
    }

    /// Whether a live process has this name.
    pub(crate) fn is_running(&self, container: &str, exec: Option<&str>) -> bool {
        self.ending(container, exec).is_ok_and(|ending| ending.borrow().is_none())
    }
}

/// Waits for a process's end.
pub async fn ended(mut ending: Ending) -> Outcome {
    match ending.wait_for(Option::is_some).await {
        Ok(outcome) => outcome.clone().unwrap_or_else(|| Err("the process is gone".into())),
        Err(_) => Err("the process is gone".into()),
    }
}

pub(crate) fn out_of_turn(step: &str, reply: &Reply) -> Error {
    let reply = hypervisor::printable(&format!("{reply:?}"), TOLD_OF_REPLY);
    Error::State(format!("{step}: the agent answered out of turn: {reply}"))
}
