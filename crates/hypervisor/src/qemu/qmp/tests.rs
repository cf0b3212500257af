//! Tests of [`super`].

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

/// Gives a command that long, in milliseconds.
async fn within(qmp: &Qmp, command: &'static str, ms: u64) -> Result<Value> {
    let answer = qmp.call_within(command, Value::Null, None, Duration::from_millis(ms)).await?;
    answer.map_err(|refusal| refusal.of(command))
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
    within(&qmp, "stop", 400).await.unwrap_err().to_string()
}

#[tokio::test(flavor = "current_thread")]
async fn misbehaviour_is_named() {
    for (bytes, part) in [
        (&b"\x00\xff\x00garbage\n"[..], "something that is no message of QMP's"),
        (&[b'x'; 2 * LINE_LIMIT][..], "a message of more than 131072 bytes"),
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
    let error = within(&qmp, "stop", 50).await.unwrap_err();
    assert!(matches!(error, Error::Silent { command: "stop", .. }));
    qemu.write_all(b"{\"return\": \"late\", \"id\": 2}\n{\"return\": \"mine\", \"id\": 3}\n").await.unwrap();
    // The second answer came before its command could have been given.
    let error = qmp.execute("cont").await.unwrap_err().to_string();
    assert!(error.contains("an answer without a command"), "{error}");
    let (qmp, qemu) = client();
    tokio::spawn(serve(qemu, &[("stop", "")]));
    assert!(within(&qmp, "stop", 50).await.is_err());
    assert!(within(&qmp, "cont", 50).await.is_err(), "QEMU is still busy with stop");
}

#[tokio::test(flavor = "current_thread")]
async fn descriptors_go_with_their_command_and_ends_of_devices_are_seen() {
    use std::io::{IoSliceMut, Read};

    use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

    let (qmp, mut qemu) = client();
    qemu.write_all(GREETING).await.unwrap();
    // The two commands of the start.
    let mut start = Vec::new();
    while start.iter().filter(|&&byte| byte == b'\n').count() < 2 {
        qemu.read_buf(&mut start).await.unwrap();
    }
    let mut file = tempfile::tempfile().unwrap();
    std::io::Write::write_all(&mut file, b"it is this one").unwrap();
    qmp.expect_end_of("d");
    let caller = tokio::spawn({
        let qmp = qmp.clone();
        async move { qmp.pass("add-fd", json!({ "fdset-id": 7 }), file.into()).await }
    });
    let mut bytes = [0; 200];
    let (count, mut passed) = qemu
        .async_io(Interest::READABLE, || {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
            let mut ancillary = RecvAncillaryBuffer::new(&mut space);
            let received = recvmsg(&qemu, &mut [IoSliceMut::new(&mut bytes)], &mut ancillary, RecvFlags::empty())?;
            let mut fds = Vec::new();
            for message in ancillary.drain() {
                if let RecvAncillaryMessage::ScmRights(rights) = message {
                    fds.extend(rights);
                }
            }
            Ok((received.bytes, fds))
        })
        .await
        .unwrap();
    let message: Value = serde_json::from_slice(&bytes[..count]).unwrap();
    assert_eq!(message, json!({ "execute": "add-fd", "arguments": { "fdset-id": 7 }, "id": 2 }));
    let mut text = String::new();
    let mut file = std::fs::File::from(passed.remove(0));
    std::io::Seek::rewind(&mut file).unwrap();
    file.read_to_string(&mut text).unwrap();
    assert_eq!((text.as_str(), passed.len()), ("it is this one", 0));

    let event = |device: &str| format!("{{\"event\": \"DEVICE_DELETED\", \"data\": {{{device}\"path\": \"/x\"}}}}\n");
    let others = event("") + &event("\"device\": \"e\", ");
    qemu.write_all(format!("{others}{{\"return\": {{}}, \"id\": 2}}\n").as_bytes()).await.unwrap();
    caller.await.unwrap().unwrap();
    assert!(!qmp.is_gone_within(Duration::from_millis(20)).await);
    let (gone, _) = tokio::join!(qmp.is_gone_within(Duration::from_secs(5)), async {
        qemu.write_all(event("\"device\": \"d\", ").as_bytes()).await.unwrap();
    });
    assert!(gone && qmp.is_gone_within(Duration::ZERO).await);
    qmp.expect_end_of("d");
    assert!(!qmp.is_gone_within(Duration::from_millis(20)).await, "it may come again");
}
