//! Users who are not root, as runc and Podman understand it.

use std::{env, ffi::OsString, path::PathBuf};

use crate::{Error, Result};

/// Where the state of containers is, unless the command line says.
pub(crate) fn state_root() -> PathBuf {
    choose_root(is_root_of_host(), is_root(), env::var_os("USER"), env::var_os("XDG_RUNTIME_DIR"))
}

/// A user's own directory is for the user alone; whoever is root in a user namespace may be a user, or the root of a container.
fn choose_root(real_root: bool, root: bool, user: Option<OsString>, runtime_dir: Option<OsString>) -> PathBuf {
    let is_users = !real_root && (!root || user.is_none_or(|user| user != "root"));
    match runtime_dir.filter(|dir| is_users && !dir.is_empty()) {
        Some(dir) => PathBuf::from(dir).join("kata-runtime"),
        None => sandbox::store::DEFAULT_ROOT.into(),
    }
}

/// Whether this is root, and not that of a user namespace.
pub(crate) fn is_root_of_host() -> bool {
    is_root() && !sandbox::in_user_namespace()
}

/// Refuses to start a container where it cannot be done.
pub(crate) fn check() -> Result<()> {
    if is_root() {
        return Ok(());
    }
    Err(Error::refused(
        "starting a container takes root, or a user namespace in which the user is root: Podman without root makes one, and so do \
         `podman unshare COMMAND` and `unshare --map-root-user --map-auto --mount COMMAND`",
    ))
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_users_state_is_the_users() {
        let choose = |real_root, root, user: Option<&str>, dir: Option<&str>| {
            let path = choose_root(real_root, root, user.map(OsString::from), dir.map(OsString::from));
            path.to_str().unwrap().to_owned()
        };
        assert_eq!(choose(true, true, None, Some("/run/user/0")), "/run/kata-runtime");
        assert_eq!(choose(false, false, Some("me"), Some("/run/user/7")), "/run/user/7/kata-runtime");
        assert_eq!(choose(false, true, Some("me"), Some("/run/user/7")), "/run/user/7/kata-runtime");
        assert_eq!(choose(false, true, Some("root"), Some("/run/user/7")), "/run/kata-runtime");
        assert_eq!(choose(false, false, Some("me"), None), "/run/kata-runtime");
    }
}
