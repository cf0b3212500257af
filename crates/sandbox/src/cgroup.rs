//! The host's control group of a sandbox: the process that hosts it, and so every process that this starts, is accounted for and limited where
//! the engine wants the pod to be.
//!
//! With cgroup v1 that is one directory in each hierarchy, with v2 one in all. Who has systemd manage cgroups asks for a scope of it
//! ([`crate::systemd`]) instead.

use std::{
    fs, io,
    path::{Component, Path, PathBuf},
    time::{Duration, Instant},
};

use crate::{Error, Result, systemd::Scope};

/// A mounted hierarchy.
#[derive(Debug, PartialEq, Eq)]
struct Hierarchy {
    /// Where it is mounted.
    at: PathBuf,
    /// Field 2 of `/proc/PID/cgroup`: its controllers, sorted; empty for v2.
    controllers: Vec<String>,
    /// What of it is mounted there.
    root: PathBuf,
}

/// Where a sandbox's process is, and where it was.
#[derive(Debug)]
pub struct HostCgroup {
    /// Directories, and whether they were made for the sandbox.
    entered: Vec<Entered>,
}

#[derive(Debug)]
struct Entered {
    back: PathBuf,
    made: Vec<PathBuf>,
}

/// Where hierarchies are mounted on every host.
const MOUNT_TABLE: &str = "/proc/self/mountinfo";

impl HostCgroup {
    /// Moves the calling process into the cgroup `path` (`linux.cgroupsPath`), which is made where it is missing. Before that `made` is told of
    /// all directories that are made, innermost first.
    ///
    /// # Errors
    /// [`Error::State`] for a path that is none; [`Error::Io`]; the process is where it was then.
    pub fn enter(path: &Path, made: &mut dyn FnMut(Vec<PathBuf>) -> Result<()>) -> Result<Self> {
        let relative = relative_path(path)?;
        let table = read(Path::new(MOUNT_TABLE))?;
        let own = read(Path::new("/proc/self/cgroup"))?;
        let place = |hierarchy: &Hierarchy| Some((hierarchy.at.join(&relative), hierarchy.own(&own)?));
        let places: Vec<(PathBuf, PathBuf)> = hierarchies(&table).iter().filter_map(place).collect();
        let missing: Vec<Vec<PathBuf>> = places.iter().map(|(dir, _)| missing(dir)).collect();
        tell(&missing, made)?;
        let mut cgroup = Self { entered: Vec::new() };
        for ((dir, back), missing) in places.into_iter().zip(missing) {
            if let Err(error) = cgroup.enter_one(&dir, back, &missing) {
                cgroup.leave();
                return Err(error);
            }
        }
        Ok(cgroup)
    }

    /// Has systemd take the calling process into a scope.
    ///
    /// # Errors
    /// [`Error::Systemd`], or [`Error::Io`]; the process is where it was then.
    pub fn enter_scope(scope: &Scope) -> Result<Self> {
        let table = read(Path::new(MOUNT_TABLE))?;
        let own = read(Path::new("/proc/self/cgroup"))?;
        let backs = hierarchies(&table).into_iter().filter_map(|hierarchy| hierarchy.own(&own));
        let entered = backs.map(|back| Entered { back, made: Vec::new() }).collect();
        scope.enter()?;
        Ok(Self { entered })
    }

    fn enter_one(&mut self, dir: &Path, back: PathBuf, missing: &[PathBuf]) -> Result<()> {
        let mut entered = Entered { back, made: Vec::new() };
        let result = make_all(missing).map(|()| entered.made = missing.to_vec());
        let result = result.and_then(|()| {
            let procs = dir.join("cgroup.procs");
            fs::write(&procs, std::process::id().to_string())
                .map_err(|e| Error::io(format!("enter the cgroup {}", dir.display()), e))
        });
        self.entered.push(entered);
        result
    }

    /// Moves the process back and removes what was made. A directory that something else is in stays.
    pub fn leave(&mut self) {
        for Entered { back, made } in self.entered.drain(..) {
            // What cannot be left cannot be removed either, and is left to whoever removes the pod's cgroup.
            let _ = fs::write(back.join("cgroup.procs"), std::process::id().to_string());
            remove(&made);
        }
    }
}

/// The directories that are to be made for one, innermost first.
fn missing(dir: &Path) -> Vec<PathBuf> {
    dir.ancestors().take_while(|at| !at.exists()).map(Path::to_path_buf).collect()
}

/// At once: each time the state is written down anew, and version 1 has a dozen hierarchies.
fn tell(missing: &[Vec<PathBuf>], made: &mut dyn FnMut(Vec<PathBuf>) -> Result<()>) -> Result<()> {
    let all = missing.concat();
    if all.is_empty() { Ok(()) } else { made(all) }
}

/// Makes directories, given innermost first. If one cannot be made, those that were made go again.
fn make_all(missing: &[PathBuf]) -> Result<()> {
    for (left, dir) in missing.iter().enumerate().rev() {
        // Another sandbox may make the same one above its own.
        if let Err(error) = fs::create_dir(dir)
            && error.kind() != io::ErrorKind::AlreadyExists
        {
            remove(&missing[left + 1..]);
            return Err(Error::io(format!("make the cgroup {}", dir.display()), error));
        }
        inherit_cpuset(dir);
    }
    Ok(())
}

/// Makes the cgroup `path` (`linux.cgroupsPath`) of a container where it is missing. Before that `made` is told of all directories that are
/// made, innermost first, and of the cgroup itself also where it is there: as with runc, it goes with the container. The machine of an earlier
/// one of that name may be in it still.
///
/// # Errors
/// [`Error::State`] for a path that is none; [`Error::Io`].
pub(crate) fn make(path: &Path, made: &mut dyn FnMut(Vec<PathBuf>) -> Result<()>) -> Result<()> {
    let relative = relative_path(path)?;
    let table = read(Path::new(MOUNT_TABLE))?;
    let dirs: Vec<PathBuf> = hierarchies(&table).iter().map(|hierarchy| hierarchy.at.join(&relative)).collect();
    let missing: Vec<Vec<PathBuf>> = dirs.iter().map(|dir| missing(dir)).collect();
    let own = |(dir, missing): (&PathBuf, &Vec<PathBuf>)| {
        if missing.is_empty() { vec![dir.clone()] } else { missing.clone() }
    };
    tell(&dirs.iter().zip(&missing).map(own).collect::<Vec<_>>(), made)?;
    missing.iter().try_for_each(|missing| make_all(missing))
}

/// The hierarchies that there are: where each is mounted, and its controllers, of which version 2 names none.
///
/// # Errors
/// [`Error::Io`] when the mount table cannot be read.
pub fn mounted() -> Result<Vec<(PathBuf, Vec<String>)>> {
    let found = hierarchies(&read(Path::new(MOUNT_TABLE))?);
    Ok(found.into_iter().map(|hierarchy| (hierarchy.at, hierarchy.controllers)).collect())
}

/// How long processes that were killed may take to leave a cgroup on a machine with much to do: until their parent has reaped them.
const LEAVE_DEADLINE: Duration = Duration::from_secs(10);
/// How often that is looked at; there is nothing to wait for in cgroup v1.
const PAUSE: Duration = Duration::from_millis(5);

/// Removes cgroups of a sandbox, innermost first. One that something else is in stays.
pub(crate) fn remove(made: &[PathBuf]) {
    let end = Instant::now() + LEAVE_DEADLINE;
    for dir in made {
        while let Err(error) = fs::remove_dir(dir) {
            if error.kind() != io::ErrorKind::ResourceBusy || has_cgroups(dir) || Instant::now() > end {
                break;
            }
            std::thread::sleep(PAUSE);
        }
    }
}

/// Whether others have made cgroups in one. They will not go soon.
fn has_cgroups(dir: &Path) -> bool {
    fs::read_dir(dir).is_ok_and(|mut entries| entries.any(|entry| entry.is_ok_and(|entry| entry.path().is_dir())))
}

/// A new cpuset of v1 has neither CPUs nor memory nodes, and refuses processes until it has.
fn inherit_cpuset(dir: &Path) {
    for name in ["cpuset.cpus", "cpuset.mems"] {
        let (file, above) = (dir.join(name), dir.parent().map(|above| above.join(name)));
        let is_empty = fs::read_to_string(&file).is_ok_and(|text| text.trim().is_empty());
        if let Some(text) = above.and_then(|above| fs::read_to_string(above).ok())
            && is_empty
        {
            // With v2 an empty set means the parent's; entering says whether it was needed.
            let _ = fs::write(&file, text.trim());
        }
    }
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).map_err(|e| Error::io(format!("read {}", path.display()), e))
}

/// The hierarchies of a mount table (proc_pid_mountinfo(5)); each once. Of v2, only if it has controllers: on a host with v1's, it is systemd's.
fn hierarchies(table: &str) -> Vec<Hierarchy> {
    let mut found: Vec<Hierarchy> = Vec::new();
    for line in table.lines() {
        let Some((mount, file_system)) = line.split_once(" - ") else { continue };
        let mut mount = mount.split(' ').skip(3);
        let (Some(root), Some(at)) = (mount.next(), mount.next()) else { continue };
        let mut file_system = file_system.split(' ');
        let (kind, options) = (file_system.next(), file_system.nth(1).unwrap_or_default());
        let mut controllers = match kind {
            Some("cgroup2") => Vec::new(),
            // The options of a v1 hierarchy are its controllers, among others.
            Some("cgroup") => {
                options.split(',').filter(|option| !["rw", "ro", "xattr", "clone_children"].contains(option)).collect()
            }
            _ => continue,
        };
        controllers.sort_unstable();
        let hierarchy = Hierarchy {
            at: at.into(),
            controllers: controllers.into_iter().map(str::to_owned).collect(),
            root: root.into(),
        };
        if !found.iter().any(|known| known.controllers == hierarchy.controllers) {
            found.push(hierarchy);
        }
    }
    found
}

impl Hierarchy {
    /// Directory of the calling process's cgroup, by its `/proc/self/cgroup`.
    fn own(&self, own: &str) -> Option<PathBuf> {
        let path = own.lines().find_map(|line| {
            let mut fields = line.splitn(3, ':').skip(1);
            let (controllers, path) = (fields.next()?, fields.next()?);
            let mut controllers: Vec<&str> = controllers.split(',').filter(|name| !name.is_empty()).collect();
            controllers.sort_unstable();
            (controllers == self.controllers).then_some(path)
        })?;
        let below = Path::new(path).strip_prefix(&self.root).unwrap_or(Path::new(path).strip_prefix("/").ok()?);
        Some(self.at.join(below))
    }
}

/// `linux.cgroupsPath`, below a hierarchy: a path, or systemd's `slice:prefix:name`.
fn relative_path(path: &Path) -> Result<PathBuf> {
    let text = path.to_string_lossy();
    let bad = || {
        Error::State(format!("linux.cgroupsPath is {text:?}; a path without \"..\", or slice:prefix:name, is expected"))
    };
    if let [slice, prefix, name] = text.split(':').collect::<Vec<_>>()[..]
        && !text.contains('/')
    {
        let Some(stem) = slice.strip_suffix(".slice") else { return Err(bad()) };
        // "a-b.slice" lies in "a.slice" (systemd.slice(5)).
        let mut path = PathBuf::new();
        let mut so_far = String::new();
        for part in stem.split('-').filter(|part| !part.is_empty()) {
            so_far.push_str(if so_far.is_empty() { "" } else { "-" });
            so_far.push_str(part);
            path.push(format!("{so_far}.slice"));
        }
        let scope = if prefix.is_empty() { format!("{name}.scope") } else { format!("{prefix}-{name}.scope") };
        return Ok(path.join(scope));
    }
    let mut clean = PathBuf::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => clean.push(name),
            Component::RootDir | Component::CurDir => {}
            _ => return Err(bad()),
        }
    }
    if clean.as_os_str().is_empty() { Err(bad()) } else { Ok(clean) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_those_of_the_engines() {
        let path = |text: &str| relative_path(Path::new(text)).map(|path| path.to_string_lossy().into_owned());
        assert_eq!(path("/kubepods/pod1/c1").unwrap(), "kubepods/pod1/c1");
        assert_eq!(
            path("kubepods-besteffort-pod1.slice:cri-containerd:c1").unwrap(),
            "kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod1.slice/cri-containerd-c1.scope"
        );
        for bad in ["", "/", "/a/../b", "a:b:c"] {
            assert!(path(bad).unwrap_err().to_string().contains("cgroupsPath"), "{bad}");
        }
    }

    #[test]
    fn every_hierarchy_is_found_once_and_knows_the_own_cgroup() {
        let table = "30 20 0:26 / /sys/fs/cgroup ro - tmpfs tmpfs ro\n\
             31 30 0:27 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw,nsdelegate\n\
             32 30 0:28 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
             33 30 0:29 /pod /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
             34 30 0:29 /pod /again rw - cgroup cgroup rw,memory\n";
        let own = "3:memory:/pod/me\n2:cpuacct,cpu:/me\n0::/unified/me\n";
        let found = hierarchies(table);
        let own: Vec<_> = found.iter().map(|hierarchy| hierarchy.own(own).unwrap()).collect();
        assert_eq!(
            own,
            ["/sys/fs/cgroup/unified/unified/me", "/sys/fs/cgroup/cpu,cpuacct/me", "/sys/fs/cgroup/memory/me"]
                .map(PathBuf::from)
        );
    }
}
