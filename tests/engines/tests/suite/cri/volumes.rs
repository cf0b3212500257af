//! Volumes, as a kubelet lays them out on the node and asks for them.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
};

use engines::{Containerd, Handler, cases, cri::Node};
use serde_json::{Value, json};

use super::{PLAIN, mount, wait_until};

cases!(
    directories_and_files_of_the_node,
    empty_directories,
    empty_directories_in_memory,
    shared_memory,
    volumes_of_the_kubelet,
    propagation,
    huge_pages,
    block_devices,
    a_volume_that_is_not_there,
);

/// Where a kubelet has a volume of the pod.
fn place(engine: &Containerd, plugin: &str, name: &str) -> PathBuf {
    let path = engine.host.directory().join(format!("pods/uid/volumes/kubernetes.io~{plugin}/{name}"));
    fs::create_dir_all(&path).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).unwrap();
    path
}

fn directories_and_files_of_the_node(engine: &Containerd, handler: Handler) -> Value {
    let node = Node::new(engine, handler);
    let pod = node.pod("files", &PLAIN);
    let top = engine.host.directory().join("node");
    fs::create_dir_all(top.join("data/sub")).unwrap();
    for (name, text) in [
        ("data/in", "of the node\n"),
        ("data/sub/below", "below\n"),
        ("hosts", "127.0.0.1 localhost\n10.1.2.3 a.name\n"),
        ("resolv.conf", "nameserver 10.96.0.99\n"),
        ("hostname", "files\n"),
        ("termination", ""),
    ] {
        fs::write(top.join(name), text).unwrap();
    }
    fs::set_permissions(top.join("data/in"), fs::Permissions::from_mode(0o640)).unwrap();
    let change = json!({"mounts": [
        mount(top.join("data"), "/data", false),
        mount(top.join("data"), "/read-only", true),
        // What a kubelet makes of a subPath.
        mount(top.join("data/sub"), "/sub", false),
        mount(top.join("data/in"), "/deep/down/file", true),
        mount(top.join("hosts"), "/etc/hosts", false),
        mount(top.join("resolv.conf"), "/etc/resolv.conf", false),
        mount(top.join("hostname"), "/etc/hostname", false),
        mount(top.join("termination"), "/dev/termination-log", false),
    ]});
    let container = pod.idle("main", &change);
    // A guest mounts what is a mount of the host once more, beneath the one that was asked for: each line counts once.
    let seen = node.sh(
        &container,
        "cat /data/in /sub/below /deep/down/file /etc/hosts /etc/resolv.conf /etc/hostname
         stat -c '%a %u %g %F' /data /data/in /deep/down/file /dev/termination-log
         echo written >/data/out; mkdir /data/made; mv /data/out /data/made/; ln -s made/out /data/link; chown 12:34 /data/made/out
         echo appended >>/sub/below
         echo 10.1.2.4 another.name >>/etc/hosts
         printf 'the reason' >/dev/termination-log
         for at in /read-only/no /deep/down/file; do echo no 2>/dev/null >$at || echo refused $at; done
         cat /read-only/made/out
         mount | grep -E ' (/data|/read-only|/deep/down/file) ' | sed 's/.* \\(\\/[^ ]*\\) type [^ ]* (\\(r[ow]\\).*/\\1 \\2/' | sort -u",
    );
    for (name, text) in [
        ("data/made/out", "written\n"),
        ("data/link", "written\n"),
        ("data/sub/below", "below\nappended\n"),
        ("termination", "the reason"),
        ("hosts", "127.0.0.1 localhost\n10.1.2.3 a.name\n10.1.2.4 another.name\n"),
    ] {
        assert_eq!(fs::read_to_string(top.join(name)).unwrap(), text, "{name}");
    }
    // What the node writes arrives.
    fs::write(top.join("data/late"), "late\n").unwrap();
    assert_eq!(node.until(&container, "cat /data/late"), "late\n");
    let owner = std::os::unix::fs::MetadataExt::uid(&fs::metadata(top.join("data/made/out")).unwrap());
    pod.remove();
    assert_eq!(owner, 12);
    json!(seen)
}

fn empty_directories(engine: &Containerd, handler: Handler) -> Value {
    let node = Node::new(engine, handler);
    let pod = node.pod("empty", &PLAIN);
    let volume = place(engine, "empty-dir", "scratch");
    let change = json!({"mounts": [mount(&volume, "/scratch", false)]});
    let (a, b) = (pod.idle("a", &change), pod.idle("b", &change));
    node.sh(&a, "echo of a >/scratch/a; mkfifo /scratch/pipe");
    assert_eq!(node.sh(&b, "cat /scratch/a; echo of b >/scratch/b"), "of a\n");
    let seen = node.sh(&a, "cat /scratch/b; stat -c '%a %u %g %F' /scratch /scratch/a /scratch/pipe");
    // It outlives a container, and the kubelet finds on the node what is in it.
    node.stop(&a, 10);
    node.remove(&a);
    let again = pod.idle("again", &change);
    assert_eq!(node.sh(&again, "cat /scratch/a"), "of a\n");
    assert_eq!(fs::read_to_string(volume.join("b")).unwrap(), "of b\n");
    pod.remove();
    json!(seen)
}

/// Whether the machine's mounts have one at a place, with these options (tmpfs). It goes with the machine.
fn mount_on_the_node(engine: &Containerd, at: &Path, kind: &str, options: &str) {
    engine.host.ok("mount", &["-t", kind, "-o", options, kind, &at.display().to_string()]);
}

fn empty_directories_in_memory(engine: &Containerd, handler: Handler) -> Value {
    let node = Node::new(engine, handler);
    let pod = node.pod("memory", &PLAIN);
    let volume = place(engine, "empty-dir", "memory");
    mount_on_the_node(engine, &volume, "tmpfs", "size=16M,mode=1777");
    let change = json!({"mounts": [mount(&volume, "/memory", false)]});
    let (a, b) = (pod.idle("a", &change), pod.idle("b", &change));
    node.sh(&a, "echo of a >/memory/a");
    let seen = node.sh(
        &b,
        "cat /memory/a; stat -f -c %T /memory; df -k /memory | awk 'NR == 2 { print $2 }'; stat -c '%a %u %g' /memory
         head -c 15000000 /dev/zero >/memory/fits
         head -c 3000000 /dev/zero 2>&1 >/memory/too-much || echo full
         rm /memory/fits /memory/too-much",
    );
    assert!(seen.contains("\n16384\n") && seen.contains("full"), "{seen}");
    node.stop(&a, 10);
    node.remove(&a);
    let again = pod.idle("again", &change);
    assert_eq!(node.sh(&again, "cat /memory/a"), "of a\n");
    pod.remove();
    engine.host.ok("umount", &[&volume.display().to_string()]);
    json!(seen)
}

fn shared_memory(engine: &Containerd, handler: Handler) -> Value {
    let node = Node::new(engine, handler);
    let pod = node.pod("shm", &PLAIN);
    let volume = place(engine, "empty-dir", "shm");
    mount_on_the_node(engine, &volume, "tmpfs", "size=128M,mode=1777");
    let look = "stat -f -c %T /dev/shm; df -k /dev/shm | awk 'NR == 2 { print $2 }'; stat -c %a /dev/shm; ls /dev/shm";
    let plain = pod.idle("plain", &PLAIN);
    node.sh(&plain, "echo of the pod >/dev/shm/of-the-pod");
    // A larger one is asked for by a volume in memory.
    let large = pod.idle("large", &json!({"mounts": [mount(&volume, "/dev/shm", false)]}));
    let seen = [node.sh(&plain, look), node.sh(&large, look)];
    pod.remove();
    engine.host.ok("umount", &[&volume.display().to_string()]);
    assert!(seen[0].contains("\n65536\n") && seen[1].contains("\n131072\n"), "{seen:?}");
    json!(seen)
}

/// The kubelet's way of changing all files of a volume at once: a new directory, and a link that is exchanged.
fn write_atomically(volume: &Path, revision: u32, files: &[(&str, &str)]) {
    let name = format!("..2026_{revision}");
    let before = fs::read_link(volume.join("..data")).ok();
    for (file, text) in files {
        let path = volume.join(&name).join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
    }
    symlink(&name, volume.join("..data_tmp")).unwrap();
    fs::rename(volume.join("..data_tmp"), volume.join("..data")).unwrap();
    for (file, _) in files {
        let first = file.split('/').next().unwrap();
        if !volume.join(first).is_symlink() {
            symlink(format!("..data/{first}"), volume.join(first)).unwrap();
        }
    }
    if let Some(before) = before {
        fs::remove_dir_all(volume.join(before)).unwrap();
    }
}

fn volumes_of_the_kubelet(engine: &Containerd, handler: Handler) -> Value {
    let node = Node::new(engine, handler);
    let pod = node.pod("settings", &PLAIN);
    let plugins = ["configmap", "secret", "projected"];
    let volumes = plugins.map(|plugin| place(engine, plugin, plugin));
    for volume in &volumes {
        write_atomically(volume, 1, &[("key", "first\n"), ("deep/token", "first\n")]);
    }
    let sub_path = engine.host.directory().join("pods/uid/volume-subpaths/configmap/main/0");
    fs::create_dir_all(sub_path.parent().unwrap()).unwrap();
    fs::write(&sub_path, "").unwrap();
    engine.host.ok(
        "mount",
        &["--bind", &volumes[0].join("..data/key").display().to_string(), &sub_path.display().to_string()],
    );
    let mut mounts: Vec<Value> =
        plugins.iter().zip(&volumes).map(|(name, volume)| mount(volume, &format!("/{name}"), true)).collect();
    mounts.push(mount(&sub_path, "/sub/key", true));
    let change = json!({"mounts": mounts});
    let watcher = pod.run("watcher", &["watcher", "/configmap", "/secret", "/projected", "/secret/key"], &change);
    let other = pod.idle("other", &change);
    wait_until("it watches", || !pod.log("watcher").is_empty());
    let look = "for at in /configmap /secret /projected; do cat $at/key $at/deep/token; stat -L -c '%a %u %g' $at/key; readlink $at/key; done; cat /sub/key";
    let first = node.sh(&other, look);
    let refused = node.exec(&other, &["sh", "-c", "echo x >/configmap/new; echo x >/secret/key"]);
    assert!(refused.stderr.matches("Read-only file system").count() == 2, "{refused:?}");
    for (volume, name) in volumes.iter().zip(plugins) {
        write_atomically(volume, 2, &[("key", "second\n"), ("deep/token", "second\n"), ("new", "new\n")]);
        // As the kubelet, and whoever reads a volume, it is the link that a program watches.
        let told = format!("/{name} moved-to ..data");
        wait_until(&told, || pod.log("watcher").iter().any(|(_, line)| *line == told));
        assert_eq!(node.until(&other, &format!("grep second /{name}/key; cat /{name}/new")), "second\nnew\n");
    }
    // A watched file is another one now.
    wait_until("the file is gone", || pod.log("watcher").iter().any(|(_, line)| line.starts_with("/secret/key gone")));
    let second = node.sh(&other, look);
    // In both containers, and no more than one revision.
    assert_eq!(node.sh(&watcher, "cat /secret/deep/token; ls -A /secret | wc -l"), "second\n5\n");
    // A container that starts now finds what is there now.
    write_atomically(&volumes[1], 3, &[("key", "third\n"), ("deep/token", "third\n")]);
    let late = pod.idle("late", &json!({"mounts": [mount(&volumes[1], "/secret", true)]}));
    assert_eq!(node.until(&late, "grep third /secret/key"), "third\n");
    pod.remove();
    engine.host.ok("umount", &[&sub_path.display().to_string()]);
    json!([first, second])
}

fn propagation(engine: &Containerd, handler: Handler) -> Value {
    let node = Node::new(engine, handler);
    let pod = node.pod("propagated", &PLAIN);
    let top = engine.host.directory().join("mounts");
    fs::create_dir_all(top.join("later")).unwrap();
    let with = |propagation: i64| {
        let mut mount = mount(&top, "/mounts", false);
        mount["propagation"] = json!(propagation);
        json!({"mounts": [mount]})
    };
    let (private, follower) = (pod.idle("private", &with(0)), pod.idle("follower", &with(1)));
    mount_on_the_node(engine, &top.join("later"), "tmpfs", "size=1M");
    fs::write(engine.host.seen(top.join("later/file")), "mounted later\n").unwrap();
    assert_eq!(node.until(&follower, "cat /mounts/later/file"), "mounted later\n");
    let seen = node.sh(&private, "ls /mounts/later");
    let shared = pod.try_create("shared", &["sleep", "1000"], &with(2)).and_then(|id| {
        let started = node.call("StartContainer", &json!({"container_id": id}));
        started.map(|_| id)
    });
    match (shared, handler) {
        (Err(failure), Handler::Kata) => assert!(failure.message.contains("use rslave or rprivate"), "{failure}"),
        (Ok(_), Handler::Runc) => {}
        other => panic!("{other:?}"),
    }
    // Lazily: the guest may remember what it has seen there.
    engine.host.ok("umount", &["--lazy", &top.join("later").display().to_string()]);
    node.until(&follower, "! test -e /mounts/later/file");
    pod.remove();
    json!(seen)
}

fn huge_pages(engine: &Containerd, handler: Handler) -> Value {
    let node = Node::new(engine, handler);
    let pod = node.pod("huge", &PLAIN);
    let volume = place(engine, "empty-dir", "huge");
    mount_on_the_node(engine, &volume, "hugetlbfs", "pagesize=2M,size=8M");
    let change = json!({
        "mounts": [mount(&volume, "/huge", false)],
        "linux": {"resources": {"memory_limit_in_bytes": 67_108_864, "hugepage_limits": [{"page_size": "2MB", "limit": 8_388_608}]}},
    });
    let container = pod.idle("main", &change);
    let seen = node.sh(&container, "mount | grep -c 'on /huge type hugetlbfs'; stat -f -c %S /huge");
    if handler.is_kata() {
        // The guest's own: there is nothing to be prepared on the node.
        node.sh(&container, "fallocate -l 8M /huge/file; test $(stat -c %s /huge/file) = 8388608");
        let more = node.exec(&container, &["fallocate", "-l", "4M", "/huge/more"]);
        assert_ne!(more.code, 0, "more than the limit was given");
    }
    pod.remove();
    engine.host.ok("umount", &[&volume.display().to_string()]);
    json!(seen)
}

fn block_devices(engine: &Containerd, handler: Handler) -> Value {
    let node = Node::new(engine, handler);
    let image = engine.host.directory().join("disk");
    fs::write(&image, vec![b'd'; 4 << 20]).unwrap();
    let device = engine.host.sh(&format!("losetup --find --show {}", image.display())).trim().to_owned();
    let pod = node.pod("disks", &PLAIN);
    let with = |permissions: &str| json!({"devices": [{"container_path": "/dev/xvda", "host_path": device, "permissions": permissions}]});
    let container = pod.idle("main", &with("mrw"));
    let seen = node.sh(
        &container,
        "stat -c '%F' /dev/xvda; blockdev --getsize64 /dev/xvda; head -c 4 /dev/xvda; echo
         printf 'from the container' | dd of=/dev/xvda bs=512 seek=3 conv=notrunc 2>/dev/null; sync",
    );
    node.stop(&container, 10);
    node.remove(&container);
    let reader = pod.idle("reader", &with("mr"));
    let read = node.sh(&reader, "dd if=/dev/xvda bs=512 skip=3 count=1 2>/dev/null | head -c 18");
    let refused = node.exec(&reader, &["sh", "-c", "echo x >/dev/xvda"]);
    pod.remove();
    engine.host.ok("losetup", &["--detach", &device]);
    let bytes = fs::read(&image).unwrap();
    assert_eq!(&bytes[3 * 512..3 * 512 + 18], b"from the container");
    assert_ne!(refused.code, 0);
    json!([seen, read])
}

fn a_volume_that_is_not_there(engine: &Containerd, handler: Handler) -> Value {
    let node = Node::new(engine, handler);
    let pod = node.pod("without", &PLAIN);
    let missing = engine.host.directory().join("is-not/there");
    // containerd makes a directory of that name before it asks a shim; it is the same for every runtime.
    let container = pod.idle("main", &json!({"mounts": [mount(&missing, "/missing", false)]}));
    let seen = node.sh(&container, "ls -A /missing; stat -c %F /missing");
    let device =
        json!({"devices": [{"container_path": "/dev/xvda", "host_path": "/dev/no-such-disk", "permissions": "mrw"}]});
    let refused = pod.try_create("disk", &["true"], &device).unwrap_err();
    assert!(refused.message.contains("/dev/no-such-disk"), "{refused}");
    pod.remove();
    json!(seen)
}
