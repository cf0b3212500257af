//! Bundles that are accepted, and what is refused of others.

use super::*;

fn bundle(edit: impl FnOnce(&mut serde_json::Value)) -> (tempfile::TempDir, Result<Bundle>) {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("rootfs")).unwrap();
    let mut config = serde_json::json!({
        "ociVersion": "1.0.2",
        "root": {"path": "rootfs"},
        "process": {"cwd": "/", "args": ["sh"], "user": {"uid": 0, "gid": 0}},
        "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"}],
        "linux": {"namespaces": [{"type": "pid"}, {"type": "mount"}, {"type": "network"}, {"type": "ipc"}, {"type": "uts"}]},
    });
    edit(&mut config);
    fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    let loaded = Bundle::load(dir.path(), Role::Alone);
    (dir, loaded)
}

#[track_caller]
fn refused(edit: impl FnOnce(&mut serde_json::Value), field: &str, words: &str) {
    let text = bundle(edit).1.unwrap_err().chain();
    assert!(text.contains("config.json") && text.contains(field) && text.contains(words), "{text}");
}

#[test]
fn a_plain_bundle_is_accepted() {
    let (dir, loaded) = bundle(|_| ());
    assert_eq!(loaded.unwrap().rootfs, fs::canonicalize(dir.path().join("rootfs")).unwrap());
}

#[test]
fn what_is_wrong_is_refused_with_file_field_and_expectation() {
    refused(|c| c["process"]["args"] = serde_json::json!([]), "process.args", "the program to run is expected");
    refused(|c| c["process"]["user"] = serde_json::json!({"uid": "root"}), "process.user.uid", "string");
    let limit = serde_json::json!({"type": "RLIMIT_CORE", "soft": 1, "hard": 1});
    refused(|c| c["process"]["rlimits"] = serde_json::json!([limit, limit]), "process.rlimits[1]", "listed twice");
    refused(|c| c["process"]["cwd"] = "here".into(), "process.cwd", "not an absolute path");
    refused(|c| c["root"]["path"] = "nowhere".into(), "root.path", "No such file");
    refused(|c| c["root"]["path"] = "config.json".into(), "root.path", "not a directory");
    refused(|c| c["process"]["args"] = 7.into(), "process.args", "expected a sequence");
    refused(|c| c["ociVersion"] = "7".into(), "ociVersion", "1.x is expected");
    refused(|c| c["mounts"][0]["destination"] = "".into(), "mounts[0].destination", "is empty");
    refused(|c| c["mounts"][0]["destination"] = "/a/../b".into(), "mounts[0].destination", "a plain path");
    refused(|c| c["linux"]["sysctl"] = serde_json::json!({"kernel.hostname": "h"}), "linux.sysctl", "`hostname`");
    refused(|c| c["linux"]["intelRdt"] = serde_json::json!({"closID": "c"}), "linux.intelRdt", "caches");
    refused(
        |c| c["mounts"][0] = serde_json::json!({"destination": "/x", "type": "bind", "source": "/no/such"}),
        "mounts[0].source",
        "/no/such",
    );
}

#[test]
fn capabilities_that_do_not_exist_are_left_out_and_told() {
    let names = serde_json::json!(["CAP_KILL", "CAP_TEST", "CAP_OTHER", "CAP_TEST"]);
    let loaded = bundle(|c| c["process"]["capabilities"] = serde_json::json!({"bounding": names})).1.unwrap();
    assert_eq!(loaded.unknown_capabilities, ["CAP_TEST", "CAP_OTHER"]);
    let sets = loaded.spec.process().as_ref().unwrap().capabilities().clone().unwrap();
    assert_eq!(sets.bounding().as_ref().unwrap().len(), 1);
    refused(|c| c["process"]["capabilities"] = serde_json::json!({"bounding": [7]}), "process.capabilities", "string");
}

#[test]
fn devices_of_the_guests_own_kernel_are_accepted() {
    let device = |path: &str, major: i64, minor: i64| {
        let device = serde_json::json!([{"path": path, "type": "c", "major": major, "minor": minor}]);
        bundle(|c| c["linux"]["devices"] = device).1
    };
    device("/dev/kmsg", 1, 11).unwrap();
    device("/dev/ptmx", 5, 2).unwrap();
    for (path, major, minor) in [("/dev/mem", 1, 1), ("/dev/other", 5, 2)] {
        let text = device(path, major, minor).unwrap_err().chain();
        assert!(text.contains("linux.devices[0]") && text.contains("host's kernel"), "{text}");
    }
}

#[test]
fn what_a_machine_cannot_share_is_refused() {
    let without = |kind: &'static str| {
        move |c: &mut serde_json::Value| {
            c["linux"]["namespaces"].as_array_mut().unwrap().retain(|n| n["type"] != kind);
        }
    };
    refused(without("pid"), "linux.namespaces", "the host's processes");
    refused(
        |c| c["linux"]["namespaces"][0]["path"] = "/proc/1/ns/pid".into(),
        "linux.namespaces[0]",
        "kernel of its own",
    );
    refused(
        |c| c["mounts"][0] = serde_json::json!({"destination": "/x", "options": ["bind"], "source": "/proc"}),
        "mounts[0].source",
        "the host's proc file system",
    );
}

#[test]
fn the_hosts_network_is_for_those_who_have_a_way_to_it() {
    let (_dir, loaded) = bundle(|c| drop(c["linux"]["namespaces"].as_array_mut().unwrap().remove(2)));
    let loaded = loaded.unwrap();
    assert_eq!(loaded.network_namespace(), NetworkNamespace::Host);
    loaded.check_host_network(Internetworking::Passt).unwrap();
    let text = loaded.check_host_network(Internetworking::TcFilter).unwrap_err().chain();
    assert!(text.contains("linux.namespaces") && text.contains("the host's network"), "{text}");
    let own = bundle(|_| {}).1.unwrap();
    own.check_host_network(Internetworking::None).unwrap();
}

#[test]
fn devices_of_the_host_are_refused_but_those_of_a_privileged_container_are_the_guests() {
    let kvm = serde_json::json!([{"path": "/dev/kvm", "type": "c", "major": 10, "minor": 232}]);
    refused(|c| c["linux"]["devices"] = kvm.clone(), "linux.devices[0]", "the host's kernel");
    let (_dir, loaded) = bundle(|c| {
        c["linux"]["devices"] = kvm.clone();
        c["linux"]["resources"] = serde_json::json!({"devices": [{"allow": true, "access": "rwm"}]});
    });
    assert!(loaded.unwrap().wants_all_devices());
    let (_dir, loaded) = bundle(|c| {
        c["linux"]["resources"] = serde_json::json!({"devices": [{"allow": true, "access": "rwm"}]});
    });
    assert!(!loaded.unwrap().wants_all_devices());
}

#[test]
fn what_can_be_seen_on_the_host_is_what_is_the_hosts() {
    let (_dir, loaded) = bundle(|c| {
        c["mounts"] = serde_json::json!([
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/data", "type": "bind", "source": "/usr", "options": ["rbind", "ro"]},
        ]);
    });
    let seen = loaded.unwrap().visible().unwrap();
    let visible = |source: Option<&str>, destination: &str, read_only| Visible {
        source: source.map(Into::into),
        destination: destination.into(),
        read_only,
    };
    assert_eq!(seen, [visible(None, "/proc", false), visible(Some("/usr"), "/data", true)]);
}

#[test]
fn who_runs_no_hooks_of_a_point_can_refuse_them() {
    let (_dir, loaded) = bundle(|c| c["hooks"] = serde_json::json!({"createContainer": [{"path": "/bin/true"}]}));
    let loaded = loaded.unwrap();
    loaded.refuse_hooks(&[Point::Poststop]).unwrap();
    let error = loaded.refuse_hooks(&[Point::Poststop, Point::CreateContainer]).unwrap_err().chain();
    assert!(error.contains("hooks.createContainer") && error.contains("inside the container"), "{error}");
}

#[test]
fn a_missing_or_malformed_configuration_is_named() {
    let dir = tempfile::tempdir().unwrap();
    assert!(Bundle::load(dir.path(), Role::Alone).unwrap_err().chain().contains("config.json"));
    fs::write(dir.path().join("config.json"), "{\"ociVersion\": ").unwrap();
    let text = Bundle::load(dir.path(), Role::Alone).unwrap_err().chain();
    assert!(text.contains("line 1"), "{text}");
    assert!(Bundle::load(&dir.path().join("no"), Role::Alone).unwrap_err().chain().contains("open the bundle"));
}

#[test]
fn a_bind_of_a_universal_device_becomes_the_guests_own() {
    let (_dir, loaded) = bundle(|c| {
        c["mounts"][0] = serde_json::json!({"destination": "/dev/null", "type": "bind", "source": "/dev/null"})
    });
    assert_eq!(loaded.unwrap().mount_sources().unwrap(), [MountSource::GuestPath("/dev/null")]);
}
