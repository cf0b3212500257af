//! How agent and child talk between fork and exec.
//!
//! Over a pair of sockets that keeps messages apart and can carry a descriptor. The child reports a terminal, that it is ready, or
//! what went wrong; that its end is closed by execve(2) tells that it has become the user's program. The agent says "go on".

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};

use agent_api::Fault;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::fault::{Context, internal};

/// Longest message, bytes. Longer faults are cut.
const MAX_MESSAGE: usize = 16 << 10;

const READY: &[u8] = b"R";
const TERMINAL: &[u8] = b"T";
const GO_ON: &[u8] = b"G";

/// What the child says.
#[derive(Debug)]
pub enum Message {
    /// The master of its terminal.
    Terminal(OwnedFd),
    /// All is prepared; only the program remains to be executed.
    Ready,
    /// It could not be prepared.
    Failed(Fault),
    /// The child's end is closed: it has become the program, or has ended.
    End,
}

/// Makes both ends.
///
/// # Errors
/// Those of socketpair(2).
pub fn pair() -> Result<(AgentEnd, ChildEnd), Fault> {
    let make = || -> io::Result<_> {
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        rustix::io::ioctl_fionbio(&ours, true)?;
        Ok((AgentEnd(crate::sys::register(ours, Interest::READABLE)?), ChildEnd(theirs)))
    };
    make().context(|| "making the socket between agent and process".into())
}

/// The agent's end.
pub struct AgentEnd(AsyncFd<OwnedFd>);

impl AgentEnd {
    /// Lets the child go on, now or when it comes to the point. That it is gone is learned from [`AgentEnd::next`].
    pub fn go_on(&self) {
        let _ = rustix::net::send(self.0.get_ref(), GO_ON, SendFlags::NOSIGNAL);
    }

    /// Waits for the child's next message.
    pub async fn next(&self) -> Message {
        loop {
            match self.0.async_io(Interest::READABLE, receive).await {
                Ok(message) => return message,
                // The child has ended without having read our message; what it said before comes next.
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {}
                Err(_) => return Message::End,
            }
        }
    }
}

fn receive(fd: &OwnedFd) -> io::Result<Message> {
    let mut bytes = vec![0; MAX_MESSAGE];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let length = recvmsg(fd, &mut [IoSliceMut::new(&mut bytes)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)?.bytes;
    let descriptor = ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    Ok(match (&bytes[..length], descriptor) {
        ([], _) => Message::End,
        (READY, _) => Message::Ready,
        (TERMINAL, Some(master)) => Message::Terminal(master),
        (json, _) => Message::Failed(
            serde_json::from_slice(json).unwrap_or_else(|_| internal("the process reported something unintelligible")),
        ),
    })
}

/// The child's end.
pub struct ChildEnd(OwnedFd);

impl ChildEnd {
    /// The end that a descriptor is.
    pub fn new(fd: OwnedFd) -> Self {
        Self(fd)
    }

    /// The descriptor.
    pub fn fd(&self) -> &OwnedFd {
        &self.0
    }

    /// Reports that all is prepared.
    ///
    /// # Errors
    /// When the agent is gone.
    pub fn ready(&self) -> Result<(), Fault> {
        // write(2), because a seccomp filter that may be in force by now allows it rather than sendto(2).
        rustix::io::write(&self.0, READY).context(|| "reporting to the agent".into()).map(drop)
    }

    /// Hands the master of the terminal over.
    ///
    /// # Errors
    /// When the agent is gone.
    pub fn terminal(&self, master: &OwnedFd) -> Result<(), Fault> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        let fds = [master.as_fd()];
        ancillary.push(SendAncillaryMessage::ScmRights(&fds));
        sendmsg(&self.0, &[IoSlice::new(TERMINAL)], &mut ancillary, SendFlags::NOSIGNAL)
            .context(|| "handing the terminal to the agent".into())
            .map(drop)
    }

    /// Reports what went wrong.
    pub fn failed(&self, mut fault: Fault) {
        // Twice, because JSON may need more bytes than the text has.
        let mut keep = MAX_MESSAGE / 8;
        while fault.message.len() > keep && !fault.message.is_char_boundary(keep) {
            keep -= 1;
        }
        fault.message.truncate(keep);
        if let Ok(json) = serde_json::to_vec(&fault) {
            // An agent that does not listen learns it from our end.
            let _ = rustix::io::write(&self.0, &json);
        }
    }

    /// Waits to be told to go on.
    ///
    /// # Errors
    /// When the agent has given up.
    pub fn wait(&self) -> Result<(), Fault> {
        let mut byte = [0; 1];
        match rustix::io::retry_on_intr(|| rustix::io::read(&self.0, &mut byte)) {
            Ok(1) => Ok(()),
            _ => Err(internal("the agent gave the process up")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use agent_api::FaultKind;

    #[tokio::test(flavor = "current_thread")]
    async fn every_message_arrives_as_what_it_is() {
        let (agent, child) = pair().unwrap();
        child.terminal(child.fd()).unwrap();
        child.ready().unwrap();
        child.failed(Fault { kind: FaultKind::CommandNotFound, message: "é".repeat(100_000) });
        assert!(matches!(agent.next().await, Message::Terminal(_)));
        assert!(matches!(agent.next().await, Message::Ready));
        let Message::Failed(fault) = agent.next().await else { panic!("not a failure") };
        assert_eq!(fault.kind, FaultKind::CommandNotFound);
        assert!(fault.message.starts_with('é'));
        agent.go_on();
        child.wait().unwrap();
        drop(child);
        assert!(matches!(agent.next().await, Message::End));
    }

    #[tokio::test(flavor = "current_thread")]
    async fn what_a_child_said_before_it_ended_unasked_is_heard() {
        let (agent, child) = pair().unwrap();
        agent.go_on();
        child.failed(internal("why"));
        drop(child);
        agent.go_on();
        assert!(matches!(agent.next().await, Message::Failed(fault) if fault.message == "why"));
        assert!(matches!(agent.next().await, Message::End));
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_child_that_was_given_up_knows() {
        let (agent, child) = pair().unwrap();
        drop(agent);
        assert!(child.wait().is_err());
    }
}
