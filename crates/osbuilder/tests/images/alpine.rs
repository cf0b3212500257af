//! A root of Alpine packages, from a repository that the test makes and signs.

use std::{fs, io::Write, path::PathBuf};

use sha2::{Digest, Sha256};

use crate::lab::{Lab, have, tool};

const NEEDED: [(&str, &str); 2] = [("openssl", "openssl"), ("curl", "curl")];

struct Repository {
    lab: Lab,
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// Files as an archive; all but a package's last lack the end.
fn archive(files: &[(&str, &[u8])], end: bool) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, contents) in files {
        let mut header = tar::Header::new_ustar();
        header.set_mode(0o755);
        header.set_uid(0);
        header.set_gid(0);
        header.set_size(contents.len() as u64);
        builder.append_data(&mut header, name, *contents).unwrap();
    }
    let mut bytes = builder.into_inner().unwrap();
    if !end {
        bytes.truncate(bytes.len() - 1024);
    }
    bytes
}

impl Repository {
    /// A key `right.rsa.pub` and another, `wrong.rsa.pub`.
    fn new() -> Repository {
        let repository = Repository { lab: Lab::new() };
        fs::create_dir_all(repository.directory()).unwrap();
        for name in ["right", "wrong"] {
            let (key, public) = (repository.path(&format!("{name}.rsa")), repository.path(&format!("{name}.rsa.pub")));
            tool("openssl", ["genrsa", "-out", &key, "2048"], &repository.lab.at(""));
            tool("openssl", ["rsa", "-in", &key, "-pubout", "-out", &public], &repository.lab.at(""));
        }
        repository
    }

    fn path(&self, name: &str) -> String {
        self.lab.at(name).to_str().unwrap().to_owned()
    }

    fn directory(&self) -> PathBuf {
        self.lab.at("repository/x86_64")
    }

    /// Signs with one key and says it was `named`.
    fn signed(&self, key: &str, named: &str, bytes: &[u8]) -> Vec<u8> {
        fs::write(self.lab.at("bytes"), bytes).unwrap();
        let (key, signature, file) = (self.path(&format!("{key}.rsa")), self.path("signature"), self.path("bytes"));
        tool("openssl", ["dgst", "-sha1", "-sign", &key, "-out", &signature, &file], &self.lab.at(""));
        let signature = fs::read(signature).unwrap();
        let mut all = gzip(&archive(&[(&format!(".SIGN.RSA.{named}.rsa.pub"), &signature)], false));
        all.extend(bytes);
        all
    }

    fn package(&self, key: &str, file: &str, (name, version): (&str, &str), files: &[(&str, &[u8])]) {
        let data = gzip(&archive(files, true));
        let hash: String = Sha256::digest(&data).iter().map(|byte| format!("{byte:02x}")).collect();
        let info = format!("# made by a test\npkgname = {name}\npkgver = {version}\ndatahash = {hash}\n");
        let control = gzip(&archive(&[(".PKGINFO", info.as_bytes()), (".post-install", b"#!/bin/sh\n")], false));
        let mut package = self.signed(key, key, &control);
        package.extend(data);
        fs::write(self.directory().join(file), package).unwrap();
    }

    fn index(&self, key: &str, named: &str, text: &str) {
        let index = gzip(&archive(&[("DESCRIPTION", b"test"), ("APKINDEX", text.as_bytes())], true));
        fs::write(self.directory().join("APKINDEX.tar.gz"), self.signed(key, named, &index)).unwrap();
    }

    /// What the definition wants, and a library that one of them needs.
    fn fill(&self) {
        let mut index = String::new();
        for (name, needs) in [
            ("alpine-baselayout", ""),
            ("busybox", "D:so:libc.musl-x86_64.so.1\n"),
            ("busybox-binsh", "D:busybox\n"),
            ("musl-utils", ""),
        ] {
            index.push_str(&format!("C:Q1x\nP:{name}\nV:1.2-r3\nA:x86_64\nL:MIT\n{needs}\n"));
            let file = format!("usr/share/{name}");
            self.package("right", &format!("{name}-1.2-r3.apk"), (name, "1.2-r3"), &[(&file, name.as_bytes())]);
        }
        index.push_str("C:Q1x\nP:musl\nV:1.2.5-r0\nA:x86_64\nL:MIT\np:so:libc.musl-x86_64.so.1=1\n\n");
        self.package("right", "musl-1.2.5-r0.apk", ("musl", "1.2.5-r0"), &[("lib/ld-musl-x86_64.so.1", b"loader")]);
        self.index("right", "right", &index);
    }

    fn arguments(&self, key: &str) -> [String; 8] {
        let url = format!("file://{}", self.lab.at("repository").display());
        ["--source", "alpine", "--arch", "x86_64", "--repository", &url, "--key", &self.path(&format!("{key}.rsa.pub"))]
            .map(str::to_owned)
    }

    fn refused(&self, key: &str, words: &[&str]) {
        let arguments = self.arguments(key);
        self.lab.refused(&arguments.each_ref().map(String::as_str), words);
    }
}

#[test]
fn packages_and_what_they_need_become_a_root() {
    if !have(&NEEDED) {
        return;
    }
    let repository = Repository::new();
    repository.fill();
    let arguments = repository.arguments("right");
    let entries = repository.lab.built(&arguments.each_ref().map(String::as_str));
    assert_eq!(entries["usr/share/busybox"].contents, "busybox");
    assert_eq!(entries["lib/ld-musl-x86_64.so.1"].contents, "loader", "what provides a needed library came along");
    assert_eq!(entries["bin/ls"].contents, "/bin/busybox", "the definition's links");
    assert!(entries["lib/apk/db/installed"].contents.contains("P:musl\nV:1.2.5-r0\n"));
    assert!(!entries.keys().any(|name| name.contains("PKGINFO") || name.contains("post-install")));
    let materials = fs::read_to_string(repository.lab.at("out/image.spdx.json")).unwrap();
    assert!(materials.contains("pkg:apk/musl@1.2.5-r0?arch=x86_64"), "{materials}");
    let first = fs::read(repository.lab.at("out/image")).unwrap();
    repository.lab.built(&arguments.each_ref().map(String::as_str));
    assert!(first == fs::read(repository.lab.at("out/image")).unwrap());
}

#[test]
fn what_is_not_as_it_was_signed_is_refused() {
    if !have(&NEEDED) {
        return;
    }
    let repository = Repository::new();
    repository.fill();
    fs::write(repository.lab.at("none.rsa.pub"), "no key").unwrap();
    let index = fs::read(repository.directory().join("APKINDEX.tar.gz")).unwrap();
    repository.index("right", "none", "P:busybox\nV:1\n\n");
    repository.refused("none", &["verifying the signature of file://", "openssl failed", "Could not"]);
    fs::write(repository.directory().join("APKINDEX.tar.gz"), &index).unwrap();
    repository.refused("wrong", &["signed by the key right.rsa.pub, which is not among those given; --key"]);
    // A forger can put a trusted key's name on a signature, but not make it.
    repository.index("wrong", "right", "P:busybox\nV:1\n\n");
    repository.refused("right", &["APKINDEX.tar.gz is no good: its signature does not match the key"]);
    fs::write(repository.directory().join("APKINDEX.tar.gz"), &index).unwrap();
    let files: [(&str, &[u8]); 1] = [("usr/share/busybox", b"old")];
    repository.package("right", "busybox-1.2-r3.apk", ("busybox", "1.0-r0"), &files);
    repository.refused("right", &["busybox-1.2-r3.apk is no good: it is another package or version"]);
    repository.package("wrong", "busybox-1.2-r3.apk", ("busybox", "1.2-r3"), &files);
    repository.refused("right", &["signed by the key wrong.rsa.pub"]);
    repository.package("right", "busybox-1.2-r3.apk", ("busybox", "1.2-r3"), &files);
    let path = repository.directory().join("busybox-1.2-r3.apk");
    let mut bytes = fs::read(&path).unwrap();
    bytes.extend(gzip(&archive(&[("etc/shadow", b"root::")], true)));
    fs::write(&path, bytes).unwrap();
    repository.refused("right", &["its files do not match their digest"]);
    fs::write(&path, "text").unwrap();
    repository.refused("right", &["not made of gzip streams"]);
    fs::remove_file(&path).unwrap();
    repository.refused("right", &["fetching file://", "busybox-1.2-r3.apk: curl failed"]);
    fs::remove_file(repository.directory().join("APKINDEX.tar.gz")).unwrap();
    repository.refused("right", &["--repository names another", "curl failed"]);
}
