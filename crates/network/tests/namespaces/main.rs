//! The network of a pod in network namespaces that the tests make themselves, with interfaces that `ip` makes. No packet
//! leaves them.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests too")]

mod forward;
mod mirror;
mod scan;
mod world;
