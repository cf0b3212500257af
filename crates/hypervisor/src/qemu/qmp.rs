//! A client of the QEMU Machine Protocol: commands, with a descriptor where one is passed, and the events this driver needs.
//!
//! QEMU may have been taken over by its guest, so its messages are bounded in size, nothing it sends makes this client
//! allocate more than one line, and no command waits for an answer beyond its deadline.
//! Protocol: QEMU's `docs/interop/qmp-spec.rst`.

use std::{
    io::IoSlice,
    mem::MaybeUninit,
    os::fd::{AsFd, OwnedFd},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, Interest},
    net::{
        UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::{Notify, mpsc, oneshot},
    time::timeout,
};

use crate::{Error, Result, Stage, sys::monotonic_ns};

/// Longest message accepted, bytes. A list of 255 processors takes 50 KiB, every other answer to what is asked here less than 1.
const LINE_LIMIT: usize = 128 * 1024;

/// How long a command may take. QEMU answers in less than a millisecond, unless the host is short of memory or time.
pub(super) const DEADLINE: Duration = Duration::from_secs(10);

/// Commands waiting to be sent at most; more callers wait.
const QUEUE: usize = 4;

/// Said of an answer nobody waits for.
const UNASKED: &str = "it sent an answer without a command";

/// The oldest QEMU that is supported: the oldest one that the tests were run with, Debian 12's.
pub(super) const OLDEST: (u32, u32) = (7, 2);

/// [`OLDEST`], in words.
pub(super) fn oldest() -> String {
    format!("{}.{}", OLDEST.0, OLDEST.1)
}

/// What QEMU said about itself.
#[derive(Debug, Default)]
struct Seen {
    outdated: Option<String>,
    ready_ns: Option<u64>,
    running_ns: Option<u64>,
    opened_ns: Option<u64>,
    shutdown: Option<String>,
    broken: Option<String>,
    /// The one device whose end is waited for, and whether it was seen.
    leaving: Option<(String, bool)>,
}

/// A command on its way to QEMU.
struct Call {
    command: &'static str,
    /// `null` for none.
    arguments: Value,
    /// What goes with it.
    descriptor: Option<OwnedFd>,
    reply: oneshot::Sender<Answer>,
}

/// What QEMU said to a command.
pub(super) type Answer = Result<std::result::Result<Value, Refusal>>;

/// Why QEMU does not obey.
#[derive(Debug, Deserialize)]
pub(super) struct Refusal {
    class: String,
    #[serde(rename = "desc")]
    words: String,
}

impl Refusal {
    /// There is no such device.
    pub(super) fn is_unknown_device(&self) -> bool {
        self.class == "DeviceNotFound"
    }

    pub(super) fn of(self, command: &'static str) -> Error {
        Error::Refused { command, message: self.words }
    }
}

/// The caller's side of the connection. Clones share it.
#[derive(Debug, Clone)]
pub(super) struct Qmp {
    calls: mpsc::Sender<Call>,
    seen: Arc<Mutex<Seen>>,
    left: Arc<Notify>,
}

impl Qmp {
    /// A client, and the future that does its work, which ends when QEMU closes the connection or misbehaves.
    pub(super) fn connect(stream: UnixStream) -> (Self, impl Future<Output = ()> + Send + 'static) {
        let (calls, queue) = mpsc::channel(QUEUE);
        let seen = Arc::new(Mutex::new(Seen::default()));
        let left = Arc::new(Notify::new());
        let client = Self { calls, seen: seen.clone(), left: left.clone() };
        let (reader, writer) = stream.into_split();
        let connection = Connection { reader, writer, buffer: Vec::new(), seen, left };
        (client, connection.run(queue))
    }

    /// Sends a command without arguments and waits for its answer, [`DEADLINE`] at most.
    pub(super) async fn execute(&self, command: &'static str) -> Result<Value> {
        self.call(command, Value::Null).await
    }

    /// Sends a command and waits for its answer, [`DEADLINE`] at most.
    pub(super) async fn call(&self, command: &'static str, arguments: Value) -> Result<Value> {
        self.ask(command, arguments).await?.map_err(|refusal| refusal.of(command))
    }

    /// The same; a refusal is an answer.
    pub(super) async fn ask(&self, command: &'static str, arguments: Value) -> Answer {
        self.call_within(command, arguments, None, DEADLINE).await
    }

    /// The same as [`Qmp::call`] with a descriptor, of which QEMU gets a copy.
    pub(super) async fn pass(&self, command: &'static str, arguments: Value, descriptor: OwnedFd) -> Result<Value> {
        let answer = self.call_within(command, arguments, Some(descriptor), DEADLINE).await?;
        answer.map_err(|refusal| refusal.of(command))
    }

    async fn call_within(
        &self,
        command: &'static str,
        arguments: Value,
        descriptor: Option<OwnedFd>,
        deadline: Duration,
    ) -> Answer {
        let answered = async {
            let (reply, answer) = oneshot::channel();
            let call = Call { command, arguments, descriptor, reply };
            self.calls.send(call).await.map_err(|_| self.broken())?;
            answer.await.unwrap_or_else(|_| Err(self.broken()))
        };
        timeout(deadline, answered).await.unwrap_or(Err(Error::Silent { command, deadline }))
    }

    /// From now on the end of this device, by its id, is noticed, and no other's.
    pub(super) fn expect_end_of(&self, device: &str) {
        lock(&self.seen).leaving = Some((device.into(), false));
    }

    /// Whether the device is gone that was last named to [`Qmp::expect_end_of`]; waits for that.
    pub(super) async fn is_gone_within(&self, patience: Duration) -> bool {
        let is_gone = || lock(&self.seen).leaving.as_ref().is_some_and(|(_, gone)| *gone);
        let seen = async {
            while !is_gone() {
                self.left.notified().await;
            }
        };
        timeout(patience, seen).await.is_ok()
    }

    /// The steps of the start that QEMU has reported.
    pub(super) fn stages(&self) -> impl Iterator<Item = Stage> {
        let seen = lock(&self.seen);
        let stage = |name, at_ns: Option<u64>| at_ns.map(|at_ns| Stage { name, at_ns });
        let opened = stage("channel-opened", seen.opened_ns);
        [stage("qmp-ready", seen.ready_ns), stage("running", seen.running_ns), opened].into_iter().flatten()
    }

    /// Why QEMU is about to end, in its own word (`guest-shutdown`, `guest-reset`, …), once it said so.
    pub(super) fn shutdown(&self) -> Option<String> {
        lock(&self.seen).shutdown.clone()
    }

    /// The version of a QEMU that said that it is too old; the connection has ended then.
    pub(super) fn outdated(&self) -> Option<String> {
        lock(&self.seen).outdated.clone()
    }

    fn broken(&self) -> Error {
        let why = lock(&self.seen).broken.clone();
        Error::Control(why.unwrap_or_else(|| "the connection is closed".into()))
    }
}

/// Speaks QMP, as with QEMU, with whoever is at the other end, and asks a question meanwhile. Gives why the conversation ended: the other end has
/// closed it, or said something that QEMU may not. For tests of what somebody may say who has taken QEMU over.
pub async fn converse(stream: UnixStream) -> String {
    let (client, work) = Qmp::connect(stream);
    client.expect_end_of("disk");
    let (answer, ()) = tokio::join!(client.call("query-cpus-fast", Value::Null), work);
    let _ = (client.stages().count(), client.shutdown(), client.outdated());
    match answer {
        Ok(_) => client.broken().to_string(),
        Err(error) => error.to_string(),
    }
}

fn lock(seen: &Mutex<Seen>) -> std::sync::MutexGuard<'_, Seen> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Any message of QEMU's.
#[derive(Deserialize)]
struct Message {
    #[serde(rename = "QMP")]
    greeting: Option<Value>,
    event: Option<String>,
    data: Option<EventData>,
    #[serde(rename = "return")]
    result: Option<Value>,
    error: Option<Refusal>,
    id: Option<u64>,
}

#[derive(Deserialize)]
struct EventData {
    reason: Option<String>,
    device: Option<String>,
    open: Option<bool>,
}

/// QEMU's side.
struct Connection {
    reader: OwnedReadHalf,
    writer: OwnedWriteHalf,
    buffer: Vec<u8>,
    seen: Arc<Mutex<Seen>>,
    left: Arc<Notify>,
}

impl Connection {
    async fn run(mut self, mut queue: mpsc::Receiver<Call>) {
        let Err(why) = self.converse(&mut queue).await;
        lock(&self.seen).broken = Some(why);
    }

    /// Speaks QMP until something goes wrong; returns what.
    async fn converse(
        &mut self,
        queue: &mut mpsc::Receiver<Call>,
    ) -> std::result::Result<std::convert::Infallible, String> {
        let greeting = self.message().await?.greeting.ok_or("its first message was no greeting")?;
        if let Some(version) = outdated(&greeting) {
            lock(&self.seen).outdated = Some(version);
            return Err("it is too old".into());
        }
        lock(&self.seen).ready_ns = Some(monotonic_ns());
        // Both go out together; their numbers tell the answers apart from those of the commands that follow.
        self.send(0, "qmp_capabilities", Value::Null, None).await?;
        self.send(1, "query-status", Value::Null, None).await?;
        let (mut next, mut pending) = (2, None::<(u64, oneshot::Sender<Answer>)>);
        loop {
            tokio::select! {
                // One command at a time: QEMU would answer them one after the other anyway.
                Some(call) = queue.recv(), if pending.is_none() => {
                    self.send(next, call.command, call.arguments, call.descriptor).await?;
                    pending = Some((next, call.reply));
                    next += 1;
                }
                filled = fill(&mut self.reader, &mut self.buffer) => filled?,
            }
            while let Some(line) = take_line(&mut self.buffer)? {
                let message = parse(&line)?;
                if let Some(event) = &message.event {
                    self.note(event, &message);
                } else if message.id == Some(0) {
                    if let Some(refusal) = message.error {
                        return Err(format!("it refused to negotiate: {}", refusal.words));
                    }
                } else if message.id == Some(1) {
                    if message.result.is_some_and(|status| status["running"] == true) {
                        lock(&self.seen).running_ns.get_or_insert_with(monotonic_ns);
                    }
                } else if let Some((id, reply)) = pending.take() {
                    if message.id == Some(id) {
                        let answer = message.error.map_or(Ok(message.result.unwrap_or_default()), Err);
                        let _gave_up = reply.send(Ok(answer));
                    } else {
                        return Err(UNASKED.into());
                    }
                } else {
                    return Err(UNASKED.into());
                }
            }
        }
    }

    async fn message(&mut self) -> std::result::Result<Message, String> {
        loop {
            if let Some(line) = take_line(&mut self.buffer)? {
                return parse(&line);
            }
            fill(&mut self.reader, &mut self.buffer).await?;
        }
    }

    async fn send(
        &mut self,
        id: u64,
        command: &str,
        arguments: Value,
        descriptor: Option<OwnedFd>,
    ) -> std::result::Result<(), String> {
        let mut message = json!({ "execute": command, "id": id });
        if !arguments.is_null() {
            message["arguments"] = arguments;
        }
        let line = format!("{message}\n");
        let failed = |error| format!("it takes no command ({error})");
        let sent = match &descriptor {
            Some(descriptor) => self.send_first(line.as_bytes(), descriptor).await.map_err(failed)?,
            None => 0,
        };
        self.writer.write_all(&line.as_bytes()[sent..]).await.map_err(failed)
    }

    /// Sends as much as goes at once, and a descriptor with it; gives how much that was.
    async fn send_first(&self, bytes: &[u8], descriptor: &OwnedFd) -> std::io::Result<usize> {
        let stream: &UnixStream = self.writer.as_ref();
        let send = || {
            let descriptors = [descriptor.as_fd()];
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut ancillary = SendAncillaryBuffer::new(&mut space);
            ancillary.push(SendAncillaryMessage::ScmRights(&descriptors));
            Ok(sendmsg(stream, &[IoSlice::new(bytes)], &mut ancillary, SendFlags::NOSIGNAL)?)
        };
        stream.async_io(Interest::WRITABLE, send).await
    }

    fn note(&self, event: &str, message: &Message) {
        let mut seen = lock(&self.seen);
        match event {
            "SHUTDOWN" => {
                let reason = message.data.as_ref().and_then(|data| data.reason.clone());
                seen.shutdown = Some(reason.unwrap_or_default());
            }
            // The machine may have begun to run between the greeting and the first look at its state.
            "RESUME" => {
                seen.running_ns.get_or_insert_with(monotonic_ns);
            }
            // There is one port.
            "VSERPORT_CHANGE" if message.data.as_ref().is_some_and(|data| data.open == Some(true)) => {
                seen.opened_ns.get_or_insert_with(monotonic_ns);
            }
            "DEVICE_DELETED" => {
                let device = message.data.as_ref().and_then(|data| data.device.as_ref());
                if let Some((awaited, gone)) = &mut seen.leaving
                    && device == Some(awaited)
                {
                    *gone = true;
                    self.left.notify_one();
                }
            }
            _ => {}
        }
    }
}

/// The version that a greeting names, if it is older than [`OLDEST`].
fn outdated(greeting: &Value) -> Option<String> {
    let number = |name: &str| greeting["version"]["qemu"][name].as_u64().and_then(|number| u32::try_from(number).ok());
    let version = (number("major")?, number("minor")?);
    (version < OLDEST).then(|| format!("{}.{}", version.0, version.1))
}

/// Reads more into the buffer. May be abandoned without losing anything.
async fn fill(reader: &mut OwnedReadHalf, buffer: &mut Vec<u8>) -> std::result::Result<(), String> {
    match reader.read_buf(buffer).await {
        Ok(0) => Err("it closed the connection".into()),
        Ok(_) => Ok(()),
        Err(error) => Err(format!("the connection broke ({error})")),
    }
}

/// The first line in the buffer, if it is complete.
fn take_line(buffer: &mut Vec<u8>) -> std::result::Result<Option<Vec<u8>>, String> {
    match buffer.iter().position(|&byte| byte == b'\n') {
        Some(end) => Ok(Some(buffer.drain(..=end).collect())),
        None if buffer.len() > LINE_LIMIT => Err(format!("it sent a message of more than {LINE_LIMIT} bytes")),
        None => Ok(None),
    }
}

fn parse(line: &[u8]) -> std::result::Result<Message, String> {
    serde_json::from_slice(line).map_err(|error| format!("it sent something that is no message of QMP's ({error})"))
}

#[cfg(test)]
mod tests;
