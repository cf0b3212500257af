//! A container in a network namespace that was made for it: what it shows, and whom it reaches.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

use std::{
    fs,
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use e2e::{Background, Bundle, Runtime, message, same};
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

fn bundle(script: &str, netns: &Path) -> Bundle {
    let mut bundle = Bundle::new(["bash", "-c", script]);
    bundle.join("network", netns.to_str().unwrap());
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

/// `command` in a network namespace, which is then what it takes for the host's.
fn on_host(netns: &str, command: &Command) -> Command {
    let mut inside = Command::new("nsenter");
    inside.arg(format!("--net=/run/netns/{netns}")).arg(command.get_program()).args(command.get_args());
    inside.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?)))).stdin(std::process::Stdio::null());
    inside
}

#[test]
fn the_network_of_the_host_is_reached_behind_passt_and_reaches_the_container() {
    let cable = Cable::new("host");
    ip(&format!("-n {} -6 route add default via 2001:db8::2", cable.ours));
    let script = "for host in 192.0.2.2 2001:db8::2; do exec 3<>/dev/tcp/$host/7; printf hello >&3; cat <&3; done; \
                  exec perl -MIO::Socket -e 'my $s = IO::Socket::INET->new(Listen => 5, LocalPort => 8080, ReuseAddr => 1) or die $!; \
                  for (1..2) { my $c = $s->accept; print $c \"from within\\n\"; close $c }'";
    let mut bundle = Bundle::new(["bash", "-c", script]);
    bundle.edit(|config| {
        config["linux"]["namespaces"].as_array_mut().unwrap().retain(|namespace| namespace["type"] != "network");
    });
    let mut shown = Vec::new();
    for kata in [true, false] {
        let runtime =
            if kata { Runtime::kata_with("[runtime]\ninternetworking_model = \"passt\"\n") } else { Runtime::runc() };
        let greeter = cable.greet(2);
        let mut command = on_host(&cable.ours, &runtime.command(["run", "--bundle", bundle.arg(), "host"]));
        let container = Background::start(&mut command);
        let mut answers = Vec::new();
        // Only once the container has answered is it sure that passt has confined itself, and that it still works then.
        answers.push(ask(&cable.theirs, "192.0.2.1:8080"));
        if kata {
            passt_is_confined(&cable.ours);
        }
        answers.push(ask(&cable.ours, "127.0.0.1:8080"));
        let output = container.finish();
        assert_eq!(output.code, 0, "{}", output.stderr);
        greeter.join().unwrap();
        shown.push((output.text(), answers));
    }
    assert_eq!(shown[0], shown[1]);
    assert_eq!(shown[0].1, ["from within\n", "from within\n"]);
    // The host's port is free again, and no passt is left in its network.
    let free = Namespace::open(format!("/run/netns/{}", cable.ours)).unwrap();
    thread::spawn(move || free.enter().map(|()| TcpListener::bind("0.0.0.0:8080").unwrap())).join().unwrap().unwrap();
}

/// What is declared of passt, and what it is relied on to do itself, as the kernel tells it of the one in a network namespace.
fn passt_is_confined(netns: &str) {
    use std::os::unix::fs::MetadataExt;

    let namespace = fs::metadata(format!("/run/netns/{netns}")).unwrap().ino();
    let is_it = |process: &PathBuf| {
        fs::read_to_string(process.join("comm")).is_ok_and(|name| name.starts_with("passt"))
            && fs::metadata(process.join("ns/net")).is_ok_and(|net| net.ino() == namespace)
    };
    let processes = fs::read_dir("/proc").unwrap().map(|entry| entry.unwrap().path());
    let found: Vec<PathBuf> = processes.filter(is_it).collect();
    let [passt] = &found[..] else { panic!("one passt was expected: {found:?}") };
    let status = fs::read_to_string(passt.join("status")).unwrap();
    let figure = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(":\t"));
        line.unwrap_or_else(|| panic!("no {name}: {status}")).to_owned()
    };
    for (name, value) in [("NoNewPrivs", "1"), ("Seccomp", "2"), ("Groups", " ")] {
        assert_eq!(figure(name), value, "{status}");
    }
    // Ours and its own.
    assert!(figure("Seccomp_filters").parse::<u32>().unwrap() >= 2, "{status}");
    for name in ["CapInh", "CapEff", "CapAmb"] {
        assert_eq!(u64::from_str_radix(&figure(name), 16).unwrap(), 0, "{status}");
    }
    for name in ["Uid", "Gid"] {
        assert!(figure(name).split('\t').all(|id| id.parse::<u32>().unwrap() >= 100_000), "{status}");
    }
    for kind in ["user", "mnt", "ipc", "uts"] {
        let of = |process: &Path| fs::read_link(process.join("ns").join(kind)).unwrap();
        assert_ne!(of(passt), of(Path::new("/proc/self")), "{kind}");
    }
    let mounts = fs::read_to_string(passt.join("mountinfo")).unwrap();
    assert!(mounts.lines().all(|line| line.contains(" - tmpfs ")), "{mounts}");
    assert_eq!(fs::read_dir(passt.join("root")).unwrap().count(), 0);
    let limits = fs::read_to_string(passt.join("limits")).unwrap();
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    assert_eq!(core.split_whitespace().nth(4), Some("0"), "{core}");
}

/// What a server says as soon as there is one.
fn ask(netns: &str, address: &'static str) -> String {
    let namespace = Namespace::open(format!("/run/netns/{netns}")).unwrap();
    let asking = thread::spawn(move || {
        namespace.enter().unwrap();
        let end = Instant::now() + Duration::from_secs(60);
        loop {
            let mut said = String::new();
            if let Ok(mut stream) = TcpStream::connect(address)
                && stream.read_to_string(&mut said).is_ok()
                && !said.is_empty()
            {
                return said;
            }
            assert!(Instant::now() < end, "nobody answers at {address}");
            thread::sleep(Duration::from_millis(100));
        }
    });
    asking.join().unwrap()
}

#[test]
fn the_network_of_the_host_is_refused_in_words() {
    let path = format!("/proc/{}/ns/net", std::process::id());
    let bundle = bundle("true", std::path::Path::new(&path));
    let output = Runtime::kata().run(["run", "--bundle", bundle.arg(), "host"]);
    assert_eq!(output.code, 1);
    let text = message(&output.stderr);
    let mut without = Bundle::new(["true"]);
    without.edit(|config| {
        config["linux"]["namespaces"].as_array_mut().unwrap().retain(|namespace| namespace["type"] != "network");
    });
    let refused = Runtime::kata().run(["run", "--bundle", without.arg(), "host"]);
    assert_eq!(refused.code, 1);
    assert!(
        refused.stderr.contains("asks for the host's network") && refused.stderr.contains("passt"),
        "{}",
        refused.stderr
    );
    assert!(text.contains(&format!("{path} is the host's; a virtual machine cannot share it")), "{text}");
}
