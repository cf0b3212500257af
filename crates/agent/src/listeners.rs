//! TCP ports that are listened on in the guest, whose network its containers share.

use std::{collections::BTreeSet, fs};

use agent_api::{Fault, Listener};

use crate::fault::{internal, reason};

/// `TCP_LISTEN`, as the kernel prints it.
const LISTENING: &str = "0A";

/// Reads `/proc/net/tcp` and `tcp6` (Documentation/networking/proc_net_tcp.rst).
///
/// # Errors
/// When the kernel does not show them.
pub fn listeners() -> Result<Vec<Listener>, Fault> {
    let mut found = BTreeSet::new();
    for file in ["/proc/net/tcp", "/proc/net/tcp6"] {
        match fs::read_to_string(file) {
            Ok(table) => found.extend(table.lines().skip(1).filter_map(listener)),
            // A guest without IPv6.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && file.ends_with('6') => {}
            Err(error) => return Err(internal(format!("read {file}: {}", reason(&error)))),
        }
    }
    // Who listens everywhere needs no second place at the loopback.
    let everywhere: BTreeSet<u16> = found.iter().filter(|one| !one.loopback).map(|one| one.port).collect();
    Ok(found.into_iter().filter(|one| !one.loopback || !everywhere.contains(&one.port)).collect())
}

/// A line of a table. The address is hexadecimal, each four bytes of it in the order of the machine.
fn listener(line: &str) -> Option<Listener> {
    let mut fields = line.split_ascii_whitespace().skip(1);
    let (local, _remote, state) = (fields.next()?, fields.next()?, fields.next()?);
    if state != LISTENING {
        return None;
    }
    let (address, port) = local.split_once(':')?;
    let words: Vec<u32> = (0..address.len() / 8)
        .map(|word| u32::from_str_radix(address.get(8 * word..8 * word + 8)?, 16).ok())
        .collect::<Option<_>>()?;
    let loopback = match words[..] {
        [0] | [0, 0, 0, 0] => false,
        [word] if word.to_ne_bytes()[0] == 127 => true,
        [0, 0, 0, last] if last.to_ne_bytes() == [0, 0, 0, 1] => true,
        // One of several addresses, at which the loopback does not reach it.
        _ => return None,
    };
    Some(Listener { port: u16::from_str_radix(port, 16).ok()?, loopback })
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    fn seen(port: u16) -> Option<bool> {
        listeners().unwrap().iter().find(|one| one.port == port).map(|one| one.loopback)
    }

    #[test]
    fn who_listens_is_seen_and_where() {
        let loopback = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = loopback.local_addr().unwrap().port();
        assert_eq!(seen(port), Some(true));
        let connected = TcpStream::connect(("127.0.0.1", port)).unwrap();
        assert_eq!(seen(connected.local_addr().unwrap().port()), None);
        let everywhere = TcpListener::bind("0.0.0.0:0").unwrap();
        assert_eq!(seen(everywhere.local_addr().unwrap().port()), Some(false));
        drop(loopback);
        assert_eq!(seen(port), None);
        match TcpListener::bind("[::1]:0") {
            Ok(six) => assert_eq!(seen(six.local_addr().unwrap().port()), Some(true)),
            Err(error) => eprintln!("skipped: no IPv6 loopback here: {error}"),
        }
    }

    #[test]
    fn one_address_of_several_is_not_seen() {
        let line = "   0: 0501A8C0:0050 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1 0 100 0 0 10 0";
        assert_eq!(listener(line), None);
        assert_eq!(listener("garbage"), None);
        assert_eq!(listener("0: 00:zz 0 0A"), None);
    }
}
