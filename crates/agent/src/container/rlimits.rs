//! Resource limits, out-of-memory score and scheduling of a process.

use agent_api::Fault;
use rustix::process::{Pid, Resource, Rlimit, prlimit};

use crate::fault::{Context, invalid, prefixed};
use crate::spec::{Process, Rlimit as Limit};
use crate::sys::{SchedAttr, set_io_priority, set_scheduler};

/// What has to be set with the agent's rights: of this process, or of another one that has given them up already. `whose` is
/// what runc calls it.
///
/// # Errors
/// When the kernel refuses a value.
pub fn apply(process: &Process, pid: Option<u32>, whose: &str) -> Result<(), Fault> {
    for limit in &process.rlimits {
        set_limit(limit, pid).map_err(|fault| prefixed(&format!("error setting rlimits for {whose}: "), fault))?;
    }
    if let Some(score) = process.oom_score_adj {
        let path = pid.map_or("/proc/self/oom_score_adj".to_owned(), |pid| format!("/proc/{pid}/oom_score_adj"));
        std::fs::write(&path, score.to_string()).context(|| format!("write {path}"))?;
    }
    Ok(())
}

fn set_limit(limit: &Limit, pid: Option<u32>) -> Result<(), Fault> {
    let pid = pid.and_then(|pid| Pid::from_raw(pid.cast_signed()));
    // All ones is "unlimited", which rustix calls `None`.
    let value = |number: u64| (number != u64::MAX).then_some(number);
    let (resource, number) = resource(&limit.kind)?;
    let wanted = Rlimit { current: value(limit.soft), maximum: value(limit.hard) };
    prlimit(pid, resource, wanted).context(|| format!("error setting rlimit type {number}")).map(drop)
}

/// A limit as the kernel calls it, and its number.
fn resource(name: &str) -> Result<(Resource, u32), Fault> {
    Ok(match name {
        "RLIMIT_CPU" => (Resource::Cpu, libc::RLIMIT_CPU),
        "RLIMIT_FSIZE" => (Resource::Fsize, libc::RLIMIT_FSIZE),
        "RLIMIT_DATA" => (Resource::Data, libc::RLIMIT_DATA),
        "RLIMIT_STACK" => (Resource::Stack, libc::RLIMIT_STACK),
        "RLIMIT_CORE" => (Resource::Core, libc::RLIMIT_CORE),
        "RLIMIT_RSS" => (Resource::Rss, libc::RLIMIT_RSS),
        "RLIMIT_NPROC" => (Resource::Nproc, libc::RLIMIT_NPROC),
        "RLIMIT_NOFILE" => (Resource::Nofile, libc::RLIMIT_NOFILE),
        "RLIMIT_MEMLOCK" => (Resource::Memlock, libc::RLIMIT_MEMLOCK),
        "RLIMIT_AS" => (Resource::As, libc::RLIMIT_AS),
        "RLIMIT_LOCKS" => (Resource::Locks, libc::RLIMIT_LOCKS),
        "RLIMIT_SIGPENDING" => (Resource::Sigpending, libc::RLIMIT_SIGPENDING),
        "RLIMIT_MSGQUEUE" => (Resource::Msgqueue, libc::RLIMIT_MSGQUEUE),
        "RLIMIT_NICE" => (Resource::Nice, libc::RLIMIT_NICE),
        "RLIMIT_RTPRIO" => (Resource::Rtprio, libc::RLIMIT_RTPRIO),
        "RLIMIT_RTTIME" => (Resource::Rttime, libc::RLIMIT_RTTIME),
        _ => return Err(invalid(format!("process.rlimits has the type {name:?}, which does not exist"))),
    })
}

/// Sets the scheduling policy and the I/O priority of this process, where the specification has them.
///
/// # Errors
/// For names that do not exist, and when the kernel refuses a value.
pub fn schedule(process: &Process) -> Result<(), Fault> {
    if let Some(priority) = &process.io_priority {
        let class = named("process.ioPriority.class", &IO_CLASSES, &priority.class)?;
        if priority.priority > 7 {
            return Err(invalid(format!("process.ioPriority.priority is {}, expected 0 to 7", priority.priority)));
        }
        set_io_priority(class, priority.priority).context(|| "setting the I/O priority".into())?;
    }
    let Some(scheduler) = &process.scheduler else { return Ok(()) };
    let flags = scheduler.flags.iter().try_fold(0, |flags, flag| {
        Ok::<_, Fault>(flags | u64::from(named("process.scheduler.flags", &SCHEDULER_FLAGS, flag)?))
    })?;
    set_scheduler(SchedAttr {
        policy: named("process.scheduler.policy", &POLICIES, &scheduler.policy)?,
        flags,
        nice: scheduler.nice,
        priority: scheduler.priority,
        runtime: scheduler.runtime,
        deadline: scheduler.deadline,
        period: scheduler.period,
        ..SchedAttr::default()
    })
    .context(|| "setting the scheduler".into())
}

/// Of linux/ioprio.h.
const IO_CLASSES: [(&str, u32); 3] = [("IOPRIO_CLASS_RT", 1), ("IOPRIO_CLASS_BE", 2), ("IOPRIO_CLASS_IDLE", 3)];

/// Of linux/sched.h.
const POLICIES: [(&str, u32); 7] = [
    ("SCHED_OTHER", 0),
    ("SCHED_FIFO", 1),
    ("SCHED_RR", 2),
    ("SCHED_BATCH", 3),
    ("SCHED_ISO", 4),
    ("SCHED_IDLE", 5),
    ("SCHED_DEADLINE", 6),
];

/// Of linux/sched.h; with the two that the host's library spells in its own way.
const SCHEDULER_FLAGS: [(&str, u32); 9] = [
    ("SCHED_RESET_ON_FORK", 0x01),
    ("SCHED_FLAG_D_L_OVERRUN", 0x04),
    ("SCHED_FLAG_RESET_ON_FORK", 0x01),
    ("SCHED_FLAG_RECLAIM", 0x02),
    ("SCHED_FLAG_DL_OVERRUN", 0x04),
    ("SCHED_FLAG_KEEP_POLICY", 0x08),
    ("SCHED_FLAG_KEEP_PARAMS", 0x10),
    ("SCHED_FLAG_UTIL_CLAMP_MIN", 0x20),
    ("SCHED_FLAG_UTIL_CLAMP_MAX", 0x40),
];

fn named(field: &str, table: &[(&str, u32)], name: &str) -> Result<u32, Fault> {
    let found = table.iter().find(|(known, _)| *known == name).map(|(_, value)| *value);
    found.ok_or_else(|| invalid(format!("{field} has {name:?}, which does not exist")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_the_specifications() {
        assert_eq!(resource("RLIMIT_NOFILE").unwrap().1, 7);
        assert!(resource("NOFILE").unwrap_err().message.contains("process.rlimits"));
        assert_eq!(named("f", &POLICIES, "SCHED_BATCH").unwrap(), libc::SCHED_BATCH.cast_unsigned());
        assert!(named("f", &POLICIES, "batch").is_err());
    }
}
