//! Copying a directory of the image into the tmpfs that hides it (mount option `tmpcopyup`).

use std::io;
use std::os::fd::OwnedFd;

use rustix::fd::AsFd;
use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, RawDir, Uid, chownat, fchmod, fchown, mkdirat, openat, readlinkat, statat,
    symlinkat,
};

/// Copies what is in `from` to `to`: directories, files and links, with owners and modes.
///
/// # Errors
/// The first failure.
pub fn copy(from: &OwnedFd, to: &OwnedFd) -> io::Result<()> {
    let mut buffer = Vec::with_capacity(8192);
    let mut names = Vec::new();
    let mut entries = RawDir::new(from, buffer.spare_capacity_mut());
    while let Some(entry) = entries.next() {
        let name = entry?.file_name().to_owned();
        if name.as_bytes() != b"." && name.as_bytes() != b".." {
            names.push(name);
        }
    }
    for name in names {
        copy_entry(from, to, &name)?;
    }
    Ok(())
}

fn copy_entry(from: &OwnedFd, to: &OwnedFd, name: &std::ffi::CStr) -> io::Result<()> {
    let stat = statat(from, name, AtFlags::SYMLINK_NOFOLLOW)?;
    let mode = Mode::from_raw_mode(stat.st_mode);
    let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    let opened = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => {
            mkdirat(to, name, Mode::RWXU)?;
            let below = openat(to, name, opened | OFlags::DIRECTORY, Mode::empty())?;
            copy(&openat(from, name, opened | OFlags::DIRECTORY, Mode::empty())?, &below)?;
            fchown(&below, Some(uid), Some(gid))?;
            fchmod(&below, mode)?;
        }
        FileType::RegularFile => {
            let mut source = std::fs::File::from(openat(from, name, opened, Mode::empty())?);
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
            let mut target = std::fs::File::from(openat(to, name, flags, Mode::RUSR | Mode::WUSR)?);
            io::copy(&mut source, &mut target)?;
            fchown(target.as_fd(), Some(uid), Some(gid))?;
            fchmod(target.as_fd(), mode)?;
        }
        FileType::Symlink => {
            symlinkat(readlinkat(from, name, Vec::new())?, to, name)?;
            chownat(to, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
        }
        // Sockets, pipes and devices of an image mean nothing in a new place.
        _ => {}
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    #[test]
    fn files_directories_and_links_are_copied_with_their_modes() {
        let top = std::env::temp_dir().join(format!("kata-agent-copy-{}", std::process::id()));
        std::fs::create_dir_all(top.join("from/dir")).unwrap();
        std::fs::create_dir_all(top.join("to")).unwrap();
        std::fs::write(top.join("from/dir/file"), vec![7; 100_000]).unwrap();
        std::fs::set_permissions(top.join("from/dir/file"), std::fs::Permissions::from_mode(0o4711)).unwrap();
        symlink("dir/file", top.join("from/link")).unwrap();
        let open = |name| OwnedFd::from(std::fs::File::open(top.join(name)).unwrap());
        copy(&open("from"), &open("to")).unwrap();
        assert_eq!(std::fs::read(top.join("to/link")).unwrap().len(), 100_000);
        assert_eq!(std::fs::metadata(top.join("to/dir/file")).unwrap().mode() & 0o7777, 0o4711);
        assert!(top.join("to/link").is_symlink());
        std::fs::remove_dir_all(top).unwrap();
    }
}
