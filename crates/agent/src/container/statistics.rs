//! What a container uses, from the files of its cgroup; and what went through the guest's interfaces.

use std::collections::BTreeMap;
use std::path::Path;

use agent_api::statistics::{Cpu, HugePages, Interface, Io, Memory, Pids, Statistics};

const INTERFACES: &str = "/sys/class/net";

/// Reads all figures of the cgroup at a path. What the kernel does not tell is 0 or absent.
pub fn read(cgroup: &Path) -> Statistics {
    Statistics {
        cpu: cpu(cgroup),
        memory: memory(cgroup),
        pids: Pids { current: number(cgroup, "pids.current"), limit: limit(cgroup, "pids.max") },
        io: io(&text(cgroup, "io.stat")),
        huge_pages: huge_pages(cgroup),
        network: interfaces(Path::new(INTERFACES)),
    }
}

fn text(dir: &Path, file: &str) -> String {
    std::fs::read_to_string(dir.join(file)).unwrap_or_default()
}

fn number(dir: &Path, file: &str) -> u64 {
    text(dir, file).trim_end().parse().unwrap_or(0)
}

/// A number, or `max` for none.
fn limit(dir: &Path, file: &str) -> Option<u64> {
    text(dir, file).trim_end().parse().ok()
}

/// Lines of a name and a number.
fn pairs(text: &str) -> BTreeMap<String, u64> {
    let mut pairs = BTreeMap::new();
    // One by one: collecting sorts, which is 6 KB of code.
    for (name, value) in text.lines().filter_map(|line| line.split_once(' ')) {
        if let Ok(value) = value.parse() {
            pairs.insert(name.to_owned(), value);
        }
    }
    pairs
}

fn cpu(cgroup: &Path) -> Cpu {
    let stat = pairs(&text(cgroup, "cpu.stat"));
    let get = |name: &str| stat.get(name).copied().unwrap_or(0);
    let nanoseconds = |name: &str| get(name).saturating_mul(1000);
    Cpu {
        usage_ns: nanoseconds("usage_usec"),
        user_ns: nanoseconds("user_usec"),
        system_ns: nanoseconds("system_usec"),
        periods: get("nr_periods"),
        throttled_periods: get("nr_throttled"),
        throttled_ns: nanoseconds("throttled_usec"),
    }
}

fn memory(cgroup: &Path) -> Memory {
    Memory {
        usage: number(cgroup, "memory.current"),
        peak: number(cgroup, "memory.peak"),
        limit: limit(cgroup, "memory.max"),
        swap_usage: number(cgroup, "memory.swap.current"),
        swap_limit: limit(cgroup, "memory.swap.max"),
        stat: pairs(&text(cgroup, "memory.stat")),
        events: pairs(&text(cgroup, "memory.events")),
    }
}

fn io(text: &str) -> Vec<Io> {
    let line = |line: &str| {
        let mut words = line.split_ascii_whitespace();
        let (major, minor) = words.next()?.split_once(':')?;
        let mut io = Io { major: major.parse().ok()?, minor: minor.parse().ok()?, ..Io::default() };
        for (key, value) in words.filter_map(|word| word.split_once('=')) {
            let value = value.parse().unwrap_or(0);
            match key {
                "rbytes" => io.read_bytes = value,
                "wbytes" => io.written_bytes = value,
                "rios" => io.reads = value,
                "wios" => io.writes = value,
                _ => {}
            }
        }
        Some(io)
    };
    text.lines().filter_map(line).collect()
}

fn huge_pages(cgroup: &Path) -> Vec<HugePages> {
    let entries = std::fs::read_dir(cgroup).into_iter().flatten().flatten();
    let sizes = entries.filter_map(|entry| {
        let name = entry.file_name().into_string().ok()?;
        // "hugetlb.2MB.rsvd.current" is about reservations.
        let size = name.strip_prefix("hugetlb.")?.strip_suffix(".current")?;
        (!size.contains('.')).then(|| size.to_owned())
    });
    sizes
        .map(|size| {
            let events = pairs(&text(cgroup, &format!("hugetlb.{size}.events")));
            HugePages {
                usage: number(cgroup, &format!("hugetlb.{size}.current")),
                peak: 0,
                failures: events.get("max").copied().unwrap_or(0),
                page_size: size,
            }
        })
        .collect()
}

fn interfaces(dir: &Path) -> Vec<Interface> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_name() != "lo" && entry.path().join("statistics").is_dir())
        .map(|entry| {
            let counters = entry.path().join("statistics");
            let get = |name: &str| number(&counters, name);
            Interface {
                name: entry.file_name().to_string_lossy().into_owned(),
                rx_bytes: get("rx_bytes"),
                rx_packets: get("rx_packets"),
                rx_errors: get("rx_errors"),
                rx_dropped: get("rx_dropped"),
                tx_bytes: get("tx_bytes"),
                tx_packets: get("tx_packets"),
                tx_errors: get("tx_errors"),
                tx_dropped: get("tx_dropped"),
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_files_of_a_cgroup_are_understood() {
        let top = std::env::temp_dir().join(format!("kata-agent-statistics-{}", std::process::id()));
        std::fs::create_dir_all(&top).unwrap();
        for (name, contents) in [
            ("cpu.stat", "usage_usec 5\nuser_usec 3\nsystem_usec 2\nnr_periods 7\nnr_throttled 1\nthrottled_usec 9\n"),
            ("memory.current", "4096\n"),
            ("memory.max", "max\n"),
            ("memory.swap.max", "0\n"),
            ("memory.stat", "anon 1\nfile 2\n"),
            ("memory.events", "low 0\noom 2\noom_kill 1\n"),
            ("pids.current", "3\n"),
            ("pids.max", "10\n"),
            ("io.stat", "254:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0\n7:0 \n"),
            ("hugetlb.2MB.current", "2097152\n"),
            ("hugetlb.2MB.rsvd.current", "1\n"),
            ("hugetlb.2MB.events", "max 6\n"),
        ] {
            std::fs::write(top.join(name), contents).unwrap();
        }
        let got = read(&top);
        std::fs::remove_dir_all(&top).unwrap();
        assert_eq!((got.cpu.usage_ns, got.cpu.throttled_periods, got.cpu.throttled_ns), (5000, 1, 9000));
        assert_eq!((got.memory.usage, got.memory.limit, got.memory.swap_limit), (4096, None, Some(0)));
        assert_eq!((got.memory.stat["file"], got.memory.events["oom_kill"]), (2, 1));
        assert_eq!(got.pids, Pids { current: 3, limit: Some(10) });
        assert_eq!(got.io.len(), 2);
        assert_eq!((got.io[0].major, got.io[0].written_bytes, got.io[0].writes, got.io[1].reads), (254, 2, 4, 0));
        let pages = HugePages { page_size: "2MB".into(), usage: 2_097_152, peak: 0, failures: 6 };
        assert_eq!(got.huge_pages, [pages]);
        assert!(got.network.iter().all(|interface| interface.name != "lo"));
        assert_eq!(read(Path::new("/nowhere")).memory, Memory::default());
    }
}
