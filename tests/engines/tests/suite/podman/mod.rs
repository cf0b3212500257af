//! `podman`: one container, or one pod, one virtual machine.

mod deaths;
mod life;
mod pods;
mod rootless;
mod run;

use engines::{seen, wait_until};

/// A script that does not end, and ends at once when asked to.
const FOREVER: &str = "trap 'exit 0' TERM; while :; do sleep 0.1; done";
