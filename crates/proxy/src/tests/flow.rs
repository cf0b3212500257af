//! Back-pressure and credit of single streams.

use super::*;

#[tokio::test]
async fn an_unread_stream_holds_its_window_and_delays_nobody() {
    let mut pair = pair_over(4 << 10);
    let (mut stuck, mut unread) = pair.stream().await;
    let writer = tokio::spawn(async move {
        for _ in 0..400 {
            stuck.write_all(&[1; 5000]).await.unwrap();
        }
        stuck.shutdown().await.unwrap();
        stuck
    });
    for _ in 0..50 {
        settle().await;
    }
    assert!(!writer.is_finished());
    // As much again goes past it, on streams opened meanwhile.
    for _ in 0..8 {
        let (mut here, mut there) = soon("a stream", pair.stream()).await;
        let echo = tokio::spawn(async move {
            let (mut read, mut write) = tokio::io::split(&mut there);
            tokio::io::copy(&mut read, &mut write).await.unwrap();
            write.shutdown().await.unwrap();
        });
        let (mut read, mut write) = tokio::io::split(&mut here);
        let send = async {
            write.write_all(&[2; 100_000]).await.unwrap();
            write.shutdown().await.unwrap();
        };
        let mut got = Vec::new();
        let (_, read) = soon("an echo", async { tokio::join!(send, read.read_to_end(&mut got)) }).await;
        assert_eq!(read.unwrap(), 100_000);
        echo.await.unwrap();
    }
    assert!(!writer.is_finished());
    let mut first = vec![0; INITIAL_WINDOW as usize];
    unread.read_exact(&mut first).await.unwrap();
    let mut rest = Vec::new();
    soon("the rest", unread.read_to_end(&mut rest)).await.unwrap();
    soon("the writer", writer).await.unwrap();
    assert_eq!(first.len() + rest.len(), 2_000_000);
}

#[tokio::test]
async fn a_writer_stops_at_its_window_to_the_byte_and_goes_on_with_credit() {
    let (mut raw, opener, ..) = raw(Side::Host, Limits::host());
    let mut stream = opener.open().unwrap();
    let writer = tokio::spawn(async move { (stream.write_all(&vec![3; 300_000]).await.unwrap(), stream).1 });
    let mut got = 0;
    while got < INITIAL_WINDOW as usize {
        got += soon("data", raw.recv()).await.1.len();
    }
    assert_eq!(got, INITIAL_WINDOW as usize);
    raw.silence().await;
    raw.window(0, 1, 5).await;
    assert_eq!(soon("data", raw.recv()).await.1.len(), 5);
    raw.silence().await;
    assert!(!writer.is_finished());
    raw.window(0, 1, 1 << 20).await;
    got += 5;
    while got < 300_000 {
        got += soon("data", raw.recv()).await.1.len();
    }
    assert_eq!(got, 300_000);
    soon("the writer", writer).await.unwrap();
}

#[tokio::test]
async fn credit_is_granted_when_half_the_window_was_read() {
    let (mut raw, _opener, mut acceptor, _driver) = raw(Side::Guest, Limits::guest());
    let half = INITIAL_WINDOW as usize / 2;
    raw.data(flag::SYN, 1, &vec![0; half + 10]).await;
    let mut stream = soon("a stream", acceptor.accept()).await.unwrap();
    let mut buf = vec![0; half - 1];
    soon("data", stream.read_exact(&mut buf)).await.unwrap();
    raw.silence().await;
    soon("data", stream.read_exact(&mut buf[..5])).await.unwrap();
    let granted = Header::window(flag::ACK, 1, half as u32 + 4);
    assert_eq!(soon("credit", raw.recv()).await.0, granted);
    raw.silence().await;
}

#[tokio::test]
async fn a_larger_window_is_granted_at_the_start() {
    let limits = Limits { window: 1 << 20, ..Limits::default() };
    let (mut raw, opener, mut acceptor, _driver) = raw(Side::Guest, limits);
    let extra = (1 << 20) - INITIAL_WINDOW;
    let _stream = opener.open().unwrap();
    assert_eq!(soon("the opening", raw.recv()).await.0, Header::window(flag::SYN, 2, extra));
    raw.window(flag::SYN, 1, 0).await;
    assert_eq!(soon("the acknowledgement", raw.recv()).await.0, Header::window(flag::ACK, 1, extra));
    let mut stream = acceptor.accept().await.unwrap();
    for _ in 0..4 {
        raw.data(0, 1, &vec![0; 256 << 10]).await;
    }
    soon("the data", stream.read_exact(&mut vec![0; 1 << 20])).await.unwrap();
}

#[tokio::test]
async fn no_credit_is_granted_to_a_half_that_is_closed() {
    let (mut raw, _opener, mut acceptor, _driver) = raw(Side::Guest, Limits::guest());
    raw.data(flag::SYN | flag::FIN, 1, &vec![0; 200_000]).await;
    let mut stream = soon("a stream", acceptor.accept()).await.unwrap();
    let mut got = Vec::new();
    soon("the data", stream.read_to_end(&mut got)).await.unwrap();
    assert_eq!(got.len(), 200_000);
    raw.silence().await;
}
