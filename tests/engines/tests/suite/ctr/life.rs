//! A container in the background: its states, further processes, signals, figures, events.

use std::{
    thread,
    time::{Duration, Instant},
};

use engines::{Containerd, Handler, cases, images::BUSYBOX};
use serde_json::{Value, json};

use super::{Shared, detached, seen, wait_until};

cases!(
    exec,
    exec_on_a_terminal,
    exec_in_the_background_is_killed_alone,
    signals,
    pause_and_resume,
    create_start_and_start_again,
    processes,
    figures,
    checkpoint_is_refused,
    events,
    events_of_a_container_out_of_memory,
    several_at_once,
);

const FOREVER: &str = "trap 'exit 0' TERM; while :; do sleep 0.1; done";

fn exec(engine: &Containerd, handler: Handler) -> Value {
    detached(engine, handler, &["--env", "OF=container"], "host", FOREVER);
    let run = |options: &[&str], args: &[&str]| {
        let fixed = ["tasks", "exec", "--exec-id", "e"];
        let output = engine.ctr([&fixed[..], options, &["host"], args].concat());
        json!({"code": output.code, "stdout": output.text(), "stderr": without_time(&output.stderr)})
    };
    let plain = run(&[], &["sh", "-c", "echo out; echo err >&2; echo $OF; pwd; id; cat /proc/1/comm; exit 3"]);
    assert_eq!((&plain["code"], &plain["stderr"]), (&json!(3), &json!("err\n")), "{plain}");
    let other = run(&["--cwd", "/tmp", "--user", "1000:1000"], &["sh", "-c", "pwd; id"]);
    assert!(other["stdout"].as_str().unwrap().starts_with("/tmp\nuid=1000"), "{other}");
    let missing = run(&[], &["no-such-program"]);
    assert!(missing["stderr"].as_str().unwrap().contains("no-such-program"), "{missing}");
    let mut command = engine.ctr_command(["tasks", "exec", "--exec-id", "i", "host", "cat"]);
    let echoed = e2e::run_with_input(&mut command, |input| input.write_all(b"through\n").unwrap());
    assert_eq!(echoed.text(), "through\n");
    // The same name once more, as the last one is gone.
    let again = run(&[], &["echo", "again"]);
    engine.remove("host");
    json!([plain, other, missing["code"], seen(&echoed), again])
}

/// Errors without what depends on the moment.
fn without_time(stderr: &str) -> String {
    stderr.lines().filter(|line| !line.starts_with("time=")).map(|line| format!("{line}\n")).collect()
}

fn exec_on_a_terminal(engine: &Containerd, handler: Handler) -> Value {
    detached(engine, handler, &[], "host", FOREVER);
    let command = engine.ctr_command(["tasks", "exec", "--exec-id", "t", "--tty", "host", "sh"]);
    let mut terminal = e2e::Terminal::start(&command, 20, 90);
    terminal.write("until [ \"$(stty size)\" = '20 90' ]; do sleep 0.1; done; echo sta''rted\r");
    terminal.expect("started\r");
    terminal.write("until [ \"$(stty size)\" = '31 71' ]; do sleep 0.1; done; echo res''ized\r");
    terminal.resize_until(31, 71, "resized");
    terminal.write("sh -c 'trap \"echo inter\"\"rupted; exit\" INT; echo wai\"\"ting; while :; do sleep 0.1; done'\r");
    terminal.expect("waiting");
    // Control-C goes to what runs in front; the shell then goes on.
    terminal.write("\x03");
    terminal.expect("interrupted");
    terminal.write("exit 6\r");
    let (code, shown) = terminal.finish();
    assert_eq!(code, 6, "{shown}");
    engine.remove("host");
    json!(code)
}

fn exec_in_the_background_is_killed_alone(engine: &Containerd, handler: Handler) -> Value {
    let shared = Shared::new(engine, "shared");
    detached(engine, handler, &["--mount", &shared.option], "host", FOREVER);
    let script = "trap 'echo got >/shared/got; exit 4' USR1; : >/shared/ready; while :; do sleep 0.1; done";
    let mut command = engine.ctr_command(["tasks", "exec", "--exec-id", "bg", "host", "sh", "-c", script]);
    let running = e2e::Background::start(&mut command);
    shared.expect("ready");
    engine.ctr_ok(["tasks", "kill", "--exec-id", "bg", "--signal", "SIGUSR1", "host"]);
    let output = running.finish();
    assert_eq!(output.code, 4, "{}", output.stderr);
    assert_eq!(shared.expect("got"), "got\n");
    assert_eq!(engine.status("host").as_deref(), Some("RUNNING"));
    engine.remove("host");
    json!(output.code)
}

fn signals(engine: &Containerd, handler: Handler) -> Value {
    let shared = Shared::new(engine, "shared");
    let script =
        "trap 'echo usr1 >/shared/usr1' USR1; trap 'exit 11' TERM; : >/shared/ready; while :; do sleep 0.1; done";
    detached(engine, handler, &["--mount", &shared.option], "signalled", script);
    shared.expect("ready");
    engine.ctr_ok(["tasks", "kill", "--signal", "SIGUSR1", "signalled"]);
    shared.expect("usr1");
    // One that still runs cannot be deleted.
    let early = engine.ctr(["tasks", "delete", "signalled"]);
    assert_ne!(early.code, 0, "{}", early.text());
    engine.ctr_ok(["tasks", "kill", "--signal", "SIGTERM", "signalled"]);
    engine.wait_for("signalled", "STOPPED");
    let late = engine.ctr(["tasks", "kill", "--signal", "SIGTERM", "signalled"]);
    assert_eq!(engine.delete("signalled"), 11);
    engine.ctr_ok(["containers", "delete", "signalled"]);

    // To all: the child would outlive its parent, which is not the first process of its namespace's own accord.
    detached(engine, handler, &["--mount", &shared.option], "all", "sleep 1000 & : >/shared/two; wait");
    shared.expect("two");
    engine.ctr_ok(["tasks", "kill", "--all", "--signal", "SIGKILL", "all"]);
    engine.wait_for("all", "STOPPED");
    let all = engine.delete("all");
    engine.ctr_ok(["containers", "delete", "all"]);
    json!({"late": late.code, "all": all})
}

fn pause_and_resume(engine: &Containerd, handler: Handler) -> Value {
    let shared = Shared::new(engine, "shared");
    let script = "while :; do echo tick >>/shared/ticks; sleep 0.1; done";
    detached(engine, handler, &["--mount", &shared.option], "ticking", script);
    shared.expect("ticks");
    engine.ctr_ok(["tasks", "pause", "ticking"]);
    assert_eq!(engine.status("ticking").as_deref(), Some("PAUSED"));
    thread::sleep(Duration::from_millis(500));
    let before = shared.read("ticks");
    thread::sleep(Duration::from_secs(1));
    assert_eq!(shared.read("ticks"), before);
    let refused = engine.ctr(["tasks", "exec", "--exec-id", "e", "ticking", "true"]);
    assert_ne!(refused.code, 0);
    engine.ctr_ok(["tasks", "resume", "ticking"]);
    assert_eq!(engine.status("ticking").as_deref(), Some("RUNNING"));
    wait_until("it goes on", || shared.read("ticks") != before);
    engine.remove("ticking");
    json!(refused.code)
}

fn create_start_and_start_again(engine: &Containerd, handler: Handler) -> Value {
    let fixed = ["containers", "create", "--runtime", handler.runtime(), "--", BUSYBOX, "twice"];
    engine.ctr_ok([&fixed[..], &["sh", "-c", "cat /kept; echo x >>/kept; exit 2"]].concat());
    assert_eq!(engine.status("twice"), None);
    let runs: Vec<e2e::Output> = (0..2).map(|_| engine.ctr(["tasks", "start", "twice"])).collect();
    engine.ctr_ok(["containers", "delete", "twice"]);
    // The container's file system is kept as long as the container.
    assert_eq!((runs[0].code, runs[1].code, runs[1].text().as_str()), (2, 2, "x\n"), "{}", runs[1].stderr);
    runs.iter().map(seen).collect()
}

fn processes(engine: &Containerd, handler: Handler) -> Value {
    detached(engine, handler, &[], "listed", "sleep 1000 & sleep 1000");
    let list = engine.ctr_ok(["tasks", "list"]);
    let pid = list.lines().last().unwrap().split_whitespace().nth(1).unwrap().to_owned();
    let ps = engine.ctr_ok(["tasks", "ps", "listed"]);
    assert!(ps.lines().skip(1).any(|line| line.split_whitespace().next() == Some(&pid)), "{pid}: {ps}");
    assert!(engine.host.processes().iter().any(|(other, _)| *other == pid.parse::<u32>().unwrap()));
    engine.remove("listed");
    Value::Null
}

fn figures(engine: &Containerd, handler: Handler) -> Value {
    let script = "i=0; while [ $i -lt 100000 ]; do i=$((i + 1)); done; sleep 1000";
    detached(engine, handler, &["--memory-limit", "67108864"], "figures", script);
    let mut metrics = Value::Null;
    wait_until("it used processor time", || {
        metrics = serde_json::from_str(&engine.ctr_ok(["tasks", "metrics", "--format", "json", "figures"])).unwrap();
        // Nanoseconds, or microseconds where the host's control groups are of version 2.
        let total = metrics["cpu"]["usage"]["total"].as_u64();
        total.or_else(|| Some(1000 * metrics["cpu"]["usage_usec"].as_u64()?)).unwrap() > 10_000_000
    });
    let memory = &metrics["memory"];
    let (used, limit) = match &memory["usage"] {
        Value::Object(usage) => (&usage["usage"], &usage["limit"]),
        usage => (usage, &memory["usage_limit"]),
    };
    assert!((1..67_108_864).contains(&used.as_u64().unwrap()), "{memory}");
    assert!(metrics["pids"]["current"].as_u64().unwrap() >= 1, "{metrics}");
    engine.remove("figures");
    json!({"limit": limit, "kinds": metrics.as_object().unwrap().keys().collect::<Vec<_>>()})
}

fn checkpoint_is_refused(engine: &Containerd, handler: Handler) -> Value {
    detached(engine, handler, &[], "kept", FOREVER);
    let refused = engine.ctr(["tasks", "checkpoint", "kept"]);
    assert_ne!(refused.code, 0, "{}", refused.text());
    assert_eq!(engine.status("kept").as_deref(), Some("RUNNING"));
    engine.remove("kept");
    json!(refused.code)
}

/// Records what `ctr events` shows while `during` runs, which deletes a task in the end: topics, and of their contents what does not
/// depend on the moment. The event of that deletion is left out, because runc's shim of containerd 2.1 at times ends before it has published it; ours must
/// have published it, once and as the last.
fn recorded(engine: &Containerd, handler: Handler, during: impl FnOnce()) -> Vec<Value> {
    let file = engine.host.directory().join("events");
    let out = std::fs::File::create(&file).unwrap();
    let mut child = engine.ctr_command(["events"]).stdout(out).spawn().unwrap();
    let read = || std::fs::read_to_string(&file).unwrap();
    // It says nothing when it listens.
    wait_until("ctr listens to events", || {
        engine.ctr_ok(["namespaces", "label", engine.host.name(), "listens=1"]);
        read().contains("/namespaces/update")
    });
    during();
    let patience = Duration::from_secs(if handler.is_kata() { 60 } else { 5 });
    let end = Instant::now() + patience;
    while !read().contains("/tasks/delete") && Instant::now() < end {
        thread::sleep(Duration::from_millis(50));
    }
    // What comes after the last one would be one too many.
    thread::sleep(Duration::from_millis(500));
    for pid in engine.host.processes_with(" events") {
        engine.host.kill("KILL", pid);
    }
    child.wait().unwrap();
    let events = read();
    let tasks = events.lines().filter(|line| line.contains(" /tasks/"));
    let mut told: Vec<Value> = tasks
        .map(|line| {
            let (topic, content) = line.split_once(" /tasks/").unwrap().1.split_once(' ').unwrap();
            let content: Value = serde_json::from_str(content).unwrap();
            let kept = ["container_id", "exec_id", "id", "exit_status"].iter();
            let kept = kept.filter_map(|key| Some(((*key).to_owned(), content.get(*key)?.clone())));
            json!({"topic": topic, "content": kept.collect::<serde_json::Map<_, _>>()})
        })
        .collect();
    let is_deletion = |event: &Value| event["topic"] == "delete";
    if handler.is_kata() {
        assert!(told.last().is_some_and(is_deletion), "the deletion is not the last event: {told:#?}");
        assert_eq!(told.iter().filter(|event| is_deletion(event)).count(), 1, "{told:#?}");
    }
    told.retain(|event| !is_deletion(event));
    told
}

fn events(engine: &Containerd, handler: Handler) -> Value {
    let shared = Shared::new(engine, "shared");
    let events = recorded(engine, handler, || {
        let script = "trap 'exit 12' TERM; : >/shared/ready; while :; do sleep 0.1; done";
        detached(engine, handler, &["--mount", &shared.option], "told", script);
        shared.expect("ready");
        engine.ctr(["tasks", "exec", "--exec-id", "more", "told", "sh", "-c", "exit 3"]);
        engine.ctr_ok(["tasks", "pause", "told"]);
        engine.ctr_ok(["tasks", "resume", "told"]);
        engine.ctr_ok(["tasks", "kill", "--signal", "SIGTERM", "told"]);
        engine.wait_for("told", "STOPPED");
        engine.ctr(["tasks", "delete", "told"]);
    });
    engine.ctr_ok(["containers", "delete", "told"]);
    let topics: Vec<&str> = events.iter().map(|event| event["topic"].as_str().unwrap()).collect();
    let expected = ["create", "start", "exec-added", "exec-started", "exit", "paused", "resumed", "exit"];
    assert_eq!(topics, expected, "{events:#?}");
    Value::from(events)
}

fn events_of_a_container_out_of_memory(engine: &Containerd, handler: Handler) -> Value {
    let events = recorded(engine, handler, || {
        let options = ["--detach", "--null-io", "--memory-limit", "33554432"];
        let args = ["sh", "-c", "x=a; while :; do x=$x$x; done"];
        engine.ctr_ok(engines::containerd::run_arguments(handler, &options, "full", &args));
        engine.wait_for("full", "STOPPED");
        engine.ctr(["tasks", "delete", "full"]);
    });
    engine.ctr_ok(["containers", "delete", "full"]);
    let mut topics: Vec<&str> = events.iter().map(|event| event["topic"].as_str().unwrap()).collect();
    assert!(topics.contains(&"oom"), "{events:#?}");
    let exit = events.iter().find(|event| event["topic"] == "exit").unwrap();
    assert_eq!(exit["content"]["exit_status"], 137, "{events:#?}");
    // The one is told by the kernel, the other by the process: which comes first is chance.
    topics.sort_unstable();
    topics.dedup();
    json!(topics)
}

fn several_at_once(engine: &Containerd, handler: Handler) -> Value {
    let ids = ["a", "b", "c"];
    for id in ids {
        detached(engine, handler, &[], id, FOREVER);
    }
    let outputs: Vec<String> =
        ids.iter().map(|id| engine.ctr_ok(["tasks", "exec", "--exec-id", "e", id, "echo", id])).collect();
    for id in ids {
        engine.remove(id);
    }
    assert_eq!(outputs, ["a\n", "b\n", "c\n"]);
    json!(outputs)
}
