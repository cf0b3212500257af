//! A container in the background: what is done with it while it runs, and how it goes on after its end.

use std::{fs, thread, time::Duration};

use engines::{
    Client, Handler, Podman,
    commands::{TALKER, executed, logged},
    podman_cases,
};
use serde_json::{Value, json};

use super::{FOREVER, seen, wait_until};

podman_cases!(exec, attach, logs_and_stats, stop_and_kill, pause, restarts, health, copied_files, changes,);

fn exec(podman: &Podman, _: Handler) -> Value {
    podman.detached(&[], "host", FOREVER);
    let observed = executed(podman, "host");
    podman.ok(["exec", "--detach", "host", "sh", "-c", "echo behind >/tmp/behind"]);
    wait_until("a process in the background", || {
        podman.call(["exec", "host", "cat", "/tmp/behind"]).text() == "behind\n"
    });
    podman.remove(&["host"]);
    observed
}

fn attach(podman: &Podman, _: Handler) -> Value {
    let options = ["--detach", "--interactive", "--tty", "--name", "shell"];
    assert_eq!(podman.run(&options, &["sh"]).code, 0);
    let mut first = e2e::Terminal::start(&podman.command(["attach", "shell"]), 30, 90);
    first.write("echo fir''st\r");
    first.expect("first");
    // The keys for leaving.
    first.write("\x10");
    thread::sleep(Duration::from_millis(300));
    first.write("\x11");
    let left = first.finish().0;
    let mut second = e2e::Terminal::start(&podman.command(["attach", "--detach-keys", "ctrl-x,x", "shell"]), 30, 90);
    second.write("echo seco''nd\r");
    second.expect("second");
    second.write("exit 5\r");
    let code = second.finish().0;
    assert_eq!(left, 0);
    podman.wait_for("shell", "{{.State.Status}} {{.State.ExitCode}}", "exited 5");
    podman.remove(&["shell"]);
    json!([left, code])
}

fn logs_and_stats(podman: &Podman, handler: Handler) -> Value {
    podman.detached(&["--memory", "64m"], "told", TALKER);
    let following = e2e::Background::start(&mut podman.command(["logs", "--follow", "told"]));
    let tail = logged(podman, "told");
    let stats: Value = serde_json::from_str(&podman.ok(["stats", "--no-stream", "--format", "json", "told"])).unwrap();
    assert!(!stats[0]["mem_usage"].as_str().unwrap().starts_with("0B"), "{stats}");
    assert!(stats[0]["pids"].as_str().unwrap().parse::<u32>().unwrap() >= 1, "{stats}");
    let top = podman.ok(["top", "told", "-eo", "pid,args"]);
    assert!(top.contains("sleep 1000"), "{top}");
    let columns = podman.call(["top", "told", "pid", "comm"]);
    assert_eq!(columns.code, 0, "{}", columns.stderr);
    assert!(columns.text().contains(if handler.is_kata() { "kata-shim" } else { "sleep" }), "{}", columns.text());
    podman.ok(["kill", "told"]);
    assert_eq!(following.finish().text(), podman.call(["logs", "told"]).text());
    podman.remove(&["told"]);
    json!(tail)
}

fn stop_and_kill(podman: &Podman, _: Handler) -> Value {
    podman.detached(&[], "asked", "trap 'echo bye; exit 3' TERM; while :; do sleep 0.1; done");
    thread::sleep(Duration::from_secs(1));
    podman.ok(["stop", "asked"]);
    let asked = (podman.inspect("asked", "{{.State.Status}} {{.State.ExitCode}}"), podman.ok(["logs", "asked"]));
    assert_eq!((asked.0.as_str(), asked.1.as_str()), ("exited 3", "bye\n"));
    podman.detached(&[], "forced", "trap '' TERM; while :; do sleep 0.1; done");
    podman.ok(["stop", "--time", "1", "forced"]);
    let forced = podman.inspect("forced", "{{.State.Status}} {{.State.ExitCode}}");
    assert_eq!(forced, "exited 137");
    podman.detached(&["--rm"], "killed", "sleep 1000");
    let waiting = e2e::Background::start(&mut podman.command(["wait", "killed"]));
    thread::sleep(Duration::from_millis(300));
    podman.ok(["kill", "killed"]);
    assert_eq!(waiting.finish().text(), "137\n");
    wait_until("it removes itself", || podman.call(["inspect", "killed"]).code != 0);
    podman.detached(&[], "alive", "sleep 1000");
    podman.ok(["rm", "--force", "--time", "0", "alive"]);
    podman.remove(&["asked", "forced"]);
    json!([asked, forced])
}

fn pause(podman: &Podman, _: Handler) -> Value {
    let data = podman.host.directory().join("data");
    fs::create_dir(&data).unwrap();
    let volume = format!("{}:/data", data.display());
    let ticks = || fs::read_to_string(data.join("ticks")).unwrap_or_default().len();
    podman.detached(&["--volume", &volume], "ticking", "while :; do echo tick >>/data/ticks; sleep 0.1; done");
    wait_until("it ticks", || ticks() > 0);
    podman.ok(["pause", "ticking"]);
    let paused = podman.inspect("ticking", "{{.State.Status}}");
    assert_eq!(paused, "paused");
    thread::sleep(Duration::from_millis(500));
    let before = ticks();
    thread::sleep(Duration::from_secs(1));
    assert_eq!(ticks(), before);
    podman.ok(["unpause", "ticking"]);
    wait_until("it goes on", || ticks() > before);
    podman.remove(&["ticking"]);
    json!(paused)
}

fn restarts(podman: &Podman, _: Handler) -> Value {
    podman.detached(&["--restart", "on-failure:2"], "fails", "echo once more; exit 3");
    wait_until("it was started three times", || podman.ok(["logs", "fails"]) == "once more\n".repeat(3));
    podman.detached(&[], "lasts", "echo begun; trap 'exit 0' TERM; while :; do sleep 0.1; done");
    wait_until("it runs", || podman.ok(["logs", "lasts"]) == "begun\n");
    podman.ok(["restart", "--time", "1", "lasts"]);
    wait_until("it runs anew", || podman.ok(["logs", "lasts"]).ends_with("begun\n"));
    podman.ok([
        "create",
        &podman.group(),
        "--name",
        "twice",
        engines::images::BUSYBOX,
        "sh",
        "-c",
        "cat /kept; echo x >>/kept; exit 2",
    ]);
    let runs: Vec<e2e::Output> = (0..2).map(|_| podman.call(["start", "--attach", "twice"])).collect();
    // The container's file system is kept as long as the container.
    assert_eq!((runs[0].code, runs[1].code, runs[1].text().as_str()), (2, 2, "x\n"), "{}", runs[1].stderr);
    podman.remove(&["fails", "lasts", "twice"]);
    runs.iter().map(seen).collect()
}

fn health(podman: &Podman, _: Handler) -> Value {
    podman.detached(
        &["--health-cmd", "test -e /well && echo fine", "--health-retries", "1"],
        "patient",
        "touch /well; while :; do sleep 0.1; done",
    );
    wait_until("it is well", || podman.call(["healthcheck", "run", "patient"]).code == 0);
    podman.ok(["exec", "patient", "rm", "/well"]);
    let unwell = podman.call(["healthcheck", "run", "patient"]);
    let status = podman.inspect("patient", "{{.State.Health.Status}}");
    podman.remove(&["patient"]);
    json!([seen(&unwell), status])
}

fn copied_files(podman: &Podman, _: Handler) -> Value {
    podman.detached(&["--volume", "named:/volume", "--tmpfs", "/memory"], "holder", FOREVER);
    let file = podman.host.directory().join("file");
    let at = file.display().to_string();
    fs::write(&file, "content\n").unwrap();
    for place in ["/tmp", "/volume"] {
        podman.ok(["cp", &at, &format!("holder:{place}/file")]);
        assert_eq!(podman.ok(["exec", "holder", "cat", &format!("{place}/file")]), "content\n");
        podman.ok(["exec", "holder", "sh", "-c", &format!("echo more >>{place}/file")]);
        let back = podman.host.directory().join("back");
        podman.ok(["cp", &format!("holder:{place}/file"), &back.display().to_string()]);
        assert_eq!(fs::read_to_string(&back).unwrap(), "content\nmore\n");
    }
    let absent = podman.call(["cp", "holder:/no/such", "/dev/null"]);
    podman.remove(&["holder"]);
    podman.ok(["volume", "rm", "--force", "named"]);
    json!(absent.code)
}

fn changes(podman: &Podman, _: Handler) -> Value {
    let output =
        podman.run(&["--name", "changed"], &["sh", "-c", "echo new >/new; rm /etc/from-image; echo x >>/etc/group"]);
    assert_eq!(output.code, 0, "{}", output.stderr);
    let changed = podman.ok(["diff", "changed"]);
    podman.ok(["commit", "--quiet", "changed", "localhost/changed:1"]);
    podman.remove(&["changed"]);
    let group = podman.group();
    let again = podman.call(["run", &group, "--rm", "localhost/changed:1", "sh", "-c", "cat /new; ls /etc"]);
    assert!(again.text().starts_with("new\n"), "{}{}", again.text(), again.stderr);
    podman.ok(["rmi", "localhost/changed:1"]);
    let mut lines: Vec<&str> = changed.lines().collect();
    lines.sort_unstable();
    json!([lines, seen(&again)])
}
