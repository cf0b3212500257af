//! Debian, from its real archive.

use crate::lab::{Lab, have, have_root};

#[test]
fn debian_comes_from_its_archive() {
    if !have(&[("mmdebstrap", "mmdebstrap")]) || !have_root() {
        return;
    }
    let lab = Lab::new();
    let entries = lab.built(&["--source", "debian"]);
    for name in
        ["bin/bash", "bin/busybox", "usr/bin/dpkg", "etc/debian_version", "var/lib/dpkg/status", "usr/bin/kata-agent"]
    {
        assert!(entries.contains_key(name), "there is no {name}");
    }
    let left_out = ["usr/share/doc/", "usr/share/man/", "var/lib/apt/", "var/log/", "var/cache/apt"];
    let found = entries.keys().find(|name| left_out.iter().any(|out| name.starts_with(out)));
    assert_eq!(found, None);
    assert_eq!(entries["etc/hostname"].contents, "localhost\n");
    assert!(entries.values().any(|entry| entry.mode & 0o4000 == 0 && entry.owner.1 != 0), "owners are kept");
    let materials = std::fs::read_to_string(lab.at("out/image.spdx.json")).unwrap();
    assert!(materials.contains("pkg:deb/libc6@"), "{materials}");
}

#[test]
fn an_unreachable_archive_and_a_wrong_key_are_refused() {
    if !have(&[("mmdebstrap", "mmdebstrap")]) || !have_root() {
        return;
    }
    let lab = Lab::new();
    let url = "http://127.0.0.1:1/debian";
    let said = "installing packages from http://127.0.0.1:1/debian (--repository names another, --key its key): mmdebstrap failed";
    lab.refused(&["--source", "debian", "--repository", url], &[said]);
    std::fs::write(lab.at("key.asc"), include_str!("../../definitions/keys/fedora-44.asc")).unwrap();
    let key = lab.at("key.asc");
    lab.refused(&["--source", "debian", "--key", key.to_str().unwrap()], &["mmdebstrap failed", "NO_PUBKEY"]);
}
