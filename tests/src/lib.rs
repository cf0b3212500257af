//! What the end-to-end tests share: a bundle, a runtime, and commands with a deadline.
//!
//! The tests run the staged product (`make stage`) against a Debian root file system, both of which `make test` makes. Each
//! test has state directories of its own, and what it compares with is runc on the same bundle.
//!
//! `KATA_CONF_FILE` chooses what all of them run with: another kernel, guest image, machine. A test that needs a setting of its own
//! adds it to that ([`Runtime::kata_with`]).
#![allow(clippy::unwrap_used, clippy::expect_used)]

pub mod agent;
mod command;
pub mod debugger;
pub mod fault;
mod guest;
pub mod matrix;
mod program;
mod snapshot;
mod terminal;

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

pub use command::{Background, Output, run, run_with_input};
pub use guest::{disk_image, needs_monolithic_kernel};
pub use program::static_program;
pub use snapshot::Snapshot;
pub use terminal::Terminal;

/// Longest any command of a test may take; under emulation on a busy machine a start takes seconds, in the lab's machine ten times as long.
pub const DEADLINE: Duration = Duration::from_secs(400);

/// Where the product is staged, if it is.
pub fn stage_directory() -> PathBuf {
    let default = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/kata");
    env::var_os("KATA_STAGE").map_or_else(default, PathBuf::from)
}

/// The staged product.
pub fn stage() -> PathBuf {
    let stage = stage_directory();
    assert!(stage.join("bin/kata-runtime").exists(), "{} is not built; run `make test`", stage.display());
    fs::canonicalize(stage).unwrap()
}

/// Where what was downloaded or takes long to build is kept.
pub fn cache() -> PathBuf {
    env::var_os("KATA_CACHE").map(PathBuf::from).unwrap_or_else(|| {
        let home = || PathBuf::from(env::var_os("HOME").unwrap()).join(".cache");
        env::var_os("XDG_CACHE_HOME").map_or_else(home, PathBuf::from).join("kata")
    })
}

/// The Debian root file system; shared by all tests, so bundles use it read-only unless they bring their own.
pub fn rootfs() -> PathBuf {
    let rootfs = env::var_os("KATA_ROOTFS").map_or_else(|| cache().join("rootfs"), PathBuf::from);
    assert!(rootfs.join("bin").exists(), "there is no root file system in {}; run `make test`", rootfs.display());
    rootfs
}

/// An OCI runtime with a state directory of its own.
#[derive(Debug)]
pub struct Runtime {
    /// What it is called in messages.
    pub name: &'static str,
    program: PathBuf,
    state: tempfile::TempDir,
    /// Its configuration, unless it is everybody's.
    configuration: Option<PathBuf>,
    /// Where that is, if it was made for it.
    _made: Option<tempfile::TempDir>,
}

impl Runtime {
    /// Ours.
    pub fn kata() -> Self {
        Self::new("kata-runtime", stage().join("bin/kata-runtime"))
    }

    /// The reference.
    pub fn runc() -> Self {
        Self::new("runc", "runc".into())
    }

    fn new(name: &'static str, program: PathBuf) -> Self {
        Self { name, program, state: tempfile::tempdir().unwrap(), configuration: None, _made: None }
    }

    /// Ours, with a configuration file in place of the one that all tests run with.
    pub fn kata_configured(file: &Path) -> Self {
        let mut runtime = Self::kata();
        runtime.configuration = Some(file.into());
        runtime
    }

    /// Ours, with `settings` (TOML) beyond the configuration that all tests run with.
    pub fn kata_with(settings: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let drop_ins = directory.path().join("config.d");
        fs::create_dir(&drop_ins).unwrap();
        for (number, source) in config::Config::load(None).unwrap().sources.iter().enumerate() {
            fs::copy(source, drop_ins.join(format!("{number:03}.toml"))).unwrap();
        }
        fs::write(drop_ins.join("test.toml"), settings).unwrap();
        fs::write(directory.path().join("configuration.toml"), "").unwrap();
        let mut runtime = Self::kata_configured(&directory.path().join("configuration.toml"));
        runtime._made = Some(directory);
        runtime
    }

    /// The state directory.
    pub fn root(&self) -> PathBuf {
        self.state.path().join("root")
    }

    /// The command `NAME --root STATE ARGS…`, its standard input empty.
    pub fn command<S: AsRef<std::ffi::OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("--root").arg(self.root()).args(args).stdin(Stdio::null());
        if let Some(file) = &self.configuration {
            command.env(config::FILE_VARIABLE, file);
        }
        command
    }

    /// Runs it to its end.
    pub fn run<S: AsRef<std::ffi::OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Output {
        run(&mut self.command(args))
    }

    /// Runs it to its end and expects success.
    #[track_caller]
    pub fn ok<S: AsRef<std::ffi::OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Output {
        let output = self.run(args);
        assert_eq!(output.code, 0, "{}: {}", self.name, output.stderr);
        output
    }

    /// The state of a container, as `state` prints it.
    pub fn state_of(&self, id: &str) -> serde_json::Value {
        serde_json::from_str(&self.ok(["state", id]).text()).unwrap()
    }

    /// What the state file of one of our containers holds.
    pub fn state_file(&self, id: &str) -> serde_json::Value {
        serde_json::from_slice(&fs::read(self.root().join(id).join("state.json")).unwrap()).unwrap()
    }

    /// Waits until a container has this status.
    pub fn wait_for(&self, id: &str, status: &str) {
        let end = std::time::Instant::now() + DEADLINE;
        while self.state_of(id)["status"] != status {
            assert!(std::time::Instant::now() < end, "{id} is not {status}: {}", self.state_of(id));
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Runtime {
    fn drop(&mut self) {
        // A test that failed half-way must not leave machines behind.
        for entry in fs::read_dir(self.root()).into_iter().flatten().flatten() {
            let _ = self.command(["delete", "--force"]).arg(entry.file_name()).stderr(Stdio::null()).status();
        }
    }
}

/// A bundle in a directory of its own.
#[derive(Debug)]
pub struct Bundle {
    dir: tempfile::TempDir,
    config: serde_json::Value,
}

impl Bundle {
    /// A bundle that runs `args` on the Debian root file system, read-only, without a terminal.
    pub fn new<S: AsRef<str>>(args: impl IntoIterator<Item = S>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        Runtime::kata().ok(["spec", "--bundle", dir.path().to_str().unwrap()]);
        let config = serde_json::from_slice(&fs::read(dir.path().join("config.json")).unwrap()).unwrap();
        let mut bundle = Self { dir, config };
        bundle.edit(|config| {
            config["process"]["terminal"] = false.into();
            config["process"]["args"] = args.into_iter().map(|arg| arg.as_ref().to_owned()).collect();
            config["root"] = serde_json::json!({"path": rootfs(), "readonly": true});
        });
        bundle
    }

    /// A bundle that runs a shell script.
    pub fn sh(script: &str) -> Self {
        Self::new(["sh", "-c", script])
    }

    /// Changes its configuration.
    pub fn edit(&mut self, change: impl FnOnce(&mut serde_json::Value)) -> &mut Self {
        change(&mut self.config);
        fs::write(self.dir.path().join("config.json"), self.config.to_string()).unwrap();
        self
    }

    /// Has it join a namespace that exists.
    pub fn join(&mut self, kind: &str, path: &str) -> &mut Self {
        self.edit(|config| {
            let namespaces = config["linux"]["namespaces"].as_array_mut().unwrap();
            let of_kind = namespaces.iter_mut().find(|namespace| namespace["type"] == kind);
            of_kind.expect("the bundle has a namespace of that type")["path"] = path.into();
        })
    }

    /// Has its container accounted for in a cgroup of the host.
    pub fn cgroup(&mut self, path: &str) -> &mut Self {
        self.edit(|config| config["linux"]["cgroupsPath"] = path.into())
    }

    /// Adds a mount.
    pub fn mount(&mut self, mount: serde_json::Value) -> &mut Self {
        self.edit(|config| config["mounts"].as_array_mut().unwrap().push(mount))
    }

    /// Its directory.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Its directory, as an argument.
    pub fn arg(&self) -> &str {
        self.path().to_str().unwrap()
    }
}

/// Runs a bundle under both runtimes and returns (ours, runc's).
pub fn both(bundle: &Bundle) -> (Output, Output) {
    let go = |runtime: Runtime| runtime.run(["run", "--bundle", bundle.arg(), "both"]);
    (go(Runtime::kata()), go(Runtime::runc()))
}

/// Asserts that a bundle gives the same bytes and the same exit code under both.
#[track_caller]
pub fn same(bundle: &Bundle) -> Output {
    let (ours, reference) = both(bundle);
    assert_eq!(ours.code, reference.code, "ours: {}\nrunc: {}", ours.stderr, reference.stderr);
    assert_eq!(ours.text(), reference.text(), "ours: {}\nrunc: {}", ours.stderr, reference.stderr);
    ours
}

/// What an error line says, without time and name of the runtime.
pub fn message(stderr: &str) -> String {
    let line = stderr.lines().find(|line| line.contains("level=error")).unwrap_or(stderr);
    let text = line.split_once("msg=").map_or(line, |(_, text)| text);
    text.replace("kata-runtime", "runc")
}
