//! The capabilities of a container's process.

use agent_api::Fault;
use rustix::thread::{
    CapabilitySet, CapabilitySets, configure_capability_in_ambient_set, remove_capability_from_bounding_set,
    set_capabilities,
};

use crate::fault::{Context, invalid};
use crate::spec::Capabilities;

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
    ///
    /// # Errors
    /// For a name that is none.
    pub fn new(spec: Option<&Capabilities>) -> Result<Self, Fault> {
        let none = Capabilities::default();
        let spec = spec.unwrap_or(&none);
        Ok(Self {
            bounding: bits(&spec.bounding)?,
            effective: bits(&spec.effective)?,
            permitted: bits(&spec.permitted)?,
            inheritable: bits(&spec.inheritable)?,
            ambient: bits(&spec.ambient)?,
        })
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

/// Has this process lose every capability once it is no longer root, and never gain one again.
///
/// # Errors
/// When the kernel refuses.
pub fn limit_to_none() -> Result<(), Fault> {
    Sets::new(None)?.limit()
}

/// Names without `CAP_`; the place is the number (capabilities(7), linux/capability.h).
const NAMES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

fn bits(names: &[String]) -> Result<CapabilitySet, Fault> {
    names.iter().try_fold(CapabilitySet::empty(), |set, given| {
        let name = given.to_ascii_uppercase();
        let name = name.strip_prefix("CAP_").unwrap_or(&name);
        let number = NAMES.iter().position(|known| *known == name);
        let number =
            number.ok_or_else(|| invalid(format!("process.capabilities has {given:?}, which does not exist")))?;
        Ok(set | CapabilitySet::from_bits_retain(1 << number))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_the_kernels_bits() {
        let spec: Capabilities = serde_json::from_str(
            r#"{"bounding":["CAP_AUDIT_WRITE","CAP_KILL","CAP_NET_BIND_SERVICE"],"ambient":["CAP_CHECKPOINT_RESTORE"]}"#,
        )
        .unwrap();
        let sets = Sets::new(Some(&spec)).unwrap();
        // What /proc/self/status shows as CapBnd for runc's default specification.
        assert_eq!(sets.bounding.bits(), 0x2000_0420);
        assert_eq!(sets.ambient.bits(), 1 << 40);
        assert!(sets.effective.is_empty());
        assert_eq!(bits(&["chown".into(), "cap_syslog".into()]).unwrap(), CapabilitySet::CHOWN | CapabilitySet::SYSLOG);
        assert!(bits(&["CAP_NOPE".into()]).unwrap_err().message.contains("CAP_NOPE"));
        assert!(Sets::new(None).unwrap().bounding.is_empty());
    }
}
