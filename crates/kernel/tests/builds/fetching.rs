//! Getting the source that `sources.toml` names, from an archive in miniature: `apt-get` and `dpkg-deb` are scripts here.

use std::{fs, process::Output};

use crate::{
    names,
    tree::{Lab, stderr, stdout},
};

/// A lab whose archive has one version of the package, 2-1, and a `sources.toml` that names `version` and the tarball's
/// checksum, or a wrong one.
fn lab(version: &str, right: bool) -> Option<Lab> {
    let lab = Lab::new()?;
    let tarball = lab.tarball();
    let sum = std::process::Command::new("sha256sum").arg(&tarball).output().unwrap();
    let sum = if right { stdout(&sum)[..64].to_string() } else { "0".repeat(64) };
    lab.write(
        "sources.toml",
        &format!("[linux]\npackage = \"linux-source\"\nversion = \"{version}\"\nfile = \"usr/src/linux.tar\"\nsha256 = \"{sum}\"\n"),
    );
    lab.program(
        "apt-get",
        &format!(
            "echo \"$*\" >>{log}\ncase $3 in linux-source | linux-source=2-1) touch linux-source_2-1_all.deb ;;\n\
             *) echo \"E: Version was not found\" >&2; exit 100 ;; esac",
            log = lab.at("downloads").display()
        ),
    );
    lab.program(
        "dpkg-deb",
        &format!(
            "case $1 in --field) echo 2-1 ;; --extract) mkdir -p \"$3/usr/src\" && cp {} \"$3/usr/src/linux.tar\" ;; esac",
            tarball.display()
        ),
    );
    Some(lab)
}

fn fetch(lab: &Lab, more: &[&str]) -> Output {
    lab.command(&["fetch", "--sources", "sources.toml"]).args(more).output().unwrap()
}

fn downloads(lab: &Lab) -> usize {
    fs::read_to_string(lab.at("downloads")).unwrap_or_default().lines().count()
}

#[test]
fn the_pinned_version_is_downloaded_once() {
    let Some(lab) = lab("2-1", true) else { return };
    let fetched = fetch(&lab, &["--locked"]);
    assert!(fetched.status.success(), "{}", stderr(&fetched));
    let tree = stdout(&fetched).trim().to_string();
    assert!(fs::read_to_string(format!("{tree}/Makefile")).unwrap().starts_with("VERSION = 6"));
    assert_eq!(downloads(&lab), 1);
    assert_eq!(stdout(&fetch(&lab, &[])).trim(), tree);
    // The tarball is kept: without the tree it is unpacked again.
    fs::remove_dir_all(&tree).unwrap();
    assert_eq!(stdout(&fetch(&lab, &[])).trim(), tree);
    assert_eq!(downloads(&lab), 1);
    assert_eq!(names(&lab.at("cache/src")).len(), 3, "{:?}", names(&lab.at("cache/src")));
}

#[test]
fn a_newer_version_is_taken_with_a_warning_unless_only_the_pinned_one_will_do() {
    let Some(lab) = lab("1-1", false) else { return };
    let refused = fetch(&lab, &["--locked"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(
        stderr(&refused).contains("cannot download linux-source 1-1: E: Version was not found"),
        "{}",
        stderr(&refused)
    );
    assert!(stderr(&refused).contains("run `apt-get update`"), "{}", stderr(&refused));
    assert_eq!(names(&lab.at("cache/src")), ["lock"]);
    for _ in 0..2 {
        let fetched = fetch(&lab, &[]);
        assert!(fetched.status.success(), "{}", stderr(&fetched));
        let warning = "warning: the archive has linux-source 2-1 instead of the pinned 1-1";
        assert!(stderr(&fetched).contains(warning), "{}", stderr(&fetched));
    }
    // One that failed, one for the pinned version, one for what there is; the second time nothing.
    assert_eq!(downloads(&lab), 3);
}

#[test]
fn another_checksum_for_the_pinned_version_is_an_error() {
    let Some(lab) = lab("2-1", false) else { return };
    let refused = fetch(&lab, &[]);
    assert_eq!(refused.status.code(), Some(1));
    let message = stderr(&refused);
    assert!(message.contains("usr/src/linux.tar of linux-source 2-1 has the SHA-256"), "{message}");
    assert!(message.contains(&"0".repeat(64)), "{message}");
    assert_eq!(names(&lab.at("cache/src")), ["lock"]);
}

#[test]
fn without_apt_a_tarball_is_asked_for() {
    let Some(lab) = lab("2-1", true) else { return };
    fs::remove_file(lab.at("bin/apt-get")).unwrap();
    let mut command = lab.command(&["fetch", "--sources", "sources.toml"]);
    let refused = command.env("PATH", lab.at("bin")).output().unwrap();
    assert!(stderr(&refused).contains("name a tarball with --source"), "{}", stderr(&refused));
}
