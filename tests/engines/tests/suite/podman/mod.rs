//! `podman`: one container, or one pod, one virtual machine.

mod deaths;
mod life;
mod pods;
mod run;

use std::{
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

/// A script that does not end, and ends at once when asked to.
const FOREVER: &str = "trap 'exit 0' TERM; while :; do sleep 0.1; done";

/// What a command printed and how it ended, to be compared.
fn seen(output: &e2e::Output) -> Value {
    json!({"code": output.code, "stdout": output.text(), "stderr": output.stderr})
}

/// Waits until a condition holds.
#[track_caller]
fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + e2e::DEADLINE;
    while !condition() {
        assert!(Instant::now() < end, "in vain: {what}");
        thread::sleep(Duration::from_millis(50));
    }
}
