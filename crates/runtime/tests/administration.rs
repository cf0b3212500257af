//! What an administrator asks where no virtual machine is started: the answers, and what is refused.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests too")]

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
};

use serde_json::Value;

struct Ran {
    code: i32,
    out: String,
    err: String,
}

impl Ran {
    fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap()
    }
}

/// `kata-runtime --root DIR/state ARGS...`.
fn run(dir: &Path, arguments: &[&str]) -> Ran {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kata-runtime"));
    command.arg("--root").arg(dir.join("state")).args(arguments).stdin(Stdio::null());
    let output = command.env("KATA_CONF_FILE", "").output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Ran { code: output.status.code().unwrap(), out: text(output.stdout), err: text(output.stderr) }
}

#[test]
fn checks_can_be_listed_chosen_and_read_by_programs() {
    let dir = tempfile::tempdir().unwrap();
    for alias in ["check", "kata-check"] {
        let list = run(dir.path(), &[alias, "list"]);
        assert!(
            list.code == 0 && list.out.contains("vhost-vsock") && list.out.contains("user-namespaces"),
            "{}",
            list.out
        );
    }
    let some = run(dir.path(), &["check", "--no-network-checks", "--verbose", "cpu", "kernel"]);
    assert_eq!(some.code, 0, "{}", some.out);
    assert_eq!(some.out.lines().count(), 4, "{}", some.out);
    assert!(
        some.out.ends_with("running Kata Containers\nSystem can currently create Kata Containers\n"),
        "{}",
        some.out
    );
    let json = run(dir.path(), &["check", "--json", "cpu"]).json();
    assert_eq!((json["capable"].as_bool(), json["checks"][0]["verdict"].as_str()), (Some(true), Some("works")));
    let unknown = run(dir.path(), &["check", "weather"]);
    assert!(
        unknown.code == 1 && unknown.err.contains("there is no check \\\"weather\\\"; there are cpu"),
        "{}",
        unknown.err
    );
}

#[test]
fn a_check_that_fails_names_the_remedy_and_fails_the_command() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("configuration.toml");
    fs::write(&file, "[hypervisor.qemu]\npath = \"/bin/true\"\nno_such_key = 1\n").unwrap();
    let config = file.to_str().unwrap();
    let ran = run(dir.path(), &["--config", config, "check", "configuration"]);
    assert_eq!(ran.code, 1);
    for words in ["fails  configuration", "no_such_key", "remedy: ", "System cannot currently create"] {
        assert!(ran.out.contains(words), "{words}: {}", ran.out);
    }
    fs::write(&file, "[hypervisor.qemu]\npath = \"/bin/true\"\n").unwrap();
    let ran = run(dir.path(), &["--config", config, "check", "qemu"]);
    assert!(ran.code == 1 && ran.out.contains("fails  qemu") && ran.out.contains("/bin/true"), "{}", ran.out);
}

#[test]
fn values_in_force_say_where_they_come_from() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("configuration.toml");
    fs::write(&file, "[hypervisor.qemu]\ndefault_memory = 300\nenable_annotations = [\"default_memory\"]\n").unwrap();
    let config = file.to_str().unwrap();
    let all = run(dir.path(), &["--config", config, "config", "explain"]);
    assert_eq!(all.code, 0, "{}", all.err);
    let from = format!("hypervisor.qemu.default_memory = 300\n    from: {config}:2\n");
    assert!(all.out.contains(&from) && all.out.contains("named by --config"), "{}", all.out);
    assert!(all.out.contains("a pod may set it by io.katacontainers.config.hypervisor.default_memory"), "{}", all.out);
    let one = run(dir.path(), &["--config", config, "config", "explain", "--json", "dial_timeout"]).json();
    assert_eq!((one["keys"][0]["value"].as_str(), one["keys"][0]["origin"].as_str()), (Some("60"), Some("default")));

    let unknown = run(dir.path(), &["config", "explain", "default_mem"]);
    assert!(
        unknown.code == 1 && unknown.err.contains("did you mean hypervisor.qemu.default_memory"),
        "{}",
        unknown.err
    );
    let unreadable = run(dir.path(), &["--config", "/no/such.toml", "config", "explain"]);
    assert!(unreadable.code == 1 && unreadable.err.contains("/no/such.toml"), "{}", unreadable.err);
    let paths = run(dir.path(), &["--show-default-config-paths"]);
    assert!(paths.code == 0 && paths.out.starts_with("/etc/kata-containers/configuration.toml\n"), "{}", paths.out);
}

#[test]
fn the_environment_has_katas_names() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("configuration.toml");
    fs::write(&file, "[hypervisor.qemu]\nkernel = \"/no/kernel\"\n").unwrap();
    let config = file.to_str().unwrap();
    for alias in ["env", "kata-env"] {
        let json = run(dir.path(), &["--config", config, alias, "--json"]).json();
        assert_eq!(json["Runtime"]["Config"]["Path"], config);
        assert_eq!(json["Agent"]["DialTimeout"], 60);
        assert!(json["Host"]["Memory"]["Total"].as_u64().unwrap() > 0);
    }
    let toml = run(dir.path(), &["--config", config, "env"]);
    assert!(toml.code == 0 && toml.out.contains("[Runtime.Version.Version]\n"), "{}", toml.out);
    // What is not there is empty, and said.
    assert!(toml.err.contains("level=warning") && toml.err.contains("/no/kernel"), "{}", toml.err);
}

#[test]
fn nothing_is_collected_where_nothing_is_and_what_cannot_be_read_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let none = run(dir.path(), &["gc", "--dry-run"]);
    assert_eq!((none.code, none.out.as_str()), (0, "nothing is left over\n"), "{}", none.err);
    fs::create_dir_all(dir.path().join("state/odd")).unwrap();
    fs::write(dir.path().join("state/odd/state.json"), "{").unwrap();
    let odd = run(dir.path(), &["gc"]);
    assert!(odd.code == 0 && odd.err.contains("is left alone"), "{}", odd.err);
    assert!(dir.path().join("state/odd/state.json").exists());
    fs::remove_dir_all(dir.path().join("state")).unwrap();
    fs::write(dir.path().join("state"), "").unwrap();
    let broken = run(dir.path(), &["gc"]);
    assert!(broken.code == 1 && broken.err.contains("state"), "{}", broken.err);
}

#[test]
fn an_unknown_sandbox_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    for arguments in [&["timeline", "nobody"][..], &["console", "nobody"], &["timeline", "--json", "nobody"]] {
        let ran = run(dir.path(), arguments);
        assert!(ran.code == 1 && ran.err.contains("nobody") && ran.err.contains("does not exist"), "{}", ran.err);
    }
    let ran = run(dir.path(), &["timeline"]);
    assert!(ran.code == 1 && ran.err.contains("requires exactly 1 argument"), "{}", ran.err);
}
