//! What the mirrors of a sandbox that was killed have left in a network namespace. A tap goes with the process that had it open; a macvtap
//! and the redirections stay.

use netlink::{
    Message, Socket, attributes, number,
    route::{self, Link},
};
use rustix::io::Errno;

use super::{
    is_ours,
    traffic::{ALL, EXCEPTIONS, FILTERS_IN, TCA_KIND, TCA_OPTIONS, delete_filters, delete_qdisc, tcmsg},
};
use crate::error::Error;

/// What is left at one interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MirrorLeftover {
    /// The interface.
    pub interface: String,
    index: u32,
    what: What,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum What {
    /// The interface itself, which we have made.
    Macvtap,
    /// Filters of ours that redirect to what is not there any more; and the qdisc that they are in, if it has nothing else.
    Filters { qdisc: bool },
}

impl std::fmt::Display for MirrorLeftover {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.what {
            What::Macvtap => write!(f, "the macvtap {}", self.interface),
            What::Filters { .. } => write!(f, "the redirection of {}", self.interface),
        }
    }
}

impl MirrorLeftover {
    /// Removes it from the namespace that the calling thread is in. That it is gone already is no error.
    ///
    /// # Errors
    /// [`Error::Kernel`].
    pub fn remove(&self) -> Result<(), Error> {
        let mut socket = open()?;
        let removed = match self.what {
            What::Macvtap => route::delete_link(&mut socket, self.index),
            What::Filters { qdisc: true } => delete_qdisc(&mut socket, self.index),
            What::Filters { qdisc: false } => delete_filters(&mut socket, self.index),
        };
        match removed {
            Err(error) if [Errno::NODEV, Errno::NOENT, Errno::INVAL].iter().any(|errno| error.is(*errno)) => Ok(()),
            result => result.map_err(Error::kernel("remove", self.to_string())),
        }
    }
}

fn open() -> Result<Socket, Error> {
    Socket::route().map_err(Error::kernel("open", "a socket to rtnetlink"))
}

/// What mirrors have left in the namespace that the calling thread is in. The caller knows that no sandbox lives in it.
///
/// # Errors
/// [`Error::Kernel`].
pub fn mirror_leftovers() -> Result<Vec<MirrorLeftover>, Error> {
    let mut socket = open()?;
    let links = route::links(&mut socket).map_err(Error::kernel("read", "the interfaces"))?;
    let mut found = Vec::new();
    for link in &links {
        let leftover = |what| MirrorLeftover { interface: link.name.clone(), index: link.index, what };
        if is_ours(link) {
            // A tap that is there is held by a process.
            if link.kind.as_deref() == Some("macvtap") {
                found.push(leftover(What::Macvtap));
            }
        } else if let Some(qdisc) = redirected_to_nowhere(&mut socket, link, &links)? {
            found.push(leftover(What::Filters { qdisc }));
        }
    }
    Ok(found)
}

/// Whether an interface has our filters, and they lead to what is not there; if so, whether their qdisc is ours too.
fn redirected_to_nowhere(socket: &mut Socket, link: &Link, links: &[Link]) -> Result<Option<bool>, Error> {
    let mut message = Message::new(libc::RTM_GETTFILTER, 0);
    tcmsg(&mut message, link.index, 0, FILTERS_IN, 0);
    let filters = match socket.dump(&message) {
        Ok(filters) => filters,
        // It went away, or has no ingress at all.
        Err(error) if [Errno::NODEV, Errno::INVAL, Errno::NOENT].iter().any(|errno| error.is(*errno)) => {
            return Ok(None);
        }
        Err(error) => return Err(Error::kernel("read the filters of", link.name.as_str())(error)),
    };
    let (mut ours, mut others) = (None, false);
    for filter in &filters {
        // `struct tcmsg`: family, interface, handle, parent, info.
        let Some(preference) = filter.payload.get(16..).and_then(number).map(|info| info >> 16) else { continue };
        let is_u32 = filter.attributes(TCMSG).any(|(kind, value)| kind == TCA_KIND && value == b"u32\0");
        if is_u32 && preference == ALL.preference {
            let options = filter.attributes(TCMSG).find(|(kind, _)| *kind == TCA_OPTIONS);
            // The hash table that the filter is in has its preference too.
            if let Some(target) = options.and_then(|(_, options)| target(options)) {
                ours = Some(target);
            }
        } else if !(is_u32 && EXCEPTIONS.iter().any(|place| place.preference == preference)) {
            others = true;
        }
    }
    let leads_nowhere = ours.is_some_and(|target| !links.iter().any(|link| link.index == target));
    if !leads_nowhere {
        return Ok(None);
    }
    Ok(Some(!others && has_plain_ingress(socket, link)?))
}

/// Size of `struct tcmsg`.
const TCMSG: usize = 20;

/// The interface that a filter redirects to; 0 if it is gone.
fn target(options: &[u8]) -> Option<u32> {
    const U32_ACTIONS: u16 = 7;
    const FIRST_ACTION: u16 = 1;
    const ACTION_OPTIONS: u16 = 2;
    const MIRRED_PARAMETERS: u16 = 2;
    /// Of the index in `struct tc_mirred`.
    const INDEX: usize = 24;
    let inner = |bytes, wanted: u16| attributes(bytes).find(|(kind, _)| *kind == wanted).map(|(_, value)| value);
    let action = inner(inner(options, U32_ACTIONS)?, FIRST_ACTION)?;
    number(inner(inner(action, ACTION_OPTIONS)?, MIRRED_PARAMETERS)?.get(INDEX..)?)
}

/// Whether the qdisc for what comes in is of the kind that we make.
fn has_plain_ingress(socket: &mut Socket, link: &Link) -> Result<bool, Error> {
    let mut message = Message::new(libc::RTM_GETQDISC, 0);
    tcmsg(&mut message, link.index, 0, 0, 0);
    let qdiscs = socket.dump(&message).map_err(Error::kernel("read the qdiscs of", link.name.as_str()))?;
    Ok(qdiscs.iter().any(|qdisc| {
        qdisc.payload.get(4..).and_then(number) == Some(link.index)
            && qdisc.attributes(TCMSG).any(|(kind, value)| kind == TCA_KIND && value == b"ingress\0")
    }))
}
