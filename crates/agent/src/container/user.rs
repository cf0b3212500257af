//! Becoming the user a process is to run as.

use std::io::Read;
use std::os::fd::AsFd;

use agent_api::Fault;
use rustix::fs::{FileType, Gid, Mode, OFlags, Uid, fchown, fstat};
use rustix::io::Errno;
use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};

use crate::fault::Context;
use crate::spec::User;

/// Most that is read of `/etc/passwd`, bytes.
const MAX_PASSWD: u64 = 1 << 20;

/// Sets the groups, then the group, then the user.
///
/// # Errors
/// When the kernel refuses, for instance because the id has no mapping in the user namespace.
pub fn become_user(user: &User) -> Result<(), Fault> {
    own_stdio(user)?;
    let groups: Vec<Gid> = user.additional_gids.iter().map(|&gid| Gid::from_raw(gid)).collect();
    set_thread_groups(&groups).context(|| "unable to setgroups".into())?;
    let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
    set_thread_res_gid(gid, gid, gid).context(|| "unable to setgid".into())?;
    set_thread_res_uid(uid, uid, uid).context(|| "unable to setuid".into())
}

/// Gives the pipes or the terminal to the user, so that it can open `/dev/stdout` and its like again.
fn own_stdio(user: &User) -> Result<(), Fault> {
    let (stdin, stdout, stderr) = (std::io::stdin(), std::io::stdout(), std::io::stderr());
    for fd in [stdin.as_fd(), stdout.as_fd(), stderr.as_fd()] {
        let stat = fstat(fd).context(|| "stat of standard stream".into())?;
        let is_null = FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice
            && stat.st_rdev == rustix::fs::makedev(1, 3);
        if is_null || stat.st_uid == user.uid {
            continue;
        }
        match fchown(fd, Some(Uid::from_raw(user.uid)), None) {
            // Ids without a mapping, a read-only file system: the process may do without.
            Ok(()) | Err(Errno::INVAL | Errno::PERM | Errno::ROFS) => {}
            Err(error) => return Err(error).context(|| "chown of standard stream".into()),
        }
    }
    Ok(())
}

/// The user's home directory by the container's `/etc/passwd`, `/` if that says nothing.
pub fn home(uid: u32) -> String {
    // The file is the container's: it may be a named pipe, or without end.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let mut text = String::new();
    if let Ok(file) = rustix::fs::open("/etc/passwd", flags, Mode::empty()) {
        let is_file = fstat(&file).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile);
        if is_file {
            // A part is as good as nothing at all.
            let _ = std::fs::File::from(file).take(MAX_PASSWD).read_to_string(&mut text);
        }
    }
    home_in(&text, uid).unwrap_or("/").to_owned()
}

fn home_in(passwd: &str, uid: u32) -> Option<&str> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let listed: u32 = fields.nth(2)?.parse().ok()?;
        let home = fields.nth(2)?;
        (listed == uid && !home.is_empty()).then_some(home)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn homes_are_found_by_user_id() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\n# comment\nbroken:x\nuser:x:1000:1000::/home/user:/bin/sh\n";
        assert_eq!(home_in(passwd, 0), Some("/root"));
        assert_eq!(home_in(passwd, 1000), Some("/home/user"));
        assert_eq!(home_in(passwd, 5), None);
    }
}
