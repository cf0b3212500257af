//! The file server's connection: messages of vhost-user with descriptors, over a socket, to the product's own loop.
//!
//! No queue is ever kicked: what a queue holds is tried by `virtiofs_rings`, and one that makes no sense ends the process.

use std::{
    fs::File,
    io::{IoSlice, Read},
    net::Shutdown,
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::{UnixListener, UnixStream},
    },
};

use devices::virtiofs::{Bare, Memory};
use rustix::{
    event::EventfdFlags,
    fs::MemfdFlags,
    net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags},
};
use vm_memory::{
    Address, Bytes as _, GuestAddressSpace, GuestMemory, GuestMemoryMmap, GuestMemoryRegion, MemoryRegionAddress,
};

use crate::{bytes::Bytes, place};

/// Messages of one input: their replies fit into the socket, so that nobody need read them meanwhile.
const MOST_MESSAGES: usize = 60;
const VERSION: u32 = 1;
const REPLY: u32 = 4;
const NEED_REPLY: u32 = 8;
const SET_DEVICE_STATE_FD: u32 = 42;
/// All features of the protocol that there are.
const PROTOCOL_FEATURES: u64 = (1 << 22) - 1;
/// Virtio 1, and features of the protocol.
const FEATURES: u64 = 1 << 32 | 1 << 30;

/// What a message consists of: `w` and `l` numbers of 32 and 64 bits, `q` a queue, `p` pages, `m` regions preceded by their number,
/// `f` a descriptor, `r` anything. (`docs/interop/vhost-user.rst` of QEMU.)
const MESSAGES: [(u32, &str); 45] = [
    (0, "r"),
    (1, ""),
    (2, "l"),
    (3, ""),
    (4, ""),
    (5, "m"),
    (6, "ppf"),
    (7, "f"),
    (8, "qw"),
    (9, "qwpppl"),
    (10, "qw"),
    (11, "qw"),
    (12, "qwf"),
    (13, "qwf"),
    (14, "qwf"),
    (15, ""),
    (16, "l"),
    (17, ""),
    (18, "qw"),
    (19, "l"),
    (20, "w"),
    (21, "f"),
    (22, "ll"),
    (23, "pppl"),
    (24, "wwwr"),
    (25, "wwwr"),
    (26, "lf"),
    (27, "llr"),
    (28, "f"),
    (29, "f"),
    (30, ""),
    (31, "lllwwf"),
    (32, "lllwwf"),
    (33, "f"),
    (34, ""),
    (35, "l"),
    (36, ""),
    (37, "lppppf"),
    (38, "lpppp"),
    (39, "l"),
    (40, ""),
    (41, "r"),
    (SET_DEVICE_STATE_FD, "wwf"),
    (43, ""),
    (44, ""),
];

/// A message to be.
#[derive(Default)]
struct Message {
    body: Vec<u8>,
    files: usize,
}

impl Message {
    fn of(form: &str, bytes: &mut Bytes<'_>) -> Message {
        let mut message = Message::default();
        for part in form.chars() {
            message.part(part, bytes);
        }
        message
    }

    fn part(&mut self, part: char, bytes: &mut Bytes<'_>) {
        if part == 'f' {
            self.files += 1;
            return;
        }
        let choice = bytes.u8();
        match part {
            'r' => self.body.extend(bytes.take(choice.into())),
            'm' => {
                let regions = choice % 9;
                self.body.extend([regions, 0, 0, 0, 0, 0, 0, 0]);
                for _ in 0..usize::from(regions) * 4 {
                    self.part('p', bytes);
                }
                self.files += usize::from(regions);
            }
            'q' | 'w' if choice < 240 => self.body.extend(u32::from(choice).to_le_bytes()),
            'q' | 'w' => self.body.extend(bytes.take(4)),
            'p' if choice < 240 => self.body.extend((u64::from(choice) << 12).to_le_bytes()),
            _ if choice < 240 => self.body.extend(u64::from(choice).to_le_bytes()),
            _ => self.body.extend(bytes.take(8)),
        }
    }
}

/// The front end: what it has sent, and the other ends of that, which keep everything silent.
struct FrontEnd {
    socket: UnixStream,
    kept: Vec<OwnedFd>,
}

impl FrontEnd {
    fn send(&self, code: u32, flags: u32, size: u32, body: &[u8], files: &[OwnedFd]) {
        let header = [code, flags, size].map(u32::to_le_bytes).concat();
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(16))];
        let mut with = SendAncillaryBuffer::new(&mut space);
        let files: Vec<_> = files.iter().map(AsFd::as_fd).collect();
        if !files.is_empty() {
            assert!(with.push(SendAncillaryMessage::ScmRights(&files)));
        }
        let sent = rustix::net::sendmsg(
            &self.socket,
            &[IoSlice::new(&header), IoSlice::new(body)],
            &mut with,
            SendFlags::NOSIGNAL,
        );
        assert_eq!(sent.expect("room in the socket"), header.len() + body.len());
    }

    fn number(&self, code: u32, number: u64) {
        self.send(code, VERSION, 8, &number.to_le_bytes(), &[]);
    }

    /// What QEMU says first; with it every feature there is, offered or not.
    fn greet(&self) {
        self.send(1, VERSION, 0, &[], &[]);
        self.number(2, FEATURES);
        self.send(15, VERSION, 0, &[], &[]);
        self.number(16, PROTOCOL_FEATURES);
    }

    /// A descriptor: mostly memory, of a whole number of pages or not.
    fn file(&mut self, kind: u8) -> OwnedFd {
        match kind {
            0..0x80 => {
                let memory = rustix::fs::memfd_create("memory", MemfdFlags::CLOEXEC).expect("memory");
                let odd = u64::from(kind & 0x40) * 3;
                rustix::fs::ftruncate(&memory, (u64::from(kind & 0x3f) << 12) + odd).expect("memory");
                memory
            }
            0x80..0xc0 => rustix::event::eventfd(0, EventfdFlags::CLOEXEC).expect("an eventfd"),
            0xc0..0xe0 => {
                let (theirs, ours) = UnixStream::pair().expect("a pair of sockets");
                self.kept.push(ours.into());
                theirs.into()
            }
            0xe0..0xf0 => {
                let (theirs, ours) = rustix::pipe::pipe().expect("a pipe");
                self.kept.push(ours);
                theirs
            }
            0xf0.. => File::open("/c1/file").expect("a file").into(),
        }
    }

    fn message(&mut self, bytes: &mut Bytes<'_>) {
        let kind = bytes.u8();
        let flags = VERSION | if kind & 0x40 != 0 { NEED_REPLY } else { 0 };
        let Some(&(code, form)) = MESSAGES.get(usize::from(kind & 0x3f)) else {
            // Not even a header.
            let (code, flags, size) = (bytes.u16(), bytes.u16(), bytes.u16());
            let length = bytes.u8().into();
            return self.send(code.into(), flags.into(), size.into(), bytes.take(length), &[]);
        };
        let Message { mut body, mut files } = Message::of(form, bytes);
        // Mostly as many descriptors as belong to it, and the length that it has.
        if kind & 0x80 != 0 {
            files = usize::from(bytes.u8() % 16);
            body.truncate(body.len() - usize::from(bytes.u8() & 7).min(body.len()));
        }
        let files: Vec<_> = (0..files).map(|_| self.file(bytes.u8())).collect();
        self.send(code, flags, body.len() as u32, &body, &files);
    }

    /// Everything that was answered is a whole reply.
    fn check_replies(mut self) {
        let mut replies = Vec::new();
        // That it does not end well is no matter: the server may not have read all.
        let _ = self.socket.read_to_end(&mut replies);
        let mut rest = &replies[..];
        while !rest.is_empty() {
            let word = |at: usize| u32::from_le_bytes(rest[at..at + 4].try_into().unwrap());
            let (code, flags, size) = (word(0), word(4), word(8) as usize);
            assert_eq!(flags & (REPLY | 3), REPLY | VERSION, "the reply to {code}");
            let body = &rest[12..12 + size];
            if code == SET_DEVICE_STATE_FD {
                assert_ne!(body[0], 0, "the server lets itself be moved");
            }
            rest = &rest[12 + size..];
        }
    }
}

/// What a front end's memory must be to be taken.
fn check_memory(memory: &Memory) {
    let memory = memory.memory();
    let mut end = 0;
    for region in memory.iter() {
        let start = region.start_addr().raw_value();
        assert!(start >= end, "memory at {start:#x} lies in other memory");
        end = start.checked_add(region.len()).expect("memory within the addresses that there are");
        let placed = region.file_offset().expect("a file");
        let length = placed.file().metadata().expect("a file").len();
        assert!(placed.start().checked_add(region.len()).is_some_and(|end| end <= length), "memory beyond its file");
        for at in [0, region.len() - 1] {
            region.read_obj::<u8>(MemoryRegionAddress(at)).expect("memory");
        }
    }
}

pub(crate) fn messages(data: &[u8]) {
    place::with_directory(data, |data, bare| bare.apart(data, talk).expect("a thread"));
}

fn talk(bare: &Bare, data: &[u8]) {
    let mut bytes = Bytes(data);
    let listener = UnixListener::bind("/c1/socket").expect("a socket");
    let socket = UnixStream::connect("/c1/socket").expect("a connection");
    let mut front_end = FrontEnd { socket, kept: Vec::new() };
    if bytes.u8() & 0x80 == 0 {
        front_end.greet();
    }
    for _ in 0..MOST_MESSAGES {
        if bytes.is_empty() {
            break;
        }
        front_end.message(&mut bytes);
    }
    front_end.socket.shutdown(Shutdown::Write).expect("an end");
    let memory = Memory::new(GuestMemoryMmap::new());
    match bare.serve(place::FILES, listener, memory.clone()) {
        // What it had been told last may be what it refused.
        Err(error) => assert!(!error.to_string().contains("wait for daemon"), "the server has panicked: {error}"),
        Ok(()) => check_memory(&memory),
    }
    front_end.check_replies();
}
