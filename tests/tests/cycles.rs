//! Over and over: nothing may be left, and nothing may grow.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

use std::{fs, sync::Mutex};

use e2e::{Bundle, Runtime, Snapshot};

/// Whether a process of a state file still runs, and is not a later one of the same number.
fn is_left(process: &serde_json::Value) -> bool {
    let stat = fs::read_to_string(format!("/proc/{}/stat", process["pid"])).unwrap_or_default();
    let Some((_, fields)) = stat.rsplit_once(") ") else { return false };
    let started = fields.split_ascii_whitespace().nth(19);
    !fields.starts_with('Z') && started == Some(process["start_ticks"].to_string().as_str())
}

#[test]
fn cycles_leave_everything_as_it_was() {
    // What one cycle leaves is seen after two; what grows slowly is `make cycles`'s to find.
    let cycles = std::env::var("KATA_CYCLES").map_or(40, |n| n.parse().unwrap());
    let runtime = Runtime::kata();
    // The machine may run other sandboxes meanwhile: these are told by their names and their state directory.
    let name = format!("cycle-{}", std::process::id());
    let snapshot = || [&name, runtime.root().to_str().unwrap()].map(|mine| Snapshot::take(mine, &runtime.root()));
    let processes = Mutex::new(Vec::new());
    let bundle = |worker: &str| {
        let mut bundle = Bundle::new(["sleep", "1000"]);
        bundle.cgroup(&format!("/{name}-{worker}"));
        bundle
    };
    let cycle = |bundle: &Bundle, id: &str| {
        runtime.ok(["create", "--bundle", bundle.arg(), id]);
        runtime.ok(["start", id]);
        let state = runtime.state_file(id);
        let mine = ["daemon", "vmm", "virtiofs"].map(|role| state[role].clone());
        assert!(mine.iter().all(is_left), "a process of a running sandbox is not there: {state}");
        processes.lock().unwrap().extend(mine);
        runtime.ok(["delete", "--force", id]);
    };
    let before = snapshot();
    cycle(&bundle("first"), &format!("{name}-first"));
    std::thread::scope(|scope| {
        for worker in 0..2 {
            let (cycle, name, bundle) = (&cycle, &name, bundle(&worker.to_string()));
            scope.spawn(move || (0..cycles / 2).for_each(|n| cycle(&bundle, &format!("{name}-{worker}-{n}"))));
        }
    });
    assert_eq!(snapshot(), before);
    let processes = processes.into_inner().unwrap();
    assert_eq!(processes.len(), (cycles / 2 * 2 + 1) * 3);
    assert!(!processes.iter().any(is_left), "a process of a deleted sandbox is left");
}
