//! Docker, of several versions, each on a machine of its own with its containerd.

use std::{
    fs,
    io::{Read, Write},
    os::unix::net::UnixStream,
    path::PathBuf,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use e2e::Output;
use serde_json::{Value, json};

use crate::{Client, Handler, host::Host, images};

/// The versions that the tests know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Release {
    /// Debian bookworm's. It knows runtimes by their path only.
    V20,
    /// Debian trixie's.
    V26,
    /// Debian sid's.
    V28,
}

impl Release {
    fn unpacked(self) -> PathBuf {
        images::unpacked(match self {
            Self::V20 => "docker-20",
            Self::V26 => "docker-26",
            Self::V28 => "docker-28",
        })
    }
}

/// How Docker finds a runtime.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Door {
    /// By its type: its shim is containerd's.
    Shim,
    /// By the path of its command line, which containerd's shim for runc calls.
    Path,
}

/// A running Docker; everything of it is gone when it is dropped.
#[derive(Debug)]
pub struct Docker {
    /// Where it runs.
    pub host: Host,
    /// Which one it is.
    pub release: Release,
    /// How it finds runtimes.
    pub door: Door,
}

/// A case for Docker.
pub type Case = fn(&Docker, Handler) -> Value;

impl Client for Docker {
    const PROGRAM: &'static str = "docker";

    fn command<S: AsRef<str>>(&self, args: impl IntoIterator<Item = S>) -> Command {
        self.host.command("docker", args.into_iter().map(|arg| arg.as_ref().to_owned()))
    }

    fn log(&self) -> String {
        let tail = |name: &str, count: usize| {
            let text = fs::read_to_string(self.file(name)).unwrap_or_default();
            let lines: Vec<&str> = text.lines().filter(|line| !line.contains("loading plugin")).collect();
            lines[lines.len().saturating_sub(count)..].join("\n")
        };
        format!("{}\n{}", tail("containerd.log", 40), tail("dockerd.log", 30))
    }
}

impl Docker {
    /// Starts one that has the images of the tests.
    pub fn start(release: Release, door: Door) -> Self {
        let unpacked = release.unpacked();
        let programs = [Some(unpacked.join("usr/bin")), Some(unpacked.join("usr/sbin")), crate::kata_programs()];
        let host = Host::start(&programs.into_iter().flatten().collect::<Vec<_>>());
        let docker = Self { host, release, door };
        let directory = docker.host.directory().display().to_string();
        let containerd = format!(
            "version = 2\nroot = \"{directory}/lib\"\nstate = \"/run/containerd\"\ndisabled_plugins = \
             [\"io.containerd.grpc.v1.cri\", \"io.containerd.cri.v1.runtime\", \"io.containerd.internal.v1.opt\"]\n[debug]\n  level = \"debug\"\n"
        );
        fs::write(docker.file("containerd.toml"), containerd).unwrap();
        let mut daemon = json!({
            "data-root": format!("{directory}/docker"),
            "exec-root": "/run/docker",
            "pidfile": "/run/docker.pid",
            "hosts": ["unix:///run/docker.sock"],
            "containerd": "/run/containerd/containerd.sock",
            "storage-driver": "overlay2",
            // Its containers' groups carry the machine's name.
            "cgroup-parent": format!("/{}", docker.host.name()),
            // The machine has nobody to ask.
            "dns": [crate::names::ADDRESS],
            // Not every release comes with one.
            "init-path": Release::V26.unpacked().join("usr/bin/tini-static"),
        });
        if let Some(programs) = crate::kata_programs().filter(|_| door == Door::Path) {
            daemon["runtimes"] = json!({"kata": {"path": programs.join("kata-runtime")}});
        }
        fs::write(docker.file("daemon.json"), daemon.to_string()).unwrap();
        // It asks for the cgroups of its own that a package's scripts would have made, and for nothing else.
        docker.spawn("containerd", "containerd --config DIR/containerd.toml");
        docker.wait("ctr", &["version"]);
        docker.spawn("dockerd", "dockerd --config-file DIR/daemon.json");
        docker.wait("docker", &["version"]);
        let own = docker.file("images.tar");
        fs::write(&own, images::archive_once()).unwrap();
        docker.ok(["load", "--quiet", "--input", &own.display().to_string()]);
        fs::remove_file(own).unwrap();
        docker
    }

    fn file(&self, name: &str) -> PathBuf {
        self.host.directory().join(name)
    }

    fn spawn(&self, name: &str, line: &str) {
        let line = line.replace("DIR", &self.host.directory().display().to_string());
        let log = fs::File::options().append(true).create(true).open(self.file(&format!("{name}.log"))).unwrap();
        let out = log.try_clone().unwrap();
        let script = format!("exec {line}");
        let mut child = self.host.command("sh", ["-c", &script]).stdout(out).stderr(log).spawn().unwrap();
        // It ends with its machine.
        thread::spawn(move || child.wait());
    }

    fn wait(&self, program: &str, args: &[&str]) {
        let end = Instant::now() + Duration::from_secs(60);
        while self.host.run(program, args).code != 0 {
            assert!(Instant::now() < end, "{program} {args:?} does not answer: {}", self.log());
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// What Docker calls a runtime.
    pub fn runtime(&self, handler: Handler) -> &'static str {
        match self.door {
            Door::Shim => handler.runtime(),
            Door::Path => handler.name(),
        }
    }

    /// `docker run --runtime HANDLER` with busybox, not yet run: options, the command.
    pub fn run_command(&self, handler: Handler, options: &[&str], args: &[&str]) -> Command {
        self.command([&["run", "--runtime", self.runtime(handler)], options, &[images::BUSYBOX], args].concat())
    }

    /// Runs `docker run --runtime HANDLER` with busybox.
    #[track_caller]
    pub fn run(&self, handler: Handler, options: &[&str], args: &[&str]) -> Output {
        e2e::run(&mut self.run_command(handler, options, args))
    }

    /// Starts a container in the background that runs a script.
    #[track_caller]
    pub fn detached(&self, handler: Handler, options: &[&str], name: &str, script: &str) {
        let options = [&["--detach", "--name", name], options].concat();
        let output = self.run(handler, &options, &["sh", "-c", script]);
        assert_eq!(output.code, 0, "{}{}\n{}", output.text(), output.stderr, self.log());
    }

    /// Removes containers, whatever they do.
    #[track_caller]
    pub fn remove(&self, names: &[&str]) {
        self.ok([&["rm", "--force", "--volumes"], names].concat());
    }

    /// Asks Docker's API.
    #[track_caller]
    pub fn get(&self, path: &str) -> String {
        let mut socket = UnixStream::connect(self.host.seen("/run/docker.sock")).unwrap();
        socket.set_read_timeout(Some(e2e::DEADLINE)).unwrap();
        // The older form of HTTP has no chunks, and ends with the connection.
        write!(socket, "GET {path} HTTP/1.0\r\nHost: docker\r\n\r\n").unwrap();
        let mut answer = String::new();
        socket.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{path}: {answer}"));
        assert!(head.contains(" 200 "), "{path}: {answer}");
        body.into()
    }

    /// What a TCP port says to who connects from the machine; nothing if nobody listens.
    pub fn connect(&self, address: &str, port: u16) -> String {
        let busybox = images::unpacked("busybox").join("usr/bin/busybox");
        self.host.run(&busybox.display().to_string(), &["nc", "-w", "5", address, &port.to_string()]).text()
    }
}
