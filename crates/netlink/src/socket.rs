//! The conversation with the kernel.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::netlink::{NETFILTER, SocketAddrNetlink};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType};

use crate::message::{HEADER, Message, attributes, number};
use crate::{Error, sys};

/// The kernel answers before the request's system call returns; only a kernel that is stuck needs longer.
const DEADLINE: Duration = Duration::from_secs(10);

/// Larger than any message the kernel makes.
const BUFFER: usize = 64 << 10;

/// How often a table is read again because it changed meanwhile.
const ATTEMPTS: usize = 20;

/// A message from the kernel.
#[derive(Debug, Clone)]
pub struct Answer {
    /// Its type (`nlmsg_type`).
    pub kind: u16,
    /// What follows its header.
    pub payload: Vec<u8>,
}

impl Answer {
    /// The attributes after a fixed part of some length.
    pub fn attributes(&self, fixed: usize) -> impl Iterator<Item = (u16, &[u8])> {
        attributes(self.payload.get(fixed..).unwrap_or_default())
    }
}

/// A socket to the kernel. It belongs to the network namespace in which it was opened.
#[derive(Debug)]
pub struct Socket {
    fd: OwnedFd,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Socket {
    /// Opens one to rtnetlink(7).
    ///
    /// # Errors
    /// Those of socket(2).
    pub fn route() -> Result<Self, Error> {
        let socket = Self::open(None, 0, SocketFlags::CLOEXEC)?;
        set_socket_timeout(&socket.fd, Timeout::Recv, Some(DEADLINE))?;
        Ok(socket)
    }

    /// Opens one to netfilter.
    ///
    /// # Errors
    /// Those of socket(2).
    pub fn netfilter() -> Result<Self, Error> {
        let socket = Self::open(Some(NETFILTER), 0, SocketFlags::CLOEXEC)?;
        set_socket_timeout(&socket.fd, Timeout::Recv, Some(DEADLINE))?;
        Ok(socket)
    }

    /// Opens one that hears what happens in groups of rtnetlink (`RTMGRP_LINK` and so on) and does not block.
    ///
    /// # Errors
    /// Those of socket(2) and bind(2).
    pub fn events(groups: i32) -> Result<Self, Error> {
        Self::open(None, groups.cast_unsigned(), SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)
    }

    fn open(protocol: Option<Protocol>, groups: u32, flags: SocketFlags) -> Result<Self, Error> {
        let fd = rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, protocol)?;
        rustix::net::bind(&fd, &SocketAddrNetlink::new(0, groups))?;
        rustix::net::connect(&fd, &SocketAddrNetlink::new(0, 0))?;
        sys::explain(fd.as_fd());
        Ok(Self { fd, sequence: 0, buffer: vec![0; BUFFER] })
    }

    /// What has happened since the last call, on a socket of [`Socket::events`]. Empty if nothing has.
    ///
    /// # Errors
    /// Those of recv(2); `ENOBUFS` means that more has happened than the kernel kept.
    pub fn heard(&mut self) -> Result<Vec<Answer>, Error> {
        let mut heard = Vec::new();
        loop {
            match self.receive() {
                Ok(answers) => heard.extend(answers.into_iter().map(|(_, _, answer)| answer)),
                Err(error) if error.is(Errno::AGAIN) => return Ok(heard),
                Err(error) => return Err(error),
            }
        }
    }

    /// Sends a request that the kernel does or refuses.
    ///
    /// # Errors
    /// [`Error::Refused`] and failures of the socket.
    pub fn ask(&mut self, message: Message) -> Result<(), Error> {
        self.ask_all(vec![message])
    }

    /// Sends requests that the kernel takes as one, for netfilter's batches. The first refusal is reported.
    ///
    /// # Errors
    /// [`Error::Refused`] and failures of the socket.
    pub fn ask_all(&mut self, messages: Vec<Message>) -> Result<(), Error> {
        let mut bytes = Vec::new();
        let first = self.sequence.wrapping_add(1);
        for mut message in messages {
            message.flag(libc::NLM_F_ACK);
            self.sequence = self.sequence.wrapping_add(1);
            bytes.extend(message.finish(self.sequence));
        }
        let last = self.sequence;
        rustix::net::send(&self.fd, &bytes, SendFlags::empty())?;
        let mut result = Ok(());
        loop {
            for (sequence, flags, answer) in self.receive()? {
                if sequence.wrapping_sub(first) > last.wrapping_sub(first)
                    || answer.kind != u16::try_from(libc::NLMSG_ERROR).unwrap_or_default()
                {
                    continue;
                }
                let verdict = verdict(&answer.payload, flags);
                // A batch whose beginning is refused gets no other answer.
                let over = sequence == last || (sequence == first && verdict.is_err());
                result = result.and(verdict);
                if over {
                    return result;
                }
            }
        }
    }

    /// Asks for a whole table.
    ///
    /// # Errors
    /// [`Error::Refused`], failures of the socket, and [`Error::Restless`].
    pub fn dump(&mut self, message: &Message) -> Result<Vec<Answer>, Error> {
        for _ in 0..ATTEMPTS {
            if let Some(answers) = self.dump_once(message.clone())? {
                return Ok(answers);
            }
        }
        Err(Error::Restless)
    }

    /// A table; nothing if it changed while it was read.
    fn dump_once(&mut self, mut message: Message) -> Result<Option<Vec<Answer>>, Error> {
        message.flag(libc::NLM_F_DUMP);
        self.sequence = self.sequence.wrapping_add(1);
        let ours = self.sequence;
        rustix::net::send(&self.fd, &message.finish(ours), SendFlags::empty())?;
        let (mut table, mut changed) = (Vec::new(), false);
        loop {
            for (sequence, flags, answer) in self.receive()? {
                if sequence != ours {
                    continue;
                }
                changed |= i32::from(flags) & libc::NLM_F_DUMP_INTR != 0;
                match i32::from(answer.kind) {
                    libc::NLMSG_ERROR => verdict(&answer.payload, flags)?,
                    libc::NLMSG_DONE => return Ok((!changed).then_some(table)),
                    _ => table.push(answer),
                }
            }
        }
    }

    /// The messages of one datagram, with their sequence numbers and flags.
    fn receive(&mut self) -> Result<Vec<(u32, u16, Answer)>, Error> {
        let (_, length) = rustix::net::recv(&self.fd, &mut self.buffer[..], RecvFlags::TRUNC)?;
        let mut rest = self.buffer.get(..length).ok_or(Error::Malformed)?;
        let mut answers = Vec::new();
        while rest.len() >= HEADER {
            let length = number(rest).and_then(|length| usize::try_from(length).ok()).ok_or(Error::Malformed)?;
            let payload = rest.get(HEADER..length).ok_or(Error::Malformed)?.to_vec();
            let (kind, flags) = (u16::from_ne_bytes([rest[4], rest[5]]), u16::from_ne_bytes([rest[6], rest[7]]));
            answers.push((number(&rest[8..]).unwrap_or_default(), flags, Answer { kind, payload }));
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
        Ok(answers)
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// What a message of type `NLMSG_ERROR` says: a number, the header of the request, perhaps the whole of it, and perhaps words.
fn verdict(payload: &[u8], flags: u16) -> Result<(), Error> {
    const CAPPED: u16 = 0x100;
    const EXPLAINED: u16 = 0x200;
    const TEXT: u16 = 1;
    let code = number(payload).ok_or(Error::Malformed)?.cast_signed();
    if code == 0 {
        return Ok(());
    }
    let mut explanation = String::new();
    if flags & EXPLAINED != 0 {
        let request = payload.get(4..).unwrap_or_default();
        let length = number(request).and_then(|length| usize::try_from(length).ok()).unwrap_or(HEADER);
        let after = if flags & CAPPED != 0 { HEADER } else { length.next_multiple_of(4) };
        for (kind, value) in attributes(request.get(after..).unwrap_or_default()) {
            if kind == TEXT {
                explanation = String::from_utf8_lossy(value).trim_end_matches('\0').to_owned();
            }
        }
    }
    Err(Error::Refused { errno: Errno::from_raw_os_error(code.wrapping_neg()), explanation })
}
