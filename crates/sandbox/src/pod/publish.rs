//! What is listened on in a guest that has the host's network is listened on on the host.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    rc::{Rc, Weak},
    time::Duration,
};

use agent_api::{Listener, Reply, Request};
use network::{is_without_ipv6, listen};
use tokio::{net::TcpListener, task::JoinSet};

use super::{Sandbox, forward::pass};
use crate::{Error, Result, machine::out_of_turn};

/// How often the guest is asked. A server and whoever connects to it are rarely started together.
const INTERVAL: Duration = Duration::from_millis(500);

/// Most ports that are published: each costs two descriptors of this process, and the guest decides how many there are.
const MOST: usize = 1000;

/// Keeps the host's listeners those of the guest, as long as there is one.
pub(super) async fn publish(sandbox: Weak<Sandbox>) {
    let mut published: BTreeMap<Listener, JoinSet<()>> = BTreeMap::new();
    loop {
        tokio::time::sleep(INTERVAL).await;
        let Some(alive) = sandbox.upgrade().filter(|sandbox| !sandbox.is_dead()) else { return };
        if let Some(words) = alive.end_of_passt().await {
            return eprintln!("the guest has lost the host's network, because passt has ended: {words}");
        }
        let wanted: BTreeSet<Listener> = match alive.listeners().await {
            Ok(listeners) => listeners.into_iter().take(MOST).collect(),
            Err(_) if alive.is_dead() => return,
            Err(error) => return eprintln!("no further port is published: {}", error.chain()),
        };
        // Those that are closed first: one may have become another's.
        published.retain(|listener, _| wanted.contains(listener));
        for listener in wanted {
            published.entry(listener).or_insert_with(|| open(&sandbox, listener));
        }
    }
}

/// Listens at every address of the port. What cannot be listened on is told once, and stays without a listener.
fn open(sandbox: &Weak<Sandbox>, Listener { port, loopback }: Listener) -> JoinSet<()> {
    let addresses: [SocketAddr; 2] = match loopback {
        true => [(Ipv4Addr::LOCALHOST, port).into(), (Ipv6Addr::LOCALHOST, port).into()],
        false => [(Ipv4Addr::UNSPECIFIED, port).into(), (Ipv6Addr::UNSPECIFIED, port).into()],
    };
    let mut accepting = JoinSet::new();
    for address in addresses {
        match listen(address) {
            Ok(listener) => drop(accepting.spawn_local(accept(sandbox.clone(), listener, port))),
            Err(error) if address.is_ipv6() && is_without_ipv6(&error) => {}
            Err(error) => eprintln!(
                "port {port} of the guest is not reached from outside: {}",
                Error::io(format!("listen on {address}"), error).chain()
            ),
        }
    }
    accepting
}

async fn accept(sandbox: Weak<Sandbox>, listener: TcpListener, port: u16) {
    loop {
        match listener.accept().await {
            Ok((connection, _)) => drop(tokio::task::spawn_local(pass(sandbox.clone(), connection, port))),
            Err(error) => {
                eprintln!("a connection to port {port} was not taken: {error}");
                // Too many files are open, for example; it would be so again at once.
                tokio::time::sleep(INTERVAL).await;
            }
        }
    }
}

impl Sandbox {
    /// TCP ports that are listened on in the guest.
    async fn listeners(self: &Rc<Self>) -> Result<Vec<Listener>> {
        let step = "ask which ports are listened on in the guest";
        match self.machine.call(step, &Request::Listeners).await? {
            (Reply::Listeners(listeners), _) => Ok(listeners),
            (other, _) => Err(out_of_turn(step, &other)),
        }
    }
}
