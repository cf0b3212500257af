//! Kernel parameters of a container.
//!
//! Those of namespaces are written by the container's first process, in its namespaces. Those of the network are the pod's and
//! are written by the agent, because a container in a user namespace of its own does not own the network.

use std::collections::BTreeMap;

use agent_api::Fault;

use crate::fault::{Context, invalid};

/// Whether a parameter is of the network.
fn is_network(key: &str) -> bool {
    key.starts_with("net.") || key.starts_with("net/")
}

/// Writes the parameters of the network, or all the others.
///
/// # Errors
/// When a name is none, or the kernel refuses a value.
pub fn write(sysctls: &BTreeMap<String, String>, network: bool) -> Result<(), Fault> {
    for (key, value) in sysctls.iter().filter(|(key, _)| is_network(key) == network) {
        let path = path(key)?;
        std::fs::write(&path, value).context(|| format!("write {path}"))?;
    }
    Ok(())
}

/// Checks the names.
///
/// # Errors
/// When one is none.
pub fn check(sysctls: &BTreeMap<String, String>) -> Result<(), Fault> {
    sysctls.keys().try_for_each(|key| path(key).map(drop))
}

/// The file of a parameter. As in sysctl(8), the first separator says which of `.` and `/` separates; the other one is part of
/// a name.
fn path(key: &str) -> Result<String, Fault> {
    let slashes = key.find(['.', '/']).is_some_and(|at| key[at..].starts_with('/'));
    let path: String = if slashes {
        key.to_owned()
    } else {
        key.chars()
            .map(|c| {
                if c == '.' {
                    '/'
                } else if c == '/' {
                    '.'
                } else {
                    c
                }
            })
            .collect()
    };
    if path.split('/').any(|name| name.is_empty() || name == "." || name == "..") {
        return Err(invalid(format!("linux.sysctl has {key:?}, expected a name such as \"kernel.msgmax\"")));
    }
    Ok(format!("/proc/sys/{path}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_paths() {
        assert_eq!(path("net.ipv4.ip_forward").unwrap(), "/proc/sys/net/ipv4/ip_forward");
        assert_eq!(path("net.ipv4.conf.eth0/1.forwarding").unwrap(), "/proc/sys/net/ipv4/conf/eth0.1/forwarding");
        assert_eq!(path("net/ipv4/conf/eth0.1/forwarding").unwrap(), "/proc/sys/net/ipv4/conf/eth0.1/forwarding");
        assert!(path("kernel..x").is_err());
        assert!(path("a/../../b").is_err());
    }

    #[test]
    fn the_network_is_told_apart() {
        assert!(is_network("net.core.somaxconn") && is_network("net/core/somaxconn"));
        assert!(!is_network("kernel.shmmax") && !is_network("network.x"));
    }
}
