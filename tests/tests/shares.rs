//! Files shared with a container: what it sees, what it may write, what it cannot reach.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

use std::{fs, os::unix::fs::symlink};

use e2e::{Bundle, Runtime, same};

fn bind(source: &std::path::Path, destination: &str, mode: &str) -> serde_json::Value {
    serde_json::json!({"destination": destination, "type": "bind", "source": source, "options": ["rbind", mode]})
}

#[test]
fn a_bind_is_writable_or_not_as_asked() {
    let data = tempfile::tempdir().unwrap();
    fs::write(data.path().join("in"), "from the host\n").unwrap();
    let mut bundle = Bundle::sh(
        "cat /rw/in /ro/in /file; echo made > /rw/out; echo no > /ro/out; echo $?; chmod 700 /ro/in; echo $?",
    );
    let file = data.path().join("in");
    bundle
        .mount(bind(data.path(), "/rw", "rw"))
        .mount(bind(data.path(), "/ro", "ro"))
        .mount(bind(&file, "/file", "ro"));
    bundle.edit(|config| {
        // The shared root file system is read-only and has none of the mount points.
        config["root"] = serde_json::json!({"path": "rootfs"});
    });
    let rootfs = bundle.path().join("rootfs");
    let status = std::process::Command::new("cp").arg("-a").arg(e2e::rootfs()).arg(&rootfs).status().unwrap();
    assert!(status.success());
    same(&bundle);
    assert_eq!(fs::read_to_string(data.path().join("out")).unwrap(), "made\n");
    assert_eq!(fs::read_to_string(&file).unwrap(), "from the host\n");
}

#[test]
fn a_link_that_points_out_of_a_share_leads_nowhere() {
    let data = tempfile::tempdir().unwrap();
    let secret = tempfile::NamedTempFile::new().unwrap();
    fs::write(secret.path(), "secret").unwrap();
    symlink(secret.path(), data.path().join("absolute")).unwrap();
    symlink(format!("../../../../../../..{}", secret.path().display()), data.path().join("relative")).unwrap();
    let mut bundle = Bundle::sh("cat /tmp/absolute /tmp/relative; echo $?");
    bundle.mount(bind(data.path(), "/tmp", "ro"));
    let output = Runtime::kata().ok(["run", "--bundle", bundle.arg(), "links"]);
    assert_eq!(output.text(), "1\n", "{}", output.stderr);
}

#[test]
fn a_change_on_the_host_shows_in_the_container() {
    let data = tempfile::tempdir().unwrap();
    let mut bundle = Bundle::new(["sleep", "1000"]);
    bundle.mount(bind(data.path(), "/tmp", "rw"));
    let runtime = Runtime::kata();
    runtime.ok(["run", "--detach", "--bundle", bundle.arg(), "live"]);
    fs::write(data.path().join("late"), "later\n").unwrap();
    assert_eq!(runtime.ok(["exec", "live", "cat", "/tmp/late"]).text(), "later\n");
    runtime.ok(["exec", "live", "sh", "-c", "echo back > /tmp/back"]);
    assert_eq!(fs::read_to_string(data.path().join("back")).unwrap(), "back\n");
    runtime.ok(["delete", "--force", "live"]);
}

#[test]
fn a_file_that_grows_between_create_and_start_is_read_to_its_end() {
    let data = tempfile::tempdir().unwrap();
    let file = data.path().join("resolv.conf");
    fs::write(&file, "short\n").unwrap();
    let mut bundle = Bundle::new(["cat", "/tmp/resolv.conf"]);
    bundle.mount(bind(&file, "/tmp/resolv.conf", "ro"));
    bundle.edit(|config| {
        config["mounts"]
            .as_array_mut()
            .unwrap()
            .insert(1, serde_json::json!({"destination": "/tmp", "type": "tmpfs", "source": "tmpfs"}));
    });
    let kata = Runtime::kata();
    let output = data.path().join("output");
    let mut create = kata.command(["create", "--bundle", bundle.arg(), "grows"]);
    create.stdout(fs::File::create(&output).unwrap());
    assert!(create.status().unwrap().success());
    // As engines do with resolv.conf, at once, so that what the guest remembers still holds.
    fs::write(&file, "much longer than it was before\n").unwrap();
    kata.ok(["start", "grows"]);
    kata.wait_for("grows", "stopped");
    assert_eq!(fs::read_to_string(&output).unwrap(), "much longer than it was before\n");
    kata.ok(["delete", "grows"]);
}
