//! `podman run` in the foreground: what the container is given and what it gives.

use std::fs;

use engines::{Client, Handler, Podman, podman_cases, terminal::on_a_terminal};
use serde_json::{Value, json};

use super::seen;

podman_cases!(output_and_code, terminal, rights, files, limits, devices, networks, refused);

fn output_and_code(podman: &Podman, _: Handler) -> Value {
    let script = "cat; echo err >&2; hostname; id; pwd; echo $ONE; ls -ld /tmp; touch /etc/no; exit 7";
    let options = ["--rm", "--interactive", "--hostname", "named", "--env", "ONE=1", "--workdir", "/home/user"];
    let options = [&options[..], &["--user", "1000:1000", "--label", "a=b"]].concat();
    let mut command = podman.run_command(&options, &["sh", "-c", script]);
    let output = e2e::run_with_input(&mut command, |input| input.write_all(b"given\n").unwrap());
    let text = output.text();
    assert_eq!(output.code, 7, "{text}{}", output.stderr);
    assert!(text.starts_with("given\nnamed\nuid=1000(user) gid=1000(user)"), "{text}");
    let missing = podman.run(&["--rm"], &["no-such-program"]);
    assert!(missing.stderr.contains("no-such-program"), "{}", missing.stderr);
    let directory = podman.run(&["--rm"], &["/etc"]);
    let init = podman.run(&["--rm", "--init"], &["sh", "-c", "cat /proc/1/comm; [ $$ != 1 ]; echo $?; kill -9 $$"]);
    assert!(init.text().starts_with("podman-init\n") || init.text().starts_with("catatonit\n"), "{}", init.text());
    json!([seen(&output), missing.code, directory.code, seen(&init)])
}

fn terminal(podman: &Podman, _: Handler) -> Value {
    let command = podman.run_command(&["--rm", "--interactive", "--tty"], &["sh"]);
    on_a_terminal(&command, "exit 9").0
}

const CAPABILITIES: &str = "grep -E 'Cap(Prm|Bnd)|NoNewPrivs|Seccomp:' /proc/self/status";

fn rights(podman: &Podman, _: Handler) -> Value {
    let profile = podman.host.directory().join("profile.json");
    let denies = json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO"}]});
    fs::write(&profile, denies.to_string()).unwrap();
    let filter = format!("seccomp={}", profile.display());
    let sets: [&[&str]; 6] = [
        &[],
        &["--cap-add", "SYS_ADMIN", "--cap-drop", "CHOWN"],
        &["--cap-drop", "all", "--security-opt", "no-new-privileges"],
        &["--security-opt", "seccomp=unconfined"],
        &["--security-opt", &filter],
        &["--user", "user", "--group-add", "2000", "--umask", "0077"],
    ];
    sets.iter()
        .map(|options| {
            let script = format!("{CAPABILITIES}; id -G; umask; mkdir /tmp/made; echo $?");
            seen(&podman.run(&[&["--rm"], *options].concat(), &["sh", "-c", &script]))
        })
        .collect()
}

fn files(podman: &Podman, _: Handler) -> Value {
    let data = podman.host.directory().join("data");
    fs::create_dir(&data).unwrap();
    fs::write(data.join("in"), "from the host\n").unwrap();
    let at = data.display();
    let (rw, ro, mount) = (
        format!("{at}:/rw:rw,nodev"),
        format!("{at}/in:/etc/file:ro"),
        format!("type=bind,source={at},destination=/mounted,readonly"),
    );
    let script = "cat /rw/in /etc/file /mounted/in; echo made >/rw/out; echo no >/etc/file; echo $?; echo no >/mounted/in; echo $?; echo kept >/named/kept; \
                  mount | grep ' /memory ' | cut -d ' ' -f 1-5; grep -c $(hostname) /etc/hosts; df /dev/shm | tail -n 1 | tr -s ' ' | cut -d ' ' -f 2; echo x >/dev/shm/x; stat -c '%A %U' /dev/shm";
    let options = ["--rm", "--volume", &rw, "--volume", &ro, "--mount", &mount, "--volume", "named:/named"];
    let options = [&options[..], &["--tmpfs", "/memory:size=1m", "--shm-size", "8m"]].concat();
    let output = podman.run(&options, &["sh", "-c", script]);
    assert_eq!(output.code, 0, "{}{}", output.text(), output.stderr);
    assert_eq!(fs::read_to_string(data.join("out")).unwrap(), "made\n");
    let again = podman.run(
        &["--rm", "--volume", "named:/named", "--read-only"],
        &["sh", "-c", "cat /named/kept; touch /no; echo $?; touch /tmp/yes /run/yes; echo $?"],
    );
    assert!(again.text().starts_with("kept\n1\n"), "{}{}", again.text(), again.stderr);
    podman.ok(["volume", "rm", "named"]);
    json!([output.text(), seen(&again)])
}

fn limits(podman: &Podman, _: Handler) -> Value {
    let read = "cat /sys/fs/cgroup/memory.max 2>/dev/null || cat /sys/fs/cgroup/memory/memory.limit_in_bytes";
    let script =
        format!("{read}; ulimit -n; cat /proc/sys/net/ipv4/ip_default_ttl; cat /proc/sys/kernel/shm_rmid_forced");
    let options = ["--rm", "--memory", "64m", "--cpus", "1", "--pids-limit", "50", "--ulimit", "nofile=100:200"];
    // What is not named here is as high as the machine may not set it.
    let options = [&options[..], &["--ulimit", "nproc=20000:20000"]].concat();
    let options =
        [&options[..], &["--sysctl", "net.ipv4.ip_default_ttl=77", "--sysctl", "kernel.shm_rmid_forced=1"]].concat();
    let output = podman.run(&options, &["sh", "-c", &script]);
    assert_eq!(output.text(), "67108864\n100\n77\n1\n", "{}", output.stderr);
    let full = podman.run(
        &["--name", "full", "--memory", "32m", "--memory-swap", "32m"],
        &["sh", "-c", "x=a; while :; do x=$x$x; done"],
    );
    assert_eq!(full.code, 137, "{}", full.stderr);
    podman.remove(&["full"]);
    seen(&output)
}

/// What means the same in every kernel is there; what is the host's is not.
fn devices(podman: &Podman, handler: Handler) -> Value {
    let script = "ls -l /dev/fuse /dev/inner | tr -s ' ' | cut -d ' ' -f 1,5,6,10";
    let output =
        podman.run(&["--rm", "--device", "/dev/fuse", "--device", "/dev/null:/dev/inner:r"], &["sh", "-c", script]);
    assert!(
        output.text().contains("/dev/fuse") && output.text().contains("/dev/inner"),
        "{}{}",
        output.text(),
        output.stderr
    );
    let image = podman.host.directory().join("disk");
    fs::write(&image, vec![b'k'; 1 << 20]).unwrap();
    let disk = podman.host.ok("losetup", &["--find", "--show", &image.display().to_string()]).trim_end().to_owned();
    let inner = format!("{disk}:/dev/disk");
    let read = podman
        .run(&["--rm", "--device", &inner], &["sh", "-c", "head -c 4 /dev/disk; echo; echo new >/dev/disk; sync"]);
    podman.host.ok("losetup", &["--detach", &disk]);
    assert_eq!(read.text(), "kkkk\n", "{}", read.stderr);
    assert!(fs::read(&image).unwrap().starts_with(b"new\n"));
    let script = "test -c /dev/null && test -w /proc/sys/kernel/hostname; echo $?; mount -t tmpfs none /mnt 2>/dev/null || mkdir /mnt && mount -t tmpfs none /mnt; echo $?; ls /dev | wc -l";
    let privileged = podman.run(&["--rm", "--privileged"], &["sh", "-c", script]);
    let lines: Vec<String> = privileged.text().lines().map(str::to_owned).collect();
    assert_eq!(lines[..2], ["0", "0"], "{}", privileged.stderr);
    assert!(lines[2].parse::<u32>().unwrap() > 20, "{lines:?}");
    if handler.is_kata() {
        let kvm = podman.run(&["--rm", "--device", "/dev/net/../kvm"], &["true"]);
        assert!(kvm.code != 0 && kvm.stderr.contains("host's kernel"), "{}", kvm.stderr);
    }
    seen(&output)
}

fn networks(podman: &Podman, handler: Handler) -> Value {
    podman.ok(["network", "create", "--subnet", "10.77.0.0/24", "lan"]);
    let server = "while :; do echo hello | nc -l -p 8080 >/dev/null; done & while :; do sleep 0.1; done";
    podman.detached(&["--network", "lan", "--ip", "10.77.0.9", "--publish", "18080:8080"], "server", server);
    for (address, port) in [("127.0.0.1", 18080), ("10.77.0.1", 18080), ("10.77.0.9", 8080)] {
        super::wait_until(&format!("an answer on {address}:{port}"), || podman.connect(address, port) == "hello\n");
    }
    let script =
        "until nc -w 5 server 8080; do sleep 0.2; done; ip route | sed 's/ src.*//'; cat /sys/class/net/eth0/address";
    let options = ["--rm", "--network", "lan", "--mac-address", "02:42:ac:11:00:77"];
    let client = podman.run(&options, &["sh", "-c", script]);
    assert!(client.text().starts_with("hello\n"), "{}{}", client.text(), client.stderr);
    let none = podman.run(
        &["--rm", "--network", "none"],
        &["sh", "-c", "ls /sys/class/net; ping -c 1 127.0.0.1 >/dev/null; echo $?"],
    );
    assert_eq!(none.text(), "lo\n0\n", "{}", none.stderr);
    podman.ok(["network", "create", "--subnet", "10.78.0.0/24", "other"]);
    let count = || podman.ok(["exec", "server", "sh", "-c", "ls /sys/class/net | wc -l"]);
    let before = count();
    podman.ok(["network", "connect", "other", "server"]);
    super::wait_until("the interface comes", || count() != before);
    podman.ok(["network", "disconnect", "other", "server"]);
    super::wait_until("the interface goes", || count() == before);
    podman.remove(&["server"]);
    podman.ok(["network", "rm", "lan", "other"]);
    let _ = handler;
    json!([seen(&client), seen(&none)])
}

/// What a virtual machine cannot share is refused, and the words say what.
fn refused(podman: &Podman, handler: Handler) -> Value {
    for (option, word) in [("--network=host", "network"), ("--pid=host", "pid"), ("--ipc=host", "ipc")] {
        let output = podman.run(&["--rm", option], &["true"]);
        if handler.is_kata() {
            assert_ne!(output.code, 0, "{option}");
            assert!(output.stderr.to_lowercase().contains(word), "{option}: {}", output.stderr);
        }
    }
    Value::Null
}
