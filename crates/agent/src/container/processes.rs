//! Describing processes by what /proc says.

use std::fs::read_to_string;

use agent_api::ProcessInfo;

/// Describes those of `pids` that still exist.
pub fn list(pids: &[u32]) -> Vec<ProcessInfo> {
    let ticks = crate::sys::clock_ticks();
    let booted = boot_time(&read_to_string("/proc/stat").unwrap_or_default());
    pids.iter().filter_map(|&pid| describe(pid, ticks, booted)).collect()
}

fn boot_time(stat: &str) -> u64 {
    stat.lines().find_map(|line| line.strip_prefix("btime ")?.trim().parse().ok()).unwrap_or(0)
}

fn describe(pid: u32, ticks: u64, booted: u64) -> Option<ProcessInfo> {
    let stat = Stat::parse(&read_to_string(format!("/proc/{pid}/stat")).ok()?)?;
    let status = read_to_string(format!("/proc/{pid}/status")).ok()?;
    let uid =
        status.lines().find_map(|line| line.strip_prefix("Uid:")?.split_ascii_whitespace().next()?.parse().ok())?;
    let cmdline = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    Some(ProcessInfo {
        pid,
        ppid: stat.ppid,
        uid,
        cpu_ms: stat.cpu_ticks * 1000 / ticks,
        start_s: booted + stat.start_ticks / ticks,
        tty: terminal_name(stat.tty),
        state: stat.state,
        command: command(&cmdline, &stat.name),
    })
}

#[derive(Debug, PartialEq, Eq)]
struct Stat {
    name: String,
    state: String,
    ppid: u32,
    tty: u32,
    cpu_ticks: u64,
    start_ticks: u64,
}

impl Stat {
    /// The fields of proc(5), of which the second is a name in brackets that may have anything in it.
    fn parse(text: &str) -> Option<Self> {
        let (before, after) = text.rsplit_once(')')?;
        let name = before.split_once('(')?.1.to_owned();
        let fields: Vec<&str> = after.split_ascii_whitespace().collect();
        let number = |field: usize| fields.get(field - 3)?.parse::<i64>().ok();
        Some(Self {
            name,
            state: (*fields.first()?).to_owned(),
            ppid: u32::try_from(number(4)?).ok()?,
            tty: number(7)? as u32,
            cpu_ticks: u64::try_from(number(14)? + number(15)?).ok()?,
            start_ticks: u64::try_from(number(22)?).ok()?,
        })
    }
}

/// Name of a terminal by its device number: minor in bits 31 to 20 and 7 to 0, major in 15 to 8.
fn terminal_name(device: u32) -> String {
    let (major, minor) = (device >> 8 & 0xff, device >> 12 & 0xf_ff00 | device & 0xff);
    match major {
        0 => "?".to_owned(),
        136..=143 => format!("pts/{}", (major - 136) * 256 + minor),
        4 if minor < 64 => format!("tty{minor}"),
        4 => format!("ttyS{}", minor - 64),
        _ => format!("{major}:{minor}"),
    }
}

fn command(cmdline: &[u8], name: &str) -> String {
    let text = String::from_utf8_lossy(cmdline);
    match text.trim_end_matches('\0') {
        "" => format!("[{name}]"),
        text => text.replace('\0', " "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_may_have_brackets_and_spaces() {
        let text = "42 (a) b (c) S 7 42 42 34817 42 4194304 59 0 0 0 5 6 0 0 20 0 1 0 1234 2387968 348";
        let stat = Stat::parse(text).unwrap();
        let (name, state) = ("a) b (c".into(), "S".into());
        assert_eq!(stat, Stat { name, state, ppid: 7, tty: 34817, cpu_ticks: 11, start_ticks: 1234 });
        assert_eq!(terminal_name(stat.tty), "pts/1");
    }

    #[test]
    fn this_process_is_described() {
        let me = &list(&[std::process::id(), u32::MAX >> 2])[..];
        assert_eq!(me.len(), 1, "a process that is not there is left out");
        assert!(me[0].start_s > 1_000_000_000 && !me[0].command.is_empty(), "{me:?}");
    }

    #[test]
    fn commands_are_joined_and_kernel_threads_have_none() {
        assert_eq!(command(b"sh\0-c\0x\0", "sh"), "sh -c x");
        assert_eq!(command(b"", "kworker/0:1"), "[kworker/0:1]");
        assert_eq!((terminal_name(0), terminal_name(4 << 8 | 64)), ("?".into(), "ttyS0".into()));
    }
}
