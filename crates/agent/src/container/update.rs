//! Changing a container's limits while it runs.

use std::path::Path;
use std::time::Duration;

use agent_api::{Fault, FaultKind};

use super::Container;
use super::cgroup::apply;
use super::resources::{Missing, Setting, settings};
use crate::agent::Agent;
use crate::aside::aside;
use crate::fault::{fault, internal};
use crate::spec::Resources;

/// How long the kernel may take. A memory limit below what is used makes it write back, swap and kill first.
const DEADLINE: Duration = Duration::from_secs(60);

/// Changes what is given. Rules for devices are not changed, as with runc: whoever updates limits repeats the host's.
///
/// # Errors
/// When something is refused; what was changed before is changed back then, as far as the kernel lets.
pub async fn update(agent: &Agent, container: &Container, mut resources: Resources) -> Result<(), Fault> {
    if container.is_stopped() {
        return Err(fault(FaultKind::InvalidState, "container not running"));
    }
    let cgroup = container.cgroup.path();
    check_memory(cgroup, &resources)?;
    complete(cgroup, &mut resources);
    let settings = settings(&resources)?;
    // By a child: the agent would do nothing else as long as the kernel looks for memory.
    aside(agent, "updating the container's limits", DEADLINE, || apply_all(cgroup, &settings)).await
}

fn apply_all(cgroup: &Path, settings: &[Setting]) -> Result<(), Fault> {
    let mut before = Vec::new();
    for setting in settings {
        let old = old(cgroup, setting);
        if let Err(fault) = apply(cgroup, setting) {
            for old in before.iter().rev() {
                // What was refused first is what matters.
                let _ = apply(cgroup, old);
            }
            return Err(fault);
        }
        before.extend(old);
    }
    Ok(())
}

/// What brings the present value back. Files with a line for each device are left as they have become.
fn old(cgroup: &Path, setting: &Setting) -> Option<Setting> {
    let text = std::fs::read_to_string(cgroup.join(&setting.file)).ok()?;
    // An empty list of CPUs is written as an empty line.
    let value = format!("{}\n", text.trim_end());
    (!value.trim_end().contains('\n') && !setting.file.starts_with("io.") && !setting.file.starts_with("rdma."))
        .then(|| Setting { file: setting.file.clone(), value, missing: Missing::Ignore })
}

/// Adds present values to what means something else without them: version 1 cgroups have a file for each number, version 2 has
/// files of several.
fn complete(cgroup: &Path, resources: &mut Resources) {
    let read = |file: &str| std::fs::read_to_string(cgroup.join(file)).unwrap_or_default();
    let (cpu, memory) = (&mut resources.cpu, &mut resources.memory);
    let (has_quota, has_period) = (cpu.quota.is_some_and(|n| n != 0), cpu.period.is_some_and(|n| n != 0));
    if has_quota != has_period {
        let text = read("cpu.max");
        let (quota, period) = text.trim_end().split_once(' ').unwrap_or(("max", ""));
        if has_period {
            cpu.quota = Some(quota.parse().unwrap_or(-1));
        } else {
            cpu.period = period.parse().ok();
        }
    }
    if memory.swap.is_some_and(|swap| swap > 0) && memory.limit.is_none_or(|limit| limit == 0) {
        // Of both in sum. Without a limit of memory the sum cannot be one of swap, and is refused.
        memory.limit = read("memory.max").trim_end().parse().ok();
    }
}

/// Refuses a limit of memory that is reached already, if that is asked for. Otherwise the kernel makes room, if need be by killing.
fn check_memory(cgroup: &Path, resources: &Resources) -> Result<(), Fault> {
    let memory = &resources.memory;
    if memory.check_before_update != Some(true) {
        return Ok(());
    }
    let Some(limit) = memory.limit.and_then(|limit| u64::try_from(limit).ok()).filter(|&limit| limit != 0) else {
        return Ok(());
    };
    let usage = std::fs::read_to_string(cgroup.join("memory.current")).unwrap_or_default();
    match usage.trim_end().parse::<u64>() {
        Ok(usage) if usage >= limit => Err(internal(format!("rejecting memory limit {limit} <= usage {usage}"))),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    struct Fake(PathBuf);

    impl Fake {
        fn new(name: &str, files: &[(&str, &str)]) -> Self {
            let top = std::env::temp_dir().join(format!("kata-agent-update-{name}-{}", std::process::id()));
            std::fs::create_dir_all(&top).unwrap();
            files.iter().for_each(|(name, text)| std::fs::write(top.join(name), text).unwrap());
            Self(top)
        }

        fn written(&self, json: &str) -> Result<Vec<(String, String)>, Fault> {
            let mut resources: Resources = serde_json::from_str(json).unwrap();
            check_memory(&self.0, &resources)?;
            complete(&self.0, &mut resources);
            Ok(settings(&resources)?.into_iter().map(|s| (s.file, s.value)).collect())
        }
    }

    impl Drop for Fake {
        fn drop(&mut self) {
            std::fs::remove_dir_all(&self.0).unwrap();
        }
    }

    fn pair(file: &str, value: &str) -> (String, String) {
        (file.to_owned(), value.to_owned())
    }

    #[test]
    fn what_is_not_given_stays_as_it_is() {
        let fake =
            Fake::new("given", &[("cpu.max", "20000 50000\n"), ("memory.max", "1000\n"), ("memory.current", "600\n")]);
        assert_eq!(fake.written(r#"{"cpu":{"quota":30000}}"#).unwrap(), [pair("cpu.max", "30000 50000")]);
        assert_eq!(fake.written(r#"{"cpu":{"period":80000}}"#).unwrap(), [pair("cpu.max", "20000 80000")]);
        assert_eq!(fake.written(r#"{"cpu":{"shares":2}}"#).unwrap(), [pair("cpu.weight", "1")]);
        let swap = fake.written(r#"{"memory":{"swap":1500}}"#).unwrap();
        assert_eq!(swap, [pair("memory.max", "1000"), pair("memory.swap.max", "500")]);
        assert_eq!(fake.written(r#"{"memory":{"limit":500}}"#).unwrap(), [pair("memory.max", "500")]);
        let refused = fake.written(r#"{"memory":{"limit":500,"checkBeforeUpdate":true}}"#).unwrap_err();
        assert_eq!(refused.message, "rejecting memory limit 500 <= usage 600");
    }

    #[test]
    fn what_was_changed_is_changed_back_when_something_is_refused() {
        let fake = Fake::new("back", &[("cpu.weight", "100\n"), ("cpuset.cpus", "\n"), ("io.max", "")]);
        let set =
            |file: &str, value: &str| Setting { file: file.into(), value: value.into(), missing: Missing::Refuse };
        // Padded, because what is written here is a file and not a cgroup's, which are replaced whole.
        let wanted = [set("cpu.weight", "200 "), set("cpuset.cpus", "0"), set("nope", "1")];
        let message = apply_all(&fake.0, &wanted).unwrap_err().message;
        assert!(message.contains("write \"1\"") && message.contains("nope: no such file"), "{message}");
        assert_eq!(std::fs::read_to_string(fake.0.join("cpu.weight")).unwrap(), "100\n");
        assert_eq!(std::fs::read_to_string(fake.0.join("cpuset.cpus")).unwrap(), "\n");
    }
}
