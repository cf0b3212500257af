//! Keeping volumes of files up to date (see [`crate::files`]).

use std::{
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    rc::Rc,
    time::Duration,
};

use agent_api::Request;
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use tokio::task::JoinHandle;

use super::Sandbox;
use crate::{files, machine::Machine, sys, translate::FileVolume};

/// How long after a change the volume is read: the kubelet makes several changes at once.
const SETTLE: Duration = Duration::from_millis(50);

/// The task that looks after a volume. It ends when this is dropped.
pub(super) struct Watch(JoinHandle<()>);

impl Drop for Watch {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Sandbox {
    /// Has the guest's copies follow these volumes, if that is not so already.
    pub(super) fn watch_volumes(self: &Rc<Self>, volumes: &[FileVolume]) {
        let mut watches = self.volumes.borrow_mut();
        for FileVolume { storage, source } in volumes {
            if watches.contains_key(storage) {
                continue;
            }
            match watch(source) {
                Ok(events) => {
                    let task = follow(self.machine.clone(), storage.clone(), source.clone(), events);
                    watches.insert(storage.clone(), Watch(tokio::task::spawn_local(task)));
                }
                Err(error) => eprintln!("the volume {} will not be kept up to date: {error}", source.display()),
            }
        }
    }
}

fn watch(source: &Path) -> io::Result<tokio::io::unix::AsyncFd<OwnedFd>> {
    let events = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
    let changes = WatchFlags::MOVED_TO
        | WatchFlags::MOVED_FROM
        | WatchFlags::CREATE
        | WatchFlags::DELETE
        | WatchFlags::CLOSE_WRITE;
    inotify::add_watch(&events, source, changes | WatchFlags::ONLYDIR)?;
    sys::watch(events)
}

async fn follow(machine: Rc<Machine>, storage: String, source: PathBuf, events: tokio::io::unix::AsyncFd<OwnedFd>) {
    loop {
        let Ok(mut ready) = events.readable().await else { return };
        tokio::time::sleep(SETTLE).await;
        let mut buffer = [0; 4096];
        while matches!(rustix::io::read(events.get_ref(), &mut buffer), Ok(1..)) {}
        ready.clear_ready();
        let entries = match files::read(&source) {
            Ok(entries) => entries,
            // It may have changed while it was read; then there is another event.
            Err(error) => {
                eprintln!("{}", error.chain());
                continue;
            }
        };
        let request = Request::UpdateFiles { storage: storage.clone(), entries };
        if let Err(error) = machine.done("update a volume of files", &request).await {
            eprintln!("{}: {}", source.display(), error.chain());
        }
    }
}
