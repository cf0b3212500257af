//! What the containers of a pod share: namespaces, and `/dev/shm`.
//!
//! The host asks for it once, before the first container. The namespaces of host name and IPC are made by a child that ends when the
//! agent has descriptors of them: a namespace lives as long as one. That of process ids needs a first process, which is made
//! when the first container asks for it ([`init`]). Of the network there is one: the guest's.

mod init;

use std::cell::RefCell;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::Duration;

use agent_api::{Fault, FaultKind, GUEST_SHM_DIR, Pod as Wanted};
use rustix::fs::{Mode, OFlags};

use crate::agent::Agent;
use crate::aside::Aside;
use crate::container::{Join, Shared, owner, sysctl};
use crate::fault::{Context, fault, internal, invalid};
use crate::reaper::ExitWatch;
use crate::spec::Linux;
use crate::storage::mount_tmpfs;

/// How long a child may take to make namespaces.
const DEADLINE: Duration = Duration::from_secs(10);
/// Size of `/dev/shm` that is not asked for, bytes.
const SHM_SIZE: u64 = 64 << 20;
/// Longest host and domain name, bytes (`__NEW_UTS_LEN`).
const MAX_NAME: usize = 64;

/// The pod.
#[derive(Default)]
pub struct Pod {
    configured: RefCell<Option<Namespaces>>,
    /// Held while the pod's namespaces are made, which is done once.
    making: tokio::sync::Mutex<()>,
    pids: RefCell<Option<Pids>>,
}

/// Those that are made at once.
struct Namespaces {
    uts: Rc<OwnedFd>,
    ipc: Rc<OwnedFd>,
}

/// That of process ids, which ends with its first process.
struct Pids {
    namespace: Rc<OwnedFd>,
    init: ExitWatch,
}

/// Makes what the containers of the pod share.
///
/// # Errors
/// When it was made before, or something of it is refused; nothing of it stays then, but parameters of the network.
pub async fn configure(agent: &Agent, wanted: &Wanted) -> Result<(), Fault> {
    let _making = agent.pod.making.lock().await;
    if agent.pod.configured.borrow().is_some() {
        return Err(fault(FaultKind::InvalidState, "the pod has been configured already"));
    }
    for (key, name) in [("hostname", &wanted.hostname), ("domainname", &wanted.domainname)] {
        if name.len() > MAX_NAME {
            return Err(invalid(format!(
                "{key} is {name:?}, {} bytes long, expected at most {MAX_NAME} bytes",
                name.len()
            )));
        }
    }
    sysctl::check(&wanted.sysctl)?;
    let child = Aside::begin(agent, (libc::CLONE_NEWUTS | libc::CLONE_NEWIPC) as u64, |_| {
        set_names(wanted)?;
        sysctl::write(&wanted.sysctl, false)
    })?;
    child.done("making the pod's namespaces", DEADLINE).await?;
    let namespaces = Namespaces { uts: namespace_of(child.pid, "uts")?, ipc: namespace_of(child.pid, "ipc")? };
    sysctl::write(&wanted.sysctl, true)?;
    let size = if wanted.shm_size == 0 { SHM_SIZE } else { wanted.shm_size };
    mount_tmpfs(GUEST_SHM_DIR, &[format!("size={size}"), "mode=1777".to_owned()])?;
    *agent.pod.configured.borrow_mut() = Some(namespaces);
    Ok(())
}

fn set_names(wanted: &Wanted) -> Result<(), Fault> {
    let (host, domain) = (&wanted.hostname, &wanted.domainname);
    if !host.is_empty() {
        rustix::system::sethostname(host.as_bytes()).context(|| format!("sethostname {host:?}"))?;
    }
    if !domain.is_empty() {
        rustix::system::setdomainname(domain.as_bytes()).context(|| format!("setdomainname {domain:?}"))?;
    }
    Ok(())
}

fn namespace_of(pid: u32, name: &str) -> Result<Rc<OwnedFd>, Fault> {
    let path = format!("/proc/{pid}/ns/{name}");
    let opened = rustix::fs::open(&path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
    opened.map(Rc::new).context(|| format!("open {path}"))
}

/// The namespaces that a container shares: the pod's, or another container's that its configuration names.
///
/// # Errors
/// When it shares one of the pod's and that was not configured, the first process of the pod's cannot be made, or the other container does not run.
pub async fn join(agent: &Agent, shared: Shared, linux: &Linux) -> Result<Join, Fault> {
    let (mut uts, mut ipc, mut pid) = (None, None, None);
    if shared.uts {
        uts = Some(match owner(linux, "uts") {
            Some(container) => of_container(agent, container, "uts")?,
            None => of_pod(agent, |pod| &pod.uts)?,
        });
    }
    if shared.ipc {
        ipc = Some(match owner(linux, "ipc") {
            Some(container) => of_container(agent, container, "ipc")?,
            None => of_pod(agent, |pod| &pod.ipc)?,
        });
    }
    if shared.pid {
        pid = Some(match owner(linux, "pid") {
            Some(container) => of_container(agent, container, "pid")?,
            None => {
                of_pod(agent, |pod| &pod.ipc)?;
                pids(agent).await?
            }
        });
    }
    Ok(Join { uts, ipc, pid })
}

fn of_pod(agent: &Agent, which: impl Fn(&Namespaces) -> &Rc<OwnedFd>) -> Result<Rc<OwnedFd>, Fault> {
    agent.pod.configured.borrow().as_ref().map(|pod| which(pod).clone()).ok_or_else(|| {
        fault(
            FaultKind::InvalidState,
            "linux.namespaces names a namespace of the pod, which has to be configured first",
        )
    })
}

fn of_container(agent: &Agent, id: &str, kind: &str) -> Result<Rc<OwnedFd>, Fault> {
    let container = agent.containers.get(id)?;
    if container.is_stopped() {
        return Err(fault(
            FaultKind::InvalidState,
            format!("container {id:?}, whose {kind} namespace is to be shared, has stopped"),
        ));
    }
    namespace_of(container.init.pid, kind)
}

async fn pids(agent: &Agent) -> Result<Rc<OwnedFd>, Fault> {
    let _making = agent.pod.making.lock().await;
    if let Some(pids) = &*agent.pod.pids.borrow() {
        if pids.init.status().is_none() {
            return Ok(pids.namespace.clone());
        }
        agent
            .log
            .warn("the first process of the pod's process ids has ended, and the containers that shared them with it");
    }
    let namespaces = (libc::CLONE_NEWPID | libc::CLONE_NEWNS) as u64;
    let child = Aside::begin(agent, namespaces, init::become_init)?;
    child.done("making the pod's first process", DEADLINE).await?;
    let namespace = namespace_of(child.pid, "pid")?;
    if child.exit.status().is_some() {
        return Err(internal("the pod's first process ended at once"));
    }
    *agent.pod.pids.borrow_mut() = Some(Pids { namespace: namespace.clone(), init: child.exit });
    Ok(namespace)
}
