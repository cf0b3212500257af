//! Resource limits, out-of-memory score and scheduling of a process.

use agent_api::Fault;
use oci_spec::runtime::{
    IOPriorityClass, LinuxSchedulerFlag, LinuxSchedulerPolicy, PosixRlimit, PosixRlimitType, Process,
};
use rustix::process::{Pid, Resource, Rlimit, prlimit};

use crate::fault::{Context, invalid};
use crate::sys::{SchedAttr, set_io_priority, set_scheduler};

/// What has to be set with the agent's rights: of this process, or of another one that has given them up already.
///
/// # Errors
/// When the kernel refuses a value.
pub fn apply(process: &Process, pid: Option<u32>) -> Result<(), Fault> {
    for limit in process.rlimits().iter().flatten() {
        set_limit(limit, pid)?;
    }
    if let Some(score) = process.oom_score_adj() {
        let path = pid.map_or("/proc/self/oom_score_adj".to_owned(), |pid| format!("/proc/{pid}/oom_score_adj"));
        std::fs::write(&path, score.to_string()).context(|| format!("write {path}"))?;
    }
    Ok(())
}

fn set_limit(limit: &PosixRlimit, pid: Option<u32>) -> Result<(), Fault> {
    let pid = pid.and_then(|pid| Pid::from_raw(pid.cast_signed()));
    // All ones is "unlimited", which rustix calls `None`.
    let value = |number: u64| (number != u64::MAX).then_some(number);
    let (resource, number) = resource(limit.typ());
    let wanted = Rlimit { current: value(limit.soft()), maximum: value(limit.hard()) };
    prlimit(pid, resource, wanted)
        .context(|| format!("error setting rlimits for process: error setting rlimit type {number}"))
        .map(drop)
}

/// A limit as the kernel calls it, and its number.
fn resource(name: PosixRlimitType) -> (Resource, u32) {
    use PosixRlimitType as T;
    match name {
        T::RlimitCpu => (Resource::Cpu, libc::RLIMIT_CPU),
        T::RlimitFsize => (Resource::Fsize, libc::RLIMIT_FSIZE),
        T::RlimitData => (Resource::Data, libc::RLIMIT_DATA),
        T::RlimitStack => (Resource::Stack, libc::RLIMIT_STACK),
        T::RlimitCore => (Resource::Core, libc::RLIMIT_CORE),
        T::RlimitRss => (Resource::Rss, libc::RLIMIT_RSS),
        T::RlimitNproc => (Resource::Nproc, libc::RLIMIT_NPROC),
        T::RlimitNofile => (Resource::Nofile, libc::RLIMIT_NOFILE),
        T::RlimitMemlock => (Resource::Memlock, libc::RLIMIT_MEMLOCK),
        T::RlimitAs => (Resource::As, libc::RLIMIT_AS),
        T::RlimitLocks => (Resource::Locks, libc::RLIMIT_LOCKS),
        T::RlimitSigpending => (Resource::Sigpending, libc::RLIMIT_SIGPENDING),
        T::RlimitMsgqueue => (Resource::Msgqueue, libc::RLIMIT_MSGQUEUE),
        T::RlimitNice => (Resource::Nice, libc::RLIMIT_NICE),
        T::RlimitRtprio => (Resource::Rtprio, libc::RLIMIT_RTPRIO),
        T::RlimitRttime => (Resource::Rttime, libc::RLIMIT_RTTIME),
    }
}

/// Sets the scheduling policy and the I/O priority of this process, where the specification has them.
///
/// # Errors
/// When the kernel refuses a value.
pub fn schedule(process: &Process) -> Result<(), Fault> {
    if let Some(priority) = process.io_priority() {
        let class = match priority.class() {
            IOPriorityClass::IoprioClassRt => 1,
            IOPriorityClass::IoprioClassBe => 2,
            IOPriorityClass::IoprioClassIdle => 3,
        };
        let level = u32::try_from(priority.priority()).ok().filter(|&level| level < 8).ok_or_else(|| {
            invalid(format!("process.ioPriority.priority is {}, expected 0 to 7", priority.priority()))
        })?;
        set_io_priority(class, level).context(|| "setting the I/O priority".into())?;
    }
    let Some(scheduler) = process.scheduler() else { return Ok(()) };
    let policy = match scheduler.policy() {
        LinuxSchedulerPolicy::SchedOther => libc::SCHED_OTHER,
        LinuxSchedulerPolicy::SchedFifo => libc::SCHED_FIFO,
        LinuxSchedulerPolicy::SchedRr => libc::SCHED_RR,
        LinuxSchedulerPolicy::SchedBatch => libc::SCHED_BATCH,
        LinuxSchedulerPolicy::SchedIso => 4,
        LinuxSchedulerPolicy::SchedIdle => libc::SCHED_IDLE,
        LinuxSchedulerPolicy::SchedDeadline => libc::SCHED_DEADLINE,
    };
    let flags = scheduler.flags().iter().flatten().fold(0, |flags, flag| flags | scheduler_flag(*flag));
    set_scheduler(SchedAttr {
        policy: policy.cast_unsigned(),
        flags,
        nice: scheduler.nice().unwrap_or(0),
        priority: scheduler.priority().unwrap_or(0).max(0).cast_unsigned(),
        runtime: scheduler.runtime().unwrap_or(0),
        deadline: scheduler.deadline().unwrap_or(0),
        period: scheduler.period().unwrap_or(0),
        ..SchedAttr::default()
    })
    .context(|| "setting the scheduler".into())
}

fn scheduler_flag(flag: LinuxSchedulerFlag) -> u64 {
    (match flag {
        LinuxSchedulerFlag::SchedResetOnFork => libc::SCHED_FLAG_RESET_ON_FORK,
        LinuxSchedulerFlag::SchedFlagReclaim => libc::SCHED_FLAG_RECLAIM,
        LinuxSchedulerFlag::SchedFlagDLOverrun => libc::SCHED_FLAG_DL_OVERRUN,
        LinuxSchedulerFlag::SchedFlagKeepPolicy => libc::SCHED_FLAG_KEEP_POLICY,
        LinuxSchedulerFlag::SchedFlagKeepParams => libc::SCHED_FLAG_KEEP_PARAMS,
        LinuxSchedulerFlag::SchedFlagUtilClampMin => libc::SCHED_FLAG_UTIL_CLAMP_MIN,
        LinuxSchedulerFlag::SchedFlagUtilClampMax => libc::SCHED_FLAG_UTIL_CLAMP_MAX,
    }) as u64
}
