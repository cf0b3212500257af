//! Finding the program to run, with the messages that Go's `exec.LookPath` gives to runc.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use agent_api::{Fault, FaultKind};
use rustix::fs::{Access, AtFlags, CWD, FileType, Mode, accessat, stat};
use rustix::io::Errno;

use crate::fault::{fault, reason};

/// Finds the file that `name` means, given `PATH`, for the current user, root and directory.
///
/// # Errors
/// [`FaultKind::CommandNotFound`] or [`FaultKind::CommandNotExecutable`].
pub fn find(name: &str, path: &str) -> Result<String, Fault> {
    let found = locate(name, path)?;
    // The mode says that somebody may; only the kernel knows about file systems without execution.
    if let Err(error) = accessat(CWD, found.as_str(), Access::EXEC_OK, AtFlags::EACCESS) {
        return Err(fault(kind(error), format!("exec {found}: {}", reason(&error.into()))));
    }
    Ok(found)
}

fn locate(name: &str, path: &str) -> Result<String, Fault> {
    if name.contains('/') {
        return match executable(name) {
            Ok(()) => Ok(name.to_owned()),
            Err(Unusable::Stat(error)) => {
                Err(fault(kind(error), format!("exec: {name:?}: stat {name}: {}", reason(&error.into()))))
            }
            Err(Unusable::Mode) => {
                Err(fault(FaultKind::CommandNotExecutable, format!("exec: {name:?}: permission denied")))
            }
        };
    }
    let not_found = |why: &str| Err(fault(FaultKind::CommandNotFound, format!("exec: {name:?}: {why}")));
    if !name.is_empty() && !path.is_empty() {
        for dir in path.split(':') {
            let dir = if dir.is_empty() { "." } else { dir.trim_end_matches('/') };
            let candidate = format!("{dir}/{name}");
            if executable(&candidate).is_ok() {
                if !candidate.starts_with('/') {
                    return not_found("cannot run executable found relative to current directory");
                }
                return Ok(candidate);
            }
        }
    }
    not_found("executable file not found in $PATH")
}

enum Unusable {
    Stat(Errno),
    Mode,
}

fn executable(path: &str) -> Result<(), Unusable> {
    let stat = stat(OsStr::from_bytes(path.as_bytes())).map_err(Unusable::Stat)?;
    let is_dir = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
    let executable = Mode::from_raw_mode(stat.st_mode).intersects(Mode::XUSR | Mode::XGRP | Mode::XOTH);
    if is_dir || !executable { Err(Unusable::Mode) } else { Ok(()) }
}

fn kind(error: Errno) -> FaultKind {
    match error {
        Errno::NOENT | Errno::NOTDIR => FaultKind::CommandNotFound,
        _ => FaultKind::CommandNotExecutable,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn message(name: &str, path: &str) -> (FaultKind, String) {
        let fault = find(name, path).unwrap_err();
        (fault.kind, fault.message)
    }

    #[test]
    fn messages_are_those_of_runc() {
        let path = "/nowhere:/usr/bin:/bin";
        assert_eq!(
            message("nope", path),
            (FaultKind::CommandNotFound, r#"exec: "nope": executable file not found in $PATH"#.into())
        );
        assert_eq!(
            message("/nope", path),
            (FaultKind::CommandNotFound, r#"exec: "/nope": stat /nope: no such file or directory"#.into())
        );
        assert_eq!(
            message("/etc/passwd", path),
            (FaultKind::CommandNotExecutable, r#"exec: "/etc/passwd": permission denied"#.into())
        );
        assert_eq!(
            message("/etc", path),
            (FaultKind::CommandNotExecutable, r#"exec: "/etc": permission denied"#.into())
        );
        assert_eq!(
            message("/etc/passwd/x", path),
            (FaultKind::CommandNotFound, r#"exec: "/etc/passwd/x": stat /etc/passwd/x: not a directory"#.into())
        );
        assert_eq!(message("", path).1, r#"exec: "": executable file not found in $PATH"#);
        assert_eq!(message("ls", "").1, r#"exec: "ls": executable file not found in $PATH"#);
    }

    #[test]
    fn the_first_directory_with_an_executable_wins() {
        let top = std::env::temp_dir().join(format!("kata-agent-lookup-{}", std::process::id()));
        for (dir, mode) in [("a", 0o644), ("b", 0o755), ("c", 0o755)] {
            std::fs::create_dir_all(top.join(dir)).unwrap();
            let file = top.join(dir).join("tool");
            std::fs::write(&file, "x").unwrap();
            std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode)).unwrap();
        }
        let top_name = top.to_str().unwrap();
        let path = format!("{top_name}/none:{top_name}/a:{top_name}/b/:{top_name}/c");
        assert_eq!(find("tool", &path).unwrap(), format!("{top_name}/b/tool"));
        std::fs::remove_dir_all(top).unwrap();
    }
}
