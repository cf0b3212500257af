//! Bad input is refused before anything is started, in words.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

use std::fs;

use e2e::{Bundle, Runtime};

/// Refused with these words; no state is left and no daemon was started.
#[track_caller]
fn refused(runtime: &Runtime, args: &[&str], words: &[&str]) {
    let output = runtime.run(args);
    assert_ne!(output.code, 0);
    for word in words {
        assert!(output.stderr.contains(word), "{word:?} is not in: {}", output.stderr);
    }
    assert_eq!(fs::read_dir(runtime.root()).map_or(0, Iterator::count), 0, "state was left");
}

#[track_caller]
fn refused_config(edit: impl FnOnce(&mut serde_json::Value), words: &[&str]) {
    let mut bundle = Bundle::new(["true"]);
    bundle.edit(edit);
    refused(&Runtime::kata(), &["run", "--bundle", bundle.arg(), "bad"], words);
}

#[test]
fn a_bundle_that_is_none() {
    let runtime = Runtime::kata();
    let empty = tempfile::tempdir().unwrap();
    refused(&runtime, &["run", "--bundle", "/no/such/bundle", "bad"], &["/no/such/bundle"]);
    refused(&runtime, &["run", "--bundle", empty.path().to_str().unwrap(), "bad"], &["config.json"]);
    fs::write(empty.path().join("config.json"), "{\"ociVersion\": \"1.0.2\", \"process\": {\"args\": 5").unwrap();
    refused(&runtime, &["run", "--bundle", empty.path().to_str().unwrap(), "bad"], &["config.json", "line 1"]);
}

#[test]
fn a_configuration_that_cannot_be_carried_out() {
    refused_config(|c| c["root"]["path"] = "missing".into(), &["config.json", "root.path", "missing"]);
    refused_config(|c| c["process"]["args"] = serde_json::json!([]), &["config.json", "process.args", "program"]);
    refused_config(|c| c["process"]["cwd"] = "relative".into(), &["process.cwd", "absolute"]);
    refused_config(
        |c| {
            c["mounts"][0] =
                serde_json::json!({"destination": "/x", "type": "bind", "source": "/no/such", "options": ["bind"]})
        },
        &["mounts[0].source", "/no/such"],
    );
    refused_config(|c| c["mounts"][0]["destination"] = "relative".into(), &["mounts[0].destination", "absolute"]);
    refused_config(
        |c| c["linux"]["namespaces"].as_array_mut().unwrap().retain(|n| n["type"] != "network"),
        &["linux.namespaces", "the host's network"],
    );
}

#[test]
fn a_name_that_is_none_or_taken() {
    let bundle = Bundle::new(["sleep", "1000"]);
    let runtime = Runtime::kata();
    refused(&runtime, &["run", "--bundle", bundle.arg(), "a/b"], &["a/b"]);
    refused(&runtime, &["run", "--bundle", bundle.arg(), ".."], &["\\\"..\\\""]);
    runtime.ok(["create", "--bundle", bundle.arg(), "taken"]);
    let second = runtime.run(["create", "--bundle", bundle.arg(), "taken"]);
    assert!(second.code != 0 && second.stderr.contains("already exists"), "{}", second.stderr);
    assert_eq!(runtime.state_of("taken")["status"], "created");
    runtime.ok(["delete", "--force", "taken"]);
}

#[test]
fn a_machine_that_cannot_be_built() {
    let bundle = Bundle::new(["true"]);
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("configuration.toml");
    for (key, path) in [("kernel", "/no/such/kernel"), ("path", "/no/such/qemu"), ("initrd", "/no/such/initrd")] {
        fs::write(&file, format!("[hypervisor.qemu]\n{key} = \"{path}\"\n")).unwrap();
        let runtime = Runtime::kata_configured(&file);
        refused(&runtime, &["run", "--bundle", bundle.arg(), "bad"], &[path]);
    }
    fs::write(&file, "[hypervisor.qemu]\nno_such_key = 1\n").unwrap();
    let runtime = Runtime::kata_configured(&file);
    refused(&runtime, &["run", "--bundle", bundle.arg(), "bad"], &["no_such_key", "configuration.toml"]);
}
