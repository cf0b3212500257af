//! Create, start, signals, exec, pause, list, delete: what an engine does step by step.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

use std::{fs, time::Duration};

use e2e::{Background, Bundle, Runtime, message};

#[test]
fn create_start_kill_delete_pass_through_the_states() {
    let bundle = announcing("trap 'exit 3' TERM; echo >/mnt/ready; while :; do sleep 0.1; done");
    for runtime in [Runtime::kata(), Runtime::runc()] {
        let pid_file = bundle.path().join("pid");
        runtime.ok(["create", "--bundle", bundle.arg(), "--pid-file", pid_file.to_str().unwrap(), "steps"]);
        let state = runtime.state_of("steps");
        assert_eq!(state["status"], "created");
        assert_eq!(state["id"], "steps");
        let pid = fs::read_to_string(&pid_file).unwrap();
        assert_eq!(state["pid"].to_string(), pid);
        assert!(fs::metadata(format!("/proc/{pid}")).is_ok());
        runtime.ok(["start", "steps"]);
        assert_eq!(runtime.state_of("steps")["status"], "running");
        let refused = runtime.run(["delete", "steps"]);
        assert_eq!(refused.code, 1);
        assert!(
            refused.stderr.contains("cannot delete container steps that is not stopped: running"),
            "{}",
            refused.stderr
        );
        wait_until_ready(&bundle);
        runtime.ok(["kill", "steps", "TERM"]);
        runtime.wait_for("steps", "stopped");
        let late = runtime.run(["kill", "steps", "TERM"]);
        assert!(late.code == 1 && late.stderr.contains("container not running"), "{}", late.stderr);
        runtime.ok(["delete", "steps"]);
        assert_eq!(runtime.run(["state", "steps"]).code, 1);
    }
}

/// A bundle whose script writes the file `/mnt/ready`. Until it has set its trap, a signal is lost on it: it is its namespace's pid 1.
fn announcing(script: &str) -> Bundle {
    let mut bundle = Bundle::sh(script);
    let sign = bundle.path().join("sign");
    fs::create_dir(&sign).unwrap();
    bundle
        .mount(serde_json::json!({"destination": "/mnt", "type": "bind", "source": sign, "options": ["rbind", "rw"]}));
    bundle
}

/// Waits for the file, and removes it for the next run. While it is empty, the container is still about to open it.
fn wait_until_ready(bundle: &Bundle) {
    let end = std::time::Instant::now() + e2e::DEADLINE;
    let ready = bundle.path().join("sign/ready");
    while fs::metadata(&ready).map_or(0, |file| file.len()) == 0 || fs::remove_file(&ready).is_err() {
        assert!(std::time::Instant::now() < end, "the container does not get ready");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn kill_with_sigkill_ends_a_foreground_run_with_137() {
    let bundle = announcing("echo >/mnt/ready; exec sleep 1000");
    for runtime in [Runtime::kata(), Runtime::runc()] {
        let running = Background::start(&mut runtime.command(["run", "--bundle", bundle.arg(), "killed"]));
        wait_until_ready(&bundle);
        runtime.ok(["kill", "killed", "KILL"]);
        assert_eq!(running.finish().code, 137, "{}", runtime.name);
    }
}

#[test]
fn a_signal_to_the_foreground_command_reaches_the_process() {
    let bundle =
        announcing("trap 'echo caught; exit 5' TERM; echo ready; echo >/mnt/ready; while :; do sleep 0.1; done");
    let runtime = Runtime::kata();
    let running = Background::start(&mut runtime.command(["run", "--bundle", bundle.arg(), "forward"]));
    wait_until_ready(&bundle);
    std::process::Command::new("kill").args(["-TERM", &running.id().to_string()]).status().unwrap();
    let output = running.finish();
    assert_eq!((output.code, output.text().as_str()), (5, "ready\ncaught\n"), "{}", output.stderr);
}

#[test]
fn exec_gives_what_runc_gives() {
    let bundle = Bundle::new(["sleep", "1000"]);
    let (ours, reference) = (Runtime::kata(), Runtime::runc());
    for runtime in [&ours, &reference] {
        runtime.ok(["run", "--detach", "--bundle", bundle.arg(), "exec"]);
    }
    let same = |args: &[&str]| {
        let mut all = vec!["exec"];
        all.extend(args);
        let (a, b) = (ours.run(&all), reference.run(&all));
        assert_eq!(a.code, b.code, "{args:?}: ours: {} runc: {}", a.stderr, b.stderr);
        assert_eq!(a.text(), b.text(), "{args:?}");
        assert_eq!(message(&a.stderr), message(&b.stderr), "{args:?}");
        a
    };
    assert_eq!(same(&["exec", "sh", "-c", "exit 42"]).code, 42);
    assert_eq!(same(&["exec", "sh", "-c", "kill -9 $$"]).code, 137);
    assert_eq!(same(&["exec", "no-such-program"]).code, 255);
    same(&["exec", "/etc/passwd"]);
    same(&[
        "--cwd",
        "/usr",
        "--env",
        "X=y",
        "--user",
        "1000:1000",
        "exec",
        "sh",
        "-c",
        "pwd; echo $X; id; cat /proc/1/comm",
    ]);
    assert_eq!(ours.run(["exec", "nobody", "true"]).code, reference.run(["exec", "nobody", "true"]).code);
    for runtime in [&ours, &reference] {
        runtime.ok(["delete", "--force", "exec"]);
    }
}

#[test]
fn pause_stops_the_clock_and_resume_lets_it_go_on() {
    let bundle = Bundle::sh("while :; do echo tick; sleep 0.1; done");
    let runtime = Runtime::kata();
    let out = fs::File::create(bundle.path().join("out")).unwrap();
    let status = runtime.command(["run", "--detach", "--bundle", bundle.arg(), "pause"]).stdout(out).status().unwrap();
    assert!(status.success());
    let size = || fs::metadata(bundle.path().join("out")).unwrap().len();
    runtime.ok(["pause", "pause"]);
    assert_eq!(runtime.state_of("pause")["status"], "paused");
    std::thread::sleep(Duration::from_millis(500));
    let before = size();
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(size(), before);
    let refused = runtime.run(["exec", "pause", "true"]);
    assert!(refused.code == 255 && refused.stderr.contains("paused"), "{}", refused.stderr);
    runtime.ok(["resume", "pause"]);
    let end = std::time::Instant::now() + e2e::DEADLINE;
    while size() == before {
        assert!(std::time::Instant::now() < end, "it does not go on");
        std::thread::sleep(Duration::from_millis(100));
    }
    runtime.ok(["delete", "--force", "pause"]);
}

#[test]
fn limits_are_changed_and_what_is_used_is_told() {
    let mut bundle = Bundle::new(["sleep", "1000"]);
    bundle.edit(|config| config["linux"]["resources"]["memory"] = serde_json::json!({"limit": 64 << 20}));
    let runtime = Runtime::kata();
    runtime.ok(["run", "--detach", "--bundle", bundle.arg(), "limits"]);
    let told =
        || -> serde_json::Value { serde_json::from_str(&runtime.ok(["events", "--stats", "limits"]).text()).unwrap() };
    let before = told();
    assert_eq!((&before["type"], &before["id"]), (&"stats".into(), &"limits".into()), "{before}");
    assert_eq!(before["data"]["memory"]["usage"]["limit"], 64 << 20);
    assert!(before["data"]["memory"]["usage"]["usage"].as_u64().unwrap() > 0 && before["data"]["pids"]["current"] == 1);
    runtime.ok(["update", "--memory", "32m", "--pids-limit", "20", "limits"]);
    let after = told();
    assert_eq!(
        (&after["data"]["memory"]["usage"]["limit"], &after["data"]["pids"]["limit"]),
        (&(32 << 20).into(), &20.into())
    );
    let refused = runtime.run(["update", "--cpu-rt-period", "1000", "limits"]);
    assert!(refused.code == 1 && refused.stderr.contains("realtimePeriod"), "{}", refused.stderr);
    runtime.ok(["pause", "limits"]);
    let mut waiting = Background::start(&mut runtime.command(["exec", "--ignore-paused", "limits", "echo", "thawed"]));
    std::thread::sleep(Duration::from_millis(300));
    assert!(!waiting.has_ended());
    runtime.ok(["resume", "limits"]);
    let waited = waiting.finish();
    assert_eq!((waited.code, waited.text().as_str()), (0, "thawed\n"), "{}", waited.stderr);
    runtime.ok(["delete", "--force", "limits"]);
}

#[test]
fn list_and_ps_show_what_runs() {
    let bundle = Bundle::new(["sleep", "1000"]);
    let runtime = Runtime::kata();
    runtime.ok(["run", "--detach", "--bundle", bundle.arg(), "listed"]);
    let list: serde_json::Value = serde_json::from_str(&runtime.ok(["list", "--format", "json"]).text()).unwrap();
    assert_eq!(list[0]["id"], "listed");
    assert_eq!(list[0]["status"], "running");
    assert_eq!(runtime.ok(["list", "--quiet"]).text(), "listed\n");
    let table = runtime.ok(["ps", "listed"]).text();
    assert!(table.starts_with("UID") && table.contains("sleep 1000"), "{table}");
    let pids: Vec<u32> = serde_json::from_str(&runtime.ok(["ps", "--format", "json", "listed"]).text()).unwrap();
    // The host's, as runc's are.
    assert_eq!(serde_json::json!(pids), serde_json::json!([runtime.state_of("listed")["pid"]]));
    runtime.ok(["delete", "--force", "listed"]);
    assert_eq!(runtime.ok(["list", "--quiet"]).text(), "");
}

#[test]
fn killing_the_process_on_the_host_kills_the_container() {
    let bundle = Bundle::new(["sleep", "1000"]);
    let runtime = Runtime::kata();
    runtime.ok(["run", "--detach", "--bundle", bundle.arg(), "standin"]);
    let pid = runtime.state_of("standin")["pid"].to_string();
    std::process::Command::new("kill").args(["-KILL", &pid]).status().unwrap();
    // As an engine does whose child it is.
    let stat = std::path::PathBuf::from(format!("/proc/{pid}/stat"));
    let end = std::time::Instant::now() + e2e::DEADLINE;
    while fs::read_to_string(&stat).is_ok_and(|stat| !stat.contains(") Z")) {
        assert!(std::time::Instant::now() < end, "the killed process does not end");
        std::thread::sleep(Duration::from_millis(1));
    }
    runtime.ok(["delete", "standin"]);
}

#[test]
fn a_way_up_to_the_root_leaves_the_mounts_to_who_comes_later() {
    let bundle = Bundle::sh("ls /etc/.. >/dev/null; cd /usr; cd ..; exec sleep 1000");
    let mut shown = Vec::new();
    for runtime in [Runtime::kata(), Runtime::runc()] {
        runtime.ok(["run", "--detach", "--bundle", bundle.arg(), "up"]);
        let sleeping = || runtime.run(["exec", "up", "grep", "-c", "sleep", "/proc/1/cmdline"]);
        let end = std::time::Instant::now() + e2e::DEADLINE;
        while sleeping().text() != "1\n" {
            assert!(std::time::Instant::now() < end, "no /proc: {}", sleeping().stderr);
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
        // A way up from a process that was executed counts as well.
        runtime.ok(["exec", "up", "ls", "/etc/.."]);
        let roots = runtime.ok([
            "exec",
            "up",
            "sh",
            "-c",
            "cut -d' ' -f5 /proc/self/mountinfo | grep -cx /; ls /proc/self/mountinfo",
        ]);
        runtime.ok(["delete", "--force", "up"]);
        shown.push(roots.text());
    }
    assert_eq!(shown[0], shown[1]);
}
