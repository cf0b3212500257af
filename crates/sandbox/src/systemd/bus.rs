//! A conversation with systemd by D-Bus: on its own socket, on which it alone is, or over a bus.

use std::{
    collections::VecDeque,
    fmt,
    io::{self, Read, Write},
    os::unix::net::UnixStream,
    path::Path,
    time::{Duration, Instant},
};

use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType,
    sockopt::{Timeout, set_socket_timeout},
};

use super::wire::{FIXED, Kind, Message, Writer};

const MANAGER: &str = "org.freedesktop.systemd1";
const MANAGER_PATH: &str = "/org/freedesktop/systemd1";
const MANAGER_INTERFACE: &str = "org.freedesktop.systemd1.Manager";
const BUS: &str = "org.freedesktop.DBus";
const BUS_PATH: &str = "/org/freedesktop/DBus";
/// Which messages of others the bus shall pass on.
const RULE: &str =
    "type='signal',sender='org.freedesktop.systemd1',interface='org.freedesktop.systemd1.Manager',member='JobRemoved'";
/// Longest line of an authentication.
const LINE: usize = 1024;

/// Why a conversation came to nothing.
#[derive(Debug)]
pub(super) enum Failure {
    /// It answered with an error.
    Refused { name: String, text: String },
    /// The deadline passed.
    Late,
    /// The socket failed.
    Io(io::Error),
    /// It said what the protocol does not have.
    Nonsense(&'static str),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused { name, text } if text.is_empty() => f.write_str(name),
            Self::Refused { text, .. } => f.write_str(text),
            Self::Late => f.write_str("no answer"),
            Self::Io(error) => error.fmt(f),
            Self::Nonsense(what) => f.write_str(what),
        }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Self::Late,
            _ => Self::Io(error),
        }
    }
}

type Result<T> = std::result::Result<T, Failure>;

/// What a call gives besides its object: signature and values.
#[derive(Default)]
pub(super) struct Arguments {
    signature: &'static str,
    values: Writer,
}

impl Arguments {
    pub(super) fn new(signature: &'static str, fill: impl FnOnce(&mut Writer)) -> Self {
        let mut values = Writer::default();
        fill(&mut values);
        Self { signature, values }
    }

    pub(super) fn text(text: &str) -> Self {
        Self::new("s", |values| {
            values.text(text);
        })
    }

    pub(super) fn texts(first: &str, second: &str) -> Self {
        Self::new("ss", |values| {
            values.text(first).text(second);
        })
    }
}

/// A connection. All that is said on it is said before one deadline.
pub(super) struct Bus {
    stream: UnixStream,
    end: Instant,
    serial: u32,
    /// Where systemd is one of many, its name.
    destination: &'static str,
    /// What became of jobs and was not asked for yet: job and result.
    removed: VecDeque<(String, String)>,
}

impl Bus {
    /// Connects to the socket of systemd, or of a bus that it is on.
    pub(super) fn open(path: &Path, is_bus: bool, end: Instant) -> Result<Self> {
        let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
            .map_err(io::Error::from)?;
        // A process that is stopped accepts nobody.
        set_socket_timeout(&socket, Timeout::Send, Some(left(end)?)).map_err(io::Error::from)?;
        let address = SocketAddrUnix::new(path).map_err(io::Error::from)?;
        rustix::net::connect(&socket, &address).map_err(io::Error::from)?;
        Self::over(socket.into(), is_bus, end)
    }

    /// Begins a conversation on a socket.
    pub(super) fn over(stream: UnixStream, is_bus: bool, end: Instant) -> Result<Self> {
        let mut bus = Self { stream, end, serial: 0, destination: "", removed: VecDeque::new() };
        bus.authenticate()?;
        if is_bus {
            bus.destination = BUS;
            bus.call(BUS_PATH, BUS, "Hello", Arguments::default())?;
            bus.call(BUS_PATH, BUS, "AddMatch", Arguments::text(RULE))?;
            bus.destination = MANAGER;
            bus.manage("Subscribe", Arguments::default())?;
        }
        Ok(bus)
    }

    /// The end of the authentication is said before its answer is there: systemd does not look at a call that comes in one piece with it.
    fn authenticate(&mut self) -> Result<()> {
        let uid = crate::identity::uid_outside().to_string();
        let hex: String = uid.bytes().map(|digit| format!("{digit:02x}")).collect();
        self.write(format!("\0AUTH EXTERNAL {hex}\r\nBEGIN\r\n").as_bytes())?;
        let answer = self.line()?;
        if answer.starts_with("OK") { Ok(()) } else { Err(Failure::Nonsense("this user is not admitted")) }
    }

    /// A line, and nothing of what follows.
    fn line(&mut self) -> Result<String> {
        let mut line = Vec::new();
        while !line.ends_with(b"\r\n") {
            let mut byte = [0];
            self.read(&mut byte)?;
            line.extend(byte);
            if line.len() > LINE {
                return Err(Failure::Nonsense("a line without an end"));
            }
        }
        String::from_utf8(line).map_err(|_| Failure::Nonsense("a line that is none"))
    }

    /// Calls a method of the manager.
    pub(super) fn manage(&mut self, member: &str, arguments: Arguments) -> Result<Message> {
        self.call(MANAGER_PATH, MANAGER_INTERFACE, member, arguments)
    }

    /// Calls a method and gives the answer.
    pub(super) fn call(&mut self, path: &str, interface: &str, member: &str, arguments: Arguments) -> Result<Message> {
        self.serial += 1;
        let call = Message {
            serial: self.serial,
            path: path.into(),
            interface: interface.into(),
            member: member.into(),
            destination: self.destination.into(),
            signature: arguments.signature.into(),
            body: arguments.values.into_bytes(),
            ..Message::default()
        };
        self.write(&call.encode())?;
        loop {
            let message = self.receive()?;
            match message.kind {
                Kind::Return if message.reply_to == self.serial => return Ok(message),
                Kind::Error if message.reply_to == self.serial => {
                    let text = if message.signature.starts_with('s') { message.reader().text() } else { None };
                    return Err(Failure::Refused { text: text.unwrap_or_default().into(), name: message.error });
                }
                _ => {}
            }
        }
    }

    /// Waits until a job is over; gives its result.
    pub(super) fn job(&mut self, job: &str) -> Result<String> {
        loop {
            while let Some((removed, result)) = self.removed.pop_front() {
                if removed == job {
                    return Ok(result);
                }
            }
            self.receive()?;
        }
    }

    /// The next message. Jobs that are over are taken note of.
    fn receive(&mut self) -> Result<Message> {
        loop {
            let mut fixed = [0; FIXED];
            self.read(&mut fixed)?;
            let mut bytes = fixed.to_vec();
            bytes.resize(FIXED + Message::rest(&fixed).map_err(Failure::Nonsense)?, 0);
            self.read(&mut bytes[FIXED..])?;
            let Some(message) = Message::decode(&bytes) else { continue };
            if message.kind == Kind::Signal && message.member == "JobRemoved" && message.signature == "uoss" {
                let mut values = message.reader();
                let said = (values.u32(), values.text(), values.text(), values.text());
                if let (_, Some(job), _, Some(result)) = said {
                    self.removed.push_back((job.into(), result.into()));
                }
            }
            return Ok(message);
        }
    }

    fn read(&mut self, mut buffer: &mut [u8]) -> Result<()> {
        while !buffer.is_empty() {
            self.stream.set_read_timeout(Some(left(self.end)?))?;
            match self.stream.read(buffer) {
                Ok(0) => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
                Ok(count) => buffer = &mut buffer[count..],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.stream.set_write_timeout(Some(left(self.end)?))?;
        Ok(self.stream.write_all(bytes)?)
    }
}

/// The time that is left until then.
fn left(end: Instant) -> Result<Duration> {
    let left = end.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(Failure::Late) } else { Ok(left) }
}

#[cfg(test)]
impl Bus {
    /// Has no more patience than this.
    pub(super) fn hurry(&mut self, patience: Duration) {
        self.end = Instant::now() + patience;
    }

    /// Becomes systemd for a bus.
    pub(super) fn take_name(&mut self) {
        self.destination = BUS;
        self.call(BUS_PATH, BUS, "Hello", Arguments::default()).unwrap();
        let name = Arguments::new("su", |values| {
            values.text(MANAGER).u32(0);
        });
        self.call(BUS_PATH, BUS, "RequestName", name).unwrap();
    }
}
