//! What a container uses, as its cgroup (cgroup v2, kernel `admin-guide/cgroup-v2.rst`) and the guest's interfaces tell.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Figures of one container. What the kernel does not tell is 0 or absent.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Statistics {
    /// Processor time.
    #[serde(default)]
    pub cpu: Cpu,
    /// Memory.
    #[serde(default)]
    pub memory: Memory,
    /// Processes.
    #[serde(default)]
    pub pids: Pids,
    /// Disks.
    #[serde(default)]
    pub io: Vec<Io>,
    /// Huge pages.
    #[serde(default)]
    pub huge_pages: Vec<HugePages>,
    /// Interfaces of the pod.
    #[serde(default)]
    pub network: Vec<Interface>,
}

/// `cpu.stat`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cpu {
    /// In all, nanoseconds.
    pub usage_ns: u64,
    /// In programs, nanoseconds.
    pub user_ns: u64,
    /// In the kernel, nanoseconds.
    pub system_ns: u64,
    /// Periods of a limit.
    pub periods: u64,
    /// Periods in which it was reached.
    pub throttled_periods: u64,
    /// Time not given because of it, nanoseconds.
    pub throttled_ns: u64,
}

/// `memory.*`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    /// `memory.current`, bytes.
    pub usage: u64,
    /// `memory.peak`, bytes.
    pub peak: u64,
    /// `memory.max`, bytes; absent is none.
    pub limit: Option<u64>,
    /// `memory.swap.current`, bytes.
    pub swap_usage: u64,
    /// `memory.swap.max`, bytes; absent is none.
    pub swap_limit: Option<u64>,
    /// `memory.stat`, each line.
    pub stat: BTreeMap<String, u64>,
    /// `memory.events`, each line.
    pub events: BTreeMap<String, u64>,
}

/// `pids.*`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pids {
    /// `pids.current`.
    pub current: u64,
    /// `pids.max`; absent is none.
    pub limit: Option<u64>,
}

/// A line of `io.stat`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Io {
    /// Device, major number.
    pub major: u64,
    /// Device, minor number.
    pub minor: u64,
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes written.
    pub written_bytes: u64,
    /// Reads.
    pub reads: u64,
    /// Writes.
    pub writes: u64,
}

/// `hugetlb.SIZE.*`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HugePages {
    /// As the kernel writes it, e.g. `2MB`.
    pub page_size: String,
    /// Bytes now.
    pub usage: u64,
    /// Bytes at most so far, if the kernel tells.
    pub peak: u64,
    /// How often there were none.
    pub failures: u64,
}

/// Counters of an interface (`/sys/class/net/*/statistics`).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interface {
    /// Name.
    pub name: String,
    /// Bytes received.
    pub rx_bytes: u64,
    /// Packets received.
    pub rx_packets: u64,
    /// Packets received with errors.
    pub rx_errors: u64,
    /// Packets that were dropped on receipt.
    pub rx_dropped: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
    /// Packets sent.
    pub tx_packets: u64,
    /// Packets that could not be sent.
    pub tx_errors: u64,
    /// Packets that were dropped instead of being sent.
    pub tx_dropped: u64,
}
