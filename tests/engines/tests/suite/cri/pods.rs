//! Pods and their containers: start, end, once more, in order, many at once.

use std::{fs, time::Instant};

use engines::{Containerd, Handler, cases, cri::Node};
use serde_json::{Value, json};

use super::{PLAIN, wait_until};

cases!(
    a_pod_with_one_container,
    ends_and_codes,
    containers_share_what_the_pod_is,
    shared_processes,
    processes_of_another_container,
    init_containers_run_in_order,
    a_container_starts_once_more,
    termination_grace_period,
    logs_are_rotated_without_loss,
    statistics,
    containerd_comes_back,
    the_shim_is_killed,
    the_pod_s_process_is_ended,
    twenty_at_once,
);

fn a_pod_with_one_container(engine: &Containerd, handler: Handler) -> Value {
    let node = Node::new(engine, handler);
    let pod = node.pod("one", &PLAIN);
    let change = json!({"envs": [{"key": "GREETING", "value": "hello world"}], "working_dir": "/tmp"});
    let script = "echo $GREETING; echo to stderr >&2; trap 'exit 0' TERM; while :; do sleep 0.2; done";
    let container = pod.run("main", &["sh", "-c", script], &change);
    wait_until("its lines are in the log", || pod.log("main").len() == 2);
    let seen = node.sh(
        &container,
        "hostname; pwd; id; echo $GREETING; cat /proc/1/comm; cat /etc/resolv.conf; ls /; mount | wc -l",
    );
    assert!(seen.starts_with("one\n/tmp\nuid=0(root)"), "{seen}");
    assert!(seen.contains("nameserver 10.96.0.10"), "{seen}");
    let failed = node.exec(&container, &["sh", "-c", "echo out; echo err >&2; exit 42"]);
    assert_eq!((failed.code, failed.stdout.as_str(), failed.stderr.as_str()), (42, "out\n", "err\n"));
    let missing = node.call("ExecSync", &json!({"container_id": container, "cmd": ["no-such-program"]}));
    let late = node.call("ExecSync", &json!({"container_id": container, "cmd": ["sleep", "60"], "timeout": 1}));
    assert!(
        late.as_ref()
            .is_err_and(|failure| failure.message.contains("deadline") || failure.message.contains("timed out")),
        "{late:?}"
    );
    let status = node.status(&container);
    node.stop(&container, 10);
    let ended = node.wait(&container);
    // containerd reads the two streams side by side, so their lines may change places.
    let mut log = pod.log("main");
    log.sort();
    node.remove(&container);
    pod.remove();
    let lines: Vec<&str> = seen.lines().collect();
    json!({"seen": lines[..lines.len() - 1], "missing": missing.is_err(), "state": status["state"], "code": ended["exit_code"],
           "reason": ended["reason"], "log": log})
}

fn ends_and_codes(engine: &Containerd, handler: Handler) -> Value {
    let node = Node::new(engine, handler);
    let pod = node.pod("ends", &PLAIN);
    let mut seen = Vec::new();
    for (name, script) in
        [("good", "exit 0"), ("bad", "exit 77"), ("signalled", "(sleep 0.2; kill -9 1) & exec sleep 0.5")]
    {
        let container = pod.run(name, &["sh", "-c", script], &PLAIN);
        let status = node.wait(&container);
        seen.push(json!([status["exit_code"], status["reason"]]));
    }
    let container = pod.run("killed", &["sleep", "1000"], &PLAIN);
    node.stop(&container, 0);
    let status = node.wait(&container);
    seen.push(json!([status["exit_code"], status["reason"]]));
    let absent = pod.create("absent", &["/no/such/program"], &PLAIN);
    let failure = node.call("StartContainer", &json!({"container_id": absent})).unwrap_err();
    assert!(failure.message.contains("/no/such/program"), "{failure}");
    let status = node.wait(&absent);
    seen.push(json!([status["exit_code"], status["reason"]]));
    pod.remove();
    assert_eq!(seen[0], json!([null, "Completed"]));
    assert_eq!(seen[1], json!([77, "Error"]));
    assert_eq!(seen[3], json!([137, "Error"]));
    json!(seen)
}

fn containers_share_what_the_pod_is(engine: &Containerd, handler: Handler) -> Value {
    let node = Node::new(engine, handler);
    let pod = node.pod(
        "shared",
        &json!({"linux": {"sysctls": {"kernel.shm_rmid_forced": "1", "net.ipv4.ip_unprivileged_port_start": "80"}}}),
    );
    let server = "exec httpd -f -p 127.0.0.1:8080 -h /etc";
    let a = pod.run("a", &["sh", "-c", server], &PLAIN);
    let b = pod.idle("b", &PLAIN);
    assert_eq!(node.until(&b, "wget -qO- http://127.0.0.1:8080/from-image"), "of the image\n");
    // Through the one /dev/shm.
    node.sh(&a, "echo memory >/dev/shm/shared");
    assert_eq!(node.sh(&b, "cat /dev/shm/shared"), "memory\n");
    let settings =
        node.sh(&b, "hostname; cat /proc/sys/kernel/shm_rmid_forced /proc/sys/net/ipv4/ip_unprivileged_port_start");
    assert_eq!(settings, "shared\n1\n80\n");
    // Each has processes and files of its own.
    let own = node.sh(&b, "cat /proc/1/comm; ps | grep -c '[h]ttpd' || :; ls /only-in-a 2>&1 || :");
    node.sh(&a, "touch /only-in-a");
    pod.remove();
    json!([settings, own])
}

fn shared_processes(engine: &Containerd, handler: Handler) -> Value {
    let node = Node::new(engine, handler);
    let shared = json!({"linux": {"security_context": {"namespace_options": {"pid": 0}}}});
    let pod = node.pod("together", &shared);
    let a = pod.run("a", &["sleep", "1111"], &shared);
    let b = pod.run("b", &["sleep", "2222"], &shared);
    let seen = node.sh(&a, "ps -o args | grep -o 'sleep [12]*$' | sort");
    assert_eq!(seen, "sleep 1111\nsleep 2222\n");
    // One can signal the other, which is not the first process of the namespace.
    node.sh(&a, "for p in $(pidof sleep); do ! grep -q 2222 /proc/$p/cmdline || kill $p; done");
    let status = node.wait(&b);
    pod.remove();
    json!([seen, status["exit_code"]])
}

fn processes_of_another_container(engine: &Containerd, handler: Handler) -> Value {
    let node = Node::new(engine, handler);
    let pod = node.pod("target", &PLAIN);
    let a = pod.run("a", &["sleep", "1111"], &PLAIN);
    let change = json!({"linux": {"security_context": {"namespace_options": {"pid": 3, "target_id": a}}}});
    let debug = pod.idle("debug", &change);
    let seen = node.sh(&debug, "tr '\\0' ' ' </proc/1/cmdline");
    assert_eq!(seen, "sleep 1111 ");
    pod.remove();
    json!(seen)
}

fn init_containers_run_in_order(engine: &Containerd, handler: Handler) -> Value {
    let node = Node::new(engine, handler);
    let pod = node.pod("ordered", &PLAIN);
    let volume = engine.host.directory().join("order");
    fs::create_dir(&volume).unwrap();
    let mounts = json!({"mounts": [super::mount(&volume, "/order", false)]});
    let mut codes = Vec::new();
    for name in ["first", "second"] {
        let container = pod.run(name, &["sh", "-c", &format!("echo {name} >>/order/file; exit 0")], &mounts);
        codes.push(node.wait(&container)["exit_code"].clone());
        node.remove(&container);
    }
    let main = pod.idle("main", &mounts);
    let order = node.sh(&main, "cat /order/file");
    pod.remove();
    assert_eq!(order, "first\nsecond\n");
    json!([codes, order])
}

fn a_container_starts_once_more(engine: &Containerd, handler: Handler) -> Value {
    let node = Node::new(engine, handler);
    let pod = node.pod("again", &PLAIN);
    let other = pod.idle("other", &PLAIN);
    let mut seen = Vec::new();
    for attempt in 0..3 {
        let change = json!({"metadata": {"attempt": attempt}, "log_path": format!("main.{attempt}.log")});
        let container = pod.run("main", &["sh", "-c", "ls /kept 2>/dev/null; touch /kept; echo run; exit 3"], &change);
        let status = node.wait(&container);
        seen.push(json!([status["exit_code"], status["metadata"]["attempt"], pod.log(&format!("main.{attempt}"))]));
        node.remove(&container);
    }
    assert_eq!(node.sh(&other, "echo still here"), "still here\n");
    pod.remove();
    json!(seen)
}

fn termination_grace_period(engine: &Containerd, handler: Handler) -> Value {
    let node = Node::new(engine, handler);
    let pod = node.pod("grace", &PLAIN);
    let mut seen = Vec::new();
    for (name, script, grace) in [
        ("obeys", "trap 'sleep 1; echo bye; exit 0' TERM; echo ready; while :; do sleep 0.1; done", 30),
        ("ignores", "trap '' TERM; echo ready; while :; do sleep 0.1; done", 2),
    ] {
        let container = pod.run(name, &["sh", "-c", script], &PLAIN);
        wait_until("it is ready", || !pod.log(name).is_empty());
        let start = Instant::now();
        node.stop(&container, grace);
        let took = start.elapsed().as_secs();
        let status = node.wait(&container);
        assert!((1..25).contains(&took), "{name} took {took} s");
        seen.push(json!([status["exit_code"], status["reason"], pod.log(name)]));
    }
    pod.remove();
    assert_eq!((&seen[0][0], &seen[1][0]), (&Value::Null, &json!(137)));
    json!(seen)
}

fn logs_are_rotated_without_loss(engine: &Containerd, handler: Handler) -> Value {
    let node = Node::new(engine, handler);
    let pod = node.pod("logs", &PLAIN);
    let script = "n=0; while [ $n -lt 3000 ]; do n=$((n + 1)); echo $n; [ $((n % 100)) != 0 ] || sleep 0.1; done; head -c 40000 /dev/zero | tr '\\0' x; echo; printf 'no newline'";
    let container = pod.create("main", &["sh", "-c", script], &PLAIN);
    let log = node.logs("logs").join("main.log");
    node.ok("StartContainer", &json!({"container_id": container}));
    let mut lines = Vec::new();
    let mut rotated = 0;
    for number in 0..3 {
        let written = || fs::metadata(&log).is_ok_and(|metadata| metadata.len() > 100);
        wait_until("it writes", || written() || node.status(&container)["state"] == engines::cri::EXITED);
        let old = log.with_extension(format!("log.{number}"));
        fs::rename(&log, &old).unwrap();
        // One that has ended is not reopened; its log is whole.
        rotated += i32::from(node.call("ReopenContainerLog", &json!({"container_id": container})).is_ok());
        lines.push(old);
        if !log.exists() {
            break;
        }
    }
    node.wait(&container);
    lines.push(log.clone());
    let all: Vec<(String, String)> = lines.iter().flat_map(|file| engines::cri::log_lines(file)).collect();
    let numbers: Vec<&str> =
        all.iter().map(|(_, text)| text.as_str()).filter(|text| text.parse::<u32>().is_ok()).collect();
    assert_eq!(numbers.len(), 3000, "{rotated} rotations");
    assert!(numbers.iter().enumerate().all(|(at, number)| *number == (at + 1).to_string()));
    let long: usize = all.iter().map(|(_, text)| text.matches('x').count()).sum();
    assert_eq!((long, all.last().unwrap().1.as_str()), (40_000, "no newline"));
    pod.remove();
    Value::Null
}

fn statistics(engine: &Containerd, handler: Handler) -> Value {
    let node = Node::new(engine, handler);
    let pod = node.pod("figures", &PLAIN);
    let limits = json!({"linux": {"resources": {"memory_limit_in_bytes": 67_108_864}}});
    let busy = pod.run("busy", &["sh", "-c", "while :; do :; done"], &limits);
    let mut stats = Value::Null;
    wait_until("it used processor time", || {
        stats = node.ok("ContainerStats", &json!({"container_id": busy}))["stats"].take();
        engines::cri::number(&stats["cpu"]["usage_core_nano_seconds"]["value"]) > 200_000_000
    });
    let memory = engines::cri::number(&stats["memory"]["working_set_bytes"]["value"]);
    assert!((1..67_108_864).contains(&memory), "{stats}");
    node.sh(&busy, "head -c 5000000 /dev/zero >/file; sync");
    wait_until("the file is counted", || {
        let stats = node.ok("ListContainerStats", &json!({}));
        engines::cri::number(&stats["stats"][0]["writable_layer"]["used_bytes"]["value"]) >= 5_000_000
    });
    let of_pod = node.ok("PodSandboxStats", &json!({"pod_sandbox_id": pod.id}))["stats"].take();
    assert!(engines::cri::number(&of_pod["linux"]["cpu"]["usage_core_nano_seconds"]["value"]) > 0, "{of_pod}");
    assert!(engines::cri::number(&of_pod["linux"]["memory"]["working_set_bytes"]["value"]) > 0, "{of_pod}");
    assert_eq!(of_pod["linux"]["network"]["default_interface"]["name"], "eth0", "{of_pod}");
    pod.remove();
    let keys = |value: &Value| value.as_object().map(|object| object.keys().cloned().collect::<Vec<_>>());
    json!([keys(&stats), keys(&stats["memory"]), keys(&of_pod["linux"]), keys(&of_pod["linux"]["network"])])
}

fn containerd_comes_back(engine: &Containerd, handler: Handler) -> Value {
    let node = Node::new(engine, handler);
    let pod = node.pod("stays", &PLAIN);
    let script = "trap 'exit 9' TERM; n=0; while :; do n=$((n + 1)); echo $n; sleep 0.1; done";
    let container = pod.run("main", &["sh", "-c", script], &PLAIN);
    let short = pod.run("short", &["sh", "-c", "sleep 3; exit 4"], &PLAIN);
    wait_until("it writes", || pod.log("main").len() > 2);
    engine.kill();
    std::thread::sleep(std::time::Duration::from_secs(4));
    engine.launch();
    let node = Node::new(engine, handler);
    assert_eq!(node.status(&container)["state"], engines::cri::RUNNING);
    assert_eq!(node.sh(&container, "echo reached"), "reached\n");
    let lines = pod.log("main").len();
    wait_until("it writes again", || pod.log("main").len() > lines + 2);
    let ended = node.wait(&short);
    node.stop(&container, 20);
    let status = node.wait(&container);
    assert_eq!(status["exit_code"], 9, "{status}");
    pod.remove();
    json!([status["exit_code"], status["reason"], ended["state"]])
}

fn the_shim_is_killed(engine: &Containerd, handler: Handler) -> Value {
    let node = Node::new(engine, handler);
    let pod = node.pod("shimless", &PLAIN);
    let container = pod.run("main", &["sh", "-c", "while :; do sleep 0.1; done"], &PLAIN);
    for pid in engine.host.processes_with("containerd-shim-") {
        engine.host.kill("KILL", pid);
    }
    let status = node.wait(&container);
    wait_until("the pod is not ready", || engines::cri::number(&pod.status()["state"]) == 1);
    pod.remove();
    json!([status["exit_code"], status["reason"]])
}

/// By its number, as whoever finds it in `crictl inspectp` does.
fn the_pod_s_process_is_ended(engine: &Containerd, handler: Handler) -> Value {
    let node = Node::new(engine, handler);
    let pod = node.pod("signalled", &PLAIN);
    pod.idle("main", &PLAIN);
    let tell = || node.call("PodSandboxStatus", &json!({"pod_sandbox_id": pod.id, "verbose": true}));
    let told = tell().unwrap();
    let info: Value = serde_json::from_str(told["info"]["info"].as_str().unwrap()).unwrap();
    // The first process of a namespace is spared SIGTERM unless it asked for it.
    let signal = if handler.is_kata() { "TERM" } else { "KILL" };
    engine.host.kill(signal, u32::try_from(info["pid"].as_u64().unwrap()).unwrap());
    // It is told all the time while it ends.
    wait_until("the pod is not ready", || engines::cri::number(&tell().unwrap()["status"]["state"]) == 1);
    pod.remove();
    Value::Null
}

fn twenty_at_once(engine: &Containerd, handler: Handler) -> Value {
    let node = Node::new(engine, handler);
    let names: Vec<String> = (0..20).map(|number| format!("many-{number}")).collect();
    std::thread::scope(|scope| {
        let starts: Vec<_> = names
            .iter()
            .map(|name| {
                let node = &node;
                scope.spawn(move || {
                    let pod = node.pod(name, &PLAIN);
                    let container = pod.idle("main", &PLAIN);
                    assert_eq!(node.sh(&container, "hostname"), format!("{name}\n"));
                    (pod, container)
                })
            })
            .collect();
        let pods: Vec<_> = starts.into_iter().map(|start| start.join().unwrap()).collect();
        let mut addresses: Vec<String> = pods.iter().flat_map(|(pod, _)| pod.addresses()).collect();
        addresses.sort();
        addresses.dedup();
        assert_eq!(addresses.len(), 40);
        let ends: Vec<_> = pods.into_iter().map(|(pod, _)| scope.spawn(move || pod.remove())).collect();
        ends.into_iter().for_each(|end| end.join().unwrap());
    });
    Value::Null
}
