//! What every suite needs once: waiting, and what is compared of a command.

use std::{
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

/// Waits until a condition holds.
#[track_caller]
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + e2e::DEADLINE;
    while !condition() {
        assert!(Instant::now() < end, "in vain: {what}");
        thread::sleep(Duration::from_millis(50));
    }
}

/// What a command printed and how it ended, to be compared.
pub fn seen(output: &e2e::Output) -> Value {
    json!({"code": output.code, "stdout": output.text(), "stderr": output.stderr})
}
