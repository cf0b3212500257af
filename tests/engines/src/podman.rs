//! Podman, which has no daemon: each command of it, and conmon, which it leaves with each container, calls a runtime by its path.

use std::{fs, path::PathBuf, process::Command};

use e2e::Output;
use serde_json::Value;

use crate::{Client, Handler, host::Host, images, kata_programs};

/// A machine with Podman; everything of it is gone when it is dropped.
#[derive(Debug)]
pub struct Podman {
    /// Where it runs.
    pub host: Host,
    runtime: String,
}

/// A case for Podman.
pub type Case = fn(&Podman, Handler) -> Value;

impl Client for Podman {
    const PROGRAM: &'static str = "podman";

    fn command<S: AsRef<str>>(&self, args: impl IntoIterator<Item = S>) -> Command {
        let directory = self.host.directory().display();
        let all = [
            format!("CONTAINERS_CONF={directory}/containers.conf"),
            "podman".into(),
            format!("--root={directory}/storage"),
            "--runroot=/run/containers/storage".into(),
        ];
        let args: Vec<String> = args.into_iter().map(|arg| arg.as_ref().to_owned()).collect();
        // Unless another one is named.
        let runtime = args.first().is_none_or(|arg| arg != "--runtime").then(|| format!("--runtime={}", self.runtime));
        let args = runtime.into_iter().chain(args);
        let mut command = self.host.command("env", all.into_iter().chain(args));
        command.stdin(std::process::Stdio::null());
        command
    }

    fn log(&self) -> String {
        self.host.run("sh", &["-c", "tail -n 20 /run/kata-runtime/*/daemon.log 2>/dev/null"]).text()
    }
}

/// Puts Podman and what is below `more` where they would be if they were installed on a machine.
pub fn install(host: &Host, more: &[PathBuf]) {
    let installed = images::unpacked("podman-4");
    let below: String = more.iter().map(|path| format!(":{}", path.display())).collect();
    host.sh(&format!(
        "mount -t overlay -o lowerdir={installed}/usr:/usr{below} overlay /usr
        mkdir -p /etc/containers; cp -r {installed}/etc/containers/. /etc/containers/",
        installed = installed.display()
    ));
}

/// What Podman is told of a machine that has no systemd and whose hard limits cannot be raised, and more for some tables.
pub fn configuration(network: &str, engine: &str) -> String {
    format!(
        r#"[containers]
default_ulimits = ["nofile=20000:20000", "nproc=20000:20000"]
[network]
network_backend = "netavark"
{network}
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
{engine}
"#
    )
}

impl Podman {
    /// Makes one that has the images of the tests and uses a runtime.
    pub fn start(handler: Handler) -> Self {
        let podman = Self { host: Host::start(&[]), runtime: Self::runtime_of(handler) };
        install(&podman.host, &[images::unpacked("containerd-1.6").join("usr")]);
        let directory = podman.host.directory().display().to_string();
        let engine = format!(
            r#"static_dir = "{directory}/libpod"
volume_path = "{directory}/volumes"
tmp_dir = "/run/libpod"
[engine.runtimes]
"{runtime}" = ["{runtime}"]"#,
            runtime = podman.runtime
        );
        let network = format!("network_config_dir = \"{directory}/networks\"");
        let configuration = configuration(&network, &engine);
        fs::write(podman.file("containers.conf"), configuration).unwrap();
        // Many at once may take long to boot on a small machine.
        podman.host.sh("mkdir -p /etc/kata-containers/config.d; printf '[agent.kata]\\ndial_timeout = 200\\n' >/etc/kata-containers/config.d/test.toml; touch /etc/kata-containers/configuration.toml");
        let own = podman.file("images.tar");
        fs::write(&own, images::archive_once()).unwrap();
        podman.ok(["load", "--quiet", "--input", &own.display().to_string()]);
        fs::remove_file(own).unwrap();
        podman
    }

    /// Path of the program.
    pub fn runtime_of(handler: Handler) -> String {
        let path = match handler {
            Handler::Runc => images::unpacked("containerd-1.6").join("usr/sbin/runc"),
            Handler::Kata => kata_programs().expect("the stage").join("kata-runtime"),
        };
        path.display().to_string()
    }

    fn file(&self, name: &str) -> PathBuf {
        self.host.directory().join(name)
    }

    /// The cgroup that all containers are below, so that it is known whose they are.
    pub fn group(&self) -> String {
        format!("--cgroup-parent=/{}", self.host.name())
    }

    /// `podman run` with busybox, not yet run: options, the command.
    pub fn run_command(&self, options: &[&str], args: &[&str]) -> Command {
        let group = self.group();
        // In a pod the group is the pod's.
        let group: &[&str] = if options.contains(&"--pod") { &[] } else { &[&group] };
        self.command([&["run"], group, options, &[images::BUSYBOX], args].concat())
    }

    /// Runs `podman run` with busybox.
    #[track_caller]
    pub fn run(&self, options: &[&str], args: &[&str]) -> Output {
        e2e::run(&mut self.run_command(options, args))
    }

    /// Starts a container in the background that runs a script.
    #[track_caller]
    pub fn detached(&self, options: &[&str], name: &str, script: &str) {
        let options = [&["--detach", "--name", name], options].concat();
        let output = self.run(&options, &["sh", "-c", script]);
        assert_eq!(output.code, 0, "{}{}\n{}", output.text(), output.stderr, self.log());
    }

    /// What a TCP port says to who connects from the machine; nothing if nobody listens.
    pub fn connect(&self, address: &str, port: u16) -> String {
        let busybox = images::unpacked("busybox").join("usr/bin/busybox");
        self.host.run(&busybox.display().to_string(), &["nc", "-w", "5", address, &port.to_string()]).text()
    }

    /// Removes containers, whatever they do.
    #[track_caller]
    pub fn remove(&self, names: &[&str]) {
        self.ok([&["rm", "--force", "--time", "0", "--volumes"], names].concat());
    }
}
