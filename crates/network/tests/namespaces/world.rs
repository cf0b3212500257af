//! Two namespaces with a cable between them: `eth0` in the pod, and on the node a bridge with the other end in it.

use std::os::fd::{AsFd, AsRawFd};
use std::process::Command;

use network::Namespace;

/// The pod's hardware address.
pub const MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 2];

/// A node and a pod.
pub struct World {
    /// Where the bridge is.
    pub node: Namespace,
    /// What the sandbox works on.
    pub pod: Namespace,
}

/// Makes them; nothing, with the reason printed, where that is not possible.
pub fn world() -> Option<World> {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: only root may make network namespaces");
        return None;
    }
    if Command::new("ip").arg("-V").output().is_err() {
        println!("skipped: the program ip (Debian's iproute2) is missing");
        return None;
    }
    let (node, pod) = (Namespace::create().unwrap(), Namespace::create().unwrap());
    let world = World { node, pod };
    let pod = format!("/proc/{}/fd/{}", std::process::id(), world.pod.as_fd().as_raw_fd());
    world.on_node(&[
        "link add name br0 type bridge",
        "addr add 10.9.0.1/24 dev br0",
        "addr add fd09::1/64 dev br0 nodad",
        "link set br0 mtu 1400",
        "link set br0 up",
        &format!(
            "link add name veth0 mtu 1400 type veth peer name eth0 address 02:00:00:00:00:02 mtu 1400 netns {pod}"
        ),
        "link set veth0 master br0",
        "link set veth0 up",
    ]);
    world.in_pod(&[
        "link set eth0 up",
        "addr add 10.9.0.2/24 dev eth0",
        "addr add fd09::2/64 dev eth0 nodad",
        "route add default via 10.9.0.1",
        "route add default via fd09::1",
    ]);
    Some(world)
}

impl World {
    /// Runs `ip` with each of these on the node.
    pub fn on_node(&self, commands: &[&str]) {
        run(&self.node, "ip", commands);
    }

    /// Runs `ip` with each of these in the pod.
    pub fn in_pod(&self, commands: &[&str]) {
        run(&self.pod, "ip", commands);
    }

    /// What a program prints in the pod.
    pub fn shown(&self, program: &str, arguments: &str) -> String {
        output(&self.pod, program, arguments)
    }
}

fn run(namespace: &Namespace, program: &str, commands: &[&str]) {
    for arguments in commands {
        output(namespace, program, arguments);
    }
}

/// What a program prints in a namespace.
pub fn output(namespace: &Namespace, program: &str, arguments: &str) -> String {
    let output = namespace.run(|| Command::new(program).args(arguments.split(' ')).output().unwrap()).unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}
