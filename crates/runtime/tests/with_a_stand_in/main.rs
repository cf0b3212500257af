//! The command line and kata-shim against a stand-in for the sandbox's daemon: stdio, signals, terminals and exit codes,
//! with no virtual machine.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests too")]

mod stand_in;

use std::{
    fs::{self, File},
    io::{IoSliceMut, Read, Write},
    mem::MaybeUninit,
    os::{
        fd::OwnedFd,
        unix::{net::UnixListener, process::ExitStatusExt},
    },
    process::Stdio,
    thread,
    time::{Duration, Instant},
};

use agent_api::ExitStatus;
use rustix::{
    net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg},
    process::{Pid, Signal, WaitOptions, kill_process, set_child_subreaper, waitpid},
    pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt},
    termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize},
};
use sandbox::store::Status;
use stand_in::{ID, PATIENCE, Played, StandIn, Told};

/// Waits for something that nobody announces.
fn until<T>(mut look: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(begun.elapsed() < PATIENCE, "nothing came");
        thread::sleep(Duration::from_millis(5));
    }
}

fn exits(status: ExitStatus) -> impl Fn(Played) -> Option<ExitStatus> + Send + Sync {
    move |_| Some(status)
}

#[test]
fn stdio_is_carried_both_ways_and_the_exit_code_is_the_processs() {
    let container = StandIn::new(Status::Running, |mut process| {
        let mut input = Vec::new();
        process.stdin.take().unwrap().read_to_end(&mut input).unwrap();
        process.stderr.take().unwrap().write_all(b"to stderr").unwrap();
        process.stdout.take().unwrap().write_all(&input).unwrap();
        Some(ExitStatus::Code(7))
    });
    let mut child = container
        .command(&["exec", ID, "cat"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let sent: Vec<u8> = (0..5_000_000u32).map(|i| (i % 253) as u8).collect();
    let mut stdin = child.stdin.take().unwrap();
    let feeder = thread::spawn({
        let sent = sent.clone();
        move || stdin.write_all(&sent).unwrap()
    });
    let output = child.wait_with_output().unwrap();
    feeder.join().unwrap();
    assert_eq!(output.status.code(), Some(7));
    assert!(output.stdout == sent, "{} of {} bytes came back", output.stdout.len(), sent.len());
    assert_eq!(output.stderr, b"to stderr");
}

#[test]
fn a_process_that_a_signal_ended_gives_128_and_the_signal() {
    let container = StandIn::new(Status::Running, exits(ExitStatus::Signal(9)));
    assert_eq!(container.run(&["exec", ID, "x"]).0, Some(137));
}

#[test]
fn streams_that_lead_nowhere_are_not_carried() {
    let container = StandIn::new(Status::Running, |process| {
        assert!(process.stdin.is_none() && process.stderr.is_none());
        Some(ExitStatus::Code(u8::from(process.stdout.is_none())))
    });
    let output = container.command(&["exec", ID, "x"]).stdout(Stdio::piped()).stderr(Stdio::null()).output().unwrap();
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn output_that_a_child_holds_open_does_not_hold_the_command() {
    let container = StandIn::new(Status::Running, |mut process| {
        let mut stdout = process.stdout.take().unwrap();
        stdout.write_all(b"last words").unwrap();
        std::mem::forget(stdout);
        Some(ExitStatus::Code(0))
    });
    let begun = Instant::now();
    assert_eq!(container.run(&["exec", ID, "x"]).1, "last words");
    assert!(begun.elapsed() < PATIENCE);
}

#[test]
fn signals_are_forwarded() {
    let container = StandIn::new(Status::Running, |mut process| {
        process.stdout.take().unwrap().write_all(b"r").unwrap();
        assert_eq!(process.told.recv_timeout(PATIENCE).unwrap(), Told::Signal(10));
        assert_eq!(process.told.recv_timeout(PATIENCE).unwrap(), Told::Signal(15));
        Some(ExitStatus::Signal(15))
    });
    let mut child = container.command(&["exec", ID, "x"]).stdout(Stdio::piped()).spawn().unwrap();
    child.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
    let pid = Pid::from_child(&child);
    kill_process(pid, Signal::USR1).unwrap();
    until(|| container.asked().iter().any(|asked| asked.contains("signal: 10")).then_some(()));
    kill_process(pid, Signal::TERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(143));
}

#[test]
fn a_daemon_that_dies_is_an_error_and_not_an_exit_code() {
    let container = StandIn::new(Status::Running, |_| None);
    let (code, _, message) = container.run(&["exec", ID, "x"]);
    assert!(code == Some(255) && message.contains("exec failed: ") && message.contains("sandbox daemon"), "{message}");
}

#[test]
fn the_process_is_the_containers_changed_by_the_options() {
    let container = StandIn::new(Status::Running, |mut played| {
        let text = serde_json::to_string(&played.process).unwrap();
        played.stdout.take().unwrap().write_all(text.as_bytes()).unwrap();
        Some(ExitStatus::Code(0))
    });
    let (_, text, _) = container.run(&["exec", "-u", "1:2", "--cwd", "/tmp", "-e", "A=b", "-g", "5", ID, "id", "-u"]);
    let process: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(process["args"], serde_json::json!(["id", "-u"]));
    assert_eq!(process["cwd"], "/tmp");
    assert_eq!(process["user"], serde_json::json!({"uid": 1, "gid": 2, "additionalGids": [5]}));
    assert_eq!(process["env"].as_array().unwrap().last().unwrap(), "A=b");
    assert_eq!(process["rlimits"][0]["type"], "RLIMIT_NOFILE");
    assert_eq!(process["terminal"], false);

    let file = container.path("process.json");
    fs::write(&file, r#"{"args":["own"],"cwd":"/","user":{"uid":3,"gid":4}}"#).unwrap();
    let (_, text, _) = container.run(&["exec", "--process", file.to_str().unwrap(), ID]);
    let process: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!((&process["args"][0], &process["user"]["uid"]), (&"own".into(), &3.into()));
}

#[test]
fn an_exec_that_makes_no_sense_is_refused() {
    let container = StandIn::new(Status::Running, exits(ExitStatus::Code(0)));
    let cases: [(&[&str], &str); 9] = [
        (&["exec", ID], "process args cannot be empty"),
        (&["exec", "--cwd", "rel", ID, "x"], "Cwd must be an absolute path"),
        (&["exec", "-u", "abc", ID, "x"], "parsing abc as int for uid failed"),
        (
            &["exec", "-d", "-t", ID, "x"],
            "cannot allocate tty if kata-runtime will detach without setting console socket",
        ),
        (&["exec", "--console-socket", "/s", ID, "x"], "cannot use console socket"),
        (&["exec", "--preserve-fds", "3", ID, "x"], "--preserve-fds 3"),
        (&["exec", "--apparmor", "p", ID, "x"], "--apparmor"),
        (&["exec", "--cgroup", "g", ID, "x"], "--cgroup"),
        (&["exec", "-p", "/no/such", ID], "/no/such"),
    ];
    for (arguments, words) in cases {
        let (code, _, message) = container.run(arguments);
        assert!(code == Some(255) && message.contains("exec failed: ") && message.contains(words), "{message}");
    }
    assert_eq!(container.asked(), [""; 0]);
}

/// Starts a detached process and returns the pid of its shim, whose end the caller can wait for.
fn detach(container: &StandIn, options: &[&str]) -> Pid {
    set_child_subreaper(Some(rustix::process::getpid())).unwrap();
    let file = container.path("pid");
    let mut arguments = vec!["exec", "-d", "--pid-file", file.to_str().unwrap()];
    arguments.extend(options);
    arguments.extend([ID, "x"]);
    let out = File::create(container.path("out")).unwrap();
    let status = container.command(&arguments).stdout(out).status().unwrap();
    assert_eq!(status.code(), Some(0));
    let pid: i32 = fs::read_to_string(file).unwrap().parse().unwrap();
    assert!(fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap().starts_with("kata-shim\0"));
    Pid::from_raw(pid).unwrap()
}

fn end_of(shim: Pid) -> std::process::ExitStatus {
    let (_, status) = waitpid(Some(shim), WaitOptions::empty()).unwrap().unwrap();
    std::process::ExitStatus::from_raw(status.as_raw())
}

#[test]
fn a_shim_stands_for_a_detached_process_and_ends_as_it_does() {
    for (end, code, signal) in [(ExitStatus::Code(3), Some(3), None), (ExitStatus::Signal(11), None, Some(11))] {
        let container = StandIn::new(Status::Running, move |mut process| {
            assert_eq!(process.told.recv_timeout(PATIENCE).unwrap(), Told::Signal(12));
            process.stdout.take().unwrap().write_all(b"from the process").unwrap();
            Some(end)
        });
        let shim = detach(&container, &[]);
        // What it has told its caller by is closed once that was told.
        let descriptors = || fs::read_dir(format!("/proc/{}/fd", shim.as_raw_pid())).unwrap().count();
        let end = Instant::now() + PATIENCE;
        while descriptors() > 8 {
            assert!(Instant::now() < end, "{} descriptors are open in the shim", descriptors());
            std::thread::sleep(Duration::from_millis(10));
        }
        kill_process(shim, Signal::USR2).unwrap();
        let status = end_of(shim);
        assert_eq!((status.code(), status.signal(), status.core_dumped()), (code, signal, false));
        assert_eq!(fs::read_to_string(container.path("out")).unwrap(), "from the process");
    }
}

#[test]
fn a_shim_whose_daemon_dies_ends_with_255() {
    let container = StandIn::new(Status::Running, |process| {
        assert_eq!(process.told.recv_timeout(PATIENCE).unwrap(), Told::Signal(12));
        None
    });
    let shim = detach(&container, &[]);
    kill_process(shim, Signal::USR2).unwrap();
    assert_eq!(end_of(shim).code(), Some(255));
}

#[test]
fn a_process_whose_container_is_deleted_was_killed() {
    let (deleted, deletion) = std::sync::mpsc::channel();
    let deletion = std::sync::Mutex::new(deletion);
    let container = StandIn::new(Status::Running, move |_| {
        deletion.lock().unwrap().recv_timeout(PATIENCE).unwrap();
        None
    });
    let shim = detach(&container, &[]);
    fs::remove_dir_all(container.path("state").join(ID)).unwrap();
    deleted.send(()).unwrap();
    assert_eq!(end_of(shim).signal(), Some(9));
}

#[test]
fn a_pid_file_that_cannot_be_written_kills_the_process() {
    let container = StandIn::new(Status::Running, |process| {
        assert_eq!(process.told.recv_timeout(PATIENCE).unwrap(), Told::Signal(9));
        Some(ExitStatus::Signal(9))
    });
    let pid_file = container.path("pid");
    // The name under which it is written before it is moved into place is taken by a directory.
    fs::create_dir(container.path(".pid")).unwrap();
    let (code, _, message) = container.run(&["exec", "-d", "--pid-file", pid_file.to_str().unwrap(), ID, "x"]);
    assert!(code == Some(255) && message.contains("write the pid file"), "{message}");
    until(|| container.asked().iter().any(|asked| asked.contains("signal: 9")).then_some(()));
}

fn receive_master(listener: &UnixListener) -> (OwnedFd, Vec<u8>) {
    let (stream, _) = listener.accept().unwrap();
    let mut name = [0; 64];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = recvmsg(&stream, &mut [IoSliceMut::new(&mut name)], &mut control, RecvFlags::CMSG_CLOEXEC).unwrap();
    let mut descriptors = control.drain().flat_map(|message| match message {
        RecvAncillaryMessage::ScmRights(descriptors) => descriptors.collect::<Vec<_>>(),
        _ => Vec::new(),
    });
    (descriptors.next().unwrap(), name[..received.bytes].to_vec())
}

#[test]
fn a_detached_terminal_is_handed_over_and_its_size_followed() {
    let container = StandIn::new(Status::Running, |mut process| {
        assert!(process.process.terminal().unwrap() && process.stderr.is_none());
        let size = process.told.recv_timeout(PATIENCE).unwrap();
        assert_eq!(size, Told::Resize(40, 120));
        let mut typed = [0; 6];
        process.stdin.as_mut().unwrap().read_exact(&mut typed).unwrap();
        assert_eq!(&typed, b"\x03type\r");
        process.stdout.take().unwrap().write_all(b"shown\n").unwrap();
        Some(ExitStatus::Code(0))
    });
    let socket = container.path("console");
    let listener = UnixListener::bind(&socket).unwrap();
    let shim = detach(&container, &["-t", "--console-socket", socket.to_str().unwrap()]);
    let (master, name) = receive_master(&listener);
    assert_eq!(name, b"/dev/ptmx");
    tcsetwinsize(&master, Winsize { ws_row: 40, ws_col: 120, ws_xpixel: 0, ws_ypixel: 0 }).unwrap();
    let mut master = File::from(master);
    master.write_all(b"\x03type\r").unwrap();
    let mut shown = [0; 6];
    master.read_exact(&mut shown).unwrap();
    assert_eq!(&shown, b"shown\n");
    assert_eq!(end_of(shim).code(), Some(0));
}

#[test]
fn a_detached_process_that_closes_its_output_keeps_no_reader_waiting() {
    let (end, ends) = std::sync::mpsc::channel::<()>();
    let ends = std::sync::Mutex::new(ends);
    let container = StandIn::new(Status::Running, move |mut process| {
        process.stderr.take().unwrap().write_all(b"last words").unwrap();
        drop(process.stdout.take());
        // It lives on.
        let _test_is_over = ends.lock().unwrap().recv_timeout(PATIENCE);
        Some(ExitStatus::Code(0))
    });
    let (mut reader, out) = std::io::pipe().unwrap();
    let mut command = container.command(&["exec", "--detach", ID, "x"]);
    command.stdin(Stdio::null()).stderr(out.try_clone().unwrap()).stdout(out);
    assert!(command.status().unwrap().success());
    drop(command);
    let mut said = String::new();
    let begun = Instant::now();
    reader.read_to_string(&mut said).unwrap();
    assert_eq!(said, "last words");
    assert!(begun.elapsed() < PATIENCE, "the shim kept the pipe until the process's end");
    drop(end);
}

#[test]
fn a_detached_terminal_keeps_none_of_the_callers_output() {
    let (end, ends) = std::sync::mpsc::channel::<()>();
    let ends = std::sync::Mutex::new(ends);
    let container = StandIn::new(Status::Running, move |_| {
        let _test_is_over = ends.lock().unwrap().recv_timeout(PATIENCE);
        Some(ExitStatus::Code(0))
    });
    let socket = container.path("console");
    let listener = UnixListener::bind(&socket).unwrap();
    let mut command =
        container.command(&["exec", "--detach", "-t", "--console-socket", socket.to_str().unwrap(), ID, "x"]);
    let begun = Instant::now();
    let output = command.output().unwrap();
    let _terminal = receive_master(&listener);
    assert!(output.status.success() && begun.elapsed() < PATIENCE, "the shim kept the pipe until the process's end");
    drop(end);
}

#[test]
fn a_terminal_in_the_foreground_is_raw_while_the_process_runs() {
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
    grantpt(&master).unwrap();
    unlockpt(&master).unwrap();
    let path = ptsname(&master, Vec::new()).unwrap().into_string().unwrap();
    let open = || File::options().read(true).write(true).custom_flags_noctty().open(&path).unwrap();
    let slave = open();
    tcsetwinsize(&slave, Winsize { ws_row: 24, ws_col: 80, ws_xpixel: 0, ws_ypixel: 0 }).unwrap();
    let echoes = || tcgetattr(&master).unwrap().local_modes.contains(LocalModes::ECHO);
    assert!(echoes());
    let container = StandIn::new(Status::Running, |mut process| {
        let size = process.process.console_size().unwrap();
        assert_eq!((size.height(), size.width()), (24, 80));
        let mut byte = [0];
        process.stdin.as_mut().unwrap().read_exact(&mut byte).unwrap();
        process.stdout.take().unwrap().write_all(b"\x01\n").unwrap();
        Some(ExitStatus::Code(u8::from(byte != [3])))
    });
    let mut child = container
        .command(&["exec", "-t", ID, "x"])
        .stdin(open())
        .stdout(open())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    until(|| (!echoes()).then_some(()));
    let mut typist = File::from(master.try_clone().unwrap());
    typist.write_all(b"\x03").unwrap();
    let mut shown = [0; 2];
    typist.read_exact(&mut shown).unwrap();
    assert_eq!(&shown, b"\x01\n", "the guest's terminal has already done what there is to do to a line's end");
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert!(echoes(), "the terminal was left in raw mode");
}

trait NoControllingTerminal {
    fn custom_flags_noctty(&mut self) -> &mut Self;
}

impl NoControllingTerminal for fs::OpenOptions {
    fn custom_flags_noctty(&mut self) -> &mut Self {
        std::os::unix::fs::OpenOptionsExt::custom_flags(self, libc::O_NOCTTY)
    }
}

#[test]
fn states_and_lists_are_runcs() {
    let container = StandIn::new(Status::Running, exits(ExitStatus::Code(0)));
    let (_, state, _) = container.run(&["state", ID]);
    let bundle = container.path("bundle");
    let pid = std::process::id();
    assert_eq!(
        state,
        format!(
            "{{\n  \"ociVersion\": \"1.0.2\",\n  \"id\": \"c1\",\n  \"pid\": {pid},\n  \"status\": \"running\",\n  \
             \"bundle\": \"{0}\",\n  \"rootfs\": \"{0}/rootfs\",\n  \
             \"created\": \"2026-11-24T01:02:41.870406963Z\",\n  \"owner\": \"\"\n}}",
            bundle.display()
        )
    );
    let (_, list, _) = container.run(&["list"]);
    let row: Vec<&str> = list.lines().nth(1).unwrap().split_whitespace().collect();
    assert_eq!(row[..3], [ID, &pid.to_string(), "running"]);
    assert_eq!(container.run(&["list", "-q"]).1, "c1\n");
    assert_eq!(container.run(&["ps", "-f", "json", ID]).1, format!("[{pid}]\n"));
    let (_, table, _) = container.run(&["ps", ID]);
    assert!(table.starts_with("UID        PID  PPID  C STIME TTY          TIME CMD\n"), "{table}");
    assert!(table.contains("    71     1  0 1970  ?        00:00:00 sleep 1000\n"), "{table}");
    assert!(container.run(&["list", "-f", "xx"]).2.contains("invalid format option"));
}

#[test]
fn what_a_state_does_not_allow_is_refused_in_runcs_words() {
    let refusals = |status, cases: &[(&[&str], i32, &str)]| {
        let container = StandIn::new(status, exits(ExitStatus::Code(0)));
        for (arguments, expected, words) in cases {
            let (code, _, message) = container.run(arguments);
            assert!(code == Some(*expected) && message.contains(words), "{arguments:?}: {code:?} {message}");
        }
        assert_eq!(container.asked(), [""; 0]);
    };
    refusals(
        Status::Running,
        &[
            (&["start", ID], 1, "cannot start an already running container"),
            (&["resume", ID], 1, "container not paused"),
            (&["delete", ID], 1, "cannot delete container c1 that is not stopped: running"),
            (&["kill", ID, "FOO"], 1, "unknown signal \\\"FOO\\\""),
            (&["kill", ID, "99"], 1, "unable to signal init: invalid argument"),
        ],
    );
    refusals(
        Status::Paused,
        &[(&["pause", ID], 1, "container not running"), (&["exec", ID, "x"], 255, "cannot exec in a paused container")],
    );
    refusals(
        Status::Stopped,
        &[
            (&["start", ID], 1, "cannot start a container that has stopped"),
            (&["pause", ID], 1, "container not running"),
            (&["resume", ID], 1, "container not paused"),
            (&["kill", ID], 1, "container not running"),
            (&["kill", "-a", ID], 0, ""),
            (&["exec", ID, "x"], 255, "cannot exec in a stopped container"),
            (&["ps", ID], 0, ""),
        ],
    );
}

#[test]
fn calls_reach_the_daemon() {
    let container = StandIn::new(Status::Running, exits(ExitStatus::Code(0)));
    for arguments in [&["pause", ID][..], &["kill", ID], &["kill", "--all", ID, "usr1"]] {
        assert_eq!(container.run(arguments).0, Some(0));
    }
    assert_eq!(
        container.asked(),
        ["Pause", "Signal { exec: None, signal: 15, all: false }", "Signal { exec: None, signal: 10, all: true }"]
    );
}
