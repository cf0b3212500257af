//! What is said to systemd, by a peer that plays it: over a socket pair, and over a real bus.

use std::{
    io::{BufRead, BufReader, Read, Write},
    os::unix::net::UnixStream,
    path::Path,
    process::{Child, Command, Stdio},
    thread,
};

use super::{
    wire::{FIXED, Kind, Message},
    *,
};

const PATIENCE: Duration = Duration::from_secs(20);
const JOB: &str = "/org/freedesktop/systemd1/job/7";

/// Somebody who speaks D-Bus.
struct Peer {
    socket: BufReader<UnixStream>,
    serial: u32,
    /// To whom it speaks, on a bus.
    destination: String,
}

impl Peer {
    /// Lets a client in, which must have said all of its authentication by then.
    fn admit(mut socket: UnixStream) -> Self {
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let uid = rustix::process::geteuid().as_raw().to_string();
        let hex: String = uid.bytes().map(|byte| format!("{byte:x}")).collect();
        let expected = format!("\0AUTH EXTERNAL {hex}\r\nBEGIN\r\n");
        let mut said = vec![0; expected.len()];
        socket.read_exact(&mut said).unwrap();
        assert_eq!(String::from_utf8_lossy(&said), expected);
        let mut peer = Self { socket: BufReader::new(socket), serial: 0, destination: String::new() };
        peer.write(b"OK 0123456789abcdef\r\n");
        peer
    }

    fn write(&mut self, bytes: &[u8]) {
        // Whoever had enough has gone.
        let _ = self.socket.get_mut().write_all(bytes);
    }

    /// The next call; nothing when the client has gone.
    fn call(&mut self) -> Option<Message> {
        loop {
            let mut fixed = [0; FIXED];
            self.socket.read_exact(&mut fixed).ok()?;
            let mut bytes = fixed.to_vec();
            bytes.resize(FIXED + Message::rest(&fixed).unwrap(), 0);
            self.socket.read_exact(&mut bytes[FIXED..]).unwrap();
            let message = Message::decode(&bytes).unwrap();
            if message.kind == Kind::Call {
                return Some(message);
            }
        }
    }

    fn send(&mut self, mut message: Message, signature: &str, fill: impl FnOnce(&mut wire::Writer)) {
        let mut body = wire::Writer::default();
        fill(&mut body);
        self.serial += 1;
        message.serial = self.serial;
        message.signature = signature.into();
        message.body = body.into_bytes();
        if message.kind != Kind::Signal {
            message.destination.clone_from(&self.destination);
        }
        self.write(&message.encode());
    }

    fn answer(&mut self, call: &Message, signature: &str, fill: impl FnOnce(&mut wire::Writer)) {
        let kind = Kind::Return;
        self.send(Message { kind, reply_to: call.serial, ..Message::default() }, signature, fill);
    }

    fn refuse(&mut self, call: &Message, name: &str, text: &str) {
        let message = Message { kind: Kind::Error, reply_to: call.serial, error: name.into(), ..Message::default() };
        self.send(message, "s", |body| {
            body.text(text);
        });
    }

    fn job_removed(&mut self, job: &str, result: &str) {
        let signal = Message {
            kind: Kind::Signal,
            path: "/org/freedesktop/systemd1".into(),
            interface: "org.freedesktop.systemd1.Manager".into(),
            member: "JobRemoved".into(),
            ..Message::default()
        };
        self.send(signal, "uoss", |body| {
            body.u32(7).text(job).text("a-b.scope").text(result);
        });
    }
}

/// A systemd with one unit at most.
#[derive(Default)]
struct Played {
    /// The description of the unit that there is.
    unit: Option<String>,
    /// How its jobs end.
    result: &'static str,
    heard: Vec<String>,
    properties: Vec<u8>,
}

impl Played {
    fn of(unit: Option<&str>) -> Self {
        Self { unit: unit.map(Into::into), result: "done", ..Self::default() }
    }

    /// Answers until the client has gone.
    fn serve(mut self, mut peer: Peer) -> Self {
        while let Some(call) = peer.call() {
            self.heard.push(call.member.clone());
            let missing = "Unit a-b.scope not loaded.";
            match call.member.as_str() {
                "StartTransientUnit" if self.unit.is_some() => {
                    peer.refuse(&call, UNIT_EXISTS, "Unit a-b.scope was already loaded or has a fragment file.");
                }
                "StartTransientUnit" => {
                    let mut values = call.reader();
                    assert_eq!((values.text(), values.text()), (Some("a-b.scope"), Some("replace")));
                    self.properties.clone_from(&call.body);
                    // Also of others: whoever is on the socket hears of all.
                    peer.job_removed("/org/freedesktop/systemd1/job/6", "failed");
                    peer.answer(&call, "o", |body| {
                        body.text(JOB);
                    });
                    peer.job_removed(JOB, self.result);
                }
                "StopUnit" if self.unit.take().is_some() => {
                    // Whoever is quick.
                    peer.job_removed(JOB, self.result);
                    peer.answer(&call, "o", |body| {
                        body.text(JOB);
                    });
                }
                "GetUnit" if self.unit.is_some() => peer.answer(&call, "o", |body| {
                    body.text("/unit");
                }),
                "Get" => {
                    assert_eq!(call.path, "/unit");
                    let description = self.unit.clone().unwrap();
                    peer.answer(&call, "v", |body| body.variant(&Value::Text(description)));
                }
                "Subscribe" => peer.answer(&call, "", |_| {}),
                "AttachProcessesToUnit" => {
                    let mut values = call.reader();
                    assert_eq!((values.text(), values.text()), (Some("a-b.scope"), Some("")));
                    assert_eq!((values.u32(), values.u32()), (Some(4), Some(SELF)));
                    peer.answer(&call, "", |_| {});
                }
                _ => peer.refuse(&call, NO_SUCH_UNIT, missing),
            }
        }
        self
    }
}

fn scope() -> Scope {
    let annotations = [("org.systemd.property.KillSignal".to_owned(), "3".to_owned())];
    let path = Path::new("x-y.slice:a:b");
    let annotations = annotations.iter().map(|(name, text)| (name, text));
    Scope::of(Manager::System, "c", Path::new("/run/k/c"), Some(path), annotations).unwrap()
}

/// Does something with a systemd that is played, and gives what came of it and what that has seen.
fn with<T>(played: Played, act: impl FnOnce(&mut Bus) -> T) -> (T, Played) {
    with_peer(|socket| played.serve(Peer::admit(socket)), PATIENCE, |bus| act(&mut bus.unwrap()))
}

fn with_peer<T, P: Send>(
    peer: impl FnOnce(UnixStream) -> P + Send,
    patience: Duration,
    act: impl FnOnce(std::result::Result<Bus, Failure>) -> T,
) -> (T, P) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    thread::scope(|threads| {
        let peer = threads.spawn(move || peer(theirs));
        let result = act(Bus::over(ours, false, Instant::now() + patience));
        (result, peer.join().unwrap())
    })
}

#[test]
fn the_first_process_makes_the_scope() {
    let (entered, seen) = with(Played::of(None), |bus| scope().enter_by(bus));
    entered.unwrap();
    assert_eq!(seen.heard, ["StartTransientUnit"]);
    let text = String::from_utf8_lossy(&seen.properties).into_owned();
    for name in [
        "Description",
        "Kata container c (/run/k/c)",
        "Slice",
        "x-y.slice",
        "PIDs",
        "Delegate",
        "DefaultDependencies",
        "MemoryAccounting",
        "CollectMode",
        "KillSignal",
    ] {
        assert!(text.contains(name), "{name}: {text}");
    }
}

#[test]
fn those_after_it_are_taken_in() {
    let (entered, seen) = with(Played::of(Some("Kata container c (/run/k/c)")), |bus| scope().enter_by(bus));
    entered.unwrap();
    assert_eq!(seen.heard, ["StartTransientUnit", "GetUnit", "Get", "AttachProcessesToUnit"]);
}

#[test]
fn a_scope_of_somebody_else_is_neither_entered_nor_removed() {
    let (entered, seen) = with(Played::of(Some("sshd")), |bus| scope().enter_by(bus));
    let error = scope().failed("ask systemd for", &entered.unwrap_err()).to_string();
    assert!(error.starts_with("ask systemd for the scope a-b.scope in x-y.slice: it exists already"), "{error}");
    assert!(error.contains("\"sshd\"") && error.contains("systemctl stop a-b.scope"), "{error}");
    assert_eq!(seen.unit.as_deref(), Some("sshd"));
    let (removed, seen) = with(Played::of(Some("sshd")), |bus| scope().remove_by(bus));
    removed.unwrap();
    assert_eq!(seen.heard, ["GetUnit", "Get"]);
}

#[test]
fn a_scope_is_stopped_and_forgotten() {
    let own = Some("Kata container c (/run/k/c)");
    let (removed, seen) = with(Played::of(own), |bus| scope().remove_by(bus));
    removed.unwrap();
    assert_eq!(seen.heard, ["GetUnit", "Get", "StopUnit", "ResetFailedUnit"]);
    assert_eq!(seen.unit, None);
    let (removed, seen) = with(Played::of(None), |bus| scope().remove_by(bus));
    removed.unwrap();
    assert_eq!(seen.heard, ["GetUnit"], "there is none");
}

#[test]
fn a_job_that_fails_is_an_error() {
    let failing = Played { result: "failed", ..Played::of(None) };
    let (entered, _) = with(failing, |bus| scope().enter_by(bus));
    let error = scope().failed("ask systemd for", &entered.unwrap_err()).to_string();
    assert!(error.contains("its job ended with \"failed\"") && error.contains("cgroupfs"), "{error}");
}

#[test]
fn who_does_not_answer_is_waited_for_until_the_deadline() {
    let short = Duration::from_millis(100);
    let (silent, socket) = with_peer(|socket| socket, short, |bus| bus.map(drop));
    drop(socket);
    assert!(matches!(silent, Err(Failure::Late)), "{silent:?}");
    let error = scope().failed("ask systemd for", &Failure::Late).to_string();
    assert!(error.contains("within 30 s") && error.contains("systemctl list-jobs"), "{error}");
    // A job that is never over.
    let accept = |socket| {
        let mut peer = Peer::admit(socket);
        let Some(call) = peer.call() else { return };
        peer.answer(&call, "o", |body| {
            body.text(JOB);
        });
        peer.call();
    };
    let (entered, ()) = with_peer(accept, PATIENCE, |bus| {
        let mut bus = bus.unwrap();
        bus.hurry(short);
        scope().enter_by(&mut bus)
    });
    assert!(matches!(entered, Err(Failure::Late)), "{entered:?}");
}

#[test]
fn what_is_no_conversation_is_an_error() {
    let says = |words: &'static [u8]| {
        move |mut socket: UnixStream| {
            let mut begun = [0; 8];
            socket.read_exact(&mut begun).unwrap();
            socket.write_all(words).unwrap();
        }
    };
    let (result, ()) = with_peer(says(b"HTTP/1.1 400 Bad Request\r\n"), PATIENCE, |bus| bus.map(drop));
    assert!(matches!(result, Err(Failure::Nonsense(_))), "{result:?}");
    let (result, ()) = with_peer(says(&[b'x'; 2000]), PATIENCE, |bus| bus.map(drop));
    assert!(matches!(result, Err(Failure::Nonsense(_))), "{result:?}");
    let (result, ()) = with_peer(says(b""), PATIENCE, |bus| bus.map(drop));
    assert!(matches!(result, Err(Failure::Io(_))), "{result:?}");
}

#[test]
fn what_is_written_down_is_read_again() {
    let text = serde_json::to_string(&scope()).unwrap();
    assert_eq!(serde_json::from_str::<Scope>(&text).unwrap(), scope());
    let of_user = Manager::User("/run/user/7".into());
    assert_eq!(serde_json::from_str::<Manager>(&serde_json::to_string(&of_user).unwrap()).unwrap(), of_user);
}

#[test]
fn a_user_whose_systemd_does_not_listen_is_told_where_it_was_looked_for() {
    let top = tempfile::tempdir().unwrap();
    let manager = Manager::User(top.path().into());
    let scope = Scope { manager, ..scope() };
    let error = scope.enter().unwrap_err().to_string();
    assert!(error.contains(&format!("{}/systemd/private", top.path().display())), "{error}");
    assert!(error.contains("enable-linger") && error.contains("a-b.scope in x-y.slice"), "{error}");
    // Where no systemd is, no scope is.
    scope.remove().unwrap();
    assert!(!scope.exists());
}

/// A bus of this test alone.
struct RealBus {
    daemon: Child,
    directory: tempfile::TempDir,
}

impl RealBus {
    /// Nothing where there is no `dbus-daemon`.
    fn start() -> Option<Self> {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("bus");
        let config = format!(
            "<busconfig><listen>unix:path={}</listen><policy context=\"default\"><allow send_destination=\"*\" eavesdrop=\"true\"/>\
             <allow eavesdrop=\"true\"/><allow own=\"*\"/></policy></busconfig>",
            socket.display()
        );
        let file = directory.path().join("config");
        std::fs::write(&file, config).unwrap();
        let mut command = Command::new("dbus-daemon");
        command.arg("--config-file").arg(&file).args(["--nofork", "--print-address=1", "--nopidfile"]);
        let mut daemon = match command.stdout(Stdio::piped()).spawn() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                println!("skipped: there is no dbus-daemon here");
                return None;
            }
            spawned => spawned.unwrap(),
        };
        // It listens before it says where.
        let mut address = String::new();
        BufReader::new(daemon.stdout.take().unwrap()).read_line(&mut address).unwrap();
        Some(Self { daemon, directory })
    }
}

impl Drop for RealBus {
    fn drop(&mut self) {
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
    }
}

#[test]
fn over_a_real_bus_it_is_the_same() {
    let Some(bus) = RealBus::start() else { return };
    // As the bus begins to count, the client is the second.
    let (taken, destination) = (std::sync::mpsc::channel(), ":1.1".to_owned());
    let socket = UnixStream::connect(bus.directory.path().join("bus")).unwrap();
    thread::scope(|threads| {
        let (ready, begun) = taken;
        let serve = move || {
            let mut own = Bus::over(socket.try_clone().unwrap(), false, Instant::now() + PATIENCE).unwrap();
            own.take_name();
            ready.send(()).unwrap();
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
            Played::of(None).serve(Peer { socket: BufReader::new(socket), serial: 100, destination })
        };
        let server = threads.spawn(serve);
        begun.recv_timeout(PATIENCE).unwrap();
        let scope = Scope { manager: Manager::User(bus.directory.path().into()), ..scope() };
        scope.enter().unwrap();
        drop(bus);
        let seen = server.join().unwrap();
        assert_eq!(seen.heard, ["Subscribe", "StartTransientUnit"]);
        assert!(!seen.properties.is_empty());
    });
}
