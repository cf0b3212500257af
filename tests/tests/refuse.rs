//! Bad input is refused before anything is started, in words.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

use std::{fs, os::unix::fs::PermissionsExt};

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
    refused_config(
        |c| c["linux"]["namespaces"].as_array_mut().unwrap().retain(|n| n["type"] != "network"),
        &["linux.namespaces", "the host's network"],
    );
    refused_config(
        |c| c["linux"]["resources"]["cpu"] = serde_json::json!({"cpus": "0,1000"}),
        &["linux.resources.cpu.cpus", "processor 1000"],
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

/// What these settings of `[hypervisor.qemu]` are answered with.
#[track_caller]
fn refused_settings(settings: &str, words: &[&str]) {
    let bundle = Bundle::new(["true"]);
    let runtime = Runtime::kata_with(&format!("[hypervisor.qemu]\n{settings}\n"));
    refused(&runtime, &["run", "--bundle", bundle.arg(), "bad"], words);
}

#[test]
fn a_machine_that_cannot_be_built() {
    for (key, path) in [
        ("kernel", "/no/such/kernel"),
        ("path", "/no/such/qemu"),
        ("initrd", "/no/such/initrd"),
        ("image", "/no/such/image"),
    ] {
        refused_settings(&format!("{key} = \"{path}\""), &[path]);
    }
    refused_settings("no_such_key = 1", &["no_such_key", "test.toml:2"]);
    refused_settings("machine_type = \"virt\"", &["machine_type is", "q35 or one of its versions", "microvm"]);
}

#[test]
fn a_guest_image_that_is_none_or_two() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, [0; 4096]).unwrap();
    let file = file.to_str().unwrap();
    let two = format!("image = \"{file}\"\ninitrd = \"{file}\"");
    refused_settings(&two, &["test.toml:3: `image` and `initrd` are both set"]);
    refused_settings(&format!("image = \"{file}\""), &[file, "is no disk image", "set image or initrd"]);
    refused_settings(&format!("initrd = \"{file}\""), &[file, "is no initial RAM disk", "set image or initrd"]);
    // Readable by root only: QEMU is not root.
    fs::write(file, b"070701").unwrap();
    fs::set_permissions(file, fs::Permissions::from_mode(0o600)).unwrap();
    refused_settings(&format!("initrd = \"{file}\""), &[file, "has mode 0600", &format!("chmod o+r {file}")]);
    let params = "kernel_verity_params = \"root_hash=12\"";
    refused_settings(
        &format!("{params}\ninitrd = \"{file}\""),
        &["test.toml:2", "`kernel_verity_params` belong to an `image`"],
    );
}

#[test]
fn a_guest_of_another_architecture_on_this_ones_processor() {
    let dir = tempfile::tempdir().unwrap();
    let (kernel, bundle) = (dir.path().join("Image"), Bundle::new(["true"]));
    let mut image = vec![0; 4096];
    // Linux's Documentation/arch/arm64/booting.rst; or, on such a machine, a bzImage.
    if cfg!(target_arch = "aarch64") {
        image[0x1fe..0x206].copy_from_slice(b"\x55\xaa\0\0HdrS");
        image[0x236] = 1;
    } else {
        image[0x38..0x3c].copy_from_slice(b"ARM\x64");
    }
    fs::write(&kernel, image).unwrap();
    let settings = format!("[hypervisor.qemu]\nkernel = {kernel:?}\npath = \"/bin/true\"\naccelerator = \"kvm\"\n");
    let words = ["KVM cannot be used: the guest kernel is for ", "set accelerator to"];
    refused(&Runtime::kata_with(&settings), &["run", "--bundle", bundle.arg(), "bad"], &words);
}
