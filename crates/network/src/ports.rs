//! Ports that are the namespace's own stack's.

use crate::error::Error;

/// What the namespace's own stack takes for ports that nobody has asked for by number: those whose first four bits are set. The guest's own
/// begins to count elsewhere (32768 to 60999), so that the two can be told apart by the port alone.
pub const OWN_PORTS: std::ops::RangeInclusive<u16> = 0xf000..=0xffff;

/// Sets [`OWN_PORTS`] apart in the namespace that the calling thread is in.
///
/// # Errors
/// [`Error::Device`], e.g. where `/proc/sys` is read-only.
pub fn own_ports() -> Result<(), Error> {
    const FILE: &str = "/proc/sys/net/ipv4/ip_local_port_range";
    std::fs::write(FILE, format!("{} {}", OWN_PORTS.start(), OWN_PORTS.end())).map_err(Error::device("write", FILE))
}
