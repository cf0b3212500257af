//! Images for the engines, made here: no registry is asked.

use std::{
    fs, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

use serde_json::json;
use sha2::{Digest, Sha256};

/// The image that the containers of the tests run: Debian's busybox.
pub const BUSYBOX: &str = "docker.io/library/busybox:test";
/// The same files; its command does nothing for ever. The first container of a pod is made of it.
pub const PAUSE: &str = "registry.test/pause:test";

const USERS: &str =
    "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\nuser:x:1000:1000::/home/user:/bin/sh\n";
const GROUPS: &str = "root:x:0:\nnogroup:x:65534:\nuser:x:1000:\nextra:x:2000:user\n";

/// What `scripts/engines.sh` unpacked.
pub fn unpacked(name: &str) -> PathBuf {
    let directory = e2e::cache().join("engines").join(name);
    assert!(directory.exists(), "there is no {}; run scripts/engines.sh", directory.display());
    directory
}

/// The same as [`archive`], made once for all tests of the process.
pub fn archive_once() -> &'static [u8] {
    static ARCHIVE: OnceLock<Vec<u8>> = OnceLock::new();
    ARCHIVE.get_or_init(archive)
}

/// One archive with all images, in the form that `docker save` gives.
pub fn archive() -> Vec<u8> {
    let layer = layer();
    let layer_name = format!("{}/layer.tar", digest(&layer));
    let mut manifest = Vec::new();
    let mut archive = tar::Builder::new(Vec::new());
    for (name, command) in [(BUSYBOX, json!(["sh"])), (PAUSE, json!(["sleep", "2147483647"]))] {
        let config = json!({
            "architecture": "amd64", "os": "linux", "created": "2020-01-01T00:00:00Z",
            "config": {"Cmd": command, "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "FROM_IMAGE=yes"]},
            "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{}", digest(&layer))]},
            "history": [{"created": "2020-01-01T00:00:00Z", "created_by": name}],
        });
        let config = config.to_string().into_bytes();
        let config_name = format!("{}.json", digest(&config));
        append(&mut archive, &config_name, &config, 0o644);
        manifest.push(json!({"Config": config_name, "RepoTags": [name], "Layers": [layer_name]}));
    }
    append(&mut archive, &layer_name, &layer, 0o644);
    append(&mut archive, "manifest.json", serde_json::Value::from(manifest).to_string().as_bytes(), 0o644);
    archive.into_inner().unwrap()
}

fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The one layer: busybox under all its names, and the files that every system has.
fn layer() -> Vec<u8> {
    let busybox = unpacked("busybox").join("usr/bin/busybox");
    let list = Command::new(&busybox).arg("--list").output().unwrap();
    let mut layer = tar::Builder::new(Vec::new());
    for (name, mode) in [
        ("bin", 0o755),
        ("dev", 0o755),
        ("etc", 0o755),
        ("home", 0o755),
        ("home/user", 0o755),
        ("proc", 0o755),
        ("root", 0o700),
        ("sys", 0o755),
        ("tmp", 0o1777),
        ("var", 0o755),
    ] {
        let mut header = header(tar::EntryType::Directory, 0, mode);
        layer.append_data(&mut header, format!("{name}/"), io::empty()).unwrap();
    }
    append(&mut layer, "bin/busybox", &fs::read(busybox).unwrap(), 0o755);
    for applet in String::from_utf8(list.stdout).unwrap().lines().filter(|applet| *applet != "busybox") {
        let mut header = header(tar::EntryType::Symlink, 0, 0o777);
        layer.append_link(&mut header, format!("bin/{applet}"), "busybox").unwrap();
    }
    append(&mut layer, "bin/watcher", &watcher(), 0o755);
    append(&mut layer, "etc/passwd", USERS.as_bytes(), 0o644);
    append(&mut layer, "etc/group", GROUPS.as_bytes(), 0o644);
    append(&mut layer, "etc/from-image", b"of the image\n", 0o644);
    layer.into_inner().unwrap()
}

/// A program that tells of every change of directories and files. It is static, because the image has no libraries.
/// `KATA_WATCHER` names one that was made elsewhere: the lab's machine has no compiler.
fn watcher() -> Vec<u8> {
    if let Some(made) = std::env::var_os("KATA_WATCHER") {
        return fs::read(made).expect("read what KATA_WATCHER names");
    }
    let directory = tempfile::tempdir().unwrap();
    let program = directory.path().join("watcher");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/watcher.c");
    let status =
        Command::new("cc").args(["-static", "-Os", "-s", "-Wall", "-Werror", "-o"]).arg(&program).arg(source).status();
    assert!(status.unwrap().success(), "the C compiler fails");
    fs::read(program).unwrap()
}

fn append(archive: &mut tar::Builder<impl io::Write>, name: &str, bytes: &[u8], mode: u32) {
    let mut header = header(tar::EntryType::Regular, bytes.len() as u64, mode);
    archive.append_data(&mut header, name, bytes).unwrap();
}

fn header(kind: tar::EntryType, size: u64, mode: u32) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_size(size);
    header.set_mode(mode);
    header.set_mtime(1_577_836_800);
    header
}

/// Writes an executable script.
pub fn script(at: &Path, text: &str) {
    fs::write(at, text).unwrap();
    fs::set_permissions(at, fs::Permissions::from_mode(0o755)).unwrap();
}
