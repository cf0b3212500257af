//! The file server: requests in the order that a guest likes, and virtqueues in the memory that it writes.

use std::{io, sync::atomic::Ordering};

use devices::virtiofs::{ThriftyFs, answer};
use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueT};
use virtiofsd::server::Server;
use vm_memory::{
    Bytes as _, GuestAddress, GuestAddressSpace, GuestMemoryAtomic, GuestMemoryLoadGuard, GuestMemoryMmap,
};

use crate::{bytes::Bytes, place};

type Memory = GuestMemoryMmap<vhost_user_backend::bitmap::BitmapMmapRegion>;

const MEMORY: usize = 128 << 10;
const QUEUE_SIZE: u16 = 16;
const AVAILABLE: u64 = 0x1000;
const USED: u64 = 0x2000;
const REQUEST: u64 = 0x4000;
const REPLY: u64 = 0x1_0000;
const REPLY_SIZE: u32 = 0x1_0000;
/// Requests of one input.
const MOST_REQUESTS: usize = 200;
/// Chains that are taken from a queue that an input describes. Each may have as many pieces as the queue.
const MOST_CHAINS: usize = 16;

/// What a request consists of: `n` a name, `h` a handle, `w` and `l` numbers of 32 and 64 bits, `N` an inode, `r` anything.
/// (`linux/fuse.h`.)
const REQUESTS: [(u32, &str); 46] = [
    (1, "n"),
    (2, "l"),
    (3, "wwh"),
    (4, "wwhlllllwwwwwwww"),
    (5, ""),
    (6, "nn"),
    (8, "wwwwn"),
    (9, "wwn"),
    (10, "n"),
    (11, "n"),
    (12, "Nnn"),
    (13, "Nn"),
    (14, "ww"),
    (15, "hlwwlww"),
    (16, "hlwwlwwr"),
    (17, ""),
    (18, "hwwl"),
    (20, "hww"),
    (21, "wwwwnr"),
    (22, "wwn"),
    (23, "ww"),
    (24, "n"),
    (25, "hwwl"),
    (26, "wwwwwr"),
    (27, "ww"),
    (28, "hlwwlww"),
    (29, "hwwl"),
    (30, "hww"),
    (31, "r"),
    (32, "r"),
    (34, "ww"),
    (35, "wwwwn"),
    (36, "l"),
    (37, "lww"),
    (38, ""),
    (39, "r"),
    (40, "r"),
    (42, "wwNlNl"),
    (43, "hllww"),
    (44, "hlwwlww"),
    (45, "Nwwnn"),
    (46, "hlww"),
    (47, "hlNhlll"),
    (48, "r"),
    (50, "l"),
    (51, "wwwwn"),
];

/// Requests that are answered by an inode, and those by a handle.
const GIVE_INODES: [u32; 6] = [1, 6, 8, 9, 13, 35];
const GIVE_HANDLES: [u32; 2] = [14, 27];
const INIT: u32 = 26;

const NAMES: [&str; 10] = ["c1", "a", "b", "file", "..", ".", "", "a/b", "security.x", "user.x"];

fn memory() -> GuestMemoryAtomic<Memory> {
    GuestMemoryAtomic::new(Memory::from_ranges(&[(GuestAddress(0), MEMORY)]).expect("memory"))
}

/// A server and what a guest has of it.
struct Guest {
    server: Server<ThriftyFs>,
    memory: GuestMemoryAtomic<Memory>,
    queue: Queue,
    sent: u16,
    inodes: Vec<u64>,
    handles: Vec<u64>,
}

impl Guest {
    fn new(file_system: ThriftyFs) -> Self {
        let mut queue = Queue::new(QUEUE_SIZE).expect("a queue");
        queue.set_size(QUEUE_SIZE);
        queue.set_desc_table_address(Some(0), Some(0));
        queue.set_avail_ring_address(Some(AVAILABLE as u32), Some(0));
        queue.set_used_ring_address(Some(USED as u32), Some(0));
        queue.set_ready(true);
        Self { server: Server::new(file_system), memory: memory(), queue, sent: 0, inodes: vec![1], handles: vec![0] }
    }

    /// One request, as a kernel would put it into the queue.
    fn request(&mut self, opcode: u32, inode: u64, user: u32, body: &[u8]) {
        let memory = self.memory.memory();
        let (length, unique) = (40 + body.len() as u32, u64::from(self.sent) + 7);
        let mut request = Vec::new();
        let unique_words = [unique as u32, 0];
        let words = [length, opcode].into_iter().chain(unique_words);
        let words = words.chain([inode as u32, (inode >> 32) as u32, user, user, 1, 0]);
        words.for_each(|word| request.extend(word.to_le_bytes()));
        request.extend(body);
        memory.write_slice(&request, GuestAddress(REQUEST)).expect("room for a request");
        memory.write_slice(&[0; 24], GuestAddress(REPLY)).expect("room for a reply");
        for (at, (address, length, flags, next)) in
            [(REQUEST, length, 1_u16, 1_u16), (REPLY, REPLY_SIZE, 2, 0)].into_iter().enumerate()
        {
            let fields = [&address.to_le_bytes()[..], &length.to_le_bytes(), &flags.to_le_bytes(), &next.to_le_bytes()];
            memory.write_slice(&fields.concat(), GuestAddress(16 * at as u64)).expect("room for a descriptor");
        }
        let slot = AVAILABLE + 4 + 2 * u64::from(self.sent % QUEUE_SIZE);
        memory.write_obj(0_u16, GuestAddress(slot)).expect("room in the ring");
        self.sent = self.sent.wrapping_add(1);
        memory.store(self.sent, GuestAddress(AVAILABLE + 2), Ordering::Release).expect("room in the ring");
        drop(memory);
        let Some(Ok(written)) = serve(&self.server, &self.memory, &mut self.queue).pop() else { return };
        self.check(opcode, unique, written);
    }

    /// What is written is one whole reply to just this request.
    fn check(&mut self, opcode: u32, unique: u64, written: usize) {
        if written == 0 {
            return;
        }
        let mut reply = [0; 24];
        self.memory.memory().read_slice(&mut reply, GuestAddress(REPLY)).expect("a reply");
        let word = |at: usize| u32::from_le_bytes(reply[at..at + 4].try_into().unwrap());
        assert_eq!(word(0) as usize, written, "the reply to {opcode} is of another length than it says");
        let error = word(4).cast_signed();
        assert!((-4095..=0).contains(&error), "the error {error} to {opcode}");
        assert_eq!(u64::from(word(8)), unique, "a reply to another request than {opcode}");
        let given = u64::from_le_bytes(reply[16..].try_into().unwrap());
        if error == 0 && GIVE_INODES.contains(&opcode) && self.inodes.len() < 32 {
            self.inodes.push(given);
        }
        if error == 0 && GIVE_HANDLES.contains(&opcode) && self.handles.len() < 32 {
            self.handles.push(given);
        }
    }

    /// The greeting of a Linux: version 7.36, and every feature.
    fn greet(&mut self) {
        let words = [7, 36, 0x2_0000, u32::MAX >> 1, u32::MAX].into_iter().chain([0; 11]);
        self.request(INIT, 0, 0, &words.flat_map(u32::to_le_bytes).collect::<Vec<_>>());
    }

    /// A body of some form; its numbers are what the guest knows, or anything.
    fn body(&self, form: &str, bytes: &mut Bytes<'_>) -> Vec<u8> {
        let mut body = Vec::new();
        for part in form.chars() {
            let choice = bytes.u8();
            let among = |known: &[u64]| known[usize::from(choice) % known.len()];
            match part {
                'n' => {
                    match NAMES.get(usize::from(choice)) {
                        Some(name) => body.extend(name.bytes()),
                        None => body.extend(bytes.take(usize::from(choice & 31))),
                    }
                    body.push(0);
                }
                'r' => body.extend(bytes.take(choice.into())),
                'h' | 'N' if choice < 240 => {
                    body.extend(among(if part == 'h' { &self.handles } else { &self.inodes }).to_le_bytes());
                }
                'w' if choice < 200 => body.extend(u32::from(choice).to_le_bytes()),
                'w' => body.extend(bytes.take(4)),
                _ if choice < 200 => body.extend(u64::from(choice).to_le_bytes()),
                _ => body.extend(bytes.take(8)),
            }
        }
        body
    }
}

/// Serves what is in a queue as the product's server does: until something makes no sense, which would end it.
fn serve(
    server: &Server<ThriftyFs>,
    memory: &GuestMemoryAtomic<Memory>,
    queue: &mut Queue,
) -> Vec<Result<usize, io::Error>> {
    let mut served = Vec::new();
    let Ok(chains) = queue.iter(memory.memory()) else { return served };
    let chains: Vec<_> = chains.take(MOST_CHAINS).collect();
    for chain in chains {
        let (head, room) = (chain.head_index(), room(chain.clone()));
        let guard = memory.memory();
        let answered = answer(server, &guard, chain);
        if let Ok(written) = &answered {
            assert!(*written as u64 <= room, "{written} bytes of answer where {room} were to be had");
            let _ = queue.add_used(&*guard, head, u32::try_from(*written).unwrap_or(u32::MAX));
        }
        let is_over = answered.is_err();
        served.push(answered);
        if is_over {
            break;
        }
    }
    served
}

/// Bytes that an answer may have.
fn room(chain: DescriptorChain<GuestMemoryLoadGuard<Memory>>) -> u64 {
    chain.writable().map(|descriptor| u64::from(descriptor.len())).sum()
}

pub(crate) fn requests(data: &[u8]) {
    place::with_file_system(data, |data, file_system| {
        let mut bytes = Bytes(data);
        let mut guest = Guest::new(file_system);
        if bytes.u8() & 0x80 == 0 {
            guest.greet();
        }
        for _ in 0..MOST_REQUESTS {
            if bytes.is_empty() {
                return;
            }
            let (kind, inode) = (bytes.u8(), bytes.u8());
            let (opcode, form) = REQUESTS.get(usize::from(kind & 0x3f)).copied().unwrap_or((kind.into(), "r"));
            let inode = match inode {
                0xff => u64::MAX,
                inode => guest.inodes[usize::from(inode) % guest.inodes.len()],
            };
            let body = guest.body(form, &mut bytes);
            guest.request(opcode, inode, u32::from(kind >> 7) * 1000, &body);
        }
    });
}

pub(crate) fn rings(data: &[u8]) {
    place::with_file_system(data, |data, file_system| {
        let mut bytes = Bytes(data);
        let mut guest = Guest::new(file_system);
        guest.greet();
        let memory = memory();
        let mut queue = Queue::new(1024).expect("a queue");
        queue.set_size(1 << (bytes.u8() % 11));
        let event_index = bytes.u8() & 1 != 0;
        queue.set_event_idx(event_index);
        // Almost all of what a guest may say of them leads into memory.
        let mut address = || (u32::from(bytes.u16()) * 2, u32::from(bytes.u8() == 0xff));
        let [table, available, used] = [address(), address(), address()];
        queue.set_desc_table_address(Some(table.0), Some(table.1));
        queue.set_avail_ring_address(Some(available.0), Some(available.1));
        queue.set_used_ring_address(Some(used.0), Some(used.1));
        queue.set_next_avail(bytes.u16());
        queue.set_ready(true);
        // Pieces of memory, each with its place; a piece may lie over another.
        while !bytes.is_empty() {
            let (at, length) = (u64::from(bytes.u16()) * 2, bytes.u8().into());
            let _ = memory.memory().write(bytes.take(length), GuestAddress(at));
        }
        for _ in 0..3 {
            if queue.is_valid(&*memory.memory()) {
                serve(&guest.server, &memory, &mut queue);
                let _ = queue.needs_notification(&*memory.memory());
                let _ = queue.enable_notification(&*memory.memory());
            }
        }
    });
}
