//! A resolver that listens on the loopback of the pod's network namespace, as Docker's does in networks that users have made: the guest's loopback
//! is another one. The agent listens in its place and passes on what it is asked, over one stream; here it is asked of the resolver.
//!
//! The guest is not trusted: a query is as long as it may be and no more, so many are under way at once, each for a limited time, and the
//! next one is read when there is room. They go nowhere but to the resolver, which every container of the engine may ask.

use std::{io, net::Ipv4Addr, path::Path, rc::Rc, time::Duration};

use agent_api::{
    GUEST_SHARED_DIR, Request,
    names::{self, MAX_ANSWER, MAX_QUERY, MAX_WAITING, Message, Transport},
};
use oci_spec::runtime::Spec;
use rustix::fs::{Mode, OFlags};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpStream, UdpSocket},
    sync::{Semaphore, mpsc},
    time::timeout,
};

use super::Sandbox;
use crate::Result;

/// Where Docker's resolver listens.
const RESOLVER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 11);
/// The port of name servers.
const PORT: u16 = 53;
/// How long an answer may take. The agent waits a little longer.
const PATIENCE: Duration = Duration::from_secs(18);
/// As much of a `resolv.conf` is read.
const MOST_CONFIGURATION: u64 = 64 << 10;

impl Sandbox {
    /// Remembers where a container is told of its resolver. The specification is the guest's.
    pub(super) fn note_resolver(&self, id: &str, spec: &Spec) {
        let mut mounts = spec.mounts().iter().flatten();
        let source =
            mounts.find(|mount| mount.destination() == Path::new("/etc/resolv.conf")).and_then(|m| m.source().as_ref());
        let share = source.and_then(|source| source.strip_prefix(GUEST_SHARED_DIR).ok()?.to_str().map(str::to_owned));
        if let Some(member) = self.members.borrow_mut().get_mut(id) {
            member.resolver = share;
        }
    }

    /// Whether a container is told of the resolver in the namespace.
    fn is_told_of_resolver(&self) -> bool {
        let shares: Vec<String> = self.members.borrow().values().filter_map(|member| member.resolver.clone()).collect();
        shares.iter().any(|share| names_resolver(&self.shared.path().join(share)).unwrap_or(false))
    }

    /// Has the agent listen in the resolver's place, if a container is told of it and the agent does not yet. A container that cannot be
    /// helped to names is a container nevertheless.
    pub(super) async fn stand_in_for_resolver(self: &Rc<Self>) {
        if self.names.get() || !self.is_told_of_resolver() {
            return;
        }
        let mut network = self.network.lock().await;
        let Some(network) = network.as_mut().filter(|_| !self.names.get()) else { return };
        if let Err(error) = network.share_names() {
            eprintln!("names of the outside will not be found: {}", error.chain());
        }
        match self.serve_names().await {
            Ok(()) => self.names.set(true),
            Err(error) => eprintln!("names will not be found: {}", error.chain()),
        }
    }

    async fn serve_names(&self) -> Result<()> {
        let step = "stand in for the resolver";
        match self.machine.call(step, &Request::ServeNames { address: RESOLVER }).await? {
            (agent_api::Reply::Done, stream) => {
                // It ends with the machine.
                tokio::task::spawn_local(pass(stream, (RESOLVER, PORT)));
                Ok(())
            }
            (other, _) => Err(crate::machine::out_of_turn(step, &other)),
        }
    }
}

/// Whether a `resolv.conf` names the resolver. The guest may have written it.
fn names_resolver(path: &Path) -> io::Result<bool> {
    // A FIFO must not keep us.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOFOLLOW;
    let file = std::fs::File::from(rustix::fs::open(path, flags, Mode::empty())?);
    let mut bytes = Vec::new();
    io::Read::read_to_end(&mut io::Read::take(file, MOST_CONFIGURATION), &mut bytes)?;
    let resolver = RESOLVER.to_string();
    Ok(String::from_utf8_lossy(&bytes).lines().any(|line| {
        let mut words = line.split_ascii_whitespace();
        words.next() == Some("nameserver") && words.next() == Some(&resolver)
    }))
}

/// Asks a resolver what the guest asks, until the stream ends.
async fn pass(stream: impl AsyncRead + AsyncWrite + 'static, resolver: (Ipv4Addr, u16)) {
    let (mut reader, mut writer) = tokio::io::split(stream);
    let room = std::sync::Arc::new(Semaphore::new(MAX_WAITING));
    let (told, mut answers) = mpsc::channel::<Message>(1);
    let answering = async {
        while let Some(answer) = answers.recv().await {
            if names::write(&mut writer, &answer).await.is_err() {
                return;
            }
        }
    };
    let asking = async {
        while let Ok(place) = room.clone().acquire_owned().await {
            let query = match names::read(&mut reader, MAX_QUERY).await {
                Ok(query) => query,
                Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                    return eprintln!("the guest is not helped to names any more: {error}");
                }
                Err(_) => return,
            };
            let told = told.clone();
            tokio::task::spawn_local(async move {
                let Message { number, transport, bytes } = query;
                let asked = timeout(PATIENCE, ask(resolver, transport, &bytes)).await;
                // None is told, too: the query is not waiting any more.
                let bytes = asked.ok().and_then(std::result::Result::ok).unwrap_or_default();
                // A guest that takes no answers gets no room for queries.
                let _gone = told.send(Message { number, transport, bytes }).await;
                drop(place);
            });
        }
    };
    tokio::select! {
        () = answering => {}
        () = asking => {}
    }
}

/// One query. Gives its answer.
async fn ask(resolver: (Ipv4Addr, u16), transport: Transport, query: &[u8]) -> io::Result<Vec<u8>> {
    match transport {
        Transport::Udp => {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).await?;
            socket.connect(resolver).await?;
            socket.send(query).await?;
            let mut answer = vec![0; MAX_ANSWER];
            let length = socket.recv(&mut answer).await?;
            answer.truncate(length);
            Ok(answer)
        }
        Transport::Tcp => {
            let mut connection = TcpStream::connect(resolver).await?;
            let length = u16::try_from(query.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
            connection.write_all(&[&length.to_be_bytes(), query].concat()).await?;
            let mut answer = vec![0; usize::from(connection.read_u16().await?)];
            connection.read_exact(&mut answer).await?;
            Ok(answer)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use tokio::{io::duplex, net::TcpListener, task::LocalSet};

    use super::*;

    #[test]
    fn a_configuration_names_the_resolver_in_a_line_of_its_own() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let named = |text: &str| {
            std::fs::write(file.path(), text).unwrap();
            names_resolver(file.path()).unwrap()
        };
        assert!(named("search lan\nnameserver 127.0.0.11\noptions ndots:0\n"));
        assert!(named("nameserver\t127.0.0.11"));
        assert!(!named("nameserver 127.0.0.1\nnameserver 127.0.0.110\n# nameserver 127.0.0.11\n"));
        assert!(names_resolver(Path::new("/no/such/file")).is_err());
    }

    async fn resolver() -> (UdpSocket, TcpListener, (Ipv4Addr, u16)) {
        let tcp = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let at = (Ipv4Addr::LOCALHOST, tcp.local_addr().unwrap().port());
        (UdpSocket::bind(at).await.unwrap(), tcp, at)
    }

    #[tokio::test(flavor = "current_thread")]
    async fn queries_go_to_the_resolver_as_they_came_and_answers_come_back() {
        let work = async {
            let (udp, tcp, at) = resolver().await;
            let (mut guest, host) = duplex(1 << 20);
            tokio::task::spawn_local(pass(host, at));
            let query = |number, transport| Message { number, transport, bytes: b"name?".to_vec() };
            names::write(&mut guest, &query(1, Transport::Udp)).await.unwrap();
            let mut buffer = [0; 16];
            let (length, peer) = udp.recv_from(&mut buffer).await.unwrap();
            udp.send_to(&buffer[..length - 1], peer).await.unwrap();
            let answer = names::read(&mut guest, MAX_ANSWER).await.unwrap();
            assert_eq!((answer.number, answer.bytes.as_slice()), (1, b"name".as_slice()));
            names::write(&mut guest, &query(2, Transport::Tcp)).await.unwrap();
            let (mut connection, _) = tcp.accept().await.unwrap();
            let mut asked = [0; 7];
            connection.read_exact(&mut asked).await.unwrap();
            assert_eq!(&asked, b"\0\x05name?");
            connection.write_all(&[&[0xff, 0xff], &[7; MAX_ANSWER][..]].concat()).await.unwrap();
            let answer = names::read(&mut guest, MAX_ANSWER).await.unwrap();
            assert_eq!((answer.number, answer.bytes), (2, vec![7; MAX_ANSWER]));
            // Nobody listens: that is an answer.
            drop(tcp);
            names::write(&mut guest, &query(3, Transport::Tcp)).await.unwrap();
            let answer = names::read(&mut guest, MAX_ANSWER).await.unwrap();
            assert_eq!((answer.number, answer.bytes.len()), (3, 0));
        };
        LocalSet::new().run_until(work).await;
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_guest_that_asks_without_end_has_so_many_queries_under_way_and_no_more() {
        let work = async {
            let (udp, _tcp, at) = resolver().await;
            let (mut guest, host) = duplex(1024);
            tokio::task::spawn_local(pass(host, at));
            let asked = Rc::new(Cell::new(0));
            let count = asked.clone();
            tokio::task::spawn_local(async move {
                for number in 0..1000 {
                    let message = Message { number, transport: Transport::Udp, bytes: vec![0; 100] };
                    names::write(&mut guest, &message).await.unwrap();
                    count.set(count.get() + 1);
                }
            });
            let mut buffer = [0; 128];
            for _ in 0..MAX_WAITING {
                udp.recv_from(&mut buffer).await.unwrap();
            }
            let further = timeout(Duration::from_millis(200), udp.recv_from(&mut buffer)).await;
            assert!(further.is_err(), "more than {MAX_WAITING} are under way");
            assert!(asked.get() < 100, "{} were taken", asked.get());
        };
        LocalSet::new().run_until(work).await;
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_guest_that_breaks_the_form_is_not_served_any_more() {
        let work = async {
            let (mut guest, host) = duplex(1 << 17);
            let passing = tokio::task::spawn_local(pass(host, (Ipv4Addr::LOCALHOST, 9)));
            let long = Message { number: 0, transport: Transport::Udp, bytes: vec![0; MAX_QUERY + 1] };
            names::write(&mut guest, &long).await.unwrap();
            timeout(Duration::from_secs(10), passing).await.unwrap().unwrap();
        };
        LocalSet::new().run_until(work).await;
    }
}
