//! Frames of yamux on the virtio-serial port, as they come and without any rule.

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    thread,
    time::Duration,
};

/// The port's name, as the host gives it.
const NAME: &str = "io.katacontainers.channel";
const PORTS: &str = "/sys/class/virtio-ports";

pub const DATA: u8 = 0;
pub const WINDOW: u8 = 1;
pub const PING: u8 = 2;
pub const SYN: u16 = 1;
pub const ACK: u16 = 2;
pub const FIN: u16 = 4;
pub const RST: u16 = 8;

/// A frame of the host.
pub enum Frame {
    Data { id: u32, data: Vec<u8> },
    Window { id: u32, credit: u32 },
    Ping { cookie: u32, asks: bool },
    GoAway,
}

pub struct Wire {
    port: File,
}

impl Wire {
    /// Waits for the port.
    pub fn open() -> io::Result<Self> {
        // There is nobody to tell of a device that does not come.
        loop {
            if let Some(device) = find()? {
                let port = fs::OpenOptions::new().read(true).write(true).open(device)?;
                return Ok(Self { port });
            }
            thread::sleep(Duration::from_millis(20));
        }
    }

    fn read_exact(&mut self, bytes: &mut [u8]) -> io::Result<()> {
        let mut filled = 0;
        while filled < bytes.len() {
            match self.port.read(&mut bytes[filled..])? {
                // Nobody has the other end open.
                0 => thread::sleep(Duration::from_millis(20)),
                count => filled += count,
            }
        }
        Ok(())
    }

    pub fn read(&mut self) -> io::Result<Frame> {
        let mut header = [0; 12];
        self.read_exact(&mut header)?;
        let word = |at: usize| u32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        let (kind, flags, id, value) = (header[1], u16::from_be_bytes([header[2], header[3]]), word(4), word(8));
        Ok(match kind {
            DATA => {
                let mut data = vec![0; value as usize];
                self.read_exact(&mut data)?;
                Frame::Data { id, data }
            }
            WINDOW => Frame::Window { id, credit: value },
            PING => Frame::Ping { cookie: value, asks: flags & SYN != 0 },
            _ => Frame::GoAway,
        })
    }

    fn header(kind: u8, flags: u16, id: u32, value: u32) -> Vec<u8> {
        [&[0, kind], flags.to_be_bytes().as_slice(), &id.to_be_bytes(), &value.to_be_bytes()].concat()
    }

    pub fn control(&mut self, kind: u8, flags: u16, id: u32, value: u32) -> io::Result<()> {
        self.port.write_all(&Self::header(kind, flags, id, value))
    }

    pub fn data(&mut self, id: u32, data: &[u8]) -> io::Result<()> {
        self.port.write_all(&[&Self::header(DATA, 0, id, data.len() as u32), data].concat())
    }
}

fn find() -> io::Result<Option<String>> {
    for entry in fs::read_dir(PORTS)? {
        let entry = entry?;
        let name = fs::read_to_string(entry.path().join("name")).unwrap_or_default();
        if name.trim_end() == NAME {
            return Ok(Some(format!("/dev/{}", entry.file_name().to_string_lossy())));
        }
    }
    Ok(None)
}
