//! The rate of the processor's time stamp counter.

use std::{sync::OnceLock, thread, time::Duration};

use super::monotonic_ns;

/// Between the two readings. What a reading can be wrong by is a ten-thousandth of it.
const APART: Duration = Duration::from_millis(2);
/// Readings that are taken to find one that nothing interrupted.
const TRIES: u32 = 16;

/// In kHz; `None` where there is no such counter, or where no two readings were exact to a thousandth. Measured once for a process.
pub(crate) fn khz() -> Option<u64> {
    static RATE: OnceLock<Option<u64>> = OnceLock::new();
    *RATE.get_or_init(measure)
}

/// A moment by both clocks.
#[derive(Clone, Copy)]
struct Reading {
    ns: u64,
    ticks: u64,
    /// How long it took.
    took: u64,
}

fn measure() -> Option<u64> {
    let first = reading()?;
    thread::sleep(APART);
    rate(first, reading()?)
}

fn rate(first: Reading, second: Reading) -> Option<u64> {
    let (ns, ticks) = (second.ns.checked_sub(first.ns)?, second.ticks.checked_sub(first.ticks)?);
    let exact = ns > 0 && (first.took + second.took).saturating_mul(1000) < ns;
    exact.then(|| (u128::from(ticks) * 1_000_000 / u128::from(ns)) as u64).filter(|khz| *khz > 0)
}

fn reading() -> Option<Reading> {
    let readings = (0..TRIES).map(|_| {
        let before = monotonic_ns();
        let ticks = ticks()?;
        let took = monotonic_ns() - before;
        Some(Reading { ns: before + took / 2, ticks, took })
    });
    readings.flatten().min_by_key(|reading| reading.took)
}

#[cfg(target_arch = "x86_64")]
fn ticks() -> Option<u64> {
    // SAFETY: every x86_64 processor has the instruction, and all it does is to read a counter.
    Some(unsafe { std::arch::x86_64::_rdtsc() })
}

#[cfg(not(target_arch = "x86_64"))]
fn ticks() -> Option<u64> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_exact_readings_make_a_rate() {
        let first = Reading { ns: 1000, ticks: 500, took: 40 };
        let second = Reading { ns: 2_001_000, ticks: 4_890_500, took: 60 };
        assert_eq!(rate(first, second), Some(2_445_000));
        assert_eq!(rate(first, Reading { took: 2000, ..second }), None);
        assert_eq!(rate(second, first), None);
    }
}
