//! A sandbox's network: the interfaces of its network namespace, each with a NIC of the guest behind it.
//!
//! The hosting process is in the namespace. What changes there while the sandbox runs is followed: an interface that comes gets
//! a NIC, one that goes takes its NIC with it, and the guest's addresses, routes and neighbours stay those of the namespace.

use std::{collections::BTreeMap, path::Path, rc::Rc, time::Duration};

use agent_api::{Request, network::Network};
use config::Internetworking;
use hypervisor::{Link, Nic};
use network::{Mirror, Model, Passt, Watch};

use super::Sandbox;
use crate::{Error, Result, identity::vmm_uid};

/// Found on the path.
const PASST: &str = "passt";

/// How long after a change the namespace is looked at: changes come in bursts.
const SETTLE: Duration = Duration::from_millis(50);
/// Most queues of an interface: that many taps' queues old kernels have.
const MOST_QUEUES: u32 = 16;

/// An interface with its NIC.
struct Plugged {
    mirror: Mirror,
    id: String,
}

/// Where a sandbox's network comes from.
pub(super) enum PodNetwork {
    /// A network namespace of its own.
    Mirrored(Mirrored),
    /// The host's, behind passt.
    Host(Passt),
}

/// What a sandbox knows of the interfaces of its namespace.
pub(super) struct Mirrored {
    model: Model,
    queues: u16,
    plugged: BTreeMap<String, Plugged>,
    /// What the guest was told last.
    told: Network,
    next: u32,
    watch: Option<Watch>,
    /// A resolver in the namespace asks name servers outside.
    names: bool,
}

impl PodNetwork {
    /// Gives the machine's first NICs.
    pub(super) fn open(model: Internetworking, vcpus: u32) -> Result<Option<(Self, Vec<Nic>)>> {
        let model = match model {
            Internetworking::TcFilter | Internetworking::Passt => Model::TcFilter,
            Internetworking::Macvtap => Model::Macvtap,
            Internetworking::None => return Ok(None),
        };
        if !network::Namespace::current()?.is_host()? {
            let (mirrored, nics) = Mirrored::open(model, vcpus)?;
            return Ok(Some((Self::Mirrored(mirrored), nics)));
        }
        Err(Error::State(
            "this process is in the host's network namespace, whose interfaces are not for a guest; a namespace of the sandbox's own is expected"
                .into(),
        ))
    }

    /// The host's network, which the calling thread is in. Gives the machine's NIC.
    pub(super) fn of_host() -> Result<(Self, Vec<Nic>)> {
        let mut passt = Passt::start(Path::new(PASST), vmm_uid())?;
        let link = passt.socket.take().map(Link::Stream);
        let nics = link.map(|link| Nic { id: "passt".into(), link, mac: passt.mac, mtu: None });
        Ok((Self::Host(passt), nics.into_iter().collect()))
    }

    /// Lets the namespace's own stack have answers of name servers. The host's has them anyway.
    pub(super) fn share_names(&mut self) -> Result<()> {
        match self {
            Self::Mirrored(mirrored) => mirrored.share_names(),
            Self::Host(_) => Ok(()),
        }
    }

    fn told(&self) -> &Network {
        match self {
            Self::Mirrored(mirrored) => &mirrored.told,
            Self::Host(passt) => &passt.network,
        }
    }
}

impl Mirrored {
    /// Lets answers of name servers through to the namespace's own stack, on every interface that there is and that will be.
    fn share_names(&mut self) -> Result<()> {
        network::own_ports()?;
        self.names = true;
        for plugged in self.plugged.values_mut() {
            plugged.mirror.share_names()?;
        }
        Ok(())
    }

    /// Mirrors the interfaces that there are.
    fn open(model: Model, vcpus: u32) -> Result<(Self, Vec<Nic>)> {
        // Before the first look, so that nothing is missed.
        let watch = Watch::open()?;
        let told = network::scan()?;
        let queues = vcpus.clamp(1, MOST_QUEUES) as u16;
        let mut network =
            Self { model, queues, plugged: BTreeMap::new(), told, next: 0, watch: Some(watch), names: false };
        let names: Vec<String> = network.told.interfaces.iter().map(|interface| interface.name.clone()).collect();
        let nics = names.iter().map(|name| network.plug(name)).collect::<Result<_>>()?;
        Ok((network, nics))
    }

    /// Gives an interface a tap, and the NIC that goes with it.
    fn plug(&mut self, name: &str) -> Result<Nic> {
        let mut mirror = network::mirror(name, self.queues, self.model)?;
        if self.names {
            mirror.share_names()?;
        }
        let id = format!("net{}", self.next);
        self.next += 1;
        let nic = Nic {
            id: id.clone(),
            link: Link::Tap { queues: std::mem::take(&mut mirror.taps), vhost: std::mem::take(&mut mirror.vhost) },
            mac: mirror.mac,
            // The guest is told with the rest; a device's own would be the most that it could ever have.
            mtu: None,
        };
        self.plugged.insert(name.into(), Plugged { mirror, id });
        Ok(nic)
    }

    /// Interfaces with a NIC that are not what they were.
    fn gone(&mut self, now: &Network) -> Vec<String> {
        let same = |name: &str, mirror: &mut Mirror| {
            let looks_alike =
                now.interfaces.iter().any(|interface| interface.name == name && interface.mac == mirror.mac);
            // One that was made anew may look alike.
            looks_alike && mirror.is_current().unwrap_or(false)
        };
        let plugged = self.plugged.iter_mut();
        plugged.filter_map(|(name, plugged)| (!same(name, &mut plugged.mirror)).then(|| name.clone())).collect()
    }
}

impl Sandbox {
    /// Tells the guest of the network it was booted with, and follows the namespace from now on.
    pub(super) async fn settle_network(self: &Rc<Self>) -> Result<()> {
        let mut guard = self.network.lock().await;
        let Some(network) = &mut *guard else { return Ok(()) };
        self.configure_network(network.told().clone()).await?;
        match network {
            PodNetwork::Mirrored(mirrored) => {
                if let Some(watch) = mirrored.watch.take() {
                    tokio::task::spawn_local(follow(Rc::downgrade(self), watch));
                }
            }
            PodNetwork::Host(_) => drop(tokio::task::spawn_local(super::publish::publish(Rc::downgrade(self)))),
        }
        Ok(())
    }

    async fn configure_network(&self, network: Network) -> Result<()> {
        self.machine.done("configure the guest's network", &Request::ConfigureNetwork(network)).await
    }

    /// Makes the guest's network what the namespace shows now.
    ///
    /// # Errors
    /// When an interface cannot be passed on, or the guest refuses; what was passed on before stays.
    pub async fn sync_network(self: &Rc<Self>) -> Result<()> {
        self.sync_interfaces().await?;
        self.stand_in_for_resolver().await;
        Ok(())
    }

    async fn sync_interfaces(&self) -> Result<()> {
        let mut guard = self.network.lock().await;
        let Some(PodNetwork::Mirrored(network)) = &mut *guard else { return Ok(()) };
        let now = network::scan()?;
        for name in network.gone(&now) {
            if let Some(Plugged { mirror, id }) = network.plugged.remove(&name) {
                self.machine.vm().remove_nic(&id).await?;
                mirror.undo()?;
            }
        }
        for interface in &now.interfaces {
            match network.plugged.get_mut(&interface.name) {
                Some(plugged) if plugged.mirror.mtu != interface.mtu => plugged.mirror.set_mtu(interface.mtu)?,
                Some(_) => {}
                None => {
                    let nic = network.plug(&interface.name)?;
                    if let Err(error) = self.machine.vm().add_nic(nic).await {
                        // The tap goes with it.
                        network.plugged.remove(&interface.name);
                        return Err(error.into());
                    }
                }
            }
        }
        if now != network.told {
            self.configure_network(now.clone()).await?;
            network.told = now;
        }
        Ok(())
    }

    /// What passt said at its end, if it has ended.
    pub(super) async fn end_of_passt(&self) -> Option<String> {
        match &mut *self.network.lock().await {
            Some(PodNetwork::Host(passt)) => passt.last_words(),
            _ => None,
        }
    }

    /// Takes the taps away again. The namespace is then as it was found.
    pub(super) async fn close_network(&self) {
        // passt ends with what it is kept in.
        let Some(PodNetwork::Mirrored(network)) = self.network.lock().await.take() else { return };
        for (_, plugged) in network.plugged {
            if let Err(error) = plugged.mirror.undo() {
                // The namespace, and all in it, may be gone.
                eprintln!("{}", Error::from(error).chain());
            }
        }
    }
}

async fn follow(sandbox: std::rc::Weak<Sandbox>, mut watch: Watch) {
    loop {
        if let Err(error) = watch.changed().await {
            return eprintln!("changes of the pod's network are not followed any more: {}", Error::from(error).chain());
        }
        tokio::time::sleep(SETTLE).await;
        let Some(sandbox) = sandbox.upgrade() else { return };
        if sandbox.is_dead() {
            return;
        }
        if let Err(error) = sandbox.sync_network().await {
            eprintln!("{}", error.chain());
        }
    }
}
