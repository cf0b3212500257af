//! Bundles and state files.

use std::path::{Component, Path};

use hypervisor::Arch;
use sandbox::{
    bundle::{Bundle, Role},
    seccomp,
    store::{Status, Store},
};

use crate::scratch::Scratch;

/// `BPF_MAXINSNS`.
const MOST_INSTRUCTIONS: usize = 4096;

pub(crate) fn config(data: &[u8]) {
    let scratch = Scratch::new();
    scratch.directory("rootfs");
    scratch.file("config.json", data);
    for role in [Role::Alone, Role::Pod, Role::Member, Role::Beside] {
        match Bundle::load(scratch.path(), role) {
            Ok(bundle) => accepted(&bundle),
            Err(error) => {
                let text = error.chain();
                assert!(text.contains("config.json"), "it names no file: {text}");
            }
        }
    }
}

/// What must be so of a bundle that nobody refused.
fn accepted(bundle: &Bundle) {
    let process = bundle.spec.process().as_ref().expect("a process");
    assert!(process.cwd().is_absolute());
    assert!(process.args().iter().flatten().chain(process.env().iter().flatten()).all(|text| !text.contains('\0')));
    for mount in bundle.spec.mounts().iter().flatten() {
        assert!(mount.destination().components().all(|part| part != Component::ParentDir));
    }
    bundle.visible().expect("mounts that were checked");
    assert_ne!(bundle.rootfs, Path::new(""));
    bundle.network_namespace();
    let seccomp = bundle.spec.linux().as_ref().and_then(|linux| linux.seccomp().as_ref());
    for arch in [Arch::X86_64, Arch::Aarch64] {
        if let Some(Ok(filter)) = seccomp.map(|profile| seccomp::compile(profile, arch)) {
            assert!(filter.program.len() <= MOST_INSTRUCTIONS);
        }
    }
}

pub(crate) fn state(data: &[u8]) {
    let scratch = Scratch::new();
    let directory = scratch.directory("c1");
    std::fs::write(directory.join("state.json"), data).expect("a file");
    let store = Store::new(scratch.path());
    assert_eq!(store.list().expect("a directory").len(), 1);
    match store.state("c1") {
        Ok(state) => {
            // None of these processes runs a sandbox.
            assert!(state.status != Status::Stopped || state.pid == 0);
            let written = serde_json::to_vec(&state).expect("what was read can be written");
            std::fs::write(directory.join("state.json"), written).expect("a file");
            let again = store.state("c1").expect("what was written can be read");
            let value = |state| serde_json::to_value(state).unwrap();
            assert_eq!(value(&again), value(&state));
        }
        Err(error) => assert!(error.chain().contains("state.json"), "{}", error.chain()),
    }
}
