//! A containerd with a CRI and a network for pods, as containerd's tests want it.

use std::{fs, path::PathBuf};

use engines::{host::Host, images, registry};

/// A bridge with addresses of both families; host-local remembers them where a test looks for them.
const NETWORK: &str = r#"{
  "cniVersion": "1.0.0",
  "name": "containerd-net",
  "plugins": [
    {
      "type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": true, "promiscMode": true,
      "ipam": {
        "type": "host-local",
        "ranges": [[{"subnet": "10.88.0.0/16"}], [{"subnet": "fd00:88::/64"}]],
        "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]
      }
    },
    {"type": "portmap", "capabilities": {"portMappings": true}}
  ]
}
"#;

/// Where its log goes.
pub fn log(host: &Host) -> PathBuf {
    host.directory().join("containerd.log")
}

/// Starts it, and again a moment after each time that it ends.
pub fn start(host: &Host) {
    let own = host.directory().display().to_string();
    let configuration = format!(
        r#"version = 2
[debug]
  level = "debug"
[plugins."io.containerd.grpc.v1.cri"]
  restrict_oom_score_adj = true
  drain_exec_sync_io_timeout = "10s"
  sandbox_image = "{}/pause:3.8"
[plugins."io.containerd.grpc.v1.cri".cni]
  bin_dir = "{}"
  conf_dir = "{own}/cni"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.kata]
  runtime_type = "io.containerd.kata.v2"
  privileged_without_host_devices = true
[plugins."io.containerd.nri.v1.nri"]
  disable = false
  config_file = "{own}/nri.conf"
  socket_path = "/var/run/nri-test.sock"
  plugin_path = "/nowhere"
"#,
        registry::ADDRESS,
        images::unpacked("cni").join("usr/lib/cni").display(),
    );
    fs::write(host.directory().join("config.toml"), configuration).unwrap();
    fs::write(host.directory().join("nri.conf"), "disableConnections: false\n").unwrap();
    fs::create_dir(host.directory().join("cni")).unwrap();
    fs::write(host.directory().join("cni/10-containerd-net.conflist"), NETWORK).unwrap();
    let log = log(host);
    // The tests look every second whether it has ended.
    host.sh(&format!(
        "while :; do containerd --config {own}/config.toml; sleep 3; done >>{log} 2>&1 </dev/null &
        for _ in $(seq 300); do ! ctr version >/dev/null 2>&1 || exit 0; sleep 0.1; done
        tail {log} >&2; exit 1",
        log = log.display()
    ));
}
