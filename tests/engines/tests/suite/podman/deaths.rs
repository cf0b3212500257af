//! Whatever of a container is killed, `podman rm --force` leaves nothing of it; and many containers leave nothing either.

use std::{env, thread, time::Duration};

use engines::{Client, Handler, Podman, podman_cases};
use serde_json::{Value, json};

use super::{FOREVER, wait_until};

podman_cases!(killed, killed_in_a_pod, ten_at_once, one_after_another);

/// What is there of a container on the host: what its command line contains.
fn victims(handler: Handler) -> &'static [&'static str] {
    if handler.is_kata() { &["conmon", "kata-shim", "kata-sandbox", "qemu-system"] } else { &["conmon"] }
}

fn kill(podman: &Podman, victim: &str) {
    // conmon's command line has the names of others.
    let found = podman.host.processes().into_iter().filter(|(_, line)| {
        let program = line.split(' ').next().unwrap_or_default();
        program.rsplit('/').next().unwrap_or_default().starts_with(victim)
    });
    let pids: Vec<u32> = found.map(|(pid, _)| pid).collect();
    assert!(!pids.is_empty(), "no {victim}: {:#?}", podman.host.processes());
    pids.iter().for_each(|pid| podman.host.kill("KILL", *pid));
}

fn killed(podman: &Podman, handler: Handler) -> Value {
    podman.ok(["network", "create", "--subnet", "10.77.0.0/24", "lan"]);
    for victim in victims(handler) {
        let before = podman.host.traces();
        podman.detached(&["--network", "lan"], "victim", FOREVER);
        kill(podman, victim);
        thread::sleep(Duration::from_millis(500));
        podman.remove(&["victim"]);
        eprintln!("{victim} was killed");
        // runc's container outlives its monitor for a moment, and its groups stay.
        podman.host.expect_traces(&before, |_| !handler.is_kata());
        // And the name is free.
        let again = podman.run(&["--rm", "--name", "victim", "--network", "lan"], &["echo", "again"]);
        assert_eq!(again.text(), "again\n", "{victim}: {}", again.stderr);
    }
    podman.ok(["network", "rm", "lan"]);
    Value::Null
}

fn killed_in_a_pod(podman: &Podman, handler: Handler) -> Value {
    for victim in victims(handler).iter().filter(|victim| **victim != "conmon") {
        podman.ok(["pod", "create", "--name", "pod", &podman.group()]);
        podman.detached(&["--pod", "pod"], "one", FOREVER);
        podman.detached(&["--pod", "pod"], "two", FOREVER);
        kill(podman, victim);
        wait_until("the containers have ended", || {
            ["one", "two"].iter().all(|name| podman.inspect(name, "{{.State.Status}}") == "exited")
        });
        podman.ok(["pod", "rm", "--force", "--time", "0", "pod"]);
        if handler.is_kata() {
            wait_until("no machine is left", || podman.host.processes_with("qemu-system").is_empty());
        }
    }
    Value::Null
}

fn ten_at_once(podman: &Podman, _: Handler) -> Value {
    let all: Vec<e2e::Output> = thread::scope(|scope| {
        let run = |number: usize| {
            let number = number.to_string();
            let mut command = podman.run_command(&["--rm"], &["sh", "-c", &format!("echo {number}; exit {number}")]);
            // Ten emulated guests share the machine's processors, and a guest is waited for that long.
            e2e::Background::start(&mut command).finish_within(Duration::from_secs(300))
        };
        let running: Vec<_> = (0..10).map(|number| scope.spawn(move || run(number))).collect();
        running.into_iter().map(|one| one.join().unwrap()).collect()
    });
    for (number, output) in all.iter().enumerate() {
        assert_eq!((output.code, output.text()), (number as i32, format!("{number}\n")), "{}", output.stderr);
    }
    json!(all.len())
}

/// Three, or as many as `KATA_PODMAN_SEQUENCE` says.
fn one_after_another(podman: &Podman, _: Handler) -> Value {
    let count = env::var("KATA_PODMAN_SEQUENCE").ok().and_then(|count| count.parse().ok()).unwrap_or(3);
    let before = podman.host.traces();
    for number in 0..count {
        let word = number.to_string();
        let output = podman.run(&["--rm", "--name", "again"], &["echo", &word]);
        assert_eq!((output.code, output.text()), (0, format!("{word}\n")), "{}", output.stderr);
        podman.host.expect_traces(&before, |trace| trace.contains("podman0"));
    }
    json!(count)
}
