//! Containers in one machine: whoever goes first or comes again, nothing of any stays.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use e2e::{Background, Bundle, Runtime, Snapshot};

/// Longest it may take until a container is deleted.
const SOON: Duration = Duration::from_secs(30);

fn snapshot(runtime: &Runtime) -> Snapshot {
    Snapshot::take(&runtime.root().display().to_string(), &runtime.root())
}

fn prepared() -> (Runtime, Bundle, Snapshot) {
    let runtime = Runtime::kata();
    fs::create_dir_all(runtime.root()).unwrap();
    let before = snapshot(&runtime);
    (runtime, Bundle::new(["sleep", "1000"]), before)
}

/// A container in the machine of another one.
fn beside(runtime: &Runtime, id: &str) -> Bundle {
    let pid = runtime.state_of(id)["pid"].clone();
    let mut bundle = Bundle::new(["sleep", "1000"]);
    bundle.join("network", &format!("/proc/{pid}/ns/net"));
    bundle
}

#[test]
fn two_are_deleted_at_once() {
    let (runtime, bundle, before) = prepared();
    for _ in 0..3 {
        runtime.ok(["run", "--detach", "--bundle", bundle.arg(), "first"]);
        let other = beside(&runtime, "first");
        runtime.ok(["run", "--detach", "--bundle", other.arg(), "other"]);
        let deleting = ["first", "other"].map(|id| Background::start(&mut runtime.command(["delete", "--force", id])));
        for deleted in deleting.map(|deleting| deleting.finish_within(SOON)) {
            assert_eq!(deleted.code, 0, "{}", deleted.stderr);
        }
        assert_eq!(snapshot(&runtime), before);
        assert!(fs::read_dir(runtime.root()).unwrap().next().is_none());
    }
}

/// What a file server has open keeps the file system in use that it is on, and the engine wants to take that away or mount it anew.
#[test]
fn what_was_shared_with_a_container_is_closed_with_it() {
    let (runtime, bundle, before) = prepared();
    runtime.ok(["run", "--detach", "--bundle", bundle.arg(), "first"]);
    let server = runtime.state_file("first")["virtiofs"]["pid"].clone();
    // Without what the two have in common: both are in the same root file system. What was unmounted is "/".
    let open = || {
        let files = fs::read_dir(format!("/proc/{server}/fd")).unwrap();
        let names = files.map(|file| fs::read_link(file.unwrap().path()).unwrap_or_default().display().to_string());
        let mut others: Vec<String> = names.filter(|name| name == "/" || name.starts_with("/other")).collect();
        others.sort_unstable();
        others
    };
    let before_it = open();
    let other = beside(&runtime, "first");
    runtime.ok(["run", "--detach", "--bundle", other.arg(), "other"]);
    runtime.ok(["exec", "other", "true"]);
    assert_ne!(open(), before_it);
    runtime.ok(["delete", "--force", "other"]);
    let end = Instant::now() + SOON;
    while open() != before_it {
        assert!(Instant::now() < end, "{:?} are open instead of {before_it:?}", open());
        std::thread::sleep(Duration::from_millis(50));
    }
    runtime.ok(["delete", "--force", "first"]);
    assert_eq!(snapshot(&runtime), before);
}

/// The first of a machine is deleted and comes again while that machine lives for another one, in the same cgroup.
#[test]
fn the_first_comes_again_into_its_cgroup() {
    let (runtime, mut bundle, before) = prepared();
    let cgroup = format!("/e2e-again-{}", std::process::id());
    bundle.cgroup(&cgroup);
    runtime.ok(["run", "--detach", "--bundle", bundle.arg(), "first"]);
    let other = beside(&runtime, "first");
    runtime.ok(["run", "--detach", "--bundle", other.arg(), "other"]);
    for _ in 0..2 {
        runtime.ok(["delete", "--force", "first"]);
        runtime.ok(["run", "--detach", "--bundle", bundle.arg(), "first"]);
    }
    runtime.ok(["delete", "--force", "other"]);
    runtime.ok(["delete", "--force", "first"]);
    assert_eq!(snapshot(&runtime), before);
    let top = Path::new("/sys/fs/cgroup");
    let hierarchies = fs::read_dir(top).unwrap().flatten().map(|hierarchy| hierarchy.path());
    for hierarchy in hierarchies.chain([top.into()]) {
        let left = hierarchy.join(&cgroup[1..]);
        assert!(!left.exists(), "{} is left", left.display());
    }
}
