//! What is done to a sandbox at one of its steps, and how it is undone.

use std::{
    collections::BTreeSet,
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Resource, Rlimit, Signal, kill_process, prlimit};
use serde_json::Value;

/// Longest it may take until a caller has an answer, also where a machine is hung.
pub const SOON: Duration = Duration::from_secs(45);

/// A process of a sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Process {
    /// The virtual machine monitor.
    Qemu,
    /// The file server.
    VirtioFs,
    /// `kata-runtime`'s daemon.
    Daemon,
    /// containerd's shim, which is in the daemon's place.
    Shim,
    /// The command that an engine or a user has started.
    Caller,
}

/// What is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The step fails.
    Error,
    /// SIGKILL.
    Kill(Process),
    /// SIGSTOP.
    Stop(Process),
    /// The file system of the state directory is full.
    DiskFull,
    /// The process that came to the step gets no more memory from the kernel.
    NoMemory,
    /// It can open nothing more.
    NoDescriptors,
    /// It can start nothing more.
    NoPids,
    /// All processes are gone and their numbers are others' now; the state directory is there.
    Reboot,
}

impl Fault {
    /// Its name in the table.
    pub fn name(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Kill(Process::Qemu) => "kill QEMU",
            Self::Kill(Process::VirtioFs) => "kill virtio-fs",
            Self::Kill(Process::Daemon) => "kill daemon",
            Self::Kill(Process::Shim) => "kill shim",
            Self::Kill(Process::Caller) => "kill caller",
            Self::Stop(Process::Qemu) => "stop QEMU",
            Self::Stop(Process::VirtioFs) => "stop virtio-fs",
            Self::Stop(Process::Daemon) => "stop daemon",
            Self::Stop(Process::Shim) => "stop shim",
            Self::Stop(Process::Caller) => "stop caller",
            Self::DiskFull => "disk full",
            Self::NoMemory => "no memory",
            Self::NoDescriptors => "no descriptors",
            Self::NoPids => "no pids",
            Self::Reboot => "reboot",
        }
    }
}

impl Process {
    /// What the state file calls it.
    fn key(self) -> Option<&'static str> {
        match self {
            Self::Qemu => Some("vmm"),
            Self::VirtioFs => Some("virtiofs"),
            Self::Daemon | Self::Shim => Some("daemon"),
            Self::Caller => None,
        }
    }

    /// Those that a state file tells of.
    pub fn written_down(dir: &Path) -> Vec<Self> {
        let state = state(dir);
        let known = |process: &Self| process.key().is_some_and(|key| state[key].is_object());
        [Self::Qemu, Self::VirtioFs, Self::Daemon, Self::Shim].into_iter().filter(known).collect()
    }

    /// What an error calls it.
    pub fn named(self) -> &'static str {
        match self {
            Self::Qemu => "QEMU",
            Self::VirtioFs => "virtio-fs server",
            Self::Daemon => "daemon",
            Self::Shim => "shim",
            Self::Caller => "",
        }
    }
}

/// What the state file holds at this moment, uncorrected.
pub fn state(dir: &Path) -> Value {
    let bytes = fs::read(dir.join("state.json")).unwrap_or_default();
    serde_json::from_slice(&bytes).unwrap_or_default()
}

/// The processes of a sandbox that are written down: number and start.
pub fn processes(dir: &Path) -> Vec<(u32, u64)> {
    let state = state(dir);
    let of = |key: &str| Some((u32::try_from(state[key]["pid"].as_u64()?).ok()?, state[key]["start_ticks"].as_u64()?));
    ["daemon", "vmm", "virtiofs"].into_iter().filter_map(of).collect()
}

/// All processes that a state file may name.
const PROCESSES: [&str; 4] = ["creator", "daemon", "vmm", "virtiofs"];

/// Whether a process has ended. Its parent may still have to take note of it.
pub fn is_gone((pid, start): (u32, u64)) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let Some((_, fields)) = stat.rsplit_once(") ") else { return true };
    fields.starts_with('Z') || fields.split_ascii_whitespace().nth(19) != Some(start.to_string().as_str())
}

fn send(pid: u32, signal: Signal) -> bool {
    Pid::from_raw(pid.cast_signed()).is_some_and(|pid| kill_process(pid, signal).is_ok())
}

/// A fault that was done, until it is undone.
#[derive(Default)]
pub struct Done {
    filler: Option<PathBuf>,
    cgroup: Option<PathBuf>,
    /// Who has the numbers after a reboot.
    innocent: Option<Child>,
}

impl Done {
    /// Whether somebody who has nothing to do with it was spared.
    pub fn spared(&mut self) -> bool {
        self.innocent.as_mut().is_none_or(|innocent| innocent.try_wait().unwrap().is_none())
    }
}

/// Undoes what would outlive the sandbox.
impl Drop for Done {
    fn drop(&mut self) {
        if let Some(filler) = &self.filler {
            let _ = fs::remove_file(filler);
        }
        if let Some(innocent) = &mut self.innocent {
            let _ = innocent.kill();
            let _ = innocent.wait();
        }
        if let Some(cgroup) = &self.cgroup {
            let end = Instant::now() + SOON;
            while fs::remove_dir(cgroup).is_err() && Instant::now() < end {
                std::thread::sleep(Duration::from_millis(20));
            }
        }
    }
}

/// Where a fault is done.
pub struct Place<'a> {
    /// The sandbox's state directory.
    pub directory: &'a Path,
    /// The file system that a [`SmallDisk`] is.
    pub disk: &'a Path,
    /// What else the command lines of the sandbox's processes have in them.
    pub id: &'a str,
    /// The command whose answer is awaited.
    pub caller: u32,
    /// The process that has come to the step.
    pub at: u32,
    /// The number here of a process whose number in the sandbox's pid namespace that is.
    pub number: &'a dyn Fn(u32) -> u32,
}

impl Place<'_> {
    /// Does it; `None` if there is nothing to do it to.
    pub fn inject(&self, fault: Fault) -> Option<Done> {
        let signal = |process, signal| send(self.pid(process)?, signal).then(Done::default);
        match fault {
            Fault::Error => Some(Done::default()),
            Fault::Kill(process) => signal(process, Signal::KILL),
            Fault::Stop(process) => signal(process, Signal::STOP),
            Fault::DiskFull => Some(Done { filler: Some(fill(self.disk)), cgroup: None, innocent: None }),
            Fault::NoMemory => {
                let status = fs::read_to_string(format!("/proc/{}/status", self.at)).ok()?;
                let line = status.lines().find(|line| line.starts_with("VmSize:"))?;
                let kib: u64 = line.split_ascii_whitespace().nth(1).unwrap().parse().unwrap();
                self.limit(Resource::As, kib << 10)
            }
            Fault::NoDescriptors => {
                let open = fs::read_dir(format!("/proc/{}/fd", self.at)).ok()?;
                let numbers = open.filter_map(|entry| entry.unwrap().file_name().to_str()?.parse::<u64>().ok());
                self.limit(Resource::Nofile, numbers.max().unwrap() + 1)
            }
            Fault::NoPids => self.no_pids(),
            Fault::Reboot => Some(self.reboot()),
        }
    }

    fn pid(&self, process: Process) -> Option<u32> {
        match process.key() {
            Some(key) => Some((self.number)(state(self.directory)[key]["pid"].as_u64()?.try_into().ok()?)),
            None => Some(self.caller),
        }
    }

    fn limit(&self, resource: Resource, most: u64) -> Option<Done> {
        let limit = Rlimit { current: Some(most), maximum: Some(most) };
        // Without a number it would be this process.
        prlimit(Some(Pid::from_raw(self.at.cast_signed())?), resource, limit).ok()?;
        Some(Done::default())
    }

    fn no_pids(&self) -> Option<Done> {
        let own = fs::read_to_string("/proc/self/cgroup").unwrap();
        let path = own.lines().find_map(|line| line.split_once(":pids:"))?.1.trim_start_matches('/');
        let cgroup = Path::new("/sys/fs/cgroup/pids").join(path).join(format!("kt-fault-{}", self.id));
        fs::create_dir(&cgroup).ok()?;
        let write = |name: &str, text: String| fs::write(cgroup.join(name), text).unwrap();
        write("cgroup.procs", self.at.to_string());
        write("pids.max", fs::read_to_string(cgroup.join("pids.current")).unwrap());
        Some(Done { filler: None, cgroup: Some(cgroup), innocent: None })
    }

    fn reboot(&self) -> Done {
        let dir = self.directory;
        let gone = processes(dir);
        // The daemon first, as with any death: nobody is left to write down that others die.
        let mut all: BTreeSet<u32> = with_words(&[self.id, &self.disk.display().to_string()]);
        all.insert(self.caller);
        all.extend(gone.iter().map(|(pid, _)| *pid));
        if let Some(daemon) = self.pid(Process::Daemon) {
            send(daemon, Signal::KILL);
        }
        for pid in all {
            send(pid, Signal::KILL);
        }
        let end = Instant::now() + SOON;
        while !gone.iter().all(|process| is_gone(*process)) {
            assert!(Instant::now() < end, "a killed process does not go");
            std::thread::sleep(Duration::from_millis(5));
        }
        let mut state = state(dir);
        let known = PROCESSES.map(|key| state[key]["start_ticks"].as_u64());
        let innocent = loop {
            let mut sleep = Command::new("sleep");
            let mut sleep = sleep.arg("1000").stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
            // Within one tick of the clock, and with the same number, it would be the one that was killed.
            if known.iter().flatten().all(|start| is_gone((sleep.id(), *start))) {
                break sleep;
            }
            sleep.kill().unwrap();
            sleep.wait().unwrap();
        };
        for key in PROCESSES {
            if state[key].is_object() {
                state[key]["pid"] = innocent.id().into();
            }
        }
        if state.is_object() {
            fs::write(dir.join("state.json"), state.to_string()).unwrap();
        }
        Done { filler: None, cgroup: None, innocent: Some(innocent) }
    }
}

/// Processes in whose command line one of `words` is.
fn with_words(words: &[&str]) -> BTreeSet<u32> {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let mine = std::process::id();
    pids.filter(|pid| *pid != mine)
        .filter(|pid| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).into_owned();
            words.iter().any(|word| line.contains(word))
        })
        .collect()
}

/// Fills the file system that `root` is the mount point of.
fn fill(root: &Path) -> PathBuf {
    let path = root.join("filler");
    let mut file = fs::File::create(&path).unwrap();
    while file.write_all(&[1; 4096]).is_ok() {}
    path
}

/// A small file system, so that it can be filled.
pub struct SmallDisk(PathBuf);

impl SmallDisk {
    /// Mounts one at a runtime's root.
    pub fn mount(root: PathBuf) -> Self {
        fs::create_dir_all(&root).unwrap();
        let options = Some(c"size=512k,mode=700");
        rustix::mount::mount("none", &root, "tmpfs", rustix::mount::MountFlags::empty(), options).unwrap();
        Self(root)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let unmounted = rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH);
        assert!(std::thread::panicking() || unmounted.is_ok(), "{unmounted:?}");
    }
}
