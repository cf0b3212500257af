//! `docker`: one container, one virtual machine.

mod features;
mod life;
mod names;
mod network;
mod run;
mod shared;

use std::{
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

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
