//! How large a sandbox's machine is: what its containers may use, and never less than what it was booted with.

use std::cell::RefCell;

use agent_api::Request;
use oci_spec::runtime::{LinuxResources, Spec};
use serde::{Deserialize, Serialize};

use super::Sandbox;
use crate::{Error, Result, plan::Plan};

/// Memory the guest's kernel and agent take beside the containers, MiB.
const GUEST_OVERHEAD_MIB: u64 = 128;

/// Limits from here on are "none" in the words of engines that write the largest number there is, bytes.
const NO_LIMIT: u64 = 1 << 60;

/// What a container may use; 0 is whatever there is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Processor time, thousandths of a CPU.
    pub milli_cpus: u64,
    /// Memory, bytes.
    pub memory: u64,
}

impl Limits {
    /// Those of a configuration.
    pub fn of(spec: &Spec) -> Self {
        let resources = spec.linux().as_ref().and_then(|linux| linux.resources().as_ref());
        resources.map(|resources| Self::default().changed(resources)).unwrap_or_default()
    }

    /// These with what an update says.
    #[must_use]
    pub fn changed(self, resources: &LinuxResources) -> Self {
        let cpu = resources.cpu().as_ref();
        let period = cpu.and_then(|cpu| cpu.period()).filter(|period| *period > 0).unwrap_or(100_000);
        let milli_cpus = match cpu.and_then(|cpu| cpu.quota()) {
            Some(quota) => u64::try_from(quota).map_or(0, |quota| quota.saturating_mul(1000) / period),
            None => self.milli_cpus,
        };
        let memory = match resources.memory().as_ref().and_then(|memory| memory.limit()) {
            Some(limit) => u64::try_from(limit).ok().filter(|limit| *limit < NO_LIMIT).unwrap_or(0),
            None => self.memory,
        };
        Self { milli_cpus, memory }
    }

    /// Refuses more than the host has.
    ///
    /// # Errors
    /// [`Error::State`].
    pub fn check(self) -> Result<()> {
        let host = rustix::system::sysinfo().totalram as u64;
        if self.memory <= host {
            return Ok(());
        }
        Err(Error::State(format!(
            "the memory limit, {} MiB, is more than this host has, {} MiB: a virtual machine cannot be given it; lower the limit",
            self.memory >> 20,
            host >> 20
        )))
    }
}

/// The size of a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Demand {
    /// Virtual CPUs at the start.
    pub vcpus: u32,
    /// Virtual CPUs that it may grow to.
    pub max_vcpus: u32,
    /// Memory at the start, MiB.
    pub memory_mib: u32,
    /// Memory that it may grow to, MiB.
    pub max_memory_mib: u32,
    /// How many devices can be plugged while it runs.
    pub slots: u32,
}

impl Demand {
    /// A machine that is at least as large as configured, and large enough for what is known to come. It never changes.
    pub fn fixed(limits: Limits, config: &config::Qemu) -> Self {
        let (vcpus, memory_mib) = wanted(limits);
        let vcpus = config.default_vcpus.max(vcpus.min(host_cpus()));
        let memory_mib = config.default_memory.max(memory_mib);
        Self { vcpus, max_vcpus: vcpus, memory_mib, max_memory_mib: memory_mib, slots: 0 }
    }

    /// The same, and it may grow and be plugged into as far as the configuration and the machine allow.
    pub fn growing(limits: Limits, plan: &Plan) -> Self {
        let fixed = Self::fixed(limits, &plan.config.qemu);
        let can = hypervisor::Hypervisor::capabilities(&plan.driver());
        if !can.hotplug {
            return fixed;
        }
        let slots = plan.config.qemu.pcie_root_port;
        if plan.config.runtime.static_sandbox_resource_mgmt {
            return Self { slots, ..fixed };
        }
        let max_vcpus = if can.vcpu_hotplug { plan.config.qemu.default_maxvcpus } else { fixed.vcpus };
        Self {
            max_vcpus: fixed.vcpus.max(max_vcpus),
            max_memory_mib: fixed.memory_mib.max(plan.config.qemu.default_maxmemory),
            slots,
            ..fixed
        }
    }
}

fn host_cpus() -> u32 {
    std::thread::available_parallelism().map_or(1, |count| u32::try_from(count.get()).unwrap_or(u32::MAX))
}

/// CPUs, and MiB, for containers that may use so much in all.
fn wanted(limits: Limits) -> (u32, u32) {
    let vcpus = u32::try_from(limits.milli_cpus.div_ceil(1000)).unwrap_or(u32::MAX);
    let memory = match limits.memory {
        0 => 0,
        bytes => u32::try_from(bytes.div_ceil(1 << 20) + GUEST_OVERHEAD_MIB).unwrap_or(u32::MAX),
    };
    (vcpus, memory)
}

/// What the containers of a sandbox may use in all.
#[derive(Debug)]
pub(super) struct Size {
    demand: Demand,
    /// What the guest was last given.
    given: RefCell<(u32, u32)>,
}

impl Size {
    pub(super) fn new(demand: Demand) -> Self {
        Self { demand, given: RefCell::new((demand.vcpus, demand.memory_mib)) }
    }
}

impl Sandbox {
    /// Gives the machine what its containers may use, if it can change, and waits until the guest has it in service.
    ///
    /// # Errors
    /// What the hypervisor or the guest says.
    pub(super) async fn fit(&self) -> Result<()> {
        let _one_at_a_time = self.sizing.lock().await;
        let demand = self.size.demand;
        let total = self.members.borrow().values().fold(Limits::default(), |sum, member| Limits {
            milli_cpus: sum.milli_cpus.saturating_add(member.limits.milli_cpus),
            memory: sum.memory.saturating_add(member.limits.memory),
        });
        let (vcpus, memory) = wanted(total);
        let memory = memory.clamp(demand.memory_mib, demand.max_memory_mib);
        let (had_vcpus, had_memory) = *self.size.given.borrow();
        let vcpus = vcpus.clamp(had_vcpus, demand.max_vcpus.max(had_vcpus));
        if memory != had_memory {
            let got = self.machine.vm().set_memory(memory.into()).await?;
            if got < memory.into() {
                return Err(Error::State(format!(
                    "the guest has {got} MiB of the {memory} MiB that its containers may use: it did not take more"
                )));
            }
        }
        if vcpus != had_vcpus {
            self.machine.vm().set_vcpus(vcpus).await?;
            self.machine.done("bring the guest's CPUs online", &Request::Online { vcpus }).await?;
        }
        *self.size.given.borrow_mut() = (vcpus, memory);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resources(json: serde_json::Value) -> LinuxResources {
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn limits_are_read_and_changed() {
        let limits = Limits::default().changed(&resources(serde_json::json!({
            "cpu": {"quota": 150_000, "period": 100_000}, "memory": {"limit": 64 << 20}
        })));
        assert_eq!(limits, Limits { milli_cpus: 1500, memory: 64 << 20 });
        assert_eq!(wanted(limits), (2, 64 + 128));
        let limits = limits.changed(&resources(serde_json::json!({"cpu": {"quota": -1}})));
        assert_eq!(limits, Limits { milli_cpus: 0, memory: 64 << 20 });
        let limits =
            limits.changed(&resources(serde_json::json!({"memory": {"limit": 9_223_372_036_854_771_712_i64}})));
        assert_eq!(limits, Limits::default());
        assert_eq!(wanted(limits), (0, 0));
    }

    #[test]
    fn more_than_the_host_has_is_refused() {
        Limits { milli_cpus: 1_000_000, memory: 1 << 20 }.check().unwrap();
        let error = Limits { milli_cpus: 0, memory: 1 << 58 }.check().unwrap_err().to_string();
        assert!(error.contains("more than this host has"), "{error}");
    }

    #[test]
    fn a_machine_is_as_large_as_configured_or_as_needed() {
        let config = config::Qemu { default_memory: 256, ..config::Qemu::default() };
        let fixed = Demand::fixed(Limits::default(), &config);
        assert_eq!((fixed.vcpus, fixed.memory_mib, fixed.max_memory_mib), (1, 256, 256));
        let fixed = Demand::fixed(Limits { milli_cpus: 0, memory: 512 << 20 }, &config);
        assert_eq!(fixed.memory_mib, 512 + 128);
    }
}
