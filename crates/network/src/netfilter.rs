//! A table of nftables that redirects connections to the loopback.
//!
//! It is made over netlink, because the `nft` program is not on every node.

use std::net::{IpAddr, Ipv6Addr};

use netlink::{Message, Socket};
use rustix::io::Errno;

use crate::error::Error;

/// The table's name.
const TABLE: &str = "kata-forward";

/// The chain's name.
const CHAIN: &str = "output";

/// `NFNL_SUBSYS_NFTABLES`.
const NFTABLES: u8 = 10;

/// `NFPROTO_INET`: both families.
const INET: u8 = 1;

/// `NFTA_LIST_ELEM`, and the first attribute of most things: their table, name or register.
const FIRST: u16 = 1;

/// `NFT_REG_1`.
const REGISTER: u32 = 1;

/// The table, as long as it is held.
#[derive(Debug)]
pub(crate) struct Redirect {
    socket: Socket,
}

impl Redirect {
    /// Redirects TCP connections that are made in the calling thread's namespace to 127.0.0.0/8 and ::1, whatever their port, to a port of
    /// 127.0.0.1 and one of ::1.
    pub(crate) fn loopback_to(v4: u16, v6: Option<u16>) -> Result<Self, Error> {
        const OWNER: u32 = 2;
        let failed = || {
            Error::kernel(
                "redirect with nf_tables (which the host's kernel needs)",
                "connections to the pod's loopback",
            )
        };
        let mut socket = Socket::netfilter().map_err(failed())?;
        // An owned table ends with the socket, so nothing is left of it even if we are killed. Linux has that since 5.12.
        match socket.ask_all(batch(OWNER, v4, v6)) {
            Err(error) if error.is(Errno::OPNOTSUPP) || error.is(Errno::INVAL) => socket.ask_all(batch(0, v4, v6)),
            result => result,
        }
        .map_err(failed())?;
        Ok(Self { socket })
    }
}

impl Drop for Redirect {
    fn drop(&mut self) {
        let messages = vec![edge(BATCH_BEGIN), table(DELETE_TABLE, 0, 0), edge(BATCH_END)];
        // Nobody is left to tell, and the namespace ends with the pod.
        let _ = self.socket.ask_all(messages);
    }
}

const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const NEW_TABLE: u8 = 0;
const DELETE_TABLE: u8 = 2;
const NEW_CHAIN: u8 = 3;
const NEW_RULE: u8 = 6;

fn batch(flags: u32, v4: u16, v6: Option<u16>) -> Vec<Message> {
    let mut messages = vec![
        edge(BATCH_BEGIN),
        // Whatever has been left under this name goes first.
        table(NEW_TABLE, libc::NLM_F_CREATE, 0),
        table(DELETE_TABLE, 0, 0),
        table(NEW_TABLE, libc::NLM_F_CREATE, flags),
        chain(),
        rule(IpAddr::from([127, 0, 0, 1]), v4),
    ];
    messages.extend(v6.map(|port| rule(IpAddr::V6(Ipv6Addr::LOCALHOST), port)));
    messages.push(edge(BATCH_END));
    messages
}

/// Where a batch begins or ends, with `struct nfgenmsg`.
fn edge(kind: u16) -> Message {
    let mut message = Message::new(kind, 0);
    message.fixed(&[0, 0, 0, NFTABLES]);
    message
}

fn request(kind: u8, flags: i32) -> Message {
    let mut message = Message::new(u16::from_be_bytes([NFTABLES, kind]), flags);
    message.fixed(&[INET, 0, 0, 0]);
    message
}

/// A number of the network's byte order, as netfilter has them.
fn number(message: &mut Message, kind: u16, value: u32) {
    message.attribute(kind, &value.to_be_bytes());
}

fn table(kind: u8, flags: i32, table_flags: u32) -> Message {
    const FLAGS: u16 = 2;
    let mut message = request(kind, flags);
    message.text(FIRST, TABLE);
    if table_flags != 0 {
        number(&mut message, FLAGS, table_flags);
    }
    message
}

fn chain() -> Message {
    const NAME: u16 = 3;
    const HOOK: u16 = 4;
    const HOOK_NUMBER: u16 = 1;
    const HOOK_PRIORITY: u16 = 2;
    const TYPE: u16 = 7;
    const LOCAL_OUT: u32 = 3;
    const PRIORITY_NAT: i32 = -100;
    let mut message = request(NEW_CHAIN, libc::NLM_F_CREATE);
    message.text(FIRST, TABLE).text(NAME, CHAIN).text(TYPE, "nat").nest(HOOK, |hook| {
        number(hook, HOOK_NUMBER, LOCAL_OUT);
        number(hook, HOOK_PRIORITY, PRIORITY_NAT.cast_unsigned());
    });
    message
}

/// Redirects what goes to the loopback of a family.
fn rule(loopback: IpAddr, port: u16) -> Message {
    const CHAIN_NAME: u16 = 2;
    const EXPRESSIONS: u16 = 4;
    const KEY_FAMILY: u32 = 15;
    const KEY_PROTOCOL: u32 = 16;
    const FAMILY_V4: u8 = 2;
    const FAMILY_V6: u8 = 10;
    const TCP: u8 = 6;
    // Offset of the destination in the header, and as much of it as says that it is the loopback's.
    let (family, offset, prefix) = match loopback {
        IpAddr::V4(ip) => (FAMILY_V4, 16, ip.octets()[..1].to_vec()),
        IpAddr::V6(ip) => (FAMILY_V6, 24, ip.octets().to_vec()),
    };
    let mut message = request(NEW_RULE, libc::NLM_F_CREATE | libc::NLM_F_APPEND);
    message.text(FIRST, TABLE).text(CHAIN_NAME, CHAIN).nest(EXPRESSIONS, |list| {
        meta(list, KEY_FAMILY);
        equals(list, &[family]);
        meta(list, KEY_PROTOCOL);
        equals(list, &[TCP]);
        destination(list, offset, u32::try_from(prefix.len()).unwrap_or_default());
        equals(list, &prefix);
        redirect(list, port);
    });
    message
}

fn expression(list: &mut Message, name: &str, fill: impl FnOnce(&mut Message)) {
    const DATA: u16 = 2;
    list.nest(FIRST, |element| {
        element.text(FIRST, name).nest(DATA, fill);
    });
}

fn meta(list: &mut Message, key: u32) {
    const KEY: u16 = 2;
    expression(list, "meta", |data| {
        number(data, FIRST, REGISTER);
        number(data, KEY, key);
    });
}

fn equals(list: &mut Message, value: &[u8]) {
    const OPERATION: u16 = 2;
    const DATA: u16 = 3;
    const EQUAL: u32 = 0;
    expression(list, "cmp", |data| {
        number(data, FIRST, REGISTER);
        number(data, OPERATION, EQUAL);
        data.nest(DATA, |data| {
            data.attribute(FIRST, value);
        });
    });
}

fn destination(list: &mut Message, offset: u32, length: u32) {
    const BASE: u16 = 2;
    const OFFSET: u16 = 3;
    const LENGTH: u16 = 4;
    const NETWORK_HEADER: u32 = 1;
    expression(list, "payload", |data| {
        number(data, FIRST, REGISTER);
        number(data, BASE, NETWORK_HEADER);
        number(data, OFFSET, offset);
        number(data, LENGTH, length);
    });
}

fn redirect(list: &mut Message, port: u16) {
    const DATA: u16 = 2;
    const FLAGS: u16 = 3;
    const PORT_GIVEN: u32 = 2;
    expression(list, "immediate", |data| {
        number(data, FIRST, REGISTER);
        data.nest(DATA, |data| {
            data.attribute(FIRST, &port.to_be_bytes());
        });
    });
    expression(list, "redir", |data| {
        number(data, FIRST, REGISTER);
        number(data, FLAGS, PORT_GIVEN);
    });
}
