//! The network of a pod on the host.
//!
//! An engine or CNI hands a pod a network namespace with interfaces in it. The guest gets the same network: each interface is
//! *mirrored*, that is, frames go between it and a tap by redirection in the kernel, unseen by the namespace's own IP stack, and the
//! guest's NIC behind the tap has the interface's hardware address, MTU, addresses, routes and neighbours. The
//! interface keeps its addresses, because engines look at them.
//!
//! * [`Namespace`] is a network namespace: opened, made, entered.
//! * [`scan`] says what it shows, in the terms in which the guest is told.
//! * [`mirror`] gives an interface's taps. Dropping the [`Mirror`] removes all of it again.
//! * [`mirror_leftovers`] finds what mirrors of a killed process have left.
//! * [`Watch`] says when to scan again.
//! * [`Passt`] gives a guest the host's own network, of which it has no interface.
//! * [`listen`] listens at an address, of one family and not the other.
//! * [`Forwarder`] takes the connections that are made to the namespace's loopback, behind which only the guest has anybody.
//!
//! Everything but [`Namespace`] works on the namespace that the calling thread is in, and keeps working on it when the
//! thread leaves. Nothing outside of it is touched.

mod error;
mod forward;
mod listen;
mod mirror;
mod namespace;
mod passt;
mod ports;
mod scan;
mod sys;
mod watch;

pub use error::Error;
pub use forward::Forwarder;
pub use listen::{is_without_ipv6, listen};
pub use mirror::{Mirror, MirrorLeftover, Model, mirror, mirror_leftovers, try_mirror};
pub use namespace::Namespace;
pub use passt::Passt;
pub use ports::{OWN_PORTS, own_ports};
pub use scan::scan;
pub use watch::Watch;
