//! Many streams at once, every byte checked.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::*;

/// A transport that gives and takes odd amounts, and sometimes none.
struct Choppy {
    io: DuplexStream,
    noise: Noise,
}

impl Choppy {
    /// How much to move now; `None` to be asked again later.
    fn portion(&mut self, cx: &Context<'_>, most: usize) -> Option<usize> {
        match self.noise.below(8) {
            0 => {
                cx.waker().wake_by_ref();
                None
            }
            1 => Some(most.min(1 + self.noise.below(13))),
            2..4 => Some(most.min(1 + self.noise.below(5000))),
            _ => Some(most),
        }
    }
}

impl AsyncRead for Choppy {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Some(n) = self.portion(cx, buf.remaining()) else { return Poll::Pending };
        let mut part = vec![0; n];
        let mut part = ReadBuf::new(&mut part);
        std::task::ready!(Pin::new(&mut self.io).poll_read(cx, &mut part))?;
        buf.put_slice(part.filled());
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Choppy {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let Some(n) = self.portion(cx, data.len()) else { return Poll::Pending };
        Pin::new(&mut self.io).poll_write(cx, &data[..n])
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

/// The byte at `offset` of what goes over a stream in one direction.
fn byte(seed: u32, offset: usize) -> u8 {
    let mixed = (offset as u64 ^ (u64::from(seed) << 32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed.to_be_bytes()[0]
}

/// Writes `length` bytes in odd pieces and closes.
async fn send<W: AsyncWrite + Unpin>(mut to: W, seed: u32, length: usize) {
    let mut noise = Noise(u64::from(seed) + 1);
    let mut at = 0;
    while at < length {
        let n = (1 + noise.of_order(&[100, 5000, 70_000])).min(length - at);
        let piece: Vec<u8> = (at..at + n).map(|offset| byte(seed, offset)).collect();
        to.write_all(&piece).await.unwrap();
        at += n;
        if noise.below(4) == 0 {
            tokio::task::yield_now().await;
        }
    }
    to.shutdown().await.unwrap();
}

/// Reads to the end in odd pieces, now and then resting, and checks every byte.
async fn check<R: AsyncRead + Unpin>(mut from: R, seed: u32, length: usize) {
    let mut noise = Noise(u64::from(seed) + 7);
    let mut at = 0;
    let mut buf = vec![0; 100_000];
    loop {
        let want = 1 + noise.of_order(&[10, 3000, 100_000]);
        let n = from.read(&mut buf[..want]).await.unwrap();
        if n == 0 {
            break;
        }
        for (i, &got) in buf[..n].iter().enumerate() {
            assert_eq!(got, byte(seed, at + i), "byte {} of direction {seed}", at + i);
        }
        at += n;
        for _ in 0..noise.below(4) {
            tokio::task::yield_now().await;
        }
    }
    assert_eq!(at, length, "direction {seed}");
}

async fn exchange(stream: Stream, out: u32, sent: usize, back: u32, received: usize) {
    let (read, write) = tokio::io::split(stream);
    let sender = tokio::spawn(send(write, out, sent));
    check(read, back, received).await;
    sender.await.unwrap();
}

#[tokio::test]
async fn random_work_on_many_streams_arrives_whole() {
    let (here, there) = duplex(10_000);
    let choppy = |io, seed| Choppy { io, noise: Noise(seed) };
    let (host, _, driver) = connect(choppy(here, 5), Side::Host, Limits::host());
    tokio::spawn(driver);
    let (guest, mut accept, driver) = connect(choppy(there, 6), Side::Guest, Limits::guest());
    tokio::spawn(driver);
    let mut noise = Noise(42);
    // Some streams are dropped half-way, with data of both directions under way; they must not disturb the others.
    let plan: Vec<(usize, usize, bool)> = (0..300)
        .map(|_| {
            let mut size = || noise.of_order(&[1, 500, 30_000, 600_000]);
            (size(), size(), noise.below(5) == 0)
        })
        .collect();
    let served = plan.clone();
    let server = tokio::spawn(async move {
        let mut tasks = Vec::new();
        for (n, (there, back, dropped)) in served.into_iter().enumerate() {
            let mut stream = accept.accept().await.unwrap();
            assert_eq!(stream.id(), 2 * n as u32 + 1);
            tasks.push(tokio::spawn(async move {
                if dropped {
                    let _ = stream.write(&[1; 10_000]).await;
                    let _ = stream.read(&mut [0; 1000]).await;
                } else {
                    let id = stream.id();
                    exchange(stream, id + 1, back, id, there).await;
                }
            }));
        }
        for task in tasks {
            task.await.unwrap();
        }
    });
    let mut tasks = Vec::new();
    for (there, back, dropped) in plan {
        let mut stream = host.open().unwrap();
        tasks.push(tokio::spawn(async move {
            if dropped {
                let _ = stream.write(&[1; 50_000]).await;
                let _ = stream.read(&mut [0; 1000]).await;
            } else {
                let id = stream.id();
                exchange(stream, id, there, id + 1, back).await;
            }
        }));
        if tasks.len() % 20 == 0 {
            settle().await;
        }
    }
    for task in tasks {
        soon("a stream", task).await.unwrap();
    }
    soon("the server", server).await.unwrap();
    settle().await;
    assert_eq!((host.streams(), guest.streams()), (0, 0));
}

/// Both directions of many streams full, readers slower than writers, over a socket and over many threads: the place
/// where credit that waits behind data would stop everything.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn full_streams_with_slow_readers_never_stop() {
    const STREAMS: usize = 64;
    const LENGTH: usize = 700_000;
    let (here, there) = tokio::net::UnixStream::pair().unwrap();
    let (host, _, driver) = connect(here, Side::Host, Limits::host());
    tokio::spawn(driver);
    let (guest, mut accept, driver) = connect(there, Side::Guest, Limits::guest());
    tokio::spawn(driver);
    let mut tasks = Vec::new();
    for _ in 0..STREAMS {
        let stream = host.open().unwrap();
        let id = stream.id();
        tasks.push(tokio::spawn(exchange(stream, id, LENGTH, id + 1, LENGTH)));
    }
    for _ in 0..STREAMS {
        let stream = accept.accept().await.unwrap();
        let id = stream.id();
        tasks.push(tokio::spawn(exchange(stream, id + 1, LENGTH, id, LENGTH)));
    }
    for task in tasks {
        soon("a stream", task).await.unwrap();
    }
    while (host.streams(), guest.streams()) != (0, 0) {
        soon("the last frames", tokio::time::sleep(Duration::from_millis(1))).await;
    }
}
