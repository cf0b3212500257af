//! The command line where no virtual machine is started: what is refused, how, and that it leaves nothing behind.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests too")]

use std::{
    fs,
    path::Path,
    process::{Command, Output, Stdio},
};

use tempfile::TempDir;

/// A state directory, a bundle and a configuration of their own.
struct Place {
    dir: TempDir,
}

struct Ran {
    code: i32,
    out: String,
    err: String,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("bundle/rootfs")).unwrap();
        let place = Self { dir };
        let made = place.run(&["spec", "--bundle", &place.bundle()]);
        assert_eq!(made.code, 0, "{}", made.err);
        place
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).to_str().unwrap().to_owned()
    }

    fn bundle(&self) -> String {
        self.path("bundle")
    }

    /// Changes the bundle's configuration.
    fn edit(&self, change: impl FnOnce(&mut serde_json::Value)) {
        let path = self.path("bundle/config.json");
        let mut config = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        change(&mut config);
        fs::write(&path, config.to_string()).unwrap();
    }

    fn run(&self, arguments: &[&str]) -> Ran {
        let Output { status, stdout, stderr } = Command::new(env!("CARGO_BIN_EXE_kata-runtime"))
            .arg("--root")
            .arg(self.dir.path().join("state"))
            .args(arguments)
            .stdin(Stdio::null())
            .env("KATA_CONF_FILE", "")
            .output()
            .unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Ran { code: status.code().unwrap(), out: text(stdout), err: text(stderr) }
    }

    /// Runs the bundle, which must be refused with exit code 1 and one error line, and leave no state.
    #[track_caller]
    fn refused(&self, options: &[&str], words: &[&str]) {
        for command in ["run", "create"] {
            let bundle = self.bundle();
            let mut arguments = vec![command, "--bundle", &bundle];
            arguments.extend(options);
            let ran = self.run(&arguments);
            assert_eq!(ran.code, 1, "{command}: {}", ran.err);
            let prefix = format!("level=error msg=\"kata-runtime {command} failed: ");
            assert!(ran.err.contains(&prefix) && ran.err.lines().count() == 1, "{}", ran.err);
            for word in words {
                assert!(ran.err.contains(word), "{command}: {word:?} is not in {}", ran.err);
            }
            assert!(!Path::new(&self.path("state/c")).exists(), "{command} left a state directory");
        }
    }

    fn without_terminal() -> Self {
        let place = Self::new();
        place.edit(|config| config["process"]["terminal"] = false.into());
        place
    }
}

#[test]
fn a_bundle_that_is_not_one_is_refused_with_file_and_field() {
    let place = Place::without_terminal();
    let config = place.path("bundle/config.json");
    place.edit(|config| config["process"]["args"] = serde_json::json!([]));
    place.refused(&["c"], &["config.json", "process.args"]);
    place.edit(|config| config["process"]["args"] = serde_json::json!(["sh"]));
    place.edit(|config| config["process"]["cwd"] = "here".into());
    place.refused(&["c"], &["config.json", "process.cwd", "absolute"]);
    place.edit(|config| config["process"]["cwd"] = "/".into());
    place.edit(|config| config["root"]["path"] = "nowhere".into());
    place.refused(&["c"], &["config.json", "root.path", "nowhere"]);
    place.edit(|config| config["root"]["path"] = "rootfs".into());
    place.edit(|config| {
        let mount = serde_json::json!({"destination": "/m", "type": "bind", "source": "/no/such", "options": ["bind"]});
        config["mounts"].as_array_mut().unwrap().push(mount);
    });
    place.refused(&["c"], &["config.json", "mounts[7].source", "/no/such"]);
    fs::write(&config, "{\"ociVersion\": ").unwrap();
    place.refused(&["c"], &["config.json"]);
    fs::remove_file(&config).unwrap();
    place.refused(&["c"], &["config.json", "No such file"]);
    fs::remove_dir_all(place.bundle()).unwrap();
    place.refused(&["c"], &["bundle", "No such file"]);
}

#[test]
fn names_that_cannot_be_are_refused() {
    let place = Place::without_terminal();
    for id in ["a/b", "..", "", "ä"] {
        place.refused(&[id], &["container id"]);
    }
    fs::create_dir_all(place.path("state/used")).unwrap();
    place.refused(&["used"], &["used", "already exists"]);
}

#[test]
fn options_that_cannot_be_honoured_are_refused_before_anything_starts() {
    let place = Place::without_terminal();
    place.refused(&["--preserve-fds", "3", "c"], &["--preserve-fds 3", "only 0 is accepted"]);
    place.refused(&["--pid-file", &place.path("no/pid"), "c"], &["--pid-file", "does not exist"]);
    place.refused(
        &["--console-socket", "/nope", "c"],
        &["cannot use console socket if kata-runtime will not detach or allocate tty"],
    );

    let with_terminal = Place::new();
    let bundle = with_terminal.bundle();
    let ran = with_terminal.run(&["create", "-b", &bundle, "c"]);
    assert!(
        ran.err.contains("cannot allocate tty if kata-runtime will detach without setting console socket"),
        "{}",
        ran.err
    );
    let ran = with_terminal.run(&["create", "-b", &bundle, "--console-socket", "/no/socket", "c"]);
    assert!(ran.code == 1 && ran.err.contains("/no/socket"), "{}", ran.err);
    assert!(!Path::new(&with_terminal.path("state/c")).exists());
}

#[test]
fn what_only_a_host_could_do_is_refused_by_name() {
    let place = Place::without_terminal();
    for command in ["checkpoint", "restore"] {
        let ran = place.run(&[command, "--image-path", "/i", "c"]);
        assert!(ran.code == 1 && ran.err.contains(&format!("{command} is not supported")), "{}", ran.err);
    }
    if !Path::new("/run/systemd/system").exists() {
        for options in [&["--systemd-cgroup"][..], &["--cgroup-manager", "systemd"]] {
            let bundle = place.bundle();
            let ran = place.run(&[options, &["create", "--bundle", &bundle, "c"]].concat());
            assert!(ran.code == 1 && ran.err.contains("systemd not running on this host"), "{}", ran.err);
        }
    }
    for arguments in [&["update", "--memory", "1x", "c"][..], &["events", "c"]] {
        let ran = place.run(arguments);
        assert!(ran.code == 1 && ran.err.contains("does not exist"), "{}", ran.err);
    }
}

#[test]
fn a_configuration_that_is_wrong_or_names_what_is_not_there_is_refused() {
    let place = Place::without_terminal();
    let file = place.path("configuration.toml");
    let with = |text: &str| {
        fs::write(&file, text).unwrap();
        let bundle = place.bundle();
        let ran = place.run(&["--config", &file, "run", "-b", &bundle, "c"]);
        assert!(ran.code == 1 && !Path::new(&place.path("state/c")).exists(), "{}", ran.err);
        ran.err
    };
    let message = with("[hypervisor.qemu]\nno_such_key = 1\n");
    assert!(message.contains("configuration.toml:2") && message.contains("no_such_key"), "{message}");
    let message = with("[hypervisor.qemu]\npath = \"/no/qemu\"\n");
    assert!(message.contains("/no/qemu"), "{message}");
    fs::remove_file(&file).unwrap();
    let bundle = place.bundle();
    let ran = place.run(&["--config", &file, "run", "-b", &bundle, "c"]);
    assert!(ran.code == 1 && ran.err.contains("configuration.toml"), "{}", ran.err);
}

#[test]
fn a_container_that_does_not_exist_is_said_not_to() {
    let place = Place::new();
    for command in ["start", "state", "kill", "delete", "ps", "pause", "resume"] {
        let ran = place.run(&[command, "c"]);
        assert!(ran.code == 1 && ran.err.contains("does not exist"), "{command}: {}", ran.err);
    }
    let ran = place.run(&["exec", "c", "true"]);
    assert!(
        ran.code == 255 && ran.err.contains("msg=\"exec failed: ") && ran.err.contains("does not exist"),
        "{}",
        ran.err
    );
    let ran = place.run(&["delete", "--force", "c"]);
    assert!(ran.code == 0 && ran.err.is_empty() && ran.out.is_empty(), "{}", ran.err);
    assert_eq!(place.run(&["list"]).out, "ID          PID         STATUS      BUNDLE      CREATED     OWNER\n");
    assert_eq!(place.run(&["list", "--format", "json"]).out, "null\n");
    assert_eq!(place.run(&["list", "-q"]).out, "");
}

#[test]
fn wrong_usage_is_answered_as_runc_answers() {
    let place = Place::new();
    let cases: [(&[&str], i32, &str); 8] = [
        (&["run"], 1, "kata-runtime: \\\"run\\\" requires exactly 1 argument(s)"),
        (&["start", "a", "b"], 1, "kata-runtime: \\\"start\\\" requires exactly 1 argument(s)"),
        (&["exec"], 1, "kata-runtime: \\\"exec\\\" requires a minimum of 1 argument(s)"),
        (&["kill", "a", "b", "c"], 1, "kata-runtime: \\\"kill\\\" requires a maximum of 2 argument(s)"),
        (&["frob"], 3, "No help topic for 'frob'"),
        (&["checkpoint", "c"], 1, "checkpoint is not supported"),
        (&["run", "--frob", "c"], 1, "--frob"),
        (&["--log-format", "xml", "list"], 1, "invalid log-format: xml"),
    ];
    for (arguments, code, words) in cases {
        let ran = place.run(arguments);
        assert!(ran.code == code && ran.err.contains(words), "{arguments:?}: {} {}", ran.code, ran.err);
    }
}

#[test]
fn errors_go_to_the_log_file_and_bare_to_standard_error() {
    let place = Place::new();
    let log = place.path("log");
    let ran = place.run(&["--log", &log, "--log-format", "json", "run", "--bundle", "/no/such", "c"]);
    assert_eq!(ran.code, 1);
    assert!(ran.err.starts_with("kata-runtime run failed: "), "{}", ran.err);
    let line: serde_json::Value = serde_json::from_str(fs::read_to_string(&log).unwrap().trim()).unwrap();
    assert_eq!(line["level"], "error");
    assert_eq!(line["msg"], ran.err.trim_end());
    assert!(line["time"].as_str().unwrap().starts_with("20"));
}

#[test]
fn the_version_and_the_features_are_for_programs_too() {
    let place = Place::new();
    let version = place.run(&["--version"]);
    assert!(version.out.starts_with("kata-runtime version ") && version.out.contains("\nspec: 1."), "{}", version.out);
    assert_eq!(place.run(&["version"]).out, version.out);
    let features: serde_json::Value = serde_json::from_str(&place.run(&["features"]).out).unwrap();
    assert_eq!(features["linux"]["cgroup"]["v2"], true);
}

#[test]
fn a_spec_is_never_written_over_another() {
    let place = Place::new();
    let ran = place.run(&["spec", "-b", &place.bundle()]);
    assert!(ran.code == 1 && ran.err.contains("File config.json exists. Remove it first"), "{}", ran.err);
}
