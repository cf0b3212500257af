//! Redirection of all frames between two interfaces (tc(8): `ingress`, `u32`, `mirred`).
//!
//! `matchall` would say the same more plainly, but not every kernel has it, and all that shape traffic have `u32`.
//!
//! Exceptions ([`Redirection::share_names`]) are let through to the namespace's own stack: answers of name servers to it, and a copy of what tells
//! hardware addresses, without which it could not ask.

use netlink::{Message, Socket};
use rustix::io::Errno;

use crate::error::Error;

/// `TC_H_INGRESS`.
const INGRESS: u32 = 0xffff_fff1;

/// The handle that every ingress qdisc has.
const HANDLE: u32 = 0xffff_0000;

/// Where filters of an ingress or a clsact qdisc go that look at what comes in.
pub(super) const FILTERS_IN: u32 = 0xffff_fff2;

/// Our filter's preference, by which it is found again. Others, if there are any, come first.
const PREFERENCE: u32 = 0xcafe;

/// `ETH_P_ALL`.
const EVERYTHING: u16 = 3;

/// Exceptions: preference and protocol (`ETH_P_ARP`, `ETH_P_IP`, `ETH_P_IPV6`) of the filters, of which each preference has one.
const ARP: Place = Place { preference: PREFERENCE - 3, protocol: 0x0806 };
const IPV4: Place = Place { preference: PREFERENCE - 2, protocol: 0x0800 };
const IPV6: Place = Place { preference: PREFERENCE - 1, protocol: 0x86dd };
/// The filter for all the rest.
pub(super) const ALL: Place = Place { preference: PREFERENCE, protocol: EVERYTHING };

/// Those beside it.
pub(super) const EXCEPTIONS: [Place; 3] = [ARP, IPV4, IPV6];

/// Where a filter is among those of its interface.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    pub(super) preference: u32,
    protocol: u16,
}

impl Place {
    /// As `tcm_info` holds it.
    fn info(self) -> u32 {
        (self.preference << 16) | u32::from(self.protocol.to_be())
    }
}

/// What a filter does with what it matches.
#[derive(Debug, Clone, Copy)]
enum Action {
    /// It leaves by an interface, and nowhere else.
    Redirect(u32),
    /// A copy of it leaves by an interface.
    Copy(u32),
    /// It goes on to the namespace's own stack.
    Pass,
}

/// Four bytes at an offset of the network header have a value where a mask has ones.
type Key = (u32, u32, i32);

pub(super) const TCA_KIND: u16 = 1;
pub(super) const TCA_OPTIONS: u16 = 2;

/// Everything that comes in on either of two interfaces leaves by the other.
#[derive(Debug)]
pub(super) struct Redirection {
    name: String,
    interface: u32,
    tap: u32,
    /// Whether the interface's ingress qdisc is ours, and not one that was there.
    qdisc_is_ours: bool,
}

impl Redirection {
    /// Sets it up. The tap's part ends with the tap.
    pub(super) fn between(socket: &mut Socket, name: &str, interface: u32, tap: u32) -> Result<Self, Error> {
        add_qdisc(socket, tap).map_err(Error::kernel("add the ingress qdisc to the tap of", name))?;
        add_filter(socket, tap, ALL, &ANYTHING, Action::Redirect(interface))
            .map_err(Error::kernel("redirect what comes from the tap of", name))?;
        let qdisc_is_ours = match add_qdisc(socket, interface) {
            Ok(()) => true,
            // Either somebody else's, or what a sandbox that was killed has left: then our filter is in it.
            Err(error) if error.is(Errno::EXIST) => delete_filters(socket, interface).is_ok(),
            Err(error) => return Err(Error::kernel("add the ingress qdisc to", name)(error)),
        };
        let made = Self { name: name.to_owned(), interface, tap, qdisc_is_ours };
        match add_filter(socket, interface, ALL, &ANYTHING, Action::Redirect(tap))
            .map_err(Error::kernel("redirect what comes in on", name))
        {
            Ok(()) => Ok(made),
            Err(error) => {
                let _ = made.remove(socket);
                Err(error)
            }
        }
    }

    /// Lets answers of name servers to the namespace's own stack through, by their port and its own, of which the first four bits are set
    /// ([`OWN_PORTS`](crate::OWN_PORTS)), and what tells hardware addresses as well as to the guest.
    pub(super) fn share_names(&self, socket: &mut Socket) -> Result<(), Error> {
        const TCP: u32 = 6;
        const UDP: u32 = 17;
        const ICMPV6: u32 = 58;
        const ADVERTISEMENT: u32 = 136;
        const REPLY: u32 = 2;
        let ports = |offset| ((53 << 16) | 0xf000, 0xffff_f000, offset);
        // A header without options, of a packet in one piece.
        let ipv4 = |protocol: u32| {
            [(0x0500_0000, 0x0f00_0000, 0), (0, 0x3fff, 4), (protocol << 16, 0x00ff_0000, 8), ports(20)]
        };
        let ipv6 = |protocol: u32| (protocol << 8, 0xff00, 4);
        let copy = Action::Copy(self.tap);
        let filters: [(Place, &[Key], Action); 6] = [
            (ARP, &[(REPLY, 0xffff, 4)], copy),
            (IPV4, &ipv4(UDP), Action::Pass),
            (IPV4, &ipv4(TCP), Action::Pass),
            (IPV6, &[ipv6(UDP), ports(40)], Action::Pass),
            (IPV6, &[ipv6(TCP), ports(40)], Action::Pass),
            (IPV6, &[ipv6(ICMPV6), (ADVERTISEMENT << 24, 0xff00_0000, 40)], copy),
        ];
        for (place, keys, action) in filters {
            add_filter(socket, self.interface, place, keys, action)
                .map_err(Error::kernel("let through answers to the pod's resolver on", &*self.name))?;
        }
        Ok(())
    }

    /// Removes the interface's part.
    pub(super) fn remove(self, socket: &mut Socket) -> Result<(), Error> {
        let result = if self.qdisc_is_ours {
            delete_qdisc(socket, self.interface)
        } else {
            delete_filters(socket, self.interface)
        };
        match result {
            // The interface is gone, or somebody has removed it.
            Err(error) if [Errno::NODEV, Errno::NOENT, Errno::INVAL].iter().any(|errno| error.is(*errno)) => Ok(()),
            result => result.map_err(Error::kernel("remove the redirection from", self.name)),
        }
    }
}

/// `struct tcmsg`.
pub(super) fn tcmsg(message: &mut Message, interface: u32, handle: u32, parent: u32, info: u32) {
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

pub(super) fn delete_qdisc(socket: &mut Socket, interface: u32) -> Result<(), netlink::Error> {
    let mut message = Message::new(libc::RTM_DELQDISC, 0);
    tcmsg(&mut message, interface, HANDLE, INGRESS, 0);
    socket.ask(message)
}

/// Removes all of ours. Gives what became of the one that redirects; the others are not always there.
pub(super) fn delete_filters(socket: &mut Socket, interface: u32) -> Result<(), netlink::Error> {
    for place in EXCEPTIONS {
        let _not_there = delete_filter(socket, interface, place);
    }
    delete_filter(socket, interface, ALL)
}

fn delete_filter(socket: &mut Socket, interface: u32, place: Place) -> Result<(), netlink::Error> {
    let mut message = Message::new(libc::RTM_DELTFILTER, 0);
    tcmsg(&mut message, interface, 0, FILTERS_IN, place.info());
    message.text(TCA_KIND, "u32");
    socket.ask(message)
}

fn add_filter(
    socket: &mut Socket,
    from: u32,
    place: Place,
    keys: &[Key],
    action: Action,
) -> Result<(), netlink::Error> {
    const U32_CLASS: u16 = 1;
    const U32_SELECTOR: u16 = 5;
    const U32_ACTIONS: u16 = 7;
    const FIRST_ACTION: u16 = 1;
    const ACTION_KIND: u16 = 1;
    const ACTION_OPTIONS: u16 = 2;
    const MIRRED_PARAMETERS: u16 = 2;
    const NO_CLASS: u32 = 1;
    let mut message = Message::new(libc::RTM_NEWTFILTER, libc::NLM_F_CREATE | libc::NLM_F_EXCL);
    tcmsg(&mut message, from, 0, FILTERS_IN, place.info());
    message.text(TCA_KIND, "u32").nest(TCA_OPTIONS, |options| {
        options.attribute(U32_SELECTOR, &selector(keys));
        let parameters = match action {
            Action::Redirect(to) => mirred(REDIRECT, to),
            Action::Copy(to) => mirred(COPY, to),
            Action::Pass => {
                // A filter without an action lets pass what it matches, which takes a class to say.
                options.number(U32_CLASS, NO_CLASS);
                return;
            }
        };
        options.nest(U32_ACTIONS, |actions| {
            actions.nest(FIRST_ACTION, |action| {
                action.text(ACTION_KIND, "mirred").nest(ACTION_OPTIONS, |options| {
                    options.attribute(MIRRED_PARAMETERS, &parameters);
                });
            });
        });
    });
    socket.ask(message)
}

/// Matches anything: of the first four bytes, none is looked at.
const ANYTHING: [Key; 1] = [(0, 0, 0)];

/// `struct tc_u32_sel` with its keys.
fn selector(keys: &[Key]) -> Vec<u8> {
    const TERMINAL: u8 = 1;
    let mut selector = vec![0; 16];
    selector[0] = TERMINAL;
    selector[2] = u8::try_from(keys.len()).unwrap_or(u8::MAX);
    for (value, mask, offset) in keys {
        selector.extend(mask.to_be_bytes());
        selector.extend(value.to_be_bytes());
        selector.extend(offset.to_ne_bytes());
        selector.extend([0; 4]);
    }
    selector
}

/// `TC_ACT_STOLEN` and `TCA_EGRESS_REDIR`: what is sent elsewhere ends here.
const REDIRECT: [u32; 2] = [4, 1];
/// `TC_ACT_OK` and `TCA_EGRESS_MIRROR`: what is copied goes on.
const COPY: [u32; 2] = [0, 2];

/// `struct tc_mirred`: to the egress of an interface.
fn mirred([verdict, how]: [u32; 2], to: u32) -> Vec<u8> {
    let (index, capabilities, references, bindings) = (0, 0, 0, 0);
    [index, capabilities, verdict, references, bindings, how, to]
        .iter()
        .flat_map(|word: &u32| word.to_ne_bytes())
        .collect()
}
