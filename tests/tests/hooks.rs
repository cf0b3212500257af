//! Hooks at every point of a container's life, beside runc's.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

use std::{fs, path::Path};

use e2e::{Bundle, Runtime, message};
use serde_json::{Value, json};

const POINTS: [&str; 6] = ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"];

/// A hook that appends to DIR/log. In the container that directory is /log.
fn hook(point: &str, dir: &Path, script: &str) -> Value {
    let dir = if point == "startContainer" { "/log".into() } else { dir.display().to_string() };
    json!({"path": "/bin/bash", "args": ["named", "-c", script, point], "env": [format!("DIR={dir}"), "PATH=/usr/bin:/bin"]})
}

/// What a hook writes: where it is, whom it is told of, and whether it finds the process that stands for the container in a network of
/// its own.
const TELLS: &str = r#"
state=$(cat)
[[ $state =~ \"status\":\"([a-z]*)\" ]]; status=${BASH_REMATCH[1]}
[[ $state =~ \"id\":\"([a-z]*)\" ]]; id=${BASH_REMATCH[1]}
[[ $state =~ \"pid\":([0-9]*) ]] && pid=${BASH_REMATCH[1]} || pid=0
net=-
[ "$0" != prestart ] && [ "$0" != createRuntime ] || { [ /proc/$pid/ns/net -ef /proc/self/ns/net ] && net=same || net=other; }
echo "$0 $1 $status $id $net $([[ $state == *\"a\":\"b\"* ]] && echo annotated)" >>$DIR/log
"#;

fn bundle(dir: &Path, hooks: Value) -> Bundle {
    let mut bundle = Bundle::sh("echo ran >>/log/log; cat /made 2>/dev/null; exit 3");
    bundle.edit(|config| {
        config["annotations"] = json!({"a": "b"});
        config["hooks"] = hooks;
    });
    bundle.mount(json!({"destination": "/log", "type": "bind", "source": dir, "options": ["rbind", "rw"]}));
    bundle
}

fn all(dir: &Path) -> Value {
    let hooks = POINTS.map(|point| {
        (point.to_owned(), json!([hook(point, dir, &format!("set one; {TELLS}")), hook(point, dir, TELLS)]))
    });
    Value::Object(hooks.into_iter().collect())
}

fn both(run: impl Fn(&Runtime, &Path) -> String) -> String {
    let [runc, ours] = [Runtime::runc(), Runtime::kata()].map(|runtime| {
        let dir = tempfile::tempdir().unwrap();
        run(&runtime, dir.path())
    });
    assert_eq!(ours, runc);
    ours
}

fn log(dir: &Path) -> String {
    fs::read_to_string(dir.join("log")).unwrap_or_default()
}

/// Without the lines of hooks that runc 1.1 runs too early: it calls those of poststart when it creates a container.
fn without_poststart(log: &str) -> String {
    log.lines().filter(|line| !line.starts_with("poststart")).map(|line| format!("{line}\n")).collect()
}

#[test]
fn all_hooks_of_a_run_are_called_in_order_with_the_state() {
    both(|runtime, dir| {
        let output = runtime.run(["run", "--bundle", bundle(dir, all(dir)).arg(), "c"]);
        assert_eq!(output.code, 3, "{}: {}", runtime.name, output.stderr);
        let log = log(dir);
        if runtime.name != "runc" {
            // The program runs meanwhile, so its own line may stand before, between or after these.
            let place = |line: &str| log.find(line).unwrap_or_else(|| panic!("no {line:?} in {log}"));
            let (first, second) =
                (place("poststart one running c - annotated"), place("poststart  running c - annotated"));
            assert!(place("startContainer  created") < first && first < second, "{log}");
        }
        assert!(
            log.starts_with("prestart one creating c other annotated\nprestart  creating c other annotated\n"),
            "{log}"
        );
        without_poststart(&log)
    });
}

#[test]
fn hooks_come_at_their_commands() {
    both(|runtime, dir| {
        let bundle = bundle(dir, all(dir));
        let mut seen = String::new();
        // The process that a command leaves must not keep the test's pipes open.
        let quiet = |args: &[&str]| {
            let mut command = runtime.command(args);
            command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
            assert!(command.status().unwrap().success(), "{} {args:?}", runtime.name);
        };
        quiet(&["create", "--bundle", bundle.arg(), "c"]);
        seen += &format!("{}--\n", without_poststart(&log(dir)));
        assert!(runtime.name == "runc" || !log(dir).contains("poststart"));
        quiet(&["start", "c"]);
        runtime.wait_for("c", "stopped");
        assert!(log(dir).contains("poststart"));
        seen += &format!("{}--\n", without_poststart(&log(dir)));
        runtime.ok(["delete", "c"]);
        seen += log(dir).lines().last().unwrap();
        seen
    });
}

#[test]
fn a_hook_that_fails_ends_the_container_in_runcs_words() {
    both(|runtime, dir| {
        let mut seen = String::new();
        for point in POINTS {
            let hooks = json!({
                point: [hook(point, dir, "exit 0"), hook(point, dir, "echo why >&2; exit 7"), hook(point, dir, "echo never >>$DIR/log")],
                "poststop": [hook("poststop", dir, "exit 1"), hook("poststop", dir, TELLS)],
            });
            let output = runtime.run(["run", "--bundle", bundle(dir, hooks).arg(), "c"]);
            let failed = output.code != 0 && output.code != 3;
            assert_eq!(failed, point != "poststop", "{} {point}: {}", runtime.name, output.stderr);
            if failed {
                assert!(
                    output.stderr.contains("error running hook #1:"),
                    "{} {point}: {}",
                    runtime.name,
                    output.stderr
                );
            }
            let log = log(dir);
            assert!(!log.contains("never"), "{point}: {log}");
            if runtime.name != "runc" {
                // The specification asks for them in any case; runc passes them over when a creation fails.
                assert!(log.ends_with("poststop  stopped c - annotated\n"), "{point}: {log}");
            }
            let _may_be_absent = fs::remove_file(dir.join("log"));
            assert_eq!(runtime.run(["state", "c"]).code, 1);
            seen += &format!("{point} {failed}\n");
        }
        seen
    });
}

#[test]
fn a_hook_that_takes_too_long_is_killed_and_ends_the_container() {
    for point in ["createRuntime", "startContainer"] {
        let dir = tempfile::tempdir().unwrap();
        let mut slow = hook(point, dir.path(), "exec sleep 1000");
        slow["timeout"] = 1.into();
        let output = Runtime::kata().run(["run", "--bundle", bundle(dir.path(), json!({ point: [slow] })).arg(), "c"]);
        assert_eq!(output.code, 1);
        assert!(message(&output.stderr).contains("within 1 s"), "{}", output.stderr);
    }
}

/// The interfaces that a hook brings are there when the program starts, and what it mounts below the root file system.
#[test]
fn what_hooks_bring_is_the_containers() {
    let name = format!("kh{}", std::process::id());
    let script = format!(
        "state=$(cat); [[ $state =~ \\\"pid\\\":([0-9]*) ]]; pid=${{BASH_REMATCH[1]}}; ip link add {name} type veth peer name eth0 netns $pid; \
         nsenter --net=/proc/$pid/ns/net ip addr add 192.0.2.7/24 dev eth0; nsenter --net=/proc/$pid/ns/net ip link set eth0 up; ip link set {name} up; \
         echo early >$DIR/early; nsenter -m -t $pid mount --bind $DIR/early $DIR/rootfs/early"
    );
    both(|runtime, dir| {
        let hooks = json!({
            "createRuntime": [hook("createRuntime", dir, &script)],
            "createContainer": [hook("createContainer", dir, "echo made >$DIR/source; mount --bind $DIR/source ./made")],
        });
        let mut bundle = bundle(dir, hooks);
        bundle.edit(|config| {
            config["process"]["args"] = json!([
                "bash",
                "-c",
                "read word </made; echo $word; read word </early; echo $word; read mac </sys/class/net/eth0/address && echo eth0"
            ]);
        });
        let rootfs = fs::canonicalize(
            bundle.path().join(
                serde_json::from_slice::<Value>(&fs::read(bundle.path().join("config.json")).unwrap()).unwrap()["root"]
                    ["path"]
                    .as_str()
                    .unwrap(),
            ),
        )
        .unwrap();
        std::os::unix::fs::symlink(rootfs, dir.join("rootfs")).unwrap();
        let places = ["made", "early"].map(|name| dir.join("rootfs").join(name));
        places.iter().for_each(|place| fs::write(place, "").unwrap());
        let output = runtime.run(["run", "--bundle", bundle.arg(), "c"]);
        // The host sees none of the mounts.
        places.iter().for_each(|place| fs::remove_file(place).unwrap());
        assert_eq!(output.text(), "made\nearly\neth0\n", "{}: {}", runtime.name, output.stderr);
        assert_eq!(output.code, 0);
        output.text()
    });
}
