//! Tests of the whole channel, over a transport in memory.

mod fairness;
mod flow;
mod hostile;
mod interop;
mod life;
mod soak;

use std::future::Future;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::wire::{HEADER, Header, INITIAL_WINDOW, Kind, flag};
use crate::{Acceptor, Error, Limits, Opener, Side, Stream, connect};

/// Both ends of a channel, with their drivers running.
struct Pair {
    host: Opener,
    guest: Opener,
    accept: Acceptor,
    host_driver: JoinHandle<Result<(), Error>>,
    guest_driver: JoinHandle<Result<(), Error>>,
}

fn pair_over(capacity: usize) -> Pair {
    let (here, there) = duplex(capacity);
    let (host, _, driver) = connect(here, Side::Host, Limits::host());
    let host_driver = tokio::spawn(driver);
    let (guest, accept, driver) = connect(there, Side::Guest, Limits::guest());
    let guest_driver = tokio::spawn(driver);
    Pair { host, guest, accept, host_driver, guest_driver }
}

fn pair() -> Pair {
    pair_over(64 << 10)
}

impl Pair {
    /// A stream and its other end.
    async fn stream(&mut self) -> (Stream, Stream) {
        let here = self.host.open().unwrap();
        let there = self.accept.accept().await.unwrap();
        assert_eq!(here.id(), there.id());
        (here, there)
    }
}

/// A peer of which the test writes every frame.
struct Raw {
    io: DuplexStream,
}

impl Raw {
    async fn send(&mut self, header: Header, data: &[u8]) {
        let mut frame = header.encode().to_vec();
        frame.extend_from_slice(data);
        self.io.write_all(&frame).await.unwrap();
    }

    async fn data(&mut self, flags: u16, id: u32, data: &[u8]) {
        let value = u32::try_from(data.len()).unwrap();
        self.send(Header { kind: Kind::Data, flags, id, value }, data).await;
    }

    async fn window(&mut self, flags: u16, id: u32, credit: u32) {
        self.send(Header::window(flags, id, credit), &[]).await;
    }

    async fn control(&mut self, kind: Kind, flags: u16, value: u32) {
        self.send(Header { kind, flags, id: 0, value }, &[]).await;
    }

    async fn recv(&mut self) -> (Header, Vec<u8>) {
        let mut bytes = [0; HEADER];
        self.io.read_exact(&mut bytes).await.expect("a frame");
        let header = Header::decode(&bytes).unwrap();
        let length = if header.kind == Kind::Data { header.value as usize } else { 0 };
        let mut data = vec![0; length];
        self.io.read_exact(&mut data).await.unwrap();
        (header, data)
    }

    /// Asserts that the channel has nothing to say.
    async fn silence(&mut self) {
        settle().await;
        let mut byte = [0];
        let read = timeout(Duration::from_millis(20), self.io.read(&mut byte)).await;
        assert!(read.is_err(), "unexpected output");
    }
}

type Raws = (Raw, Opener, Acceptor, JoinHandle<Result<(), Error>>);

/// A channel whose other end is the test.
fn raw_over(capacity: usize, side: Side, limits: Limits) -> Raws {
    let (here, there) = duplex(capacity);
    let (opener, acceptor, driver) = connect(there, side, limits);
    (Raw { io: here }, opener, acceptor, tokio::spawn(driver))
}

fn raw(side: Side, limits: Limits) -> Raws {
    raw_over(1 << 20, side, limits)
}

/// Lets every other task run until it waits.
async fn settle() {
    for _ in 0..200 {
        tokio::task::yield_now().await;
    }
}

/// Bounds a wait of a test.
async fn soon<F: Future>(what: &str, future: F) -> F::Output {
    timeout(Duration::from_secs(60), future).await.unwrap_or_else(|_| panic!("no end of waiting for {what}"))
}

/// The error of the channel inside an error of a stream.
fn cause(error: &std::io::Error) -> &Error {
    error.get_ref().unwrap().downcast_ref::<Error>().unwrap()
}

/// Deterministic noise.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, bound: usize) -> usize {
        ((self.next() >> 11) % bound as u64) as usize
    }

    /// A number below one of the bounds, each as likely: sizes of every order.
    fn of_order(&mut self, bounds: &[usize]) -> usize {
        let bound = bounds[self.below(bounds.len())];
        self.below(bound)
    }
}
