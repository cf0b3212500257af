//! What a guest may do that has no honest driver: to names, to the order of requests, to the rings.

use std::{
    fs,
    os::unix::fs::symlink,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Resource, Rlimit};

use super::{
    Stage,
    guest::{
        EVENT_INDEX, Errno, Guest, INDIRECT, MEMORY, NEXT, PROTOCOL_FEATURES, QUEUE_SIZE, REPLY, REQUEST, ROOT,
        VERSION_1, WRITE, name_bytes, op,
    },
};

/// What no guest may ever see.
const SECRET: &str = "the host's secret";

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

fn longs(longs: &[u64]) -> Vec<u8> {
    longs.iter().flat_map(|long| long.to_le_bytes()).collect()
}

/// A file outside of what is shared.
fn secret(stage: &Stage) -> std::path::PathBuf {
    let outside = stage._scratch.dir("outside");
    fs::write(outside.join("file"), SECRET).unwrap();
    outside
}

pub fn names() {
    let mut stage = Stage::new();
    let outside = secret(&stage);
    let listing = || fs::read_dir(&outside).unwrap().map(|entry| entry.unwrap().file_name()).collect::<Vec<_>>();
    let before = listing();
    symlink(&outside, stage.data.join("link")).unwrap();
    let up = "../".repeat(12);
    let path = outside.strip_prefix("/").unwrap().to_str().unwrap();
    let mut guest = stage.guest();
    let rw = guest.walk("c1/rw").unwrap().node;
    let file = guest.walk("c1/rw/file").unwrap().node;
    for name in
        ["link/new".into(), format!("{up}{path}/new"), format!("/{path}/new"), "..".into(), ".".into(), String::new()]
    {
        let bytes = name_bytes(&name);
        let with = |fields: Vec<u8>| [fields, bytes.clone()].concat();
        let requests = [
            (op::MKNOD, with(words(&[libc::S_IFREG | 0o666, 0, 0, 0]))),
            (op::MKDIR, with(words(&[0o777, 0]))),
            (op::SYMLINK, [bytes.clone(), name_bytes("/etc")].concat()),
            (op::LINK, with(longs(&[file]))),
            (op::CREATE, with(words(&[(libc::O_RDWR | libc::O_CREAT) as u32, 0o666, 0, 0]))),
            (op::UNLINK, bytes.clone()),
            (op::RENAME, [longs(&[rw]), name_bytes("file"), bytes.clone()].concat()),
        ];
        for (request, body) in requests {
            let answer = guest.request(request, rw, &body);
            assert!(answer.is_err(), "request {request} of {name:?} was answered by {answer:?}");
            assert_ne!(answer, Err(Errno(0)), "request {request} of {name:?} has ended the server");
        }
    }
    assert_eq!(listing(), before);
    assert_eq!(guest.read_file("c1/rw/file").unwrap(), "hello");
}

pub fn races() {
    let mut stage = Stage::new();
    let outside = secret(&stage);
    let data = stage.data.clone();
    let mut guest = stage.guest();
    let rw = guest.walk("c1/rw").unwrap().node;
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        // Somebody else in the guest, or another container of the pod, swaps a directory for a link that leads out.
        scope.spawn(|| {
            let (inside, link, place) = (data.join("inside"), data.join("leads-out"), data.join("place"));
            fs::create_dir(&inside).unwrap();
            fs::write(inside.join("file"), "harmless").unwrap();
            symlink(&outside, &link).unwrap();
            while !over.load(Ordering::Relaxed) {
                for what in [&inside, &link] {
                    fs::rename(what, &place).unwrap();
                    std::thread::yield_now();
                    fs::rename(&place, what).unwrap();
                }
            }
        });
        let mut reads = 0;
        let end = Instant::now() + Duration::from_secs(2);
        while Instant::now() < end {
            let Ok(place) = guest.lookup(rw, "place") else { continue };
            if let Ok(file) = guest.lookup(place.node, "file")
                && let Ok((handle, _)) = guest.open(file.node, libc::O_RDONLY)
            {
                let text = guest.read(file.node, handle).unwrap();
                assert!(!text.starts_with(SECRET.as_bytes()), "the guest was led out");
                reads += 1;
                guest.request(op::RELEASE, file.node, &longs(&[handle, 0, 0])).unwrap();
                guest.forget(file.node, 1);
            }
            guest.forget(place.node, 1);
        }
        over.store(true, Ordering::Relaxed);
        assert!(reads > 0, "it never was a directory");
    });
}

pub fn out_of_order() {
    // Before the greeting nothing is served, and a second one does not undo the first.
    let mut early = Stage::new();
    let mut guest = Guest::connect(early.socket.take().unwrap());
    let answer = guest.request(op::LOOKUP, ROOT, &name_bytes("c1"));
    drop(guest);
    assert!(answer.is_err() || early.ended().code().is_some(), "{answer:?}");

    let mut stage = Stage::new();
    let mut guest = stage.guest();
    let file = guest.walk("c1/rw/file").unwrap().node;
    let (handle, _) = guest.open(file, libc::O_RDONLY).unwrap();
    for node in [0, 2_000_000, u64::MAX] {
        assert!(guest.lookup(node, "file").is_err());
        assert!(guest.open(node, libc::O_RDONLY).is_err());
        guest.forget(node, u64::MAX);
    }
    for wrong in [handle + 1, u64::MAX] {
        assert!(guest.read(file, wrong).is_err());
        assert!(guest.write(file, wrong, b"x").is_err());
        assert!(guest.request(op::READDIR, ROOT, &longs(&[wrong, 0, 4096, 0, 0])).is_err());
    }
    // A request that there is not.
    for request in [0, 7, 1000, u32::MAX] {
        assert!(matches!(guest.request(request, ROOT, &[0; 64]), Err(Errno(error)) if error > 0), "{request}");
    }
    // More is forgotten than was known.
    guest.forget(file, u64::MAX);
    assert!(guest.open(file, libc::O_RDONLY).is_err());
    assert_eq!(guest.read_file("c1/rw/file").unwrap(), "hello");
    // What is read into a buffer that is larger than any.
    let node = guest.walk("c1/rw/file").unwrap().node;
    let (handle, _) = guest.open(node, libc::O_RDONLY).unwrap();
    let huge = longs(&[handle, 0, u64::from(u32::MAX), 0, 0]);
    let answer = guest.request(op::READ, node, &huge);
    assert!(answer.is_err() || answer.as_deref() == Ok(b"hello"), "{answer:?}");
    // Who forgets the root has none any more.
    guest.forget(ROOT, u64::MAX);
    assert!(matches!(guest.lookup(ROOT, "c1"), Err(Errno(error)) if error > 0));
}

pub fn descriptor_bomb() {
    const FILES: u64 = 1500;
    let mut stage = Stage::new();
    // The server's own limit is about a million; the bomb need not be that large to be told.
    let pid = Pid::from_raw(stage.server.pid().cast_signed());
    let mut guest = stage.guest();
    let limit = Rlimit { current: Some(FILES), maximum: Some(FILES) };
    rustix::process::prlimit(pid, Resource::Nofile, limit).unwrap();
    let node = guest.walk("c1/rw/file").unwrap().node;
    let mut handles = Vec::new();
    let refused = loop {
        match guest.open(node, libc::O_RDONLY) {
            Ok((handle, _)) => handles.push(handle),
            Err(error) => break error,
        }
        assert!(handles.len() < 2 * FILES as usize, "nobody keeps the guest from opening more");
    };
    assert!([libc::EMFILE, libc::ENFILE].contains(&refused.0), "{refused:?}");
    for handle in handles {
        guest.request(op::RELEASE, node, &longs(&[handle, 0, 0])).unwrap();
    }
    assert_eq!(guest.read_file("c1/rw/file").unwrap(), "hello");
}

type Descriptor = (u64, u32, u16, u16);

pub fn rings() {
    let beyond = MEMORY + 0x10_0000;
    let request = (REQUEST, 48, NEXT, 1);
    let cases: [(&str, &[Descriptor], u16); 12] = [
        ("head beyond the table", &[request], QUEUE_SIZE),
        ("head far beyond the table", &[request], u16::MAX),
        ("next beyond the table", &[(REQUEST, 48, NEXT, 500)], 0),
        ("a chain that bites its tail", &[(REQUEST, 48, NEXT, 0)], 0),
        ("a chain of two that bites its tail", &[(REQUEST, 24, NEXT, 1), (REQUEST + 24, 24, NEXT, 0)], 0),
        ("a request outside of the memory", &[(beyond, 48, NEXT, 1), (REPLY, 4096, WRITE, 0)], 0),
        ("a reply outside of the memory", &[request, (beyond, 4096, WRITE, 0)], 0),
        ("a request over the end of the address space", &[(u64::MAX - 8, 48, NEXT, 1), (REPLY, 4096, WRITE, 0)], 0),
        ("four gigabytes of request", &[(REQUEST, u32::MAX, NEXT, 1), (REPLY, 4096, WRITE, 0)], 0),
        ("nothing", &[(REQUEST, 0, 0, 0)], 0),
        ("a reply before its request", &[(REPLY, 4096, WRITE | NEXT, 1), (REQUEST, 48, 0, 0)], 0),
        ("an indirect table in nowhere", &[(beyond, 16, INDIRECT, 0)], 0),
    ];
    for (name, descriptors, head) in cases {
        rests(name, |guest| guest.chain(descriptors, head));
    }
    rests("an index that is far ahead", |guest| guest.advance(QUEUE_SIZE + 5));
    rests("an index that runs backwards", |guest| guest.advance(u16::MAX - 3));
    // The queue's own question whether there is more, which such an index answers with yes for ever.
    let mut stage = Stage::new();
    let mut guest = Guest::connect_with(stage.socket.take().unwrap(), VERSION_1 | PROTOCOL_FEATURES | EVENT_INDEX);
    assert_ne!(guest.features & EVENT_INDEX, 0);
    guest.advance(QUEUE_SIZE + 5);
    assert_eq!(stage.ended().code(), Some(1));
    says(&mut stage, "a queue of the guest makes no sense");
}

/// Requests whose answer has nowhere to go, or not enough room.
pub fn answers_without_room() {
    for request in [op::READ, op::READDIR, op::READDIRPLUS, op::LOOKUP, op::INIT] {
        for room in [None, Some(0), Some(1), Some(15)] {
            let mut stage = Stage::new();
            let mut guest = stage.guest();
            guest.put(&words(&[80, request, 77, 0, ROOT as u32, 0, 0, 0, 1, 0]), REQUEST);
            guest.put(&[0; 40], REQUEST + 40);
            match room {
                None => guest.chain(&[(REQUEST, 80, 0, 0)], 0),
                Some(room) => guest.chain(&[(REQUEST, 80, NEXT, 1), (REPLY, room, WRITE, 0)], 0),
            }
            assert_eq!(stage.ended().code(), Some(1), "{request} {room:?}: {:?}", stage.server.stderr_tail());
            says(&mut stage, &format!("request {request} has room for {} bytes of answer", room.unwrap_or(0)));
        }
    }
}

/// The last thing that the server said.
#[track_caller]
fn says(stage: &mut Stage, words: &str) {
    let said = stage.server.stderr_tail();
    assert!(said.last().is_some_and(|line| line.contains(words)), "{said:?}");
}

/// Does something to a server's ring, and waits until it has ended, or waits for the next request with all threads asleep, and has taken
/// no more memory than that of the guest.
fn rests(name: &str, wrong: impl FnOnce(&mut Guest)) {
    let mut stage = Stage::new();
    let mut guest = stage.guest();
    wrong(&mut guest);
    let pid = stage.server.pid();
    let end = Instant::now() + Duration::from_secs(10);
    let mut asleep = 0;
    while asleep < 5 {
        if let Some(status) = stage.server.try_wait().unwrap() {
            // It says why; it is no crash.
            assert_eq!(status.code(), Some(1), "{name}: {status}, {:?}", stage.server.stderr_tail());
            assert!(!stage.server.stderr_tail().is_empty(), "{name}");
            return;
        }
        assert!(Instant::now() < end, "{name}: the server does not come to rest");
        std::thread::sleep(Duration::from_millis(20));
        asleep = if is_asleep(pid) { asleep + 1 } else { 0 };
    }
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let peak: u64 = peak.trim().trim_end_matches(" kB").parse().unwrap();
    assert!(peak < 64 << 10, "{name}: {peak} KiB");
    drop(guest);
    assert!(stage.ended().code().is_some(), "{name}");
}

fn is_asleep(pid: u32) -> bool {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let mut stats = threads.filter_map(|thread| fs::read_to_string(thread.path().join("stat")).ok());
    stats.all(|stat| stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('S')))
}
