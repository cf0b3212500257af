//! The guest's network: interfaces, addresses, routes and neighbours as the pod's network namespace on the host shows them.
//!
//! The host always tells all of it. What it told before and tells no more is removed, and what a container has added by itself stays.
//! Every step may be repeated, so a call that failed half-way is put right by the next.

mod apply;
mod check;
#[cfg(test)]
mod tests;
mod wait;

use std::time::Duration;

use agent_api::Fault;
use agent_api::network::Network;
use tokio::sync::Mutex;

use crate::fault::{Context, internal, prefixed, reason};

/// How long a NIC may take to appear after the host has plugged it in.
const DEADLINE: Duration = Duration::from_secs(20);

/// What the host has told of the network.
#[derive(Debug, Default)]
pub struct GuestNetwork {
    /// Everything that may be there because of it. Locked while it is being changed.
    given: Mutex<Network>,
}

impl GuestNetwork {
    /// Makes the guest's network what is given.
    ///
    /// # Errors
    /// An invalid argument before anything is changed; else a fault that names the step and the object.
    pub async fn configure(&self, network: Network) -> Result<(), Fault> {
        self.configure_within(network, DEADLINE).await.map_err(|fault| prefixed("configuring the network: ", fault))
    }

    async fn configure_within(&self, network: Network, deadline: Duration) -> Result<(), Fault> {
        check::check(&network)?;
        let mut given = self.given.lock().await;
        let links = wait::for_interfaces(&network.interfaces, deadline).await?;
        let mut socket = netlink::Socket::route().map_err(failed(|| "opening a socket to rtnetlink".into()))?;
        let before = given.clone();
        // Should a step fail, the next call has to know of both.
        given.interfaces.extend(network.interfaces.iter().filter(|new| !before.interfaces.contains(new)).cloned());
        given.routes.extend(network.routes.iter().filter(|new| !before.routes.contains(new)).cloned());
        given.neighbours.extend(network.neighbours.iter().filter(|new| !before.neighbours.contains(new)).cloned());
        apply::remove(&mut socket, &links, &before, &network)?;
        apply::apply(&mut socket, &links, &network)?;
        *given = network;
        Ok(())
    }
}

/// For `map_err` on a request to the kernel: the fault `what: reason: the kernel's own words`.
fn failed(what: impl FnOnce() -> String) -> impl FnOnce(netlink::Error) -> Fault {
    move |error| match &error {
        netlink::Error::Refused { errno, explanation } if !explanation.is_empty() => {
            internal(format!("{}: {}: {explanation}", what(), reason(&(*errno).into())))
        }
        netlink::Error::Refused { errno, .. } | netlink::Error::Socket(errno) => {
            Err::<(), _>(*errno).context(what).err().unwrap_or_else(|| internal(error.to_string()))
        }
        other => internal(format!("{}: {other}", what())),
    }
}

/// A hardware address as it is written.
fn written(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}
