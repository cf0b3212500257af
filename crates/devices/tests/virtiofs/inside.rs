//! The server's jail, tried from inside: this program stands in the server's place, confines itself as the server does, and attempts what
//! that may not. As the control it attempts the same outside, where all of it must succeed.

use std::{
    ffi::OsString,
    fs, io,
    net::{Ipv4Addr, UdpSocket},
    os::unix::{net::UnixDatagram, process::CommandExt, process::ExitStatusExt},
    path::Path,
    process::{Command, ExitCode, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use devices::{
    share::{self, Access, SharedDir},
    virtiofs::{self, Config},
};
use rustix::{
    net::{AddressFamily, SocketType, socket},
    process::{Signal, getppid},
};

use super::{ITSELF, Scratch, calls};

/// The name under which this program is the control.
pub const CONTROL: &str = "control-of-the-jail";
/// What the shared directory of a server is called that is to make an attempt, before its number.
const DIRECTORY: &str = "attempt-";
const SOON: Duration = Duration::from_secs(20);

type Attempt = (&'static str, fn() -> io::Result<()>);

const ATTEMPTS: &[Attempt] = &[
    // What it needs must be left to it, or nothing would be proven by what is refused.
    ("may read what is shared", || fs::read("/c1/file").map(drop)),
    ("may make a thread", || std::thread::spawn(|| ()).join().map_err(|_| io::ErrorKind::Other.into())),
    ("read a file of the host", || fs::read("/etc/passwd").map(drop)),
    ("look at processes", || fs::read_dir("/proc").map(drop)),
    ("trace its parent", || calls::trace(parent())),
    ("read its parent's memory", || calls::read_memory(parent())),
    ("send to the host's network", || {
        UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?.send_to(b"", (Ipv4Addr::LOCALHOST, 9)).map(drop)
    }),
    ("make a socket", || UnixDatagram::unbound().map(drop)),
    ("speak netlink", || Ok(socket(AddressFamily::NETLINK, SocketType::RAW, None).map(drop)?)),
    ("mount", || calls::unshare(libc::CLONE_NEWNS).and_then(|()| calls::mount())),
    ("make a user namespace", || calls::unshare(libc::CLONE_NEWUSER)),
    ("make a network namespace", || calls::unshare(libc::CLONE_NEWNET)),
    ("change the root", || calls::chroot(Path::new("/"))),
    ("execute a program", || {
        let shared = Path::new("/c1/program");
        Err(Command::new(if shared.exists() { shared } else { Path::new("/bin/true") }).exec())
    }),
    ("load a program into the kernel", calls::bpf),
    ("add a key", calls::add_key),
    ("raise its priority", || calls::nice(-1)),
];

/// The process that has started this one. In a pid namespace of its own it has none, and tries the first one there is.
fn parent() -> i32 {
    getppid().map_or(1, |pid| pid.as_raw_nonzero().get())
}

/// If a server with these arguments is to make an attempt, makes it in the server's place.
pub fn in_its_place(arguments: &[OsString]) -> Option<ExitCode> {
    let name = |argument: &OsString| Path::new(argument).file_name()?.to_str()?.strip_prefix(DIRECTORY)?.parse().ok();
    let number: usize = arguments.iter().find_map(name)?;
    let _confined = virtiofs::confine(arguments.iter().cloned()).unwrap();
    Some(attempt(number))
}

/// Makes an attempt and ends with 0 if it has succeeded.
pub fn attempt(number: usize) -> ExitCode {
    match ATTEMPTS[number].1() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(2)
        }
    }
}

/// The attempts of a server, and of the control.
pub fn who_breaks_it_can_do_nothing() {
    let scratch = Scratch::new();
    let data = scratch.dir("data");
    fs::write(data.join("file"), "text").unwrap();
    fs::copy("/bin/true", data.join("program")).unwrap();
    for (number, (attempt, _)) in ATTEMPTS.iter().enumerate() {
        let inside = ended(&scratch, &data, number);
        let may = attempt.starts_with("may ");
        assert_eq!(inside.success(), may, "in the server's place, {attempt}: {inside}");
        // Refused, or killed for trying; not something else that went wrong.
        assert!(
            may || inside.code() == Some(2) || inside.signal() == Some(Signal::SYS.as_raw()),
            "{attempt}: {inside}"
        );
        if !may {
            let mut control = Command::new(ITSELF);
            let output = control.arg0(CONTROL).arg(number.to_string()).stdin(Stdio::null()).output().unwrap();
            assert!(output.status.success(), "the control failed to {attempt}: {output:?}");
        }
    }
}

/// How a server ended that made an attempt.
fn ended(scratch: &Scratch, data: &Path, number: usize) -> ExitStatus {
    let at = scratch.dir(&format!("{DIRECTORY}{number}"));
    let shared = SharedDir::create(&at).unwrap();
    shared.attach(Path::new("c1"), share::open_tree(data, true).unwrap(), Access::READ_ONLY).unwrap();
    let (mut server, _socket) = virtiofs::spawn(&Config::new(&at), Path::new(ITSELF)).unwrap();
    let end = Instant::now() + SOON;
    let status = loop {
        if let Some(status) = server.try_wait().unwrap() {
            break status;
        }
        assert!(Instant::now() < end, "{:?}", server.stderr_tail());
        std::thread::sleep(Duration::from_millis(5));
    };
    shared.unmount().unwrap();
    // Its own limits, if they were too low, end it with 1 or 101.
    assert!(![Some(1), Some(101)].contains(&status.code()), "{:?}", server.stderr_tail());
    status
}
