//! What a container's files come from: snapshots of every kind, binds; and where its output goes.

use std::{fs, os::unix::fs::PermissionsExt, path::Path};

use engines::{Containerd, Handler, cases, containerd::run_arguments, images, versions};
use serde_json::{Value, json};

use super::{Shared, expect_file, seen, wait_until};

cases!(
    binds,
    read_only_root,
    a_directory_as_root,
    overlayfs,
    native,
    output_to_a_file,
    output_to_a_program,
    output_to_a_program_that_is_not_there,
);
versions!(blockfile: containerd_1_7 V1_7, containerd_2_1 V2_1);
versions!(btrfs: containerd_1_6 V1_6, containerd_1_7 V1_7, containerd_2_1 V2_1);
versions!(erofs: containerd_2_1 V2_1);

fn binds(engine: &Containerd, handler: Handler) -> Value {
    let data = Shared::new(engine, "data");
    fs::write(data.path.join("in"), "from the host\n").unwrap();
    fs::create_dir(data.path.join("below")).unwrap();
    fs::set_permissions(data.path.join("in"), fs::Permissions::from_mode(0o640)).unwrap();
    let source = data.path.display();
    let (ro, file) = (
        format!("type=bind,src={source},dst=/ro,options=rbind:ro"),
        format!("type=bind,src={source}/in,dst=/etc/file,options=rbind:ro"),
    );
    let script = "cat /shared/in /ro/in /etc/file; echo made >/shared/out; echo no >/ro/out; echo $?; \
                  stat -c '%a %u %g %s %F' /shared/in /shared/below /etc/file; ls /ro; mv /shared/out /shared/below/; \
                  echo more >/shared/appended; echo more >>/shared/appended; ln -s in /shared/link; cat /shared/link";
    let options = ["--rm", "--mount", &data.option, "--mount", &ro, "--mount", &file];
    let output = engine.run(handler, &options, "binds", &["sh", "-c", script]);
    assert_eq!(output.code, 0, "{}", output.stderr);
    assert_eq!(data.read("below/out"), "made\n", "{}", output.stderr);
    assert_eq!(data.read("appended"), "more\nmore\n");
    assert_eq!(data.read("in"), "from the host\n");
    let missing = "type=bind,src=/no/such/directory,dst=/missing,options=rbind:ro";
    let refused = engine.run(handler, &["--rm", "--mount", missing], "missing", &["true"]);
    assert_ne!(refused.code, 0);
    assert!(refused.stderr.contains("/no/such/directory"), "{}", refused.stderr);
    seen(&output)
}

fn read_only_root(engine: &Containerd, handler: Handler) -> Value {
    // 1.6 has the option in `containers create` only, as has every version.
    let script = "touch /new; echo $?; touch /dev/shm/new; echo $?; cat /etc/from-image";
    let fixed = ["containers", "create", "--read-only", "--runtime", handler.runtime(), "--", images::BUSYBOX, "ro"];
    engine.ctr_ok([&fixed[..], &["sh", "-c", script]].concat());
    let output = engine.ctr(["tasks", "start", "ro"]);
    engine.ctr_ok(["containers", "delete", "ro"]);
    assert_eq!(output.text(), "1\n0\nof the image\n", "{}", output.stderr);
    seen(&output)
}

fn a_directory_as_root(engine: &Containerd, handler: Handler) -> Value {
    let root = e2e::rootfs().display().to_string();
    // The directory is everybody's.
    let fixed = ["run", "--rm", "--read-only", "--rootfs", "--runtime", handler.runtime(), &root, "dir"];
    let output = engine.ctr([&fixed[..], &["/bin/sh", "-c", "ls /; cat /etc/hostname"]].concat());
    assert_eq!(output.code, 0, "{}", output.stderr);
    seen(&output)
}

fn overlayfs(engine: &Containerd, handler: Handler) -> Value {
    root_of(engine, handler, "overlayfs")
}

fn native(engine: &Containerd, handler: Handler) -> Value {
    root_of(engine, handler, "native")
}

/// A root of this snapshotter: the image's files are there, and it can be changed in every way.
fn root_of(engine: &Containerd, handler: Handler, snapshotter: &str) -> Value {
    engine.import_for(&["--namespace", engine.host.name()], &["--snapshotter", snapshotter]);
    let script = "cat /etc/from-image; stat -c '%a %u %g' /tmp /root /bin/busybox; echo changed >/etc/from-image; rm /bin/vi; ls /bin/vi; \
                  mkdir -p /new/deep; echo new >/new/deep/file; mv /new /moved; ln /moved/deep/file /hard; chown 5:6 /hard; \
                  stat -c '%a %u %g %h' /moved/deep/file; mknod /fifo p; cat /etc/from-image; dd if=/dev/zero of=/big bs=1M count=8 2>/dev/null; \
                  stat -c %s /big; exit 4";
    let options = ["--snapshotter", snapshotter];
    let output = engine.run(handler, &options, snapshotter, &["sh", "-c", script]);
    assert_eq!(output.code, 4, "{}{}", output.text(), output.stderr);
    // A second task of the same container finds what the first one wrote.
    engine.remove(snapshotter);
    let rm = engine.run(
        handler,
        &["--rm", "--snapshotter", snapshotter],
        "fresh",
        &["sh", "-c", "cat /etc/from-image; ls /moved"],
    );
    assert!(rm.text().starts_with("of the image\n"), "{}{}", rm.text(), rm.stderr);
    json!([seen(&output), seen(&rm)])
}

fn blockfile(engine: &Containerd, handler: Handler) -> Value {
    with_configuration(
        engine,
        "[plugins.\"io.containerd.snapshotter.v1.blockfile\"]\n  root_path = \"DIR/blockfile\"\n  scratch_file = \"DIR/scratch\"\n  \
         fs_type = \"ext4\"\n  mount_options = []\n  recreate_scratch = true",
        |directory| {
            engine.host.sh(&format!("truncate -s 64M {directory}/scratch; mkfs.ext4 -q {directory}/scratch"));
        },
    );
    root_of(engine, handler, "blockfile")
}

fn erofs(engine: &Containerd, handler: Handler) -> Value {
    root_of(engine, handler, "erofs")
}

fn btrfs(engine: &Containerd, handler: Handler) -> Value {
    with_configuration(
        engine,
        "[plugins.\"io.containerd.snapshotter.v1.btrfs\"]\n  root_path = \"DIR/btrfs\"",
        |directory| {
            engine.host.sh(&format!(
                "truncate -s 200M {directory}/disk; mkfs.btrfs -q {directory}/disk; mkdir {directory}/btrfs; \
                 mount -o loop {directory}/disk {directory}/btrfs"
            ));
        },
    );
    root_of(engine, handler, "btrfs")
}

/// Starts the daemon anew with more configuration.
fn with_configuration(engine: &Containerd, settings: &str, prepare: impl FnOnce(&str)) {
    let directory = engine.host.directory().display().to_string();
    prepare(&directory);
    engine.kill();
    let file = engine.host.directory().join("config.toml");
    let text = fs::read_to_string(&file).unwrap() + &settings.replace("DIR", &directory);
    fs::write(file, text).unwrap();
    engine.launch();
}

fn output_to_a_file(engine: &Containerd, handler: Handler) -> Value {
    let log = engine.host.directory().join("out.log");
    let uri = format!("file://{}", log.display());
    let options = ["--detach", "--log-uri", &uri];
    engine.ctr_ok(run_arguments(
        handler,
        &options,
        "logged",
        &["sh", "-c", "echo out; sleep 0.3; echo err >&2; exit 5"],
    ));
    engine.wait_for("logged", "STOPPED");
    assert_eq!(engine.delete("logged"), 5);
    engine.ctr_ok(["containers", "delete", "logged"]);
    // runc's shim closes the file when the first of both streams ends, and at times loses what the other one brings.
    let text = expect_file(&log);
    assert!(text == "out\nerr\n" || !handler.is_kata() && text == "out\n", "{text}");
    Value::Null
}

/// A logger as containerd's documentation describes it: streams on descriptors 3 and 4, ready when 5 is closed.
/// It is sent SIGTERM as soon as the container ended, and must not lose what it has not read yet.
const LOGGER: &str = r#"#!/bin/sh
trap '' TERM
env | grep CONTAINER_ | sort >"$2.env"
echo "$1" >"$2.args"
exec 5>&-
cat <&3 >"$2.out" &
cat <&4 >"$2.err" &
exec 3<&- 4<&-
wait
echo done >"$2.done"
"#;

fn output_to_a_program(engine: &Containerd, handler: Handler) -> Value {
    let directory = engine.host.directory();
    let logger = directory.join("logger");
    images::script(&logger, LOGGER);
    let to = directory.join("to");
    // Keys and values of the query become arguments, in no certain order unless there is one.
    let uri = format!("binary://{}?first={}", logger.display(), to.display());
    let script = "seq 1 20000; echo err >&2; exit 5";
    engine.ctr_ok(run_arguments(handler, &["--detach", "--log-uri", &uri], "logged", &["sh", "-c", script]));
    engine.wait_for("logged", "STOPPED");
    assert_eq!(engine.delete("logged"), 5);
    engine.ctr_ok(["containers", "delete", "logged"]);
    let read = |kind: &str| expect_file(Path::new(&format!("{}.{kind}", to.display())));
    wait_until("the logger ends", || to.with_extension("done").exists());
    assert_eq!(read("out").lines().count(), 20000);
    assert_eq!(read("err"), "err\n");
    assert_eq!(read("args"), "first\n");
    json!(read("env").replace(engine.host.name(), "NAME"))
}

fn output_to_a_program_that_is_not_there(engine: &Containerd, handler: Handler) -> Value {
    let options = ["--detach", "--log-uri", "binary:///no/such/logger"];
    let refused = engine.ctr(run_arguments(handler, &options, "logged", &["true"]));
    assert_ne!(refused.code, 0);
    assert!(refused.stderr.contains("/no/such/logger"), "{}", refused.stderr);
    engine.ctr(["containers", "delete", "logged"]);
    json!(refused.code)
}
