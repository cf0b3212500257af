//! What sandboxes have left behind that nobody answers for any more: their daemon was killed, or the host was started anew.
//!
//! Only what a state directory names, and so is provably of one, is found here; nothing is looked for by the likeness of its name.

use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use crate::{
    Error, Result,
    plan::CACHE_DIR,
    store::{ContainerState, DIRECTORIES, OWNERLESS, ProcessRef, StateDir, Store},
    systemd::Scope,
};

/// How old a state directory must be in which nothing is written down: one that is being made has nothing either, for an instant.
const INSTANT: Duration = Duration::from_secs(60);
/// Files that a state directory may have without a `state.json`.
const FILES: [&str; 4] = ["state.json.new", "timeline.json", "daemon.log", "sock"];

/// A state directory that nobody answers for, and what it names.
#[derive(Debug)]
pub struct Leftover {
    dir: StateDir,
    /// Device and inode of the directory.
    identity: (u64, u64),
    /// What it says, unless it was left before it said anything.
    state: Option<ContainerState>,
    why: String,
}

/// What was found below a root.
#[derive(Debug, Default)]
pub struct Found {
    /// What can be removed.
    pub leftovers: Vec<Leftover>,
    /// What nothing can be said about, and why: it stays.
    pub unclear: Vec<(PathBuf, String)>,
}

impl Store {
    /// Finds what is left over below this root. A sandbox that lives is not.
    ///
    /// # Errors
    /// [`Error::Io`] when the root cannot be read.
    pub fn leftovers(&self) -> Result<Found> {
        let entries = match fs::read_dir(self.root()) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Found::default()),
            Err(error) => return Err(Error::io(format!("read {}", self.root().display()), error)),
        };
        let mut paths: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
        paths.sort();
        let mut found = Found::default();
        for path in paths {
            let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
            if !name.starts_with(OWNERLESS) && Self::check_id(name).is_err() {
                continue;
            }
            match judge(&path) {
                Ok(Some(leftover)) => found.leftovers.push(leftover),
                Ok(None) => {}
                // It was removed meanwhile.
                Err(_) if fs::symlink_metadata(&path).is_err() => {}
                Err(error) => found.unclear.push((path, error.chain())),
            }
        }
        Ok(found)
    }
}

/// What there is to say of one directory; nothing, if it is not ours or somebody answers for it.
fn judge(path: &Path) -> Result<Option<Leftover>> {
    let failed = |error| Error::io(format!("look at {}", path.display()), error);
    let metadata = fs::symlink_metadata(path).map_err(failed)?;
    if !metadata.is_dir() || metadata.uid() != rustix::process::geteuid().as_raw() {
        return Ok(None);
    }
    let dir = StateDir::at(path);
    let leftover =
        |state, why: String| Leftover { dir: dir.clone(), identity: (metadata.dev(), metadata.ino()), state, why };
    if !dir.file("state.json").try_exists().map_err(failed)? {
        let age = metadata.modified().ok().and_then(|made| SystemTime::now().duration_since(made).ok());
        let old = age.is_some_and(|age| age > INSTANT);
        let why = "whoever made it was killed before anything was written down";
        return Ok((old && has_only_ours(path).map_err(failed)?).then(|| leftover(None, why.into())));
    }
    let state = dir.load()?;
    if state.is_answered_for() {
        return Ok(None);
    }
    let why = match (state.daemon, state.creator) {
        _ if state.is_of_another_boot() => "the host has been started anew since".into(),
        (Some(daemon), _) => format!("its process {} is gone", daemon.pid),
        (None, Some(creator)) => format!("process {}, which was making it, is gone", creator.pid),
        (None, None) => "its process ended before it was removed".into(),
    };
    Ok(Some(leftover(Some(state), why)))
}

/// Whether a directory has nothing that a state directory would not have.
fn has_only_ours(path: &Path) -> io::Result<bool> {
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        let names: &[&str] = if entry.file_type()?.is_dir() { &DIRECTORIES } else { &FILES };
        if !names.iter().any(|name| entry.file_name() == *name) {
            return Ok(false);
        }
    }
    Ok(true)
}

impl Leftover {
    /// The directory.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// The name of the container.
    pub fn id(&self) -> &str {
        self.state.as_ref().map_or(self.dir.id(), |state| &state.id)
    }

    /// What it says, unless it was left before it said anything.
    pub fn state(&self) -> Option<&ContainerState> {
        self.state.as_ref()
    }

    /// Why nobody answers for it.
    pub fn why(&self) -> &str {
        &self.why
    }

    /// Processes of it that live although whoever answered for them is gone.
    pub fn processes(&self) -> Vec<(&'static str, ProcessRef)> {
        let of_state = self.state.iter().flat_map(ContainerState::processes);
        of_state.filter(|(_, process)| process.is_alive()).collect()
    }

    /// Cgroups of the host that were made for it and are there.
    pub fn cgroups(&self) -> Vec<&Path> {
        let named = self.state.iter().flat_map(|state| &state.cgroups);
        named.map(PathBuf::as_path).filter(|path| path.is_dir()).collect()
    }

    /// The scope of systemd that was made for it and is there.
    pub fn scope(&self) -> Option<&str> {
        self.state.as_ref()?.scope().filter(|scope| scope.exists()).map(Scope::unit)
    }

    /// Ends its processes and removes it with what it names.
    ///
    /// # Errors
    /// [`Error::Deadline`] or [`Error::Io`]; it can be tried again.
    pub fn remove(self) -> Result<()> {
        // The name is given back first: somebody may have deleted the container and taken its name since it was judged.
        let own = self.dir.id().starts_with(OWNERLESS);
        let moved = if own { self.dir.clone() } else { self.dir.give_up_name()? };
        let failed = |error| Error::io(format!("look at {}", moved.path().display()), error);
        let metadata = match fs::symlink_metadata(moved.path()) {
            Err(error) if own && error.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => other.map_err(failed)?,
        };
        if (metadata.dev(), metadata.ino()) != self.identity {
            return fs::rename(moved.path(), self.dir.path())
                .map_err(|error| Error::io(format!("give {} its name back", self.dir.path().display()), error));
        }
        moved.purge()
    }
}

/// Files that a process of ours was about to finish when it was killed, where what is true for the whole host is remembered.
pub fn unfinished_files() -> Vec<PathBuf> {
    unfinished_in(Path::new(CACHE_DIR))
}

fn unfinished_in(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let is_dead = |path: &PathBuf| {
        let pid = path.file_name()?.to_str()?.strip_prefix("kvm-probe.")?.parse().ok()?;
        ProcessRef::of(pid).is_none().then_some(())
    };
    entries.map(|entry| entry.path()).filter(|path| is_dead(path).is_some()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Status;

    fn state(id: &str) -> ContainerState {
        ContainerState { status: Status::Running, creator: None, ..ContainerState::new(id, "/b") }
    }

    fn dead() -> Option<ProcessRef> {
        // A process of that number exists, but it is another one.
        Some(ProcessRef { pid: std::process::id(), start_ticks: 1 })
    }

    fn names(found: &Found) -> Vec<&str> {
        found.leftovers.iter().map(Leftover::id).collect()
    }

    #[test]
    fn only_what_nobody_answers_for_is_found_and_removed() {
        let top = tempfile::tempdir().unwrap();
        let store = Store::new(top.path());
        let living = store.reserve("living").unwrap();
        living.save(&ContainerState { daemon: ProcessRef::of(std::process::id()), ..state("living") }).unwrap();
        let creating = store.reserve("creating").unwrap();
        creating.save(&ContainerState::new("creating", "/b")).unwrap();
        let cgroup = top.path().join("cgroup of killed");
        fs::create_dir(&cgroup).unwrap();
        let killed = store.reserve("killed").unwrap();
        killed.save(&ContainerState { daemon: dead(), cgroups: vec![cgroup.clone()], ..state("killed") }).unwrap();
        fs::create_dir(killed.file("rootfs")).unwrap();
        // Neither is of any sandbox.
        fs::create_dir(top.path().join("someone's")).unwrap();
        fs::create_dir_all(top.path().join("foreign/data")).unwrap();
        std::os::unix::fs::symlink("/", top.path().join("link")).unwrap();

        let found = store.leftovers().unwrap();
        assert_eq!(names(&found), ["killed"]);
        assert_eq!(found.leftovers[0].cgroups(), [cgroup.as_path()]);
        assert!(found.leftovers[0].why().contains("is gone"), "{}", found.leftovers[0].why());
        for leftover in found.leftovers {
            leftover.remove().unwrap();
        }
        let mut left: Vec<_> = fs::read_dir(top.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["creating", "foreign", "link", "living", "someone's"]);
    }

    #[test]
    fn after_another_boot_everything_is_left_over_whatever_runs_under_its_numbers() {
        let top = tempfile::tempdir().unwrap();
        let store = Store::new(top.path());
        let dir = store.reserve("c").unwrap();
        let this = ProcessRef::of(std::process::id());
        // Killing the virtual machine would be the end of this test.
        let before = ContainerState { daemon: this, vmm: this, boot: Some("before".into()), ..state("c") };
        dir.save(&before).unwrap();
        assert_eq!(dir.load().unwrap().failure.unwrap(), "the host was started anew");
        let found = store.leftovers().unwrap();
        assert_eq!(names(&found), ["c"]);
        assert!(found.leftovers[0].processes().is_empty());
        found.leftovers.into_iter().for_each(|leftover| leftover.remove().unwrap());
        assert!(!dir.path().exists());
    }

    #[test]
    fn a_half_made_directory_is_left_over_once_it_is_old_and_a_damaged_one_is_not_touched() {
        let top = tempfile::tempdir().unwrap();
        let store = Store::new(top.path());
        let half = store.reserve("half").unwrap();
        assert!(store.leftovers().unwrap().leftovers.is_empty(), "it may be in the making");
        let before = SystemTime::now() - INSTANT * 2;
        fs::File::open(half.path()).unwrap().set_modified(before).unwrap();
        let damaged = store.reserve("damaged").unwrap();
        fs::write(damaged.file("state.json"), "{").unwrap();
        let found = store.leftovers().unwrap();
        assert_eq!(names(&found), ["half"]);
        let [(path, why)] = &found.unclear[..] else { panic!("{:?}", found.unclear) };
        assert!(path == damaged.path() && why.contains("delete --force"), "{why}");
    }

    #[test]
    fn a_name_that_was_taken_anew_meanwhile_is_its_new_owners() {
        let top = tempfile::tempdir().unwrap();
        let store = Store::new(top.path());
        store.reserve("c").unwrap().save(&ContainerState { daemon: dead(), ..state("c") }).unwrap();
        let leftover = store.leftovers().unwrap().leftovers.remove(0);
        // So that the inode's number is not used again.
        fs::rename(top.path().join("c"), top.path().join("elsewhere")).unwrap();
        let new = store.reserve("c").unwrap();
        new.save(&ContainerState::new("c", "/b")).unwrap();
        leftover.remove().unwrap();
        assert_eq!(new.load().unwrap().status, Status::Creating);
    }

    #[test]
    fn a_file_that_a_dead_process_left_unfinished_is_found() {
        let top = tempfile::tempdir().unwrap();
        for name in ["kvm-probe", "kvm-probe.4194304", &format!("kvm-probe.{}", std::process::id()), "other.4194304"] {
            fs::write(top.path().join(name), "").unwrap();
        }
        assert_eq!(unfinished_in(top.path()), [top.path().join("kvm-probe.4194304")]);
    }

    #[test]
    fn a_root_that_cannot_be_read_is_an_error_that_names_it() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = Store::new(file.path()).leftovers().unwrap_err().chain();
        assert!(error.contains(&file.path().display().to_string()), "{error}");
        assert!(Store::new("/nonexistent").leftovers().unwrap().leftovers.is_empty());
    }
}
