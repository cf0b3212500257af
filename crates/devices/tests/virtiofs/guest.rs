//! A guest in miniature: a vhost-user front end with one virtqueue, in which it puts one FUSE request at a time. Memory is
//! a memfd, written and read as a file.

use std::{
    fs::File,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::{fs::FileExt, net::UnixStream},
    },
    time::Duration,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec},
    fs::MemfdFlags,
};
use vhost::{
    VhostBackend, VhostUserMemoryRegionInfo, VringConfigData,
    vhost_user::{Frontend, VhostUserFrontend, message::VhostUserProtocolFeatures},
};
use vmm_sys_util::eventfd::EventFd;

pub const MEMORY: u64 = 4 << 20;
/// Where the memory lies for the front end. Nothing is mapped there; vhost-user wants queues given as such addresses.
const BASE: u64 = 0x7000_0000;
pub const QUEUE_SIZE: u16 = 16;
/// Queue 0 is the one for urgent requests, 1 the one used here. Each has its own 16 KiB of memory.
const QUEUES: u64 = 2;
const DESCRIPTORS: u64 = 0;
const AVAILABLE: u64 = 0x1000;
const USED: u64 = 0x2000;
pub const REQUEST: u64 = 0x1_0000;
pub const REPLY: u64 = 0x10_0000;
pub const REPLY_SIZE: u32 = 0x10_0000;
const DEADLINE: Duration = Duration::from_secs(10);

pub const VERSION_1: u64 = 1 << 32;
pub const PROTOCOL_FEATURES: u64 = 1 << 30;
/// Both ends say at which request they want to be woken.
pub const EVENT_INDEX: u64 = 1 << 29;

/// The number of a FUSE request (`linux/fuse.h`).
pub mod op {
    pub const LOOKUP: u32 = 1;
    pub const FORGET: u32 = 2;
    pub const READLINK: u32 = 5;
    pub const SYMLINK: u32 = 6;
    pub const MKNOD: u32 = 8;
    pub const MKDIR: u32 = 9;
    pub const UNLINK: u32 = 10;
    pub const RENAME: u32 = 12;
    pub const LINK: u32 = 13;
    pub const OPEN: u32 = 14;
    pub const READ: u32 = 15;
    pub const WRITE: u32 = 16;
    pub const RELEASE: u32 = 18;
    pub const SETXATTR: u32 = 21;
    pub const GETXATTR: u32 = 22;
    pub const INIT: u32 = 26;
    pub const READDIR: u32 = 28;
    pub const CREATE: u32 = 35;
    pub const READDIRPLUS: u32 = 44;
}

pub const ROOT: u64 = 1;

/// Flags of a descriptor.
pub const NEXT: u16 = 1;
pub const WRITE: u16 = 2;
pub const INDIRECT: u16 = 4;

pub struct Guest {
    pub features: u64,
    frontend: Frontend,
    memory: File,
    /// One per queue.
    kicks: [EventFd; 2],
    call: EventFd,
    sent: u16,
    pub uid: u32,
    /// Flags of the reply to INIT.
    pub negotiated: u32,
}

/// An entry or an opened file, as far as tests look at it.
#[derive(Debug, Clone, Copy)]
pub struct Entry {
    pub node: u64,
    pub mode: u32,
    pub flags: u32,
}

/// The error number that a request was answered with; 0 when the server has gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Errno(pub i32);

type Result<T> = std::result::Result<T, Errno>;

impl Guest {
    /// Goes through the vhost-user handshake and FUSE_INIT.
    pub fn boot(socket: OwnedFd) -> Self {
        let mut guest = Self::connect(socket);
        // Version 7.36, and every feature; bit 30 says that there are more than 32.
        let all = u32::MAX >> 1;
        let init = [7, 36, 0x2_0000, all].into_iter().chain([u32::MAX]).chain([0; 11]);
        let reply = guest.request(op::INIT, 0, &init.flat_map(u32::to_le_bytes).collect::<Vec<_>>()).unwrap();
        guest.negotiated = u32_at(&reply, 12);
        guest
    }

    /// Goes through the vhost-user handshake.
    pub fn connect(socket: OwnedFd) -> Self {
        Self::connect_with(socket, VERSION_1 | PROTOCOL_FEATURES)
    }

    /// The same with these features, as far as they are offered.
    pub fn connect_with(socket: OwnedFd, wanted: u64) -> Self {
        let mut frontend = Frontend::from_stream(UnixStream::from(socket), QUEUES);
        frontend.set_owner().unwrap();
        let features = frontend.get_features().unwrap();
        frontend.set_features(features & wanted).unwrap();
        let protocol = frontend.get_protocol_features().unwrap();
        frontend.set_protocol_features(protocol & VhostUserProtocolFeatures::MQ).unwrap();

        let memory = File::from(rustix::fs::memfd_create("guest", MemfdFlags::CLOEXEC).unwrap());
        memory.set_len(MEMORY).unwrap();
        let region = VhostUserMemoryRegionInfo {
            guest_phys_addr: 0,
            memory_size: MEMORY,
            userspace_addr: BASE,
            mmap_offset: 0,
            mmap_handle: memory.as_raw_fd(),
        };
        frontend.set_mem_table(&[region]).unwrap();
        let kicks = [EventFd::new(0).unwrap(), EventFd::new(0).unwrap()];
        let call = EventFd::new(0).unwrap();
        for (queue, kick) in kicks.iter().enumerate() {
            let base = BASE + 0x4000 * (1 - queue as u64);
            frontend.set_vring_num(queue, QUEUE_SIZE).unwrap();
            let addresses = VringConfigData {
                queue_max_size: QUEUE_SIZE,
                queue_size: QUEUE_SIZE,
                flags: 0,
                desc_table_addr: base + DESCRIPTORS,
                used_ring_addr: base + USED,
                avail_ring_addr: base + AVAILABLE,
                log_addr: None,
            };
            frontend.set_vring_addr(queue, &addresses).unwrap();
            frontend.set_vring_base(queue, 0).unwrap();
            frontend.set_vring_call(queue, &call).unwrap();
            frontend.set_vring_kick(queue, kick).unwrap();
            frontend.set_vring_enable(queue, true).unwrap();
        }
        Self { features, frontend, memory, kicks, call, sent: 0, uid: 0, negotiated: 0 }
    }

    pub fn put(&self, bytes: &[u8], address: u64) {
        self.memory.write_all_at(bytes, address).unwrap();
    }

    fn send(&mut self, opcode: u32, node: u64, body: &[u8]) {
        let length = 40 + body.len() as u32;
        let mut request = Vec::new();
        for word in [length, opcode, 77, 0, node as u32, (node >> 32) as u32, self.uid, self.uid, 1, 0] {
            request.extend(word.to_le_bytes());
        }
        request.extend(body);
        self.put(&request, REQUEST);
        self.chain(&[(REQUEST, length, NEXT, 1), (REPLY, REPLY_SIZE, WRITE, 0)], 0);
    }

    /// Puts descriptors (address, length, flags, next) into the table and makes the chain that begins at `head` available.
    pub fn chain(&mut self, descriptors: &[(u64, u32, u16, u16)], head: u16) {
        for (at, (address, length, flags, next)) in (DESCRIPTORS..).step_by(16).zip(descriptors) {
            let fields = [&address.to_le_bytes()[..], &length.to_le_bytes(), &flags.to_le_bytes(), &next.to_le_bytes()];
            self.put(&fields.concat(), at);
        }
        self.put(&head.to_le_bytes(), AVAILABLE + 4 + 2 * u64::from(self.sent % QUEUE_SIZE));
        self.advance(1);
    }

    /// Says that so many more chains are available.
    pub fn advance(&mut self, chains: u16) {
        self.sent = self.sent.wrapping_add(chains);
        self.put(&self.sent.to_le_bytes(), AVAILABLE + 2);
        self.kicks[1].write(1).unwrap();
    }

    /// Sends a request and returns what follows the header of the reply.
    pub fn request(&mut self, opcode: u32, node: u64, body: &[u8]) -> Result<Vec<u8>> {
        self.send(opcode, node, body);
        if !self.answered() {
            return Err(Errno(0));
        }
        let mut header = [0; 16];
        self.memory.read_exact_at(&mut header, REPLY).unwrap();
        match -(u32_at(&header, 4) as i32) {
            0 => {
                let mut reply = vec![0; u32_at(&header, 0) as usize - 16];
                self.memory.read_exact_at(&mut reply, REPLY + 16).unwrap();
                Ok(reply)
            }
            error => Err(Errno(error)),
        }
    }

    /// Waits for the used ring to catch up; false when the server closes the connection instead.
    fn answered(&self) -> bool {
        let timeout = Timespec { tv_sec: DEADLINE.as_secs() as i64, tv_nsec: 0 };
        loop {
            let mut used = [0; 2];
            self.memory.read_exact_at(&mut used, USED + 2).unwrap();
            if u16::from_le_bytes(used) == self.sent {
                return true;
            }
            let mut events = [
                PollFd::from_borrowed_fd(as_fd(&self.call), PollFlags::IN),
                PollFd::from_borrowed_fd(as_fd(&self.frontend), PollFlags::RDHUP),
            ];
            let ready = rustix::event::poll(&mut events, Some(&timeout)).unwrap();
            assert!(ready > 0, "no answer within {DEADLINE:?}");
            if events[1].revents().intersects(PollFlags::HUP | PollFlags::RDHUP | PollFlags::ERR) {
                return false;
            }
            self.call.read().unwrap();
        }
    }

    pub fn lookup(&mut self, parent: u64, name: &str) -> Result<Entry> {
        let reply = self.request(op::LOOKUP, parent, &name_bytes(name))?;
        Ok(entry(&reply))
    }

    /// Looks up every name of `path` in turn, from the root.
    pub fn walk(&mut self, path: &str) -> Result<Entry> {
        let mut found = Entry { node: ROOT, mode: 0, flags: 0 };
        for name in path.split('/') {
            found = self.lookup(found.node, name)?;
        }
        Ok(found)
    }

    /// The handle, and the flags of the reply.
    pub fn open(&mut self, node: u64, flags: i32) -> Result<(u64, u32)> {
        let body = [flags as u32, 0].into_iter().flat_map(u32::to_le_bytes).collect::<Vec<_>>();
        let reply = self.request(op::OPEN, node, &body)?;
        Ok((u64_at(&reply, 0), u32_at(&reply, 8)))
    }

    pub fn read(&mut self, node: u64, handle: u64) -> Result<Vec<u8>> {
        let body = [handle, 0, 4096, 0, 0].into_iter().flat_map(u64::to_le_bytes).collect::<Vec<_>>();
        self.request(op::READ, node, &body)
    }

    pub fn write(&mut self, node: u64, handle: u64, data: &[u8]) -> Result<u32> {
        let mut body: Vec<u8> = [handle, 0, data.len() as u64, 0, 0].into_iter().flat_map(u64::to_le_bytes).collect();
        body.extend(data);
        Ok(u32_at(&self.request(op::WRITE, node, &body)?, 0))
    }

    /// Creates and opens; the entry and the handle.
    pub fn create(&mut self, parent: u64, name: &str, mode: u32) -> Result<(Entry, u64)> {
        let flags = (libc::O_RDWR | libc::O_CREAT | libc::O_EXCL) as u32;
        let mut body: Vec<u8> = [flags, mode, 0, 0].into_iter().flat_map(u32::to_le_bytes).collect();
        body.extend(name_bytes(name));
        let reply = self.request(op::CREATE, parent, &body)?;
        Ok((entry(&reply), u64_at(&reply, 128)))
    }

    pub fn read_file(&mut self, path: &str) -> Result<String> {
        let found = self.walk(path)?;
        let (handle, _) = self.open(found.node, libc::O_RDONLY)?;
        Ok(String::from_utf8(self.read(found.node, handle)?).unwrap())
    }

    /// A request that gets no answer.
    pub fn forget(&mut self, node: u64, times: u64) {
        self.send(op::FORGET, node, &times.to_le_bytes());
        assert!(self.answered());
    }
}

fn as_fd(of: &impl AsRawFd) -> std::os::fd::BorrowedFd<'_> {
    // SAFETY: the descriptor is open for as long as its owner, which is borrowed for as long as the result.
    unsafe { std::os::fd::BorrowedFd::borrow_raw(of.as_raw_fd()) }
}

/// A string as FUSE wants it.
pub fn name_bytes(name: &str) -> Vec<u8> {
    [name.as_bytes(), &[0]].concat()
}

fn entry(reply: &[u8]) -> Entry {
    let attributes = 40;
    Entry { node: u64_at(reply, 0), mode: u32_at(reply, attributes + 60), flags: u32_at(reply, attributes + 84) }
}

pub fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

pub fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}
