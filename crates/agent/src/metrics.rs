//! Figures of the guest and the agent in the text format of Prometheus, under the names and labels that Kata's users know.
//!
//! Everything is read from /proc when it is asked for. What cannot be read is left out.

use std::cell::Cell;
use std::fmt::{Display, Write};
use std::fs::read_to_string;

/// Names of the numbers of a line of `/proc/stat`, in order.
const CPU: [&str; 10] = ["user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal", "guest", "guest_nice"];
/// Names of the numbers of a line of `/proc/diskstats`, in order.
const DISK: [&str; 17] = [
    "reads",
    "merged",
    "sectors_read",
    "time_reading",
    "writes",
    "writes_merged",
    "sectors_written",
    "time_writing",
    "in_progress",
    "time_in_progress",
    "weighted_time_in_progress",
    "discards",
    "discards_merged",
    "sectors_discarded",
    "time_discarding",
    "flushes",
    "time_flushing",
];
/// Names of the numbers of a line of `/proc/net/dev`, in order.
const INTERFACE: [&str; 16] = [
    "recv_bytes",
    "recv_packets",
    "recv_errs",
    "recv_drop",
    "recv_fifo",
    "recv_frame",
    "recv_compressed",
    "recv_multicast",
    "sent_bytes",
    "sent_packets",
    "sent_errs",
    "sent_drop",
    "sent_fifo",
    "sent_colls",
    "sent_carrier",
    "sent_compressed",
];
/// Fields of `/proc/self/status` that are sizes or counts of interest.
const STATUS: [&str; 18] = [
    "VmPeak",
    "VmSize",
    "VmLck",
    "VmPin",
    "VmHWM",
    "VmRSS",
    "RssAnon",
    "RssFile",
    "RssShmem",
    "VmData",
    "VmStk",
    "VmExe",
    "VmLib",
    "VmPTE",
    "VmSwap",
    "HugetlbPages",
    "voluntary_ctxt_switches",
    "nonvoluntary_ctxt_switches",
];

/// What is counted for metrics.
#[derive(Default)]
pub struct Metrics {
    scrapes: Cell<u64>,
}

impl Metrics {
    /// All figures of this moment.
    pub fn text(&self) -> String {
        self.scrapes.set(self.scrapes.get() + 1);
        let mut page = Page(String::with_capacity(32 << 10));
        page.family("kata_agent_scrape_count", "counter", "How often these figures were asked for.");
        page.plain("kata_agent_scrape_count", self.scrapes.get());
        let read = |path: &str| read_to_string(path).unwrap_or_default();
        let (ticks, page_size) = (crate::sys::clock_ticks(), crate::sys::page_size());
        agent(&mut page, &read("/proc/self/stat"), ticks, page_size);
        page.items("kata_agent_io_stat", "Input and output of the agent.", colons(&read("/proc/self/io"), lower));
        let status = read("/proc/self/status");
        let status = colons(&status, |name| STATUS.contains(&name).then(|| name.to_ascii_lowercase()));
        page.items("kata_agent_proc_status", "State of the agent: sizes in kB, and counts.", status);
        load(&mut page, &read("/proc/loadavg"));
        cpu(&mut page, &read("/proc/stat"), ticks);
        let vm = read("/proc/vmstat");
        let vm = vm.lines().filter_map(|line| line.split_once(' ')).map(|(k, v)| (k.to_owned(), v.to_owned()));
        page.items("kata_guest_vm_stat", "Virtual memory of the guest.", vm);
        page.items("kata_guest_meminfo", "Memory of the guest, bytes.", meminfo(&read("/proc/meminfo")));
        interfaces(&mut page, &read("/proc/net/dev"));
        disks(&mut page, &read("/proc/diskstats"));
        page.0
    }
}

/// The text as far as it is made.
struct Page(String);

impl Page {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        // Writing to a string does not fail.
        let _ = write!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
    }

    fn plain(&mut self, name: &str, value: impl Display) {
        let _ = writeln!(self.0, "{name} {value}");
    }

    fn gauge(&mut self, name: &str, help: &str, value: impl Display) {
        self.family(name, "gauge", help);
        self.plain(name, value);
    }

    fn item(&mut self, name: &str, label: Option<(&str, &str)>, item: &str, value: impl Display) {
        let _ = match label {
            // The kernel allows a name of an interface to have quotes.
            Some((key, label)) => writeln!(
                self.0,
                "{name}{{{key}=\"{}\",item=\"{item}\"}} {value}",
                label.replace('\\', "\\\\").replace('"', "\\\"")
            ),
            None => writeln!(self.0, "{name}{{item=\"{item}\"}} {value}"),
        };
    }

    fn items(&mut self, name: &str, help: &str, items: impl Iterator<Item = (String, String)>) {
        self.family(name, "gauge", help);
        for (item, value) in items {
            self.item(name, None, &item, value);
        }
    }
}

fn lower(name: &str) -> Option<String> {
    Some(name.to_ascii_lowercase())
}

/// Lines such as `Name:   12 kB`, with the names changed or left out.
fn colons(text: &str, name: impl Fn(&str) -> Option<String>) -> impl Iterator<Item = (String, String)> {
    text.lines().filter_map(move |line| {
        let (key, value) = line.split_once(':')?;
        Some((name(key)?, value.split_ascii_whitespace().next()?.to_owned()))
    })
}

fn agent(page: &mut Page, stat: &str, ticks: u64, page_size: u64) {
    // The name before the bracket may have anything in it; the first field behind it is the third of all.
    let fields: Vec<&str> = stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_ascii_whitespace().collect();
    let field = |number: usize| fields.get(number - 3).and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
    page.gauge("kata_agent_threads", "Threads of the agent.", field(20));
    let hundredths = (field(14) + field(15)) * 100 / ticks;
    let seconds = format_args!("{}.{:02}", hundredths / 100, hundredths % 100);
    page.gauge("kata_agent_total_time", "Processor time of the agent, seconds.", seconds);
    page.gauge("kata_agent_total_vm", "Address space of the agent, bytes.", field(23));
    page.gauge("kata_agent_total_rss", "Memory of the agent, bytes.", field(24) * page_size);
    let times = [("utime", 14), ("stime", 15), ("cutime", 16), ("cstime", 17)];
    let times = times.into_iter().map(|(name, number)| (name.to_owned(), field(number).to_string()));
    page.items("kata_agent_proc_stat", "Processor time of the agent and its children, ticks.", times);
}

fn load(page: &mut Page, loadavg: &str) {
    let words: Vec<&str> = loadavg.split_ascii_whitespace().collect();
    let [one, five, fifteen, tasks, ..] = words[..] else { return };
    let loads = [("load1", one), ("load5", five), ("load15", fifteen)];
    page.items("kata_guest_load", "Load of the guest.", owned(loads));
    if let Some((running, all)) = tasks.split_once('/') {
        page.items("kata_guest_tasks", "Tasks of the guest.", owned([("cur", running), ("max", all)]));
    }
}

fn owned<const N: usize>(pairs: [(&str, &str); N]) -> impl Iterator<Item = (String, String)> {
    pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).into_iter()
}

fn cpu(page: &mut Page, stat: &str, ticks: u64) {
    page.family("kata_guest_cpu_time", "gauge", "Processor time of the guest, milliseconds.");
    for line in stat.lines() {
        let Some((name, times)) = line.strip_prefix("cpu").and_then(|rest| rest.split_once(' ')) else { continue };
        let label = ("cpu", if name.is_empty() { "total" } else { name });
        for (item, time) in CPU.iter().zip(times.split_ascii_whitespace()) {
            let time = time.parse::<u64>().unwrap_or(0).saturating_mul(1000) / ticks;
            page.item("kata_guest_cpu_time", Some(label), item, time);
        }
    }
}

/// `MemTotal` is called `mem_total` and `Active(anon)` is `active_anon`.
fn meminfo(text: &str) -> impl Iterator<Item = (String, String)> {
    text.lines().filter_map(|line| {
        let (key, value) = line.split_once(':')?;
        let mut words = value.split_ascii_whitespace();
        let number = words.next()?.parse::<u64>().ok()?;
        let number = if words.next() == Some("kB") { number.saturating_mul(1024) } else { number };
        Some((snake(key), number.to_string()))
    })
}

fn snake(name: &str) -> String {
    // Names that are not made of words as the others are.
    match name {
        "AnonHugePages" => return "anon_hugepages".to_owned(),
        "ShmemHugePages" => return "shmem_hugepages".to_owned(),
        "DirectMap4M" | "DirectMap2M" | "DirectMap1G" => return name.replace("DirectMap", "direct_map_"),
        "DirectMap4k" => return "direct_map_4k".to_owned(),
        "Percpu" => return "per_cpu".to_owned(),
        "HugePages_Total" | "HugePages_Free" | "HugePages_Rsvd" | "HugePages_Surp" => return name.to_ascii_lowercase(),
        "KReclaimable" => return "k_reclaimable".to_owned(),
        "SReclaimable" => return "s_reclaimable".to_owned(),
        "SUnreclaim" => return "s_unreclaim".to_owned(),
        _ => {}
    }
    let mut snake = String::with_capacity(name.len() + 4);
    let mut after_lower = false;
    for c in name.chars() {
        match c {
            '(' | '_' => snake.push('_'),
            ')' => {}
            c => {
                if c.is_ascii_uppercase() && after_lower {
                    snake.push('_');
                }
                snake.push(c.to_ascii_lowercase());
            }
        }
        after_lower = c.is_ascii_lowercase();
    }
    snake
}

fn interfaces(page: &mut Page, dev: &str) {
    page.family("kata_guest_netdev_stat", "gauge", "Counters of the guest's interfaces.");
    for (name, counters) in dev.lines().filter_map(|line| line.split_once(':')) {
        for (item, value) in INTERFACE.iter().zip(counters.split_ascii_whitespace()) {
            page.item("kata_guest_netdev_stat", Some(("interface", name.trim())), item, value);
        }
    }
}

fn disks(page: &mut Page, diskstats: &str) {
    page.family("kata_guest_diskstat", "gauge", "Counters of the guest's disks.");
    for line in diskstats.lines() {
        // After both numbers of the device.
        let mut words = line.split_ascii_whitespace().skip(2);
        let Some(name) = words.next() else { continue };
        for (item, value) in DISK.iter().zip(words) {
            page.item("kata_guest_diskstat", Some(("disk", name)), item, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(make: impl FnOnce(&mut Page)) -> String {
        let mut page = Page(String::new());
        make(&mut page);
        page.0
    }

    #[test]
    fn the_agents_own_figures() {
        let stat = "1 (a) b) S 0 1 1 0 -1 4194560 5 0 0 0 150 50 7 8 20 0 1 0 3 4096000 300 18446744073709551615";
        let text = made(|page| agent(page, stat, 100, 4096));
        for line in [
            "kata_agent_threads 1",
            "kata_agent_total_time 2.00",
            "kata_agent_total_vm 4096000",
            "kata_agent_total_rss 1228800",
            "kata_agent_proc_stat{item=\"cstime\"} 8",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} in {text}");
        }
    }

    #[test]
    fn the_guests_figures() {
        let text = made(|page| {
            cpu(page, "cpu  10 0 20 30 0 0 0 0 0 0\ncpu1 5 0 0 0 0 0 0 0 0 0\nintr 1\n", 100);
            interfaces(page, "Inter-| x\n face |y\n  eth0: 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16\n");
            disks(page, " 254       0 vda 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17\n");
            load(page, "0.50 0.25 0.10 2/80 99\n");
        });
        for line in [
            "kata_guest_cpu_time{cpu=\"total\",item=\"system\"} 200",
            "kata_guest_cpu_time{cpu=\"1\",item=\"user\"} 50",
            "kata_guest_netdev_stat{interface=\"eth0\",item=\"recv_bytes\"} 1",
            "kata_guest_netdev_stat{interface=\"eth0\",item=\"sent_compressed\"} 16",
            "kata_guest_diskstat{disk=\"vda\",item=\"time_flushing\"} 17",
            "kata_guest_load{item=\"load15\"} 0.10",
            "kata_guest_tasks{item=\"max\"} 80",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} in {text}");
        }
    }

    #[test]
    fn memory_is_in_bytes_under_the_usual_names() {
        let text = "MemTotal:   16 kB\nActive(anon): 1 kB\nHugePages_Total:  3\nS Reclaimable\n";
        let got: Vec<(String, String)> = meminfo(text).collect();
        let expected = [("mem_total", "16384"), ("active_anon", "1024"), ("hugepages_total", "3")];
        assert_eq!(got, expected.map(|(k, v)| (k.to_owned(), v.to_owned())));
        for (name, expected) in [
            ("Committed_AS", "committed_as"),
            ("SReclaimable", "s_reclaimable"),
            ("DirectMap2M", "direct_map_2M"),
            ("ShmemPmdMapped", "shmem_pmd_mapped"),
            ("Percpu", "per_cpu"),
            ("NFS_Unstable", "nfs_unstable"),
            ("WritebackTmp", "writeback_tmp"),
            ("Hugepagesize", "hugepagesize"),
            ("CmaTotal", "cma_total"),
            ("VmallocChunk", "vmalloc_chunk"),
        ] {
            assert_eq!(snake(name), expected);
        }
    }

    #[test]
    fn every_line_is_one_of_the_format() {
        let metrics = Metrics::default();
        metrics.text();
        let text = metrics.text();
        assert!(text.contains("kata_agent_scrape_count 2\n"));
        assert!(text.len() < agent_api::frame::MAX_REPLY / 2, "{}", text.len());
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let (name, value) = line.rsplit_once(' ').unwrap();
            assert!(name.starts_with("kata_agent_") || name.starts_with("kata_guest_"), "{line}");
            assert!(value.parse::<f64>().is_ok(), "{line}");
        }
    }
}
