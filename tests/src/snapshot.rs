//! What a machine holds that a sandbox could leave behind.

use std::{collections::BTreeSet, fs, path::Path};

/// Everything that must be as before once a sandbox is gone.
#[derive(Debug, PartialEq, Eq)]
pub struct Snapshot {
    processes: BTreeSet<String>,
    mounts: Vec<String>,
    sockets: usize,
    cgroups: BTreeSet<String>,
    state: BTreeSet<String>,
}

impl Snapshot {
    /// Takes one. `mine` tells which processes, mounts, sockets and cgroups count: those whose command line or path contains it. Others on
    /// the machine come and go.
    pub fn take(mine: &str, state: &Path) -> Self {
        let mut cgroups = BTreeSet::new();
        directories(Path::new("/sys/fs/cgroup"), 6, mine, &mut cgroups);
        let mut files = BTreeSet::new();
        everything(state, &mut files);
        Self {
            processes: processes(mine),
            mounts: lines_with("/proc/self/mounts", mine),
            sockets: lines_with("/proc/net/unix", mine).len(),
            cgroups,
            state: files,
        }
    }
}

fn lines_with(file: &str, mine: &str) -> Vec<String> {
    let text = fs::read_to_string(file).unwrap_or_default();
    text.lines().filter(|line| line.contains(mine)).map(String::from).collect()
}

/// Processes whose command line contains `mine`, other than this one.
fn processes(mine: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let pid = entry.file_name().to_string_lossy().into_owned();
        if pid == std::process::id().to_string() || !pid.bytes().all(|b| b.is_ascii_digit()) {
            continue;
        }
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        if line.contains(mine) {
            found.insert(format!("{pid} {line}"));
        }
    }
    found
}

/// The directories below `at` in whose path is `mine`.
fn directories(at: &Path, depth: usize, mine: &str, into: &mut BTreeSet<String>) {
    for entry in fs::read_dir(at).into_iter().flatten().flatten() {
        if depth > 0 && entry.file_type().is_ok_and(|t| t.is_dir()) {
            let path = entry.path();
            directories(&path, depth - 1, mine, into);
            let path = path.display().to_string();
            if path.contains(mine) {
                into.insert(path);
            }
        }
    }
}

fn everything(at: &Path, into: &mut BTreeSet<String>) {
    for entry in fs::read_dir(at).into_iter().flatten().flatten() {
        into.insert(entry.path().display().to_string());
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            everything(&entry.path(), into);
        }
    }
}
