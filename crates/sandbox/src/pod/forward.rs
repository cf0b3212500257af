//! Connections that are made to the loopback of a pod's network namespace: nobody listens there, but in the guest somebody may.
//! That is how containerd forwards ports.

use std::rc::{Rc, Weak};

use network::Forwarder;
use tokio::{io::copy_bidirectional, net::TcpStream};

use super::Sandbox;
use crate::{Error, Result};

impl Sandbox {
    /// Passes on, from now on, what connects to the loopback of the namespace that the calling thread is in.
    ///
    /// # Errors
    /// When the host's kernel does not redirect connections.
    pub fn forward_ports(self: &Rc<Self>) -> Result<()> {
        let forwarder = Forwarder::open()?;
        let sandbox = Rc::downgrade(self);
        tokio::task::spawn_local(async move {
            loop {
                match forwarder.accept().await {
                    Ok((connection, port)) => drop(tokio::task::spawn_local(pass(sandbox.clone(), connection, port))),
                    Err(error) => return eprintln!("no further port is forwarded: {}", Error::from(error).chain()),
                }
            }
        });
        Ok(())
    }
}

pub(super) async fn pass(sandbox: Weak<Sandbox>, mut connection: TcpStream, port: u16) {
    let Some(sandbox) = sandbox.upgrade() else { return };
    match sandbox.dial(port).await {
        // However it ends, both sides are closed then.
        Ok(mut guest) => drop(copy_bidirectional(&mut connection, &mut guest).await),
        // Whoever connected learns it as with any port that nobody listens on: the connection is reset.
        Err(error) => {
            eprintln!("{}", error.chain());
            let _ = connection.set_zero_linger();
        }
    }
}
