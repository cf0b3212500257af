//! `features`: what this runtime can do, in the form of the OCI runtime specification's `features.md`.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::{Error, Result, go};

/// Attributes of mounts that the agent sets. Each exists with an `r` in front too, for the mounts below.
const MOUNT_ATTRIBUTES: [&str; 17] = [
    "atime",
    "dev",
    "diratime",
    "exec",
    "noatime",
    "nodev",
    "nodiratime",
    "noexec",
    "norelatime",
    "nostrictatime",
    "nosuid",
    "nosymfollow",
    "relatime",
    "ro",
    "rw",
    "strictatime",
    "suid",
];
/// The other options it knows.
const MOUNT_OPTIONS: [&str; 23] = [
    "acl",
    "async",
    "bind",
    "defaults",
    "loud",
    "noacl",
    "noiversion",
    "nolazytime",
    "nomand",
    "private",
    "rbind",
    "remount",
    "rprivate",
    "rshared",
    "rslave",
    "rsymfollow",
    "runbindable",
    "shared",
    "silent",
    "slave",
    "symfollow",
    "tmpcopyup",
    "unbindable",
];
const CAPABILITIES: &[&str] = &[
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
];

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Features {
    oci_version_min: &'static str,
    oci_version_max: &'static str,
    hooks: [&'static str; 0],
    mount_options: Vec<String>,
    linux: Linux,
    annotations: BTreeMap<&'static str, &'static str>,
}

#[derive(Serialize)]
struct Linux {
    namespaces: [&'static str; 7],
    capabilities: &'static [&'static str],
    cgroup: Cgroup,
    seccomp: Seccomp,
    apparmor: Enabled,
    selinux: Enabled,
}

/// Of the guest; the host may have either.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Cgroup {
    v1: bool,
    v2: bool,
    systemd: bool,
    systemd_user: bool,
}

#[derive(Serialize)]
struct Enabled {
    enabled: bool,
}

#[derive(Serialize)]
struct Seccomp {
    enabled: bool,
    actions: [&'static str; 8],
    operators: [&'static str; 7],
    archs: [&'static str; 10],
}

/// What is printed.
///
/// # Errors
/// None that can happen.
pub(crate) fn text() -> Result<String> {
    let mut mount_options: Vec<String> = MOUNT_OPTIONS.map(Into::into).to_vec();
    for attribute in MOUNT_ATTRIBUTES {
        mount_options.extend([attribute.to_owned(), format!("r{attribute}")]);
    }
    mount_options.sort();
    let features = Features {
        oci_version_min: "1.0.0",
        oci_version_max: oci_spec::runtime::VERSION,
        hooks: [],
        mount_options,
        linux: Linux {
            namespaces: ["cgroup", "ipc", "mount", "network", "pid", "user", "uts"],
            capabilities: CAPABILITIES,
            cgroup: Cgroup { v1: false, v2: true, systemd: true, systemd_user: true },
            seccomp: Seccomp {
                enabled: true,
                actions: [
                    "SCMP_ACT_ALLOW",
                    "SCMP_ACT_ERRNO",
                    "SCMP_ACT_KILL",
                    "SCMP_ACT_KILL_PROCESS",
                    "SCMP_ACT_KILL_THREAD",
                    "SCMP_ACT_LOG",
                    "SCMP_ACT_TRACE",
                    "SCMP_ACT_TRAP",
                ],
                operators: [
                    "SCMP_CMP_EQ",
                    "SCMP_CMP_GE",
                    "SCMP_CMP_GT",
                    "SCMP_CMP_LE",
                    "SCMP_CMP_LT",
                    "SCMP_CMP_MASKED_EQ",
                    "SCMP_CMP_NE",
                ],
                archs: [
                    "SCMP_ARCH_AARCH64",
                    "SCMP_ARCH_ARM",
                    "SCMP_ARCH_NATIVE",
                    "SCMP_ARCH_PPC64LE",
                    "SCMP_ARCH_RISCV64",
                    "SCMP_ARCH_S390",
                    "SCMP_ARCH_S390X",
                    "SCMP_ARCH_X32",
                    "SCMP_ARCH_X86",
                    "SCMP_ARCH_X86_64",
                ],
            },
            apparmor: Enabled { enabled: false },
            selinux: Enabled { enabled: false },
        },
        annotations: BTreeMap::from([
            ("io.katacontainers.runtime.version", env!("CARGO_PKG_VERSION")),
            ("org.opencontainers.runc.checkpoint.enabled", "false"),
        ]),
    };
    let text = go::json_indented(&features, "    ").map_err(|e| Error::io("write the features as JSON", e))?;
    Ok(text + "\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_features_are_what_the_specification_calls_features() {
        let features: oci_spec::runtime::Features = serde_json::from_str(&text().unwrap()).unwrap();
        assert_eq!(features.oci_version_min(), "1.0.0");
        let options = features.mount_options().as_ref().unwrap();
        assert!(options.contains(&"rro".to_owned()) && options.is_sorted());
        assert_eq!(features.linux().as_ref().unwrap().capabilities().as_ref().unwrap().len(), 41);
    }
}
