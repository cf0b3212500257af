//! The file server as a process: its jail, its life and death, and what a guest can and cannot do through it.
//!
//! This program is also the server, which it starts by executing itself; so it has a `main` of its own instead of the usual one of tests.
//! It understands `--list`, and a part of a test's name to run only some.

// The lints know tests by their attribute, which these cannot have.
#![allow(clippy::unwrap_used, clippy::expect_used)]

/// System calls that nobody else needs; QEMU's test has them, too.
#[path = "../../../hypervisor/tests/jail/calls.rs"]
#[allow(dead_code)]
mod calls;
mod guest;
mod hostile;
mod inside;

use std::{
    collections::BTreeSet,
    fs,
    io::{BufRead, BufReader, Read},
    os::{
        fd::{AsFd, OwnedFd},
        unix::{
            fs::{FileTypeExt, MetadataExt, symlink},
            process::CommandExt,
        },
    },
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
    time::{Duration, Instant},
};

use devices::{
    Error,
    share::{self, Access, SharedDir},
    virtiofs::{self, Cache, Config, LogLevel, Server},
};
use guest::{Errno, Guest, ROOT, op};
use rustix::{
    event::{PollFd, PollFlags, Timespec},
    process::{Pid, PidfdFlags, Signal},
};

const ITSELF: &str = "/proc/self/exe";
/// The name under which this program starts a server and waits to be killed.
const PARENT: &str = "parent-to-be-killed";

const EROFS: Errno = Errno(libc::EROFS);
const ENOENT: Errno = Errno(libc::ENOENT);
const KEEP_CACHE: u32 = 1 << 1;
const NO_FLUSH: u32 = 1 << 5;

type Test = (&'static str, fn());

const TESTS: &[Test] = &[
    ("the_guest_reads_and_writes_what_is_attached_before_and_after_the_start", reads_and_writes),
    ("what_is_read_only_stays_so", read_only),
    ("no_name_leads_out", no_name_leads_out),
    ("what_is_detached_is_gone_for_the_guest", detached_is_gone),
    ("the_guest_acts_as_any_user_and_makes_devices_that_the_host_does_not_open", users_and_devices),
    ("extended_attributes_pass", extended_attributes),
    ("an_unchanged_file_keeps_its_pages_and_a_changed_one_does_not", keeps_pages),
    ("other_cache_modes_decide_for_themselves", other_cache_modes),
    ("a_resting_guests_memory_is_given_back_and_nothing_is_lost", memory_is_given_back),
    ("the_jail_holds", the_jail_holds),
    ("who_breaks_the_server_can_do_nothing_that_the_control_can", inside::who_breaks_it_can_do_nothing),
    ("it_ends_well_when_the_vmm_goes", ends_with_the_vmm),
    ("it_dies_with_its_parent", dies_with_its_parent),
    ("it_dies_with_its_handle", dies_with_its_handle),
    ("a_guest_that_sends_nonsense_loses_its_file_system_and_the_reason_is_told", nonsense),
    ("what_cannot_be_started_says_why", cannot_start),
    ("names_that_a_guest_makes_up_lead_nowhere", hostile::names),
    ("a_directory_that_turns_into_a_link_leads_nowhere", hostile::races),
    ("requests_out_of_order_and_about_nothing_are_refused", hostile::out_of_order),
    ("as_many_files_as_the_guest_likes_are_not_as_many_as_the_host_has", hostile::descriptor_bomb),
    ("rings_that_lead_nowhere_end_the_server_or_nothing", hostile::rings),
    ("answers_without_room_end_the_server_with_a_reason", hostile::answers_without_room),
];

fn main() -> ExitCode {
    let mut arguments = std::env::args_os();
    let name = arguments.next().unwrap_or_default();
    if name == virtiofs::ROLE {
        let arguments: Vec<_> = arguments.collect();
        return inside::in_its_place(&arguments).unwrap_or_else(|| virtiofs::role_main(arguments));
    }
    if name == inside::CONTROL {
        let number = arguments.next().and_then(|number| number.to_str()?.parse().ok());
        return inside::attempt(number.unwrap());
    }
    if name == PARENT {
        return parent();
    }
    let arguments: Vec<String> = arguments.filter_map(|argument| argument.into_string().ok()).collect();
    let filter = arguments.iter().find(|argument| !argument.starts_with('-')).map_or("", String::as_str);
    let chosen: Vec<_> = TESTS.iter().filter(|(name, _)| name.contains(filter)).collect();
    if arguments.iter().any(|argument| argument == "--list") {
        chosen.iter().for_each(|(name, _)| println!("{name}: test"));
        return ExitCode::SUCCESS;
    }
    if !rustix::process::geteuid().is_root() {
        println!("skipped {} tests: only root may mount and make namespaces", chosen.len());
        return ExitCode::SUCCESS;
    }
    let mut failed = 0;
    for &&(name, test) in &chosen {
        // A mount namespace belongs to a thread, and goes with it.
        let result = std::thread::spawn(move || {
            share::enter_private_namespace().unwrap();
            test();
        })
        .join();
        println!("test {name} ... {}", if result.is_ok() { "ok" } else { "FAILED" });
        failed += usize::from(result.is_err());
    }
    println!("\ntest result: {} passed; {failed} failed", chosen.len() - failed);
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// A directory that goes when the test ends.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Self {
        static NEXT: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);
        let number = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("devices-virtiofs-{}-{number}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn dir(&self, name: &str) -> PathBuf {
        let path = self.0.join(name);
        fs::create_dir(&path).unwrap();
        path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // The shared directory, if the test made one there: what is beneath it is not to be removed through it.
        let _ = rustix::mount::unmount(self.0.join("at"), rustix::mount::UnmountFlags::DETACH);
        let removed = fs::remove_dir_all(&self.0);
        assert!(std::thread::panicking() || removed.is_ok(), "{removed:?}");
    }
}

/// A shared directory with `data` attached at c1/rw and c1/ro, a server for it, and what the VMM would get.
struct Stage {
    data: PathBuf,
    shared: SharedDir,
    server: Server,
    socket: Option<OwnedFd>,
    _scratch: Scratch,
}

impl Stage {
    fn new() -> Self {
        Self::with(|_| {})
    }

    fn with(adjust: impl FnOnce(&mut Config)) -> Self {
        let scratch = Scratch::new();
        let (at, data) = (scratch.dir("at"), scratch.dir("data"));
        fs::write(data.join("file"), "hello").unwrap();
        let shared = SharedDir::create(&at).unwrap();
        shared.attach(Path::new("c1/rw"), share::open_tree(&data, true).unwrap(), Access::default()).unwrap();
        shared.attach(Path::new("c1/ro"), share::open_tree(&data, true).unwrap(), Access::READ_ONLY).unwrap();
        let mut config = Config::new(&at);
        adjust(&mut config);
        let (server, socket) = virtiofs::spawn(&config, Path::new(ITSELF)).unwrap();
        Self { data, shared, server, socket: Some(socket), _scratch: scratch }
    }

    fn guest(&mut self) -> Guest {
        Guest::boot(self.socket.take().unwrap())
    }

    /// Waits for the server's end.
    fn ended(&mut self) -> std::process::ExitStatus {
        assert!(readable(&self.server), "the server has not ended within 10 s");
        self.server.try_wait().unwrap().unwrap()
    }
}

fn readable(fd: &impl AsFd) -> bool {
    let timeout = Timespec { tv_sec: 10, tv_nsec: 0 };
    rustix::event::poll(&mut [PollFd::new(fd, PollFlags::IN)], Some(&timeout)).unwrap() > 0
}

fn reads_and_writes() {
    let mut stage = Stage::new();
    let mut guest = stage.guest();
    assert_ne!(guest.features & guest::VERSION_1, 0);
    assert_eq!(guest.read_file("c1/rw/file").unwrap(), "hello");
    let (entry, handle) = {
        let parent = guest.walk("c1/rw").unwrap();
        let submount = 1;
        assert_eq!(parent.flags & submount, submount, "the guest must be told that c1/rw is another file system");
        guest.create(parent.node, "new", 0o640).unwrap()
    };
    assert_eq!(guest.write(entry.node, handle, b"from the guest").unwrap(), 14);
    assert_eq!(fs::read_to_string(stage.data.join("new")).unwrap(), "from the guest");
    assert_eq!(fs::metadata(stage.data.join("new")).unwrap().mode() & 0o7777, 0o640);

    assert_eq!(guest.walk("c2/later").unwrap_err(), ENOENT);
    let tree = share::open_tree(&stage.data, true).unwrap();
    stage.shared.attach(Path::new("c2/later"), tree, Access::default()).unwrap();
    assert_eq!(guest.read_file("c2/later/new").unwrap(), "from the guest");
    let tree = share::open_tree(&stage.data.join("file"), false).unwrap();
    stage.shared.attach(Path::new("c2/file"), tree, Access::READ_ONLY).unwrap();
    assert_eq!(guest.read_file("c2/file").unwrap(), "hello");
    assert_eq!(stage.server.stderr_tail(), Vec::<String>::new());
}

fn read_only() {
    let mut stage = Stage::new();
    let mut guest = stage.guest();
    let file = guest.walk("c1/ro/file").unwrap();
    assert_eq!(guest.open(file.node, libc::O_RDWR).unwrap_err(), EROFS);
    assert_eq!(guest.open(file.node, libc::O_RDONLY | libc::O_TRUNC).unwrap_err(), EROFS);
    for directory in ["c1/ro", "c1"] {
        let node = guest.walk(directory).unwrap().node;
        assert_eq!(guest.create(node, "new", 0o600).unwrap_err(), EROFS, "{directory}");
    }
    assert_eq!(guest.create(ROOT, "new", 0o600).unwrap_err(), EROFS);
    assert_eq!(fs::read_to_string(stage.data.join("file")).unwrap(), "hello");
}

fn no_name_leads_out() {
    let mut stage = Stage::new();
    symlink("/etc/passwd", stage.data.join("absolute")).unwrap();
    symlink("../../../../../etc/passwd", stage.data.join("relative")).unwrap();
    let mut guest = stage.guest();
    let rw = guest.walk("c1/rw").unwrap().node;
    for link in ["absolute", "relative"] {
        let found = guest.lookup(rw, link).unwrap();
        assert_eq!(found.mode & libc::S_IFMT, libc::S_IFLNK);
        let target = guest.request(op::READLINK, found.node, &[]).unwrap();
        assert!(target.ends_with(b"/etc/passwd"));
        assert!(guest.open(found.node, libc::O_RDONLY).is_err(), "{link} must not be followed by the host");
    }
    for name in
        ["../../../../etc/passwd", "/etc/passwd", "absolute/", "relative/x", "../../proc", "/proc/self/root/etc"]
    {
        let result = guest.lookup(rw, name);
        assert!(result.is_err(), "{name} must lead nowhere, but led to {result:?}");
    }
    // What a name of dots leads to, if to anything, is beneath the root.
    let mut top = rw;
    for _ in 0..10 {
        top = guest.lookup(top, "..").map_or(top, |entry| entry.node);
    }
    assert!(guest.lookup(top, "etc").is_err());
}

fn detached_is_gone() {
    let mut stage = Stage::new();
    let mut guest = stage.guest();
    let file = guest.walk("c1/rw/file").unwrap();
    let (handle, _) = guest.open(file.node, libc::O_RDONLY).unwrap();
    stage.shared.detach(Path::new("c1/rw")).unwrap();
    assert_eq!(guest.walk("c1/rw").unwrap_err(), ENOENT);
    assert_eq!(guest.read(file.node, handle).unwrap(), b"hello", "what is open stays readable");
    assert_eq!(guest.read_file("c1/ro/file").unwrap(), "hello");
    let mounts = fs::read_to_string(format!("/proc/{}/mountinfo", stage.server.pid())).unwrap();
    assert!(!mounts.contains("/c1/rw"), "{mounts}");
}

fn users_and_devices() {
    let mut stage = Stage::new();
    let mut guest = stage.guest();
    let rw = guest.walk("c1/rw").unwrap().node;
    fs::set_permissions(&stage.data, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    guest.uid = 4321;
    guest.create(rw, "mine", 0o600).unwrap();
    let mine = fs::metadata(stage.data.join("mine")).unwrap();
    assert_eq!((mine.uid(), mine.gid()), (4321, 4321));

    guest.uid = 0;
    let null = rustix::fs::makedev(1, 3) as u32;
    let mut body: Vec<u8> = [libc::S_IFCHR | 0o666, null, 0, 0].into_iter().flat_map(u32::to_le_bytes).collect();
    body.extend(guest::name_bytes("null"));
    guest.request(op::MKNOD, rw, &body).unwrap();
    assert!(fs::metadata(stage.data.join("null")).unwrap().file_type().is_char_device());
    assert!(fs::File::open(stage.shared.path().join("c1/rw/null")).is_err());
    let node = guest.lookup(rw, "null").unwrap().node;
    assert!(guest.open(node, libc::O_RDWR).is_err(), "the server must not open a device for the guest");
}

fn extended_attributes() {
    let mut stage = Stage::new();
    let mut guest = stage.guest();
    let file = guest.walk("c1/rw/file").unwrap().node;
    // A file capability, revision 2: CAP_NET_RAW, permitted and effective.
    let value: Vec<u8> = [0x0200_0001_u32, 1 << 13, 0, 0, 0].into_iter().flat_map(u32::to_le_bytes).collect();
    let mut body: Vec<u8> = [value.len() as u32, 0].into_iter().flat_map(u32::to_le_bytes).collect();
    body.extend(guest::name_bytes("security.capability"));
    body.extend(&value);
    guest.request(op::SETXATTR, file, &body).unwrap();
    let mut body: Vec<u8> = [64, 0].into_iter().flat_map(u32::to_le_bytes).collect();
    body.extend(guest::name_bytes("security.capability"));
    assert_eq!(guest.request(op::GETXATTR, file, &body).unwrap(), value);
}

/// Until a file's times are old enough to tell a later change from the last.
fn settle() {
    std::thread::sleep(Duration::from_millis(50));
}

fn keeps_pages() {
    let mut stage = Stage::new();
    settle();
    let mut guest = stage.guest();
    let cache_symlinks = 1 << 23;
    assert_ne!(guest.negotiated & cache_symlinks, 0);
    let file = guest.walk("c1/rw/file").unwrap().node;
    let flags = |guest: &mut Guest, how| guest.open(file, how).unwrap().1;
    assert_eq!(flags(&mut guest, libc::O_RDONLY), NO_FLUSH);
    assert_eq!(flags(&mut guest, libc::O_RDONLY), NO_FLUSH | KEEP_CACHE);
    assert_eq!(flags(&mut guest, libc::O_RDWR), KEEP_CACHE);
    // The same size: only the times tell.
    fs::write(stage.data.join("file"), "HELLO").unwrap();
    assert_eq!(flags(&mut guest, libc::O_RDONLY), NO_FLUSH);
    // Just written: it may change again without a trace.
    assert_eq!(flags(&mut guest, libc::O_RDONLY), NO_FLUSH);
    settle();
    assert_eq!(flags(&mut guest, libc::O_RDONLY), NO_FLUSH);
    assert_eq!(flags(&mut guest, libc::O_RDONLY), NO_FLUSH | KEEP_CACHE);
    // The guest forgets it, pages and all, and meets it again.
    guest.forget(file, 1);
    let file = guest.walk("c1/rw/file").unwrap().node;
    assert_eq!(guest.open(file, libc::O_RDONLY).unwrap().1, NO_FLUSH);
}

fn other_cache_modes() {
    let direct = 1;
    for (cache, expected) in [(Cache::Never, direct), (Cache::Metadata, direct), (Cache::Always, KEEP_CACHE)] {
        let mut stage = Stage::with(|config| config.cache = cache);
        settle();
        let mut guest = stage.guest();
        let file = guest.walk("c1/rw/file").unwrap().node;
        for _ in 0..2 {
            assert_eq!(guest.open(file, libc::O_RDONLY).unwrap().1, expected | NO_FLUSH, "{cache:?}");
        }
    }
}

fn memory_is_given_back() {
    let mut stage = Stage::new();
    let mut guest = stage.guest();
    let smaps = format!("/proc/{}/smaps_rollup", stage.server.pid());
    let shared = || {
        let memory = fs::read_to_string(&smaps).unwrap();
        let line = memory.lines().find_map(|line| line.strip_prefix("Pss_Shmem:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap()
    };
    let node = guest.walk("c1/rw").unwrap().node;
    let (entry, handle) = guest.create(node, "large", 0o600).unwrap();
    let data: Vec<u8> = (0..600 << 10).map(|n: u32| n as u8).collect();
    assert_eq!(guest.write(entry.node, handle, &data).unwrap(), 600 << 10);
    assert!(shared() >= 600, "{} KiB", shared());
    let deadline = Instant::now() + Duration::from_secs(10);
    while shared() > 0 {
        assert!(Instant::now() < deadline, "still {} KiB after 10 s", shared());
        std::thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(fs::read(stage.data.join("large")).unwrap(), data);
    assert_eq!(guest.read_file("c1/rw/file").unwrap(), "hello");
}

fn the_jail_holds() {
    let mut stage = Stage::new();
    // Something inheritable that must not be inherited.
    let leak = rustix::fs::open("/etc", rustix::fs::OFlags::RDONLY, rustix::fs::Mode::empty()).unwrap();
    let mut guest = stage.guest();
    guest.walk("c1/rw").unwrap();
    let proc = PathBuf::from(format!("/proc/{}", stage.server.pid()));

    let status = fs::read_to_string(proc.join("status")).unwrap();
    let field = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(&format!("{name}:")));
        line.unwrap_or_else(|| panic!("no {name}")).split_once(':').unwrap().1.trim().to_owned()
    };
    // chown, dac_override, fowner, fsetid, setgid, setuid, mknod, setfcap.
    let kept = format!("{:016x}", 1 << 0 | 1 << 1 | 1 << 3 | 1 << 4 | 1 << 6 | 1 << 7 | 1 << 27 | 1_u64 << 31);
    assert_eq!([field("CapEff"), field("CapPrm")], [kept.clone(), kept]);
    for empty in ["CapBnd", "CapInh", "CapAmb"] {
        assert_eq!(field(empty), "0000000000000000", "{empty}");
    }
    assert_eq!(field("NoNewPrivs"), "1");
    assert_eq!(field("Seccomp"), "2");
    assert_eq!(field("Seccomp_filters"), "2");
    assert_eq!(field("Groups"), "");
    assert!(field("NSpid").ends_with("\t1"), "the first process of a pid namespace of its own");
    let task = fs::read_dir(proc.join("task")).unwrap().map(|task| task.unwrap().path()).collect::<Vec<_>>();
    for thread in task {
        let status = fs::read_to_string(thread.join("status")).unwrap();
        assert!(status.contains("\nSeccomp:\t2\n") && status.contains("\nNoNewPrivs:\t1\n"), "{status}");
    }

    for namespace in ["mnt", "pid", "net", "ipc", "uts", "cgroup"] {
        let link = |path: &Path| fs::read_link(path.join("ns").join(namespace)).unwrap();
        assert_ne!(link(&proc), link(Path::new("/proc/self")), "{namespace}");
    }
    let root: Vec<_> = fs::read_dir(proc.join("root")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(root, ["c1"]);
    assert_eq!(fs::read_link(proc.join("cwd")).unwrap(), Path::new("/"));
    let mounts = fs::read_to_string(proc.join("mountinfo")).unwrap();
    let points: BTreeSet<_> = mounts.lines().map(|line| line.split(' ').nth(4).unwrap()).collect();
    assert_eq!(points, BTreeSet::from(["/", "/c1/ro", "/c1/rw"]), "{mounts}");
    let top = mounts.lines().find(|line| line.split(' ').nth(4) == Some("/")).unwrap();
    assert!(top.contains(" ro,nosuid,nodev,noexec") && top.contains("master:") && !top.contains("shared:"), "{top}");

    let limits = fs::read_to_string(proc.join("limits")).unwrap();
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    assert_eq!(core.split_whitespace().skip(4).take(2).collect::<Vec<_>>(), ["0", "0"]);
    assert_eq!(fs::read(proc.join("environ")).unwrap(), b"");

    // Its own, the queue's, and the guest's: nothing else of the host.
    for entry in fs::read_dir(proc.join("fd")).unwrap() {
        let target = fs::read_link(entry.unwrap().path()).unwrap();
        let target = target.to_str().unwrap().to_owned();
        let known = ["pipe:", "socket:", "anon_inode:", "/memfd:", "/c1"];
        let fine = known.iter().any(|known| target.starts_with(known))
            || ["/", "/dev/null", "/1/fd"].contains(&target.as_str());
        assert!(fine, "the jail has {target} open");
    }
    drop(leak);
    let memory = fs::read_to_string(proc.join("smaps_rollup")).unwrap();
    let pss = memory.lines().find(|line| line.starts_with("Pss:")).unwrap();
    println!("     of the server, in this build: {pss}");
}

fn ends_with_the_vmm() {
    let mut stage = Stage::new();
    drop(stage.guest());
    assert_eq!(stage.ended().code(), Some(0));
    assert_eq!(stage.server.stderr_tail(), Vec::<String>::new());

    // One that never said a word.
    let mut stage = Stage::new();
    assert_eq!(stage.server.try_wait().unwrap(), None);
    drop(stage.socket.take());
    assert_eq!(stage.ended().code(), Some(0));
}

/// Starts a server, prints its process id, and stays.
fn parent() -> ExitCode {
    share::enter_private_namespace().unwrap();
    let at = PathBuf::from(std::env::args_os().nth(1).unwrap());
    let _shared = SharedDir::create(&at).unwrap();
    let (server, socket) = virtiofs::spawn(&Config::new(&at), Path::new(ITSELF)).unwrap();
    let _guest = Guest::boot(socket);
    println!("{}", server.pid());
    let _ = std::io::stdin().read(&mut [0]);
    ExitCode::SUCCESS
}

fn dies_with_its_parent() {
    let scratch = Scratch::new();
    let mut parent =
        Command::new(ITSELF).arg0(PARENT).arg(&scratch.0).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(parent.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let pid = Pid::from_raw(line.trim().parse().unwrap()).unwrap();
    let server = rustix::process::pidfd_open(pid, PidfdFlags::empty()).unwrap();
    parent.kill().unwrap();
    parent.wait().unwrap();
    assert!(readable(&server), "the server has outlived its parent by 10 s");
}

fn dies_with_its_handle() {
    let mut stage = Stage::new();
    let _guest = stage.guest();
    let pid = Pid::from_raw(stage.server.pid() as i32).unwrap();
    let start = Instant::now();
    drop(stage);
    assert!(start.elapsed() < Duration::from_secs(2));
    assert!(rustix::process::test_kill_process(pid).is_err(), "not even a zombie is left");

    // Killed by somebody else: it shows, and how.
    let mut stage = Stage::new();
    let pid = Pid::from_raw(stage.server.pid() as i32).unwrap();
    rustix::process::kill_process(pid, Signal::KILL).unwrap();
    assert_eq!(stage.ended().to_string(), "signal: 9 (SIGKILL)");
    stage.server.kill().unwrap();
}

fn nonsense() {
    let mut stage = Stage::with(|config| config.log_level = LogLevel::Error);
    let mut guest = stage.guest();
    // A name that does not end.
    assert_eq!(guest.request(op::LOOKUP, ROOT, b"no end").unwrap_err(), Errno(0));
    assert_eq!(stage.ended().code(), Some(1));
    let tail = stage.server.stderr_tail();
    assert!(tail.last().is_some_and(|line| line.starts_with("error: ")), "{tail:?}");
}

fn cannot_start() {
    let scratch = Scratch::new();
    let error = virtiofs::spawn(&Config::new(&scratch.0), Path::new("/nowhere/kata")).unwrap_err();
    assert_eq!(error.to_string(), "cannot execute as the file server /nowhere/kata");
    assert!(matches!(error, Error::Path { source, .. } if source.kind() == std::io::ErrorKind::NotFound));

    let missing = scratch.0.join("missing");
    let (mut server, _socket) = virtiofs::spawn(&Config::new(&missing), Path::new(ITSELF)).unwrap();
    assert!(readable(&server));
    assert_eq!(server.try_wait().unwrap().unwrap().code(), Some(1));
    let expected = format!("error: cannot open the shared directory {}: No such file or directory", missing.display());
    assert!(server.stderr_tail().last().unwrap().starts_with(&expected), "{:?}", server.stderr_tail());

    // A directory that is no mount of its own cannot become a root.
    let (mut server, _socket) = virtiofs::spawn(&Config::new(&scratch.0), Path::new(ITSELF)).unwrap();
    assert!(readable(&server));
    assert!(server.stderr_tail().last().unwrap().contains("cannot make the root directory of"));
}
