//! Answering the host's calls: one stream, one call.

use std::rc::Rc;

use agent_api::frame::{self, MAX_REQUEST};
use agent_api::{Fault, FaultKind, Hello, HelloReply, PROTOCOL_VERSION, Reply};
use proxy::Acceptor;
use tokio::task::spawn_local;

use crate::agent::Agent;
use crate::fault::{fault, internal};
use crate::io::BoxStream;
use crate::log::chain;
use crate::spec::Request;
use crate::{boot, container, dial, listeners, names, online, pod, storage};

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
    agent.log.debug(format_args!("call: {}", request.name()));
    // Boxed, because every stream has one of these, and most are no calls.
    let answer = match Box::pin(call(&agent, request, &mut stream)).await {
        Ok(Some(answer)) => answer,
        // The stream was used for something else, and that is over.
        Ok(None) => return,
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

/// Carries a call out. Gives its last reply, if the stream still is one of replies.
async fn call(agent: &Rc<Agent>, request: Request, stream: &mut BoxStream) -> Result<Option<Reply>, Fault> {
    if !matches!(request, Request::Hello(_)) && !agent.greeted.get() {
        return Err(fault(FaultKind::Protocol, "the first call has to be hello"));
    }
    match request {
        Request::Events => {
            agent.events.tell(stream).await;
            Ok(None)
        }
        Request::Dial { port } => {
            dial::dial(port, stream).await?;
            Ok(None)
        }
        Request::ServeNames { address } => {
            names::serve(agent.log, address, stream).await?;
            Ok(None)
        }
        other => reply_to(agent, other, stream).await.map(Some),
    }
}

async fn reply_to(agent: &Rc<Agent>, request: Request, stream: &mut BoxStream) -> Result<Reply, Fault> {
    match request {
        Request::Hello(hello) => self::hello(agent, &hello).map(Reply::Hello),
        Request::Attach { .. } | Request::Events | Request::Dial { .. } | Request::ServeNames { .. } => {
            Err(internal(format!("{} is no call that is answered once", request.name())))
        }
        Request::CreateContainer(request) => {
            let container = container::create(agent, *request).await?;
            reply(agent, stream, &Reply::Created { pid: container.init.pid }).await;
            let exited = container.init.exit.clone().ended().await;
            // The reason comes before what it is the reason of.
            container.note_out_of_memory(&agent.events);
            Ok(Reply::Exited(exited))
        }
        Request::StartContainer { container } => {
            container::start(agent, &*agent.containers.get(&container)?).await?;
            Ok(Reply::Done)
        }
        Request::Exec(request) => {
            let outside = request.container == agent_api::GUEST;
            let process = if outside {
                container::run_outside(agent, *request).await?
            } else {
                container::exec(agent, *request).await?
            };
            reply(agent, stream, &Reply::Created { pid: process.pid }).await;
            Ok(Reply::Exited(process.exit.clone().ended().await))
        }
        Request::Signal { container, exec, signal, .. } if container == agent_api::GUEST => {
            agent.consoles.signal(exec.as_deref(), signal)?;
            Ok(Reply::Done)
        }
        Request::ResizeTty { container, exec, size } if container == agent_api::GUEST => {
            agent.consoles.resize(exec.as_deref(), size)?;
            Ok(Reply::Done)
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
            agent.containers.delete(agent, &container).await?;
            Ok(Reply::Done)
        }
        Request::Forget { name } => {
            agent.shared.look_again(&name);
            Ok(Reply::Done)
        }
        Request::ConfigureNetwork(network) => {
            agent.network.configure(network).await?;
            Ok(Reply::Done)
        }
        Request::ConfigurePod(pod) => {
            pod::configure(agent, &pod).await?;
            Ok(Reply::Done)
        }
        Request::UpdateContainer { container, resources } => {
            container::update(agent, &*agent.containers.get(&container)?, resources).await?;
            Ok(Reply::Done)
        }
        Request::Statistics { container } => {
            Ok(Reply::Statistics(Box::new(agent.containers.get(&container)?.statistics())))
        }
        Request::Listeners => Ok(Reply::Listeners(listeners::listeners()?)),
        Request::Online { vcpus } => {
            online::online(vcpus).await?;
            Ok(Reply::Done)
        }
        Request::UpdateFiles { storage, entries } => {
            storage::update_files(agent, &storage, &entries).await?;
            Ok(Reply::Done)
        }
        Request::Metrics => Ok(Reply::Metrics(agent.metrics.text())),
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
    if let Err(error) = online::use_new_memory() {
        agent.log.warn(format_args!("memory that is plugged will not be used at once: {error}"));
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
