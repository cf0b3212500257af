//! Turns, and what a flood may cost others.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;

use tokio::io::AsyncWrite;

use super::*;
use crate::outbound::{BUFFER, RESERVE, TURN};

/// Opens `count` streams and floods them, with more credit than they will use.
async fn flood(raw: &mut Raw, opener: &Opener, count: u32, piece: usize) {
    for _ in 0..count {
        let mut stream = opener.open().unwrap();
        let id = stream.id();
        tokio::spawn(async move {
            let data = vec![id.to_le_bytes()[0]; piece];
            while stream.write(&data).await.is_ok() {}
        });
        raw.window(0, id, 1 << 30).await;
    }
    settle().await;
}

#[tokio::test]
async fn floods_take_turns() {
    for piece in [100, 7000, 1 << 20] {
        // The transport is smaller than a frame, so that the writers are always ahead of it.
        let (mut raw, opener, ..) = raw_over(8 << 10, Side::Host, Limits::host());
        flood(&mut raw, &opener, 5, piece).await;
        let mut sent = BTreeMap::<u32, usize>::new();
        for _ in 0..400 {
            let (header, data) = soon("a frame", raw.recv()).await;
            assert!(data.len() + HEADER <= TURN, "{} bytes in one frame", data.len());
            assert!(data.iter().all(|&byte| byte == header.id.to_le_bytes()[0]));
            *sent.entry(header.id).or_default() += data.len();
        }
        let (least, most) = (sent.values().min().unwrap(), sent.values().max().unwrap());
        assert_eq!(sent.len(), 5);
        assert!(most - least <= 4 * TURN, "pieces of {piece}: {sent:?}");
    }
}

#[tokio::test]
async fn what_is_queued_in_front_of_the_transport_is_bounded() {
    for piece in [1000, 4000, 100_000] {
        let (_raw, opener, ..) = raw_over(64, Side::Host, Limits::host());
        let queued = Arc::new(AtomicUsize::new(0));
        for _ in 0..100 {
            let (mut stream, queued) = (opener.open().unwrap(), queued.clone());
            tokio::spawn(async move {
                while let Ok(n) = stream.write(&vec![0; piece]).await {
                    queued.fetch_add(n, Ordering::Relaxed);
                }
            });
        }
        settle().await;
        let queued = queued.load(Ordering::Relaxed);
        assert!(queued > TURN, "{queued} bytes were taken, of pieces of {piece}");
        assert!(queued <= 2 * BUFFER + RESERVE, "{queued} bytes were taken, of pieces of {piece}");
    }
}

#[tokio::test]
async fn a_call_among_floods_waits_for_two_buffers_at_most() {
    let (mut raw, opener, ..) = raw_over(1 << 10, Side::Host, Limits::host());
    flood(&mut raw, &opener, 30, 1 << 20).await;
    for _ in 0..20 {
        let mut stream = opener.open().unwrap();
        let call = stream.id();
        soon("room for a call", stream.write_all(&[0; 300])).await.unwrap();
        let mut before = 0;
        loop {
            let (header, data) = soon("a frame", raw.recv()).await;
            if header.id == call && header.kind == Kind::Data {
                break;
            }
            before += HEADER + data.len();
        }
        assert!(before <= 2 * BUFFER + 1024, "{before} bytes went before it");
        // The floods fill the buffers again.
        settle().await;
    }
}

#[tokio::test]
async fn quiet_streams_cannot_starve_a_flood() {
    let (mut raw, opener, ..) = raw_over(1 << 10, Side::Host, Limits::host());
    flood(&mut raw, &opener, 1, 1 << 20).await;
    for _ in 0..64 {
        let mut stream = opener.open().unwrap();
        raw.window(0, stream.id(), 1 << 30).await;
        tokio::spawn(async move { while stream.write_all(&[0; 3000]).await.is_ok() {} });
    }
    let mut sent = BTreeMap::<u32, usize>::new();
    for _ in 0..3000 {
        let (header, data) = soon("a frame", raw.recv()).await;
        *sent.entry(header.id).or_default() += data.len();
    }
    let total: usize = sent.values().sum();
    assert!(sent[&1] >= total / 65 / 2, "{} of {total} bytes", sent[&1]);
    assert!(sent.values().all(|&n| n > 0));
}

#[tokio::test]
async fn answers_go_ahead_of_data() {
    let (mut raw, opener, ..) = raw_over(1 << 10, Side::Host, Limits::host());
    flood(&mut raw, &opener, 30, 1 << 20).await;
    raw.control(Kind::Ping, flag::SYN, 77).await;
    settle().await;
    let mut before = 0;
    loop {
        let (header, data) = soon("the answer", raw.recv()).await;
        if header.kind == Kind::Ping {
            assert_eq!((header.flags, header.value), (flag::ACK, 77));
            break;
        }
        before += HEADER + data.len();
    }
    assert!(before <= 2 * BUFFER + 1024, "{before} bytes went before it");
}

#[tokio::test]
async fn small_writes_join_into_one_frame() {
    let (mut raw, opener, ..) = raw(Side::Host, Limits::host());
    let mut stream = opener.open().unwrap();
    for n in 0..1000_u32 {
        stream.write_all(&n.to_le_bytes()).await.unwrap();
    }
    stream.shutdown().await.unwrap();
    assert_eq!(raw.recv().await.0.flags, flag::SYN);
    let (header, data) = raw.recv().await;
    assert_eq!(header.value, 4000);
    assert!(data.chunks(4).zip(0_u32..).all(|(bytes, n)| bytes == n.to_le_bytes()));
    assert_eq!(raw.recv().await.0, Header::window(flag::FIN, 1, 0));
}

/// Tries once to write more than a turn.
async fn poll_write(stream: &mut Stream) -> Poll<std::io::Result<usize>> {
    std::future::poll_fn(|cx| Poll::Ready(Pin::new(&mut *stream).poll_write(cx, &[0; 20_000]))).await
}

#[tokio::test]
async fn a_writer_that_never_takes_its_turn_holds_up_nobody() {
    let (mut raw, opener, ..) = raw_over(1 << 10, Side::Host, Limits::host());
    flood(&mut raw, &opener, 2, 1 << 20).await;
    // Queued, and never polled again, in two ways: one is dropped, the others are not.
    let mut idle: Vec<Stream> = (0..10).map(|_| opener.open().unwrap()).collect();
    for stream in &mut idle {
        assert!(poll_write(stream).await.is_pending());
    }
    idle.pop();
    let mut sent = BTreeMap::<u32, usize>::new();
    for _ in 0..200 {
        let (header, data) = soon("a frame", raw.recv()).await;
        *sent.entry(header.id).or_default() += data.len();
    }
    assert!(sent[&1] > 500_000 && sent[&3] > 500_000, "{sent:?}");
    assert!(idle.iter().all(|stream| sent.get(&stream.id()) == Some(&0)));
}

#[tokio::test]
async fn turns_that_are_never_taken_do_not_keep_a_newcomer_from_an_idle_transport() {
    let (mut raw, opener, ..) = raw_over(1 << 10, Side::Host, Limits::host());
    let mut idle = [opener.open().unwrap(), opener.open().unwrap()];
    let mut third = opener.open().unwrap();
    settle().await;
    // Both write until they are queued, and never again.
    let mut left = 0;
    for stream in &mut idle {
        while let Poll::Ready(n) = poll_write(stream).await {
            left += n.unwrap();
        }
    }
    while left > 0 {
        left -= soon("a frame", raw.recv()).await.1.len();
    }
    settle().await;
    // The queue is empty now, the driver has nothing to do, and both turns are still out.
    let writer = tokio::spawn(async move { (third.write_all(&[3; 10_000]).await.unwrap(), third).1 });
    let mut left = 10_000;
    while left > 0 {
        left -= soon("a frame", raw.recv()).await.1.len();
    }
    soon("the writer", writer).await.unwrap();
}
