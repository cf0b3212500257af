//! A container's cgroup.
//!
//! The agent itself stays in the root, which may have processes besides children. Every other inner cgroup has none:
//! containers are leaves, below which they may make their own.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use agent_api::Fault;
use rustix::fs::{Mode, OFlags, mkdir, openat, rmdir};
use rustix::io::Errno;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::device_cgroup;
use super::resources::{Missing, Setting, settings};
use crate::boot::CGROUP_ROOT;
use crate::fault::{Context, internal, invalid, reason};
use crate::spec::{DeviceRule, Resources};
use crate::tokens::within;

/// How long the kernel may take to freeze or to clear a cgroup.
const DEADLINE: Duration = Duration::from_secs(10);

/// A cgroup that exists until [`Cgroup::remove`].
#[derive(Debug)]
pub struct Cgroup {
    path: PathBuf,
    dir: OwnedFd,
}

impl Cgroup {
    /// Makes a container's cgroup and limits it.
    ///
    /// # Errors
    /// When it has processes already, or the kernel refuses something.
    pub fn create(id: &str, cgroups_path: Option<&Path>, resources: Option<&Resources>) -> Result<Self, Fault> {
        let relative = relative_path(id, cgroups_path)?;
        let path = make(&relative)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = rustix::fs::open(&path, flags, Mode::empty()).context(|| format!("open {}", path.display()))?;
        let cgroup = Self { path, dir };
        cgroup.check_unused()?;
        if let Err(fault) = cgroup.limit(resources) {
            cgroup.remove_now();
            return Err(fault);
        }
        Ok(cgroup)
    }

    fn check_unused(&self) -> Result<(), Fault> {
        if self.read("cgroup.procs").context(|| format!("read cgroup.procs of {}", self.path.display()))?.is_empty() {
            return Ok(());
        }
        Err(invalid(format!(
            "linux.cgroupsPath: the cgroup {} has processes of another container",
            self.path.display()
        )))
    }

    fn limit(&self, resources: Option<&Resources>) -> Result<(), Fault> {
        if let Some(resources) = resources {
            for setting in settings(resources)? {
                apply(&self.path, &setting)?;
            }
        }
        self.filter_devices(resources.map_or(&[], |resources| &resources.devices[..]))
    }

    fn filter_devices(&self, rules: &[DeviceRule]) -> Result<(), Fault> {
        let code = device_cgroup::program(rules)?;
        let program =
            crate::sys::load_device_filter(&code).context(|| "loading the container's device filter".into())?;
        crate::sys::attach_device_filter(self.dir.as_fd(), program.as_fd())
            .context(|| format!("attaching a device filter to {}", self.path.display()))
    }

    /// Its directory.
    pub fn dir(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }

    /// Its directory's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn open(&self, file: &str, flags: OFlags) -> io::Result<OwnedFd> {
        Ok(openat(&self.dir, file, flags | OFlags::CLOEXEC, Mode::empty())?)
    }

    fn write(&self, file: &str, value: &str) -> io::Result<()> {
        let file = self.open(file, OFlags::WRONLY)?;
        rustix::io::write(&file, value.as_bytes())?;
        Ok(())
    }

    fn read(&self, file: &str) -> io::Result<String> {
        std::fs::read_to_string(self.path.join(file))
    }

    /// The processes of the cgroup and of those that the container made below it.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn processes(&self) -> Result<Vec<u32>, Fault> {
        let mut pids = Vec::new();
        collect(&self.path, &mut pids).context(|| format!("reading the processes of {}", self.path.display()))?;
        Ok(pids)
    }

    /// Sends a signal to every process. Kills are done by the kernel, at once; others as long as new processes appear.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn signal(&self, signal: i32) -> Result<(), Fault> {
        if signal == libc::SIGKILL {
            return self.write("cgroup.kill", "1").context(|| format!("write cgroup.kill of {}", self.path.display()));
        }
        let mut told = std::collections::HashSet::new();
        loop {
            let new: Vec<u32> = self.processes()?.into_iter().filter(|pid| told.insert(*pid)).collect();
            if new.is_empty() {
                return Ok(());
            }
            for pid in new {
                match crate::sys::kill(pid, signal) {
                    Err(error) if error.raw_os_error() != Some(libc::ESRCH) => {
                        return Err(internal(format!("signal {signal} to process {pid}: {}", reason(&error))));
                    }
                    _ => {}
                }
            }
        }
    }

    /// Freezes or thaws every process, and waits until that is so.
    ///
    /// # Errors
    /// When it does not come about within ten seconds; a cgroup that would not freeze is thawed again.
    pub async fn freeze(&self, frozen: bool) -> Result<(), Fault> {
        let (value, what) = if frozen { ("1", "freezing") } else { ("0", "thawing") };
        self.write("cgroup.freeze", value).context(|| format!("{what} {}", self.path.display()))?;
        let line = format!("frozen {value}");
        let done = self.wait_for(&line, &format!("{what} the container's processes")).await;
        if done.is_err() && frozen {
            // What is reported is that it did not freeze.
            let _ = self.write("cgroup.freeze", "0");
        }
        done
    }

    /// How many of its processes the kernel has killed for want of memory.
    pub fn oom_kills(&self) -> u64 {
        let events = self.read("memory.events").unwrap_or_default();
        events.lines().find_map(|line| line.strip_prefix("oom_kill ")?.parse().ok()).unwrap_or(0)
    }

    /// Calls `changed` now and whenever `memory.events` changes, until that says that it is enough. Returns at once if the kernel
    /// has no such file.
    pub async fn watch_memory(events: AsyncFd<OwnedFd>, mut changed: impl FnMut() -> bool) {
        loop {
            // Reading is what makes the next change be told.
            if rustix::io::pread(events.get_ref(), &mut [0; 512][..], 0).is_err() || !changed() {
                return;
            }
            match events.ready(Interest::PRIORITY).await {
                Ok(mut guard) => guard.clear_ready(),
                Err(_) => return,
            }
        }
    }

    /// What [`Cgroup::watch_memory`] watches, if the kernel has it.
    pub fn memory_events(&self) -> Option<AsyncFd<OwnedFd>> {
        let file = self.open("memory.events", OFlags::RDONLY).ok()?;
        crate::sys::register(file, Interest::PRIORITY).ok()
    }

    /// Waits until a line is in `cgroup.events`.
    async fn wait_for(&self, line: &str, what: &str) -> Result<(), Fault> {
        let file = self.open("cgroup.events", OFlags::RDONLY).context(|| "open cgroup.events".into())?;
        let events = crate::sys::register(file, Interest::PRIORITY).context(|| "waiting for cgroup.events".into())?;
        let watch = async {
            loop {
                let mut buffer = [0; 128];
                let length = rustix::io::pread(events.get_ref(), &mut buffer[..], 0).map_err(io::Error::from)?;
                if String::from_utf8_lossy(&buffer[..length]).lines().any(|found| found == line) {
                    return Ok(());
                }
                events.ready(Interest::PRIORITY).await?.clear_ready();
            }
        };
        let done: io::Result<()> = within(DEADLINE, what, watch).await?;
        done.context(|| "waiting for cgroup.events".into())
    }

    /// Kills what is in it and removes it.
    ///
    /// # Errors
    /// When processes do not go away within ten seconds.
    pub async fn remove(&self) -> Result<(), Fault> {
        if self.read("cgroup.events").is_ok_and(|events| events.contains("populated 1")) {
            // A frozen process is killed, too.
            self.signal(libc::SIGKILL)?;
            self.wait_for("populated 0", "the end of the container's processes").await?;
        }
        remove_tree(&self.path).context(|| format!("removing the cgroup {}", self.path.display()))
    }

    /// Removes it if it is empty, for when making a container has failed.
    pub fn remove_now(&self) {
        // It is empty, or its processes are ending; then a later container of this name finds and uses it.
        let _ = remove_tree(&self.path);
    }
}

/// Writes one setting of the cgroup at a path.
///
/// # Errors
/// When the kernel refuses it.
pub fn apply(cgroup: &Path, setting: &Setting) -> Result<(), Fault> {
    let failed = |error: io::Error| {
        let path = cgroup.join(&setting.file);
        internal(format!(
            "unable to apply cgroup configuration: write {:?} to {}: {}",
            setting.value,
            path.display(),
            reason(&error)
        ))
    };
    match write(&cgroup.join(&setting.file), &setting.value) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => match &setting.missing {
            Missing::Refuse => Err(failed(error)),
            Missing::Ignore => Ok(()),
            Missing::Instead(file, value) => write(&cgroup.join(file), value).map_err(failed),
        },
        other => other.map_err(failed),
    }
}

/// Writes to a file that is there.
fn write(file: &Path, value: &str) -> io::Result<()> {
    let file = rustix::fs::open(file, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::io::write(&file, value.as_bytes())?;
    Ok(())
}

fn collect(dir: &Path, pids: &mut Vec<u32>) -> io::Result<()> {
    match std::fs::read_to_string(dir.join("cgroup.procs")) {
        Ok(text) => pids.extend(text.lines().filter_map(|line| line.parse::<u32>().ok()).filter(|&pid| pid != 0)),
        // A threaded cgroup, whose processes are listed further up.
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {}
        Err(error) => return Err(error),
    }
    for below in subdirectories(dir) {
        match collect(&below, pids) {
            // Removed meanwhile.
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV)) => {}
            other => other?,
        }
    }
    Ok(())
}

fn subdirectories(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path()).collect()
}

fn remove_tree(dir: &Path) -> io::Result<()> {
    for below in subdirectories(dir) {
        remove_tree(&below)?;
    }
    match rmdir(dir) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Where a container's cgroup is, relative to the root of the hierarchy.
fn relative_path(id: &str, cgroups_path: Option<&Path>) -> Result<PathBuf, Fault> {
    let Some(path) = cgroups_path.filter(|path| !path.as_os_str().is_empty()) else {
        return Ok(Path::new("kata").join(id));
    };
    // "slice:prefix:name", as callers write it who use systemd on the host.
    let text = path.to_string_lossy();
    if let [slice, prefix, name] = text.split(':').collect::<Vec<_>>()[..]
        && !text.contains('/')
    {
        let scope = if prefix.is_empty() { format!("{name}.scope") } else { format!("{prefix}-{name}.scope") };
        return Ok(Path::new(slice).join(scope));
    }
    let mut clean = PathBuf::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => clean.push(name),
            Component::RootDir | Component::CurDir => {}
            _ => return Err(invalid(format!("linux.cgroupsPath is {text:?}, expected a path without \"..\""))),
        }
    }
    if clean.as_os_str().is_empty() {
        return Err(invalid(format!("linux.cgroupsPath is {text:?}, expected the path of a cgroup below the root")));
    }
    Ok(clean)
}

/// Makes the cgroups of a path, with every controller there is enabled for the last one.
fn make(relative: &Path) -> Result<PathBuf, Fault> {
    let mut dir = PathBuf::from(CGROUP_ROOT);
    for name in relative.components() {
        enable_controllers(&dir)?;
        dir.push(name);
        match mkdir(&dir, Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(error).context(|| format!("mkdir {}", dir.display())),
        }
    }
    Ok(dir)
}

fn enable_controllers(dir: &Path) -> Result<(), Fault> {
    let read =
        |name: &str| std::fs::read_to_string(dir.join(name)).context(|| format!("read {}", dir.join(name).display()));
    let enabled = read("cgroup.subtree_control")?;
    let missing: Vec<String> = read("cgroup.controllers")?
        .split_ascii_whitespace()
        .filter(|name| !enabled.split_ascii_whitespace().any(|enabled| enabled == *name))
        .map(|name| format!("+{name}"))
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let path = dir.join("cgroup.subtree_control");
    std::fs::write(&path, missing.join(" ")).context(|| format!("write {:?} to {}", missing.join(" "), path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> Result<PathBuf, Fault> {
        relative_path("c1", Some(Path::new(text)))
    }

    #[test]
    fn paths_stay_below_the_root() {
        assert_eq!(relative_path("c1", None).unwrap(), Path::new("kata/c1"));
        assert_eq!(path("/kubepods/pod1/./c1").unwrap(), Path::new("kubepods/pod1/c1"));
        assert_eq!(path("user.slice:runc:c1").unwrap(), Path::new("user.slice/runc-c1.scope"));
        assert!(path("/a/../../b").unwrap_err().message.contains("without"));
        assert!(path("/").unwrap_err().message.contains("below the root"));
    }
}
