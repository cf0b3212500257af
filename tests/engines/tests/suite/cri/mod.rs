//! Kubernetes' pods by containerd's CRI: what a kubelet asks for, without the cluster around it.

mod limits;
mod network;
mod pods;
mod sandboxer;
mod security;
mod streams;
mod volumes;

use engines::wait_until;
use serde_json::{Value, json};

/// No change of what a pod or container is made with.
const PLAIN: Value = Value::Null;

/// A bind mount as a kubelet asks for it.
fn mount(host: impl AsRef<std::path::Path>, container: &str, read_only: bool) -> Value {
    json!({"host_path": host.as_ref(), "container_path": container, "readonly": read_only})
}
