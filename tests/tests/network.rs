//! A container in a network namespace that was made for it: what it shows, and whom it reaches.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

use std::{
    io::{Read, Write},
    net::TcpListener,
    path::PathBuf,
    process::Command,
    thread,
};

use e2e::{Bundle, Runtime, message, same};
use network::Namespace;

fn ip(args: &str) {
    let status = Command::new("ip").args(args.split(' ')).status().expect("run ip");
    assert!(status.success(), "ip {args}");
}

/// Two network namespaces with a cable between them: the container's, and a neighbour's.
struct Cable {
    ours: String,
    theirs: String,
}

impl Cable {
    fn new(name: &str) -> Self {
        let name = format!("kata-{name}-{}", std::process::id());
        let cable = Self { ours: format!("{name}-a"), theirs: format!("{name}-b") };
        let Self { ours, theirs } = &cable;
        ip(&format!("netns add {ours}"));
        ip(&format!("netns add {theirs}"));
        ip(&format!("-n {ours} link add eth0 mtu 1400 type veth peer name eth0 netns {theirs}"));
        for (netns, number) in [(ours, 1), (theirs, 2)] {
            ip(&format!("-n {netns} link set lo up"));
            ip(&format!("-n {netns} link set eth0 up"));
            ip(&format!("-n {netns} addr add 192.0.2.{number}/24 dev eth0"));
            ip(&format!("-n {netns} addr add 2001:db8::{number}/64 dev eth0 nodad"));
        }
        ip(&format!("-n {ours} route add default via 192.0.2.2"));
        cable
    }

    fn path(&self) -> PathBuf {
        PathBuf::from("/run/netns").join(&self.ours)
    }

    /// Has the neighbour greet whoever connects to port 7, as often as asked.
    fn greet(&self, times: usize) -> thread::JoinHandle<()> {
        let neighbour = Namespace::open(format!("/run/netns/{}", self.theirs)).unwrap();
        let (ready, wait) = std::sync::mpsc::channel();
        let greeter = thread::spawn(move || {
            neighbour.enter().unwrap();
            let listener = TcpListener::bind("[::]:7").unwrap();
            ready.send(()).unwrap();
            for _ in 0..times {
                let (mut stream, _) = listener.accept().unwrap();
                let mut line = [0; 5];
                stream.read_exact(&mut line).unwrap();
                stream.write_all(format!("you said {}\n", String::from_utf8_lossy(&line)).as_bytes()).unwrap();
            }
        });
        wait.recv().unwrap();
        greeter
    }
}

impl Drop for Cable {
    fn drop(&mut self) {
        for netns in [&self.ours, &self.theirs] {
            let _ = Command::new("ip").args(["netns", "delete", netns]).status();
        }
    }
}

fn bundle(script: &str, netns: &std::path::Path) -> Bundle {
    let mut bundle = Bundle::new(["bash", "-c", script]);
    bundle.edit(|config| {
        for namespace in config["linux"]["namespaces"].as_array_mut().unwrap() {
            if namespace["type"] == "network" {
                namespace["path"] = netns.to_str().unwrap().into();
            }
        }
    });
    bundle
}

#[test]
fn interfaces_are_those_of_the_namespace_and_reach_their_neighbour_in_both_families() {
    let cable = Cable::new("reach");
    let script = "cd /sys/class/net/eth0; cat address mtu; cat /proc/net/route; cut -d' ' -f1,3- /proc/net/if_inet6 | grep -v '^fe80' | sort; \
                  for host in 192.0.2.2 2001:db8::2; do exec 3<>/dev/tcp/$host/7; printf hello >&3; cat <&3; done";
    let greeter = cable.greet(4);
    let bundle = bundle(script, &cable.path());
    let output = same(&bundle);
    assert!(output.text().ends_with("you said hello\nyou said hello\n"), "{}", output.text());
    greeter.join().unwrap();
    // The namespace is as it was found.
    let links = Command::new("ip").args(["-n", &cable.ours, "-o", "link"]).output().unwrap();
    let text = String::from_utf8_lossy(&links.stdout).into_owned();
    assert!(text.lines().count() == 2 && !text.contains("kata-tap"), "{text}");
}

#[test]
fn the_network_of_the_host_is_refused_in_words() {
    let path = format!("/proc/{}/ns/net", std::process::id());
    let bundle = bundle("true", std::path::Path::new(&path));
    let output = Runtime::kata().run(["run", "--bundle", bundle.arg(), "host"]);
    assert_eq!(output.code, 1);
    let text = message(&output.stderr);
    assert!(text.contains(&format!("{path} is the host's; a virtual machine cannot share it")), "{text}");
}
