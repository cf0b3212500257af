//! File systems of the guest's own: disks, memory, huge pages, overlays, and files that the host keeps up to date.
//!
//! Each is mounted at its name below [`GUEST_STORAGE_DIR`]. What may take long (a journal to be replayed, the host's disk) is done
//! by a child ([`crate::aside`]), so one storage delays no call but the one that wants it.
//!
//! A storage of a container is there before the container and goes after it, and if creating the container fails. One of the pod
//! is mounted by the first container that names it.

mod disk;
mod files;
mod huge;
mod tree;

pub use disk::give as give_disks;
pub use tree::mount_tmpfs;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::{Component, Path};
use std::rc::Rc;
use std::time::Duration;

use agent_api::storage::{Entry, Storage, StorageSource};
use agent_api::{Fault, FaultKind, GUEST_STORAGE_DIR};
use tokio::sync::Mutex;

use crate::agent::Agent;
use crate::aside::aside;
use crate::fault::{fault, invalid, prefixed};
use tree::Place;

/// How long a file system may take to be mounted. Replaying a journal takes longest.
const MOUNT_DEADLINE: Duration = Duration::from_secs(60);
/// How long what is on a disk may take to be written back.
const UNMOUNT_DEADLINE: Duration = Duration::from_secs(60);
/// How long files may take to be replaced.
const FILES_DEADLINE: Duration = Duration::from_secs(20);

/// The storages that are mounted or about to be, by name.
#[derive(Default)]
pub struct Storages {
    slots: RefCell<BTreeMap<String, Rc<Slot>>>,
    /// Held while huge pages are reserved or given back, which is reading a number and writing another one.
    huge: Mutex<()>,
}

/// One storage.
struct Slot {
    of_pod: bool,
    kind: Kind,
    /// Held while it is mounted, unmounted or changed. Whether it is mounted.
    mounted: Mutex<bool>,
}

/// What a storage needs besides being mounted and unmounted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Nothing.
    Plain,
    /// Its data is to be on the disk before it goes.
    Disk,
    /// Pages to be reserved and given back.
    Huge { page_size: u64, size: u64 },
    /// It can be updated.
    Files,
}

impl Kind {
    fn of(source: &StorageSource) -> Self {
        match source {
            StorageSource::Memory { .. } => Self::Plain,
            StorageSource::Disk { .. } | StorageSource::Overlay { .. } => Self::Disk,
            StorageSource::HugePages { page_size, size } => Self::Huge { page_size: *page_size, size: *size },
            StorageSource::Files { .. } => Self::Files,
        }
    }
}

/// Mounts what a container needs. Gives the names of those that go with it.
///
/// # Errors
/// The first failure; what was mounted for this container is unmounted then.
pub async fn mount(agent: &Agent, storages: Vec<Storage>) -> Result<Vec<String>, Fault> {
    storages.iter().try_for_each(check)?;
    let mut own = Vec::new();
    for storage in storages {
        let (name, of_pod) = (storage.name.clone(), storage.of_pod);
        if let Err(fault) = mount_one(agent, storage).await {
            if let Err(also) = unmount(agent, &mut own).await {
                agent.log.warn(also);
            }
            return Err(prefixed(&format!("storage {name:?}: "), fault));
        }
        if !of_pod {
            own.push(name);
        }
    }
    Ok(own)
}

/// Unmounts a container's storages, the last one first, and takes their names out of the list.
///
/// # Errors
/// The first failure; the names of what is still there stay in the list.
pub async fn unmount(agent: &Agent, names: &mut Vec<String>) -> Result<(), Fault> {
    while let Some(name) = names.last() {
        unmount_one(agent, name).await.map_err(|fault| prefixed(&format!("storage {name:?}: "), fault))?;
        names.pop();
    }
    Ok(())
}

/// Replaces what is in a volume of files.
///
/// # Errors
/// When there is no such volume, or something cannot be written; then the old files or a part of the new ones are there.
pub async fn update_files(agent: &Agent, name: &str, entries: &[Entry]) -> Result<(), Fault> {
    files::check(entries)?;
    let slot = agent.storages.slots.borrow().get(name).cloned();
    let slot = slot.ok_or_else(|| fault(FaultKind::NotFound, format!("storage {name:?} does not exist")))?;
    if slot.kind != Kind::Files {
        return Err(invalid(format!("storage {name:?} is no volume of files, which alone can be updated")));
    }
    let mounted = slot.mounted.lock().await;
    if !*mounted {
        return Err(fault(FaultKind::NotFound, format!("storage {name:?} does not exist")));
    }
    let target = target(name);
    let what = format!("updating the files of storage {name:?}");
    aside(agent, &what, FILES_DEADLINE, || files::replace(Path::new(&target), entries)).await
}

/// Refuses names that are none and sources that make no sense, before anything is done.
fn check(storage: &Storage) -> Result<(), Fault> {
    let name = &storage.name;
    let plain = Path::new(name).components().all(|part| matches!(part, Component::Normal(_)));
    // "a//b" and "a/" have plain components only, but are no names of their own.
    if name.is_empty() || !plain || name.contains('\0') || name.split('/').any(|part| part.is_empty() || part == ".") {
        return Err(invalid(format!("storage {name:?}: expected a name of one or more plain path components")));
    }
    match &storage.source {
        StorageSource::Files { entries } => files::check(entries),
        StorageSource::HugePages { page_size, size } => huge::check(*page_size, *size),
        StorageSource::Disk { serial, .. } => disk::check_serial(serial),
        StorageSource::Overlay { lower, .. } if lower.is_empty() => Err(invalid("an overlay needs a lower directory")),
        StorageSource::Overlay { .. } | StorageSource::Memory { .. } => Ok(()),
    }
    .map_err(|fault| prefixed(&format!("storage {name:?}: "), fault))
}

async fn mount_one(agent: &Agent, storage: Storage) -> Result<(), Fault> {
    loop {
        let slot = take_slot(&agent.storages, &storage)?;
        let mut mounted = slot.mounted.lock().await;
        if *mounted {
            return Ok(());
        }
        // Whoever tried before may have failed and given the place up while this one waited.
        let is_current = agent.storages.slots.borrow().get(&storage.name).is_some_and(|there| Rc::ptr_eq(there, &slot));
        if is_current {
            let done = mount_slot(agent, &storage).await;
            *mounted = done.is_ok();
            if done.is_err() {
                agent.storages.slots.borrow_mut().remove(&storage.name);
            }
            return done;
        }
    }
}

/// Finds the storage of the pod that is there already, or takes a place for one.
fn take_slot(storages: &Storages, storage: &Storage) -> Result<Rc<Slot>, Fault> {
    let name = &storage.name;
    let mut slots = storages.slots.borrow_mut();
    if let Some(slot) = slots.get(name) {
        if slot.of_pod && storage.of_pod {
            return Ok(slot.clone());
        }
        return Err(fault(FaultKind::InvalidState, "a storage of that name exists already"));
    }
    // What is in a storage is the containers', so nothing is mounted in there by path.
    if let Some(other) = slots.keys().find(|other| contains(other, name) || contains(name, other)) {
        return Err(invalid(format!("one of the two names {name:?} and {other:?} is a directory of the other one")));
    }
    let slot = Slot { of_pod: storage.of_pod, kind: Kind::of(&storage.source), mounted: Mutex::new(false) };
    let slot = Rc::new(slot);
    slots.insert(name.clone(), slot.clone());
    Ok(slot)
}

fn contains(outer: &str, inner: &str) -> bool {
    inner.strip_prefix(outer).is_some_and(|rest| rest.starts_with('/'))
}

async fn mount_slot(agent: &Agent, storage: &Storage) -> Result<(), Fault> {
    let device = match &storage.source {
        StorageSource::Disk { serial, .. } => Some(disk::find(serial).await?),
        _ => None,
    };
    if let StorageSource::Overlay { upper: Some(upper), .. } = &storage.source
        && !agent.storages.slots.borrow().contains_key(upper)
    {
        return Err(fault(
            FaultKind::NotFound,
            format!("the storage {upper:?} for its upper directory does not exist"),
        ));
    }
    let target = target(&storage.name);
    let place = Place { top: GUEST_STORAGE_DIR, target: &target };
    let what = format!("mounting storage {:?}", storage.name);
    let kind = Kind::of(&storage.source);
    let _reserving = if let Kind::Huge { .. } = kind { Some(agent.storages.huge.lock().await) } else { None };
    aside(agent, &what, MOUNT_DEADLINE, || {
        let Kind::Huge { page_size, size } = kind else { return tree::mount(&place, storage, device.as_ref()) };
        huge::reserve(page_size, size)?;
        let done = tree::mount(&place, storage, None);
        if done.is_err() {
            // What was wrong first is what matters.
            let _ = huge::give_back(page_size, size);
        }
        done
    })
    .await
}

async fn unmount_one(agent: &Agent, name: &str) -> Result<(), Fault> {
    let Some(slot) = agent.storages.slots.borrow().get(name).cloned() else { return Ok(()) };
    let mut mounted = slot.mounted.lock().await;
    let target = target(name);
    let kind = slot.kind;
    let _reserving = if let Kind::Huge { .. } = kind { Some(agent.storages.huge.lock().await) } else { None };
    if *mounted {
        let place = Place { top: GUEST_STORAGE_DIR, target: &target };
        let what = format!("unmounting storage {name:?}");
        aside(agent, &what, UNMOUNT_DEADLINE, || {
            tree::unmount(&place, kind == Kind::Disk)?;
            match kind {
                Kind::Huge { page_size, size } => huge::give_back(page_size, size),
                _ => Ok(()),
            }
        })
        .await?;
    }
    *mounted = false;
    agent.storages.slots.borrow_mut().remove(name);
    Ok(())
}

fn target(name: &str) -> String {
    format!("{GUEST_STORAGE_DIR}/{name}")
}

/// For tests that mount.
#[cfg(test)]
pub mod tests_in {
    use std::path::Path;

    /// Runs a test with an empty directory in a mount namespace of its own.
    pub fn own_namespace(name: &str, test: impl FnOnce(&Path) + Send + 'static) {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: mounting needs root");
            return;
        }
        let top = std::env::temp_dir().join(format!("kata-agent-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&top).unwrap();
        let dir = top.clone();
        let thread = std::thread::spawn(move || {
            crate::sys::unshare(libc::CLONE_NEWNS).unwrap();
            let all = rustix::mount::MountPropagationFlags::PRIVATE | rustix::mount::MountPropagationFlags::REC;
            rustix::mount::mount_change("/", all).unwrap();
            test(&dir);
        });
        let result = thread.join();
        std::fs::remove_dir_all(top).unwrap();
        result.unwrap();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory(name: &str, of_pod: bool) -> Storage {
        Storage { name: name.into(), source: StorageSource::Memory { size: 0 }, options: vec![], of_pod }
    }

    #[test]
    fn names_are_plain_and_none_is_inside_another() {
        for name in ["", "/x", "a/../b", "a//b", "a/", "./a", "a/.", "x\0y"] {
            assert!(check(&memory(name, false)).is_err(), "{name:?}");
        }
        check(&memory("c1/rootfs", false)).unwrap();
        let storages = Storages::default();
        take_slot(&storages, &memory("c1/rootfs", false)).unwrap();
        take_slot(&storages, &memory("c1/rootfs2", false)).unwrap();
        for name in ["c1", "c1/rootfs/x"] {
            let message = take_slot(&storages, &memory(name, false)).err().unwrap().message;
            assert!(message.contains("directory of the other"), "{message}");
        }
    }

    #[test]
    fn a_storage_of_the_pod_is_shared_and_one_of_a_container_is_not() {
        let storages = Storages::default();
        let first = take_slot(&storages, &memory("cache", true)).unwrap();
        let second = take_slot(&storages, &memory("cache", true)).unwrap();
        assert!(Rc::ptr_eq(&first, &second));
        assert!(take_slot(&storages, &memory("cache", false)).is_err());
        take_slot(&storages, &memory("own", false)).unwrap();
        assert!(take_slot(&storages, &memory("own", true)).is_err());
    }
}
