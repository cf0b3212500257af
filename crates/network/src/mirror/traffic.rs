//! Redirection of all frames between two interfaces (tc(8): `ingress`, `u32`, `mirred`).
//!
//! `matchall` would say the same more plainly, but not every kernel has it, and all that shape traffic have `u32`.

use netlink::{Message, Socket};
use rustix::io::Errno;

use crate::error::Error;

/// `TC_H_INGRESS`.
const INGRESS: u32 = 0xffff_fff1;

/// The handle that every ingress qdisc has.
const HANDLE: u32 = 0xffff_0000;

/// Where filters of an ingress or a clsact qdisc go that look at what comes in.
const FILTERS_IN: u32 = 0xffff_fff2;

/// Our filter's preference, by which it is found again. Others, if there are any, come first.
const PREFERENCE: u32 = 0xcafe;

/// `ETH_P_ALL`.
const EVERYTHING: u16 = 3;

const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;

/// Everything that comes in on either of two interfaces leaves by the other.
#[derive(Debug)]
pub(super) struct Redirection {
    name: String,
    interface: u32,
    /// Whether the interface's ingress qdisc is ours, and not one that was there.
    qdisc_is_ours: bool,
}

impl Redirection {
    /// Sets it up. The tap's part ends with the tap.
    pub(super) fn between(socket: &mut Socket, name: &str, interface: u32, tap: u32) -> Result<Self, Error> {
        add_qdisc(socket, tap).map_err(Error::kernel("add the ingress qdisc to the tap of", name))?;
        add_filter(socket, tap, interface).map_err(Error::kernel("redirect what comes from the tap of", name))?;
        let qdisc_is_ours = match add_qdisc(socket, interface) {
            Ok(()) => true,
            // Either somebody else's, or what a sandbox that was killed has left: then our filter is in it.
            Err(error) if error.is(Errno::EXIST) => delete_filter(socket, interface).is_ok(),
            Err(error) => return Err(Error::kernel("add the ingress qdisc to", name)(error)),
        };
        let made = Self { name: name.to_owned(), interface, qdisc_is_ours };
        match add_filter(socket, interface, tap).map_err(Error::kernel("redirect what comes in on", name)) {
            Ok(()) => Ok(made),
            Err(error) => {
                let _ = made.remove(socket);
                Err(error)
            }
        }
    }

    /// Removes the interface's part.
    pub(super) fn remove(self, socket: &mut Socket) -> Result<(), Error> {
        let result = if self.qdisc_is_ours {
            delete_qdisc(socket, self.interface)
        } else {
            delete_filter(socket, self.interface)
        };
        match result {
            // The interface is gone, or somebody has removed it.
            Err(error) if [Errno::NODEV, Errno::NOENT, Errno::INVAL].iter().any(|errno| error.is(*errno)) => Ok(()),
            result => result.map_err(Error::kernel("remove the redirection from", self.name)),
        }
    }
}

/// `struct tcmsg`.
fn tcmsg(message: &mut Message, interface: u32, handle: u32, parent: u32, info: u32) {
    for word in [0, interface, handle, parent, info] {
        message.fixed(&word.to_ne_bytes());
    }
}

fn add_qdisc(socket: &mut Socket, interface: u32) -> Result<(), netlink::Error> {
    let mut message = Message::new(libc::RTM_NEWQDISC, libc::NLM_F_CREATE | libc::NLM_F_EXCL);
    tcmsg(&mut message, interface, HANDLE, INGRESS, 0);
    message.text(TCA_KIND, "ingress");
    socket.ask(message)
}

fn delete_qdisc(socket: &mut Socket, interface: u32) -> Result<(), netlink::Error> {
    let mut message = Message::new(libc::RTM_DELQDISC, 0);
    tcmsg(&mut message, interface, HANDLE, INGRESS, 0);
    socket.ask(message)
}

/// The filter's preference and protocol, as `tcm_info` holds them.
fn info() -> u32 {
    (PREFERENCE << 16) | u32::from(EVERYTHING.to_be())
}

fn delete_filter(socket: &mut Socket, interface: u32) -> Result<(), netlink::Error> {
    let mut message = Message::new(libc::RTM_DELTFILTER, 0);
    tcmsg(&mut message, interface, 0, FILTERS_IN, info());
    message.text(TCA_KIND, "u32");
    socket.ask(message)
}

fn add_filter(socket: &mut Socket, from: u32, to: u32) -> Result<(), netlink::Error> {
    const U32_SELECTOR: u16 = 5;
    const U32_ACTIONS: u16 = 7;
    const FIRST_ACTION: u16 = 1;
    const ACTION_KIND: u16 = 1;
    const ACTION_OPTIONS: u16 = 2;
    const MIRRED_PARAMETERS: u16 = 2;
    let mut message = Message::new(libc::RTM_NEWTFILTER, libc::NLM_F_CREATE | libc::NLM_F_EXCL);
    tcmsg(&mut message, from, 0, FILTERS_IN, info());
    message.text(TCA_KIND, "u32").nest(TCA_OPTIONS, |options| {
        options.attribute(U32_SELECTOR, &everything());
        options.nest(U32_ACTIONS, |actions| {
            actions.nest(FIRST_ACTION, |action| {
                action.text(ACTION_KIND, "mirred").nest(ACTION_OPTIONS, |options| {
                    options.attribute(MIRRED_PARAMETERS, &redirect(to));
                });
            });
        });
    });
    socket.ask(message)
}

/// `struct tc_u32_sel` with one key that matches anything: of the first four bytes, none is looked at.
fn everything() -> [u8; 32] {
    const TERMINAL: u8 = 1;
    const KEYS: u8 = 1;
    let mut selector = [0; 32];
    selector[0] = TERMINAL;
    selector[2] = KEYS;
    selector
}

/// `struct tc_mirred`: to the egress of an interface, and nowhere else.
fn redirect(to: u32) -> Vec<u8> {
    const STOLEN: u32 = 4;
    const EGRESS_REDIRECT: u32 = 1;
    let (index, capabilities, references, bindings) = (0, 0, 0, 0);
    [index, capabilities, STOLEN, references, bindings, EGRESS_REDIRECT, to]
        .iter()
        .flat_map(|word: &u32| word.to_ne_bytes())
        .collect()
}
