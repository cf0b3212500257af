//! A sandbox's daemon without a sandbox: it answers over the daemon's socket, and each exec'd process is a thread here.

use std::{
    fs,
    io::{IoSliceMut, Read, Write},
    mem::MaybeUninit,
    os::{
        fd::OwnedFd,
        unix::net::{UnixListener, UnixStream},
    },
    path::PathBuf,
    process::{Command, Stdio},
    sync::{Arc, Mutex, mpsc},
    thread,
    time::Duration,
};

use agent_api::{ExitStatus, ProcessInfo, frame};
use oci_spec::runtime::Process;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use sandbox::{
    api::{Reply, Request},
    store::{ContainerState, ProcessRef, Status},
};
use tempfile::TempDir;

pub const PATIENCE: Duration = Duration::from_secs(20);

/// The daemon's side of one exec'd process.
pub struct Played {
    pub process: Process,
    pub stdin: Option<UnixStream>,
    pub stdout: Option<UnixStream>,
    pub stderr: Option<UnixStream>,
    /// Signals and sizes sent to it.
    pub told: mpsc::Receiver<Told>,
}

#[derive(Debug, PartialEq, Eq)]
pub enum Told {
    Signal(i32),
    Resize(u16, u16),
}

/// How a process behaves: `None` means that the daemon dies.
type Play = dyn Fn(Played) -> Option<ExitStatus> + Send + Sync;

type Telling = Arc<Mutex<Option<mpsc::Sender<Told>>>>;
type Ending = Arc<(Mutex<Option<Option<ExitStatus>>>, std::sync::Condvar)>;

pub struct StandIn {
    dir: TempDir,
    /// Everything asked but `Exec`, in Rust's debugging notation.
    asked: Arc<Mutex<Vec<String>>>,
}

pub const ID: &str = "c1";

impl StandIn {
    /// A container in `status` whose exec'd processes do as `play` says.
    pub fn new(status: Status, play: impl Fn(Played) -> Option<ExitStatus> + Send + Sync + 'static) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let bundle = dir.path().join("bundle");
        fs::create_dir_all(bundle.join("rootfs")).unwrap();
        let state_dir = dir.path().join("state").join(ID);
        fs::create_dir_all(&state_dir).unwrap();
        let made = Command::new(env!("CARGO_BIN_EXE_kata-runtime")).args(["spec", "-b"]).arg(&bundle).status();
        assert!(made.unwrap().success());
        let state = ContainerState {
            status,
            pid: std::process::id(),
            created: "2026-11-24T01:02:41.870406963Z".into(),
            creator: None,
            daemon: ProcessRef::of(std::process::id()),
            ..ContainerState::new(ID, bundle)
        };
        fs::write(state_dir.join("state.json"), serde_json::to_vec(&state).unwrap()).unwrap();
        let listener = UnixListener::bind(state_dir.join("sock")).unwrap();
        let asked = Arc::default();
        let stand_in = Self { dir, asked: Arc::clone(&asked) };
        let (play, telling, ending): (Arc<Play>, Telling, Ending) = (Arc::new(play), Arc::default(), Arc::default());
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (play, telling, ending, asked) = (play.clone(), telling.clone(), ending.clone(), asked.clone());
                thread::spawn(move || answer(stream.unwrap(), &*play, &telling, &ending, &asked));
            }
        });
        stand_in
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }

    /// kata-runtime with nothing but its root given.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kata-runtime"));
        command.arg("--root").arg(self.path("state")).args(arguments).stdin(Stdio::null());
        command
    }

    /// Its exit code, standard output and standard error.
    pub fn run(&self, arguments: &[&str]) -> (Option<i32>, String, String) {
        let output = self.command(arguments).output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (output.status.code(), text(output.stdout), text(output.stderr))
    }
}

fn receive(stream: &mut UnixStream) -> Option<(Request, Vec<OwnedFd>)> {
    let mut header = [0; 4];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let got = recvmsg(&*stream, &mut [IoSliceMut::new(&mut header)], &mut control, RecvFlags::CMSG_CLOEXEC).ok()?;
    let descriptors = control
        .drain()
        .flat_map(|message| match message {
            RecvAncillaryMessage::ScmRights(descriptors) => descriptors.collect(),
            _ => Vec::new(),
        })
        .collect();
    let request = frame::read_blocking(&mut (&header[..got.bytes]).chain(stream), frame::MAX_REQUEST).ok()?;
    Some((request, descriptors))
}

fn answer(mut stream: UnixStream, play: &Play, telling: &Telling, ending: &Ending, asked: &Mutex<Vec<String>>) {
    let Some((request, descriptors)) = receive(&mut stream) else { return };
    let mut say = |reply: &Reply| {
        let bytes = frame::encode(reply).unwrap();
        let _caller_may_be_gone = stream.write_all(&bytes);
    };
    let tell = |told| {
        if let Some(telling) = &*telling.lock().unwrap() {
            let _ended = telling.send(told);
        }
    };
    if !matches!(request, Request::Exec { .. }) {
        asked.lock().unwrap().push(format!("{request:?}"));
    }
    match request {
        Request::Exec { process, stdio, .. } => {
            assert_eq!(descriptors.len(), stdio.count());
            let mut sockets = descriptors.into_iter().map(UnixStream::from);
            let mut socket = |wanted: bool| if wanted { sockets.next() } else { None };
            let (stdin, stdout, stderr) = (socket(stdio.stdin), socket(stdio.stdout), socket(stdio.stderr));
            let (teller, told) = mpsc::channel();
            *telling.lock().unwrap() = Some(teller);
            say(&Reply::Created { pid: 71 });
            let end = play(Played { process: *process, stdin, stdout, stderr, told });
            *ending.0.lock().unwrap() = Some(end);
            ending.1.notify_all();
            if let Some(status) = end {
                say(&Reply::Exited(status));
            }
        }
        Request::Supervise { .. } => {
            say(&Reply::Done);
            let ended = ending.1.wait_while(ending.0.lock().unwrap(), |ended| ended.is_none()).unwrap();
            if let Some(status) = ended.flatten() {
                say(&Reply::Exited(status));
            }
        }
        Request::Signal { signal, .. } => {
            tell(Told::Signal(signal));
            say(&Reply::Done);
        }
        Request::Resize { size, .. } => {
            tell(Told::Resize(size.rows, size.cols));
            say(&Reply::Done);
        }
        Request::Processes => say(&Reply::Processes(vec![ProcessInfo {
            pid: 71,
            ppid: 1,
            uid: 0,
            cpu_ms: 0,
            start_s: 0,
            tty: "?".into(),
            state: "S".into(),
            command: "sleep 1000".into(),
        }])),
        _ => say(&Reply::Done),
    }
}
