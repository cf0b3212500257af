//! A tap for an interface.

mod leftovers;
mod macvtap;
mod tap;
mod traffic;

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::Path;

use netlink::Socket;
use netlink::route::{self, Link, LinkChange};
use rustix::io::Errno;

use crate::error::Error;
pub use leftovers::{MirrorLeftover, mirror_leftovers};
use traffic::Redirection;

/// What the names of our taps begin with.
const PREFIX: &str = "kata-tap";

/// What is written on our taps, besides their name: an administrator's own may be called alike.
const ALIAS: &str = "Kata Containers: mirrors ";

/// More than this a tap cannot have in old kernels.
const MOST_QUEUES: u16 = 16;

/// `ARPHRD_ETHER`.
const ETHERNET: u16 = 1;

/// How frames get from an interface to its tap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Model {
    /// A tap, with a filter on either side that redirects everything to the other.
    TcFilter,
    /// A macvtap on top of the interface that takes all of its frames. Faster, but not for interfaces that are a macvlan themselves.
    Macvtap,
}

/// An interface that is mirrored. Dropping it removes the tap and what leads to it.
#[derive(Debug)]
pub struct Mirror {
    /// The interface's name.
    pub interface: String,
    /// One descriptor a queue, with virtio-net headers. To be taken out.
    pub taps: Vec<OwnedFd>,
    /// As many descriptors of `/dev/vhost-net`; none if the host has no such device. To be taken out.
    pub vhost: Vec<OwnedFd>,
    /// The hardware address that the guest's NIC has to have: the interface's own.
    pub mac: [u8; 6],
    /// The interface's MTU.
    pub mtu: u32,
    /// Name of the tap.
    pub tap: String,
    /// The interface's number.
    index: u32,
    undo: Option<Undo>,
}

/// What there is to be removed. The socket stays in the namespace, wherever the process goes.
#[derive(Debug)]
struct Undo {
    socket: Socket,
    tap: u32,
    redirection: Option<Redirection>,
}

impl Undo {
    fn run(mut self, name: &str) -> Result<(), Error> {
        let filters = self.redirection.take().map_or(Ok(()), |redirection| redirection.remove(&mut self.socket));
        let tap = match route::delete_link(&mut self.socket, self.tap) {
            // The descriptors were closed before.
            Err(error) if error.is(Errno::NODEV) => Ok(()),
            result => result.map_err(Error::kernel("remove the tap", name)),
        };
        filters.and(tap)
    }
}

impl Mirror {
    /// Removes the tap and what leads to it. That it is gone already is no error.
    ///
    /// # Errors
    /// [`Error::Kernel`]; as much as can be is removed all the same.
    pub fn undo(mut self) -> Result<(), Error> {
        self.undo.take().map_or(Ok(()), |undo| undo.run(&self.tap))
    }

    /// Whether the interface is still the one that was mirrored, and not another that is called the same.
    ///
    /// # Errors
    /// [`Error::Kernel`].
    pub fn is_current(&mut self) -> Result<bool, Error> {
        let Some(undo) = &mut self.undo else { return Ok(false) };
        let links = route::links(&mut undo.socket).map_err(Error::kernel("read", "the interfaces of the pod"))?;
        Ok(links.iter().any(|link| link.index == self.index && link.name == self.interface))
    }

    /// Lets answers of name servers, to ports that [`own_ports`](crate::own_ports) has set apart, through to the namespace's own stack: a resolver that
    /// listens there asks them. A macvtap has no filter that could.
    ///
    /// # Errors
    /// [`Error::Kernel`].
    pub fn share_names(&mut self) -> Result<(), Error> {
        match &mut self.undo {
            Some(Undo { socket, redirection: Some(redirection), .. }) => redirection.share_names(socket),
            _ => Ok(()),
        }
    }

    /// Tells the tap of another MTU of the interface.
    ///
    /// # Errors
    /// [`Error::Kernel`].
    pub fn set_mtu(&mut self, mtu: u32) -> Result<(), Error> {
        if let Some(undo) = &mut self.undo {
            let change = LinkChange { mtu: Some(mtu), ..LinkChange::default() };
            route::change_link(&mut undo.socket, undo.tap, &change)
                .map_err(Error::kernel("set the MTU of", &*self.tap))?;
        }
        self.mtu = mtu;
        Ok(())
    }
}

impl Drop for Mirror {
    fn drop(&mut self) {
        if let Some(undo) = self.undo.take() {
            // Nobody is left to tell. `undo` is for those who want to know.
            let _ = undo.run(&self.tap);
        }
    }
}

/// Whether a link is a tap that was made here.
pub(crate) fn is_ours(link: &Link) -> bool {
    link.name.starts_with(PREFIX) && link.alias.as_deref().is_some_and(|alias| alias.starts_with(ALIAS))
}

/// Why an interface cannot be mirrored, if so.
pub(crate) fn unsuitable(link: &Link) -> Option<String> {
    let kind = link.kind.as_deref().unwrap_or("a device");
    if link.hardware != ETHERNET {
        return Some(format!(
            "it carries no Ethernet frames (kind {kind}, hardware type {}); let CNI make a veth, macvlan or tap instead",
            link.hardware
        ));
    }
    match link.mac {
        None => Some(format!("it has no hardware address (kind {kind}); give it one (ip link set address)")),
        Some(mac) if mac[0] & 1 != 0 => Some("its hardware address is a group's; give it one of its own".to_owned()),
        Some(_) => None,
    }
}

/// Gives an interface of the namespace that the calling thread is in a tap with some number of queues.
///
/// # Errors
/// Any but those of namespaces; nothing is left behind.
pub fn mirror(interface: &str, queues: u16, model: Model) -> Result<Mirror, Error> {
    if !(1..=MOST_QUEUES).contains(&queues) {
        return Err(Error::Queues { queues, most: MOST_QUEUES });
    }
    let mut socket = Socket::route().map_err(Error::kernel("open", "a socket to rtnetlink"))?;
    let links = route::links(&mut socket).map_err(Error::kernel("read", "the interfaces of the pod"))?;
    let link = links.iter().find(|link| link.name == interface);
    let link = link.ok_or_else(|| Error::NoInterface { name: interface.to_owned() })?;
    let refused = |reason: String| Error::Unsuitable { name: interface.to_owned(), reason };
    if is_ours(link) || link.is_loopback() {
        return Err(refused("it is the loopback, or a tap of ours".to_owned()));
    }
    let mac = match (unsuitable(link), link.mac) {
        (None, Some(mac)) => mac,
        (reason, _) => return Err(refused(reason.unwrap_or_default())),
    };
    let name = format!("{PREFIX}{}", link.index);
    if links.iter().any(|other| other.name == name) {
        return Err(refused(format!("it has a tap already, {name}; remove the sandbox that uses it")));
    }
    let vhost = vhost(queues)?;
    let (taps, tap) = match model {
        Model::TcFilter => tap::make(&mut socket, &name, queues)?,
        Model::Macvtap => macvtap::make(&mut socket, link, &name, queues)?,
    };
    let mut mirror = Mirror {
        interface: interface.to_owned(),
        taps,
        vhost,
        mac,
        mtu: link.mtu,
        tap: name,
        index: link.index,
        undo: Some(Undo { socket, tap, redirection: None }),
    };
    // From here on, `drop` cleans up.
    if let Some(undo) = &mut mirror.undo {
        let alias = format!("{ALIAS}{interface}");
        let change = LinkChange {
            mtu: Some(link.mtu),
            alias: Some(&alias),
            // Else the namespace would send packets of its own to the guest.
            no_own_address: true,
            ..LinkChange::default()
        };
        // One after the other: of one request, the kernel brings the link up first.
        for change in [change, LinkChange { up: Some(true), ..LinkChange::default() }] {
            route::change_link(&mut undo.socket, tap, &change)
                .map_err(Error::kernel("set up the tap", &*mirror.tap))?;
        }
        if model == Model::TcFilter {
            undo.redirection = Some(Redirection::between(&mut undo.socket, interface, link.index, tap)?);
        }
    }
    Ok(mirror)
}

/// Whether an interface can be mirrored by filters here: tries it in a network namespace that goes again.
///
/// # Errors
/// What failed.
pub fn try_mirror() -> Result<(), Error> {
    const INTERFACE: &str = "tried";
    crate::Namespace::create()?.run(|| {
        let mut socket = Socket::route().map_err(Error::kernel("open", "a socket to rtnetlink"))?;
        let (_kept, index) = tap::make(&mut socket, INTERFACE, 1)?;
        let up = LinkChange { up: Some(true), ..LinkChange::default() };
        route::change_link(&mut socket, index, &up).map_err(Error::kernel("bring up", INTERFACE))?;
        mirror(INTERFACE, 1, Model::TcFilter)?.undo()
    })?
}

/// Descriptors of the kernel's own virtio-net back end, if it is there.
fn vhost(queues: u16) -> Result<Vec<OwnedFd>, Error> {
    const PATH: &str = "/dev/vhost-net";
    if !Path::new(PATH).exists() {
        return Ok(Vec::new());
    }
    let open = |_| File::options().read(true).write(true).open(PATH).map(OwnedFd::from);
    match (0..queues).map(open).collect::<Result<Vec<_>, _>>() {
        // A node without the module behind it.
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENODEV | libc::ENXIO | libc::ENOENT)) => Ok(Vec::new()),
        result => result.map_err(Error::device("open", PATH)),
    }
}
