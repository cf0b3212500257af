//! Answering callers: one task per connection, one call per connection.

use std::{cell::RefCell, rc::Rc, time::Duration};

use agent_api::{FaultKind, frame};
use tokio::{
    net::{UnixListener, UnixStream},
    sync::{Mutex, Notify, mpsc},
};

use super::{events, hung_up, members};
use crate::{
    Error, Result,
    api::{CONSOLE, Reply, Request},
    cgroup::HostCgroup,
    client::StdioEnds,
    journal::{Journal, Recorder},
    machine::ended,
    passing,
    pod::{Io, Sandbox},
    store::{ProcessRef, Status},
};

/// A container and the sandbox that it is in.
pub(super) struct Host {
    pub(super) sandbox: Rc<Sandbox>,
    pub(super) journal: Rc<Journal>,
    /// Of all containers of the sandbox.
    pub(super) recorder: Rc<Recorder>,
    /// The host's cgroup that the daemon is in.
    pub(super) cgroup: Rc<RefCell<Option<HostCgroup>>>,
    /// Held by whoever deletes: which container is the last one is known when those before it are gone.
    pub(super) leaving: Rc<Mutex<()>>,
    /// Told that the container was resumed.
    pub(super) resumed: Notify,
    /// Only programs outside of containers are given here: the containers are another's to answer for.
    pub(super) console_only: bool,
}

impl Host {
    pub(super) fn container(&self) -> &str {
        self.journal.dir().id()
    }

    /// Whose a process of this name is: the container's, or nobody's but the guest's.
    fn owner<'a>(&'a self, exec: Option<&str>) -> &'a str {
        if exec.is_some_and(|exec| exec.starts_with(CONSOLE)) { agent_api::GUEST } else { self.container() }
    }

    /// Refuses what is not this socket's to answer.
    fn admit(&self, request: &Request) -> Result<()> {
        let exec = match request {
            Request::Exec { id, .. } => Some(id),
            Request::Signal { exec, .. } | Request::Resize { exec, .. } | Request::Wait { exec } => exec.as_ref(),
            _ => None,
        };
        if !self.console_only || exec.is_some_and(|exec| exec.starts_with(CONSOLE)) {
            return Ok(());
        }
        Err(invalid("this sandbox belongs to containerd's shim, which answers for its containers; ask containerd"))
    }
}

/// How long a caller may take to say what it wants.
const REQUEST_DEADLINE: Duration = Duration::from_secs(10);
/// How long nobody is accepted after that has failed.
const PAUSE: Duration = Duration::from_millis(200);
/// SIGKILL.
const KILL: i32 = 9;

/// Answers a container's callers until the last container of the sandbox was deleted.
pub(super) async fn serve(host: Rc<Host>, listener: UnixListener) {
    let (empty, mut end) = mpsc::channel::<()>(1);
    tokio::task::spawn_local(serve_container(host, listener, empty));
    // It also ends when nobody is left who could say that.
    let _ = end.recv().await;
}

/// Gives programs outside of containers, to whoever may open a socket in the state directory, as long as the sandbox lives.
///
/// # Errors
/// [`Error::Io`] when there can be no such socket.
pub(super) fn serve_console(sandbox: &Rc<Sandbox>) -> Result<()> {
    let journal = sandbox.journal().clone();
    let listener = super::listen(journal.dir())?;
    let host = Host {
        sandbox: sandbox.clone(),
        journal,
        recorder: Rc::default(),
        leaving: Rc::default(),
        cgroup: Rc::default(),
        resumed: Notify::new(),
        console_only: true,
    };
    tokio::task::spawn_local(serve(Rc::new(host), listener));
    Ok(())
}

/// Accepts connections until the container is deleted.
async fn serve_container(host: Rc<Host>, listener: UnixListener, empty: mpsc::Sender<()>) {
    let (deleted, mut end) = mpsc::channel::<()>(1);
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    tokio::task::spawn_local(answer(stream, host.clone(), deleted.clone(), empty.clone()));
                }
                Err(error) => {
                    // Who waits is still there: without a pause, this would be a busy loop until a descriptor is free.
                    eprintln!("accept a caller of {}: {error}", host.container());
                    tokio::time::sleep(PAUSE).await;
                }
            },
            _ = end.recv() => break,
        }
    }
    if host.recorder.all().is_empty() {
        let _ = empty.send(()).await;
    }
}

async fn answer(mut stream: UnixStream, host: Rc<Host>, deleted: mpsc::Sender<()>, empty: mpsc::Sender<()>) {
    let received =
        tokio::time::timeout(REQUEST_DEADLINE, passing::receive::<Request>(&mut stream, frame::MAX_REQUEST)).await;
    // A caller that says nothing, or nonsense, is not answered.
    let Ok(Ok((request, descriptors))) = received else { return };
    if let Err(error) = host.admit(&request) {
        let _ = frame::write(&mut stream, &failed(error)).await;
        return;
    }
    let reply = match request {
        Request::Wait { exec } => return answer_until_exit(stream, host, exec, None).await,
        Request::Resumed => tokio::select! {
            () = resumed(&host) => Reply::Done,
            () = hung_up(&stream) => return,
        },
        Request::Events => return events::tell(stream, host).await,
        Request::Supervise { pid, exec } => return supervise(stream, host, pid, exec).await,
        Request::Exec { id, process, stdio } => {
            let started = match StdioEnds::from_descriptors(stdio, descriptors) {
                Some(ends) => execute(&host, &id, *process, ends).await,
                None => Err(Error::State("the number of stdio descriptors is not what the request says".into())),
            };
            match started {
                Ok(pid) => return answer_until_exit(stream, host, Some(id), Some(Reply::Created { pid })).await,
                Err(error) => failed(error),
            }
        }
        Request::Create(member) => {
            let entered = tokio::select! {
                entered = members::enter(&host, *member, descriptors) => entered,
                // What there is of it on the host goes with its state directory, which is the caller's.
                () = hung_up(&stream) => return,
            };
            match entered {
                Ok((member, listener, pid)) => {
                    tokio::task::spawn_local(serve_container(member.clone(), listener, empty));
                    return answer_until_exit(stream, member, None, Some(Reply::Created { pid })).await;
                }
                Err(error) => failed(error),
            }
        }
        Request::Delete { force } => {
            let reply = members::delete(&host, force).await.unwrap_or_else(failed);
            let done = matches!(reply, Reply::Done | Reply::Left);
            let _ = frame::write(&mut stream, &reply).await;
            if done {
                let _ = deleted.send(()).await;
            }
            return;
        }
        other => carry_out(&host, other).await.unwrap_or_else(failed),
    };
    // Whoever asked may have gone; there is nobody else to tell.
    let _ = frame::write(&mut stream, &reply).await;
}

pub(super) fn failed(error: Error) -> Reply {
    match error {
        Error::Sandbox { kind, message } => Reply::Failed { kind, message },
        other => Reply::Failed { kind: None, message: other.chain() },
    }
}

pub(super) fn invalid(message: impl Into<String>) -> Error {
    Error::Sandbox { kind: Some(FaultKind::InvalidState), message: message.into() }
}

/// The container's state does not allow it; if the sandbox died meanwhile, that is why.
fn refused(host: &Host, words: &str) -> Error {
    invalid(host.journal.state().stopped(words))
}

async fn carry_out(host: &Host, request: Request) -> Result<Reply> {
    let (sandbox, journal, container) = (&host.sandbox, &host.journal, host.container());
    match request {
        Request::State => return Ok(Reply::State(Box::new(journal.state()))),
        Request::Start => start(host).await?,
        Request::Signal { exec, signal, all } => {
            if exec.is_none() && journal.status() == Status::Stopped {
                return Err(refused(host, "container not running"));
            }
            sandbox.signal(host.owner(exec.as_deref()), exec.as_deref(), signal, all).await?;
        }
        Request::Resize { exec, size } => {
            sandbox.resize(host.owner(exec.as_deref()), exec.as_deref(), size).await?;
        }
        Request::Pause => {
            expect(host, &[Status::Running], "container not running")?;
            sandbox.pause(container).await?;
            journal.update(|state| state.status = Status::Paused)?;
        }
        Request::Resume => {
            expect(host, &[Status::Paused], "container not paused")?;
            sandbox.resume(container).await?;
            journal.update(|state| state.status = Status::Running)?;
            host.resumed.notify_waiters();
        }
        Request::Processes => {
            expect(host, &[Status::Created, Status::Running, Status::Paused], "container not running")?;
            return Ok(Reply::Processes(sandbox.processes(container).await?));
        }
        Request::Statistics => {
            expect(host, &[Status::Created, Status::Running, Status::Paused], "container not running")?;
            return Ok(Reply::Statistics(Box::new(sandbox.statistics(container).await?)));
        }
        Request::Update { resources } => {
            expect(host, &[Status::Created, Status::Running, Status::Paused], "container not running")?;
            sandbox.update(container, *resources).await?;
        }
        Request::Create(_)
        | Request::Exec { .. }
        | Request::Wait { .. }
        | Request::Events
        | Request::Resumed
        | Request::Supervise { .. }
        | Request::Delete { .. } => {
            return Err(Error::State("this request is answered elsewhere".into()));
        }
    }
    Ok(Reply::Done)
}

/// Returns when the container is not paused any more.
async fn resumed(host: &Host) {
    while host.journal.status() == Status::Paused {
        let Ok(ending) = host.sandbox.ending(host.container(), None) else { return };
        tokio::select! {
            () = host.resumed.notified() => {}
            _ = ended(ending) => return,
        }
    }
}

fn expect(host: &Host, allowed: &[Status], otherwise: &str) -> Result<()> {
    if allowed.contains(&host.journal.status()) { Ok(()) } else { Err(refused(host, otherwise)) }
}

async fn start(host: &Host) -> Result<()> {
    match host.journal.status() {
        Status::Created => {}
        Status::Stopped => return Err(refused(host, "cannot start a container that has stopped")),
        Status::Running => return Err(invalid("cannot start an already running container")),
        other => return Err(invalid(format!("cannot start a container in the {other} state"))),
    }
    // Engines may have put interfaces into the namespace since the container was created.
    host.sandbox.sync_network().await?;
    host.sandbox.start(host.container()).await?;
    // The container runs, whether or not it is written down how long that took.
    host.sandbox.save_timeline().unwrap_or_else(|error| eprintln!("{}", error.chain()));
    // It may have ended already.
    host.journal.update(|state| {
        if state.status == Status::Created {
            state.status = Status::Running;
        }
    })
}

async fn execute(host: &Host, id: &str, process: oci_spec::runtime::Process, ends: StdioEnds) -> Result<u32> {
    let owner = host.owner(Some(id));
    if owner == agent_api::GUEST {
        return host.sandbox.exec(owner, id, process, Io::of_sockets(ends)?).await;
    }
    match host.journal.status() {
        Status::Running | Status::Created => {}
        Status::Paused => return Err(invalid("cannot exec in a paused container (use --ignore-paused to override)")),
        _ => return Err(refused(host, "cannot exec in a stopped container")),
    }
    if host.sandbox.is_running(host.container(), Some(id)) {
        return Err(invalid(format!("a process {id:?} runs already in this container")));
    }
    host.sandbox.exec(host.container(), id, process, Io::of_sockets(ends)?).await
}

/// Says `first`, waits for a process's end and says how it ended.
pub(super) async fn answer_until_exit(
    mut stream: UnixStream,
    host: Rc<Host>,
    exec: Option<String>,
    first: Option<Reply>,
) {
    let last = match host.sandbox.ending(host.owner(exec.as_deref()), exec.as_deref()) {
        Ok(ending) => {
            if let Some(first) = first
                && frame::write(&mut stream, &first).await.is_err()
            {
                return;
            }
            tokio::select! {
                outcome = ended(ending) => match outcome {
                    Ok(status) => Reply::Exited(status),
                    Err(message) => Reply::Failed { kind: None, message: message.to_string() },
                },
                () = hung_up(&stream) => return,
            }
        }
        Err(error) => failed(error),
    };
    let _ = frame::write(&mut stream, &last).await;
}

/// Lets a process on the host stand for one in the guest: each dies with the other.
async fn supervise(mut stream: UnixStream, host: Rc<Host>, pid: u32, exec: Option<String>) {
    let Ok(ending) = host.sandbox.ending(host.container(), exec.as_deref()) else {
        return answer_until_exit(stream, host, exec, None).await;
    };
    if exec.is_none() && ProcessRef::of(pid).is_some() {
        let noted = host.journal.update(|state| {
            if state.status != Status::Stopped {
                state.pid = pid;
            }
        });
        if let Err(error) = noted {
            // An engine would look for the container's process in vain.
            return drop(frame::write(&mut stream, &failed(error)).await);
        }
    }
    answer_until_exit(stream, host.clone(), exec.clone(), Some(Reply::Done)).await;
    if ending.borrow().is_none() {
        // Its stand-in on the host died.
        if let Err(error) = host.sandbox.signal(host.container(), exec.as_deref(), KILL, false).await {
            eprintln!("{}", error.chain());
        }
    }
}
