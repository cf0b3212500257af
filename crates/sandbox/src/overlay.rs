//! Overlays of directories of the host. They are put together by the host's kernel, since only there their directories are.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
};

use rustix::{
    fs::{Mode, OFlags},
    mount::{
        FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount,
        fsopen,
    },
};

/// Options that are of each mount, and not of the file system.
const OF_MOUNT: [&str; 23] = [
    "rw",
    "ro",
    "rro",
    "suid",
    "nosuid",
    "dev",
    "nodev",
    "exec",
    "noexec",
    "atime",
    "noatime",
    "diratime",
    "nodiratime",
    "relatime",
    "norelatime",
    "private",
    "rprivate",
    "slave",
    "rslave",
    "shared",
    "rshared",
    "unbindable",
    "defaults",
];

/// Whether an option of a mount is the overlay's own.
pub(crate) fn is_own(option: &str) -> bool {
    !OF_MOUNT.contains(&option)
}

/// Puts an overlay together that is mounted nowhere yet. `options` are its own (`lowerdir=A:B` and so on), read by the calling thread.
///
/// # Errors
/// Those of mounting; one that names the directory, if that cannot be opened.
pub(crate) fn open(options: &[String], read_only: bool) -> io::Result<OwnedFd> {
    let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    let context = context.as_fd();
    // Directories are named by their descriptors: a name may have 255 bytes at most here.
    let mut held = Vec::new();
    for option in options.iter().filter(|option| is_own(option)) {
        match option.split_once('=') {
            Some(("lowerdir", layers)) => {
                let layers: Vec<OwnedFd> =
                    split(layers).iter().map(|path| directory(path)).collect::<io::Result<_>>()?;
                set_layers(context, &layers)?;
                held.extend(layers);
            }
            Some((key @ ("upperdir" | "workdir"), path)) => {
                let opened = directory(&unescaped(path))?;
                fsconfig_set_string(context, key, name_of(&opened))?;
                held.push(opened);
            }
            Some((key, value)) => fsconfig_set_string(context, key, value)?,
            None => fsconfig_set_flag(context, option.as_str())?,
        }
    }
    fsconfig_create(context)?;
    let attributes = if read_only { MountAttrFlags::MOUNT_ATTR_RDONLY } else { MountAttrFlags::empty() };
    Ok(fsmount(context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?)
}

/// One by one, of which there may be any number (Linux 6.7), or all at once.
fn set_layers(context: BorrowedFd<'_>, layers: &[OwnedFd]) -> io::Result<()> {
    for (index, layer) in layers.iter().enumerate() {
        match fsconfig_set_string(context, "lowerdir+", name_of(layer)) {
            Err(_) if index == 0 => {
                let all = layers.iter().map(name_of).collect::<Vec<_>>().join(":");
                return Ok(fsconfig_set_string(context, "lowerdir", all)?);
            }
            set => set?,
        }
    }
    Ok(())
}

fn directory(path: &str) -> io::Result<OwnedFd> {
    let opened = rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
    opened.map_err(|error| io::Error::new(io::Error::from(error).kind(), format!("{path}: {}", io::Error::from(error))))
}

fn name_of(directory: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", directory.as_raw_fd())
}

/// Takes a list of layers apart. A backslash takes the next character as it is.
fn split(layers: &str) -> Vec<String> {
    let mut all = vec![String::new()];
    let mut characters = layers.chars();
    while let Some(character) = characters.next() {
        match (character, all.last_mut()) {
            (':', _) => all.push(String::new()),
            ('\\', Some(last)) => last.extend(characters.next()),
            (other, Some(last)) => last.push(other),
            (_, None) => {}
        }
    }
    all
}

fn unescaped(path: &str) -> String {
    // Only a list is taken apart at colons.
    split(&path.replace(':', "\\:")).concat()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn layers_are_taken_apart_where_nothing_keeps_them_together() {
        assert_eq!(split("/a:/b"), ["/a", "/b"]);
        assert_eq!(split(r"/a\:b:/c\\d"), ["/a:b", r"/c\d"]);
        assert_eq!(unescaped("/a:b"), "/a:b");
        assert!(is_own("userxattr") && is_own("lowerdir=/a") && !is_own("rprivate") && !is_own("ro"));
    }

    #[test]
    fn an_overlay_shows_what_is_below_and_takes_what_is_new() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: mounting needs root");
            return;
        }
        let run = || {
            devices::share::enter_private_namespace().unwrap();
            let top = tempfile::tempdir().unwrap();
            // overlayfs wants its writable directories on a file system of one kind, which this one is.
            rustix::mount::mount("tmpfs", top.path(), "tmpfs", rustix::mount::MountFlags::empty(), None).unwrap();
            let long = top.path().join("x".repeat(250));
            let at = |name: &str| long.join(name).display().to_string();
            for name in ["one", "two", "upper", "work"] {
                fs::create_dir_all(at(name)).unwrap();
            }
            fs::write(at("one/a"), "1").unwrap();
            fs::write(at("two/b"), "2").unwrap();
            let below = format!("lowerdir={}:{}", at("one"), at("two"));
            let options = |more: &[String]| [&[below.clone(), "rprivate".into()], more].concat();
            let read = |tree: &OwnedFd, name: &str| fs::read_to_string(format!("{}/{name}", name_of(tree)));

            let tree = open(&options(&[]), false).unwrap();
            assert_eq!((read(&tree, "a").unwrap(), read(&tree, "b").unwrap()), ("1".into(), "2".into()));
            assert!(fs::write(format!("{}/c", name_of(&tree)), "").is_err(), "there is nothing above");

            let above = [format!("upperdir={}", at("upper")), format!("workdir={}", at("work"))];
            let tree = open(&options(&above), false).unwrap();
            fs::write(format!("{}/c", name_of(&tree)), "3").unwrap();
            assert_eq!(fs::read_to_string(at("upper/c")).unwrap(), "3");

            let error = open(&[format!("lowerdir={}", at("none"))], false).unwrap_err();
            assert!(error.to_string().contains(&at("none")), "{error}");
        };
        std::thread::spawn(run).join().unwrap();
    }
}
