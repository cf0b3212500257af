//! A tap device in a network namespace of its own.

use std::{
    fs::{self, File},
    io,
    os::fd::{AsRawFd, OwnedFd},
    sync::mpsc,
    thread,
};

const NAME: &str = "guest0";
/// `TUNSETIFF`
const SET_INTERFACE: libc::c_ulong = 0x4004_54ca;
/// `SIOCSIFFLAGS`
const SET_FLAGS: libc::c_ulong = 0x8914;

/// A tap device with a number of queues, and the thread that lives where it is.
pub(crate) struct Tap {
    pub(crate) queues: Vec<OwnedFd>,
    ask: mpsc::Sender<mpsc::Sender<u64>>,
}

impl Tap {
    /// `None`, with the reason printed, where such a device cannot be had.
    pub(crate) fn new(queues: usize) -> Option<Self> {
        let (made, making) = mpsc::channel();
        let (ask, asked) = mpsc::channel::<mpsc::Sender<u64>>();
        thread::spawn(move || {
            made.send(make(queues)).unwrap();
            for answer in asked {
                answer.send(received()).unwrap();
            }
        });
        match making.recv().unwrap() {
            Ok(queues) => Some(Self { queues, ask }),
            Err(error) => {
                eprintln!("skipped: no tap device in a network namespace can be made here ({error})");
                None
            }
        }
    }

    /// Packets that the host had from it.
    pub(crate) fn received(&self) -> u64 {
        let (answer, answered) = mpsc::channel();
        self.ask.send(answer).unwrap();
        answered.recv().unwrap()
    }
}

fn make(queues: usize) -> io::Result<Vec<OwnedFd>> {
    // SAFETY: the calling thread alone enters a namespace; nobody else's memory or descriptors depend on it.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNET)? };
    let mut request = [0_u8; 40];
    request[..NAME.len()].copy_from_slice(NAME.as_bytes());
    let multiple = if queues > 1 { libc::IFF_MULTI_QUEUE } else { 0 };
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | multiple;
    request[16..18].copy_from_slice(&u16::try_from(flags).unwrap().to_ne_bytes());
    let open = || {
        let file = File::options().read(true).write(true).open("/dev/net/tun")?;
        set(&file, SET_INTERFACE, &mut request.clone())?;
        Ok(file.into())
    };
    let opened = (0..queues).map(|_| open()).collect::<io::Result<Vec<OwnedFd>>>()?;
    let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
    request[16..18].copy_from_slice(&u16::try_from(libc::IFF_UP).unwrap().to_ne_bytes());
    set(&socket, SET_FLAGS, &mut request)?;
    Ok(opened)
}

fn set(on: &impl AsRawFd, request: libc::c_ulong, interface: &mut [u8; 40]) -> io::Result<()> {
    // SAFETY: both requests take an ifreq, which is 40 bytes.
    let result = unsafe { libc::ioctl(on.as_raw_fd(), request as _, interface.as_mut_ptr()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn received() -> u64 {
    let table = fs::read_to_string("/proc/thread-self/net/dev").unwrap();
    let line = table.lines().find_map(|line| line.trim_start().strip_prefix(NAME)?.strip_prefix(':')).unwrap_or("0 0");
    line.split_ascii_whitespace().nth(1).unwrap().parse().unwrap()
}
