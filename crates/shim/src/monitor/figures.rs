//! Figures of processes of the host, under the names that Kata's users know.

use std::{collections::BTreeMap, fmt::Write, fs};

/// Upper ends of the classes of a histogram, milliseconds.
const CLASSES: [u64; 10] = [1, 2, 4, 8, 16, 32, 64, 128, 256, 1024];

/// How long calls took, by their names.
#[derive(Debug, Default)]
pub(crate) struct Durations(BTreeMap<String, Histogram>);

#[derive(Debug, Default)]
struct Histogram {
    classes: [u64; CLASSES.len()],
    count: u64,
    /// Milliseconds.
    sum: f64,
}

impl Durations {
    /// One call has ended.
    pub(crate) fn note(&mut self, name: &str, took: std::time::Duration) {
        let milliseconds = took.as_secs_f64() * 1000.0;
        let histogram = self.0.entry(name.to_owned()).or_default();
        for (class, end) in histogram.classes.iter_mut().zip(CLASSES) {
            *class += u64::from(milliseconds <= end as f64);
        }
        histogram.count += 1;
        histogram.sum += milliseconds;
    }

    /// In the text format of Prometheus.
    pub(super) fn write(&self, family: &str, help: &str, text: &mut String) {
        head(text, family, "histogram", help);
        for (name, Histogram { classes, count, sum }) in &self.0 {
            for (class, end) in classes.iter().zip(CLASSES) {
                line(text, format_args!("{family}_bucket{{action=\"{name}\",le=\"{end}\"}} {class}"));
            }
            line(text, format_args!("{family}_bucket{{action=\"{name}\",le=\"+Inf\"}} {count}"));
            line(text, format_args!("{family}_sum{{action=\"{name}\"}} {sum}"));
            line(text, format_args!("{family}_count{{action=\"{name}\"}} {count}"));
        }
    }
}

/// Writes what `/proc` says of a process (proc_pid_stat(5), proc_pid_status(5), proc_pid_io(5)); nothing if it is gone.
pub(super) fn of_process(prefix: &str, pid: u32, text: &mut String) {
    let Ok(status) = fs::read_to_string(format!("/proc/{pid}/status")) else { return };
    let count = |dir: &str| fs::read_dir(format!("/proc/{pid}/{dir}")).map_or(0, Iterator::count);
    gauge(text, &format!("{prefix}_fds"), "Open descriptors.", count("fd"));
    gauge(text, &format!("{prefix}_threads"), "Threads.", count("task"));
    let family = format!("{prefix}_proc_status");
    head(text, &family, "gauge", "Memory and context switches, as /proc/PID/status tells; memory in KiB.");
    for entry in status.lines() {
        let Some((name, value)) = entry.split_once(':') else { continue };
        let wanted = name.starts_with("Vm") || name.starts_with("Rss") || name.ends_with("ctxt_switches");
        if let Some(value) = value.split_whitespace().next().filter(|value| wanted && value.parse::<u64>().is_ok()) {
            line(text, format_args!("{family}{{item=\"{}\"}} {value}", name.to_lowercase()));
        }
    }
    let family = format!("{prefix}_io_stat");
    if let Ok(io) = fs::read_to_string(format!("/proc/{pid}/io")) {
        head(text, &family, "gauge", "Bytes and calls of input and output, as /proc/PID/io tells.");
        for (name, value) in io.lines().filter_map(|entry| entry.split_once(':')) {
            line(text, format_args!("{family}{{item=\"{}\"}} {}", name.replace('_', ""), value.trim()));
        }
    }
}

/// Resident memory of a process, bytes, with its part only of what it shares.
pub(super) fn memory(pid: u32) -> u64 {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let pss =
        rollup.lines().find_map(|line| line.strip_prefix("Pss:")?.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    pss.unwrap_or(0) << 10
}

/// Processor time of a process, seconds.
pub(super) fn cpu_seconds(pid: u32) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // utime and stime; the name in brackets may have blanks. The unit is USER_HZ, 100 on every Linux.
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace().skip(11).take(2);
    fields.filter_map(|field| field.parse::<u64>().ok()).sum::<u64>() as f64 / 100.0
}

/// A family with one figure.
pub(super) fn gauge(text: &mut String, family: &str, help: &str, value: impl std::fmt::Display) {
    head(text, family, "gauge", help);
    line(text, format_args!("{family} {value}"));
}

fn head(text: &mut String, family: &str, kind: &str, help: &str) {
    line(text, format_args!("# HELP {family} {help}"));
    line(text, format_args!("# TYPE {family} {kind}"));
}

fn line(text: &mut String, line: std::fmt::Arguments<'_>) {
    // Writing to a string does not fail.
    let _ = writeln!(text, "{line}");
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn durations_are_counted_in_every_class_that_they_fit() {
        let mut durations = Durations::default();
        durations.note("create", Duration::from_millis(3));
        durations.note("create", Duration::from_secs(2));
        let mut text = String::new();
        durations.write("x", "Help.", &mut text);
        for line in [
            "# TYPE x histogram",
            "x_bucket{action=\"create\",le=\"2\"} 0",
            "x_bucket{action=\"create\",le=\"4\"} 1",
            "x_bucket{action=\"create\",le=\"+Inf\"} 2",
            "x_count{action=\"create\"} 2",
            "x_sum{action=\"create\"} 2003",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} in {text}");
        }
    }

    #[test]
    fn the_own_process_has_figures_and_one_that_is_gone_has_none() {
        let mut text = String::new();
        of_process("kata_shim", std::process::id(), &mut text);
        for family in [
            "kata_shim_fds ",
            "kata_shim_threads ",
            "kata_shim_proc_status{item=\"vmrss\"} ",
            "kata_shim_io_stat{item=\"rchar\"} ",
        ] {
            assert!(text.lines().any(|line| line.starts_with(family)), "{family} in {text}");
        }
        assert!(memory(std::process::id()) > 0);
        let mut none = String::new();
        of_process("x", u32::MAX, &mut none);
        assert!(none.is_empty() && cpu_seconds(u32::MAX) == 0.0);
    }
}
