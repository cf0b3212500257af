//! The capabilities of a container's process.

use agent_api::Fault;
use oci_spec::runtime::{Capabilities, LinuxCapabilities};
use rustix::thread::{
    CapabilitySet, CapabilitySets, configure_capability_in_ambient_set, remove_capability_from_bounding_set,
    set_capabilities,
};

use crate::fault::Context;

/// The five sets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sets {
    bounding: CapabilitySet,
    effective: CapabilitySet,
    permitted: CapabilitySet,
    inheritable: CapabilitySet,
    ambient: CapabilitySet,
}

impl Sets {
    /// The sets of a process; without a `capabilities` object they are empty, as with runc.
    pub fn new(spec: Option<&LinuxCapabilities>) -> Self {
        let set = |get: fn(&LinuxCapabilities) -> &Option<Capabilities>| {
            spec.and_then(|spec| get(spec).as_ref()).map_or(CapabilitySet::empty(), bits)
        };
        Self {
            bounding: set(LinuxCapabilities::bounding),
            effective: set(LinuxCapabilities::effective),
            permitted: set(LinuxCapabilities::permitted),
            inheritable: set(LinuxCapabilities::inheritable),
            ambient: set(LinuxCapabilities::ambient),
        }
    }

    /// Gives up what is not in the bounding set for ever. Needs CAP_SETPCAP, so it is done while the process is root.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn limit(&self) -> Result<(), Fault> {
        for bit in 0..u64::BITS {
            let one = CapabilitySet::from_bits_retain(1 << bit);
            if self.bounding.contains(one) {
                continue;
            }
            match remove_capability_from_bounding_set(one) {
                Ok(()) => {}
                // Beyond the last one that this kernel knows.
                Err(rustix::io::Errno::INVAL) => break,
                Err(error) => {
                    return Err(error).context(|| "unable to apply bounding set".into());
                }
            }
        }
        Ok(())
    }

    /// Sets the others, once the process is the user it is to be.
    ///
    /// # Errors
    /// When the kernel refuses: the process asks for more than the agent, or its user namespace, has.
    pub fn apply(&self) -> Result<(), Fault> {
        let sets =
            CapabilitySets { effective: self.effective, permitted: self.permitted, inheritable: self.inheritable };
        set_capabilities(None, sets).context(|| "unable to apply caps".into())?;
        for one in self.ambient.iter() {
            // runc only warns when one that is not permitted or inheritable is to be ambient.
            let _ = configure_capability_in_ambient_set(one, true);
        }
        Ok(())
    }
}

fn bits(capabilities: &Capabilities) -> CapabilitySet {
    use oci_spec::runtime::Capability as C;
    capabilities.iter().fold(CapabilitySet::empty(), |set, capability| {
        set | match capability {
            C::AuditControl => CapabilitySet::AUDIT_CONTROL,
            C::AuditRead => CapabilitySet::AUDIT_READ,
            C::AuditWrite => CapabilitySet::AUDIT_WRITE,
            C::BlockSuspend => CapabilitySet::BLOCK_SUSPEND,
            C::Bpf => CapabilitySet::BPF,
            C::CheckpointRestore => CapabilitySet::CHECKPOINT_RESTORE,
            C::Chown => CapabilitySet::CHOWN,
            C::DacOverride => CapabilitySet::DAC_OVERRIDE,
            C::DacReadSearch => CapabilitySet::DAC_READ_SEARCH,
            C::Fowner => CapabilitySet::FOWNER,
            C::Fsetid => CapabilitySet::FSETID,
            C::IpcLock => CapabilitySet::IPC_LOCK,
            C::IpcOwner => CapabilitySet::IPC_OWNER,
            C::Kill => CapabilitySet::KILL,
            C::Lease => CapabilitySet::LEASE,
            C::LinuxImmutable => CapabilitySet::LINUX_IMMUTABLE,
            C::MacAdmin => CapabilitySet::MAC_ADMIN,
            C::MacOverride => CapabilitySet::MAC_OVERRIDE,
            C::Mknod => CapabilitySet::MKNOD,
            C::NetAdmin => CapabilitySet::NET_ADMIN,
            C::NetBindService => CapabilitySet::NET_BIND_SERVICE,
            C::NetBroadcast => CapabilitySet::NET_BROADCAST,
            C::NetRaw => CapabilitySet::NET_RAW,
            C::Perfmon => CapabilitySet::PERFMON,
            C::Setgid => CapabilitySet::SETGID,
            C::Setfcap => CapabilitySet::SETFCAP,
            C::Setpcap => CapabilitySet::SETPCAP,
            C::Setuid => CapabilitySet::SETUID,
            C::SysAdmin => CapabilitySet::SYS_ADMIN,
            C::SysBoot => CapabilitySet::SYS_BOOT,
            C::SysChroot => CapabilitySet::SYS_CHROOT,
            C::SysModule => CapabilitySet::SYS_MODULE,
            C::SysNice => CapabilitySet::SYS_NICE,
            C::SysPacct => CapabilitySet::SYS_PACCT,
            C::SysPtrace => CapabilitySet::SYS_PTRACE,
            C::SysRawio => CapabilitySet::SYS_RAWIO,
            C::SysResource => CapabilitySet::SYS_RESOURCE,
            C::SysTime => CapabilitySet::SYS_TIME,
            C::SysTtyConfig => CapabilitySet::SYS_TTY_CONFIG,
            C::Syslog => CapabilitySet::SYSLOG,
            C::WakeAlarm => CapabilitySet::WAKE_ALARM,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_the_kernels_bits() {
        let spec: LinuxCapabilities = serde_json::from_str(
            r#"{"bounding":["CAP_AUDIT_WRITE","CAP_KILL","CAP_NET_BIND_SERVICE"],"ambient":["CAP_CHECKPOINT_RESTORE"]}"#,
        )
        .unwrap();
        let sets = Sets::new(Some(&spec));
        // What /proc/self/status shows as CapBnd for runc's default specification.
        assert_eq!(sets.bounding.bits(), 0x2000_0420);
        assert_eq!(sets.ambient.bits(), 1 << 40);
        assert!(sets.effective.is_empty());
        assert!(Sets::new(None).bounding.is_empty());
    }
}
