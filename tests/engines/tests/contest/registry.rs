//! A registry of images for tests that pull: plain files, served by busybox on the machine's loopback.

use std::{fs, io, path::Path, process::Command};

use engines::{host::Host, images};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// Where the tests look for their images. containerd speaks plain HTTP to it, since it is of the machine itself.
pub const ADDRESS: &str = "localhost:5000";

/// The users and groups of the busybox image that the tests were written for, as far as they ask for them.
const USERS: &str = "root:x:0:0:root:/root:/bin/sh\ndaemon:x:1:1:daemon:/usr/sbin:/bin/false\nsys:x:3:3:sys:/dev:/bin/false\n\
    www-data:x:33:33:www-data:/var/www:/bin/false\nnobody:x:65534:65534:nobody:/home:/bin/false\n";
const GROUPS: &str = "root:x:0:\ndaemon:x:1:\nsys:x:3:\nwheel:x:10:root\nwww-data:x:33:\nnobody:x:65534:\n";

/// The `nc` that the tests know ends by SIGTERM even as the first process of its namespace; Debian's does not.
const NC: &str = "#!/bin/sh\ntrap 'exit 143' TERM\nbusybox nc \"$@\" &\nwait $!\n";

/// A process that has 100 MiB for a while.
const STRESS: &str = "#!/bin/sh\ndd if=/dev/zero bs=105906176 count=1 | sleep 25\n";

/// Makes the images below the machine's directory and serves them.
pub fn serve(host: &Host) {
    let root = host.directory().join("registry");
    let busybox = busybox();
    let plain = json!({"Cmd": ["sh"]});
    for name in ["containerd/busybox:1.36", "containerd/alpine:3.14.0"] {
        image(&root, name, plain.clone(), &[&busybox]);
    }
    // It ends by SIGTERM, as the one it stands for.
    let pause = "trap 'exit 0' INT TERM; sleep 2147483647 & wait";
    image(&root, "pause:3.8", json!({"Cmd": ["sh", "-c", pause]}), &[&busybox]);
    let mut consumer = tar::Builder::new(Vec::new());
    file(&mut consumer, "bin/stress", STRESS.as_bytes(), 0o755);
    let consumer = consumer.into_inner().unwrap();
    image(
        &root,
        "e2e-test-images/resource-consumer:1.10",
        json!({"Cmd": ["sleep", "2147483647"]}),
        &[&busybox, &consumer],
    );
    let volume = json!({"Cmd": ["sh"], "Volumes": {"/test_dir": {}}});
    let mut copied = tar::Builder::new(Vec::new());
    directory(&mut copied, "test_dir", 0o755, 0);
    file(&mut copied, "test_dir/test_file", b"test_content\n", 0o644);
    image(&root, "containerd/volume-copy-up:2.1", volume.clone(), &[&busybox, &copied.into_inner().unwrap()]);
    let mut owned = tar::Builder::new(Vec::new());
    directory(&mut owned, "test_dir", 0o755, 65534);
    image(&root, "containerd/volume-ownership:2.1", volume, &[&busybox, &owned.into_inner().unwrap()]);

    // The end of a tag is to busybox the kind of a file.
    let kind = "application/vnd.docker.distribution.manifest.v2+json";
    let types: String = ["36", "0", "8", "10", "1"].map(|end| format!(".{end}:{kind}\n")).concat();
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
fn image(root: &Path, name: &str, mut settings: Value, layers: &[&[u8]]) {
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

/// A layer with Debian's busybox under all its names, and the files that every system has.
fn busybox() -> Vec<u8> {
    let busybox = images::unpacked("busybox").join("usr/bin/busybox");
    let list = Command::new(&busybox).arg("--list").output().unwrap();
    let mut layer = tar::Builder::new(Vec::new());
    for name in ["bin", "dev", "etc", "home", "proc", "sys", "usr", "usr/sbin", "var", "var/www"] {
        directory(&mut layer, name, 0o755, 0);
    }
    directory(&mut layer, "root", 0o700, 0);
    directory(&mut layer, "tmp", 0o1777, 0);
    file(&mut layer, "bin/busybox", &fs::read(busybox).unwrap(), 0o755);
    for applet in String::from_utf8(list.stdout).unwrap().lines().filter(|applet| !["busybox", "nc"].contains(applet)) {
        let mut header = header(tar::EntryType::Symlink, 0, 0o777, 0);
        layer.append_link(&mut header, format!("bin/{applet}"), "busybox").unwrap();
    }
    file(&mut layer, "bin/nc", NC.as_bytes(), 0o755);
    file(&mut layer, "etc/passwd", USERS.as_bytes(), 0o644);
    file(&mut layer, "etc/group", GROUPS.as_bytes(), 0o644);
    layer.into_inner().unwrap()
}

fn directory(layer: &mut tar::Builder<Vec<u8>>, name: &str, mode: u32, owner: u64) {
    layer.append_data(&mut header(tar::EntryType::Directory, 0, mode, owner), format!("{name}/"), io::empty()).unwrap();
}

fn file(layer: &mut tar::Builder<Vec<u8>>, name: &str, bytes: &[u8], mode: u32) {
    layer.append_data(&mut header(tar::EntryType::Regular, bytes.len() as u64, mode, 0), name, bytes).unwrap();
}

fn header(kind: tar::EntryType, size: u64, mode: u32, owner: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_size(size);
    header.set_mode(mode);
    header.set_uid(owner);
    header.set_gid(owner);
    header.set_mtime(1_577_836_800);
    header
}
