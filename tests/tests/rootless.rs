//! A user who is not root, in a user namespace as Podman makes one for its users.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

use std::{
    fs,
    os::unix::fs::{PermissionsExt, chown},
    path::Path,
    process::{Command, Stdio},
};

use e2e::{rootfs, run, stage};
use serde_json::{Value, json};

/// A user id that nobody has.
const USER: u32 = 64_242;

/// A user's directory, with a bundle and a place for the state.
struct Home(tempfile::TempDir);

impl Home {
    fn new(args: &[&str]) -> Self {
        let home = Self(tempfile::tempdir().unwrap());
        fs::set_permissions(home.path(), fs::Permissions::from_mode(0o755)).unwrap();
        // The cache's is root's alone.
        let copied = Command::new("cp").arg("-a").arg(rootfs()).arg(home.path().join("rootfs")).status().unwrap();
        assert!(copied.success());
        fs::create_dir(home.path().join("run")).unwrap();
        for path in [home.path().to_owned(), home.path().join("run"), home.path().join("rootfs")] {
            chown(path, Some(USER), Some(USER)).unwrap();
        }
        let spec = home.as_user(&[], &["spec", "--rootless"]);
        assert_eq!(spec.code, 0, "{}", spec.stderr);
        let file = home.path().join("config.json");
        let mut config: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
        config["process"]["terminal"] = false.into();
        config["process"]["args"] = json!(args);
        config["root"]["readonly"] = false.into();
        fs::write(file, config.to_string()).unwrap();
        home
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    /// Runs `kata-runtime` as the user, by way of `wrapper`.
    fn as_user(&self, wrapper: &[&str], args: &[&str]) -> e2e::Output {
        let mut command = Command::new("setpriv");
        let id = USER.to_string();
        command.args(["--reuid", &id, "--regid", &id, "--clear-groups", "--"]).args(wrapper);
        command.arg(stage().join("bin/kata-runtime")).args(args);
        command
            .current_dir(self.path())
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("USER", "somebody");
        command.env("XDG_RUNTIME_DIR", self.path().join("run")).stdin(Stdio::null());
        run(&mut command)
    }
}

/// Whether users can come to the product, which lies beneath the project.
fn cannot_be_reached() -> bool {
    let closed = |dir: &&Path| fs::metadata(dir).is_ok_and(|found| found.permissions().mode() & 0o001 == 0);
    let stage = stage();
    let closed = stage.ancestors().find(closed);
    if let Some(dir) = closed {
        eprintln!("skipped: a user who is not root cannot come to {} through {}", stage.display(), dir.display());
    }
    closed.is_some()
}

#[test]
fn a_user_in_a_user_namespace_runs_a_container_and_leaves_nothing() {
    if cannot_be_reached() {
        return;
    }
    let home = Home::new(&["sh", "-c", "id -u; uname -r; echo written >/tmp/file; cat /tmp/file"]);
    let output = home.as_user(&["unshare", "--map-root-user", "--mount"], &["run", "mine"]);
    assert_eq!(output.code, 0, "{}", output.stderr);
    let text = output.text();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!((lines[0], lines[2]), ("0", "written"), "{text}");
    let host = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    assert_ne!(lines[1], host.trim());
    let state = fs::read_dir(home.path().join("run/kata-runtime")).map(|left| left.count()).unwrap_or(0);
    assert_eq!(state, 0, "something is left of the container");
    // Who writes as root of the namespace is the user on the host.
    let owner = std::os::unix::fs::MetadataExt::uid(&fs::metadata(home.path().join("rootfs/tmp/file")).unwrap());
    assert_eq!(owner, USER);
}

#[test]
fn a_user_without_a_namespace_is_told_what_it_takes() {
    if cannot_be_reached() {
        return;
    }
    let home = Home::new(&["true"]);
    let output = home.as_user(&[], &["run", "mine"]);
    assert_eq!(output.code, 1);
    let text = e2e::message(&output.stderr);
    assert!(text.contains("takes root, or a user namespace") && text.contains("unshare --map-root-user"), "{text}");
    assert!(!home.path().join("run/kata-runtime").exists());
}
