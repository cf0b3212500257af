//! The same protocol as the `yamux` crate, in both roles.

use futures::future::{join_all, poll_fn};
use futures::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::mpsc;
use tokio_util::compat::TokioAsyncReadCompatExt;
use yamux::{Config, Connection, Mode};

use super::*;

const EACH: usize = 2 << 20;
const STREAMS: usize = 4;

fn pattern(id: u32) -> Vec<u8> {
    (0..EACH).map(|n| (n as u32).wrapping_mul(id | 1).to_be_bytes()[1]).collect()
}

#[tokio::test]
async fn as_client_of_another_server() {
    let (here, there) = duplex(20_000);
    let (opener, _, driver) = connect(here, Side::Host, Limits::host());
    let driver = tokio::spawn(driver);
    let mut server = Connection::new(there.compat(), Config::default(), Mode::Server);
    let server = tokio::spawn(async move {
        while let Some(Ok(mut stream)) = poll_fn(|cx| server.poll_next_inbound(cx)).await {
            tokio::spawn(async move {
                let mut first = [0];
                if stream.read_exact(&mut first).await.is_err() || first[0] == b'R' {
                    return;
                }
                let (mut read, mut write) = stream.split();
                futures::io::copy(&mut read, &mut write).await.unwrap();
                write.close().await.unwrap();
            });
        }
    });
    let echoes = (0..STREAMS).map(|_| async {
        let stream = opener.open().unwrap();
        let data = pattern(stream.id());
        let (mut read, mut write) = tokio::io::split(stream);
        let send = async {
            write.write_all(b"E").await.unwrap();
            write.write_all(&data).await.unwrap();
            write.shutdown().await.unwrap();
        };
        let mut got = Vec::new();
        let (_, result) = tokio::join!(send, read.read_to_end(&mut got));
        result.unwrap();
        assert!(got == data);
    });
    soon("the echoes", join_all(echoes)).await;

    // It drops the stream when told to; ours learns of it.
    let mut stream = opener.open().unwrap();
    stream.write_all(b"R").await.unwrap();
    let error = soon("the reset", stream.read(&mut [0])).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);

    // Ours is dropped under its feet, and the rest goes on.
    let mut stream = opener.open().unwrap();
    stream.write_all(b"E and more").await.unwrap();
    soon("the echo", stream.read_exact(&mut [0; 9])).await.unwrap();
    drop(stream);
    let mut stream = opener.open().unwrap();
    stream.write_all(b"E once more").await.unwrap();
    stream.shutdown().await.unwrap();
    let mut got = String::new();
    soon("the echo", stream.read_to_string(&mut got)).await.unwrap();
    assert_eq!(got, " once more");
    drop(stream);

    opener.close();
    soon("the driver", driver).await.unwrap().unwrap();
    soon("the other side", server).await.unwrap();
}

/// Drives a client of the other implementation, which gives a stream for each request.
async fn drive(mut client: Connection<impl futures::AsyncRead + futures::AsyncWrite + Unpin>, mut wanted: Wanted) {
    loop {
        let asked = poll_fn(|cx| {
            // Inbound must be polled all the time: that is what moves the bytes.
            let inbound = client.poll_next_inbound(cx);
            assert!(!matches!(inbound, std::task::Poll::Ready(Some(Ok(_)))), "nobody opens streams to a client");
            if inbound.is_ready() { std::task::Poll::Ready(None) } else { wanted.poll_recv(cx) }
        });
        let Some(reply) = asked.await else { break };
        let stream = poll_fn(|cx| client.poll_new_outbound(cx)).await.unwrap();
        let _ = reply.send(stream);
    }
    let _ = poll_fn(|cx| client.poll_close(cx)).await;
}

type Wanted = mpsc::Receiver<tokio::sync::oneshot::Sender<yamux::Stream>>;

#[tokio::test]
async fn as_server_of_another_client() {
    let (here, there) = duplex(20_000);
    let (opener, mut acceptor, driver) = connect(here, Side::Guest, Limits::guest());
    let driver = tokio::spawn(driver);
    let server = tokio::spawn(async move {
        while let Some(mut stream) = acceptor.accept().await {
            tokio::spawn(async move {
                if stream.read_u8().await.unwrap() == b'R' {
                    return;
                }
                let (mut read, mut write) = tokio::io::split(stream);
                if tokio::io::copy(&mut read, &mut write).await.is_ok() {
                    write.shutdown().await.unwrap();
                }
            });
        }
    });
    let client = Connection::new(there.compat(), Config::default(), Mode::Client);
    let (ask, wanted) = mpsc::channel(1);
    let client = tokio::spawn(drive(client, wanted));
    let open = || async {
        let (reply, stream) = tokio::sync::oneshot::channel();
        ask.send(reply).await.unwrap();
        stream.await.unwrap()
    };
    let echoes = (0..STREAMS).map(|n| {
        let stream = open();
        async move {
            let data = pattern(n as u32);
            let (mut read, mut write) = stream.await.split();
            let send = async {
                write.write_all(b"E").await.unwrap();
                write.write_all(&data).await.unwrap();
                write.close().await.unwrap();
            };
            let mut got = Vec::new();
            let (_, result) = tokio::join!(send, read.read_to_end(&mut got));
            result.unwrap();
            assert!(got == data);
        }
    });
    soon("the echoes", join_all(echoes)).await;

    let mut stream = open().await;
    stream.write_all(b"R").await.unwrap();
    stream.flush().await.unwrap();
    // It shows a reset as the end of the data, and fails writes.
    assert_eq!(soon("the reset", stream.read(&mut [0])).await.unwrap(), 0);
    assert!(stream.write(b"x").await.is_err());

    // More streams than it opens without acknowledgement.
    for _ in 0..600 {
        let mut stream = soon("a stream", open()).await;
        stream.write_all(b"Ehello").await.unwrap();
        stream.flush().await.unwrap();
        soon("the echo", stream.read_exact(&mut [0; 5])).await.unwrap();
    }
    settle().await;
    assert_eq!(opener.streams(), 0);
    drop(ask);
    soon("the other side", client).await.unwrap();
    soon("the driver", driver).await.unwrap().unwrap();
    soon("the server", server).await.unwrap();
}
