//! Connections to the pod's loopback.

use std::time::Duration;

use network::Forwarder;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::world::world;

#[test]
fn connections_to_any_port_of_the_loopback_are_taken_with_their_port() {
    let Some(world) = world() else { return };
    let forwarding = || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let forwarder = Forwarder::open().unwrap();
            for (address, port) in [("127.0.0.1:80", 80), ("127.0.0.53:8080", 8080), ("[::1]:443", 443)] {
                let (client, server) = tokio::join!(
                    tokio::time::timeout(Duration::from_secs(20), TcpStream::connect(address)),
                    tokio::time::timeout(Duration::from_secs(20), forwarder.accept()),
                );
                let (mut client, (mut server, taken)) = (client.unwrap().unwrap(), server.unwrap().unwrap());
                assert_eq!(taken, port, "{address}");
                client.write_all(b"ping").await.unwrap();
                let mut buffer = [0; 4];
                server.read_exact(&mut buffer).await.unwrap();
                assert_eq!(&buffer, b"ping");
            }
            // What goes elsewhere is left alone.
            TcpStream::connect("10.9.0.2:80").await.unwrap_err();
            drop(forwarder);
            // Nothing is left of it.
            TcpStream::connect("127.0.0.1:80").await.unwrap_err();
            Forwarder::open().unwrap();
        });
    };
    world.pod.run(forwarding).unwrap();
}
