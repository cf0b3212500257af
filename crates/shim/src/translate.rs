//! Between containerd's messages and ours.

use std::time::{SystemTime, UNIX_EPOCH};

use agent_api::statistics::Statistics;
use containerd_shim_protos::{
    cgroups::metrics as v1,
    cgroups_v2::metrics as v2,
    protobuf::{Message, well_known_types::any::Any, well_known_types::timestamp::Timestamp},
};
use serde::de::DeserializeOwned;

use crate::{Error, Result};

/// "No limit", as containerd's own shim reports it of cgroup v1: the largest multiple of the page size.
const NO_LIMIT_V1: u64 = (i64::MAX as u64) & !4095;

/// A time.
pub(crate) fn timestamp(time: SystemTime) -> Timestamp {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let mut timestamp = Timestamp::new();
    timestamp.seconds = since.as_secs().try_into().unwrap_or(i64::MAX);
    timestamp.nanos = since.subsec_nanos().cast_signed();
    timestamp
}

/// A part of an OCI configuration, which travels as JSON in an `Any`.
///
/// # Errors
/// [`Error::Invalid`] when it is another part, or not one.
pub(crate) fn oci<T: DeserializeOwned>(any: Option<&Any>, kind: &str) -> Result<T> {
    let any = any.ok_or_else(|| Error::Invalid(format!("the request has no {kind}")))?;
    if any.type_url.rsplit('/').next() != Some(kind) {
        let problem = format!("{:?} was sent where an OCI {kind} is expected", any.type_url);
        return Err(Error::Invalid(problem));
    }
    serde_json::from_slice(&any.value).map_err(|error| Error::Invalid(format!("the {kind} of the request: {error}")))
}

/// A message with the name that containerd knows it by.
///
/// # Errors
/// [`Error::Io`] when it cannot be encoded.
pub(crate) fn any(name: &str, message: &impl Message) -> Result<Any> {
    let mut any = Any::new();
    any.type_url = name.into();
    any.value = message.write_to_bytes().map_err(|e| Error::io(format!("encode {name}"), std::io::Error::other(e)))?;
    Ok(any)
}

/// Whether containerd on this host expects figures of cgroup v2.
pub(crate) fn host_is_unified() -> bool {
    /// `CGROUP2_SUPER_MAGIC` (statfs(2)).
    const CGROUP2: i64 = 0x6367_7270;
    rustix::fs::statfs("/sys/fs/cgroup").is_ok_and(|found| found.f_type == CGROUP2)
}

/// Figures in the form that containerd expects on this host.
///
/// # Errors
/// [`Error::Io`] when they cannot be encoded.
pub(crate) fn metrics(statistics: &Statistics, unified: bool) -> Result<Any> {
    if unified {
        any("io.containerd.cgroups.v2.Metrics", &metrics_v2(statistics))
    } else {
        any("io.containerd.cgroups.v1.Metrics", &metrics_v1(statistics))
    }
}

/// Counters of an interface, in either version's type: they are generated and have the same fields.
macro_rules! interface {
    ($Type:ty, $from:expr) => {{
        let (from, mut to) = ($from, <$Type>::new());
        to.name = from.name.clone();
        (to.rx_bytes, to.rx_packets, to.rx_errors, to.rx_dropped) =
            (from.rx_bytes, from.rx_packets, from.rx_errors, from.rx_dropped);
        (to.tx_bytes, to.tx_packets, to.tx_errors, to.tx_dropped) =
            (from.tx_bytes, from.tx_packets, from.tx_errors, from.tx_dropped);
        to
    }};
}

fn metrics_v2(from: &Statistics) -> v2::Metrics {
    let mut to = v2::Metrics::new();
    let pids = to.pids.mut_or_insert_default();
    pids.current = from.pids.current;
    pids.limit = from.pids.limit.unwrap_or(0);
    let cpu = to.cpu.mut_or_insert_default();
    cpu.usage_usec = from.cpu.usage_ns / 1000;
    cpu.user_usec = from.cpu.user_ns / 1000;
    cpu.system_usec = from.cpu.system_ns / 1000;
    cpu.nr_periods = from.cpu.periods;
    cpu.nr_throttled = from.cpu.throttled_periods;
    cpu.throttled_usec = from.cpu.throttled_ns / 1000;
    let stat = |name: &str| from.memory.stat.get(name).copied().unwrap_or(0);
    let memory = to.memory.mut_or_insert_default();
    memory.anon = stat("anon");
    memory.file = stat("file");
    memory.kernel_stack = stat("kernel_stack");
    memory.slab = stat("slab");
    memory.sock = stat("sock");
    memory.shmem = stat("shmem");
    memory.file_mapped = stat("file_mapped");
    memory.file_dirty = stat("file_dirty");
    memory.file_writeback = stat("file_writeback");
    memory.anon_thp = stat("anon_thp");
    memory.inactive_anon = stat("inactive_anon");
    memory.active_anon = stat("active_anon");
    memory.inactive_file = stat("inactive_file");
    memory.active_file = stat("active_file");
    memory.unevictable = stat("unevictable");
    memory.slab_reclaimable = stat("slab_reclaimable");
    memory.slab_unreclaimable = stat("slab_unreclaimable");
    memory.pgfault = stat("pgfault");
    memory.pgmajfault = stat("pgmajfault");
    memory.workingset_refault = stat("workingset_refault_anon") + stat("workingset_refault_file");
    memory.workingset_activate = stat("workingset_activate_anon") + stat("workingset_activate_file");
    memory.workingset_nodereclaim = stat("workingset_nodereclaim");
    memory.pgrefill = stat("pgrefill");
    memory.pgscan = stat("pgscan");
    memory.pgsteal = stat("pgsteal");
    memory.pgactivate = stat("pgactivate");
    memory.pgdeactivate = stat("pgdeactivate");
    memory.pglazyfree = stat("pglazyfree");
    memory.pglazyfreed = stat("pglazyfreed");
    memory.thp_fault_alloc = stat("thp_fault_alloc");
    memory.thp_collapse_alloc = stat("thp_collapse_alloc");
    memory.usage = from.memory.usage;
    // cAdvisor and the kubelet take the largest number for "none".
    memory.usage_limit = from.memory.limit.unwrap_or(u64::MAX);
    memory.swap_usage = from.memory.swap_usage;
    memory.swap_limit = from.memory.swap_limit.unwrap_or(u64::MAX);
    memory.max_usage = from.memory.peak;
    let event = |name: &str| from.memory.events.get(name).copied().unwrap_or(0);
    let events = to.memory_events.mut_or_insert_default();
    events.low = event("low");
    events.high = event("high");
    events.max = event("max");
    events.oom = event("oom");
    events.oom_kill = event("oom_kill");
    events.oom_group_kill = event("oom_group_kill");
    let io = to.io.mut_or_insert_default();
    io.usage = from
        .io
        .iter()
        .map(|from| {
            let mut to = v2::IOEntry::new();
            (to.major, to.minor) = (from.major, from.minor);
            (to.rbytes, to.wbytes) = (from.read_bytes, from.written_bytes);
            (to.rios, to.wios) = (from.reads, from.writes);
            to
        })
        .collect();
    to.hugetlb = from
        .huge_pages
        .iter()
        .map(|from| {
            let mut to = v2::HugeTlbStat::new();
            (to.current, to.max, to.failcnt) = (from.usage, from.peak, from.failures);
            to.pagesize = from.page_size.clone();
            to
        })
        .collect();
    to.network = from.network.iter().map(|from| interface!(v2::NetworkStat, from)).collect();
    to
}

fn metrics_v1(from: &Statistics) -> v1::Metrics {
    let mut to = v1::Metrics::new();
    let pids = to.pids.mut_or_insert_default();
    pids.current = from.pids.current;
    pids.limit = from.pids.limit.unwrap_or(0);
    let cpu = to.cpu.mut_or_insert_default();
    let usage = cpu.usage.mut_or_insert_default();
    (usage.total, usage.kernel, usage.user) = (from.cpu.usage_ns, from.cpu.system_ns, from.cpu.user_ns);
    let throttling = cpu.throttling.mut_or_insert_default();
    throttling.periods = from.cpu.periods;
    throttling.throttled_periods = from.cpu.throttled_periods;
    throttling.throttled_time = from.cpu.throttled_ns;
    let stat = |name: &str| from.memory.stat.get(name).copied().unwrap_or(0);
    let limit = from.memory.limit.unwrap_or(NO_LIMIT_V1);
    let memory = to.memory.mut_or_insert_default();
    // The guest's cgroup is a v2 one: each figure takes the name that means the same, and counts its descendants as v1's totals do.
    (memory.cache, memory.total_cache) = (stat("file"), stat("file"));
    (memory.rss, memory.total_rss) = (stat("anon"), stat("anon"));
    (memory.rss_huge, memory.total_rss_huge) = (stat("anon_thp"), stat("anon_thp"));
    (memory.mapped_file, memory.total_mapped_file) = (stat("file_mapped"), stat("file_mapped"));
    (memory.dirty, memory.total_dirty) = (stat("file_dirty"), stat("file_dirty"));
    (memory.writeback, memory.total_writeback) = (stat("file_writeback"), stat("file_writeback"));
    (memory.pg_fault, memory.total_pg_fault) = (stat("pgfault"), stat("pgfault"));
    (memory.pg_maj_fault, memory.total_pg_maj_fault) = (stat("pgmajfault"), stat("pgmajfault"));
    (memory.inactive_anon, memory.total_inactive_anon) = (stat("inactive_anon"), stat("inactive_anon"));
    (memory.active_anon, memory.total_active_anon) = (stat("active_anon"), stat("active_anon"));
    (memory.inactive_file, memory.total_inactive_file) = (stat("inactive_file"), stat("inactive_file"));
    (memory.active_file, memory.total_active_file) = (stat("active_file"), stat("active_file"));
    (memory.unevictable, memory.total_unevictable) = (stat("unevictable"), stat("unevictable"));
    memory.hierarchical_memory_limit = limit;
    memory.hierarchical_swap_limit =
        from.memory.swap_limit.map_or(NO_LIMIT_V1, |swap| limit.saturating_add(swap).min(NO_LIMIT_V1));
    let usage = memory.usage.mut_or_insert_default();
    (usage.usage, usage.max, usage.limit) = (from.memory.usage, from.memory.peak, limit);
    let events = &from.memory.events;
    usage.failcnt = events.get("max").copied().unwrap_or(0);
    // v1 counts memory and swap together here.
    let swap = memory.swap.mut_or_insert_default();
    swap.usage = from.memory.usage + from.memory.swap_usage;
    swap.limit = memory.hierarchical_swap_limit;
    let kernel = memory.kernel.mut_or_insert_default();
    kernel.usage = stat("kernel");
    kernel.limit = NO_LIMIT_V1;
    to.memory_oom_control.mut_or_insert_default().oom_kill = events.get("oom_kill").copied().unwrap_or(0);
    let blkio = to.blkio.mut_or_insert_default();
    for from in &from.io {
        let entry = |op: &str, value| {
            let mut to = v1::BlkIOEntry::new();
            to.op = op.into();
            (to.major, to.minor, to.value) = (from.major, from.minor, value);
            to
        };
        let total = |a: u64, b: u64| a.saturating_add(b);
        blkio.io_service_bytes_recursive.extend([
            entry("Read", from.read_bytes),
            entry("Write", from.written_bytes),
            entry("Total", total(from.read_bytes, from.written_bytes)),
        ]);
        blkio.io_serviced_recursive.extend([
            entry("Read", from.reads),
            entry("Write", from.writes),
            entry("Total", total(from.reads, from.writes)),
        ]);
    }
    to.hugetlb = from
        .huge_pages
        .iter()
        .map(|from| {
            let mut to = v1::HugetlbStat::new();
            (to.usage, to.max, to.failcnt) = (from.usage, from.peak, from.failures);
            to.pagesize = from.page_size.clone();
            to
        })
        .collect();
    to.network = from.network.iter().map(|from| interface!(v1::NetworkStat, from)).collect();
    to
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn statistics() -> Statistics {
        let mut from = Statistics::default();
        from.cpu.usage_ns = 5_000_000;
        from.memory.usage = 4096;
        from.memory.limit = Some(1 << 20);
        from.memory.stat =
            [("anon", 100), ("file", 200), ("inactive_file", 50)].map(|(k, v)| (k.to_string(), v)).into();
        from.memory.events = [("oom_kill".to_string(), 1)].into();
        from.pids.current = 3;
        from.io = vec![agent_api::statistics::Io { major: 254, read_bytes: 7, writes: 2, ..Default::default() }];
        from.network =
            vec![agent_api::statistics::Interface { name: "eth0".into(), tx_bytes: 9, ..Default::default() }];
        from
    }

    #[test]
    fn each_host_gets_its_own_type() {
        let any = metrics(&statistics(), true).unwrap();
        assert_eq!(any.type_url, "io.containerd.cgroups.v2.Metrics");
        let read = v2::Metrics::parse_from_bytes(&any.value).unwrap();
        assert_eq!((read.cpu.usage_usec, read.memory.inactive_file, read.memory.usage_limit), (5000, 50, 1 << 20));
        assert_eq!((read.memory_events.oom_kill, read.network[0].tx_bytes, read.io.usage[0].wios), (1, 9, 2));
        let any = metrics(&statistics(), false).unwrap();
        assert_eq!(any.type_url, "io.containerd.cgroups.v1.Metrics");
        let read = v1::Metrics::parse_from_bytes(&any.value).unwrap();
        assert_eq!((read.cpu.usage.total, read.memory.total_inactive_file), (5_000_000, 50));
        assert_eq!((read.memory.usage.limit, read.memory.total_rss, read.pids.current), (1 << 20, 100, 3));
        assert_eq!(read.blkio.io_service_bytes_recursive[2].value, 7);
    }

    #[test]
    fn no_limit_is_the_number_that_each_means_it_by() {
        let v2 = metrics_v2(&Statistics::default());
        assert_eq!(v2.memory.usage_limit, u64::MAX);
        let v1 = metrics_v1(&Statistics::default());
        assert_eq!(v1.memory.usage.limit, 0x7fff_ffff_ffff_f000);
    }

    #[test]
    fn parts_of_a_configuration_are_json_under_a_name() {
        let mut any = Any::new();
        any.type_url = "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources".into();
        any.value = br#"{"memory":{"limit":1024}}"#.to_vec();
        let read: oci_spec::runtime::LinuxResources = oci(Some(&any), "LinuxResources").unwrap();
        assert_eq!(read.memory().unwrap().limit(), Some(1024));
        let refused = oci::<oci_spec::runtime::Process>(Some(&any), "Process").unwrap_err();
        assert!(refused.to_string().contains("LinuxResources"), "{refused}");
        assert!(oci::<oci_spec::runtime::Process>(None, "Process").is_err());
    }

    #[test]
    fn times_keep_their_nanoseconds() {
        let stamp = timestamp(UNIX_EPOCH + Duration::new(3, 5));
        assert_eq!((stamp.seconds, stamp.nanos), (3, 5));
    }
}
