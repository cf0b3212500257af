//! The images that containerd's tests pull.

use engines::{
    host::Host,
    registry::{self, Layer, directory, file, image},
};
use serde_json::json;

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
    let mut consumer = Layer::new(Vec::new());
    file(&mut consumer, "bin/stress", STRESS.as_bytes(), 0o755);
    let consumer = consumer.into_inner().unwrap();
    image(
        &root,
        "e2e-test-images/resource-consumer:1.10",
        json!({"Cmd": ["sleep", "2147483647"]}),
        &[&busybox, &consumer],
    );
    let volume = json!({"Cmd": ["sh"], "Volumes": {"/test_dir": {}}});
    let mut copied = Layer::new(Vec::new());
    directory(&mut copied, "test_dir", 0o755, 0);
    file(&mut copied, "test_dir/test_file", b"test_content\n", 0o644);
    image(&root, "containerd/volume-copy-up:2.1", volume.clone(), &[&busybox, &copied.into_inner().unwrap()]);
    let mut owned = Layer::new(Vec::new());
    directory(&mut owned, "test_dir", 0o755, 65534);
    image(&root, "containerd/volume-ownership:2.1", volume, &[&busybox, &owned.into_inner().unwrap()]);

    // containerd speaks plain HTTP to it, since it is of the machine itself.
    registry::serve(host, &root, &["36", "0", "8", "10", "1"]);
}

/// A layer with busybox, and the files that every system has.
fn busybox() -> Vec<u8> {
    let mut layer = Layer::new(Vec::new());
    // `run` is mounted to, also where the rest is read-only; images that came from a whole system have it.
    for name in ["bin", "dev", "etc", "home", "proc", "run", "sys", "usr", "usr/sbin", "var", "var/www"] {
        directory(&mut layer, name, 0o755, 0);
    }
    directory(&mut layer, "root", 0o700, 0);
    directory(&mut layer, "tmp", 0o1777, 0);
    registry::busybox(&mut layer, &["bin"], &["nc"]);
    file(&mut layer, "bin/nc", NC.as_bytes(), 0o755);
    file(&mut layer, "etc/passwd", USERS.as_bytes(), 0o644);
    file(&mut layer, "etc/group", GROUPS.as_bytes(), 0o644);
    layer.into_inner().unwrap()
}
