//! What the processes of an idle sandbox hold.

use std::{fs, path::Path};

/// Memory of one process, KiB, from `/proc/PID/smaps_rollup` (proc(5)).
#[derive(Debug, Clone, Copy, Default)]
pub struct Memory {
    /// Proportional set size: shared pages count by their share.
    pub pss: u64,
    /// Pages nobody else has.
    pub private: u64,
}

/// Reads one process's memory; zero if it is gone.
pub fn of(pid: u64) -> Memory {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let sum = |names: &[&str]| text.lines().filter_map(|line| field(line, names)).sum();
    Memory { pss: sum(&["Pss:"]), private: sum(&["Private_Clean:", "Private_Dirty:"]) }
}

fn field(line: &str, names: &[&str]) -> Option<u64> {
    let mut words = line.split_ascii_whitespace();
    names.contains(&words.next()?).then(|| words.next()?.parse().ok())?
}

/// KiB of a process's memory that no file holds and nobody else has.
pub fn anonymous(pid: u64) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    text.lines().filter_map(|line| field(line, &["Anonymous:"])).sum()
}

/// KiB that the host's kernel allocated in small pieces and cannot simply give back (proc_meminfo(5)).
pub fn slab() -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    text.lines().find_map(|line| field(line, &["SUnreclaim:"])).unwrap_or_default()
}

/// KiB of guest memory that the guest really touched: what is resident of the hypervisor's shared memory file.
pub fn guest(pid: u64) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap_or_default();
    let mut largest = 0;
    let mut inside = false;
    for line in text.lines() {
        if line.split_ascii_whitespace().next().is_some_and(|first| first.contains('-')) {
            inside = line.contains("memfd:") || line.contains("/dev/zero");
        } else if inside && let Some(resident) = field(line, &["Rss:"]) {
            largest = largest.max(resident);
        }
    }
    largest
}

/// Size of a file, KiB.
pub fn size(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |m| m.len().div_ceil(1024))
}
