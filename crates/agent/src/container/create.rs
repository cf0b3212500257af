//! Creating and starting containers.

use std::cell::{Cell, RefCell};
use std::path::PathBuf;
use std::rc::Rc;

use agent_api::{Fault, FaultKind, GUEST_SHARED_DIR, SeccompFilter};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tokio::task::spawn_local;

use super::cgroup::Cgroup;
use super::child::{First, become_first};
use super::launch::{Forked, prepare_stdio, start_pumps};
use super::namespaces::{Join, Namespaces, Shared, map_ids};
use super::status::{ChildEnd, pair};
use super::{Container, hooks, rlimits, sysctl};
use crate::agent::Agent;
use crate::boot::CrashPoint;
use crate::fault::{Context, NOT_STARTED, fault, internal, prefixed};
use crate::io::{Streams, Wiring};
use crate::pod;
use crate::spec::{CreateContainer, Spec};
use crate::storage;
use crate::sys::{Cloned, clone3};

/// Creates a container and, if asked, starts it.
///
/// # Errors
/// What runc would say; nothing of the container stays.
pub async fn create(agent: &Rc<Agent>, request: CreateContainer) -> Result<Rc<Container>, Fault> {
    agent.crash_at(CrashPoint::Create);
    let CreateContainer { id, mut spec, stdio, seccomp, start, storages, disks, all_devices, told } = request;
    spec.linux.all_devices = all_devices;
    let mut reservation = agent.containers.reserve(&id)?;
    let namespaces = Namespaces::new(&spec.linux)?;
    check_shared(agent, &spec)?;
    let streams = agent.tokens.claim(&stdio, spec.process.terminal).await?;
    let join = pod::join(agent, namespaces.shared, &spec.linux).await?;
    storage::give_disks(&mut spec, &disks).await?;
    let mut storages = storage::mount(agent, storages).await?;
    let wanted = Wanted { id, spec, seccomp, start, namespaces, join, told };
    match make(agent, wanted, streams).await {
        Ok(container) => {
            container.storages.replace(storages);
            reservation.container = Some(container.clone());
            Ok(container)
        }
        Err(fault) => {
            if let Err(also) = storage::unmount(agent, &mut storages).await {
                agent.log.warn(also);
            }
            Err(fault)
        }
    }
}

/// A container whose disks and storages are there.
struct Wanted {
    id: String,
    spec: Spec,
    seccomp: Option<SeccompFilter>,
    start: bool,
    namespaces: Namespaces,
    join: Join,
    told: Option<String>,
}

async fn make(agent: &Rc<Agent>, wanted: Wanted, streams: Streams) -> Result<Rc<Container>, Fault> {
    let Wanted { id, spec, seccomp, start, namespaces, join, told } = wanted;
    let patience = hooks::patience(spec.start_hooks());
    let (wiring, streams) = prepare_stdio(streams, spec.process.terminal)?;
    let cgroup = Cgroup::create(&id, spec.linux.cgroups_path.as_deref(), spec.linux.resources.as_ref())
        .map_err(|fault| prefixed(NOT_STARTED, fault))?;

    let first = First {
        id: &id,
        spec: &spec,
        namespaces,
        cgroup: cgroup.path(),
        seccomp: seccomp.as_ref(),
        told: told.as_deref(),
    };
    let (end, child_end) = pair()?;
    let forked = fork(agent, &first, &join, &cgroup, &wiring, &child_end);
    drop(child_end);
    let Wiring { fds, pumps, .. } = wiring;
    drop(fds);
    let pid = match forked {
        Ok(pid) => pid,
        Err(fault) => {
            cgroup.remove_now();
            return Err(prefixed(NOT_STARTED, fault));
        }
    };
    start_pumps(pumps);
    let mut forked = Forked { pid, exit: agent.reaper.watch(pid), end, streams };
    let prepared = async {
        grant(&first, pid, &forked).map_err(|fault| prefixed(NOT_STARTED, fault))?;
        if start {
            // Told before it asks, it does not have to wait.
            agent.crash_at(CrashPoint::Start);
            forked.end.go_on();
        }
        let process = forked.prepared().await?;
        if start {
            Forked::executed(&forked.end, patience).await?;
        }
        Ok(process)
    };
    let init = match prepared.await {
        Ok(init) => init,
        Err(fault) => return Err(give_up(&cgroup, pid, fault).await),
    };
    let pid = Pid::from_raw(pid.cast_signed()).ok_or_else(|| internal("a process has the id 0"))?;
    let pidfd = match pidfd_open(pid, PidfdFlags::empty()).context(|| format!("{NOT_STARTED}pidfd_open")) {
        Ok(pidfd) => pidfd,
        Err(fault) => return Err(give_up(&cgroup, init.pid, fault).await),
    };
    let sources = spec.mounts.iter().filter_map(|mount| mount.source.clone());
    let shared = sources.filter(|source| source.starts_with(GUEST_SHARED_DIR)).collect();
    let container = Rc::new(Container {
        id: id.clone(),
        init,
        pidfd,
        cgroup,
        namespaces,
        seccomp,
        unstarted: RefCell::new(if start { None } else { Some(forked.end) }),
        shared,
        patience,
        paused: Cell::new(false),
        execs: RefCell::default(),
        storages: RefCell::default(),
        oom_kills: Cell::default(),
        oom_watch: RefCell::default(),
    });
    container.watch_memory(agent);
    let supervised = container.clone();
    spawn_local(async move {
        supervised.init.exit.clone().ended().await;
        supervised.ended();
    });
    if start {
        agent.crash_soon(CrashPoint::Running);
    }
    Ok(container)
}

/// Refuses what is on the shared file system when that is not there.
fn check_shared(agent: &Agent, spec: &Spec) -> Result<(), Fault> {
    let sources = spec.mounts.iter().filter_map(|mount| mount.source.as_ref());
    [&spec.root.path].into_iter().chain(sources).try_for_each(|path| agent.shared.check(path))
}

fn fork(
    agent: &Agent,
    first: &First<'_>,
    join: &Join,
    cgroup: &Cgroup,
    wiring: &Wiring,
    child_end: &ChildEnd,
) -> Result<u32, Fault> {
    let linux = &first.spec.linux;
    sysctl::write(&linux.sysctl, true)?;
    let fork = || match clone3(first.namespaces.clone_flags, Some(cgroup.dir())).context(|| "clone3".into())? {
        Cloned::Parent(pid) => Ok(pid),
        Cloned::Child => become_first(first, wiring, child_end),
    };
    let fork = || if first.namespaces.time { agent.namespaces.forked_into_new_time(linux, fork) } else { fork() };
    if first.namespaces.shared == Shared::default() { fork() } else { agent.namespaces.forked_joining(join, fork) }
}

/// Does for a process in a new user namespace what it may not do itself.
fn grant(first: &First<'_>, pid: u32, forked: &Forked) -> Result<(), Fault> {
    if !first.namespaces.user {
        return Ok(());
    }
    map_ids(pid, &first.spec.linux)?;
    rlimits::apply(&first.spec.process, Some(pid), "ready process")?;
    forked.end.go_on();
    Ok(())
}

/// Kills what there is of a container that could not be created, and says why if the kernel did it.
async fn give_up(cgroup: &Cgroup, pid: u32, fault: Fault) -> Fault {
    let out_of_memory = cgroup.oom_kills() > 0;
    // It may have ended.
    let _ = crate::sys::kill(pid, libc::SIGKILL);
    // What was wrong first is what matters; an empty cgroup that stays does not.
    let _ = cgroup.remove().await;
    if out_of_memory {
        return internal(format!("{NOT_STARTED}container init was OOM-killed (memory limit too low?)"));
    }
    fault
}

/// Has the kernel ask anew how large files of the host are. Engines write some of those that a container is given (resolv.conf, hosts)
/// after they have created it; a file is read only as far as it was known to go.
fn refresh(shared: &[PathBuf]) {
    use rustix::fs::{AtFlags, CWD, StatxFlags, statx};
    for path in shared {
        // One that is gone is for the container to find out.
        let _ = statx(CWD, path, AtFlags::STATX_FORCE_SYNC, StatxFlags::SIZE);
    }
}

/// Lets a created container's first process run, and waits until it does.
///
/// # Errors
/// When it was started already or has ended.
pub async fn start(agent: &Agent, container: &Container) -> Result<(), Fault> {
    agent.crash_at(CrashPoint::Start);
    if container.is_stopped() {
        return Err(fault(FaultKind::InvalidState, "cannot start a container that has stopped"));
    }
    let end = container.unstarted.borrow_mut().take();
    let end = end.ok_or_else(|| fault(FaultKind::InvalidState, "cannot start an already running container"))?;
    refresh(&container.shared);
    end.go_on();
    Forked::executed(&end, container.patience).await?;
    agent.crash_soon(CrashPoint::Running);
    Ok(())
}
