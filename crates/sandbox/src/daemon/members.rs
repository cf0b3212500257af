//! Containers that come into a sandbox and leave it.

use std::{os::fd::OwnedFd, rc::Rc, time::Duration};

use tokio::net::UnixListener;

use super::{
    listen,
    serve::{Host, invalid},
    unpack,
};
use crate::{
    Error, Result,
    api::Reply,
    journal::Journal,
    launch::Member,
    machine::ended,
    pod::Io,
    store::{ProcessRef, StateDir, Status},
};

/// Creates another container in the sandbox. Gives what answers for it, and its process's id in the guest.
pub(super) async fn enter(
    host: &Host,
    member: Member,
    mut descriptors: Vec<OwnedFd>,
) -> Result<(Rc<Host>, UnixListener, u32)> {
    let Member { dir, state, parts, stdio, start } = member;
    let (prepared, stdio) = unpack(parts, stdio, &mut descriptors)?;
    let (dir, sandbox) = (StateDir::at(&dir), host.sandbox.clone());
    let journal = Journal::claim(dir.clone(), state)?;
    let listener = listen(&dir)?;
    host.recorder.add(&journal);
    let entering = Entering { host, id: dir.id() };
    let guest_pid = sandbox.create(dir.id(), prepared, Io::of_sockets(stdio)?, start).await?;
    journal.update(|state| state.status = if start { Status::Running } else { Status::Created })?;
    std::mem::forget(entering);
    Ok((
        Rc::new(Host {
            sandbox,
            journal,
            recorder: host.recorder.clone(),
            cgroup: host.cgroup.clone(),
            leaving: host.leaving.clone(),
            resumed: tokio::sync::Notify::new(),
            console_only: false,
        }),
        listener,
        guest_pid,
    ))
}

/// A container that is not there yet. If it comes to nothing, nobody writes down what happens to it any more, and what there is of it is removed.
struct Entering<'a> {
    host: &'a Host,
    id: &'a str,
}

impl Drop for Entering<'_> {
    fn drop(&mut self) {
        self.host.recorder.remove(self.id);
        let (sandbox, id) = (self.host.sandbox.clone(), self.id.to_owned());
        tokio::task::spawn_local(async move {
            if let Err(error) = sandbox.remove(&id).await {
                eprintln!("{}", error.chain());
            }
        });
    }
}

/// How long a container may take to end whose stand-in on the host has died.
const LAST_BREATH: Duration = Duration::from_secs(10);

/// A container ends with the process that stands for it on the host, a moment later. Who has seen that one end takes it for stopped.
async fn follow_stand_in(host: &Host) {
    let state = host.journal.state();
    if state.status == Status::Stopped || state.pid == 0 || ProcessRef::of(state.pid).is_some() {
        return;
    }
    if let Ok(ending) = host.sandbox.ending(host.container(), None) {
        // If it does not end, it is not stopped, and that is said.
        let _ = tokio::time::timeout(LAST_BREATH, ended(ending)).await;
    }
}

/// Ends a container, and with the last one the sandbox.
pub(super) async fn delete(host: &Host, force: bool) -> Result<Reply> {
    if !force {
        follow_stand_in(host).await;
    }
    let leaving = host.leaving.clone();
    let _leaving = leaving.lock().await;
    let status = host.journal.status();
    if !force && status != Status::Stopped {
        return Err(invalid(format!("cannot delete container {} that is not stopped: {status}", host.container())));
    }
    let others: Vec<_> =
        host.recorder.all().into_iter().filter(|journal| journal.dir().id() != host.container()).collect();
    let dir = host.journal.dir();
    if others.is_empty() {
        // Nothing in the guest is worth a conversation: its processes are gone or shall be, and what they wrote to shared files
        // was written through when they wrote it.
        host.sandbox.stop().await;
    } else {
        host.sandbox.remove(host.container()).await?;
    }
    host.recorder.remove(host.container());
    host.journal.update_or_log(|state| {
        state.status = Status::Stopped;
        state.pid = 0;
    });
    // The name must be free for new callers before the caller is told; the rest is the caller's to remove.
    let _ = std::fs::remove_file(dir.file("sock"));
    let state = host.journal.state();
    if others.is_empty() {
        if let Some(sandbox) = &state.sandbox {
            if let Some(mut cgroup) = host.cgroup.take() {
                cgroup.leave();
            }
            remove_ownerless(&StateDir::at(sandbox));
            return Ok(Reply::Left);
        }
        return Ok(Reply::Done);
    }
    if state.sandbox.is_none() {
        let moved = dir.give_up_name()?;
        for journal in others {
            journal.update_or_log(|state| state.sandbox = Some(moved.path().into()));
        }
    }
    Ok(Reply::Left)
}

/// Removes the directory of a sandbox whose first container is gone already.
fn remove_ownerless(dir: &StateDir) {
    // It was moved since it was mounted upon.
    let _ = rustix::mount::unmount(dir.file("shared"), rustix::mount::UnmountFlags::DETACH);
    let removed = dir.update_daemonless().and_then(|()| dir.purge_ownerless());
    removed.unwrap_or_else(|error: Error| eprintln!("{}", error.chain()));
}
