//! On which of the host's processors a sandbox runs.
//!
//! A container's `cpuset` names processors of the host, of which the guest knows nothing. So the guest is not told, and the machine is kept to
//! what all its containers may use together: Kubernetes' CPU manager and `docker run --cpuset-cpus` get what they ask for.

use std::{cell::RefCell, collections::BTreeSet, fs};

use oci_spec::runtime::LinuxResources;
use rustix::{
    process::Pid,
    thread::{CpuSet, sched_getaffinity, sched_setaffinity},
};
use serde::{Deserialize, Serialize};

use super::Sandbox;
use crate::{Error, Result};

/// The processors that are in service.
const ONLINE: &str = "/sys/devices/system/cpu/online";
/// How often a process's threads are listed anew, since one of them may have started another meanwhile.
const PASSES: u32 = 5;

/// Processors of the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct HostCpus(BTreeSet<usize>);

impl HostCpus {
    /// Takes the processors and memory nodes of the host out of what the guest is told. Nothing means that any will do. Nodes are not
    /// honoured: the machine's memory is there before its containers are.
    ///
    /// # Errors
    /// What is wrong with `linux.resources.cpu.cpus`.
    pub(crate) fn take(resources: &mut LinuxResources) -> std::result::Result<Option<Self>, String> {
        let Some(cpu) = resources.cpu_mut() else { return Ok(None) };
        let cpus = cpu.cpus().clone().filter(|list| !list.trim().is_empty());
        cpu.set_cpus(None);
        cpu.set_mems(None);
        let Some(list) = cpus else { return Ok(None) };
        let online = fs::read_to_string(ONLINE).map_err(|e| format!("cannot be checked: read {ONLINE}: {e}"))?;
        Self::read(&list, online.trim()).map(Some)
    }

    fn read(list: &str, online: &str) -> std::result::Result<Self, String> {
        let wanted = parse(list)
            .ok_or_else(|| format!("is {list:?}; numbers of processors and ranges are expected, such as 0-2,7"))?;
        let has = parse(online).unwrap_or_default();
        match wanted.difference(&has).next() {
            None => Ok(Self(wanted)),
            Some(missing) => Err(format!("names processor {missing}, but this host has {online}")),
        }
    }
}

/// A list as in cpuset(7).
fn parse(list: &str) -> Option<BTreeSet<usize>> {
    let mut cpus = BTreeSet::new();
    for part in list.split(',') {
        let (first, last) = part.trim().split_once('-').unwrap_or((part.trim(), part.trim()));
        let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
        if first > last || last >= CpuSet::MAX_CPU {
            return None;
        }
        cpus.extend(first..=last);
    }
    Some(cpus)
}

/// Where the machine runs.
#[derive(Debug, Default)]
pub(super) struct Pinning(RefCell<Option<BTreeSet<usize>>>);

impl Sandbox {
    /// Keeps the machine to the processors that its containers may use.
    ///
    /// # Errors
    /// What the kernel says, e.g. that the sandbox's control group has none of them.
    pub(super) fn pin(&self) -> Result<()> {
        let wanted = self.wanted_cpus();
        if *self.pinning.0.borrow() == wanted {
            return Ok(());
        }
        let set = match &wanted {
            Some(cpus) => cpus.iter().fold(CpuSet::new(), |mut set, cpu| {
                set.set(*cpu);
                set
            }),
            // This process is never pinned itself.
            None => sched_getaffinity(None).map_err(|e| Error::io("ask for the own processors", e))?,
        };
        let state = self.journal.state();
        for process in [state.vmm, state.virtiofs].into_iter().flatten() {
            pin_process(process.pid, &set)?;
        }
        *self.pinning.0.borrow_mut() = wanted;
        Ok(())
    }

    /// Changes where a container may run. It stays where it is if that cannot be.
    pub(super) fn pin_member(&self, container: &str, cpus: Option<HostCpus>) -> Result<()> {
        let set = |cpus| {
            let mut members = self.members.borrow_mut();
            members.get_mut(container).and_then(|member| std::mem::replace(&mut member.cpus, cpus))
        };
        let had = set(cpus);
        let pinned = self.pin();
        if pinned.is_err() {
            set(had);
        }
        pinned
    }

    /// Nothing unless every container is kept to some. A pod's sandbox container runs nothing.
    fn wanted_cpus(&self) -> Option<BTreeSet<usize>> {
        let members = self.members.borrow();
        let running: Vec<_> = members.values().filter(|member| member.pause.is_none()).collect();
        let sets: Option<Vec<_>> = running.iter().map(|member| member.cpus.as_ref()).collect();
        let all: BTreeSet<usize> = sets?.into_iter().flat_map(|cpus| cpus.0.iter().copied()).collect();
        (!all.is_empty()).then_some(all)
    }
}

fn pin_process(pid: u32, set: &CpuSet) -> Result<()> {
    let mut pinned = BTreeSet::new();
    for _ in 0..PASSES {
        let threads = threads(pid);
        let new: Vec<i32> = threads.difference(&pinned).copied().collect();
        if new.is_empty() {
            break;
        }
        for thread in new {
            match sched_setaffinity(Pid::from_raw(thread), set) {
                // It has ended.
                Ok(()) | Err(rustix::io::Errno::SRCH) => {}
                Err(error) => return Err(Error::io("keep the machine to linux.resources.cpu.cpus", error)),
            }
            pinned.insert(thread);
        }
    }
    Ok(())
}

fn threads(pid: u32) -> BTreeSet<i32> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    tasks.filter_map(|task| task.file_name().to_str()?.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_those_of_the_kernel() {
        assert_eq!(parse("0-2,7"), Some([0, 1, 2, 7].into()));
        assert_eq!(parse("3"), Some([3].into()));
        for bad in ["", "a", "2-1", "1,", "0-1024", "-1"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn the_guest_is_not_told_and_the_host_must_have_them() {
        let mut resources: LinuxResources =
            serde_json::from_value(serde_json::json!({"cpu": {"cpus": "0", "mems": "0", "shares": 2}})).unwrap();
        assert_eq!(HostCpus::take(&mut resources).unwrap(), Some(HostCpus([0].into())));
        let cpu = resources.cpu().as_ref().unwrap();
        assert_eq!((cpu.cpus(), cpu.mems(), cpu.shares()), (&None, &None, Some(2)));
        assert_eq!(HostCpus::take(&mut resources).unwrap(), None);
        let missing = HostCpus::read("1,5", "0-3").unwrap_err();
        assert!(missing.contains("processor 5") && missing.contains("0-3"), "{missing}");
    }

    #[test]
    fn every_thread_of_a_process_is_kept_there() {
        let own = sched_getaffinity(None).unwrap();
        let first = (0..CpuSet::MAX_CPU).find(|cpu| own.is_set(*cpu)).unwrap();
        let mut set = CpuSet::new();
        set.set(first);
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        pin_process(child.id(), &set).unwrap();
        let got = sched_getaffinity(Pid::from_raw(child.id() as i32)).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!((got.count(), got.is_set(first)), (1, true));
    }
}
