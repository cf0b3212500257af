//! Real engines, driven as their users drive them.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

mod cri;
mod ctr;
mod docker;
mod podman;
