//! Events for containerd: published once each, in the order in which they happened.
//!
//! One task sends them one after the other over containerd's ttrpc socket. While containerd is away (it may be restarted under running pods)
//! they wait, and whoever makes one does not. The program that containerd named with `-publish-binary` is the way for want of a socket.

use std::{
    cell::RefCell,
    collections::VecDeque,
    path::PathBuf,
    process::Stdio,
    time::{Duration, Instant, SystemTime},
};

use containerd_shim_protos::{
    api::ForwardRequest,
    events::task as events,
    protobuf::{Message, well_known_types::any::Any},
    shim::event::Envelope,
    shim_async::{Client, EventsClient},
    topics,
    ttrpc::{self, asynchronous::transport::Socket, context},
};
use tokio::{
    io::AsyncWriteExt,
    sync::mpsc,
    task::JoinHandle,
    time::{sleep, timeout},
};

use crate::{Error, Result, log, translate::timestamp};

/// How long containerd may take to accept an event.
const FORWARD_DEADLINE: Duration = Duration::from_secs(5);
/// How long the program may take.
const PROGRAM_DEADLINE: Duration = Duration::from_secs(10);
/// First and longest pause between two attempts.
const PAUSES: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));
/// An event that could not be delivered for so long is of no use any more: whoever was away has asked for the state since.
const KEPT_FOR: Duration = Duration::from_secs(600);
/// More than that many do not wait.
const MOST_WAITING: usize = 4096;

/// An event, with its topic and the name of its type.
macro_rules! event {
    ($($type:ident $topic:ident),* $(,)?) => {
        $(impl Event for events::$type {
            const TOPIC: &'static str = topics::$topic;
            const TYPE: &'static str = concat!("containerd.events.", stringify!($type));
        })*
    };
}

/// A message that is published.
pub(crate) trait Event: Message {
    /// Under which topic.
    const TOPIC: &'static str;
    /// As what type.
    const TYPE: &'static str;
}

event! {
    TaskCreate TASK_CREATE_EVENT_TOPIC,
    TaskStart TASK_START_EVENT_TOPIC,
    TaskExit TASK_EXIT_EVENT_TOPIC,
    TaskDelete TASK_DELETE_EVENT_TOPIC,
    TaskExecAdded TASK_EXEC_ADDED_EVENT_TOPIC,
    TaskExecStarted TASK_EXEC_STARTED_EVENT_TOPIC,
    TaskPaused TASK_PAUSED_EVENT_TOPIC,
    TaskResumed TASK_RESUMED_EVENT_TOPIC,
    TaskOOM TASK_OOM_EVENT_TOPIC,
}

/// Where events go.
#[derive(Debug, Clone, Default)]
pub(crate) struct Destination {
    /// The namespace that they are of.
    pub(crate) namespace: String,
    /// Path of containerd's ttrpc socket (`TTRPC_ADDRESS`).
    pub(crate) socket: Option<String>,
    /// containerd's gRPC socket, for the program.
    pub(crate) grpc_address: String,
    /// The program.
    pub(crate) program: Option<PathBuf>,
}

/// The end where events are put in.
pub(crate) struct Publisher {
    queue: RefCell<Option<mpsc::UnboundedSender<Envelope>>>,
    namespace: String,
    task: RefCell<Option<JoinHandle<()>>>,
}

impl Publisher {
    /// Starts the task that sends.
    pub(crate) fn new(destination: Destination) -> Self {
        let (queue, events) = mpsc::unbounded_channel();
        let namespace = destination.namespace.clone();
        let task = tokio::spawn(Sender { destination, client: None, warned: false }.run(events));
        Self { queue: RefCell::new(Some(queue)), namespace, task: RefCell::new(Some(task)) }
    }

    /// Publishes an event. It is sent after those before it.
    pub(crate) fn publish<E: Event>(&self, event: &E) {
        let mut content = Any::new();
        content.type_url = E::TYPE.into();
        match event.write_to_bytes() {
            Ok(bytes) => content.value = bytes,
            Err(error) => return log::error(&format!("encode the event {}: {error}", E::TYPE)),
        }
        let mut envelope = Envelope::new();
        envelope.timestamp = Some(timestamp(SystemTime::now())).into();
        envelope.namespace = self.namespace.clone();
        envelope.topic = E::TOPIC.into();
        envelope.event = Some(content).into();
        if let Some(queue) = self.queue.borrow().as_ref() {
            let _closed = queue.send(envelope);
        }
    }

    /// Takes no more events and waits until all are delivered, but not longer than `deadline`.
    pub(crate) async fn close(&self, deadline: Duration) {
        self.queue.take();
        let Some(mut task) = self.task.take() else { return };
        if timeout(deadline, &mut task).await.is_err() {
            task.abort();
            log::warn("events are still waiting for containerd, which does not answer; they are lost");
        }
    }
}

struct Sender {
    destination: Destination,
    client: Option<EventsClient>,
    /// Whether the present trouble has been told.
    warned: bool,
}

impl Sender {
    async fn run(mut self, mut events: mpsc::UnboundedReceiver<Envelope>) {
        let mut waiting = VecDeque::new();
        while let Some(event) = events.recv().await {
            waiting.push_back((event, Instant::now()));
            let mut pause = PAUSES.0;
            while let Some((event, since)) = waiting.front() {
                match self.send(event).await {
                    Ok(()) => {
                        self.warned = false;
                        pause = PAUSES.0;
                        waiting.pop_front();
                    }
                    Err(error) if since.elapsed() > KEPT_FOR => {
                        log::error(&format!("the event {} is lost: {}", event.topic, error.chain()));
                        waiting.pop_front();
                    }
                    Err(error) => {
                        if !self.warned {
                            log::warn(&format!("publish the event {}, which waits: {}", event.topic, error.chain()));
                            self.warned = true;
                        }
                        sleep(pause).await;
                        pause = (pause * 2).min(PAUSES.1);
                        collect(&mut events, &mut waiting);
                    }
                }
            }
        }
    }

    async fn send(&mut self, event: &Envelope) -> Result<()> {
        let failure = match self.destination.socket.clone() {
            Some(socket) => match self.forward(&socket, event).await {
                Ok(()) => return Ok(()),
                // It may have arrived: to publish it by another way would be to publish it twice.
                Err(error) if !matches!(error, Error::Io { .. }) => return Err(error),
                Err(error) => error,
            },
            None => Error::Precondition("containerd told no address for events (TTRPC_ADDRESS)".into()),
        };
        match self.destination.program.clone() {
            // Where there is a socket the program would ask the same containerd.
            Some(program) if self.destination.socket.is_none() => self.run_program(&program, event).await,
            _ => Err(failure),
        }
    }

    async fn forward(&mut self, socket: &str, event: &Envelope) -> Result<()> {
        let mut request = ForwardRequest::new();
        request.envelope = Some(event.clone()).into();
        // containerd may have been restarted since the last event: then the old connection is dead, and nothing was sent.
        for fresh in [false, true] {
            let client = match (&self.client, fresh) {
                (Some(client), false) => client,
                _ => {
                    let path = socket.strip_prefix("unix://").unwrap_or(socket);
                    let connected = timeout(FORWARD_DEADLINE, Socket::connect_unix(path)).await;
                    let connected = connected.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()));
                    let connection = connected.map_err(|e| Error::io(format!("connect to containerd at {path}"), e))?;
                    self.client.insert(EventsClient::new(Client::new(connection)))
                }
            };
            match client.forward(context::with_duration(FORWARD_DEADLINE), &request).await {
                Ok(_) => return Ok(()),
                Err(ttrpc::Error::RpcStatus(status)) => {
                    // containerd has read it and does not want it. It will not change its mind.
                    log::error(&format!("containerd refuses the event {}: {}", event.topic, status.message));
                    return Ok(());
                }
                Err(error) => {
                    self.client = None;
                    if fresh {
                        return Err(Error::rpc("forward an event to containerd", error));
                    }
                }
            }
        }
        Ok(())
    }

    async fn run_program(&self, program: &PathBuf, event: &Envelope) -> Result<()> {
        let step = || format!("publish an event by {}", program.display());
        let mut command = tokio::process::Command::new(program);
        command.args(["--address", &self.destination.grpc_address, "publish", "--topic", &event.topic]);
        command.args(["--namespace", &event.namespace]);
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
        let content = event.event.write_to_bytes().map_err(|e| Error::io(step(), std::io::Error::other(e)))?;
        let run = async {
            let mut child = command.spawn()?;
            if let Some(mut stdin) = child.stdin.take() {
                stdin.write_all(&content).await?;
            }
            child.wait().await
        };
        let status = timeout(PROGRAM_DEADLINE, run)
            .await
            .map_err(|_| Error::Deadline { what: step(), seconds: PROGRAM_DEADLINE.as_secs() })?
            .map_err(|e| Error::io(step(), e))?;
        if status.success() {
            Ok(())
        } else {
            Err(Error::io(step(), std::io::Error::other(format!("it ended with {status}"))))
        }
    }
}

/// Takes over what has come in meanwhile; the oldest give way when there are too many.
fn collect(events: &mut mpsc::UnboundedReceiver<Envelope>, waiting: &mut VecDeque<(Envelope, Instant)>) {
    while let Ok(event) = events.try_recv() {
        waiting.push_back((event, Instant::now()));
        if waiting.len() > MOST_WAITING
            && let Some((lost, _)) = waiting.pop_front()
        {
            log::error(&format!("the event {} is lost: too many are waiting for containerd", lost.topic));
        }
    }
}

#[cfg(test)]
#[path = "events_tests.rs"]
pub(crate) mod tests;
