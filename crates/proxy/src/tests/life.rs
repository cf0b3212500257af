//! Opening, closing, resetting, and the end of the channel.

use std::io::ErrorKind;

use super::*;

#[tokio::test]
async fn a_ping_is_answered_by_the_other_side() {
    let pair = pair();
    for cookie in [7, 8] {
        pair.host.ping(cookie);
        settle().await;
        assert_eq!(pair.host.answered(), Some(cookie));
    }
    assert_eq!(pair.guest.answered(), None);
}

#[tokio::test]
async fn both_halves_close_independently() {
    let mut pair = pair();
    let (mut here, mut there) = pair.stream().await;
    here.write_all(b"ping").await.unwrap();
    here.shutdown().await.unwrap();
    assert_eq!(here.write(b"x").await.unwrap_err().kind(), ErrorKind::BrokenPipe);
    let mut got = Vec::new();
    soon("the host's half", there.read_to_end(&mut got)).await.unwrap();
    assert_eq!(got, b"ping");
    there.write_all(&vec![7; 100_000]).await.unwrap();
    there.shutdown().await.unwrap();
    there.shutdown().await.unwrap();
    got.clear();
    soon("the guest's half", here.read_to_end(&mut got)).await.unwrap();
    assert_eq!(got, vec![7; 100_000]);
    drop((here, there));
    settle().await;
    assert_eq!((pair.host.streams(), pair.guest.streams()), (0, 0));
}

#[tokio::test]
async fn ids_are_odd_for_the_host_and_even_for_the_guest() {
    let (here, there) = duplex(1024);
    let (host, mut to_host, driver) = connect(here, Side::Host, Limits::default());
    tokio::spawn(driver);
    let (guest, mut to_guest, driver) = connect(there, Side::Guest, Limits::default());
    tokio::spawn(driver);
    let opened = [host.open().unwrap(), host.open().unwrap(), guest.open().unwrap(), guest.open().unwrap()];
    assert_eq!(opened.each_ref().map(Stream::id), [1, 3, 2, 4]);
    assert_eq!(soon("a stream", to_guest.accept()).await.unwrap().id(), 1);
    assert_eq!(soon("a stream", to_host.accept()).await.unwrap().id(), 2);
}

#[tokio::test]
async fn dropping_resets_after_what_was_written() {
    let mut pair = pair();
    let (mut here, mut there) = pair.stream().await;
    here.write_all(b"last words").await.unwrap();
    drop(here);
    settle().await;
    let mut got = [0; 10];
    soon("what was written", there.read_exact(&mut got)).await.unwrap();
    assert_eq!(&got, b"last words");
    let error = there.read(&mut got).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    assert!(matches!(cause(&error), Error::Reset { id: 1 }));
    assert_eq!(there.write(b"x").await.unwrap_err().kind(), ErrorKind::ConnectionReset);
    assert_eq!(there.shutdown().await.unwrap_err().kind(), ErrorKind::ConnectionReset);
    drop(there);
    settle().await;
    assert_eq!((pair.host.streams(), pair.guest.streams()), (0, 0));
}

#[tokio::test]
async fn a_reset_wakes_a_reader_and_a_writer() {
    let mut pair = pair();
    let (here, there) = pair.stream().await;
    let (mut read, mut write) = tokio::io::split(there);
    let reader = tokio::spawn(async move { read.read(&mut [0]).await.unwrap_err().kind() });
    let writer = tokio::spawn(async move {
        let error = write.write_all(&vec![0; 1 << 20]).await.unwrap_err();
        (error.kind(), write)
    });
    settle().await;
    assert!(!writer.is_finished() && !reader.is_finished());
    drop(here);
    assert_eq!(soon("the writer", writer).await.unwrap().0, ErrorKind::ConnectionReset);
    assert_eq!(soon("the reader", reader).await.unwrap(), ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn a_reset_after_the_end_of_data_leaves_the_data_whole() {
    let mut pair = pair();
    let (mut here, mut there) = pair.stream().await;
    here.write_all(b"all").await.unwrap();
    here.shutdown().await.unwrap();
    drop(here);
    settle().await;
    let mut got = Vec::new();
    soon("the data", there.read_to_end(&mut got)).await.unwrap();
    assert_eq!(got, b"all");
    assert!(there.write(b"x").await.is_err());
}

#[tokio::test]
async fn a_stream_dropped_before_it_was_announced_is_never_mentioned() {
    let (mut raw, opener, ..) = raw(Side::Host, Limits::host());
    drop(opener.open().unwrap());
    raw.silence().await;
    assert_eq!(opener.streams(), 0);
}

#[tokio::test]
async fn opening_says_so_without_a_write() {
    let (mut raw, opener, ..) = raw(Side::Host, Limits::host());
    let _stream = opener.open().unwrap();
    assert_eq!(soon("a frame", raw.recv()).await.0, Header::window(flag::SYN, 1, 0));
}

#[tokio::test]
async fn streams_are_announced_in_order_whichever_is_written_first() {
    let (mut raw, opener, ..) = raw(Side::Host, Limits::host());
    let _first = opener.open().unwrap();
    let mut second = opener.open().unwrap();
    second.write_all(b"x").await.unwrap();
    assert_eq!(soon("a frame", raw.recv()).await.0, Header::window(flag::SYN, 1, 0));
    assert_eq!(raw.recv().await.0, Header::window(flag::SYN, 3, 0));
    assert_eq!(raw.recv().await, (Header { kind: Kind::Data, flags: 0, id: 3, value: 1 }, b"x".to_vec()));
}

#[tokio::test]
async fn acknowledgements_travel_with_the_first_frame() {
    let (mut raw, _opener, mut acceptor, _driver) = raw(Side::Guest, Limits::guest());
    raw.window(flag::SYN, 1, 0).await;
    let mut stream = soon("a stream", acceptor.accept()).await.unwrap();
    raw.silence().await;
    stream.write_all(b"ab").await.unwrap();
    assert_eq!(raw.recv().await.0, Header { kind: Kind::Data, flags: flag::ACK, id: 1, value: 2 });
    stream.shutdown().await.unwrap();
    assert_eq!(raw.recv().await.0, Header::window(flag::FIN, 1, 0));
    raw.window(flag::SYN, 3, 0).await;
    drop(soon("a stream", acceptor.accept()).await);
    assert_eq!(raw.recv().await.0, Header::window(flag::RST | flag::ACK, 3, 0));
}

#[tokio::test]
async fn death_of_the_transport_wakes_everybody_with_the_reason() {
    let (raw, opener, mut acceptor, driver) = raw(Side::Guest, Limits::default());
    let mut idle = opener.open().unwrap();
    let mut full = opener.open().unwrap();
    let reader = tokio::spawn(async move { idle.read(&mut [0]).await.unwrap_err() });
    let writer = tokio::spawn(async move { full.write_all(&vec![0; 1 << 20]).await.unwrap_err() });
    let accept = tokio::spawn(async move { acceptor.accept().await.is_none() });
    settle().await;
    assert!(!reader.is_finished() && !writer.is_finished() && !accept.is_finished());
    drop(raw);
    for task in [reader, writer] {
        let error = soon("an error", task).await.unwrap();
        assert_eq!(error.kind(), ErrorKind::ConnectionAborted);
        let Error::Closed { reason } = cause(&error) else { panic!("{error:?}") };
        assert!(matches!(**reason, Error::Eof { .. } | Error::Write(_)), "{reason:?}");
    }
    assert!(soon("the acceptor", accept).await.unwrap());
    assert!(matches!(driver.await.unwrap(), Err(Error::Eof { .. } | Error::Write(_))));
    assert!(matches!(opener.open(), Err(Error::Closed { .. })));
    assert_eq!(opener.streams(), 0);
}

#[tokio::test]
async fn an_end_within_a_frame_is_told_from_one_between_frames() {
    for (sent, in_frame) in [(0, false), (5, true), (12, true), (14, true), (15, false)] {
        let (mut raw, _opener, _acceptor, driver) = raw(Side::Guest, Limits::guest());
        let mut frame = Header { kind: Kind::Data, flags: flag::SYN, id: 1, value: 3 }.encode().to_vec();
        frame.extend_from_slice(b"abc");
        raw.io.write_all(&frame[..sent]).await.unwrap();
        drop(raw);
        let result = soon("the driver", driver).await.unwrap();
        assert!(matches!(result, Err(Error::Eof { in_frame: is }) if is == in_frame), "{sent}: {result:?}");
    }
}

#[tokio::test]
async fn what_arrived_before_the_end_can_be_read_after_it() {
    let (mut raw, _opener, mut acceptor, driver) = raw(Side::Guest, Limits::guest());
    raw.data(flag::SYN, 1, b"abc").await;
    raw.data(flag::SYN | flag::FIN, 3, b"def").await;
    let mut cut = soon("a stream", acceptor.accept()).await.unwrap();
    let mut whole = soon("a stream", acceptor.accept()).await.unwrap();
    drop(raw);
    assert!(soon("the driver", driver).await.unwrap().is_err());
    let mut got = Vec::new();
    assert_eq!(cut.read_to_end(&mut got).await.unwrap_err().kind(), ErrorKind::ConnectionAborted);
    assert_eq!(got, b"abc");
    got.clear();
    whole.read_to_end(&mut got).await.unwrap();
    assert_eq!(got, b"def");
}

#[tokio::test]
async fn dropping_the_driver_ends_the_channel() {
    let (_raw, opener, _acceptor, driver) = raw(Side::Host, Limits::host());
    let mut stream = opener.open().unwrap();
    settle().await;
    driver.abort();
    let error = soon("the error", stream.read(&mut [0])).await.unwrap_err();
    let Error::Closed { reason } = cause(&error) else { panic!("{error:?}") };
    assert!(matches!(**reason, Error::Abandoned));
}

#[tokio::test]
async fn closing_sends_what_was_written_and_ends_both_drivers() {
    let mut pair = pair_over(4 << 10);
    let (mut here, mut there) = pair.stream().await;
    here.write_all(&[9; 20_000]).await.unwrap();
    here.shutdown().await.unwrap();
    settle().await;
    pair.host.close();
    assert!(here.write(b"x").await.is_err());
    drop(here);
    let mut got = Vec::new();
    soon("what was written", there.read_to_end(&mut got)).await.unwrap();
    assert_eq!(got, [9; 20_000]);
    drop(there);
    soon("the host's driver", pair.host_driver).await.unwrap().unwrap();
    soon("the guest's driver", pair.guest_driver).await.unwrap().unwrap();
    assert!(pair.accept.accept().await.is_none());
    let error = pair.guest.open().unwrap_err();
    assert!(matches!(error, Error::Closed { .. }), "{error:?}");
}

#[tokio::test]
async fn after_a_go_away_present_streams_go_on_and_the_last_ends_the_channel() {
    let (mut raw, opener, _acceptor, driver) = raw(Side::Host, Limits::host());
    let mut stream = opener.open().unwrap();
    raw.recv().await;
    raw.control(Kind::GoAway, 0, 0).await;
    settle().await;
    assert!(matches!(opener.open(), Err(Error::Closed { .. })));
    stream.write_all(b"still here").await.unwrap();
    assert_eq!(raw.recv().await.1, b"still here");
    raw.data(0, 1, b"and I").await;
    let mut got = [0; 5];
    soon("the answer", stream.read_exact(&mut got)).await.unwrap();
    assert!(!driver.is_finished());
    drop(stream);
    assert_eq!(soon("the reset", raw.recv()).await.0, Header::window(flag::RST, 1, 0));
    soon("the driver", driver).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_go_away_with_an_error_ends_the_channel() {
    let (mut raw, _opener, _acceptor, driver) = raw(Side::Host, Limits::host());
    raw.control(Kind::GoAway, 0, 2).await;
    assert!(matches!(soon("the driver", driver).await.unwrap(), Err(Error::GoAway { code: 2 })));
}

#[tokio::test]
async fn streams_over_the_limit_are_not_opened_until_one_is_gone() {
    let (_raw, opener, ..) = raw(Side::Host, Limits { open_streams: 2, ..Limits::host() });
    let (first, _second) = (opener.open().unwrap(), opener.open().unwrap());
    assert!(matches!(opener.open(), Err(Error::TooManyStreams { limit: 2 })));
    settle().await;
    drop(first);
    assert!(opener.open().is_err(), "the peer has not been told of the end of the first");
    settle().await;
    opener.open().unwrap();
}

#[tokio::test]
async fn an_error_is_a_chain_of_sentences() {
    let (mut raw, opener, _acceptor, driver) = raw(Side::Host, Limits::host());
    let mut stream = opener.open().unwrap();
    raw.recv().await;
    raw.data(0, 9, b"").await;
    assert!(soon("the driver", driver).await.unwrap().is_err());
    let error = stream.read(&mut [0]).await.unwrap_err();
    let mut text = error.to_string();
    let mut next = std::error::Error::source(cause(&error));
    while let Some(error) = next {
        text += &format!(": {error}");
        next = error.source();
    }
    assert_eq!(
        text,
        "the channel is closed: the peer broke the protocol of the channel: \
         it sent a frame for stream 9, which was never opened"
    );
}

#[tokio::test]
async fn after_a_go_away_a_stream_closed_long_before_ends_the_channel_when_it_is_dropped() {
    let (mut raw, opener, _acceptor, driver) = raw(Side::Host, Limits::host());
    let mut stream = opener.open().unwrap();
    stream.shutdown().await.unwrap();
    raw.recv().await;
    raw.data(flag::FIN, 1, b"").await;
    raw.control(Kind::GoAway, 0, 0).await;
    settle().await;
    assert!(!driver.is_finished());
    drop(stream);
    soon("the driver", driver).await.unwrap().unwrap();
}

#[tokio::test]
async fn the_end_of_data_comes_after_the_data_of_its_frame() {
    let (mut raw, opener, ..) = raw(Side::Host, Limits::host());
    let mut stream = opener.open().unwrap();
    raw.recv().await;
    raw.io.write_all(&Header { kind: Kind::Data, flags: flag::FIN, id: 1, value: 4 }.encode()).await.unwrap();
    raw.io.write_all(b"ab").await.unwrap();
    let mut got = [0; 4];
    soon("the first half", stream.read_exact(&mut got[..2])).await.unwrap();
    assert!(timeout(Duration::from_millis(20), stream.read(&mut got[2..])).await.is_err(), "it ended too early");
    raw.io.write_all(b"cd").await.unwrap();
    soon("the second half", stream.read_exact(&mut got[2..])).await.unwrap();
    assert_eq!(&got, b"abcd");
    assert_eq!(soon("the end", stream.read(&mut got)).await.unwrap(), 0);
}
