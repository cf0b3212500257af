//! A machine on which Podman is installed, with a registry that has the images of its suite.

use std::{fs, path::Path};

use engines::{
    host::Host,
    podman,
    registry::{self, Layer},
};
use serde_json::json;

use crate::suites::directory;

/// Who is in the image that the suite was written for, as far as the cases ask.
const USERS: &str = "root:x:0:0:root:/root:/bin/sh\nbin:x:1:1:bin:/bin:/sbin/nologin\ndaemon:x:2:2:daemon:/sbin:/sbin/nologin\n\
    mail:x:8:12:mail:/var/mail:/sbin/nologin\nnobody:x:65534:65534:nobody:/:/sbin/nologin\n";
const GROUPS: &str = "root:x:0:root\nbin:x:1:root,bin,daemon\ndaemon:x:2:root,bin,daemon\nsys:x:3:root,bin\ntty:x:5:\nmail:x:12:mail\n\
    wheel:x:10:root\nping:x:999:\nnogroup:x:65533:\nnobody:x:65534:\n";
const RELEASE: &str = "NAME=\"Test\"\nID=test\nVERSION_ID=1\n";
const PAUSE: &str = "#!/bin/sh\necho Confirmed: testimage pause invoked as $0\nwhile :; do\n    sleep 0.1\ndone\n";

/// Debian's busybox has none. The shell would add variables of its own.
const PRINTENV: &str = "#!/bin/sh\n[ $# != 0 ] || { /bin/tr '\\0' '\\n' </proc/$$/environ; exit; }\ncode=0\n\
    for name; do /bin/tr '\\0' '\\n' </proc/$$/environ | /bin/sed -n \"s/^$name=//p\" | /bin/grep . || code=1; done\nexit $code\n";

/// What the tags of the registry end in.
const END: &str = "test";
const TAG: &str = "20220615.test";
/// Another image, which is only ever pulled.
const OTHER: &str = "00000004.test";

/// The variables of the suite.
pub fn environment(runtime: &Path) -> String {
    format!(
        "export PODMAN='podman --runtime={}' PODMAN_TIMEOUT=120 PODMAN_TEST_IMAGE_TAG={TAG} PODMAN_NONLOCAL_IMAGE_TAG={OTHER}",
        runtime.display()
    )
}

/// Installs Podman and what the suite calls, makes the images and pulls the first.
pub fn prepare(host: &Host) {
    let own = host.directory();
    let root = own.join("registry");
    let settings = json!({
        "Cmd": ["/bin/echo", "This container is intended for podman CI testing"],
        "WorkingDir": "/home/podman",
        "Labels": {"created_by": "test/system/build-testimage", "created_at": "2022-06-15T00:00:00Z"},
    });
    let layer = layer();
    registry::image(&root, &format!("libpod/testimage:{TAG}"), settings, &[&layer]);
    registry::image(&root, &format!("libpod/testimage:{OTHER}"), json!({"Cmd": ["sh"]}), &[&layer]);
    registry::serve(host, &root, &[END]);
    fs::write(own.join("containers.conf"), podman::configuration("", "")).unwrap();
    let mirror = format!("[[registry]]\nprefix = \"quay.io\"\nlocation = \"{}\"\ninsecure = true\n", registry::ADDRESS);
    fs::write(own.join("registries.conf"), mirror).unwrap();
    host.remove_cgroups(&["libpod_parent", "libpod-*", "conmon"]);
    podman::install(host, &[directory().join("tools/usr")]);
    // File systems of containers cannot be put together on one that is itself put together.
    host.sh(&format!(
        "cp {own}/containers.conf /etc/containers/containers.conf
        mkdir -p /etc/containers/registries.conf.d /var/lib/containers {own}/lib
        cp {own}/registries.conf /etc/containers/registries.conf.d/suite.conf
        mount --bind {own}/lib /var/lib/containers
        podman pull --quiet quay.io/libpod/testimage:{TAG}",
        own = own.display(),
    ));
}

/// The files of the image.
fn layer() -> Vec<u8> {
    let mut layer = Layer::new(Vec::new());
    for name in [
        "bin",
        "dev",
        "etc",
        "home",
        "home/podman",
        "mnt",
        "proc",
        "run",
        "sbin",
        "srv",
        "sys",
        "usr",
        "usr/bin",
        "usr/sbin",
        "var",
        "var/mail",
        "var/www",
    ] {
        registry::directory(&mut layer, name, 0o755, 0);
    }
    registry::directory(&mut layer, "root", 0o700, 0);
    registry::directory(&mut layer, "tmp", 0o1777, 0);
    registry::directory(&mut layer, "var/tmp", 0o1777, 0);
    registry::busybox(&mut layer, &["bin", "usr/bin"], &[]);
    registry::link(&mut layer, "bin/busybox-extras", "/bin/busybox");
    registry::link(&mut layer, "usr/sbin/httpd", "/bin/busybox");
    for (name, text) in [
        ("passwd", USERS),
        ("group", GROUPS),
        ("os-release", RELEASE),
        ("alpine-release", "3.16.0\n"),
        ("services", "http 80/tcp\n"),
    ] {
        registry::file(&mut layer, &format!("etc/{name}"), text.as_bytes(), 0o644);
    }
    registry::link(&mut layer, "etc/mtab", "/proc/mounts");
    registry::file(&mut layer, "bin/printenv", PRINTENV.as_bytes(), 0o755);
    registry::file(&mut layer, "home/podman/pause", PAUSE.as_bytes(), 0o755);
    // A case asks for its time.
    let mut header = registry::header(tar::EntryType::Regular, TAG.len() as u64 + 1, 0o644, 0);
    header.set_mtime(1_600_000_000);
    layer.append_data(&mut header, "home/podman/testimage-id", format!("{TAG}\n").as_bytes()).unwrap();
    layer.into_inner().unwrap()
}
