//! `events`: what a container uses, and when it runs out of memory, each as a line of JSON in the form that readers of runc's know.

use std::{
    collections::BTreeMap,
    io::{self, Write},
    process::ExitCode,
    time::Instant,
};

use agent_api::statistics::{self, Statistics};
use sandbox::{
    client::{Client, Heard},
    store::Status,
};
use serde::Serialize;

use crate::{Error, Result, cli::Context, go};

/// Prints until the container stops, or once.
pub(crate) fn events(context: &Context, id: &str, interval: &str, once: bool) -> Result<ExitCode> {
    let client = Client::new(&context.store, id)?;
    let interval = go::duration(interval).map_err(|problem| Error::refused(format!("--interval: {problem}")))?;
    if interval.is_zero() {
        return Err(Error::refused("duration interval must be greater than 0"));
    }
    if context.store.state(id)?.status == Status::Stopped {
        return Err(Error::refused(format!("container with id {id} is not running")));
    }
    if once {
        return print(&Event::of(id, &client.statistics()?));
    }
    let mut events = client.events()?;
    let mut due = Instant::now() + interval;
    loop {
        let printed = match events.next(due.saturating_duration_since(Instant::now()))? {
            Heard::OutOfMemory => print(&Event { kind: "oom", id, data: None })?,
            Heard::Stopped => return Ok(ExitCode::SUCCESS),
            Heard::Nothing if Instant::now() < due => continue,
            Heard::Nothing => {
                due += interval;
                match client.statistics() {
                    Ok(statistics) => print(&Event::of(id, &statistics))?,
                    // It may just have stopped, which will be heard.
                    Err(error) => {
                        context.log.error(&sandbox::chain(&error));
                        continue;
                    }
                }
            }
        };
        if printed != ExitCode::SUCCESS {
            return Ok(printed);
        }
    }
}

/// A reader that has gone ends the command.
fn print(event: &Event<'_>) -> Result<ExitCode> {
    let line = go::json(event).map_err(|e| Error::io("write an event as JSON", e))? + "\n";
    let mut out = io::stdout().lock();
    match out.write_all(line.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(error) => Err(Error::io("write to standard output", error)),
    }
}

#[derive(Serialize)]
struct Event<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<Stats>,
}

impl<'a> Event<'a> {
    fn of(id: &'a str, statistics: &Statistics) -> Self {
        Self { kind: "stats", id, data: Some(Stats::of(statistics)) }
    }
}

fn zero(number: &u64) -> bool {
    *number == 0
}

#[derive(Serialize)]
struct Stats {
    cpu: Cpu,
    cpuset: CpuSet,
    memory: Memory,
    pids: Pids,
    blkio: Blkio,
    hugetlb: BTreeMap<String, Hugetlb>,
    intel_rdt: Empty,
    network_interfaces: Option<Vec<Interface>>,
}

#[derive(Serialize)]
struct Empty {}

#[derive(Serialize)]
struct Cpu {
    usage: Usage,
    throttling: Throttling,
}

#[derive(Serialize)]
struct Usage {
    #[serde(skip_serializing_if = "zero")]
    total: u64,
    kernel: u64,
    user: u64,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Throttling {
    #[serde(skip_serializing_if = "zero")]
    periods: u64,
    #[serde(skip_serializing_if = "zero")]
    throttled_periods: u64,
    #[serde(skip_serializing_if = "zero")]
    throttled_time: u64,
}

/// Version 1 cgroups only; the guest has version 2.
#[derive(Serialize, Default)]
struct CpuSet {
    cpu_exclusive: u64,
    mem_hardwall: u64,
    mem_exclusive: u64,
    memory_migrate: u64,
    memory_spread_page: u64,
    memory_spread_slab: u64,
    memory_pressure: u64,
    sched_load_balance: u64,
    sched_relax_domain_level: i64,
}

#[derive(Serialize, Default)]
struct Entry {
    limit: u64,
    #[serde(skip_serializing_if = "zero")]
    usage: u64,
    #[serde(skip_serializing_if = "zero")]
    max: u64,
    failcnt: u64,
}

#[derive(Serialize)]
struct Memory {
    #[serde(skip_serializing_if = "zero")]
    cache: u64,
    usage: Entry,
    swap: Entry,
    kernel: Entry,
    #[serde(rename = "kernelTCP")]
    kernel_tcp: Entry,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    raw: BTreeMap<String, u64>,
}

#[derive(Serialize)]
struct Pids {
    #[serde(skip_serializing_if = "zero")]
    current: u64,
    #[serde(skip_serializing_if = "zero")]
    limit: u64,
}

#[derive(Serialize)]
struct BlkioEntry {
    #[serde(skip_serializing_if = "zero")]
    major: u64,
    #[serde(skip_serializing_if = "zero")]
    minor: u64,
    op: &'static str,
    #[serde(skip_serializing_if = "zero")]
    value: u64,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Blkio {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    io_service_bytes_recursive: Vec<BlkioEntry>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    io_serviced_recursive: Vec<BlkioEntry>,
}

#[derive(Serialize)]
struct Hugetlb {
    #[serde(skip_serializing_if = "zero")]
    usage: u64,
    #[serde(skip_serializing_if = "zero")]
    max: u64,
    failcnt: u64,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Interface {
    name: String,
    rx_bytes: u64,
    rx_packets: u64,
    rx_errors: u64,
    rx_dropped: u64,
    tx_bytes: u64,
    tx_packets: u64,
    tx_errors: u64,
    tx_dropped: u64,
}

impl Stats {
    /// As runc maps version 2 of cgroups: no limit is the largest number, and swap is told in sum with memory.
    fn of(from: &Statistics) -> Self {
        let limit = |limit: Option<u64>| limit.unwrap_or(u64::MAX);
        let (cpu, memory) = (&from.cpu, &from.memory);
        let swap_limit = memory.swap_limit.map(|swap| swap.saturating_add(limit(memory.limit)));
        let io = |values: fn(&statistics::Io) -> [(&'static str, u64); 2]| -> Vec<BlkioEntry> {
            let entry = |io: &statistics::Io| {
                let (major, minor) = (io.major, io.minor);
                values(io).map(|(op, value)| BlkioEntry { major, minor, op, value })
            };
            from.io.iter().flat_map(entry).collect()
        };
        let interface = |from: &statistics::Interface| Interface {
            name: from.name.clone(),
            rx_bytes: from.rx_bytes,
            rx_packets: from.rx_packets,
            rx_errors: from.rx_errors,
            rx_dropped: from.rx_dropped,
            tx_bytes: from.tx_bytes,
            tx_packets: from.tx_packets,
            tx_errors: from.tx_errors,
            tx_dropped: from.tx_dropped,
        };
        let huge = |from: &statistics::HugePages| {
            (from.page_size.clone(), Hugetlb { usage: from.usage, max: from.peak, failcnt: from.failures })
        };
        Self {
            cpu: Cpu {
                usage: Usage { total: cpu.usage_ns, kernel: cpu.system_ns, user: cpu.user_ns },
                throttling: Throttling {
                    periods: cpu.periods,
                    throttled_periods: cpu.throttled_periods,
                    throttled_time: cpu.throttled_ns,
                },
            },
            cpuset: CpuSet::default(),
            memory: Memory {
                cache: memory.stat.get("file").copied().unwrap_or(0),
                usage: Entry { limit: limit(memory.limit), usage: memory.usage, max: memory.peak, failcnt: 0 },
                swap: Entry {
                    limit: limit(swap_limit),
                    usage: memory.swap_usage.saturating_add(memory.usage),
                    ..Entry::default()
                },
                kernel: Entry::default(),
                kernel_tcp: Entry::default(),
                raw: memory.stat.clone(),
            },
            pids: Pids { current: from.pids.current, limit: from.pids.limit.unwrap_or(0) },
            blkio: Blkio {
                io_service_bytes_recursive: io(|io| [("Read", io.read_bytes), ("Write", io.written_bytes)]),
                io_serviced_recursive: io(|io| [("Read", io.reads), ("Write", io.writes)]),
            },
            hugetlb: from.huge_pages.iter().map(huge).collect(),
            intel_rdt: Empty {},
            network_interfaces: (!from.network.is_empty()).then(|| from.network.iter().map(interface).collect()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_has_runcs_form() {
        let mut statistics = Statistics::default();
        statistics.cpu.usage_ns = 7;
        statistics.memory = statistics::Memory {
            usage: 100,
            limit: Some(500),
            swap_limit: Some(50),
            stat: [("file".to_owned(), 3)].into(),
            ..statistics::Memory::default()
        };
        statistics.pids.current = 2;
        statistics.io.push(statistics::Io { major: 254, read_bytes: 9, ..statistics::Io::default() });
        assert_eq!(
            go::json(&Event::of("c", &statistics)).unwrap(),
            "{\"type\":\"stats\",\"id\":\"c\",\"data\":{\"cpu\":{\"usage\":{\"total\":7,\"kernel\":0,\"user\":0},\"throttling\":{}},\
             \"cpuset\":{\"cpu_exclusive\":0,\"mem_hardwall\":0,\"mem_exclusive\":0,\"memory_migrate\":0,\"memory_spread_page\":0,\
             \"memory_spread_slab\":0,\"memory_pressure\":0,\"sched_load_balance\":0,\"sched_relax_domain_level\":0},\
             \"memory\":{\"cache\":3,\"usage\":{\"limit\":500,\"usage\":100,\"failcnt\":0},\"swap\":{\"limit\":550,\"usage\":100,\"failcnt\":0},\
             \"kernel\":{\"limit\":0,\"failcnt\":0},\"kernelTCP\":{\"limit\":0,\"failcnt\":0},\"raw\":{\"file\":3}},\"pids\":{\"current\":2},\
             \"blkio\":{\"ioServiceBytesRecursive\":[{\"major\":254,\"op\":\"Read\",\"value\":9},{\"major\":254,\"op\":\"Write\"}],\
             \"ioServicedRecursive\":[{\"major\":254,\"op\":\"Read\"},{\"major\":254,\"op\":\"Write\"}]},\
             \"hugetlb\":{},\"intel_rdt\":{},\"network_interfaces\":null}}"
        );
        let oom = Event { kind: "oom", id: "c", data: None };
        assert_eq!(go::json(&oom).unwrap(), r#"{"type":"oom","id":"c"}"#);
    }
}
