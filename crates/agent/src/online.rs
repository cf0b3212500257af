//! CPUs and memory that come while the guest runs.

use std::path::Path;
use std::time::Duration;

use agent_api::Fault;

use crate::fault::{Context, invalid};
use crate::uevents::Uevents;

const CPUS: &str = "/sys/devices/system/cpu";
const MEMORY: &str = "/sys/devices/system/memory";
/// How long plugged CPUs may take to appear. An emulated guest starts one in a tenth of a second.
const DEADLINE: Duration = Duration::from_secs(30);

/// Has memory that is plugged used at once. Kernels of distributions leave that to udev, of which a guest has none.
///
/// # Errors
/// When the kernel refuses. One that cannot plug memory has no such setting, which is none.
pub fn use_new_memory() -> std::io::Result<()> {
    let setting = Path::new(MEMORY).join("auto_online_blocks");
    match std::fs::read_to_string(&setting) {
        Ok(value) if value.trim_end() == "offline" => std::fs::write(&setting, "online"),
        Ok(_) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

/// Brings CPUs online, those with the lowest numbers first, until there are so many, waiting for those that have not appeared yet;
/// and every block of memory.
///
/// # Errors
/// When they do not appear in time, or the kernel cannot start one.
pub async fn online(vcpus: u32) -> Result<(), Fault> {
    if vcpus == 0 {
        return Err(invalid("vcpus is 0, expected at least 1"));
    }
    let events = Uevents::listen()?;
    let missing = || {
        let (there, online) = (devices(Path::new(CPUS), "cpu").len(), count_online());
        format!("only {online} of {vcpus} CPUs came online ({there} are plugged)")
    };
    events
        .until(DEADLINE, missing, || {
            let end = devices(Path::new(CPUS), "cpu").into_iter().max().map_or(0, |last| last + 1);
            for cpu in 0..end {
                if count_online() >= vcpus {
                    break;
                }
                // The first one of most architectures has no such file: it is always online.
                set(&Path::new(CPUS).join(format!("cpu{cpu}")), "online", "0", "1")?;
            }
            Ok((count_online() >= vcpus).then_some(()))
        })
        .await?;
    for block in devices(Path::new(MEMORY), "memory") {
        set(&Path::new(MEMORY).join(format!("memory{block}")), "state", "offline", "online")?;
    }
    Ok(())
}

/// Numbers of the directories that are named `prefix` and a number.
fn devices(dir: &Path, prefix: &str) -> Vec<u32> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.strip_prefix(prefix)?.parse().ok()).collect()
}

/// Changes a file of a device from one value to another; if it has neither or is not there, nothing is to be done.
fn set(device: &Path, file: &str, from: &str, to: &str) -> Result<(), Fault> {
    let path = device.join(file);
    if std::fs::read_to_string(&path).is_ok_and(|value| value.trim_end() == from) {
        std::fs::write(&path, to).context(|| format!("write {to:?} to {}", path.display()))?;
    }
    Ok(())
}

fn count_online() -> u32 {
    count(&std::fs::read_to_string(Path::new(CPUS).join("online")).unwrap_or_default())
}

/// How many numbers a list such as `0-2,5` has.
fn count(list: &str) -> u32 {
    let ranges = list.trim_end().split(',').filter_map(|range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        Some((last.parse::<u32>().ok()? + 1).saturating_sub(first.parse().ok()?))
    });
    ranges.sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_cpus_are_counted() {
        assert_eq!((count("0\n"), count("0-3\n"), count("0-1,3,5-6\n"), count("\n")), (1, 4, 5, 0));
    }

    #[test]
    fn what_is_offline_is_brought_online_and_nothing_else_is_touched() {
        let top = std::env::temp_dir().join(format!("kata-agent-online-{}", std::process::id()));
        for (cpu, online) in [("cpu1", "0\n"), ("cpu2", "1\n"), ("cpufreq", "0\n")] {
            std::fs::create_dir_all(top.join(cpu)).unwrap();
            std::fs::write(top.join(cpu).join("online"), online).unwrap();
        }
        std::fs::create_dir_all(top.join("cpu0")).unwrap();
        let found = devices(&top, "cpu");
        assert_eq!(found.len(), 3);
        found.iter().for_each(|cpu| set(&top.join(format!("cpu{cpu}")), "online", "0", "1").unwrap());
        let online = |cpu: &str| std::fs::read_to_string(top.join(cpu).join("online")).unwrap();
        assert_eq!((online("cpu1"), online("cpu2"), online("cpufreq")), ("1".into(), "1\n".into(), "0\n".into()));
        std::fs::remove_dir_all(top).unwrap();
    }

    #[tokio::test(flavor = "current_thread")]
    async fn no_cpu_at_all_is_refused() {
        assert!(online(0).await.is_err());
    }
}
