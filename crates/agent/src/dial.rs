//! A stream that becomes a TCP connection to a port of the pod's loopback.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use agent_api::{Fault, Reply, frame};
use tokio::io::copy_bidirectional;
use tokio::net::TcpStream;

use crate::fault::{internal, invalid, reason};
use crate::io::BoxStream;
use crate::tokens::within;

/// How long a connection may take. On a loopback it is made or refused at once, unless the listener's queue is full.
const DEADLINE: Duration = Duration::from_secs(10);

/// Connects, says so, and moves bytes both ways until both ends have closed theirs, or one is gone.
///
/// # Errors
/// When nothing listens on the port.
pub async fn dial(port: u16, stream: &mut BoxStream) -> Result<(), Fault> {
    let mut connection = connect(port).await?;
    if frame::write(stream, &Reply::Done).await.is_ok() {
        // That one end has gone is how connections end; dropping both tells the other end.
        let _ = copy_bidirectional(&mut connection, stream).await;
    }
    Ok(())
}

async fn connect(port: u16) -> Result<TcpStream, Fault> {
    if port == 0 {
        return Err(invalid("the port is 0, expected 1 to 65535"));
    }
    let mut failures = Vec::new();
    for ip in [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)] {
        let address = SocketAddr::new(ip, port);
        let what = format!("a connection to {address}");
        match within(DEADLINE, &what, TcpStream::connect(address)).await {
            Ok(Ok(connection)) => {
                // Whoever forwards a port forwards what somebody waits for.
                let _ = connection.set_nodelay(true);
                return Ok(connection);
            }
            Ok(Err(error)) => failures.push(format!("connect to {address}: {}", reason(&error))),
            Err(fault) => failures.push(fault.message),
        }
    }
    Err(internal(failures.join("; ")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
    use tokio::net::TcpListener;

    #[tokio::test(flavor = "current_thread")]
    async fn bytes_go_both_ways_and_each_half_closes_by_itself() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let Ok(listener) = TcpListener::bind(address).await else {
                eprintln!("skipped: there is no {address} here");
                continue;
            };
            let port = listener.local_addr().unwrap().port();
            let (mut host, guest) = duplex(4096);
            let mut guest: BoxStream = Box::new(guest);
            let server = async {
                let mut peer = listener.accept().await.unwrap().0;
                let mut question = String::new();
                peer.read_to_string(&mut question).await.unwrap();
                peer.write_all(format!("answer to {question}").as_bytes()).await.unwrap();
            };
            let client = async {
                assert!(matches!(frame::read(&mut host, frame::MAX_REPLY).await.unwrap(), Reply::Done));
                host.write_all(b"question").await.unwrap();
                host.shutdown().await.unwrap();
                let mut answer = String::new();
                host.read_to_string(&mut answer).await.unwrap();
                assert_eq!(answer, "answer to question");
            };
            let (done, (), ()) = tokio::join!(dial(port, &mut guest), server, client);
            done.unwrap();
        }
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_port_that_nobody_listens_on_is_named_with_both_addresses() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        let message = connect(port).await.unwrap_err().message;
        assert!(message.contains(&format!("127.0.0.1:{port}: connection refused")), "{message}");
        assert!(message.contains(&format!("[::1]:{port}")), "{message}");
        assert!(connect(0).await.is_err());
    }
}
