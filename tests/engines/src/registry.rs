//! A registry of images for tests that pull: plain files, served by busybox on the machine's loopback.

use std::{fs, io, path::Path, process::Command};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::{host::Host, images};

/// Where it listens.
pub const ADDRESS: &str = "localhost:5000";

/// A layer of an image.
pub type Layer = tar::Builder<Vec<u8>>;

/// Serves the images of a directory. Every tag ends in a point and a word: the end of a name is to busybox the kind of a file.
pub fn serve(host: &Host, root: &Path, ends: &[&str]) {
    // Podman asks whether it is one first.
    fs::create_dir_all(root.join("v2")).unwrap();
    fs::write(root.join("v2/index.html"), "{}").unwrap();
    let kind = "application/vnd.docker.distribution.manifest.v2+json";
    let types: String = ends.iter().map(|end| format!(".{end}:{kind}\n")).collect();
    let configuration = host.directory().join("registry.conf");
    fs::write(&configuration, types).unwrap();
    host.sh(&format!(
        "{} httpd -p 127.0.0.1:{} -h {} -c {}",
        images::unpacked("busybox").join("usr/bin/busybox").display(),
        ADDRESS.split_once(':').unwrap().1,
        root.display(),
        configuration.display()
    ));
}

/// Writes an image as a registry gives it out.
pub fn image(root: &Path, name: &str, mut settings: Value, layers: &[&[u8]]) {
    let (name, tag) = name.split_once(':').unwrap();
    let at = root.join("v2").join(name);
    fs::create_dir_all(at.join("blobs")).unwrap();
    fs::create_dir_all(at.join("manifests")).unwrap();
    let blob = |bytes: &[u8], kind: &str| {
        let digest = digest(bytes);
        fs::write(at.join("blobs").join(&digest), bytes).unwrap();
        json!({"mediaType": format!("application/vnd.docker.{kind}"), "digest": digest, "size": bytes.len()})
    };
    settings["Env"] = json!(["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]);
    let config = json!({
        "architecture": "amd64", "os": "linux", "created": "2020-01-01T00:00:00Z", "config": settings,
        "rootfs": {"type": "layers", "diff_ids": layers.iter().map(|layer| digest(layer)).collect::<Vec<_>>()},
        "history": layers.iter().map(|_| json!({"created": "2020-01-01T00:00:00Z", "created_by": name})).collect::<Vec<_>>(),
    });
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
        "config": blob(config.to_string().as_bytes(), "container.image.v1+json"),
        "layers": layers.iter().map(|layer| blob(layer, "image.rootfs.diff.tar")).collect::<Vec<_>>(),
    });
    let manifest = manifest.to_string();
    for reference in [tag, &digest(manifest.as_bytes())] {
        fs::write(at.join("manifests").join(reference), &manifest).unwrap();
    }
}

fn digest(bytes: &[u8]) -> String {
    let digest: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{digest}")
}

/// Puts Debian's busybox into a layer: its program, and under the names of all its applets in `places`.
pub fn busybox(layer: &mut Layer, places: &[&str], except: &[&str]) {
    let busybox = images::unpacked("busybox").join("usr/bin/busybox");
    let list = Command::new(&busybox).arg("--list").output().unwrap();
    file(layer, "bin/busybox", &fs::read(busybox).unwrap(), 0o755);
    for place in places {
        for applet in String::from_utf8(list.stdout.clone())
            .unwrap()
            .lines()
            .filter(|name| *name != "busybox" && !except.contains(name))
        {
            link(layer, &format!("{place}/{applet}"), "/bin/busybox");
        }
    }
}

/// Puts a link into a layer.
pub fn link(layer: &mut Layer, name: &str, to: &str) {
    layer.append_link(&mut header(tar::EntryType::Symlink, 0, 0o777, 0), name, to).unwrap();
}

/// Puts a directory into a layer.
pub fn directory(layer: &mut Layer, name: &str, mode: u32, owner: u64) {
    layer.append_data(&mut header(tar::EntryType::Directory, 0, mode, owner), format!("{name}/"), io::empty()).unwrap();
}

/// Puts a file into a layer.
pub fn file(layer: &mut Layer, name: &str, bytes: &[u8], mode: u32) {
    layer.append_data(&mut header(tar::EntryType::Regular, bytes.len() as u64, mode, 0), name, bytes).unwrap();
}

/// What a layer says of a file.
pub fn header(kind: tar::EntryType, size: u64, mode: u32, owner: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_size(size);
    header.set_mode(mode);
    header.set_uid(owner);
    header.set_gid(owner);
    header.set_mtime(1_577_836_800);
    header
}
