//! The state directory: one directory per container, and in it what a later command needs to find, or remove, it.
//!
//! ```text
//! ROOT/ID/state.json   what exists, written before and after each side effect (temporary file, then rename)
//!        /sock         the daemon's socket
//!        /daemon.log   the daemon's warnings
//!        /run/         the hypervisor's own files
//!        /shared/      mount point of the shared file system, mounted in the daemon's mount namespace only
//!        /rootfs/      for a moment, where containerd's shim mounts a root file system to open it
//! ```
//!
//! Removal names every entry and never descends, so that it cannot delete a user's files even where the shared file
//! system is mounted.

use std::{
    collections::HashMap,
    fs, io,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use agent_api::ExitStatus;
use serde::{Deserialize, Serialize};

use crate::{Error, Result, steps, sys, systemd::Scope};

/// Where a root user's containers are unless `--root` says otherwise.
pub const DEFAULT_ROOT: &str = "/run/kata-runtime";
/// What the directory of a sandbox begins with that has lost the container which it was made for. No container's name has it.
pub(crate) const OWNERLESS: char = '@';
/// Directories that there may be in a container's. All are empty once its processes are gone, except `run`.
pub(crate) const DIRECTORIES: [&str; 3] = ["run", "shared", "rootfs"];
/// How long the processes of a sandbox may take to disappear once killed.
const REAP_DEADLINE: Duration = Duration::from_secs(20);

/// States of the OCI runtime specification, and `paused` as runc has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// The machine is being started.
    Creating,
    /// Waits for `start`.
    Created,
    /// Runs.
    Running,
    /// Frozen.
    Paused,
    /// Has ended.
    Stopped,
}

impl std::fmt::Display for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Creating => "creating",
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
        })
    }
}

/// A process on the host, told apart from a later one of the same number by its start time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessRef {
    /// Process id.
    pub pid: u32,
    /// Start time, clock ticks since boot (field 22 of `/proc/PID/stat`, proc(5)).
    pub start_ticks: u64,
}

impl ProcessRef {
    /// The process that has this number now; `None` if there is none.
    pub fn of(pid: u32) -> Option<Self> {
        let stat = stat_of(pid)?;
        let mut fields = stat.split_ascii_whitespace();
        let state = fields.next()?;
        // A zombie is gone for every purpose but its parent's.
        if state == "Z" || state == "X" {
            return None;
        }
        Some(Self { pid, start_ticks: fields.nth(18)?.parse().ok()? })
    }

    /// Whether it still runs.
    pub fn is_alive(&self) -> bool {
        Self::of(self.pid) == Some(*self)
    }

    /// Kills it if it still runs and waits until it is gone.
    ///
    /// # Errors
    /// [`Error::Deadline`] when it does not go away.
    pub fn kill_and_wait(&self, name: &str) -> Result<()> {
        let Some(handle) = sys::open_process(self.pid) else { return Ok(()) };
        if !self.is_alive() {
            return Ok(());
        }
        sys::kill_process(&handle);
        sys::wait_gone(&handle, REAP_DEADLINE).then_some(()).ok_or_else(|| Error::Deadline {
            what: format!("the end of {name} (pid {})", self.pid),
            seconds: REAP_DEADLINE.as_secs(),
        })
    }
}

/// What `/proc/PID/stat` says after the name.
fn stat_of(pid: u32) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    Some(stat[stat.rfind(')')? + 1..].to_owned())
}

/// Whether a signal has stopped the process that has this number now. A debugger that holds it does not count.
pub(crate) fn is_stopped(pid: u32) -> bool {
    stat_of(pid).is_some_and(|stat| stat.trim_start().starts_with('T'))
}

/// What `state.json` holds.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ContainerState {
    /// Version of the OCI runtime specification.
    pub oci_version: String,
    /// Name.
    pub id: String,
    /// State.
    pub status: Status,
    /// The host process that stands for the container's first process; 0 when there is none.
    pub pid: u32,
    /// Bundle directory, absolute.
    pub bundle: PathBuf,
    /// Root file system on the host, absolute.
    pub rootfs: PathBuf,
    /// When it was created, RFC 3339.
    pub created: String,
    /// The file of its configuration, unless it is the bundle's usual one.
    #[serde(default)]
    pub config: Option<PathBuf>,
    /// Annotations of its configuration.
    #[serde(default)]
    pub annotations: HashMap<String, String>,
    /// How the first process ended.
    #[serde(default)]
    pub exit: Option<ExitStatus>,
    /// Why the machine ended, if not by request.
    #[serde(default)]
    pub failure: Option<String>,
    /// Which start of the host (`boot_id` of random(4)) its processes are of: after another, their numbers are others'.
    #[serde(default)]
    pub boot: Option<String>,
    /// The process that creates the container, until the daemon answers for it.
    #[serde(default)]
    pub creator: Option<ProcessRef>,
    /// The daemon.
    #[serde(default)]
    pub daemon: Option<ProcessRef>,
    /// The virtual machine monitor.
    #[serde(default)]
    pub vmm: Option<ProcessRef>,
    /// The virtio-fs server.
    #[serde(default)]
    pub virtiofs: Option<ProcessRef>,
    /// `uname -r` of the guest.
    #[serde(default)]
    pub guest_kernel: Option<String>,
    /// Containers that have joined this one's sandbox.
    #[serde(default)]
    pub joined: Vec<String>,
    /// Host cgroups that were made for the sandbox, innermost first.
    #[serde(default)]
    pub cgroups: Vec<PathBuf>,
    /// The host's cgroup that its configuration names (`linux.cgroupsPath`).
    #[serde(default)]
    pub cgroup: Option<PathBuf>,
    /// The scope of systemd that its processes of the host are in, in place of that cgroup.
    #[serde(default)]
    pub scope: Option<Scope>,
    /// The state directory of the sandbox that it is in, if that is not its own.
    #[serde(default)]
    pub sandbox: Option<PathBuf>,
    /// The hooks of its configuration.
    #[serde(default)]
    pub hooks: Option<oci_spec::runtime::Hooks>,
}

impl ContainerState {
    /// What is known of a container before anything of it exists.
    pub fn new(id: &str, bundle: impl Into<PathBuf>) -> Self {
        let bundle = bundle.into();
        Self {
            oci_version: "1.0.2".into(),
            id: id.into(),
            status: Status::Creating,
            pid: 0,
            rootfs: bundle.join("rootfs"),
            bundle,
            created: humantime::format_rfc3339_nanos(SystemTime::now()).to_string(),
            config: None,
            annotations: HashMap::new(),
            exit: None,
            failure: None,
            boot: boot_id(),
            creator: ProcessRef::of(std::process::id()),
            daemon: None,
            vmm: None,
            virtiofs: None,
            guest_kernel: None,
            joined: Vec::new(),
            cgroups: Vec::new(),
            cgroup: None,
            scope: None,
            sandbox: None,
            hooks: None,
        }
    }

    /// `words` about a container that has stopped, and why it has, if that was nobody's wish.
    pub fn stopped(&self, words: &str) -> String {
        match self.failure.as_deref().and_then(|failure| failure.lines().next()) {
            Some(failure) => format!("{words}: {failure}"),
            None => words.into(),
        }
    }

    /// Whether the host has been started anew since it was written: then no process that it names is the one that was meant.
    pub fn is_of_another_boot(&self) -> bool {
        self.boot.is_some() && self.boot != boot_id()
    }

    /// Has systemd be asked for a scope, in place of the cgroup that the configuration names. `dir` is the state directory.
    ///
    /// # Errors
    /// As [`Scope::new`].
    pub fn ask_for_scope(&mut self, dir: &Path) -> Result<()> {
        let path = self.cgroup.take();
        self.scope = Some(Scope::new(&self.id, dir, path.as_deref(), &self.annotations)?);
        Ok(())
    }

    /// The scope of systemd that was asked for since the host's last start, which none survives.
    pub fn scope(&self) -> Option<&Scope> {
        self.scope.as_ref().filter(|_| !self.is_of_another_boot())
    }

    /// Whether a process lives that answers for it.
    pub(crate) fn is_answered_for(&self) -> bool {
        let alive = |process: &Option<ProcessRef>| process.as_ref().is_some_and(ProcessRef::is_alive);
        !self.is_of_another_boot() && (alive(&self.daemon) || (self.status == Status::Creating && alive(&self.creator)))
    }

    /// The sandbox's processes, the daemon first: the others die with it. None of a container that is in another's sandbox, for they are not
    /// its to kill, and none of before the host's last boot.
    pub(crate) fn processes(&self) -> impl Iterator<Item = (&'static str, ProcessRef)> + use<> {
        let processes = [
            ("the sandbox daemon", self.daemon),
            ("the virtual machine", self.vmm),
            ("the virtio-fs server", self.virtiofs),
        ];
        let own = self.sandbox.is_none() && !self.is_of_another_boot();
        processes.into_iter().filter_map(move |(name, process)| process.filter(|_| own).map(|process| (name, process)))
    }
}

/// What tells one start of the host from another (random(4)).
fn boot_id() -> Option<String> {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").ok().map(|id| id.trim().to_owned())
}

/// The directory of one container.
#[derive(Debug, Clone)]
pub struct StateDir {
    path: PathBuf,
    id: String,
}

impl StateDir {
    /// The directory itself.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The container's name.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The directory at this path, whose last component is the container's name.
    pub(crate) fn at(path: &Path) -> Self {
        let id = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        Self { path: path.into(), id }
    }

    /// A file in it.
    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Writes `state.json` so that a reader sees the old or the new one, whole.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn save(&self, state: &ContainerState) -> Result<()> {
        steps::reach_write(|| fs::read(self.file("state.json")), state)?;
        self.replace("state.json", &serde_json::to_vec_pretty(state).map_err(|e| Error::io("encode state.json", e))?)
    }

    pub(crate) fn replace(&self, name: &str, contents: &[u8]) -> Result<()> {
        let temporary = self.file(&format!("{name}.new"));
        let step = || format!("write {}", self.file(name).display());
        let mut options = fs::OpenOptions::new();
        let mut file = options
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&temporary)
            .map_err(|e| Error::io(step(), e))?;
        io::Write::write_all(&mut file, contents).map_err(|e| Error::io(step(), e))?;
        fs::rename(&temporary, self.file(name)).map_err(|e| Error::io(step(), e))
    }

    /// Reads `state.json` and corrects it by what is really alive.
    ///
    /// # Errors
    /// [`Error::Io`] when it cannot be read or is damaged.
    pub fn load(&self) -> Result<ContainerState> {
        let path = self.file("state.json");
        let bytes = fs::read(&path).map_err(|e| Error::io(format!("read {}", path.display()), e))?;
        let mut state: ContainerState = serde_json::from_slice(&bytes)
            .map_err(|e| Error::io(format!("read {}: remove it with delete --force", path.display()), e))?;
        if state.status != Status::Stopped && !state.is_answered_for() {
            state.status = Status::Stopped;
            let why = if state.is_of_another_boot() { "the host was started anew" } else { "the sandbox daemon died" };
            state.failure.get_or_insert_with(|| why.into());
        }
        if state.status == Status::Stopped {
            state.pid = 0;
        }
        Ok(state)
    }

    /// Kills every process of the sandbox that still lives, other than the calling one, and removes the directory.
    ///
    /// # Errors
    /// [`Error::Deadline`] or [`Error::Io`]; what could be removed is.
    pub fn purge(&self) -> Result<()> {
        if let Ok(bytes) = fs::read(self.file("state.json"))
            && let Ok(state) = serde_json::from_slice::<ContainerState>(&bytes)
        {
            let own = std::process::id();
            for (name, process) in state.processes().filter(|(_, process)| process.pid != own) {
                process.kill_and_wait(name)?;
            }
            crate::cgroup::remove(&state.cgroups);
            if let Some(scope) = state.scope() {
                scope.remove()?;
            }
            if let Some(sandbox) = state.sandbox.as_deref().filter(|_| !state.is_answered_for()) {
                // Its daemon did not come to remove it.
                Self::at(sandbox).purge_ownerless()?;
            }
        }
        self.remove()
    }

    /// Gives the name back while the sandbox stays for others. Gives where the directory is now.
    pub(crate) fn give_up_name(&self) -> Result<Self> {
        let name = format!("{OWNERLESS}{}{OWNERLESS}{}", self.id, std::process::id());
        let path = self.path.with_file_name(name);
        fs::rename(&self.path, &path).map_err(|e| Error::io(format!("rename {}", self.path.display()), e))?;
        Ok(Self::at(&path))
    }

    /// Writes down that the calling process, its daemon, is about to end by itself.
    pub(crate) fn update_daemonless(&self) -> Result<()> {
        let mut state = self.load()?;
        state.daemon = None;
        self.save(&state)
    }

    /// Removes what [`StateDir::give_up_name`] has moved. That of a container that is there is not touched.
    pub(crate) fn purge_ownerless(&self) -> Result<()> {
        if self.id.starts_with(OWNERLESS) { self.purge() } else { Ok(()) }
    }

    fn remove(&self) -> Result<()> {
        let gone = |result: io::Result<()>| match result {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        };
        let failed = |path: &Path, error| Error::io(format!("remove {}", path.display()), error);
        for directory in [self.file("run"), self.path.clone()] {
            let entries = match fs::read_dir(&directory) {
                Ok(entries) => entries,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(failed(&directory, error)),
            };
            // state.json goes last, so that an interrupted removal can be repeated with all it knows.
            for entry in entries {
                let entry = entry.map_err(|e| failed(&directory, e))?;
                if entry.file_name() != "state.json" && !entry.file_type().is_ok_and(|t| t.is_dir()) {
                    gone(fs::remove_file(entry.path())).map_err(|e| failed(&entry.path(), e))?;
                }
            }
        }
        for directory in DIRECTORIES.map(|name| self.file(name)) {
            gone(fs::remove_dir(&directory)).map_err(|e| failed(&directory, e))?;
        }
        let state = self.file("state.json");
        gone(fs::remove_file(&state)).map_err(|e| failed(&state, e))?;
        gone(fs::remove_dir(&self.path)).map_err(|e| failed(&self.path, e))
    }
}

/// All containers under one root.
#[derive(Debug, Clone)]
pub struct Store {
    root: PathBuf,
}

impl Store {
    /// A store at `root`, which need not exist yet.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// Its directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Checks a container's name: 1 to 255 of `A-Z a-z 0-9 _ + - .`, not `.` or `..`, as runc.
    ///
    /// # Errors
    /// [`Error::Id`].
    pub fn check_id(id: &str) -> Result<()> {
        let bad = |expected| Err(Error::Id { id: id.into(), expected });
        if id.is_empty() || id.len() > 255 {
            return bad("1 to 255 characters are expected");
        }
        if !id.bytes().all(|b| b.is_ascii_alphanumeric() || b"_+-.".contains(&b)) {
            return bad("only letters, digits and the characters _ + - . are allowed");
        }
        if id == "." || id == ".." {
            return bad("it names a directory");
        }
        Ok(())
    }

    /// Refuses a bad name or one in use, changing nothing.
    ///
    /// # Errors
    /// [`Error::Id`], [`Error::Exists`].
    pub fn check_free(&self, id: &str) -> Result<()> {
        Self::check_id(id)?;
        if fs::symlink_metadata(self.root.join(id)).is_ok() { Err(self.exists(id)) } else { Ok(()) }
    }

    fn exists(&self, id: &str) -> Error {
        Error::Exists { id: id.into(), root: self.root.clone() }
    }

    /// Makes the directory of a new container.
    ///
    /// # Errors
    /// [`Error::Id`], [`Error::Exists`], [`Error::Io`].
    pub fn reserve(&self, id: &str) -> Result<StateDir> {
        Self::check_id(id)?;
        let private = |path: &Path, recursive| fs::DirBuilder::new().mode(0o700).recursive(recursive).create(path);
        private(&self.root, true)
            .map_err(|e| Error::io(format!("create the state directory {}", self.root.display()), e))?;
        let path = self.root.join(id);
        let mut made = private(&path, false);
        if made.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::NotFound) {
            // The last sandbox has just gone, and the root with it.
            made = private(&self.root, true).and_then(|()| private(&path, false));
        }
        match made {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Err(self.exists(id)),
            other => other.map_err(|e| Error::io(format!("create {}", path.display()), e))?,
        }
        let dir = StateDir { path, id: id.into() };
        for name in ["run", "shared"] {
            private(&dir.file(name), false)
                .map_err(|e| Error::io(format!("create {}", dir.file(name).display()), e))?;
        }
        Ok(dir)
    }

    /// Removes the root, and `levels` directories above it, as far as they are empty.
    pub fn remove_if_empty(&self, levels: usize) {
        for directory in self.root.ancestors().take(levels + 1) {
            if fs::remove_dir(directory).is_err() {
                return;
            }
        }
    }

    /// The directory of an existing container.
    ///
    /// # Errors
    /// [`Error::Id`], [`Error::NotFound`].
    pub fn find(&self, id: &str) -> Result<StateDir> {
        Self::check_id(id)?;
        let path = self.root.join(id);
        if !path.is_dir() {
            return Err(Error::NotFound { id: id.into(), root: self.root.clone() });
        }
        Ok(StateDir { path, id: id.into() })
    }

    /// The state of one container.
    ///
    /// # Errors
    /// As [`Store::find`] and [`StateDir::load`].
    pub fn state(&self, id: &str) -> Result<ContainerState> {
        self.find(id)?.load()
    }

    /// The states of all containers, by name. Directories whose state cannot be read are given with the reason.
    ///
    /// # Errors
    /// [`Error::Io`] when the root cannot be read.
    pub fn list(&self) -> Result<Vec<(String, Result<ContainerState>)>> {
        let entries = match fs::read_dir(&self.root) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(Error::io(format!("read {}", self.root.display()), error)),
        };
        let mut states: Vec<_> = entries
            .filter_map(|entry| entry.ok().filter(|entry| entry.path().is_dir())?.file_name().into_string().ok())
            .filter(|name| Self::check_id(name).is_ok())
            .map(|name| {
                let state = self.state(&name);
                (name, state)
            })
            .collect();
        states.sort_by(|a, b| a.0.cmp(&b.0));
        Ok(states)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(id: &str) -> ContainerState {
        ContainerState { status: Status::Running, pid: 1, creator: None, ..ContainerState::new(id, "/b") }
    }

    #[test]
    fn what_a_dead_sandbox_refuses_names_the_death() {
        let mut stopped = ContainerState { status: Status::Stopped, ..state("c") };
        assert_eq!(stopped.stopped("container not running"), "container not running");
        stopped.failure = Some("QEMU died\nand more".into());
        assert_eq!(stopped.stopped("container not running"), "container not running: QEMU died");
    }

    #[test]
    fn a_sandbox_that_stays_for_others_gives_its_name_back_and_goes_with_the_last() {
        let top = tempfile::tempdir().unwrap();
        let store = Store::new(top.path());
        let first = store.reserve("first").unwrap();
        first.save(&state("first")).unwrap();
        let moved = first.give_up_name().unwrap();
        store.check_free("first").unwrap();
        assert!(store.list().unwrap().is_empty() && moved.path().exists());
        let other = store.reserve("other").unwrap();
        other.save(&ContainerState { sandbox: Some(moved.path().into()), ..state("other") }).unwrap();
        // Its daemon is dead.
        other.purge().unwrap();
        assert!(!moved.path().exists() && !other.path().exists());
        // The directory of a container that is there is its own to remove.
        let owner = store.reserve("owner").unwrap();
        owner.save(&state("owner")).unwrap();
        let member = store.reserve("member").unwrap();
        member.save(&ContainerState { sandbox: Some(owner.path().into()), ..state("member") }).unwrap();
        member.purge().unwrap();
        assert!(owner.path().exists());
    }

    #[test]
    fn an_empty_root_goes_and_comes_back() {
        let top = tempfile::tempdir().unwrap();
        let store = Store::new(top.path().join("shim/default"));
        let dir = store.reserve("c1").unwrap();
        store.remove_if_empty(1);
        assert!(dir.path().exists());
        dir.purge().unwrap();
        store.remove_if_empty(1);
        assert_eq!(fs::read_dir(top.path()).unwrap().count(), 0);
        store.reserve("c1").unwrap();
    }

    #[test]
    fn names_that_are_paths_or_empty_are_refused() {
        for id in ["", ".", "..", "a/b", "a b", "a\0", "\u{e9}", &"x".repeat(256)] {
            assert!(matches!(Store::check_id(id), Err(Error::Id { .. })), "{id:?}");
        }
        for id in ["a", "A-b_c.d+e", "...", &"x".repeat(255)] {
            Store::check_id(id).unwrap();
        }
    }

    #[test]
    fn a_name_is_taken_once_and_free_after_removal() {
        let root = tempfile::tempdir().unwrap();
        let store = Store::new(root.path().join("deep/root"));
        store.check_free("c").unwrap();
        let dir = store.reserve("c").unwrap();
        assert!(matches!(store.reserve("c"), Err(Error::Exists { .. })));
        dir.save(&state("c")).unwrap();
        fs::write(dir.file("run").join("leftover"), "x").unwrap();
        assert_eq!(store.list().unwrap().len(), 1);
        dir.purge().unwrap();
        store.check_free("c").unwrap();
        assert!(matches!(store.find("c"), Err(Error::NotFound { .. })));
        assert_eq!(fs::read_dir(store.root()).unwrap().count(), 0);
    }

    #[test]
    fn a_container_whose_daemon_died_is_stopped_and_says_why() {
        let root = tempfile::tempdir().unwrap();
        let store = Store::new(root.path());
        let dir = store.reserve("c").unwrap();
        // A process of that number exists, but it is another one.
        let daemon = ProcessRef { pid: std::process::id(), start_ticks: 1 };
        dir.save(&ContainerState { daemon: Some(daemon), ..state("c") }).unwrap();
        let loaded = dir.load().unwrap();
        assert_eq!((loaded.status, loaded.pid), (Status::Stopped, 0));
        assert!(loaded.failure.unwrap().contains("daemon died"));
        let daemon = ProcessRef::of(std::process::id());
        dir.save(&ContainerState { daemon, ..state("c") }).unwrap();
        assert_eq!(dir.load().unwrap().status, Status::Running);
    }

    #[test]
    fn a_process_is_killed_only_if_it_is_the_one_that_was_meant() {
        let mut child = std::process::Command::new("sleep").arg("100").spawn().unwrap();
        let process = ProcessRef::of(child.id()).unwrap();
        ProcessRef { start_ticks: process.start_ticks + 1, ..process }.kill_and_wait("another").unwrap();
        assert!(process.is_alive());
        process.kill_and_wait("it").unwrap();
        assert!(!process.is_alive());
        child.wait().unwrap();
    }

    #[test]
    fn removal_never_descends() {
        let root = tempfile::tempdir().unwrap();
        let dir = Store::new(root.path()).reserve("c").unwrap();
        dir.save(&state("c")).unwrap();
        fs::create_dir(dir.file("shared").join("precious")).unwrap();
        assert!(dir.purge().is_err());
        assert!(dir.file("shared").join("precious").is_dir());
        assert!(dir.file("state.json").exists());
    }
}
