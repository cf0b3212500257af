//! A container in the foreground: what it is given and what it gives.

use std::time::Duration;

use e2e::Background;
use engines::{Containerd, Handler, cases, containerd::run_arguments, images, terminal::on_a_terminal};
use serde_json::{Value, json};

use super::{detached, seen, wait_until};

cases!(
    output_and_code,
    a_signal_gives_128_and_its_number,
    a_program_that_is_not_there,
    input_reaches_the_end,
    much_output_is_whole,
    environment_directory_and_user,
    terminal,
    capabilities_and_seccomp,
    hostname_and_annotations,
    signal_to_ctr_reaches_the_process,
    ctr_killed_leaves_the_container,
    network_of_the_host,
    network_of_the_host_behind_passt,
);

fn output_and_code(engine: &Containerd, handler: Handler) -> Value {
    let output = engine.run(handler, &["--rm"], "one", &["sh", "-c", "echo out; echo err >&2; exit 7"]);
    assert_eq!((output.code, output.text().as_str(), output.stderr.as_str()), (7, "out\n", "err\n"));
    seen(&output)
}

fn a_signal_gives_128_and_its_number(engine: &Containerd, handler: Handler) -> Value {
    // The first process of a namespace takes no signal from inside that it does not handle.
    let output =
        engine.run(handler, &["--rm"], "killed", &["sh", "-c", "sh -c 'kill -9 $$'; echo $?; exec sh -c 'exit 143'"]);
    assert_eq!((output.code, output.text().as_str()), (143, "137\n"), "{}", output.stderr);
    seen(&output)
}

fn a_program_that_is_not_there(engine: &Containerd, handler: Handler) -> Value {
    let output = engine.run(handler, &["--rm"], "missing", &["no-such-program"]);
    assert_eq!(output.code, 1, "{}", output.stderr);
    assert!(output.stderr.contains("no-such-program"), "{}", output.stderr);
    assert!(engine.status("missing").is_none());
    json!({"code": output.code, "stdout": output.text(), "not found": output.stderr.contains("not found")})
}

fn input_reaches_the_end(engine: &Containerd, handler: Handler) -> Value {
    let mut command = engine.ctr_command(run_arguments(handler, &["--rm"], "input", &["sh", "-c", "wc -c; echo end"]));
    let output = e2e::run_with_input(&mut command, |input| {
        for _ in 0..1000 {
            input.write_all(&[b'x'; 1000]).unwrap();
        }
    });
    assert_eq!(output.text(), "1000000\nend\n", "{}", output.stderr);
    seen(&output)
}

fn much_output_is_whole(engine: &Containerd, handler: Handler) -> Value {
    let output = engine.run(handler, &["--rm"], "much", &["sh", "-c", "seq 1 300000; seq 1 1000 >&2"]);
    let lines: Vec<String> = output.text().lines().map(String::from).collect();
    assert_eq!((output.code, lines.len()), (0, 300_000));
    assert!(lines.iter().enumerate().all(|(number, line)| *line == (number + 1).to_string()));
    assert_eq!(output.stderr.lines().count(), 1000);
    json!(output.code)
}

fn environment_directory_and_user(engine: &Containerd, handler: Handler) -> Value {
    let mut options = vec!["--rm", "--env", "ONE=1", "--env", "TWO=a b", "--cwd", "/home/user"];
    // 1.6 does not have it.
    let user = engine.version >= engines::Version::V1_7;
    if user {
        options.extend(["--user", "1000:1000"]);
    }
    let script = "pwd; id; env | sort; ls -ld /tmp; umask; touch /etc/no; echo $?";
    let output = engine.run(handler, &options, "given", &["sh", "-c", script]);
    let text = output.text();
    for line in ["/home/user", "ONE=1", "TWO=a b", "FROM_IMAGE=yes"] {
        assert!(text.lines().any(|other| other == line), "{line}: {text}");
    }
    assert!(text.contains("uid=1000(user) gid=1000(user)") == user, "{text}{}", output.stderr);
    seen(&output)
}

fn terminal(engine: &Containerd, handler: Handler) -> Value {
    let command = engine.ctr_command(run_arguments(handler, &["--rm", "--tty"], "tty", &["sh"]));
    let (seen, shown) = on_a_terminal(&command, "echo err >&2; exit 9");
    assert!(shown.contains("err\r"), "{shown}");
    seen
}

fn capabilities_and_seccomp(engine: &Containerd, handler: Handler) -> Value {
    let script = "grep -E '^(Cap|NoNewPrivs|Seccomp:)' /proc/self/status; chown 1 /tmp 2>&1; chroot / true 2>&1; unshare --user true 2>&1";
    let plain = engine.run(handler, &["--rm"], "plain", &["sh", "-c", script]);
    let options = ["--rm", "--seccomp", "--cap-drop", "CAP_CHOWN", "--cap-add", "CAP_SYS_NICE"];
    let confined = engine.run(handler, &options, "confined", &["sh", "-c", script]);
    assert!(confined.text().contains("Operation not permitted"), "{}", confined.text());
    assert_ne!(plain.text(), confined.text());
    json!([seen(&plain), seen(&confined)])
}

fn hostname_and_annotations(engine: &Containerd, handler: Handler) -> Value {
    let mut options = vec!["--rm", "--label", "test.label=1"];
    // 1.6 has neither.
    if engine.version >= engines::Version::V1_7 {
        options.extend(["--hostname", "given", "--annotation", "test.annotation=1"]);
    }
    let output = engine.run(handler, &options, "named", &["sh", "-c", "hostname"]);
    assert_eq!(output.code, 0, "{}", output.stderr);
    json!(if engine.version >= engines::Version::V1_7 { output.text() } else { String::new() })
}

fn signal_to_ctr_reaches_the_process(engine: &Containerd, handler: Handler) -> Value {
    let script = "trap 'echo caught; exit 5' TERM; echo ready; while :; do sleep 0.1; done";
    let mut command = engine.ctr_command(run_arguments(handler, &["--rm"], "forward", &["sh", "-c", script]));
    let running = e2e::Background::start(&mut command);
    wait_until("the container runs", || engine.status("forward").as_deref() == Some("RUNNING"));
    // It may have set its trap only now.
    std::thread::sleep(Duration::from_secs(1));
    for pid in engine.host.processes_with("run --runtime") {
        engine.host.kill("TERM", pid);
    }
    let output = running.finish();
    assert_eq!((output.code, output.text().as_str()), (5, "ready\ncaught\n"), "{}", output.stderr);
    seen(&output)
}

fn ctr_killed_leaves_the_container(engine: &Containerd, handler: Handler) -> Value {
    let shared = super::Shared::new(engine, "shared");
    // More than any buffer on the way holds, while nobody reads.
    let script = "until [ -e /shared/go ]; do sleep 0.1; done; seq 1 100000 & sleep 2; echo alive >/shared/alive; wait";
    let options = ["--mount", &shared.option];
    let mut command = engine.ctr_command(run_arguments(handler, &options, "orphan", &["sh", "-c", script]));
    let running = e2e::Background::start(&mut command);
    wait_until("the container runs", || engine.status("orphan").as_deref() == Some("RUNNING"));
    for pid in engine.host.processes_with("run --runtime") {
        engine.host.kill("KILL", pid);
    }
    running.finish();
    std::fs::write(shared.path.join("go"), "").unwrap();
    shared.expect("alive");
    let status = engine.status("orphan");
    engine.remove("orphan");
    json!(status)
}

fn network_of_the_host(engine: &Containerd, handler: Handler) -> Value {
    let output = engine.run(handler, &["--rm", "--net-host"], "net", &["true"]);
    if handler.is_kata() {
        assert_ne!(output.code, 0);
        assert!(output.stderr.contains("network"), "{}", output.stderr);
    } else {
        assert_eq!(output.code, 0, "{}", output.stderr);
    }
    Value::Null
}

fn network_of_the_host_behind_passt(engine: &Containerd, handler: Handler) -> Value {
    let host = &engine.host;
    // A way out is all that the host has to have; who is asked is the host itself, by another of its addresses.
    host.sh(
        "ip link add uplink type veth peer name other && ip addr add 10.77.0.1/24 dev uplink && ip addr add 10.78.0.1/24 dev other && \
         ip link set uplink up && ip link set other up && ip route add default via 10.77.0.9",
    );
    let directory = host.directory();
    std::fs::write(directory.join("greeting"), "of the host\n").unwrap();
    let busybox = images::unpacked("busybox").join("usr/bin/busybox").display().to_string();
    let files = directory.display().to_string();
    let server = Background::start(&mut host.command(&busybox, ["httpd", "-f", "-p", "10.78.0.1:8080", "-h", &files]));
    let configuration = directory.join("passt.toml");
    std::fs::write(&configuration, "[runtime]\ninternetworking_model = \"passt\"\n").unwrap();
    let configuration = configuration.display().to_string();
    let mut options = vec!["--net-host"];
    if handler.is_kata() {
        options.extend(["--runtime-config-path", &configuration]);
    }
    let script = "until wget -qO /tmp/greeting http://10.78.0.1:8080/greeting; do sleep 0.2; done; exec httpd -f -p 9090 -h /tmp";
    detached(engine, handler, &options, "net", script);
    let asked = || host.run(&busybox, &["wget", "-qO-", "http://127.0.0.1:9090/greeting"]).text();
    wait_until("the container hands on what it was told", || asked() == "of the host\n");
    engine.ctr_ok(["tasks", "kill", "--signal", "SIGKILL", "net"]);
    engine.wait_for("net", "STOPPED");
    engine.ctr_ok(["tasks", "delete", "net"]);
    engine.ctr_ok(["containers", "delete", "net"]);
    assert!(asked().is_empty(), "the port is listened on still");
    host.processes_with("10.78.0.1:8080").into_iter().for_each(|pid| host.kill("KILL", pid));
    server.finish();
    host.sh("ip link delete uplink");
    Value::Null
}
