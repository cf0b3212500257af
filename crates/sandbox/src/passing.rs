//! Frames with descriptors attached to their first byte (`SCM_RIGHTS`, unix(7)).

use std::{
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
};

use agent_api::frame;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};
use serde::{Serialize, de::DeserializeOwned};

/// Most descriptors in one message (`SCM_MAX_FD` of the kernel).
pub(crate) const MAX_DESCRIPTORS: usize = 253;
const ANCILLARY_BYTES: usize = rustix::cmsg_space!(ScmRights(253));

/// Sends one message with its descriptors.
pub(crate) fn send<T: Serialize>(
    stream: &UnixStream,
    message: &T,
    descriptors: &[BorrowedFd<'_>],
) -> Result<(), frame::FrameError> {
    let bytes = frame::encode(message)?;
    let mut space = [MaybeUninit::uninit(); ANCILLARY_BYTES];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(frame::FrameError::Io(io::Error::other("too many descriptors for one message")));
    }
    let sent = sendmsg(stream, &[IoSlice::new(&bytes)], &mut control, SendFlags::NOSIGNAL).map_err(io::Error::from)?;
    io::Write::write_all(&mut &*stream, &bytes[sent..])?;
    Ok(())
}

fn receive_header(socket: BorrowedFd<'_>, header: &mut [u8; 4], descriptors: &mut Vec<OwnedFd>) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); ANCILLARY_BYTES];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = recvmsg(socket, &mut [IoSliceMut::new(header)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(fds) = message {
            descriptors.extend(fds);
        }
    }
    Ok(received.bytes)
}

/// Receives one message with its descriptors.
pub(crate) async fn receive<T: DeserializeOwned>(
    stream: &mut tokio::net::UnixStream,
    limit: usize,
) -> Result<(T, Vec<OwnedFd>), frame::FrameError> {
    let mut header = [0; 4];
    let mut descriptors = Vec::new();
    let first = stream
        .async_io(tokio::io::Interest::READABLE, || receive_header(stream.as_fd(), &mut header, &mut descriptors))
        .await?;
    let rest: &[u8] = &header[..first];
    // The header's first byte may have come alone; the frame reader takes what came and then the stream.
    let message = frame::read(&mut tokio::io::AsyncReadExt::chain(rest, stream), limit).await?;
    Ok((message, descriptors))
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use super::*;

    #[tokio::test]
    async fn a_message_arrives_with_its_descriptors_in_order() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        theirs.set_nonblocking(true).unwrap();
        let mut theirs = tokio::net::UnixStream::from_std(theirs).unwrap();
        let files: Vec<std::fs::File> = (0..253).map(|_| std::fs::File::open("/dev/null").unwrap()).collect();
        let zero = std::fs::File::open("/dev/zero").unwrap();
        let mut descriptors: Vec<_> = files.iter().map(AsFd::as_fd).collect();
        descriptors[252] = zero.as_fd();
        let long = "x".repeat(100_000);
        let sender = std::thread::spawn({
            let long = long.clone();
            let descriptors: Vec<OwnedFd> = descriptors.iter().map(|d| d.try_clone_to_owned().unwrap()).collect();
            move || send(&ours, &long, &descriptors.iter().map(AsFd::as_fd).collect::<Vec<_>>())
        });
        let (message, received): (String, _) = receive(&mut theirs, frame::MAX_REQUEST).await.unwrap();
        sender.join().unwrap().unwrap();
        assert_eq!(message, long);
        assert_eq!(received.len(), 253);
        let target = |d: &OwnedFd| std::fs::read_link(format!("/proc/self/fd/{}", d.as_raw_fd())).unwrap();
        assert_eq!(target(&received[252]), std::path::Path::new("/dev/zero"));
    }

    #[tokio::test]
    async fn a_caller_that_hangs_up_is_told_apart_from_one_that_talks_nonsense() {
        let (ours, theirs) = tokio::net::UnixStream::pair().unwrap();
        drop(ours);
        let mut theirs = theirs;
        assert!(matches!(receive::<String>(&mut theirs, 100).await, Err(frame::FrameError::Closed)));
    }
}
