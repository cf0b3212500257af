//! The init of a guest that lies to its host. `hostile=LIE` on the kernel's command line says how (see [`Lie`]).
//!
//! It speaks the channel's protocol by hand, because no honest implementation can say these things, and stays alive: whatever
//! it does, it is the host that has to end it.

mod wire;

use std::{
    collections::HashMap,
    fs,
    io::{self, Write},
    thread,
    time::Duration,
};

use rustix::mount::{MountFlags, mount};
use wire::{ACK, FIN, Frame, RST, SYN, Wire};

/// More than any window or frame may have, bytes.
const TOO_MUCH: usize = 300 << 10;
/// A reply of this length is just allowed.
const LONGEST_REPLY: u32 = 1 << 20;

/// What a guest does wrong. The first ones begin with the greeting, those with a container behave until they are to create one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lie {
    /// A reply is announced that is larger than any may be.
    Oversized,
    /// A reply ends in its middle.
    Truncated,
    /// A reply is no JSON.
    Garbage,
    /// A reply is to something else.
    Wrong,
    /// A reply is announced, and then comes a byte from time to time.
    Drip,
    /// More data than the window has room for.
    Overrun,
    /// Streams are opened without an end.
    Open,
    /// Pings, credit and resets without an end, and nothing else.
    Flood,
    /// Text for the console without an end.
    Console,
    /// A container is said to be created twice.
    Twice,
    /// A process is said to have ended before it is there.
    Early,
    /// A refusal as long as the window, which is meant for the reader's terminal.
    Escape,
    /// A container's output without an end.
    Output,
    /// Nothing more is said once a container runs.
    Dead,
}

const LIES: [(&str, Lie); 14] = [
    ("oversized", Lie::Oversized),
    ("truncated", Lie::Truncated),
    ("garbage", Lie::Garbage),
    ("wrong", Lie::Wrong),
    ("drip", Lie::Drip),
    ("overrun", Lie::Overrun),
    ("flood", Lie::Flood),
    ("open", Lie::Open),
    ("console", Lie::Console),
    ("twice", Lie::Twice),
    ("early", Lie::Early),
    ("escape", Lie::Escape),
    ("output", Lie::Output),
    ("dead", Lie::Dead),
];

fn main() {
    let failed = match run() {
        Ok(()) => "it has nothing more to say".to_owned(),
        Err(error) => error.to_string(),
    };
    println!("hostile guest: {failed}");
    loop {
        thread::sleep(Duration::from_secs(1000));
    }
}

fn run() -> io::Result<()> {
    for (kind, target) in [("proc", "/proc"), ("sysfs", "/sys"), ("devtmpfs", "/dev")] {
        fs::create_dir_all(target)?;
        match mount(kind, target, kind, MountFlags::empty(), None) {
            // The kernel may have mounted /dev.
            Err(rustix::io::Errno::BUSY) => {}
            mounted => mounted?,
        }
    }
    let line = fs::read_to_string("/proc/cmdline")?;
    let name = line.split_ascii_whitespace().find_map(|word| word.strip_prefix("hostile=")).unwrap_or_default();
    let lie = LIES.iter().find(|(known, _)| *known == name).map(|(_, lie)| *lie);
    let lie = lie.ok_or_else(|| io::Error::other(format!("there is no lie {name:?}")))?;
    println!("hostile guest: {name}");
    Guest { lie, wire: Wire::open()?, requests: HashMap::new(), attached: HashMap::new(), credit: HashMap::new() }
        .serve()
}

struct Guest {
    lie: Lie,
    wire: Wire,
    /// What has arrived of each stream's request.
    requests: HashMap<u32, Vec<u8>>,
    /// Streams by their token.
    attached: HashMap<u64, u32>,
    /// What the host's window of each stream has grown by, bytes.
    credit: HashMap<u32, u64>,
}

impl Guest {
    fn serve(&mut self) -> io::Result<()> {
        loop {
            let frame = self.wire.read()?;
            match frame {
                Frame::Ping { cookie, asks: true } => self.wire.control(wire::PING, ACK, 0, cookie)?,
                Frame::Window { id, credit } => *self.credit.entry(id).or_insert(256 << 10) += u64::from(credit),
                Frame::Data { id, data } => {
                    self.requests.entry(id).or_default().extend(data);
                    if let Some(request) = self.request(id) {
                        self.answer(id, &request)?;
                    }
                }
                Frame::Ping { .. } | Frame::GoAway => {}
            }
        }
    }

    /// A whole request, once it is there.
    fn request(&mut self, id: u32) -> Option<String> {
        let bytes = self.requests.get(&id)?;
        let (length, body) = bytes.split_first_chunk::<4>()?;
        let body = body.get(..u32::from_le_bytes(*length) as usize)?;
        let text = String::from_utf8_lossy(body).into_owned();
        self.requests.remove(&id);
        Some(text)
    }

    fn answer(&mut self, id: u32, request: &str) -> io::Result<()> {
        let name = request.trim_start_matches(['{', '"']).split('"').next().unwrap_or_default();
        match name {
            "hello" => self.greet(id, request),
            "attach" => {
                self.attached.insert(number(request, "token"), id);
                Ok(())
            }
            "create_container" => self.create(id, request),
            _ => self.reply(id, "\"done\""),
        }
    }

    fn reply(&mut self, id: u32, json: &str) -> io::Result<()> {
        self.announce(id, json.len() as u32, json.as_bytes())
    }

    /// The frame of a reply that says it has `length` bytes, and has these.
    fn announce(&mut self, id: u32, length: u32, bytes: &[u8]) -> io::Result<()> {
        self.wire.data(id, &[&length.to_le_bytes(), bytes].concat())
    }

    fn greet(&mut self, id: u32, request: &str) -> io::Result<()> {
        let hello = format!(
            "{{\"hello\":{{\"protocol\":{},\"agent_version\":\"0\",\"kernel_release\":\"0\",\"now_ns\":0}}}}",
            number(request, "protocol")
        );
        match self.lie {
            Lie::Oversized => self.announce(id, u32::MAX, b"{"),
            Lie::Truncated => {
                self.announce(id, hello.len() as u32, &hello.as_bytes()[..20])?;
                self.wire.control(wire::WINDOW, FIN, id, 0)
            }
            Lie::Garbage => self.reply(id, "}{!"),
            Lie::Wrong => self.reply(id, "{\"metrics\":\"all is well\"}"),
            Lie::Drip => {
                self.announce(id, LONGEST_REPLY, b"{")?;
                loop {
                    self.wire.data(id, b" ")?;
                    thread::sleep(Duration::from_millis(100));
                }
            }
            Lie::Overrun => self.wire.data(id, &vec![b' '; TOO_MUCH]),
            Lie::Open => {
                for stream in (2..=u32::MAX - 1).step_by(2) {
                    self.wire.control(wire::WINDOW, SYN, stream, 0)?;
                }
                Ok(())
            }
            _ => self.reply(id, &hello),
        }
    }

    fn create(&mut self, id: u32, request: &str) -> io::Result<()> {
        let created = "{\"created\":{\"pid\":7}}";
        match self.lie {
            Lie::Early => self.reply(id, "{\"exited\":{\"code\":0}}"),
            Lie::Escape => {
                let message = "\\u001b]0;evil\\u0007\\u001b[2J\\r\\n".repeat(8_000);
                self.reply(id, &format!("{{\"fault\":{{\"kind\":\"internal\",\"message\":\"{message}\"}}}}"))
            }
            Lie::Twice => {
                self.reply(id, created)?;
                self.reply(id, created)
            }
            Lie::Flood => loop {
                self.wire.control(wire::PING, SYN, 0, 7)?;
                self.wire.control(wire::WINDOW, 0, id, 0)?;
                self.wire.control(wire::WINDOW, RST, 0x7fff_0000, 0)?;
            },
            Lie::Console => {
                let mut console = fs::OpenOptions::new().write(true).open("/dev/console")?;
                let line = [b"\x1b]0;evil\x07\x1b[2J".as_slice(), &[b'x'; 4000], b"\r"].concat();
                loop {
                    console.write_all(&line)?;
                }
            }
            Lie::Output => {
                self.reply(id, created)?;
                self.pour(number(request, "stdout"))
            }
            _ => {
                self.reply(id, created)?;
                println!("hostile guest: it is silent from now on");
                loop {
                    thread::sleep(Duration::from_secs(1000));
                }
            }
        }
    }

    /// Sends as much of a process's output as the host takes, and then what comes at it, for ever.
    fn pour(&mut self, token: u64) -> io::Result<()> {
        let id = self.attached.get(&token).copied().ok_or_else(|| io::Error::other("its output has no stream"))?;
        let mut sent = 0;
        loop {
            while sent + 4096 <= self.credit.get(&id).copied().unwrap_or(256 << 10) {
                self.wire.data(id, &[b'x'; 4096])?;
                sent += 4096;
            }
            match self.wire.read()? {
                Frame::Window { id, credit } => *self.credit.entry(id).or_insert(256 << 10) += u64::from(credit),
                Frame::Ping { cookie, asks: true } => self.wire.control(wire::PING, ACK, 0, cookie)?,
                _ => {}
            }
        }
    }
}

/// The number after the first `"key":`, or 0.
fn number(json: &str, key: &str) -> u64 {
    let after = json.split_once(&format!("\"{key}\":")).map_or("", |(_, after)| after);
    after.chars().take_while(char::is_ascii_digit).collect::<String>().parse().unwrap_or(0)
}
