//! A resolver of the host, stood in for: what containers ask at port 53 of its address is passed to the host, and the answers back.
//!
//! Docker's resolver is such a one: it listens at 127.0.0.11 in the pod's network namespace on the host, and this is what
//! `/etc/resolv.conf` says in networks that users have made.
//!
//! Port 53 itself is left to the containers: a name server in one of them may want it on every address. Queries are redirected to a port that nobody
//! wants; only on a kernel that cannot do that port 53 of the one address is taken.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use agent_api::names::{self, MAX_ANSWER, MAX_QUERY, MAX_WAITING, Message, Transport};
use agent_api::{Fault, Reply, frame};
use netlink::nat::{Redirect, Table};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::{Instant, sleep, timeout};

use crate::fault::{Context, invalid};
use crate::io::BoxStream;
use crate::log::{Log, chain};

/// The port of name servers.
const PORT: u16 = 53;
/// How long an answer may take. Resolvers ask several servers for several seconds each.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long a connection may rest.
const IDLE: Duration = Duration::from_secs(30);
/// Until the next try when no connection or datagram could be taken.
const PAUSE: Duration = Duration::from_millis(500);
/// How many connections there may be.
const MAX_CONNECTIONS: usize = 32;

/// Passes queries and answers on until the host closes the stream.
///
/// # Errors
/// When the address is none of the loopback, or cannot be listened at.
pub async fn serve(log: Log, address: Ipv4Addr, stream: &mut BoxStream) -> Result<(), Fault> {
    if !address.is_loopback() {
        return Err(invalid(format!("the resolver's address is {address}, expected one of 127.0.0.0/8")));
    }
    let doors = Doors::open(log, address, PORT)?;
    if frame::write(stream, &Reply::Done).await.is_ok() {
        pass(&doors, stream).await;
    }
    Ok(())
}

/// Where queries come in.
struct Doors {
    udp: UdpSocket,
    tcp: TcpListener,
    _table: Option<Table>,
}

impl Doors {
    fn open(log: Log, address: Ipv4Addr, port: u16) -> Result<Self, Fault> {
        match Self::redirected(address, port) {
            Ok(doors) => Ok(doors),
            Err(reason) => {
                log.info(format_args!("port {port} of {address} is taken from the containers: {reason}"));
                let (udp, tcp) = bind((address, port).into()).context(|| format!("listen at {address}:{port}"))?;
                Ok(Self { udp, tcp, _table: None })
            }
        }
    }

    fn redirected(address: Ipv4Addr, port: u16) -> Result<Self, String> {
        const TABLE: &str = "kata-names";
        let (udp, tcp) = bind((Ipv4Addr::LOCALHOST, 0).into()).map_err(|error| chain(&error).to_string())?;
        let listener = |address: io::Result<SocketAddr>| address.map(|it| it.port()).map_err(|error| error.to_string());
        let to = |protocol: i32, listener| Redirect {
            to: address.into(),
            bytes: 4,
            protocol: protocol as u8,
            port: Some(port),
            listener,
        };
        let redirects =
            [to(libc::IPPROTO_UDP, listener(udp.local_addr())?), to(libc::IPPROTO_TCP, listener(tcp.local_addr())?)];
        let table = Table::redirect(TABLE, &redirects).map_err(|error| chain(&error).to_string())?;
        Ok(Self { udp, tcp, _table: Some(table) })
    }
}

fn bind(address: SocketAddr) -> io::Result<(UdpSocket, TcpListener)> {
    let (udp, tcp) = (std::net::UdpSocket::bind(address)?, std::net::TcpListener::bind(address)?);
    udp.set_nonblocking(true)?;
    tcp.set_nonblocking(true)?;
    Ok((UdpSocket::from_std(udp)?, TcpListener::from_std(tcp)?))
}

/// Who waits for an answer.
enum Asker {
    Peer(SocketAddr),
    Connection(oneshot::Sender<Vec<u8>>),
}

/// Queries without an answer.
struct Desk {
    asked: mpsc::Sender<Message>,
    waiting: RefCell<HashMap<u16, (Instant, Asker)>>,
    next: Cell<u16>,
}

impl Desk {
    /// Passes a query on. Gives whether there was room for it; if not, its asker asks again.
    fn ask(&self, bytes: Vec<u8>, asker: Asker) -> bool {
        let mut waiting = self.waiting.borrow_mut();
        if waiting.len() >= MAX_WAITING {
            waiting.retain(|_, (since, _)| since.elapsed() < PATIENCE);
        }
        if waiting.len() >= MAX_WAITING {
            return false;
        }
        let mut number = self.next.get();
        while waiting.contains_key(&number) {
            number = number.wrapping_add(1);
        }
        self.next.set(number.wrapping_add(1));
        let transport = match asker {
            Asker::Peer(_) => Transport::Udp,
            Asker::Connection(_) => Transport::Tcp,
        };
        let passed = self.asked.try_send(Message { number, transport, bytes }).is_ok();
        if passed {
            waiting.insert(number, (Instant::now(), asker));
        }
        passed
    }

    fn answered(&self, answer: Message, udp: &UdpSocket) {
        match self.waiting.borrow_mut().remove(&answer.number) {
            // A datagram that finds no room is one that was lost.
            Some((_, Asker::Peer(peer))) if !answer.bytes.is_empty() => drop(udp.try_send_to(&answer.bytes, peer)),
            Some((_, Asker::Connection(asker))) => drop(asker.send(answer.bytes)),
            _ => {}
        }
    }
}

async fn pass(doors: &Doors, stream: &mut BoxStream) {
    let (mut reader, mut writer) = tokio::io::split(stream);
    let (asked, mut queries) = mpsc::channel(MAX_WAITING);
    let desk = Rc::new(Desk { asked, waiting: RefCell::default(), next: Cell::new(0) });
    let answers = async {
        while let Ok(answer) = names::read(&mut reader, MAX_ANSWER).await {
            desk.answered(answer, &doors.udp);
        }
    };
    let asking = async {
        while let Some(query) = queries.recv().await {
            if names::write(&mut writer, &query).await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = answers => {}
        () = asking => {}
        () = datagrams(&doors.udp, &desk) => {}
        () = connections(&doors.tcp, &desk) => {}
    }
}

async fn datagrams(udp: &UdpSocket, desk: &Desk) {
    let mut buffer = [0; MAX_QUERY + 1];
    loop {
        match udp.recv_from(&mut buffer).await {
            Ok((length @ 1..=MAX_QUERY, peer)) => {
                let _asks_again = desk.ask(buffer[..length].to_vec(), Asker::Peer(peer));
            }
            Ok(_) => {}
            Err(_) => sleep(PAUSE).await,
        }
    }
}

async fn connections(tcp: &TcpListener, desk: &Rc<Desk>) {
    let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    while let Ok(place) = room.clone().acquire_owned().await {
        match tcp.accept().await {
            Ok((connection, _)) => {
                let desk = desk.clone();
                tokio::task::spawn_local(async move {
                    // However it ends, the connection is closed, and the asker sees that.
                    let _ = converse(&desk, connection).await;
                    drop(place);
                });
            }
            Err(_) => sleep(PAUSE).await,
        }
    }
}

/// Answers the queries of a connection, each with its length before it, until one gets no answer.
async fn converse(desk: &Desk, mut connection: TcpStream) -> io::Result<()> {
    loop {
        let query = timeout(IDLE, async {
            let length = usize::from(connection.read_u16().await?);
            if !(1..=MAX_QUERY).contains(&length) {
                return Err(io::ErrorKind::InvalidData.into());
            }
            let mut query = vec![0; length];
            connection.read_exact(&mut query).await?;
            Ok::<_, io::Error>(query)
        });
        let query = query.await??;
        let (told, answer) = oneshot::channel();
        if !desk.ask(query, Asker::Connection(told)) {
            return Ok(());
        }
        let answer = timeout(PATIENCE, answer).await?.unwrap_or_default();
        let length = match u16::try_from(answer.len()) {
            Ok(length @ 1..) => length,
            _ => return Ok(()),
        };
        let mut bytes = length.to_be_bytes().to_vec();
        bytes.extend(answer);
        timeout(IDLE, connection.write_all(&bytes)).await??;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{DuplexStream, duplex};
    use tokio::task::LocalSet;

    const LOG: Log = Log { level: crate::log::Level::Error };

    /// Doors whose port is not 53, and the host's end of their stream.
    fn served() -> (SocketAddr, SocketAddr, DuplexStream) {
        let (udp, tcp) = bind((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        let (at_udp, at_tcp) = (udp.local_addr().unwrap(), tcp.local_addr().unwrap());
        let (host, guest) = duplex(1 << 20);
        let mut guest: BoxStream = Box::new(guest);
        tokio::task::spawn_local(async move { pass(&Doors { udp, tcp, _table: None }, &mut guest).await });
        (at_udp, at_tcp, host)
    }

    async fn asker(at: SocketAddr) -> UdpSocket {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        socket.connect(at).await.unwrap();
        socket
    }

    #[tokio::test(flavor = "current_thread")]
    async fn each_asker_gets_the_answer_to_its_own_query() {
        let work = async {
            let (at, _, mut host) = served();
            let (one, two) = (asker(at).await, asker(at).await);
            one.send(b"one?").await.unwrap();
            two.send(b"two?").await.unwrap();
            let mut queries = Vec::new();
            for _ in 0..2 {
                queries.push(names::read(&mut host, MAX_QUERY).await.unwrap());
            }
            // In the other order.
            for query in queries.into_iter().rev() {
                assert_eq!(query.transport, Transport::Udp);
                let bytes = [&query.bytes[..3], b"!"].concat();
                names::write(&mut host, &Message { bytes, ..query }).await.unwrap();
            }
            let mut buffer = [0; 16];
            for (socket, expected) in [(one, b"one!"), (two, b"two!")] {
                let length = timeout(IDLE, socket.recv(&mut buffer)).await.unwrap().unwrap();
                assert_eq!(&buffer[..length], expected);
            }
        };
        LocalSet::new().run_until(work).await;
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_connection_carries_several_queries_and_long_answers_and_ends_without_one() {
        let work = async {
            let (_, at, mut host) = served();
            let mut connection = TcpStream::connect(at).await.unwrap();
            for length in [1, MAX_ANSWER] {
                connection.write_all(b"\0\x04long").await.unwrap();
                let query = names::read(&mut host, MAX_QUERY).await.unwrap();
                assert_eq!((query.transport, query.bytes.as_slice()), (Transport::Tcp, b"long".as_slice()));
                let answer = Message { bytes: vec![7; length], ..query };
                let (written, read) = tokio::join!(names::write(&mut host, &answer), connection.read_u16());
                written.unwrap();
                assert_eq!(usize::from(read.unwrap()), length);
                let mut bytes = vec![0; length];
                connection.read_exact(&mut bytes).await.unwrap();
                assert_eq!(bytes, answer.bytes);
            }
            connection.write_all(b"\0\x04long").await.unwrap();
            let query = names::read(&mut host, MAX_QUERY).await.unwrap();
            names::write(&mut host, &Message { bytes: Vec::new(), ..query }).await.unwrap();
            assert_eq!(connection.read(&mut [0; 8]).await.unwrap(), 0);
        };
        LocalSet::new().run_until(work).await;
    }

    #[tokio::test(flavor = "current_thread", start_paused = true)]
    async fn so_many_wait_and_no_more_until_their_time_is_over() {
        let (asked, mut queries) = mpsc::channel(MAX_WAITING);
        let desk = Desk { asked, waiting: RefCell::default(), next: Cell::new(u16::MAX) };
        let mut ask = || {
            let asked = desk.ask(b"?".to_vec(), Asker::Peer(([127, 0, 0, 1], 1).into()));
            let _passed_on = queries.try_recv();
            asked
        };
        for number in 0..MAX_WAITING {
            assert!(ask(), "{number}");
        }
        assert!(!ask());
        tokio::time::advance(PATIENCE).await;
        assert!(ask());
    }

    #[tokio::test(flavor = "current_thread")]
    async fn only_an_address_of_the_loopback_is_stood_in_for() {
        let mut stream: BoxStream = Box::new(duplex(64).0);
        let refused = serve(LOG, [10, 0, 0, 1].into(), &mut stream).await.unwrap_err();
        assert!(refused.message.contains("10.0.0.1"), "{}", refused.message);
    }
}
