//! A container in the background: what is done with it while it runs, and how it goes on after its end.

use std::{fs, thread, time::Duration};

use engines::{
    Client, Docker, Door, Handler,
    commands::{TALKER, executed, logged},
    docker_cases,
};
use serde_json::{Value, json};

use super::{seen, wait_until};

docker_cases!(
    exec,
    logs_and_stats,
    stop_and_kill,
    pause_and_update,
    restart_policies,
    health_checks,
    start_again,
    copied_files,
);

const FOREVER: &str = "trap 'exit 0' TERM; while :; do sleep 0.1; done";

fn exec(docker: &Docker, handler: Handler) -> Value {
    docker.detached(handler, &[], "host", FOREVER);
    let observed = executed(docker, "host");
    docker.remove(&["host"]);
    observed
}

fn logs_and_stats(docker: &Docker, handler: Handler) -> Value {
    docker.detached(handler, &["--memory", "64m"], "told", TALKER);
    let tail = logged(docker, "told");
    let stats: Value =
        serde_json::from_str(&docker.ok(["stats", "--no-stream", "--format", "{{json .}}", "told"])).unwrap();
    let usage = stats["MemUsage"].as_str().unwrap();
    // By path, Docker reads the cgroups of the host, where the machine's processes are and the limit is not.
    let limited = docker.door == Door::Shim || !handler.is_kata();
    assert!((!limited || usage.ends_with("/ 64MiB")) && !usage.starts_with("0B"), "{stats}");
    assert!(stats["PIDs"].as_str().unwrap().parse::<u32>().unwrap() >= 1, "{stats}");
    let api = "/containers/told/stats?stream=false&one-shot=true";
    let all: Value = serde_json::from_str(&docker.get(api)).unwrap();
    assert!(all["cpu_stats"]["cpu_usage"]["total_usage"].as_u64().unwrap() > 10_000_000, "{all}");
    assert!(all["networks"]["eth0"]["tx_bytes"].is_u64(), "{all}");
    docker.remove(&["told"]);
    json!(tail)
}

fn stop_and_kill(docker: &Docker, handler: Handler) -> Value {
    let script = "trap 'echo usr1' USR1; trap 'exit 11' TERM; echo ready; while :; do sleep 0.1; done";
    docker.detached(handler, &[], "asked", script);
    wait_until("it is ready", || docker.ok(["logs", "asked"]) == "ready\n");
    docker.ok(["kill", "--signal", "USR1", "asked"]);
    wait_until("it caught the signal", || docker.ok(["logs", "asked"]) == "ready\nusr1\n");
    docker.ok(["stop", "asked"]);
    let asked = docker.inspect("asked", "{{.State.Status}} {{.State.ExitCode}}");
    assert_eq!(asked, "exited 11");
    docker.detached(handler, &[], "forced", "trap '' TERM; while :; do sleep 0.1; done");
    docker.ok(["stop", "--time", "1", "forced"]);
    let forced = docker.inspect("forced", "{{.State.Status}} {{.State.ExitCode}}");
    assert_eq!(forced, "exited 137");
    docker.detached(handler, &["--rm"], "killed", "sleep 1000");
    let mut waiting = docker.command(["wait", "killed"]);
    let waiting = e2e::Background::start(&mut waiting);
    thread::sleep(Duration::from_millis(300));
    docker.ok(["kill", "killed"]);
    assert_eq!(waiting.finish().text(), "137\n");
    wait_until("it removes itself", || docker.call(["inspect", "killed"]).code != 0);
    docker.remove(&["asked", "forced"]);
    json!([asked, forced])
}

fn pause_and_update(docker: &Docker, handler: Handler) -> Value {
    let data = docker.host.directory().join("data");
    fs::create_dir(&data).unwrap();
    let volume = format!("{}:/data", data.display());
    let ticks = || fs::read_to_string(data.join("ticks")).unwrap_or_default().len();
    let options = ["--volume", &volume, "--memory", "64m", "--memory-swap", "64m"];
    docker.detached(handler, &options, "ticking", "while :; do echo tick >>/data/ticks; sleep 0.1; done");
    wait_until("it ticks", || ticks() > 0);
    docker.ok(["pause", "ticking"]);
    let paused = docker.inspect("ticking", "{{.State.Status}}");
    assert_eq!(paused, "paused");
    thread::sleep(Duration::from_millis(500));
    let before = ticks();
    thread::sleep(Duration::from_secs(1));
    assert_eq!(ticks(), before);
    docker.ok(["unpause", "ticking"]);
    wait_until("it goes on", || ticks() > before);
    let read = "cat /sys/fs/cgroup/memory.max 2>/dev/null || cat /sys/fs/cgroup/memory/memory.limit_in_bytes";
    for (limit, bytes) in [("300m", "314572800\n"), ("32m", "33554432\n")] {
        docker.ok(["update", "--memory", limit, "--memory-swap", limit, "--cpus", "0.5", "ticking"]);
        assert_eq!(docker.ok(["exec", "ticking", "sh", "-c", read]), bytes);
    }
    docker.remove(&["ticking"]);
    json!(paused)
}

fn restart_policies(docker: &Docker, handler: Handler) -> Value {
    docker.detached(handler, &["--restart", "on-failure:2"], "fails", "echo once more; exit 3");
    docker.wait_for("fails", "{{.State.Status}} {{.RestartCount}}", "exited 2");
    let logs = docker.ok(["logs", "fails"]);
    assert_eq!(logs, "once more\n".repeat(3));
    docker.detached(
        handler,
        &["--restart", "always"],
        "lasts",
        "echo begun; trap 'exit 0' TERM; while :; do sleep 0.1; done",
    );
    wait_until("it runs", || docker.ok(["logs", "lasts"]) == "begun\n");
    // Its shim is its process for Docker. Killed, it is started again.
    let pid = docker.inspect("lasts", "{{.State.Pid}}");
    docker.host.kill("KILL", pid.parse().unwrap());
    wait_until("it runs again", || docker.ok(["logs", "lasts"]) == "begun\nbegun\n");
    docker.ok(["restart", "lasts"]);
    wait_until("it runs anew", || docker.ok(["logs", "lasts"]) == "begun\nbegun\nbegun\n");
    docker.remove(&["fails", "lasts"]);
    json!(logs)
}

fn health_checks(docker: &Docker, handler: Handler) -> Value {
    let options = ["--health-cmd", "test -e /well && echo fine", "--health-interval", "300ms", "--health-retries", "2"];
    docker.detached(handler, &options, "patient", "touch /well; while :; do sleep 0.1; done");
    docker.wait_for("patient", "{{.State.Health.Status}}", "healthy");
    let said = docker.inspect("patient", "{{(index .State.Health.Log 0).Output}}");
    docker.ok(["exec", "patient", "rm", "/well"]);
    docker.wait_for("patient", "{{.State.Health.Status}}", "unhealthy");
    docker.remove(&["patient"]);
    json!(said)
}

fn start_again(docker: &Docker, handler: Handler) -> Value {
    docker.ok([
        "create",
        "--runtime",
        docker.runtime(handler),
        "--name",
        "twice",
        engines::images::BUSYBOX,
        "sh",
        "-c",
        "cat /kept; echo x >>/kept; exit 2",
    ]);
    let runs: Vec<e2e::Output> = (0..2).map(|_| docker.call(["start", "--attach", "twice"])).collect();
    // The container's file system is kept as long as the container.
    assert_eq!((runs[0].code, runs[1].code, runs[1].text().as_str()), (2, 2, "x\n"), "{}", runs[1].stderr);
    let changed = docker.ok(["diff", "twice"]);
    docker.remove(&["twice"]);
    json!([runs.iter().map(seen).collect::<Vec<_>>(), changed])
}

fn copied_files(docker: &Docker, handler: Handler) -> Value {
    docker.detached(handler, &[], "holder", FOREVER);
    let file = docker.host.directory().join("file");
    fs::write(&file, "content\n").unwrap();
    docker.ok(["cp", &file.display().to_string(), "holder:/tmp/file"]);
    assert_eq!(docker.ok(["exec", "holder", "cat", "/tmp/file"]), "content\n");
    docker.ok(["exec", "holder", "sh", "-c", "echo more >>/tmp/file"]);
    docker.ok(["cp", "holder:/tmp/file", &file.display().to_string()]);
    let text = fs::read_to_string(&file).unwrap();
    assert_eq!(text, "content\nmore\n");
    docker.remove(&["holder"]);
    json!(text)
}
