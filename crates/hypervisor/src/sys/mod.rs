//! All of this crate that is unsafe: the ioctls of `/dev/kvm`, reading the
//! processor's counter, and tokio's registration of a descriptor.

#[cfg(target_arch = "x86_64")]
pub(crate) mod kvm;
pub(crate) mod tsc;

use std::{io, os::fd::OwnedFd};

use rustix::time::{ClockId, clock_gettime};
use tokio::io::{Interest, unix::AsyncFd};

/// A descriptor whose readability can be awaited.
pub(crate) fn watch(descriptor: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` is open as long as it lives, always the same number, and nothing closes or replaces it while the
    // `AsyncFd` owns it.
    Ok(unsafe { AsyncFd::register_with_interest(descriptor, Interest::READABLE) }?)
}

/// `CLOCK_MONOTONIC`, nanoseconds.
pub(crate) fn monotonic_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}
