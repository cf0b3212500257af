//! Answering callers: one task per connection, one call per connection.

use std::{rc::Rc, time::Duration};

use agent_api::{Exec, FaultKind, Reply as AgentReply, Request as AgentRequest, frame};
use tokio::net::{UnixListener, UnixStream};

use super::{
    hung_up,
    machine::{CALL_DEADLINE, Machine, ended, out_of_turn},
    relay,
};
use crate::{
    Error, Result,
    api::{Reply, Request},
    client::StdioEnds,
    passing,
    store::{ProcessRef, Status},
};

/// How long a caller may take to say what it wants.
const REQUEST_DEADLINE: Duration = Duration::from_secs(10);
/// SIGKILL.
const KILL: i32 = 9;

/// Accepts connections until the sandbox is deleted.
pub(super) async fn serve(machine: Rc<Machine>, listener: UnixListener) -> Result<()> {
    let (deleted, mut end) = tokio::sync::mpsc::channel::<()>(1);
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let (stream, _) = accepted.map_err(|e| Error::io("accept a caller", e))?;
                tokio::task::spawn_local(answer(stream, machine.clone(), deleted.clone()));
            }
            _ = end.recv() => return Ok(()),
        }
    }
}

async fn answer(mut stream: UnixStream, machine: Rc<Machine>, deleted: tokio::sync::mpsc::Sender<()>) {
    let received =
        tokio::time::timeout(REQUEST_DEADLINE, passing::receive::<Request>(&mut stream, frame::MAX_REQUEST)).await;
    // A caller that says nothing, or nonsense, is not answered.
    let Ok(Ok((request, descriptors))) = received else { return };
    let reply = match request {
        Request::Wait { exec } => return answer_until_exit(stream, machine, exec, None).await,
        Request::Supervise { pid, exec } => return supervise(stream, machine, pid, exec).await,
        Request::Exec { id, process, stdio } => {
            let started = match StdioEnds::from_descriptors(stdio, descriptors) {
                Some(ends) => execute(&machine, &id, *process, ends).await,
                None => Err(Error::State("the number of stdio descriptors is not what the request says".into())),
            };
            match started {
                Ok(pid) => return answer_until_exit(stream, machine, Some(id), Some(Reply::Created { pid })).await,
                Err(error) => failed(error),
            }
        }
        Request::Delete { force } => {
            let reply = delete(&machine, force).await.map_or_else(failed, |()| Reply::Done);
            let done = matches!(reply, Reply::Done);
            let _ = frame::write(&mut stream, &reply).await;
            if done {
                let _ = deleted.send(()).await;
            }
            return;
        }
        other => carry_out(&machine, other).await.unwrap_or_else(failed),
    };
    // Whoever asked may have gone; there is nobody else to tell.
    let _ = frame::write(&mut stream, &reply).await;
}

fn failed(error: Error) -> Reply {
    match error {
        Error::Sandbox { kind, message } => Reply::Failed { kind, message },
        other => Reply::Failed { kind: None, message: other.chain() },
    }
}

fn invalid(message: impl Into<String>) -> Error {
    Error::Sandbox { kind: Some(FaultKind::InvalidState), message: message.into() }
}

async fn carry_out(machine: &Machine, request: Request) -> Result<Reply> {
    let container = machine.id();
    match request {
        Request::State => return Ok(Reply::State(Box::new(machine.state()))),
        Request::Start => start(machine).await?,
        Request::Signal { exec, signal, all } => {
            if exec.is_none() && machine.status() == Status::Stopped {
                return Err(invalid("container not running"));
            }
            machine.done("send a signal", &AgentRequest::Signal { container, exec, signal, all }).await?;
        }
        Request::Resize { exec, size } => {
            machine.done("resize the terminal", &AgentRequest::ResizeTty { container, exec, size }).await?;
        }
        Request::Pause => {
            expect(machine, &[Status::Running], "container not running")?;
            machine.done("pause the container", &AgentRequest::Pause { container }).await?;
            machine.update(|state| state.status = Status::Paused)?;
        }
        Request::Resume => {
            expect(machine, &[Status::Paused], "container not paused")?;
            machine.done("resume the container", &AgentRequest::Resume { container }).await?;
            machine.update(|state| state.status = Status::Running)?;
        }
        Request::Processes => {
            expect(machine, &[Status::Created, Status::Running, Status::Paused], "container not running")?;
            let step = "list the processes";
            return match machine.call(step, &AgentRequest::Processes { container }).await? {
                (AgentReply::Processes(processes), _) => Ok(Reply::Processes(processes)),
                (other, _) => Err(out_of_turn(step, &other)),
            };
        }
        Request::Exec { .. } | Request::Wait { .. } | Request::Supervise { .. } | Request::Delete { .. } => {
            return Err(Error::State("this request is answered elsewhere".into()));
        }
    }
    Ok(Reply::Done)
}

fn expect(machine: &Machine, allowed: &[Status], otherwise: &str) -> Result<()> {
    if allowed.contains(&machine.status()) { Ok(()) } else { Err(invalid(otherwise)) }
}

async fn start(machine: &Machine) -> Result<()> {
    match machine.status() {
        Status::Created => {}
        Status::Stopped => return Err(invalid("cannot start a container that has stopped")),
        Status::Running => return Err(invalid("cannot start an already running container")),
        other => return Err(invalid(format!("cannot start a container in the {other} state"))),
    }
    machine.done("start the container", &AgentRequest::StartContainer { container: machine.id() }).await?;
    // It may have ended already.
    machine.update(|state| {
        if state.status == Status::Created {
            state.status = Status::Running;
        }
    })
}

async fn execute(machine: &Rc<Machine>, id: &str, process: oci_spec::runtime::Process, ends: StdioEnds) -> Result<u32> {
    match machine.status() {
        Status::Running | Status::Created => {}
        Status::Paused => return Err(invalid("cannot exec in a paused container (use --ignore-paused to override)")),
        _ => return Err(invalid("cannot exec in a stopped container")),
    }
    if machine.is_running(id) {
        return Err(invalid(format!("a process {id:?} runs already in this container")));
    }
    let stdio = relay::connect(machine.opener(), ends, || machine.token())?;
    let exec = Exec { container: machine.id(), id: id.into(), process, stdio };
    machine
        .start_process("execute the process", Some(id.into()), &AgentRequest::Exec(Box::new(exec)), CALL_DEADLINE)
        .await
}

/// Says `first`, waits for a process's end and says how it ended.
pub(super) async fn answer_until_exit(
    mut stream: UnixStream,
    machine: Rc<Machine>,
    exec: Option<String>,
    first: Option<Reply>,
) {
    let last = match machine.ending(exec.as_deref()) {
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
async fn supervise(stream: UnixStream, machine: Rc<Machine>, pid: u32, exec: Option<String>) {
    let Ok(ending) = machine.ending(exec.as_deref()) else {
        return answer_until_exit(stream, machine, exec, None).await;
    };
    if exec.is_none() && ProcessRef::of(pid).is_some() {
        machine.update_or_log(|state| {
            if state.status != Status::Stopped {
                state.pid = pid;
            }
        });
    }
    answer_until_exit(stream, machine.clone(), exec.clone(), Some(Reply::Done)).await;
    if ending.borrow().is_none() {
        let request = AgentRequest::Signal { container: machine.id(), exec, signal: KILL, all: false };
        if let Err(error) = machine.done("kill the process whose stand-in on the host died", &request).await {
            eprintln!("{}", error.chain());
        }
    }
}

async fn delete(machine: &Machine, force: bool) -> Result<()> {
    let status = machine.status();
    if !force && status != Status::Stopped {
        return Err(invalid(format!("cannot delete container {} that is not stopped: {status}", machine.id())));
    }
    // Nothing in the guest is worth a conversation: its processes are gone or shall be, and what they wrote to shared files
    // was written through when they wrote it.
    machine.end().await;
    machine.update_or_log(|state| {
        state.status = Status::Stopped;
        state.pid = 0;
    });
    // The name must be free for new callers before the caller is told; the rest is the caller's to remove.
    let _ = std::fs::remove_file(machine.dir().file("sock"));
    Ok(())
}
