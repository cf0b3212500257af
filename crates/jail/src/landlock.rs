//! Rules of Landlock (landlock(7)): what of the file systems a process may still reach, whoever it is.
//!
//! What is not named is out of reach: opening, executing, making or removing it. Descriptors that the process has been given stay as they are.
//! Kernels know more and more rights (the "ABI"); a right that this kernel does not know cannot be taken.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd},
    path::Path,
};

use rustix::fs::{FileType, Mode, OFlags, fstat};

// <linux/landlock.h>
const EXECUTE: u64 = 1 << 0;
const WRITE_FILE: u64 = 1 << 1;
const READ_FILE: u64 = 1 << 2;
const READ_DIR: u64 = 1 << 3;
const TRUNCATE: u64 = 1 << 14;
const IOCTL_DEV: u64 = 1 << 15;
/// Every right over files that the first version knew.
const FIRST: u64 = (1 << 13) - 1;
const REFER: u64 = 1 << 13;
const TCP: u64 = 3;
const SCOPES: u64 = 3;
const VERSION: u32 = 1;
const PATH_BENEATH: libc::c_int = 1;

#[repr(C)]
struct Attributes {
    files: u64,
    network: u64,
    scopes: u64,
}

#[repr(C, packed)]
struct Beneath {
    access: u64,
    parent: i32,
}

/// What may be done with what a rule names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Read it.
    Read,
    /// Read it, or be executed.
    Execute,
    /// Read and write it.
    Write,
}

/// Rules in the making.
#[derive(Debug)]
pub struct Rules {
    set: OwnedFd,
    /// Rights that this kernel knows.
    known: u64,
}

impl Rules {
    /// No rule yet, which is to say: nothing may be reached. None where the kernel has no Landlock.
    ///
    /// # Errors
    /// Those of landlock_create_ruleset(2).
    pub fn new() -> io::Result<Option<Self>> {
        // SAFETY: with this flag the call takes no structure and gives a number.
        let version =
            unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, std::ptr::null::<Attributes>(), 0, VERSION) };
        if version < 1 {
            return Ok(None);
        }
        let from = |first: libc::c_long, rights: u64| if version >= first { rights } else { 0 };
        let known = FIRST | from(2, REFER) | from(3, TRUNCATE) | from(5, IOCTL_DEV);
        let attributes = Attributes { files: known, network: from(4, TCP), scopes: from(6, SCOPES) };
        // SAFETY: the structure lives through the call, and is as large as is said. A kernel that knows less of it accepts it because the rest
        // is zero.
        let set = unsafe {
            libc::syscall(libc::SYS_landlock_create_ruleset, &raw const attributes, size_of::<Attributes>(), 0)
        };
        let set = i32::try_from(set).ok().filter(|set| *set >= 0).ok_or_else(io::Error::last_os_error)?;
        // SAFETY: the call has made this descriptor, and nobody else has it.
        Ok(Some(Self { set: unsafe { OwnedFd::from_raw_fd(set) }, known }))
    }

    /// Allows what is beneath a path, or the file that it is. What is not there, or not for the caller, needs no rule.
    ///
    /// # Errors
    /// Those of open(2) and landlock_add_rule(2).
    pub fn path(&self, path: &Path, access: Access) -> io::Result<()> {
        match rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()) {
            Ok(file) => self.file(&file, access),
            Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR | rustix::io::Errno::ACCESS) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// The same for a descriptor, opened with `O_PATH` or otherwise. Makes two system calls and nothing else.
    ///
    /// # Errors
    /// Those of fstat(2) and landlock_add_rule(2).
    pub fn file(&self, file: &impl AsFd, access: Access) -> io::Result<()> {
        let mut rights = READ_FILE;
        if FileType::from_raw_mode(fstat(file)?.st_mode) == FileType::Directory {
            rights |= READ_DIR;
        }
        match access {
            Access::Read => {}
            Access::Execute => rights |= EXECUTE,
            Access::Write => rights |= WRITE_FILE | TRUNCATE | IOCTL_DEV,
        }
        self.add(file.as_fd().as_raw_fd(), rights)
    }

    fn add(&self, parent: i32, rights: u64) -> io::Result<()> {
        let rule = Beneath { access: rights & self.known, parent };
        // SAFETY: the structure is that of this kind of rule and lives through the call.
        let result = unsafe {
            libc::syscall(libc::SYS_landlock_add_rule, self.set.as_raw_fd(), PATH_BENEATH, &raw const rule, 0)
        };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// Has the calling thread keep to the rules, and what it becomes and starts. No new privileges must be possible any more. One system call.
    ///
    /// # Errors
    /// Those of landlock_restrict_self(2).
    pub fn keep(&self) -> io::Result<()> {
        // SAFETY: a number of a descriptor and no flags.
        let result = unsafe { libc::syscall(libc::SYS_landlock_restrict_self, self.set.as_raw_fd(), 0) };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, thread};

    use super::*;

    #[test]
    fn what_no_rule_names_is_out_of_reach() {
        let Some(rules) = Rules::new().unwrap() else {
            return eprintln!("skipped: this kernel has no Landlock");
        };
        let directory = tempfile::tempdir().unwrap();
        let (read, write, other) =
            (directory.path().join("read"), directory.path().join("write"), directory.path().join("other"));
        [&read, &write, &other].into_iter().for_each(|path| fs::write(path, "x").unwrap());
        rules.path(&read, Access::Read).unwrap();
        rules.path(&write, Access::Write).unwrap();
        rules.path(Path::new("/nowhere"), Access::Read).unwrap();
        let inside = || {
            rustix::thread::set_no_new_privs(true).unwrap();
            rules.keep().unwrap();
            assert_eq!(fs::read_to_string(&read).unwrap(), "x");
            fs::write(&write, "y").unwrap();
            for refused in
                [fs::write(&read, "y"), fs::read(&other).map(drop), fs::write(directory.path().join("new"), "")]
            {
                assert_eq!(refused.unwrap_err().kind(), io::ErrorKind::PermissionDenied);
            }
        };
        thread::scope(|scope| scope.spawn(inside).join().unwrap());
        fs::write(&other, "still").unwrap();
    }
}
