//! Peers that break the protocol, flood, or send noise.

use super::*;
use crate::Violation;
use crate::channel::Channel;
use crate::inbound::Payload;

fn data(flags: u16, id: u32, value: u32) -> Header {
    Header { kind: Kind::Data, flags, id, value }
}

#[tokio::test]
async fn violations_end_the_channel_and_are_named() {
    const SYN: u16 = flag::SYN;
    let open = Header::window(SYN, 1, 0);
    let mut bad = [[0; HEADER]; 2];
    bad[0][0] = 9;
    bad[1][1] = 4;
    let encode = |headers: &[Header]| headers.iter().flat_map(Header::encode).collect::<Vec<u8>>();
    let window = INITIAL_WINDOW;
    let cases: Vec<(Vec<u8>, Violation)> = vec![
        (bad[0].to_vec(), Violation::Version(9)),
        (bad[1].to_vec(), Violation::Type(4)),
        (encode(&[Header::window(32, 1, 0)]), Violation::Flags(32)),
        (encode(&[data(SYN, 0, 0)]), Violation::Id(0)),
        (encode(&[Header::window(SYN, 2, 0)]), Violation::ForeignId(2)),
        (encode(&[open, open]), Violation::ReusedId(1)),
        (encode(&[open, Header::window(flag::RST, 1, 0), open]), Violation::ReusedId(1)),
        (encode(&[data(0, 1, 5)]), Violation::NeverOpened(1)),
        (encode(&[Header::window(0, 2, 5)]), Violation::NeverOpened(2)),
        (
            encode(&[open, data(0, 1, window + 1)]),
            Violation::FrameTooLong { id: 1, announced: window + 1, limit: window },
        ),
        (
            [encode(&[data(SYN, 1, 10)]), vec![0; 10], encode(&[data(0, 1, window)])].concat(),
            Violation::WindowOverrun { id: 1, announced: window, window: window - 10 },
        ),
        (encode(&[open, data(flag::FIN, 1, 0), data(0, 1, 1)]), Violation::DataAfterFin(1)),
        (encode(&[open, Header::window(0, 1, u32::MAX)]), Violation::CreditOverflow(1)),
        (
            // Reset by the peer itself: nothing more can come.
            encode(&[open, Header::window(flag::RST, 1, 0), data(0, 1, 1)]),
            Violation::ClosedOverrun(1),
        ),
    ];
    for (bytes, violation) in cases {
        let (mut raw, opener, mut acceptor, driver) = raw(Side::Guest, Limits::guest());
        raw.io.write_all(&bytes).await.unwrap();
        let result = soon("the driver", driver).await.unwrap();
        assert!(matches!(&result, Err(Error::Protocol(is)) if *is == violation), "{violation:?}: {result:?}");
        let (last, _) = raw.recv().await;
        assert_eq!((last.kind, last.value), (Kind::GoAway, 1), "{violation:?}");
        assert_eq!(raw.io.read(&mut [0]).await.unwrap(), 0);
        assert!(acceptor.accept().await.is_none());
        assert!(matches!(opener.open(), Err(Error::Closed { .. })));
    }
}

#[tokio::test]
async fn a_violation_does_not_wait_for_a_peer_that_reads_nothing() {
    let (mut raw, opener, _acceptor, driver) = raw_over(64, Side::Host, Limits::host());
    let mut stream = opener.open().unwrap();
    stream.write_all(&[0; 10_000]).await.unwrap();
    settle().await;
    raw.data(0, 77, b"").await;
    assert!(matches!(soon("the driver", driver).await.unwrap(), Err(Error::Protocol(_))));
}

#[tokio::test]
async fn data_in_flight_to_a_dropped_stream_is_tolerated_and_bounded() {
    let (mut raw, opener, _acceptor, driver) = raw(Side::Host, Limits::host());
    let stream = opener.open().unwrap();
    raw.recv().await;
    raw.data(0, 1, &[0; 1000]).await;
    // Dropped in the middle of a frame.
    raw.io.write_all(&data(0, 1, 2000).encode()).await.unwrap();
    raw.io.write_all(&[0; 500]).await.unwrap();
    settle().await;
    drop(stream);
    assert_eq!(soon("the reset", raw.recv()).await.0, Header::window(flag::RST, 1, 0));
    raw.io.write_all(&[0; 1500]).await.unwrap();
    let left = INITIAL_WINDOW as usize - 3000;
    raw.data(0, 1, &vec![0; left - 10]).await;
    raw.window(0, 1, 5).await;
    raw.data(flag::FIN, 1, &[0; 10]).await;
    // The channel works as before.
    let mut next = opener.open().unwrap();
    raw.recv().await;
    raw.data(0, 3, b"fine").await;
    let mut got = [0; 4];
    soon("data", next.read_exact(&mut got)).await.unwrap();
    raw.data(0, 1, b"x").await;
    let result = soon("the driver", driver).await.unwrap();
    assert!(matches!(result, Err(Error::Protocol(Violation::ClosedOverrun(1)))), "{result:?}");
}

#[tokio::test]
async fn a_host_refuses_every_stream() {
    let (mut raw, opener, mut acceptor, _driver) = raw(Side::Host, Limits::host());
    for id in [2, 4, 6] {
        raw.data(flag::SYN, id, b"let me in").await;
        assert_eq!(soon("the refusal", raw.recv()).await.0, Header::window(flag::RST, id, 0));
        raw.data(flag::FIN, id, b"please").await;
    }
    assert_eq!(opener.streams(), 0);
    assert!(timeout(Duration::from_millis(20), acceptor.accept()).await.is_err());
}

#[tokio::test]
async fn streams_over_the_limits_are_refused_until_there_is_room() {
    for limits in [Limits { accept_streams: 3, ..Limits::guest() }, Limits { accept_backlog: 3, ..Limits::guest() }] {
        let backlog = limits.accept_backlog == 3;
        let (mut raw, _opener, mut acceptor, _driver) = raw(Side::Guest, limits);
        for id in [1, 3, 5, 7] {
            raw.window(flag::SYN, id, 0).await;
        }
        assert_eq!(soon("the refusal", raw.recv()).await.0, Header::window(flag::RST, 7, 0));
        let first = acceptor.accept().await.unwrap();
        assert_eq!(first.id(), 1);
        if !backlog {
            raw.window(flag::SYN, 9, 0).await;
            assert_eq!(soon("the refusal", raw.recv()).await.0, Header::window(flag::RST, 9, 0));
            drop(first);
            assert_eq!(soon("the reset", raw.recv()).await.0, Header::window(flag::RST | flag::ACK, 1, 0));
        }
        raw.window(flag::SYN, 11, 0).await;
        for id in [3, 5, 11] {
            assert_eq!(soon("a stream", acceptor.accept()).await.unwrap().id(), id);
        }
    }
}

#[tokio::test]
async fn dropping_the_acceptor_resets_what_waits_and_refuses_the_rest() {
    let (mut raw, opener, acceptor, _driver) = raw(Side::Guest, Limits::guest());
    raw.data(flag::SYN, 1, b"waiting").await;
    settle().await;
    drop(acceptor);
    assert_eq!(soon("the reset", raw.recv()).await.0, Header::window(flag::RST | flag::ACK, 1, 0));
    raw.window(flag::SYN, 3, 0).await;
    assert_eq!(soon("the refusal", raw.recv()).await.0, Header::window(flag::RST, 3, 0));
    assert_eq!(opener.streams(), 0);
}

#[tokio::test]
async fn opening_and_resetting_in_a_loop_fills_the_backlog_and_no_more() {
    let (mut raw, opener, mut acceptor, _driver) = raw(Side::Guest, Limits { accept_backlog: 10, ..Limits::guest() });
    for n in 0..500 {
        raw.data(flag::SYN, 2 * n + 1, &[1; 100]).await;
        raw.window(flag::RST, 2 * n + 1, 0).await;
    }
    settle().await;
    assert_eq!(opener.streams(), 10);
    // What had arrived can be read, then the reset shows.
    let mut stream = acceptor.accept().await.unwrap();
    let mut got = Vec::new();
    assert_eq!(stream.read_to_end(&mut got).await.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
    assert_eq!(got.len(), 100);
}

#[tokio::test]
async fn a_flood_of_pings_that_reads_no_answer_costs_one_answer() {
    let (mut raw, opener, ..) = raw_over(1 << 10, Side::Host, Limits::host());
    // The transport is blocked by data, and somebody keeps writing.
    let mut stream = opener.open().unwrap();
    raw.window(0, 1, 1 << 30).await;
    tokio::spawn(async move { while stream.write(&[0; 1 << 20]).await.is_ok() {} });
    settle().await;
    for cookie in 0..50_000 {
        raw.control(Kind::Ping, flag::SYN, cookie).await;
    }
    settle().await;
    let (mut total, mut answers) = (0, Vec::new());
    while answers.last() != Some(&49_999) {
        let (header, data) = soon("the answer", raw.recv()).await;
        total += HEADER + data.len();
        if header.kind == Kind::Ping {
            answers.push(header.value);
        }
    }
    assert!(total < 100 << 10 && answers.len() < 100, "{total} bytes, {} answers", answers.len());
}

#[tokio::test]
async fn an_answer_that_nobody_asked_for_is_no_more_than_noted() {
    let (mut raw, opener, _acceptor, driver) = raw(Side::Host, Limits::host());
    assert_eq!(opener.answered(), None);
    raw.control(Kind::Ping, flag::ACK, 3).await;
    raw.silence().await;
    assert!(!driver.is_finished());
    assert_eq!(opener.answered(), Some(3));
}

#[tokio::test]
async fn refusals_that_nobody_reads_end_the_channel() {
    let (mut raw, _opener, _acceptor, driver) = raw_over(64, Side::Host, Limits::host());
    let flood = async {
        for id in 1..u32::MAX / 2 {
            if raw.io.write_all(&Header::window(flag::SYN, 2 * id, 0).encode()).await.is_err() {
                break;
            }
        }
    };
    soon("the end of the flood", flood).await;
    let result = soon("the driver", driver).await.unwrap();
    assert!(matches!(result, Err(Error::Protocol(Violation::OpenFlood))), "{result:?}");
}

#[test]
fn a_dropped_stream_holds_nothing_even_while_its_reset_waits() {
    let channel = Channel::new(Side::Guest, Limits::guest());
    let mut payload = Payload::default();
    let mut frame = data(flag::SYN, 1, 50_000).encode().to_vec();
    frame.resize(HEADER + 50_000, 0);
    channel.with(|core| {
        core.receive(&mut payload, &frame).unwrap();
        assert!(core.streams[&1].unread.allocated() >= 50_000);
        core.stop_accepting();
        assert_eq!(core.streams[&1].unread.allocated(), 0);
        frame[2..4].copy_from_slice(&0_u16.to_be_bytes());
        core.receive(&mut payload, &frame).unwrap();
        assert_eq!(core.streams[&1].unread.allocated(), 0);
    });
}

/// What all streams of a channel hold must be within their windows, whatever arrives.
fn check_memory(channel: &Channel) {
    channel.with(|core| {
        for (id, slot) in &core.streams {
            let (held, took) = (slot.unread.len(), slot.unread.allocated());
            assert!(held <= INITIAL_WINDOW as usize, "stream {id} holds {held} bytes");
            assert!(took <= held + (40 << 10), "stream {id} took {took} bytes for {held}");
        }
        assert!(core.streams.len() <= 32);
    });
}

/// Frames that mostly keep to the protocol, to a channel of `side` that has opened `own` streams, with a few among them
/// that do not.
fn plausible(noise: &mut Noise, side: Side, own: u32) -> Vec<u8> {
    let (mut bytes, mut opened) = (Vec::new(), 0);
    for _ in 0..noise.below(120) {
        let kind = match noise.below(30) {
            0 => Kind::Ping,
            1 if noise.below(4) == 0 => Kind::GoAway,
            n if n % 2 == 0 => Kind::Data,
            _ => Kind::Window,
        };
        let opens = noise.below(4) == 0;
        let of_stream = matches!(kind, Kind::Data | Kind::Window);
        let mine = !opens && noise.below(2) == 0 && own > 0;
        let index = if mine {
            noise.below(own as usize) as u32
        } else {
            opened += u32::from(opens && of_stream);
            if opens { opened } else { noise.below(opened as usize + 1) as u32 }
        };
        let odd = u32::from(mine == (side == Side::Host));
        let mut header = Header {
            kind,
            flags: if opens && of_stream { flag::SYN } else { 0 }
                | [0, 0, flag::ACK, flag::FIN, flag::RST][noise.below(5)],
            id: if of_stream { 2 * index + if odd == 1 { 1 } else { 2 } } else { 0 },
            value: noise.of_order(&[1, 100, 5000, 100_000]) as u32,
        };
        match noise.below(200) {
            0 => header.value = noise.next() as u32,
            1 => header.flags = noise.next() as u16 & flag::ALL,
            2 => header.id = noise.below(20) as u32,
            _ => {}
        }
        bytes.extend_from_slice(&header.encode());
        if kind == Kind::Data {
            let length = if noise.below(200) == 0 { noise.below(20_000) } else { header.value as usize % 400_000 };
            bytes.resize(bytes.len() + length, 0xaa);
        }
    }
    bytes
}

#[test]
fn noise_of_any_kind_neither_panics_nor_takes_memory() {
    let mut noise = Noise(0x1234_5678_9abc_def1);
    let (mut ended, mut accepted) = (0, 0);
    for case in 0..4000 {
        let side = if case % 2 == 0 { Side::Host } else { Side::Guest };
        let limits = Limits { accept_streams: 16, accept_backlog: 8, open_streams: 16, ..Limits::default() };
        let channel = Channel::new(side, limits);
        let mut own: Vec<u32> = (0..noise.below(6)).map(|_| channel.with(|core| core.open()).unwrap()).collect();
        let bytes: Vec<u8> = if case % 4 < 2 {
            // With many zeros, so that some of it passes for headers.
            (0..noise.below(400)).map(|_| if noise.below(4) > 0 { 0 } else { noise.next() as u8 % 9 }).collect()
        } else {
            plausible(&mut noise, side, own.len() as u32)
        };
        let (mut payload, mut pending, mut output) = (Payload::default(), Vec::new(), Vec::new());
        let cx = std::task::Context::from_waker(std::task::Waker::noop());
        for piece in bytes.chunks(1 + noise.below(30_000)) {
            pending.extend_from_slice(piece);
            match channel.with(|core| core.receive(&mut payload, &pending)) {
                Ok(used) => {
                    pending.drain(..used);
                    assert!(pending.len() < HEADER);
                }
                Err(error) => {
                    channel.with(|core| core.finish(error));
                    ended += 1;
                }
            }
            check_memory(&channel);
            // What the local side might do meanwhile.
            match noise.below(5) {
                0 => channel.with(|core| core.take_output(&mut output)),
                1 => {
                    if let std::task::Poll::Ready(Some(id)) = channel.with(|core| core.poll_accept(&cx)) {
                        own.push(id);
                        accepted += 1;
                    }
                }
                2 if !own.is_empty() => {
                    let id = own.swap_remove(noise.below(own.len()));
                    channel.with(|core| core.release(id));
                }
                3 if !own.is_empty() => {
                    let id = own[noise.below(own.len())];
                    let mut buf = vec![0; noise.below(40_000)];
                    let mut buf = tokio::io::ReadBuf::new(&mut buf);
                    let _ = channel.with(|core| core.poll_read(id, &cx, &mut buf));
                }
                4 if !own.is_empty() => {
                    let id = own[noise.below(own.len())];
                    let _ = channel.with(|core| core.poll_write(id, &cx, &[0; 20_000]));
                    let _ = if noise.below(4) == 0 { channel.with(|core| core.shut_down(id)) } else { Ok(()) };
                }
                _ => {}
            }
            assert!(output.len() <= 64 << 10);
            if channel.with(|core| core.ended().is_some()) {
                break;
            }
        }
        for id in own {
            channel.with(|core| core.release(id));
        }
        channel.with(|core| core.take_output(&mut output));
    }
    assert!(ended > 500 && accepted > 100, "{ended} channels ended, {accepted} streams were accepted: too tame");
}

#[tokio::test]
async fn noise_ends_the_driver_or_leaves_it_waiting() {
    let mut noise = Noise(77);
    for case in 0..500 {
        let side = if case % 2 == 0 { Side::Host } else { Side::Guest };
        let (mut raw, _opener, _acceptor, driver) = raw_over(1 << 20, side, Limits::default());
        let bytes = plausible(&mut noise, side, 0);
        let _ = raw.io.write_all(&bytes[..bytes.len().min(1 << 20)]).await;
        drop(raw);
        // Whatever it was, the end of the transport is the end of the driver.
        let _ = soon("the driver", driver).await.unwrap();
    }
}
