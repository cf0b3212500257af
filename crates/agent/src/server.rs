//! Answering the host's calls: one stream, one call.

use std::rc::Rc;

use agent_api::frame::{self, MAX_REQUEST};
use agent_api::{Fault, FaultKind, Hello, HelloReply, PROTOCOL_VERSION, Reply};
use proxy::Acceptor;
use tokio::task::spawn_local;

use crate::agent::Agent;
use crate::boot;
use crate::container;
use crate::fault::{fault, internal};
use crate::io::BoxStream;
use crate::log::chain;
use crate::spec::Request;

/// Serves every stream until the channel ends.
pub async fn serve(agent: Rc<Agent>, mut acceptor: Acceptor) {
    while let Some(stream) = acceptor.accept().await {
        spawn_local(answer(agent.clone(), Box::new(stream)));
    }
}

async fn answer(agent: Rc<Agent>, mut stream: BoxStream) {
    let request: Request = match frame::read(&mut stream, MAX_REQUEST).await {
        Ok(request) => request,
        Err(frame::FrameError::Closed) => return,
        Err(error) => {
            let fault = fault(FaultKind::Protocol, format!("reading the request: {}", chain(&error)));
            return reply(&agent, &mut stream, &Reply::Fault(fault)).await;
        }
    };
    if let Request::Attach { token } = request {
        if let Err(fault) = agent.tokens.park(token, stream).await {
            agent.log.warn(fault);
        }
        return;
    }
    agent.log.debug(format_args!("call: {}", name(&request)));
    // Boxed, because every stream has one of these, and most are no calls.
    let answer = match Box::pin(call(&agent, request, &mut stream)).await {
        Ok(answer) => answer,
        Err(fault) => {
            agent.log.info(format_args!("the call failed: {fault}"));
            Reply::Fault(fault)
        }
    };
    reply(&agent, &mut stream, &answer).await;
    finish(stream).await;
}

/// Closes our half and waits for the host to close the stream, lest the last reply be lost by a reset.
async fn finish(mut stream: BoxStream) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    if stream.shutdown().await.is_ok() {
        let mut ignored = [0; 64];
        while matches!(stream.read(&mut ignored).await, Ok(1..)) {}
    }
}

async fn reply(agent: &Agent, stream: &mut BoxStream, reply: &Reply) {
    // A host that has dropped the call does not want the answer.
    if let Err(error) = frame::write(stream, reply).await {
        agent.log.debug(format_args!("a reply was not wanted: {}", chain(&error)));
    }
}

/// Carries a call out. Gives its last reply.
async fn call(agent: &Rc<Agent>, request: Request, stream: &mut BoxStream) -> Result<Reply, Fault> {
    if !matches!(request, Request::Hello(_)) && !agent.greeted.get() {
        return Err(fault(FaultKind::Protocol, "the first call has to be hello"));
    }
    match request {
        Request::Hello(hello) => self::hello(agent, &hello).map(Reply::Hello),
        Request::Attach { .. } => Err(internal("attach is not a call")),
        Request::CreateContainer(request) => {
            let container = container::create(agent, *request).await?;
            reply(agent, stream, &Reply::Created { pid: container.init.pid }).await;
            Ok(Reply::Exited(container.init.exit.clone().ended().await))
        }
        Request::StartContainer { container } => {
            container::start(agent, &*agent.containers.get(&container)?).await?;
            Ok(Reply::Done)
        }
        Request::Exec(request) => {
            let process = container::exec(agent, *request).await?;
            reply(agent, stream, &Reply::Created { pid: process.pid }).await;
            Ok(Reply::Exited(process.exit.clone().ended().await))
        }
        Request::Signal { container, exec, signal, all } => {
            agent.containers.get(&container)?.signal(exec.as_deref(), signal, all)?;
            Ok(Reply::Done)
        }
        Request::ResizeTty { container, exec, size } => {
            agent.containers.get(&container)?.resize(exec.as_deref(), size)?;
            Ok(Reply::Done)
        }
        Request::Pause { container } => {
            agent.containers.get(&container)?.pause(true).await?;
            Ok(Reply::Done)
        }
        Request::Resume { container } => {
            agent.containers.get(&container)?.pause(false).await?;
            Ok(Reply::Done)
        }
        Request::Processes { container } => Ok(Reply::Processes(agent.containers.get(&container)?.processes()?)),
        Request::DeleteContainer { container } => {
            agent.containers.delete(&container).await?;
            Ok(Reply::Done)
        }
        Request::ConfigureNetwork(network) => {
            agent.network.configure(network).await?;
            Ok(Reply::Done)
        }
        other => Err(fault(FaultKind::InvalidArgument, format!("this agent does not know {}", name(&other)))),
    }
}

fn hello(agent: &Agent, hello: &Hello) -> Result<HelloReply, Fault> {
    if hello.protocol != PROTOCOL_VERSION {
        return Err(fault(
            FaultKind::Protocol,
            format!(
                "the host speaks version {} of the protocol, the agent {} ({PROTOCOL_VERSION}); use a guest image of the same release as the runtime",
                hello.protocol,
                env!("CARGO_PKG_VERSION"),
            ),
        ));
    }
    // A guest with a wrong clock or little entropy still works.
    for done in [boot::set_wall_clock(hello.wall_clock_ns), boot::add_entropy(&hello.entropy)] {
        if let Err(error) = done {
            agent.log.warn(chain(&error));
        }
    }
    agent.greeted.set(true);
    Ok(HelloReply {
        protocol: PROTOCOL_VERSION,
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        kernel_release: rustix::system::uname().release().to_string_lossy().into_owned(),
        stages: agent.stages.list().to_vec(),
        now_ns: boot::now_ns(),
    })
}

fn name(request: &Request) -> &'static str {
    match request {
        Request::Hello(_) => "hello",
        Request::Attach { .. } => "attach",
        Request::CreateContainer(_) => "create container",
        Request::StartContainer { .. } => "start container",
        Request::Exec(_) => "exec",
        Request::Signal { .. } => "signal",
        Request::ResizeTty { .. } => "resize tty",
        Request::Pause { .. } => "pause",
        Request::Resume { .. } => "resume",
        Request::Processes { .. } => "processes",
        Request::DeleteContainer { .. } => "delete container",
        Request::ConfigurePod(_) => "configure pod",
        Request::ConfigureNetwork(_) => "configure network",
        Request::UpdateContainer { .. } => "update container",
        Request::Statistics { .. } => "statistics",
        Request::Online { .. } => "online",
        Request::UpdateFiles { .. } => "update files",
        Request::Events => "events",
        Request::Dial { .. } => "dial",
        Request::Metrics => "metrics",
    }
}
