//! A client of the QEMU Machine Protocol: just the commands and events this driver needs.
//!
//! QEMU may have been taken over by its guest, so its messages are bounded in size, nothing it sends makes this client
//! allocate more than one line, and no command waits for an answer beyond its deadline.
//! Protocol: QEMU's `docs/interop/qmp-spec.rst`.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use serde::Deserialize;
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::{mpsc, oneshot},
    time::timeout,
};

use crate::{Error, Result, Stage, sys::monotonic_ns};

/// Longest message accepted, bytes. The answers to the commands used here take less than 1 KiB.
const LINE_LIMIT: usize = 64 * 1024;

/// How long a command may take. QEMU answers in less than a millisecond, unless the host is short of memory or time.
pub(super) const DEADLINE: Duration = Duration::from_secs(10);

/// Commands waiting to be sent at most; more callers wait.
const QUEUE: usize = 4;

/// Said of an answer nobody waits for.
const UNASKED: &str = "it sent an answer without a command";

/// The oldest QEMU that is supported: the oldest one that the tests were run with, Debian 12's.
const OLDEST: (u32, u32) = (7, 2);

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
    shutdown: Option<String>,
    broken: Option<String>,
}

/// A command on its way to QEMU.
struct Call {
    command: &'static str,
    reply: oneshot::Sender<Result<Value>>,
}

/// The caller's side of the connection. Clones share it.
#[derive(Debug, Clone)]
pub(super) struct Qmp {
    calls: mpsc::Sender<Call>,
    seen: Arc<Mutex<Seen>>,
}

impl Qmp {
    /// A client, and the future that does its work, which ends when QEMU closes the connection or misbehaves.
    pub(super) fn connect(stream: UnixStream) -> (Self, impl Future<Output = ()> + Send + 'static) {
        let (calls, queue) = mpsc::channel(QUEUE);
        let seen = Arc::new(Mutex::new(Seen::default()));
        let client = Self { calls, seen: seen.clone() };
        let (reader, writer) = stream.into_split();
        let connection = Connection { reader, writer, buffer: Vec::new(), seen };
        (client, connection.run(queue))
    }

    /// Sends a command without arguments and waits for its answer, [`DEADLINE`] at most.
    pub(super) async fn execute(&self, command: &'static str) -> Result<Value> {
        self.execute_within(command, DEADLINE).await
    }

    async fn execute_within(&self, command: &'static str, deadline: Duration) -> Result<Value> {
        let answered = async {
            let (reply, answer) = oneshot::channel();
            self.calls.send(Call { command, reply }).await.map_err(|_| self.broken())?;
            answer.await.unwrap_or_else(|_| Err(self.broken()))
        };
        timeout(deadline, answered).await.unwrap_or(Err(Error::Silent { command, deadline }))
    }

    /// The steps of the start that QEMU has reported.
    pub(super) fn stages(&self) -> impl Iterator<Item = Stage> {
        let seen = lock(&self.seen);
        let stage = |name, at_ns: Option<u64>| at_ns.map(|at_ns| Stage { name, at_ns });
        [stage("qmp-ready", seen.ready_ns), stage("running", seen.running_ns)].into_iter().flatten()
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
}

#[derive(Deserialize)]
struct Refusal {
    desc: String,
}

/// QEMU's side.
struct Connection {
    reader: OwnedReadHalf,
    writer: OwnedWriteHalf,
    buffer: Vec<u8>,
    seen: Arc<Mutex<Seen>>,
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
        self.send(0, "qmp_capabilities").await?;
        self.send(1, "query-status").await?;
        let (mut next, mut pending) = (2, None::<(u64, Call)>);
        loop {
            tokio::select! {
                // One command at a time: QEMU would answer them one after the other anyway.
                Some(call) = queue.recv(), if pending.is_none() => {
                    self.send(next, call.command).await?;
                    pending = Some((next, call));
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
                        return Err(format!("it refused to negotiate: {}", refusal.desc));
                    }
                } else if message.id == Some(1) {
                    if message.result.is_some_and(|status| status["running"] == true) {
                        lock(&self.seen).running_ns.get_or_insert_with(monotonic_ns);
                    }
                } else if let Some((id, call)) = pending.take() {
                    if message.id == Some(id) {
                        let _gave_up = call.reply.send(answer(message, call.command));
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

    async fn send(&mut self, id: u64, command: &str) -> std::result::Result<(), String> {
        let line = format!("{{\"execute\":\"{command}\",\"id\":{id}}}\n");
        self.writer.write_all(line.as_bytes()).await.map_err(|error| format!("it takes no command ({error})"))
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

fn answer(message: Message, command: &'static str) -> Result<Value> {
    match message.error {
        Some(refusal) => Err(Error::Refused { command, message: refusal.desc }),
        None => Ok(message.result.unwrap_or_default()),
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncBufReadExt, BufReader};

    use super::*;

    const GREETING: &[u8] = b"{\"QMP\": {\"version\": {}, \"capabilities\": []}}\r\n";

    /// A client whose QEMU is the other end of the returned stream.
    fn client() -> (Qmp, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (qmp, work) = Qmp::connect(ours);
        tokio::spawn(work);
        (qmp, theirs)
    }

    /// A QEMU that answers every command by the script: (command, what is sent, with ID replaced by the command's).
    async fn serve(stream: UnixStream, script: &[(&str, &str)]) {
        let (reader, mut writer) = stream.into_split();
        writer.write_all(GREETING).await.unwrap();
        let mut lines = BufReader::new(reader).lines();
        while let Ok(Some(line)) = lines.next_line().await {
            let message: Value = serde_json::from_str(&line).unwrap();
            let command = message["execute"].as_str().unwrap();
            let answer = match script.iter().find(|(name, _)| *name == command) {
                Some((_, answer)) => answer.replace("ID", &message["id"].to_string()),
                None => format!("{{\"return\": {{}}, \"id\": {}}}\r\n", message["id"]),
            };
            writer.write_all(answer.as_bytes()).await.unwrap();
        }
    }

    #[tokio::test(flavor = "current_thread")]
    async fn commands_answers_and_events() {
        let (qmp, qemu) = client();
        tokio::spawn(serve(
            qemu,
            &[
                ("query-status", "{\"return\": {\"status\": \"running\", \"running\": true}, \"id\": ID}\r\n"),
                ("stop", "{\"event\": \"STOP\", \"timestamp\": {}}\r\n{\"return\": {}, \"id\": ID}\r\n"),
                ("cont", "{\"error\": {\"class\": \"GenericError\", \"desc\": \"no\"}, \"id\": ID}\r\n"),
                (
                    "quit",
                    "{\"return\": {}, \"id\": ID}\n{\"event\": \"SHUTDOWN\", \"data\": {\"guest\": false, \"reason\": \"host-qmp-quit\"}}\n",
                ),
            ],
        ));
        qmp.execute("stop").await.unwrap();
        assert_eq!(qmp.execute("cont").await.unwrap_err().to_string(), "QEMU refused the command cont: no");
        assert_eq!(qmp.shutdown(), None);
        qmp.execute("quit").await.unwrap();
        qmp.execute("query-status").await.unwrap();
        assert_eq!(qmp.shutdown().as_deref(), Some("host-qmp-quit"));
        let stages: Vec<_> = qmp.stages().map(|stage| stage.name).collect();
        assert_eq!(stages, ["qmp-ready", "running"]);
    }

    /// What a command is told when QEMU sends these bytes after its greeting.
    async fn told_after(bytes: &[u8]) -> String {
        let (qmp, mut qemu) = client();
        qemu.write_all(GREETING).await.unwrap();
        let bytes = bytes.to_vec();
        tokio::spawn(async move {
            // The client hangs up when it has seen enough.
            let _ = qemu.write_all(&bytes).await;
            let mut sink = Vec::new();
            let _ = qemu.read_to_end(&mut sink).await;
        });
        qmp.execute_within("stop", Duration::from_millis(400)).await.unwrap_err().to_string()
    }

    #[tokio::test(flavor = "current_thread")]
    async fn misbehaviour_is_named() {
        for (bytes, part) in [
            (&b"\x00\xff\x00garbage\n"[..], "something that is no message of QMP's"),
            (&[b'x'; 3 * LINE_LIMIT][..], "a message of more than 65536 bytes"),
            (b"{\"return\": {}, \"id\": 77}\n", "an answer without a command"),
            (b"{\"error\": {\"class\": \"x\", \"desc\": \"never\"}, \"id\": 0}\n", "refused to negotiate: never"),
            (b"[[[[[[[", "did not answer the command stop within 0 s"),
            (b"", "did not answer the command stop within 0 s"),
        ] {
            let told = told_after(bytes).await;
            assert!(told.contains(part), "{told}");
        }
        let deep = [b"[".repeat(60_000), b"\n".to_vec()].concat();
        assert!(told_after(&deep).await.contains("no message of QMP's"));
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_qemu_that_is_too_old_is_not_spoken_to() {
        for (major, minor, old) in [(6, 2, true), (7, 1, true), (7, 2, false), (10, 0, false)] {
            let (ours, mut qemu) = UnixStream::pair().unwrap();
            let (qmp, work) = Qmp::connect(ours);
            let version = format!("{{\"qemu\": {{\"micro\": 0, \"minor\": {minor}, \"major\": {major}}}}}");
            let greeting = format!("{{\"QMP\": {{\"version\": {version}, \"capabilities\": []}}}}\n");
            qemu.write_all(greeting.as_bytes()).await.unwrap();
            let ended = timeout(Duration::from_millis(200), work).await.is_ok();
            assert_eq!((ended, qmp.outdated()), (old, old.then(|| format!("{major}.{minor}"))));
        }
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_wrong_greeting_or_none_is_named() {
        let (qmp, mut qemu) = client();
        qemu.write_all(b"{\"return\": {}}\n").await.unwrap();
        assert!(qmp.execute("stop").await.unwrap_err().to_string().contains("no greeting"));
        let (qmp, qemu) = client();
        drop(qemu);
        let told = qmp.execute("stop").await.unwrap_err().to_string();
        assert_eq!(told, "cannot control QEMU: it closed the connection");
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_late_answer_does_not_go_to_the_next_command() {
        let (qmp, mut qemu) = client();
        qemu.write_all(GREETING).await.unwrap();
        let error = qmp.execute_within("stop", Duration::from_millis(50)).await.unwrap_err();
        assert!(matches!(error, Error::Silent { command: "stop", .. }));
        qemu.write_all(b"{\"return\": \"late\", \"id\": 2}\n{\"return\": \"mine\", \"id\": 3}\n").await.unwrap();
        // The second answer came before its command could have been given.
        let error = qmp.execute("cont").await.unwrap_err().to_string();
        assert!(error.contains("an answer without a command"), "{error}");
        let (qmp, qemu) = client();
        tokio::spawn(serve(qemu, &[("stop", "")]));
        assert!(qmp.execute_within("stop", Duration::from_millis(50)).await.is_err());
        assert!(qmp.execute_within("cont", Duration::from_millis(50)).await.is_err(), "QEMU is still busy with stop");
    }
}
