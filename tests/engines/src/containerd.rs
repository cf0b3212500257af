//! containerd, of several versions, each on a machine of its own.

use std::{
    fs,
    path::PathBuf,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use e2e::Output;

use crate::{Handler, host::Host, images};

/// The versions that the tests know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    /// Debian bookworm's.
    V1_6,
    /// Debian trixie's.
    V1_7,
    /// Debian sid's.
    V2_1,
}

impl Version {
    fn unpacked(self) -> PathBuf {
        images::unpacked(match self {
            Self::V1_6 => "containerd-1.6",
            Self::V1_7 => "containerd-1.7",
            Self::V2_1 => "containerd-2.1",
        })
    }
}

/// The network of the pods: a bridge, addresses of both families, ports of the host.
const NETWORK: &str = r#"{
  "cniVersion": "0.4.0",
  "name": "test",
  "plugins": [
    {
      "type": "bridge", "bridge": "cni0", "isGateway": true, "hairpinMode": true,
      "ipam": {
        "type": "host-local",
        "dataDir": "/run/cni",
        "ranges": [[{"subnet": "10.88.0.0/24"}], [{"subnet": "fd00:88::/64"}]],
        "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]
      }
    },
    {"type": "portmap", "capabilities": {"portMappings": true}, "snat": true}
  ]
}
"#;

/// A running containerd; everything of it is gone when it is dropped.
#[derive(Debug)]
pub struct Containerd {
    /// Where it runs.
    pub host: Host,
    /// Which one it is.
    pub version: Version,
}

impl Containerd {
    /// Starts one that has the images of the tests.
    pub fn start(version: Version) -> Self {
        Self::configured(version, "")
    }

    /// Starts one with more configuration (TOML).
    pub fn configured(version: Version, settings: &str) -> Self {
        let programs = [Some(version.unpacked().join("usr/bin")), crate::kata_programs()];
        let host = Host::start(&programs.into_iter().flatten().collect::<Vec<_>>());
        let containerd = Self { host, version };
        fs::write(containerd.file("config.toml"), containerd.configuration(settings)).unwrap();
        fs::create_dir(containerd.file("cni")).unwrap();
        fs::write(containerd.file("cni/10-test.conflist"), NETWORK).unwrap();
        containerd.launch();
        containerd.import(&["--namespace", containerd.host.name()]);
        containerd
    }

    fn file(&self, name: &str) -> PathBuf {
        self.host.directory().join(name)
    }

    fn configuration(&self, settings: &str) -> String {
        let directory = self.host.directory().display();
        let (format, runtime, images) = match self.version {
            Version::V2_1 => (3, "io.containerd.cri.v1.runtime", "io.containerd.cri.v1.images"),
            _ => (2, "io.containerd.grpc.v1.cri", "io.containerd.grpc.v1.cri"),
        };
        let programs = match self.version {
            Version::V2_1 => "bin_dirs = [",
            _ => "bin_dir = ",
        };
        let pause = match self.version {
            Version::V2_1 => format!("[plugins.\"{images}\".pinned_images]\n  sandbox = \"{}\"", images::PAUSE),
            _ => String::new(),
        };
        let sandbox_image = match self.version {
            Version::V2_1 => String::new(),
            _ => format!("sandbox_image = \"{}\"", images::PAUSE),
        };
        format!(
            r#"version = {format}
root = "{directory}/lib"
state = "/run/containerd"
disabled_plugins = ["io.containerd.internal.v1.opt"]
[debug]
  level = "debug"
[plugins."{runtime}"]
  restrict_oom_score_adj = true
  {sandbox_image}
[plugins."{runtime}".cni]
  {programs}"{cni}"{close}
  conf_dir = "{directory}/cni"
[plugins."{runtime}".containerd]
  default_runtime_name = "runc"
[plugins."{runtime}".containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
[plugins."{runtime}".containerd.runtimes.kata]
  runtime_type = "io.containerd.kata.v2"
  privileged_without_host_devices = true
  pod_annotations = ["io.katacontainers.*"]
{pause}
{settings}
"#,
            close = if programs.ends_with('[') { "]" } else { "" },
            cni = images::unpacked("cni").join("usr/lib/cni").display(),
        )
    }

    /// Starts the daemon and waits until it answers.
    pub fn launch(&self) {
        let script =
            format!("echo $$ >{0}/pid; exec containerd --config {0}/config.toml", self.host.directory().display());
        let log = fs::File::options().append(true).create(true).open(self.file("log")).unwrap();
        let mut command = self.host.command("sh", ["-c", &script]);
        let mut child = command.stdout(Stdio::null()).stderr(log).spawn().unwrap();
        let end = Instant::now() + Duration::from_secs(30);
        while self.host.run("ctr", &["version"]).code != 0 {
            let ended = child.try_wait().unwrap();
            assert!(ended.is_none() && Instant::now() < end, "containerd does not answer ({ended:?}): {}", self.log());
            thread::sleep(Duration::from_millis(50));
        }
        // It ends with its machine, or where a test ends it.
        thread::spawn(move || child.wait());
    }

    /// The daemon's process id on its machine.
    pub fn pid(&self) -> u32 {
        fs::read_to_string(self.file("pid")).unwrap().trim().parse().unwrap()
    }

    /// Kills the daemon; what it started runs on.
    pub fn kill(&self) {
        let pid = self.pid();
        self.host.kill("KILL", pid);
        let end = Instant::now() + Duration::from_secs(10);
        while self.host.processes().iter().any(|(other, _)| *other == pid) {
            assert!(Instant::now() < end, "containerd does not end");
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// The daemon's log, with the messages of the shims.
    pub fn whole_log(&self) -> String {
        fs::read_to_string(self.file("log")).unwrap_or_default()
    }

    /// The end of the daemon's log.
    pub fn log(&self) -> String {
        let text = self.whole_log();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(60)..].join("\n")
    }

    /// Imports the images of the tests; `options` come before `images import`.
    pub fn import(&self, options: &[&str]) {
        self.import_for(options, &[]);
    }

    /// The same with options after it, `--snapshotter` for one.
    pub fn import_for(&self, options: &[&str], import: &[&str]) {
        let own = self.file("images.tar");
        fs::write(&own, images::archive_once()).unwrap();
        let local: &[&str] = if self.version == Version::V2_1 { &["--local"] } else { &[] };
        let path = own.display().to_string();
        self.host.ok("ctr", &[options, &["images", "import"], local, import, &[&path]].concat());
        fs::remove_file(own).unwrap();
    }

    /// `ctr` in the test's namespace of containerd.
    pub fn ctr_command<S: AsRef<str>>(&self, args: impl IntoIterator<Item = S>) -> Command {
        let mut all = vec!["--namespace".to_owned(), self.host.name().into()];
        all.extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        self.host.command("ctr", all)
    }

    /// Runs `ctr`.
    #[track_caller]
    pub fn ctr<S: AsRef<str>>(&self, args: impl IntoIterator<Item = S>) -> Output {
        e2e::run(&mut self.ctr_command(args))
    }

    /// Runs `ctr` and expects success.
    #[track_caller]
    pub fn ctr_ok<S: AsRef<str>>(&self, args: impl IntoIterator<Item = S>) -> String {
        let args: Vec<String> = args.into_iter().map(|arg| arg.as_ref().to_owned()).collect();
        let output = self.ctr(&args);
        assert_eq!(output.code, 0, "ctr {args:?}: {}{}\n{}", output.text(), output.stderr, self.log());
        output.text()
    }

    /// Runs `ctr run --runtime HANDLER` with busybox: options, the container's id, its command.
    #[track_caller]
    pub fn run(&self, handler: Handler, options: &[&str], id: &str, args: &[&str]) -> Output {
        self.ctr(run_arguments(handler, options, id, args))
    }

    /// The status of a task as `ctr tasks list` names it; `None` without a task.
    pub fn status(&self, id: &str) -> Option<String> {
        let list = self.ctr_ok(["tasks", "list"]);
        let mut fields = list.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        fields.find(|fields| fields.first() == Some(&id)).map(|fields| fields[2].to_owned())
    }

    /// Waits until a task has this status.
    #[track_caller]
    pub fn wait_for(&self, id: &str, status: &str) {
        let end = Instant::now() + e2e::DEADLINE;
        loop {
            let now = self.status(id);
            if now.as_deref() == Some(status) {
                return;
            }
            assert!(Instant::now() < end, "{id} is not {status} but {now:?}: {}", self.log());
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// Deletes a task that ended; its exit code.
    #[track_caller]
    pub fn delete(&self, id: &str) -> i32 {
        let output = self.ctr(["tasks", "delete", id]);
        assert_eq!(output.code, 0, "{}", output.stderr);
        // A warning is the only place that tells.
        let code = output.stderr.split_once("non-zero exit code ").map(|(_, rest)| rest);
        code.map_or(0, |rest| rest.split(|c: char| !c.is_ascii_digit()).next().unwrap().parse().unwrap())
    }

    /// Kills a task if it runs, and deletes it and its container.
    #[track_caller]
    pub fn remove(&self, id: &str) {
        if self.status(id).is_some_and(|status| status != "STOPPED") {
            self.ctr_ok(["tasks", "kill", "--signal", "SIGKILL", id]);
            self.wait_for(id, "STOPPED");
        }
        if self.status(id).is_some() {
            self.delete(id);
        }
        self.ctr_ok(["containers", "delete", id]);
    }
}

/// What `ctr run` is called with.
pub fn run_arguments(handler: Handler, options: &[&str], id: &str, args: &[&str]) -> Vec<String> {
    let fixed = ["run", "--runtime", handler.runtime()];
    let all = [&fixed[..], options, &[images::BUSYBOX, id], args].concat();
    all.into_iter().map(String::from).collect()
}
