//! A name server on an engine's machine: the outside, of which a machine of the tests has none.

use std::{
    fs::File,
    io::{Read, Write},
    net::{TcpListener, TcpStream, UdpSocket},
    os::fd::AsFd,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::host::Host;

/// Where it is: the server that [`Docker`](crate::Docker) is configured with.
pub const ADDRESS: &str = "192.0.2.53";
/// A name with one address.
pub const SMALL: &str = "small.outside.test";
/// A name with more addresses than a datagram holds; over UDP the answer is cut off before the first.
pub const BIG: &str = "big.outside.test";

/// How often a thread looks whether it is to end.
const PAUSE: Duration = Duration::from_millis(50);

/// The server, as long as it is held.
#[derive(Debug)]
pub struct NameServer {
    ends: Arc<AtomicBool>,
    connections: Arc<AtomicUsize>,
    threads: Vec<JoinHandle<()>>,
}

impl NameServer {
    /// Starts it on a machine.
    pub fn start(host: &Host) -> Self {
        host.ok("ip", &["address", "add", &format!("{ADDRESS}/32"), "dev", "lo"]);
        let network = File::open(host.network()).unwrap();
        let sockets = thread::spawn(move || {
            move_into_link_name_space(network.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
            (UdpSocket::bind((ADDRESS, 53)).unwrap(), TcpListener::bind((ADDRESS, 53)).unwrap())
        });
        let (udp, tcp) = sockets.join().unwrap();
        let (ends, connections) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let datagrams = {
            let ends = ends.clone();
            move || {
                udp.set_read_timeout(Some(PAUSE)).unwrap();
                let mut query = [0; 512];
                while !ends.load(Ordering::Relaxed) {
                    if let Ok((length, peer)) = udp.recv_from(&mut query) {
                        udp.send_to(&answer(&query[..length], false), peer).unwrap();
                    }
                }
            }
        };
        let streams = {
            let (ends, connections) = (ends.clone(), connections.clone());
            move || {
                tcp.set_nonblocking(true).unwrap();
                while !ends.load(Ordering::Relaxed) {
                    match tcp.accept() {
                        Ok((connection, _)) => {
                            connections.fetch_add(1, Ordering::Relaxed);
                            // Who goes away meanwhile asks again.
                            let _ = converse(connection);
                        }
                        Err(_) => thread::sleep(PAUSE),
                    }
                }
            }
        };
        Self { ends, connections, threads: vec![thread::spawn(datagrams), thread::spawn(streams)] }
    }

    /// How many connections there were.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }
}

impl Drop for NameServer {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn converse(mut connection: TcpStream) -> std::io::Result<()> {
    connection.set_nonblocking(false)?;
    connection.set_read_timeout(Some(Duration::from_secs(2)))?;
    let mut length = [0; 2];
    while connection.read_exact(&mut length).is_ok() {
        let mut query = vec![0; usize::from(u16::from_be_bytes(length))];
        connection.read_exact(&mut query)?;
        let answer = answer(&query, true);
        connection.write_all(&[&u16::try_from(answer.len()).unwrap().to_be_bytes(), &answer[..]].concat())?;
    }
    Ok(())
}

/// The answer to a query (RFC 1035): addresses 192.0.2.1 and so on, of version 4 only.
fn answer(query: &[u8], whole: bool) -> Vec<u8> {
    const A: [u8; 2] = [0, 1];
    let question = &query[12..];
    let end = question.iter().position(|byte| *byte == 0).unwrap();
    let mut labels = Vec::new();
    let mut rest = &question[..end];
    while let Some((length, after)) = rest.split_first() {
        let (label, next) = after.split_at(usize::from(*length));
        labels.push(String::from_utf8_lossy(label).to_lowercase());
        rest = next;
    }
    let name = labels.join(".");
    let wanted = match name.as_str() {
        _ if question[end + 1..end + 3] != A => 0,
        SMALL => 1,
        BIG => 200,
        _ => 0,
    };
    let cut_off = wanted > 20 && !whole;
    let count: u16 = if cut_off { 0 } else { wanted };
    let known = name == SMALL || name == BIG;
    // A response, with recursion as asked for and available; cut off; no such name.
    let flags = [0x81 | if cut_off { 2 } else { 0 }, 0x80 | if known { 0 } else { 3 }];
    let mut answer = [&query[..2], &flags, &[0, 1], &count.to_be_bytes(), &[0; 4], &question[..end + 5]].concat();
    for last in 1..=count {
        // The name is that of the question; class IN, 60 s, four bytes.
        answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, last as u8]);
    }
    answer
}
