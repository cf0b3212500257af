//! `podman`: one container, or one pod, one virtual machine.

mod run;

use serde_json::{Value, json};

/// What a command printed and how it ended, to be compared.
fn seen(output: &e2e::Output) -> Value {
    json!({"code": output.code, "stdout": output.text(), "stderr": output.stderr})
}
