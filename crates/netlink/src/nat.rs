//! A table of nftables that redirects what is sent to the loopback.
//!
//! It is made over netlink, because the `nft` program is not on every node, and in no guest.

use std::net::IpAddr;

use rustix::io::Errno;

use crate::{Error, Message, Socket};

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

/// What is redirected: what processes of the namespace send by a protocol to an address.
#[derive(Debug, Clone, Copy)]
pub struct Redirect {
    /// An address of the loopback.
    pub to: IpAddr,
    /// How many of the address's bytes count.
    pub bytes: usize,
    /// `IPPROTO_TCP` or `IPPROTO_UDP`.
    pub protocol: u8,
    /// The port, if only one is redirected.
    pub port: Option<u16>,
    /// The port of 127.0.0.1 or ::1 that gets it.
    pub listener: u16,
}

/// The table, as long as it is held.
#[derive(Debug)]
pub struct Table {
    socket: Socket,
    name: &'static str,
}

impl Table {
    /// Makes one in the calling thread's namespace. Whatever has been left under its name goes first.
    ///
    /// # Errors
    /// [`Error::Refused`] on a kernel without nf_tables, and failures of the socket.
    pub fn redirect(name: &'static str, redirects: &[Redirect]) -> Result<Self, Error> {
        const OWNER: u32 = 2;
        let mut socket = Socket::netfilter()?;
        // An owned table ends with the socket, so nothing is left of it even if we are killed. Linux has that since 5.12.
        match socket.ask_all(batch(name, OWNER, redirects)) {
            Err(error) if error.is(Errno::OPNOTSUPP) || error.is(Errno::INVAL) => {
                socket.ask_all(batch(name, 0, redirects))
            }
            result => result,
        }?;
        Ok(Self { socket, name })
    }
}

impl Drop for Table {
    fn drop(&mut self) {
        let messages = vec![edge(BATCH_BEGIN), table(self.name, DELETE_TABLE, 0, 0), edge(BATCH_END)];
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

fn batch(name: &str, flags: u32, redirects: &[Redirect]) -> Vec<Message> {
    let mut messages = vec![
        edge(BATCH_BEGIN),
        table(name, NEW_TABLE, libc::NLM_F_CREATE, 0),
        table(name, DELETE_TABLE, 0, 0),
        table(name, NEW_TABLE, libc::NLM_F_CREATE, flags),
        chain(name),
    ];
    messages.extend(redirects.iter().map(|redirect| rule(name, redirect)));
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

fn table(name: &str, kind: u8, flags: i32, table_flags: u32) -> Message {
    const FLAGS: u16 = 2;
    let mut message = request(kind, flags);
    message.text(FIRST, name);
    if table_flags != 0 {
        number(&mut message, FLAGS, table_flags);
    }
    message
}

fn chain(name: &str) -> Message {
    const NAME: u16 = 3;
    const HOOK: u16 = 4;
    const HOOK_NUMBER: u16 = 1;
    const HOOK_PRIORITY: u16 = 2;
    const TYPE: u16 = 7;
    const LOCAL_OUT: u32 = 3;
    const PRIORITY_NAT: i32 = -100;
    let mut message = request(NEW_CHAIN, libc::NLM_F_CREATE);
    message.text(FIRST, name).text(NAME, CHAIN).text(TYPE, "nat").nest(HOOK, |hook| {
        number(hook, HOOK_NUMBER, LOCAL_OUT);
        number(hook, HOOK_PRIORITY, PRIORITY_NAT.cast_unsigned());
    });
    message
}

fn rule(name: &str, wanted: &Redirect) -> Message {
    const CHAIN_NAME: u16 = 2;
    const EXPRESSIONS: u16 = 4;
    const KEY_FAMILY: u32 = 15;
    const KEY_PROTOCOL: u32 = 16;
    const FAMILY_V4: u8 = 2;
    const FAMILY_V6: u8 = 10;
    const PORT_OFFSET: u32 = 2;
    // Offset of the destination in the header.
    let (family, offset, address) = match wanted.to {
        IpAddr::V4(ip) => (FAMILY_V4, 16, ip.octets().to_vec()),
        IpAddr::V6(ip) => (FAMILY_V6, 24, ip.octets().to_vec()),
    };
    let prefix = &address[..wanted.bytes.min(address.len())];
    let mut message = request(NEW_RULE, libc::NLM_F_CREATE | libc::NLM_F_APPEND);
    message.text(FIRST, name).text(CHAIN_NAME, CHAIN).nest(EXPRESSIONS, |list| {
        meta(list, KEY_FAMILY);
        equals(list, &[family]);
        meta(list, KEY_PROTOCOL);
        equals(list, &[wanted.protocol]);
        payload(list, NETWORK_HEADER, offset, u32::try_from(prefix.len()).unwrap_or_default());
        equals(list, prefix);
        if let Some(port) = wanted.port {
            payload(list, TRANSPORT_HEADER, PORT_OFFSET, 2);
            equals(list, &port.to_be_bytes());
        }
        redirect(list, wanted.listener);
    });
    message
}

/// `NFT_PAYLOAD_NETWORK_HEADER` and `NFT_PAYLOAD_TRANSPORT_HEADER`.
const NETWORK_HEADER: u32 = 1;
const TRANSPORT_HEADER: u32 = 2;

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

fn payload(list: &mut Message, base: u32, offset: u32, length: u32) {
    const BASE: u16 = 2;
    const OFFSET: u16 = 3;
    const LENGTH: u16 = 4;
    expression(list, "payload", |data| {
        number(data, FIRST, REGISTER);
        number(data, BASE, base);
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
