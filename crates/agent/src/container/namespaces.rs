//! Which namespaces a container has of its own.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::rc::Rc;

use agent_api::{CONTAINER_NAMESPACE, Fault, POD_NAMESPACE};
use rustix::fs::{Mode, OFlags};
use rustix::thread::{ThreadNameSpaceType, move_into_thread_name_spaces};

use crate::fault::{Context, invalid};
use crate::spec::{IdMapping, Linux};

/// A container's namespaces.
///
/// The mount namespace is always its own. The network is always the guest's first namespace, which is the pod's: what the
/// specification asks for, the host has done already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Namespaces {
    /// Flags for clone(2).
    pub clone_flags: u64,
    /// Process ids.
    pub pid: bool,
    /// Users and groups.
    pub user: bool,
    /// Host name.
    pub uts: bool,
    /// Control groups; entered once the process is in its own.
    pub cgroup: bool,
    /// Clocks.
    pub time: bool,
    /// Those that are the pod's.
    pub shared: Shared,
}

/// Which namespaces of the pod a container shares.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Shared {
    /// Process ids.
    pub pid: bool,
    /// Host name.
    pub uts: bool,
    /// IPC.
    pub ipc: bool,
}

/// Namespaces that a child is to be born into.
#[derive(Default)]
pub struct Join {
    /// Process ids.
    pub pid: Option<Rc<OwnedFd>>,
    /// Host name.
    pub uts: Option<Rc<OwnedFd>>,
    /// IPC.
    pub ipc: Option<Rc<OwnedFd>>,
}

impl Namespaces {
    /// Those of a specification.
    ///
    /// # Errors
    /// For a namespace that is to be joined by path: there is none of the host's in a guest.
    pub fn new(linux: &Linux) -> Result<Self, Fault> {
        let mut all = Self {
            clone_flags: libc::CLONE_NEWNS as u64,
            pid: false,
            user: false,
            uts: false,
            cgroup: false,
            time: false,
            shared: Shared::default(),
        };
        for namespace in &linux.namespaces {
            let kind = namespace.kind.as_str();
            if kind == "network" {
                continue;
            }
            if let Some(path) = namespace.path.as_ref().filter(|path| !path.as_os_str().is_empty()) {
                all.share(kind, path)?;
                continue;
            }
            let flag = match kind {
                "mount" => 0,
                "ipc" => libc::CLONE_NEWIPC,
                "pid" => {
                    all.pid = true;
                    libc::CLONE_NEWPID
                }
                "user" => {
                    all.user = true;
                    libc::CLONE_NEWUSER
                }
                "uts" => {
                    all.uts = true;
                    libc::CLONE_NEWUTS
                }
                "cgroup" => {
                    all.cgroup = true;
                    0
                }
                "time" => {
                    all.time = true;
                    0
                }
                _ => {
                    return Err(invalid(format!(
                        "linux.namespaces has the type {kind:?}, expected one of mount, pid, ipc, uts, user, cgroup, time and network"
                    )));
                }
            };
            all.clone_flags |= flag as u64;
        }
        Ok(all)
    }

    /// Takes a namespace of the pod.
    fn share(&mut self, kind: &str, path: &Path) -> Result<(), Fault> {
        match kind {
            _ if path != Path::new(POD_NAMESPACE) && container_of(path).is_none() => {
                return Err(invalid(format!(
                    "linux.namespaces has the {kind} namespace {}, which is the host's; expected none with a path",
                    path.display()
                )));
            }
            "pid" => self.shared.pid = true,
            "ipc" => self.shared.ipc = true,
            "uts" => {
                // As with runc, a host name in the specification then is one for the pod.
                self.uts = true;
                self.shared.uts = true;
            }
            _ => {
                return Err(invalid(format!(
                    "linux.namespaces has the pod's {kind} namespace or another container's, expected only pid, ipc and uts to be the pod's"
                )));
            }
        }
        Ok(())
    }

    /// Whether processes of the container have numbers of their own, its own or the pod's.
    pub fn has_pids(self) -> bool {
        self.pid || self.shared.pid
    }

    /// What a further process has to join, besides that of process ids, which is entered by forking.
    pub fn to_join(self) -> ThreadNameSpaceType {
        let mut join = ThreadNameSpaceType::MOUNT
            | ThreadNameSpaceType::INTER_PROCESS_COMMUNICATION
            | ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME
            | ThreadNameSpaceType::CONTROL_GROUP;
        if self.user {
            join |= ThreadNameSpaceType::USER;
        }
        if self.time {
            join |= ThreadNameSpaceType::TIME;
        }
        join
    }
}

/// The container whose namespace of a kind another one is to have, if it is to have any container's.
pub fn owner<'a>(linux: &'a Linux, kind: &str) -> Option<&'a str> {
    let found = linux.namespaces.iter().find(|namespace| namespace.kind == kind)?;
    container_of(found.path.as_deref()?)
}

fn container_of(path: &Path) -> Option<&str> {
    path.to_str()?.strip_prefix(CONTAINER_NAMESPACE)
}

/// Says which users and groups of the guest those of a process's user namespace are.
///
/// # Errors
/// When there is no mapping or the kernel refuses it.
pub fn map_ids(pid: u32, linux: &Linux) -> Result<(), Fault> {
    for (file, mappings) in [("uid_map", &linux.uid_mappings), ("gid_map", &linux.gid_mappings)] {
        let text = mapping_lines(mappings);
        if text.is_empty() {
            return Err(invalid(format!(
                "linux.namespaces has a user namespace, expected linux.{} to map at least one id",
                if file == "uid_map" { "uidMappings" } else { "gidMappings" }
            )));
        }
        let path = format!("/proc/{pid}/{file}");
        std::fs::write(&path, &text).context(|| format!("write {:?} to {path}", text.trim_end()))?;
    }
    Ok(())
}

fn mapping_lines(mappings: &[IdMapping]) -> String {
    mappings.iter().map(|m| format!("{} {} {}\n", m.container_id, m.host_id, m.size)).collect()
}

/// The agent's own namespaces, to come back to after a child was forked into others.
pub struct Own {
    pid: OwnedFd,
    uts: OwnedFd,
    ipc: OwnedFd,
    time: Option<OwnedFd>,
}

impl Own {
    /// Opens them.
    ///
    /// # Errors
    /// When /proc is not mounted.
    pub fn open() -> std::io::Result<Self> {
        let open = |name| rustix::fs::open(name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
        // A kernel may have been built without time namespaces.
        Ok(Self {
            pid: open("/proc/self/ns/pid")?,
            uts: open("/proc/self/ns/uts")?,
            ipc: open("/proc/self/ns/ipc")?,
            time: open("/proc/self/ns/time").ok(),
        })
    }

    /// Runs `fork` such that a child is born into the pid namespace of the process that `pidfd` stands for.
    ///
    /// # Errors
    /// When that process is gone, or `fork`'s.
    pub fn forked_into<T>(&self, pidfd: &OwnedFd, fork: impl FnOnce() -> std::io::Result<T>) -> std::io::Result<T> {
        move_into_thread_name_spaces(pidfd.as_fd(), ThreadNameSpaceType::PROCESS_ID)?;
        let forked = fork();
        move_into_thread_name_spaces(self.pid.as_fd(), ThreadNameSpaceType::PROCESS_ID)?;
        forked
    }

    /// Runs `fork` such that a child is born into namespaces of the pod. Entered before the fork, because a child with a user
    /// namespace of its own would have no right to.
    ///
    /// # Errors
    /// When one does not exist any more, or `fork`'s.
    pub fn forked_joining<T>(&self, join: &Join, fork: impl FnOnce() -> Result<T, Fault>) -> Result<T, Fault> {
        let pairs = [
            (ThreadNameSpaceType::PROCESS_ID, &join.pid, &self.pid),
            (ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME, &join.uts, &self.uts),
            (ThreadNameSpaceType::INTER_PROCESS_COMMUNICATION, &join.ipc, &self.ipc),
        ];
        let entered = pairs.iter().try_for_each(|(kind, pods, _)| match pods {
            Some(pods) => move_into_thread_name_spaces(pods.as_fd(), *kind),
            None => Ok(()),
        });
        let forked = entered.context(|| "entering the pod's namespaces".into()).and_then(|()| fork());
        for (kind, _, own) in pairs.iter().filter(|(_, pods, _)| pods.is_some()) {
            move_into_thread_name_spaces(own.as_fd(), *kind)
                .context(|| "returning to the agent's namespaces".into())?;
        }
        forked
    }

    /// Runs `fork` such that a child is born into a new time namespace with the specification's offsets.
    ///
    /// # Errors
    /// When the kernel has none or refuses an offset, or `fork`'s.
    pub fn forked_into_new_time<T>(&self, linux: &Linux, fork: impl FnOnce() -> Result<T, Fault>) -> Result<T, Fault> {
        let time = self.time.as_ref().ok_or_else(|| invalid("the guest's kernel has no time namespaces"))?;
        crate::sys::unshare(libc::CLONE_NEWTIME).context(|| "making a time namespace".into())?;
        let offsets = linux.time_offsets.iter();
        let text: String = offsets
            .map(|(clock, at)| {
                format!(
                    "{clock} {} {}
",
                    at.secs, at.nanosecs
                )
            })
            .collect();
        let written = match text.as_str() {
            "" => Ok(()),
            text => std::fs::write("/proc/self/timens_offsets", text)
                .context(|| format!("write {:?} to /proc/self/timens_offsets", text.trim_end())),
        };
        let forked = written.and_then(|()| fork());
        move_into_thread_name_spaces(time.as_fd(), ThreadNameSpaceType::TIME)
            .context(|| "returning to the guest's time namespace".into())?;
        forked
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn namespaces(json: &str) -> Result<Namespaces, Fault> {
        let linux: Linux = serde_json::from_str(&format!(r#"{{"namespaces":{json}}}"#)).unwrap();
        Namespaces::new(&linux)
    }

    #[test]
    fn the_network_is_the_guests_and_mounts_are_always_own() {
        let got = namespaces(r#"[{"type":"network","path":"/run/netns/x"},{"type":"pid"},{"type":"cgroup"}]"#).unwrap();
        assert_eq!(got.clone_flags, (libc::CLONE_NEWNS | libc::CLONE_NEWPID) as u64);
        assert!(got.pid && got.cgroup && !got.user);
        assert!(!got.to_join().contains(ThreadNameSpaceType::USER));
    }

    #[test]
    fn a_namespace_of_the_host_is_refused() {
        let fault = namespaces(r#"[{"type":"ipc","path":"/proc/1/ns/ipc"}]"#).unwrap_err();
        assert_eq!(fault.kind, agent_api::FaultKind::InvalidArgument);
        assert!(fault.message.contains("/proc/1/ns/ipc"), "{fault}");
    }

    #[test]
    fn namespaces_of_the_pod_are_joined_and_not_made() {
        let got = namespaces(
            r#"[{"type":"ipc","path":"pod"},{"type":"uts","path":"pod"},{"type":"pid","path":"pod"},{"type":"mount"}]"#,
        )
        .unwrap();
        assert_eq!(got.clone_flags, libc::CLONE_NEWNS as u64);
        assert_eq!(got.shared, Shared { pid: true, uts: true, ipc: true });
        assert!(got.has_pids() && !got.pid && got.uts);
        let got = namespaces(r#"[{"type":"ipc","path":"container:a"},{"type":"pid","path":"container:b"}]"#).unwrap();
        assert_eq!(got.shared, Shared { pid: true, uts: false, ipc: true });
        assert!(namespaces(r#"[{"type":"user","path":"pod"}]"#).unwrap_err().message.contains("pid, ipc and uts"));
    }

    #[test]
    fn a_child_is_born_into_the_pods_namespaces_and_the_agent_stays_in_its_own() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: making namespaces needs root");
            return;
        }
        std::thread::spawn(|| {
            let id = |name: &str| std::fs::read_link(format!("/proc/thread-self/ns/{name}")).unwrap();
            let open = |name: &str| OwnedFd::from(std::fs::File::open(format!("/proc/thread-self/ns/{name}")).unwrap());
            let own = Own { pid: open("pid"), uts: open("uts"), ipc: open("ipc"), time: None };
            let names = [id("uts"), id("ipc")];
            crate::sys::unshare(libc::CLONE_NEWUTS | libc::CLONE_NEWIPC).unwrap();
            let pods = [id("uts"), id("ipc")];
            let join = Join { uts: Some(Rc::new(open("uts"))), ipc: Some(Rc::new(open("ipc"))), pid: None };
            move_into_thread_name_spaces(own.uts.as_fd(), ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME).unwrap();
            move_into_thread_name_spaces(own.ipc.as_fd(), ThreadNameSpaceType::INTER_PROCESS_COMMUNICATION).unwrap();
            assert_eq!([id("uts"), id("ipc")], names);
            let seen = own.forked_joining(&join, || Ok([id("uts"), id("ipc")])).unwrap();
            assert_eq!(seen, pods);
            assert_eq!([id("uts"), id("ipc")], names);
        })
        .join()
        .unwrap();
    }

    #[test]
    fn mappings_have_the_kernels_order() {
        let linux: Linux =
            serde_json::from_str(r#"{"uidMappings":[{"containerID":0,"hostID":1000,"size":5}]}"#).unwrap();
        assert_eq!(mapping_lines(&linux.uid_mappings), "0 1000 5\n");
    }
}
