//! `--console-socket`: the Unix socket over which a caller receives the master of a process's terminal.

use std::{
    io::IoSlice,
    mem::MaybeUninit,
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixStream,
    },
    path::Path,
};

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

use crate::{Error, Result};

/// What the message beside the descriptor says, as runc: the name under which the master was opened.
const NAME: &[u8] = b"/dev/ptmx";

/// Refuses a combination that cannot work: a detached terminal needs a console socket, and nothing else can use one.
///
/// # Errors
/// runc's.
pub(crate) fn check(terminal: bool, detached: bool, socket: Option<&Path>) -> Result<()> {
    match (terminal && detached, socket) {
        (true, None) => Err(Error::refused(
            "cannot allocate tty if kata-runtime will detach without setting console socket; use --console-socket",
        )),
        (false, Some(_)) => {
            Err(Error::refused("cannot use console socket if kata-runtime will not detach or allocate tty"))
        }
        _ => Ok(()),
    }
}

/// Connects to it.
///
/// # Errors
/// Nobody listens there.
pub(crate) fn connect(path: &Path) -> Result<OwnedFd> {
    let socket = UnixStream::connect(path);
    socket.map(OwnedFd::from).map_err(|e| Error::io(format!("connect to the console socket {}", path.display()), e))
}

/// Sends a terminal's master.
///
/// # Errors
/// The receiver has gone.
pub(crate) fn send(socket: &OwnedFd, master: &OwnedFd) -> Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let descriptors = [master.as_fd()];
    control.push(SendAncillaryMessage::ScmRights(&descriptors));
    sendmsg(socket, &[IoSlice::new(NAME)], &mut control, SendFlags::NOSIGNAL)
        .map(drop)
        .map_err(|e| Error::io("send the terminal over the console socket", e))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

    #[test]
    fn only_a_detached_terminal_has_a_console_socket() {
        let socket = Some(Path::new("/run/console"));
        assert!(check(true, true, socket).is_ok() && check(false, true, None).is_ok());
        assert!(check(true, false, None).is_ok());
        let refusal = |terminal, detached, socket| check(terminal, detached, socket).unwrap_err().to_string();
        assert!(refusal(true, true, None).starts_with("cannot allocate tty if kata-runtime will detach"));
        assert!(refusal(true, false, socket).starts_with("cannot use console socket"));
        assert!(refusal(false, true, socket).starts_with("cannot use console socket"));
    }

    #[test]
    fn a_descriptor_and_its_name_arrive() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("console");
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let sent = OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
        send(&connect(&path).unwrap(), &sent).unwrap();
        let (stream, _) = listener.accept().unwrap();
        let mut bytes = [0; 64];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received =
            recvmsg(&stream, &mut [std::io::IoSliceMut::new(&mut bytes)], &mut control, RecvFlags::empty()).unwrap();
        assert_eq!(&bytes[..received.bytes], NAME);
        let descriptors: usize = control
            .drain()
            .map(|message| if let RecvAncillaryMessage::ScmRights(fds) = message { fds.count() } else { 0 })
            .sum();
        assert_eq!(descriptors, 1);
        assert!(connect(&dir.path().join("nobody")).unwrap_err().chain().contains("nobody"));
    }
}
