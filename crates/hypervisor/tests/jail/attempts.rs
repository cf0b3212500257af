//! What is attempted. Each attempt is made by a child, so that one that a filter kills for is a refusal and not the end.

use std::{
    fs, io,
    net::{Ipv4Addr, TcpListener, UdpSocket},
    os::{
        linux::net::SocketAddrExt,
        unix::{
            net::{SocketAddr, UnixStream},
            process::{CommandExt, ExitStatusExt},
        },
    },
    path::Path,
    process::Command,
};

use rustix::{
    fs::{MemfdFlags, ftruncate, memfd_create},
    net::{AddressFamily, SocketType, ipproto, socket},
};

use super::calls;

/// Where the attempts are made, and on whom.
pub struct Told<'a> {
    lab: &'a Path,
    parent: i32,
    sibling: i32,
}

type Attempt = (&'static str, fn(&Told<'_>) -> io::Result<()>);

/// What is called `may ...` is what QEMU needs, and must succeed inside, too.
pub const ALL: &[Attempt] = &[
    ("may open /dev/null", |_| fs::write("/dev/null", "x")),
    ("may read its own /proc", |_| {
        // That of the process itself: the attempt is made by a child.
        fs::read(format!("/proc/{}/status", std::os::unix::process::parent_id())).map(drop)
    }),
    ("may make a thread", |_| std::thread::spawn(|| ()).join().map_err(|_| io::ErrorKind::Other.into())),
    ("may make shared memory", |_| {
        Ok(memfd_create("memory", MemfdFlags::CLOEXEC).and_then(|file| ftruncate(file, 4096))?)
    }),
    ("read /etc/shadow", |_| fs::read("/etc/shadow").map(drop)),
    ("read /etc/passwd", |_| fs::read("/etc/passwd").map(drop)),
    ("read another sandbox's state", |told| fs::read(told.lab.join("state.json")).map(drop)),
    ("write a file of everybody's", |told| fs::write(told.lab.join("writable"), "x")),
    ("make a file in /tmp", |told| {
        let path = format!("/tmp/{}", told.lab.file_name().unwrap_or_default().to_string_lossy()) + ".made";
        fs::write(&path, "x").and_then(|()| fs::remove_file(path))
    }),
    ("list /", |_| fs::read_dir("/").map(drop)),
    ("read the parent's command line", |told| fs::read(format!("/proc/{}/cmdline", told.parent)).map(drop)),
    ("read the parent's memory map", |told| fs::read(format!("/proc/{}/maps", told.parent)).map(drop)),
    ("reach the parent's root", |told| fs::read_dir(format!("/proc/{}/root/", told.parent)).map(drop)),
    ("reach the sibling's descriptors", |told| fs::read_dir(format!("/proc/{}/fd", told.sibling)).map(drop)),
    ("trace the parent", |told| calls::trace(told.parent)),
    ("trace the sibling", |told| calls::trace(told.sibling)),
    ("read the sibling's memory", |told| calls::read_memory(told.sibling)),
    ("signal the parent", |told| calls::signal(told.parent)),
    ("signal the sibling", |told| calls::signal(told.sibling)),
    ("execute a shell", |_| Err(Command::new("/bin/sh").args(["-c", "exit 0"]).exec())),
    ("become another user", |_| calls::setresuid(0x6b7f_0003)),
    ("become another group", |_| calls::setresgid(0x6b7f_0003)),
    ("mount", |_| calls::unshare(libc::CLONE_NEWNS).and_then(|()| calls::mount())),
    ("make a user namespace", |_| calls::unshare(libc::CLONE_NEWUSER)),
    ("make a network namespace", |_| calls::unshare(libc::CLONE_NEWNET)),
    ("change the root", |told| calls::chroot(told.lab)),
    ("load a program into the kernel", |_| calls::bpf()),
    ("add a key", |_| calls::add_key()),
    ("make a device", |told| {
        let path = told.lab.join("device");
        calls::mknod(&path).and_then(|()| fs::remove_file(path))
    }),
    ("raise its priority", |_| calls::nice(-1)),
    ("connect to a socket by its path", |told| UnixStream::connect(told.lab.join("socket")).map(drop)),
    ("connect to an abstract socket", |told| UnixStream::connect_addr(&abstract_name(told.parent)?).map(drop)),
    ("send to the host's network", |_| {
        UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?.send_to(b"", (Ipv4Addr::LOCALHOST, 9)).map(drop)
    }),
    ("listen by TCP", |_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map(drop)),
    ("open a raw socket", |_| Ok(socket(AddressFamily::INET, SocketType::RAW, Some(ipproto::ICMP)).map(drop)?)),
    ("speak netlink", |_| Ok(socket(AddressFamily::NETLINK, SocketType::RAW, None).map(drop)?)),
];

/// The abstract socket of the process that is the parent of both.
pub fn abstract_name(parent: i32) -> io::Result<SocketAddr> {
    SocketAddr::from_abstract_name(format!("kata-jail-{parent}"))
}

/// Makes all attempts and writes to standard error what came of them: `attempt=result`, some to a line, because of QEMU's words only the last
/// lines are kept.
pub fn report(told: &str) {
    let mut parts = told.trim().split(':');
    let mut next = || parts.next().unwrap_or_default();
    let lab = next().to_owned();
    let told = Told { lab: Path::new(&lab), parent: next().parse().unwrap(), sibling: next().parse().unwrap() };
    for some in ALL.chunks(3) {
        let results: Vec<_> =
            some.iter().map(|(attempt, make)| format!("{attempt}={}", result(*make, &told))).collect();
        eprintln!("{}", results.join("|"));
    }
}

fn result(make: fn(&Told<'_>) -> io::Result<()>, told: &Told<'_>) -> String {
    match calls::in_a_child(|| make(told)) {
        Ok(status) => match (status.code(), status.signal()) {
            (Some(0), _) => "done".to_owned(),
            (Some(code), _) => format!("refused: {}", io::Error::from_raw_os_error(code)),
            (_, signal) => format!("refused by signal {signal:?}"),
        },
        Err(error) => format!("no child for it: {error}"),
    }
}
