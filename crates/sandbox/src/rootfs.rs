//! From the mounts that containerd's snapshotters hand over to a root file system for a guest.
//!
//! | mounts | becomes |
//! | --- | --- |
//! | `bind`, `overlay` | a tree, shared by virtio-fs |
//! | a block device, or a file with a file system in it (`loop`) | a disk; the host's kernel never looks into it |
//! | `btrfs` | a tree: its device is mounted on the host already, where the snapshotter manages its subvolumes, and a file system that two kernels write to is lost |
//! | several mounts | a tree, mounted one after the other |
//!
//! Whatever is mounted is mounted in the calling process's private mount namespace and goes with it.

use std::{
    fs,
    os::{fd::OwnedFd, unix::fs::FileTypeExt},
    path::Path,
};

use rustix::{
    fs::{Mode, OFlags},
    mount::{MountFlags, UnmountFlags},
};

use crate::{
    Error, Result, overlay,
    translate::{Rootfs, open_tree},
};

/// One mount, as containerd describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RootfsMount {
    /// Type of the file system.
    pub fs_type: String,
    /// Source.
    pub source: String,
    /// Below the root file system; empty is itself.
    pub target: String,
    /// Options, as in mount(8).
    pub options: Vec<String>,
}

/// Most that mount(2) takes as data, bytes: a page, with a NUL.
const MOST_DATA: usize = 4095;

/// File systems whose device stays mounted on the host.
const SHARED_BY_SUBVOLUMES: [&str; 1] = ["btrfs"];

/// Opens a root file system. `staging` is an empty directory of the sandbox's own, and is so again afterwards; `bundle_rootfs` is what it
/// is without any mount.
///
/// # Errors
/// [`Error::Io`], [`Error::State`]: naming the mount.
pub fn open(mounts: &[RootfsMount], bundle_rootfs: &Path, staging: &Path) -> Result<Rootfs> {
    let [only] = mounts else {
        return match mounts {
            [] => Ok(Rootfs::Tree { tree: open_tree(bundle_rootfs, true)?, read_only: false }),
            several => mount_all(several, staging),
        };
    };
    let read_only = only.has("ro");
    if only.is_bind() {
        let recursive = only.has("rbind");
        return Ok(Rootfs::Tree { tree: open_tree(Path::new(&only.source), recursive)?, read_only });
    }
    if only.is_disk() {
        return only.open_disk(read_only);
    }
    mount_all(mounts, staging)
}

fn mount_all(mounts: &[RootfsMount], staging: &Path) -> Result<Rootfs> {
    let mut done = 0;
    let mounted = mounts.iter().try_for_each(|mount| {
        mount.mount(staging)?;
        done += 1;
        Ok(())
    });
    let tree = mounted.and_then(|()| open_tree(staging, true));
    for _ in 0..done {
        // The clone lives on; an error would be that of the clone, too.
        let _ = rustix::mount::unmount(staging, UnmountFlags::DETACH);
    }
    Ok(Rootfs::Tree { tree: tree?, read_only: mounts.iter().all(|mount| mount.has("ro")) })
}

impl RootfsMount {
    fn has(&self, option: &str) -> bool {
        self.options.iter().any(|known| known == option)
    }

    fn is_bind(&self) -> bool {
        self.fs_type == "bind" || self.has("bind") || self.has("rbind")
    }

    /// Whether it is a file system in a block device or in a file, that the guest can mount by itself.
    fn is_disk(&self) -> bool {
        let kind = fs::metadata(&self.source).map(|metadata| metadata.file_type());
        let holds_one = kind.is_ok_and(|kind| kind.is_block_device() || (kind.is_file() && self.fs_type != "overlay"));
        holds_one && !SHARED_BY_SUBVOLUMES.contains(&self.fs_type.as_str())
    }

    fn open_disk(&self, read_only: bool) -> Result<Rootfs> {
        let mut flags = if read_only { OFlags::RDONLY } else { OFlags::RDWR } | OFlags::CLOEXEC;
        let is_device = fs::metadata(&self.source).is_ok_and(|metadata| metadata.file_type().is_block_device());
        if is_device && !read_only {
            // Fails when the host has it mounted: two kernels that write to one file system destroy it.
            flags |= OFlags::EXCL;
        }
        let file = rustix::fs::open(self.source.as_str(), flags, Mode::empty())
            .map_err(|e| Error::io(format!("open the root file system's disk {}", self.source), e))?;
        let options = self.options.iter().filter(|option| !option.starts_with("loop")).cloned().collect();
        Ok(Rootfs::Disk { file, read_only, fs_type: self.fs_type.clone(), options })
    }

    fn mount(&self, staging: &Path) -> Result<()> {
        let step = || format!("mount {} of type {} for the root file system", self.source, self.fs_type);
        if !self.target.is_empty() && self.target != "/" {
            return Err(Error::State(format!(
                "{}: below the root file system, at {}, is not supported",
                step(),
                self.target
            )));
        }
        let place = |tree: OwnedFd| {
            rustix::mount::move_mount(
                &tree,
                "",
                rustix::fs::CWD,
                staging,
                rustix::mount::MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
            )
            .map_err(|e| Error::io(step(), e))
        };
        if self.is_bind() {
            return place(open_tree(Path::new(&self.source), self.has("rbind"))?);
        }
        if self.has("loop") {
            return Err(Error::State(format!(
                "{}: among others, a file cannot be mounted through a loop device",
                step()
            )));
        }
        let (flags, data) = self.split();
        if data.len() > MOST_DATA && self.fs_type == "overlay" {
            let read_only = flags.contains(MountFlags::RDONLY);
            return place(overlay::open(&self.options, read_only).map_err(|e| Error::io(step(), e))?);
        }
        let data = std::ffi::CString::new(data).map_err(|e| Error::io(step(), std::io::Error::from(e)))?;
        rustix::mount::mount(self.source.as_str(), staging, self.fs_type.as_str(), flags, data.as_c_str())
            .map_err(|e| Error::io(step(), e))
    }

    /// Flags of mount(2), and what is the file system's own.
    fn split(&self) -> (MountFlags, String) {
        let mut flags = MountFlags::empty();
        let mut data = Vec::new();
        for option in &self.options {
            match option.as_str() {
                "ro" => flags |= MountFlags::RDONLY,
                "nosuid" => flags |= MountFlags::NOSUID,
                "nodev" => flags |= MountFlags::NODEV,
                "noexec" => flags |= MountFlags::NOEXEC,
                "noatime" => flags |= MountFlags::NOATIME,
                "nodiratime" => flags |= MountFlags::NODIRATIME,
                "relatime" => flags |= MountFlags::RELATIME,
                "rw" | "defaults" | "suid" | "dev" | "exec" | "atime" => {}
                own => data.push(own),
            }
        }
        (flags, data.join(","))
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use super::*;

    fn in_private_namespace(test: impl FnOnce(&Path) + Send + 'static) {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: mounting needs root");
            return;
        }
        let run = move || {
            devices::share::enter_private_namespace().unwrap();
            let top = tempfile::tempdir().unwrap();
            fs::create_dir(top.path().join("staging")).unwrap();
            test(top.path());
        };
        std::thread::spawn(run).join().unwrap();
    }

    fn mount(fs_type: &str, source: &Path, options: &[&str]) -> RootfsMount {
        RootfsMount {
            fs_type: fs_type.into(),
            source: source.to_str().unwrap().into(),
            target: String::new(),
            options: options.iter().map(ToString::to_string).collect(),
        }
    }

    fn names(rootfs: &Rootfs) -> Vec<String> {
        let Rootfs::Tree { tree, .. } = rootfs else { panic!("{rootfs:?}") };
        let entries = fs::read_dir(format!("/proc/thread-self/fd/{}", tree.as_raw_fd())).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn an_overlay_of_any_number_of_layers_becomes_a_tree_and_nothing_stays_mounted() {
        in_private_namespace(|top| {
            let staging = top.join("staging");
            // overlayfs wants its writable directories on a file system of one kind, which this one is.
            rustix::mount::mount("tmpfs", top, "tmpfs", MountFlags::empty(), None).unwrap();
            fs::create_dir(&staging).unwrap();
            let long = "x".repeat(200);
            for count in [2, 40] {
                let layers: Vec<_> = (0..count).map(|n| top.join(format!("{long}-{n}"))).collect();
                for (n, layer) in layers.iter().enumerate() {
                    fs::create_dir_all(layer).unwrap();
                    fs::write(layer.join(format!("{n:02}")), "").unwrap();
                }
                let (upper, work) = (top.join(format!("upper{count}")), top.join(format!("work{count}")));
                fs::create_dir_all(&upper).unwrap();
                fs::create_dir_all(&work).unwrap();
                let lower = layers.iter().map(|l| l.to_str().unwrap()).collect::<Vec<_>>().join(":");
                let options = [
                    format!("lowerdir={lower}"),
                    format!("upperdir={}", upper.display()),
                    format!("workdir={}", work.display()),
                ];
                let options: Vec<&str> = options.iter().map(String::as_str).collect();
                let rootfs = open(&[mount("overlay", Path::new("overlay"), &options)], top, &staging).unwrap();
                assert_eq!(names(&rootfs).len(), count);
                assert_eq!(fs::read_dir(&staging).unwrap().count(), 0);
            }
        });
    }

    #[test]
    fn a_bind_mount_is_opened_and_a_file_becomes_a_disk() {
        in_private_namespace(|top| {
            fs::create_dir(top.join("data")).unwrap();
            fs::write(top.join("data/a"), "").unwrap();
            let staging = top.join("staging");
            let rootfs = open(&[mount("bind", &top.join("data"), &["rbind", "ro"])], top, &staging).unwrap();
            assert_eq!(names(&rootfs), ["a"]);
            assert!(matches!(rootfs, Rootfs::Tree { read_only: true, .. }));
            fs::write(top.join("image"), "").unwrap();
            match open(&[mount("ext4", &top.join("image"), &["loop", "noatime"])], top, &staging).unwrap() {
                Rootfs::Disk { read_only: false, fs_type, options, .. } => {
                    assert_eq!((fs_type.as_str(), options), ("ext4", vec!["noatime".to_string()]));
                }
                other => panic!("{other:?}"),
            }
            let error =
                open(&[mount("overlay", Path::new("overlay"), &["lowerdir=/none"])], top, &staging).unwrap_err();
            assert!(error.chain().starts_with("mount overlay of type overlay for the root file system: "), "{error}");
        });
    }
}
