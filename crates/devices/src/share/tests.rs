use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt, symlink},
    sync::mpsc,
    thread,
};

use super::*;

/// A directory that goes when the test ends.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("devices-share-{}-{name}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn dir(&self, name: &str) -> PathBuf {
        let path = self.0.join(name);
        fs::create_dir(&path).unwrap();
        path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // The shared directory, if the test made one there: what is beneath it is not to be removed through it.
        let _ = rustix::mount::unmount(self.0.join("at"), rustix::mount::UnmountFlags::DETACH);
        let removed = fs::remove_dir_all(&self.0);
        assert!(std::thread::panicking() || removed.is_ok(), "{removed:?}");
    }
}

/// Runs `test` in a thread with a mount namespace of its own.
fn in_private_namespace(test: impl FnOnce() + Send + 'static) {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: only root may mount");
        return;
    }
    let result = thread::spawn(|| {
        enter_private_namespace().unwrap();
        test();
    })
    .join();
    if let Err(panic) = result {
        std::panic::resume_unwind(panic);
    }
}

/// The mount options of what is mounted at `path` in the calling thread's namespace.
fn options(path: &Path) -> Option<String> {
    let table = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
    let line = table.lines().find(|line| line.split(' ').nth(4) == path.to_str())?;
    line.split(' ').nth(5).map(str::to_owned)
}

#[test]
fn a_tree_is_attached_with_inert_mounts_and_nothing_shows_outside() {
    in_private_namespace(|| {
        let scratch = Scratch::new("attach");
        let (at, data) = (scratch.dir("at"), scratch.dir("data"));
        fs::write(data.join("file"), "text").unwrap();
        let shared = SharedDir::create(&at).unwrap();
        shared.attach(Path::new("c1/rw"), open_tree(&data, true).unwrap(), Access::default()).unwrap();
        shared.attach(Path::new("c1/ro"), open_tree(&data, true).unwrap(), Access::READ_ONLY).unwrap();
        shared.attach(Path::new("c1/file"), open_tree(&data.join("file"), false).unwrap(), Access::READ_ONLY).unwrap();

        fs::write(at.join("c1/rw/new"), "new").unwrap();
        assert_eq!(fs::read_to_string(data.join("new")).unwrap(), "new");
        assert_eq!(fs::read_to_string(at.join("c1/file")).unwrap(), "text");
        for read_only in ["c1/ro/new", "c1/file"] {
            let error = fs::write(at.join(read_only), "x").unwrap_err();
            assert_eq!(error.kind(), std::io::ErrorKind::ReadOnlyFilesystem, "{read_only}");
        }
        assert!(options(&at.join("c1/rw")).unwrap().starts_with("rw,nosuid,nodev,noexec"));
        assert!(options(&at.join("c1/ro")).unwrap().starts_with("ro,nosuid,nodev,noexec"));
        let outside = fs::read_to_string(format!("/proc/{}/mountinfo", std::process::id())).unwrap();
        assert!(!outside.contains(at.to_str().unwrap()));
    });
}

#[test]
fn what_is_detached_leaves_no_name_and_its_neighbour_alone() {
    in_private_namespace(|| {
        let scratch = Scratch::new("detach");
        let (at, data) = (scratch.dir("at"), scratch.dir("data"));
        fs::write(data.join("file"), "text").unwrap();
        let shared = SharedDir::create(&at).unwrap();
        let tree = || open_tree(&data, true).unwrap();
        shared.attach(Path::new("c1/a/b"), tree(), Access::default()).unwrap();
        shared.attach(Path::new("c1/file"), open_tree(&data.join("file"), false).unwrap(), Access::default()).unwrap();
        // Even while somebody has a file in it open.
        let open = fs::File::open(at.join("c1/a/b/file")).unwrap();
        shared.detach(Path::new("c1/a/b")).unwrap();
        assert!(!at.join("c1/a").exists());
        assert_eq!(fs::read_to_string(at.join("c1/file")).unwrap(), "text");
        shared.detach(Path::new("c1/file")).unwrap();
        assert_eq!(fs::read_dir(&at).unwrap().count(), 0);
        assert!(data.join("file").exists());
        drop(open);
        assert!(matches!(shared.detach(Path::new("c1/file")), Err(Error::NotAttached { .. })));
        shared.attach(Path::new("c1/a/b"), tree(), Access::default()).unwrap();
    });
}

#[test]
fn places_that_are_not_free_or_not_beneath_are_refused_and_leave_nothing() {
    in_private_namespace(|| {
        let scratch = Scratch::new("refuse");
        let (at, data, elsewhere) = (scratch.dir("at"), scratch.dir("data"), scratch.dir("elsewhere"));
        // What a guest could prepare in its own tree.
        symlink(&elsewhere, data.join("link")).unwrap();
        fs::create_dir(data.join("sub")).unwrap();
        let shared = SharedDir::create(&at).unwrap();
        let attach =
            |relative: &str| shared.attach(Path::new(relative), open_tree(&data, false).unwrap(), Access::default());
        for outside in ["", "/", "/abs", "..", "../x", "a/../b", "."] {
            assert!(matches!(attach(outside), Err(Error::NotBeneath { .. })), "{outside:?}");
            assert!(matches!(shared.detach(Path::new(outside)), Err(Error::NotBeneath { .. })), "{outside:?}");
        }
        attach("c1/root").unwrap();
        for taken in ["c1/root", "c1", "c1/root/sub", "c1/root/sub/x", "c1/root/link/x", "c1/root/new/x"] {
            assert!(matches!(attach(taken), Err(Error::InUse { .. })), "{taken:?}");
        }
        for nothing in ["c1", "c1/root/sub", "c2/root"] {
            assert!(matches!(shared.detach(Path::new(nothing)), Err(Error::NotAttached { .. })), "{nothing:?}");
        }
        assert_eq!(fs::read_dir(&elsewhere).unwrap().count(), 0);
        assert_eq!(fs::read_dir(&data).unwrap().count(), 2);
        assert_eq!(fs::read_dir(&at).unwrap().count(), 1);
    });
}

#[test]
fn a_tree_from_another_mount_namespace_is_attached_by_its_descriptor() {
    in_private_namespace(|| {
        let scratch = Scratch::new("cross");
        let (at, there) = (scratch.dir("at"), scratch.dir("there"));
        let shared = SharedDir::create(&at).unwrap();
        let (sender, receiver) = mpsc::channel();
        let path = there.clone();
        // A caller with a file system that exists in its namespace alone, which ends before the tree is attached.
        thread::spawn(move || {
            enter_private_namespace().unwrap();
            rustix::mount::mount("tmpfs", &path, "tmpfs", rustix::mount::MountFlags::empty(), None).unwrap();
            fs::write(path.join("file"), "from there").unwrap();
            fs::create_dir(path.join("inner")).unwrap();
            rustix::mount::mount("tmpfs", path.join("inner"), "tmpfs", rustix::mount::MountFlags::empty(), None)
                .unwrap();
            fs::write(path.join("inner/file"), "from within").unwrap();
            sender.send(open_tree(&path, true).unwrap()).unwrap();
        })
        .join()
        .unwrap();
        assert!(!there.join("file").exists());
        shared.attach(Path::new("c1"), receiver.recv().unwrap(), Access::READ_ONLY).unwrap();
        assert_eq!(fs::read_to_string(at.join("c1/file")).unwrap(), "from there");
        assert_eq!(fs::read_to_string(at.join("c1/inner/file")).unwrap(), "from within");
        assert!(fs::write(at.join("c1/inner/file"), "x").is_err(), "read-only must hold for the mounts beneath, too");
    });
}

#[test]
fn the_hosts_later_mounts_arrive_in_the_namespace_but_not_in_a_tree_and_none_go_back() {
    in_private_namespace(|| {
        let scratch = Scratch::new("propagation");
        let (at, data, host) = (scratch.dir("at"), scratch.dir("data"), scratch.dir("host"));
        fs::create_dir(data.join("sub")).unwrap();
        let tmpfs = |at: &Path| {
            rustix::mount::mount("tmpfs", at, "tmpfs", rustix::mount::MountFlags::empty(), None).unwrap();
            fs::write(at.join("mark"), "").unwrap();
        };
        // This thread plays a host whose mounts are shared, as systemd makes them.
        rustix::mount::mount_change("/", MountPropagationFlags::REC | MountPropagationFlags::SHARED).unwrap();
        let (go, wait) = mpsc::channel::<()>();
        let (done, ready) = mpsc::channel::<()>();
        let daemon = thread::spawn({
            let (at, data, host) = (at.clone(), data.clone(), host.clone());
            move || {
                enter_private_namespace().unwrap();
                let shared = SharedDir::create(&at).unwrap();
                shared.attach(Path::new("c1"), open_tree(&data, true).unwrap(), Access::default()).unwrap();
                let follow = Access { follow: true, ..Access::default() };
                shared.attach(Path::new("c2"), open_tree(&data, true).unwrap(), follow).unwrap();
                done.send(()).unwrap();
                wait.recv().unwrap();
                assert!(host.join("mark").exists());
                assert!(!at.join("c1/sub/mark").exists());
                assert!(at.join("c2/sub/mark").exists(), "a tree that follows shows what is mounted later");
            }
        });
        ready.recv().unwrap();
        assert_eq!(fs::read_dir(&at).unwrap().count(), 0);
        tmpfs(&host);
        tmpfs(&data.join("sub"));
        go.send(()).unwrap();
        daemon.join().unwrap();
        rustix::mount::unmount(&host, UnmountFlags::DETACH).unwrap();
        rustix::mount::unmount(data.join("sub"), UnmountFlags::DETACH).unwrap();
    });
}

#[test]
fn what_the_guest_sees_of_modes_and_devices_is_not_changed_by_inert_mounts() {
    in_private_namespace(|| {
        let scratch = Scratch::new("inert");
        let (at, data) = (scratch.dir("at"), scratch.dir("data"));
        let shared = SharedDir::create(&at).unwrap();
        shared.attach(Path::new("c1"), open_tree(&data, true).unwrap(), Access::default()).unwrap();
        let program = at.join("c1/program");
        fs::write(&program, "#!/bin/sh\n").unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o4755)).unwrap();
        assert_eq!(fs::metadata(&program).unwrap().mode() & 0o7777, 0o4755);
        assert!(fs::read(&program).is_ok());
        assert!(std::process::Command::new(&program).spawn().is_err(), "the host must not execute it");

        let device = at.join("c1/null");
        let mode = Mode::from_raw_mode(0o666);
        rustix::fs::mknodat(CWD, &device, FileType::CharacterDevice, mode, rustix::fs::makedev(1, 3)).unwrap();
        assert_eq!(fs::metadata(&device).unwrap().rdev(), rustix::fs::makedev(1, 3));
        assert!(fs::File::open(&device).is_err(), "the host must not open it");
    });
}
