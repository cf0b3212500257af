use std::{io::Read, os::unix::fs::PermissionsExt, process::Command};

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;

/// Long enough for a busy machine.
const SOON: Duration = Duration::from_secs(20);

fn fifo(directory: &Path, name: &str) -> String {
    let path = directory.join(name);
    assert!(Command::new("mkfifo").arg(&path).status().unwrap().success());
    path.display().to_string()
}

fn read_end(path: &str) -> File {
    open_at_once(File::options().read(true), Path::new(path)).unwrap()
}

async fn opened(names: &Names) -> (Io, Streams) {
    open(names, "id", "namespace").await.unwrap()
}

#[test]
fn names_are_told_apart() {
    assert_eq!(Name::of("").unwrap(), Name::Nothing);
    assert_eq!(Name::of("/a/b").unwrap(), Name::Path("/a/b".into()));
    assert_eq!(Name::of("fifo:///a").unwrap(), Name::Path("/a".into()));
    assert_eq!(Name::of("file:///a%20b").unwrap(), Name::File("/a b".into()));
    let logger = Name::Logger { program: "/l".into(), arguments: ["a", "b c", "flag", ""].map(String::from).into() };
    assert_eq!(Name::of("binary:///l?a=b+c&flag").unwrap(), logger);
    let refused = Name::of("ttrpc+unix:///a?streaming_id=x").unwrap_err().to_string();
    assert!(refused.contains("ttrpc+unix"), "{refused}");
    assert!(Name::of("file://a").is_err());
}

#[tokio::test]
async fn an_output_waits_for_its_reader_and_outlives_it() {
    let directory = tempfile::tempdir().unwrap();
    let stdout = fifo(directory.path(), "stdout");
    let (mut io, streams) = opened(&Names { stdout: stdout.clone(), ..Names::default() }).await;
    let mut sink = io.stdout.take().unwrap();
    sink.write_all(b"before ").await.unwrap();
    let mut reader = read_end(&stdout);
    let mut bytes = [0; 64];
    let read = reader.read(&mut bytes).unwrap();
    assert_eq!(&bytes[..read], b"before ");
    drop(reader);
    // Nobody reads now, and the writer neither fails nor loses anything.
    sink.write_all(b"between ").await.unwrap();
    assert!(!streams.drained(Duration::from_millis(20), SOON).await);
    let mut reader = read_end(&stdout);
    sink.write_all(b"after").await.unwrap();
    sink.shutdown().await.unwrap();
    drop(sink);
    assert!(streams.drained(Duration::from_millis(20), SOON).await);
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    assert_eq!(text, "between after");
}

/// Ends an output as the relay does, and gives its end back.
fn end(mut sink: Sink) -> tokio::task::JoinHandle<()> {
    tokio::task::spawn_local(async move { sink.shutdown().await.unwrap() })
}

#[tokio::test(flavor = "local")]
async fn what_a_process_wrote_before_its_client_came_is_kept() {
    let directory = tempfile::tempdir().unwrap();
    let stdout = fifo(directory.path(), "stdout");
    let (io, streams) = opened(&Names { stdout: stdout.clone(), ..Names::default() }).await;
    let mut sink = io.stdout.unwrap();
    sink.write_all(b"all of it").await.unwrap();
    let ended = end(sink);
    assert!(!streams.drained(Duration::from_millis(20), SOON).await);
    let mut text = String::new();
    let mut reader = read_end(&stdout);
    tokio::time::timeout(SOON, ended).await.unwrap().unwrap();
    reader.read_to_string(&mut text).unwrap();
    assert_eq!(text, "all of it");
    assert!(streams.drained(Duration::from_millis(20), SOON).await);
}

#[tokio::test]
async fn an_output_that_nobody_will_read_is_not_waited_for() {
    let directory = tempfile::tempdir().unwrap();
    let stdout = fifo(directory.path(), "stdout");
    let open = || async { opened(&Names { stdout: stdout.clone(), ..Names::default() }).await.0.stdout.unwrap() };
    let at_once = Duration::ZERO;
    let mut sink = open().await;
    tokio::time::timeout(at_once, sink.shutdown()).await.expect("nothing was written").unwrap();
    let mut sink = open().await;
    sink.write_all(b"begun and never finished").await.unwrap();
    read_end(&stdout).read_exact(&mut [0; 5]).unwrap();
    tokio::time::timeout(at_once, sink.shutdown()).await.expect("its reader is gone").unwrap();
    drop(sink);
    let mut sink = open().await;
    sink.write_all(b"x").await.unwrap();
    tokio::time::timeout(SOON, sink.shutdown()).await.expect("nobody comes").unwrap();
}

#[tokio::test]
async fn the_input_ends_after_close_io_and_not_with_a_client() {
    let directory = tempfile::tempdir().unwrap();
    let stdin = fifo(directory.path(), "stdin");
    let (mut io, streams) = opened(&Names { stdin: stdin.clone(), ..Names::default() }).await;
    let mut source = io.stdin.take().unwrap();
    let mut bytes = [0; 64];
    for client in ["first", "second"] {
        std::fs::write(&stdin, client).unwrap();
        let read = tokio::time::timeout(SOON, source.read(&mut bytes)).await.unwrap().unwrap();
        assert_eq!(&bytes[..read], client.as_bytes());
    }
    let quiet = tokio::time::timeout(Duration::from_millis(50), source.read(&mut bytes)).await;
    assert!(quiet.is_err(), "the input ended although nobody closed it");
    let last = File::options().write(true).open(&stdin).unwrap();
    streams.close_input();
    let quiet = tokio::time::timeout(Duration::from_millis(50), source.read(&mut bytes)).await;
    assert!(quiet.is_err(), "the input ended although a client still had it open");
    drop(last);
    assert_eq!(tokio::time::timeout(SOON, source.read(&mut bytes)).await.unwrap().unwrap(), 0);
}

#[tokio::test]
async fn a_terminal_has_no_standard_error() {
    let directory = tempfile::tempdir().unwrap();
    let names = Names {
        stdout: fifo(directory.path(), "out"),
        stderr: fifo(directory.path(), "err"),
        terminal: true,
        ..Names::default()
    };
    let (io, _streams) = opened(&names).await;
    assert!(io.stdout.is_some() && io.stderr.is_none());
}

#[tokio::test]
async fn both_outputs_are_appended_to_one_file() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("logs/all");
    let name = format!("file://{}", path.display());
    for _ in 0..2 {
        let (io, streams) = opened(&Names { stdout: name.clone(), stderr: name.clone(), ..Names::default() }).await;
        io.stdout.unwrap().write_all(b"out\n").await.unwrap();
        io.stderr.unwrap().write_all(b"err\n").await.unwrap();
        assert!(streams.drained(SOON, SOON).await);
    }
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "out\nerr\nout\nerr\n");
}

fn script(directory: &Path, text: &str) -> String {
    let path = directory.join("logger");
    std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o700)).unwrap();
    format!("binary://{}?to={}", path.display(), directory.join("log").display())
}

#[tokio::test]
async fn a_logger_gets_both_outputs_and_knows_whose_they_are() {
    let directory = tempfile::tempdir().unwrap();
    let text =
        "echo \"$1 $CONTAINER_ID $CONTAINER_NAMESPACE ${HOME-none}\" > $2\nexec 5>&-\ncat <&3 >> $2\ncat <&4 >> $2";
    let (io, streams) = opened(&Names { stdout: script(directory.path(), text), ..Names::default() }).await;
    let (mut stdout, mut stderr) = (io.stdout.unwrap(), io.stderr.unwrap());
    stdout.write_all(b"out\n").await.unwrap();
    stderr.write_all(b"err\n").await.unwrap();
    drop((stdout, stderr));
    assert!(streams.drained(SOON, SOON).await);
    let log = directory.path().join("log");
    let expected = "to id namespace none\nout\nerr\n";
    tokio::time::timeout(SOON, async {
        while std::fs::read_to_string(&log).unwrap_or_default() != expected {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await
    .unwrap_or_else(|_| panic!("the log is {:?}", std::fs::read_to_string(&log)));
    streams.release().await;
}

#[tokio::test]
async fn a_logger_that_dies_does_not_stop_the_output() {
    let directory = tempfile::tempdir().unwrap();
    let (io, streams) = opened(&Names { stdout: script(directory.path(), "exit 0"), ..Names::default() }).await;
    let mut stdout = io.stdout.unwrap();
    for _ in 0..64 {
        tokio::time::timeout(SOON, stdout.write_all(&[b'x'; 4096])).await.unwrap().unwrap();
    }
    drop((stdout, io.stderr));
    assert!(streams.drained(SOON, SOON).await);
    streams.release().await;
}

#[tokio::test]
async fn a_logger_that_is_not_there_is_named() {
    let names = Names { stdout: "binary:///nonexistent/logger".into(), ..Names::default() };
    let Err(error) = open(&names, "id", "namespace").await else { panic!("it was started") };
    assert!(error.to_string().contains("/nonexistent/logger"), "{error}");
}
