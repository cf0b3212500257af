//! How fast this processor's time stamp counter runs.
//!
//! An emulated guest reads the host's counter. Its kernel would find out by itself how fast that is, by a timer of 50 ms; on a busy host
//! it is interrupted in that and believes its clock to run many times slower than it does, so that all its deadlines pass early.

/// The rate, kHz; `None` where an emulated guest of x86 has another counter.
#[cfg(not(target_arch = "x86_64"))]
pub(crate) fn khz() -> Option<u32> {
    None
}

#[cfg(target_arch = "x86_64")]
pub(crate) use x86::khz;

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::{
        sync::OnceLock,
        time::{Duration, Instant},
    };

    /// How long it is measured: the clock's own steps are a ten-thousandth of that.
    const SPAN: Duration = Duration::from_millis(1);
    /// Both counters are read together if that takes no more ticks than this: nothing came in between.
    const TOGETHER: u64 = 20_000;
    /// How often reading them together is tried.
    const ATTEMPTS: u32 = 100;

    /// The rate, kHz; `None` if there was no quiet moment to measure it.
    pub(crate) fn khz() -> Option<u32> {
        static MEASURED: OnceLock<Option<u32>> = OnceLock::new();
        *MEASURED.get_or_init(measure)
    }

    fn measure() -> Option<u32> {
        let (ticks, clock) = both()?;
        while clock.elapsed() < SPAN {
            std::hint::spin_loop();
        }
        let (later, now) = both()?;
        let nanoseconds = now.duration_since(clock).as_nanos();
        let khz = u128::from(later.checked_sub(ticks)?) * 1_000_000 / nanoseconds.max(1);
        u32::try_from(khz).ok().filter(|khz| *khz > 0)
    }

    /// Both counters at one moment.
    fn both() -> Option<(u64, Instant)> {
        (0..ATTEMPTS).find_map(|_| {
            let before = ticks();
            let clock = Instant::now();
            let after = ticks();
            (after.wrapping_sub(before) < TOGETHER).then_some((before, clock))
        })
    }

    fn ticks() -> u64 {
        // SAFETY: the instruction is in every processor of this architecture, and only reads.
        unsafe { std::arch::x86_64::_rdtsc() }
    }

    #[cfg(test)]
    mod tests {
        #[test]
        fn two_measurements_agree() {
            let (Some(first), Some(second)) = (super::measure(), super::measure()) else {
                return eprintln!("skipped: no quiet moment to measure in");
            };
            let apart = first.abs_diff(second);
            assert!(first > 100_000 && apart < first / 100, "{first} {second}");
        }
    }
}
