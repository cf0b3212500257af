//! The guest's clock and random numbers, as far as the host helps with them.

use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use rustix::time::{ClockId, Timespec, clock_gettime, clock_settime};

use crate::error::{Error, Step};

/// How far the wall clock may be off before it is set. The kernel reads the machine's clock chip at its start, in whole
/// seconds.
const TOLERANCE: Duration = Duration::from_secs(1);

/// `CLOCK_BOOTTIME`, nanoseconds.
pub fn now_ns() -> u64 {
    nanoseconds(clock_gettime(ClockId::Boottime))
}

fn nanoseconds(time: Timespec) -> u64 {
    u64::try_from(time.tv_sec).unwrap_or(0).saturating_mul(1_000_000_000).saturating_add(time.tv_nsec as u64)
}

/// Sets the wall clock to the host's, nanoseconds since the epoch, if it is off by a second or more.
///
/// # Errors
/// When the kernel refuses the time.
pub fn set_wall_clock(host_ns: u64) -> Result<(), Error> {
    let guest_ns = nanoseconds(clock_gettime(ClockId::Realtime));
    if !is_off(guest_ns, host_ns) {
        return Ok(());
    }
    let seconds = (host_ns / 1_000_000_000).cast_signed();
    let time = Timespec { tv_sec: seconds, tv_nsec: (host_ns % 1_000_000_000).cast_signed() };
    clock_settime(ClockId::Realtime, time).step("setting the wall clock to", format!("{seconds} s"))
}

fn is_off(guest_ns: u64, host_ns: u64) -> bool {
    Duration::from_nanos(guest_ns.abs_diff(host_ns)) >= TOLERANCE
}

/// Gives the kernel random bytes from the host and lets it count them as entropy.
///
/// # Errors
/// When the kernel has no random number device or refuses.
pub fn add_entropy(bytes: &[u8]) -> Result<(), Error> {
    if bytes.is_empty() {
        return Ok(());
    }
    let random = rustix::fs::open("/dev/urandom", OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())
        .step("opening", "/dev/urandom")?;
    crate::sys::add_entropy(std::os::fd::AsFd::as_fd(&random), bytes).step("adding entropy to", "/dev/urandom")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_clock_that_is_off_is_set() {
        assert!(!is_off(5_000_000_000, 5_999_999_999));
        assert!(is_off(5_000_000_000, 6_000_000_000));
        assert!(is_off(6_000_000_000, 5_000_000_000));
    }
}
