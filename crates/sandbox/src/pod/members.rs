//! What a sandbox remembers of each container, and how it takes that away again.

use std::{os::fd::OwnedFd, path::Path, time::Duration};

use agent_api::{CONTAINER_NAMESPACE, Request};
use hypervisor::Disk;
use oci_spec::runtime::{LinuxNamespaceType, Spec};
use tokio::sync::watch;

use super::{HostCpus, Limits, Sandbox};
use crate::{Error, Result, machine::Outcome, translate::DiskFile};

/// One container.
#[derive(Default)]
pub(super) struct Member {
    /// What is attached for it below the shared directory.
    pub(super) shares: Vec<String>,
    /// Serial numbers of the disks that were plugged for it.
    pub(super) disks: Vec<String>,
    /// Its `/etc/resolv.conf`, below the shared directory.
    pub(super) resolver: Option<String>,
    /// What it may use.
    pub(super) limits: Limits,
    /// How long the hooks before its program may take.
    pub(super) patience: Duration,
    /// Where on the host it may run, unless that is everywhere.
    pub(super) cpus: Option<HostCpus>,
    /// Which of its namespaces are others' too.
    shared: Vec<LinuxNamespaceType>,
    /// For a pod's sandbox container: tells its end.
    pub(super) pause: Option<watch::Sender<Option<Outcome>>>,
}

impl Sandbox {
    /// Takes a name for a container.
    pub(super) fn admit(&self, id: &str, limits: Limits, cpus: Option<HostCpus>) -> Result<()> {
        let mut members = self.members.borrow_mut();
        if members.contains_key(id) {
            return Err(Error::State(format!("a container {id:?} exists already in this sandbox")));
        }
        members.insert(id.into(), Member { limits, cpus, ..Member::default() });
        Ok(())
    }

    /// Finds out whose process ids a container is to have that asks for others' than its own.
    ///
    /// An engine names them by a process of the host, and that is one and the same for all containers of a pod. But where a pod's containers
    /// share their process ids, its first one asks for them already. So one that asks beside others that have their own wants those of
    /// one of them, as `kubectl debug --target` does.
    fn choose_pids(&self, id: &str, spec: &mut Spec) -> Result<()> {
        let namespaces = spec.linux_mut().as_mut().and_then(|linux| linux.namespaces_mut().as_mut());
        let mut namespaces = namespaces.into_iter().flatten();
        let is_open = |path: &std::path::PathBuf| !path.to_string_lossy().starts_with(CONTAINER_NAMESPACE);
        let Some(wanted) = namespaces
            .find(|found| found.typ() == LinuxNamespaceType::Pid && found.path().as_ref().is_some_and(is_open))
        else {
            return Ok(());
        };
        let mut members = self.members.borrow_mut();
        let is_other = |name: &str, member: &Member| name != id && member.pause.is_none();
        let mut own: Vec<String> = members
            .iter()
            .filter(|(name, member)| is_other(name, member) && self.machine.is_running(name, None))
            .map(|(name, _)| name.clone())
            .collect();
        if own.is_empty()
            || members
                .iter()
                .any(|(name, member)| is_other(name, member) && member.shared.contains(&LinuxNamespaceType::Pid))
        {
            if let Some(member) = members.get_mut(id) {
                member.shared.push(LinuxNamespaceType::Pid);
            }
            return Ok(());
        }
        own.sort_unstable();
        if let [target] = &own[..] {
            wanted.set_path(Some(format!("{CONTAINER_NAMESPACE}{target}").into()));
            return Ok(());
        }
        Err(Error::State(format!(
            "container {id:?} asks for the process ids of one of the containers {}: of which, the engine does not tell; give it its own, or have all containers of the pod share theirs",
            own.join(", ")
        )))
    }

    /// Finds out whose namespaces a container is to have that asks for others' than its own.
    ///
    /// What the containers of a pod share is the pod's. Where there is no pod, one container was there first and others have joined it (`docker run
    /// --network container:NAME`): then a namespace is another container's, and it must be clear of which.
    pub(super) fn choose_namespaces(&self, id: &str, spec: &mut Spec) -> Result<()> {
        if self.is_pod {
            return self.choose_pids(id, spec);
        }
        let namespaces = spec.linux_mut().as_mut().and_then(|linux| linux.namespaces_mut().as_mut());
        // One that names a container already is clear.
        let is_open = |path: &std::path::PathBuf| !path.to_string_lossy().starts_with(CONTAINER_NAMESPACE);
        for wanted in namespaces.into_iter().flatten().filter(|found| found.path().as_ref().is_some_and(is_open)) {
            let kind = wanted.typ();
            let mut members = self.members.borrow_mut();
            let mut own: Vec<&str> = members
                .iter()
                .filter(|(name, member)| *name != id && !member.shared.contains(&kind))
                .filter(|(name, _)| self.machine.is_running(name, None))
                .map(|(name, _)| name.as_str())
                .collect();
            own.sort_unstable();
            let target = match own[..] {
                [target] => format!("{CONTAINER_NAMESPACE}{target}"),
                [] => {
                    let problem = format!(
                        "container {id:?} asks for the {kind} namespace of another, of which none runs any more"
                    );
                    return Err(Error::State(problem));
                }
                _ => {
                    return Err(Error::State(format!(
                        "container {id:?} asks for the {kind} namespace of one of the containers {}: of which, the engine does not tell; give it its own",
                        own.join(", ")
                    )));
                }
            };
            wanted.set_path(Some(target.into()));
            if let Some(member) = members.get_mut(id) {
                member.shared.push(kind);
            }
        }
        Ok(())
    }

    /// Plugs a container's disks.
    pub(super) async fn plug_disks(&self, id: &str, disks: &[DiskFile], files: Vec<OwnedFd>) -> Result<()> {
        for (disk, file) in disks.iter().zip(files) {
            let DiskFile { serial, read_only } = disk.clone();
            self.machine.vm().add_disk(Disk { serial: serial.clone(), file, read_only }).await?;
            if let Some(member) = self.members.borrow_mut().get_mut(id) {
                member.disks.push(serial);
            }
        }
        Ok(())
    }

    /// Takes away what was there for a container on the host.
    pub(super) async fn vacate(&self, id: &str) {
        let Some(member) = self.members.borrow_mut().remove(id) else { return };
        for disk in member.disks {
            if !self.is_dead()
                && let Err(error) = self.machine.vm().remove_disk(&disk).await
            {
                eprintln!("{}", crate::error::chain(&error));
            }
        }
        if !self.is_dead()
            && let Err(error) = self.pin()
        {
            eprintln!("{}", crate::error::chain(&error));
        }
        for share in &member.shares {
            if let Err(error) = self.shared.detach(Path::new(share)) {
                eprintln!("{}", crate::error::chain(&error));
            }
        }
        if !member.shares.is_empty() && !self.members.borrow().is_empty() && !self.is_dead() {
            self.have_forgotten(id).await;
        }
    }

    /// Has the guest let go of what was detached, all of it below the container's name, so that nothing keeps the file systems of the host that it
    /// was on in use.
    async fn have_forgotten(&self, id: &str) {
        let request = Request::Forget { name: id.into() };
        match self.machine.call("have the guest forget a container's files", &request).await {
            Err(error) if !self.is_dead() => eprintln!("{}", error.chain()),
            _ => {}
        }
    }
}
