//! The mount options of the OCI specification, by the names that runc knows.

use agent_api::Fault;
use libc::{
    MOUNT_ATTR__ATIME, MOUNT_ATTR_NOATIME, MOUNT_ATTR_NODEV, MOUNT_ATTR_NODIRATIME, MOUNT_ATTR_NOEXEC,
    MOUNT_ATTR_NOSUID, MOUNT_ATTR_NOSYMFOLLOW, MOUNT_ATTR_RDONLY, MOUNT_ATTR_STRICTATIME, MS_PRIVATE, MS_SHARED,
    MS_SLAVE, MS_UNBINDABLE,
};

use crate::fault::invalid;
use crate::sys::MountAttr;

/// A mount's options, sorted by what they are for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MountOptions {
    /// It is a bind mount; `Some(true)` if of everything below, too.
    pub bind: Option<bool>,
    /// Attributes of the mount itself.
    pub attr: MountAttr,
    /// Attributes of the mount and those below.
    pub recursive_attr: MountAttr,
    /// Propagation, in order: the kind (`MS_SHARED` and its like) and whether it is for those below, too.
    pub propagation: Vec<(u64, bool)>,
    /// A new tmpfs gets a copy of what it hides.
    pub copy_up: bool,
    /// Options of the file system, `key` or `key=value`.
    pub data: Vec<String>,
}

/// What an option's name does to attributes.
enum Change {
    Set(u64),
    Clear(u64),
    /// One of the kinds of access time, which exclude each other.
    Atime(u64),
}

/// `MOUNT_ATTR_RELATIME`: the kind of access time that is no bit.
const RELATIME: u64 = 0;

fn attribute(name: &str) -> Option<Change> {
    use Change::{Atime, Clear, Set};
    Some(match name {
        "ro" => Set(MOUNT_ATTR_RDONLY),
        "rw" => Clear(MOUNT_ATTR_RDONLY),
        "nosuid" => Set(MOUNT_ATTR_NOSUID),
        "suid" => Clear(MOUNT_ATTR_NOSUID),
        "nodev" => Set(MOUNT_ATTR_NODEV),
        "dev" => Clear(MOUNT_ATTR_NODEV),
        "noexec" => Set(MOUNT_ATTR_NOEXEC),
        "exec" => Clear(MOUNT_ATTR_NOEXEC),
        "nosymfollow" => Set(MOUNT_ATTR_NOSYMFOLLOW),
        "symfollow" => Clear(MOUNT_ATTR_NOSYMFOLLOW),
        "nodiratime" => Set(MOUNT_ATTR_NODIRATIME),
        "diratime" => Clear(MOUNT_ATTR_NODIRATIME),
        "noatime" => Atime(MOUNT_ATTR_NOATIME),
        "strictatime" => Atime(MOUNT_ATTR_STRICTATIME),
        "relatime" | "atime" | "norelatime" | "nostrictatime" => Atime(RELATIME),
        _ => return None,
    })
}

fn apply(attr: &mut MountAttr, change: Change) {
    match change {
        Change::Set(bits) => {
            attr.set |= bits;
            attr.clear &= !bits;
        }
        Change::Clear(bits) => {
            attr.clear |= bits;
            attr.set &= !bits;
        }
        Change::Atime(kind) => {
            // The kernel wants the whole field cleared whenever one of its values is set.
            attr.clear |= MOUNT_ATTR__ATIME;
            attr.set = attr.set & !MOUNT_ATTR__ATIME | kind;
        }
    }
}

fn propagation(name: &str) -> Option<u64> {
    Some(match name {
        "private" => MS_PRIVATE,
        "shared" => MS_SHARED,
        "slave" => MS_SLAVE,
        "unbindable" => MS_UNBINDABLE,
        _ => return None,
    })
}

/// The propagation that `linux.rootfsPropagation` or an option names, and whether it is for mounts below, too.
pub fn parse_propagation(name: &str) -> Option<(u64, bool)> {
    match propagation(name) {
        Some(kind) => Some((kind, false)),
        None => Some((propagation(name.strip_prefix('r')?)?, true)),
    }
}

/// Sorts a mount's options. What is no option of mounts in general is one of the file system.
///
/// # Errors
/// For options that would need what a guest cannot give.
pub fn parse(options: &[String]) -> Result<MountOptions, Fault> {
    let mut parsed = MountOptions::default();
    for option in options {
        let name = option.as_str();
        if let Some(change) = attribute(name) {
            apply(&mut parsed.attr, change);
        } else if let Some(change) = name.strip_prefix('r').and_then(attribute) {
            apply(&mut parsed.recursive_attr, change);
        } else if let Some(change) = parse_propagation(name) {
            parsed.propagation.push(change);
        } else {
            match name {
                "bind" => parsed.bind = Some(parsed.bind.unwrap_or(false)),
                "rbind" => parsed.bind = Some(true),
                "tmpcopyup" => parsed.copy_up = true,
                "idmap" | "ridmap" => {
                    return Err(invalid(format!(
                        "mount option {name:?}: id-mapped mounts are not supported in a guest"
                    )));
                }
                // They say what is so in any case, or are about a remount, which there is none of.
                "defaults" | "remount" | "loud" | "silent" | "noacl" | "acl" | "async" | "nomand" | "noiversion"
                | "nolazytime" | "" => {}
                _ => parsed.data.push(option.clone()),
            }
        }
    }
    Ok(parsed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(options: &[&str]) -> MountOptions {
        parse(&options.iter().map(ToString::to_string).collect::<Vec<_>>()).unwrap()
    }

    #[test]
    fn options_of_mounts_and_of_file_systems_are_told_apart() {
        let got = parsed(&["nosuid", "strictatime", "mode=755", "size=65536k"]);
        assert_eq!(got.attr.set, MOUNT_ATTR_NOSUID | MOUNT_ATTR_STRICTATIME);
        assert_eq!(got.attr.clear, MOUNT_ATTR__ATIME);
        assert_eq!(got.data, ["mode=755", "size=65536k"]);
        assert_eq!(got.bind, None);
    }

    #[test]
    fn the_later_of_two_opposites_wins() {
        assert_eq!(parsed(&["ro", "rw"]).attr, MountAttr { set: 0, clear: MOUNT_ATTR_RDONLY, ..MountAttr::default() });
        assert_eq!(parsed(&["rw", "ro"]).attr, MountAttr { set: MOUNT_ATTR_RDONLY, clear: 0, ..MountAttr::default() });
        assert_eq!(parsed(&["noatime", "relatime"]).attr.set, 0);
    }

    #[test]
    fn recursive_options_are_kept_apart_and_rw_is_not_one() {
        let got = parsed(&["rbind", "rro", "rnosuid", "rw", "rshared", "slave"]);
        assert_eq!(got.bind, Some(true));
        assert_eq!(got.recursive_attr.set, MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID);
        assert_eq!(got.attr.clear, MOUNT_ATTR_RDONLY);
        assert_eq!(got.propagation, [(MS_SHARED, true), (MS_SLAVE, false)]);
        assert_eq!(parsed(&["rbind", "bind"]).bind, Some(true));
        assert_eq!(parsed(&["rrelatime"]).recursive_attr.clear, MOUNT_ATTR__ATIME);
        assert_eq!(parsed(&["relatime"]).attr.clear, MOUNT_ATTR__ATIME);
    }

    #[test]
    fn what_cannot_be_done_is_refused() {
        let fault = parse(&["ridmap".to_owned()]).unwrap_err();
        assert_eq!(fault.kind, agent_api::FaultKind::InvalidArgument);
    }

    #[test]
    fn propagations_have_names() {
        assert_eq!(parse_propagation("rslave"), Some((MS_SLAVE, true)));
        assert_eq!(parse_propagation("unbindable"), Some((MS_UNBINDABLE, false)));
        assert_eq!(parse_propagation("r"), None);
    }
}
