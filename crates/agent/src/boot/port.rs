//! Finding and opening the virtio-serial port that the channel runs over.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use agent_api::CHANNEL_PORT;
use rustix::event::{PollFd, PollFlags, Timespec, epoll, poll};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};

use crate::error::{Error, Step};

const PORTS: &str = "/sys/class/virtio-ports";
/// How long the port may take to appear. It does within milliseconds of its driver being loaded.
const PORT_DEADLINE: Duration = Duration::from_secs(10);
/// How long the host may take to open its end. It normally has before the guest is started.
const HOST_DEADLINE: Duration = Duration::from_secs(60);

/// Listens for devices that appear. Made before modules are loaded, so that nothing is missed.
pub struct Ports {
    uevents: OwnedFd,
}

impl Ports {
    /// Starts to listen.
    ///
    /// # Errors
    /// [`Error::Boot`].
    pub fn listen() -> Result<Self, Error> {
        let uevents = crate::uevents::socket().step("listening for", "device events")?;
        Ok(Self { uevents })
    }

    /// Waits for the channel's port and opens it, non-blocking. Gives its path, too.
    ///
    /// # Errors
    /// [`Error::NoPort`] after a deadline, or [`Error::Boot`].
    pub fn open(self) -> Result<(String, OwnedFd), Error> {
        let deadline = Instant::now() + PORT_DEADLINE;
        let mut event = [0; 4096];
        loop {
            if let Some(path) = find() {
                let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
                let port = rustix::fs::open(&path, flags, Mode::empty()).step("opening", path.as_str())?;
                return Ok((path, port));
            }
            // A name is set after the device has appeared, and there is an event for each, so look again after any.
            loop {
                match recv(&self.uevents, &mut event[..], RecvFlags::empty()) {
                    Ok((_, length)) if is_port(&event[..length.min(event.len())]) => break,
                    Ok(_) | Err(Errno::INTR) => {}
                    Err(Errno::NOBUFS) => break,
                    Err(Errno::AGAIN) => wait(&self.uevents, deadline)?,
                    Err(error) => return Err(error).step("reading", "device events"),
                }
            }
        }
    }
}

fn is_port(event: &[u8]) -> bool {
    event.split(|&byte| byte == 0).any(|field| field == b"SUBSYSTEM=virtio-ports")
}

fn wait(uevents: &OwnedFd, deadline: Instant) -> Result<(), Error> {
    let mut fds = [PollFd::new(uevents, PollFlags::IN)];
    match poll(&mut fds, Some(&left(deadline))) {
        Ok(0) => Err(Error::NoPort { name: CHANNEL_PORT, seconds: PORT_DEADLINE.as_secs().cast_signed() }),
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(error) => Err(error).step("waiting for", "device events"),
    }
}

fn left(deadline: Instant) -> Timespec {
    let left = deadline.saturating_duration_since(Instant::now());
    Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: left.subsec_nanos().into() }
}

fn find() -> Option<String> {
    for entry in std::fs::read_dir(PORTS).ok()?.flatten() {
        let name = std::fs::read_to_string(entry.path().join("name")).unwrap_or_default();
        if name.trim_end() == CHANNEL_PORT {
            return Some(format!("/dev/{}", entry.file_name().to_string_lossy()));
        }
    }
    None
}

/// Waits until the host has opened its end: before that, reading the port gives an end of file that means nothing.
///
/// # Errors
/// [`Error::NoHost`] after a deadline, or [`Error::Boot`].
pub fn connect_host(path: &str, port: &OwnedFd) -> Result<(), Error> {
    let is_connected = || -> Result<bool, Error> {
        let mut fds = [PollFd::new(port, PollFlags::IN)];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        poll(&mut fds, Some(&now)).step("asking for the state of", path)?;
        Ok(!fds[0].revents().contains(PollFlags::HUP))
    };
    if is_connected()? {
        return Ok(());
    }
    // Hung up is the present state, so only a wait for changes waits at all.
    let changes = epoll::create(epoll::CreateFlags::CLOEXEC).step("waiting for", path)?;
    let interest = epoll::EventFlags::IN | epoll::EventFlags::ET;
    epoll::add(&changes, port, epoll::EventData::new_u64(0), interest).step("waiting for", path)?;
    let deadline = Instant::now() + HOST_DEADLINE;
    loop {
        let mut events = [const { std::mem::MaybeUninit::uninit() }];
        match epoll::wait(&changes, &mut events[..], Some(&left(deadline))) {
            Ok(([], _)) => {
                return Err(Error::NoHost { path: path.to_owned(), seconds: HOST_DEADLINE.as_secs().cast_signed() });
            }
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error).step("waiting for", path),
        }
        if is_connected()? {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_events_of_ports_are_of_interest() {
        assert!(is_port(b"change@/devices/x\0ACTION=change\0SUBSYSTEM=virtio-ports\0"));
        assert!(!is_port(b"add@/devices/x\0SUBSYSTEM=virtio\0"));
    }

    #[test]
    fn the_port_is_waited_for_with_a_deadline_that_says_so() {
        let ports = Ports::listen().unwrap();
        let error = wait(&ports.uevents, Instant::now()).unwrap_err();
        assert!(matches!(error, Error::NoPort { .. }), "{error}");
    }
}
