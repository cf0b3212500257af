//! Kubernetes' Container Runtime Interface of containerd: what a kubelet does, step by step.

use std::{
    fs,
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::{
    Containerd, Handler,
    grpc::{Failure, POLL, Service},
    images,
};

/// A container's state as the interface counts: it runs.
pub const RUNNING: i64 = 1;
/// It ended.
pub const EXITED: i64 = 2;

/// A node of a cluster, as far as its kubelet sees it.
#[derive(Debug)]
pub struct Node<'a> {
    /// Its engine.
    pub engine: &'a Containerd,
    /// What its pods run in.
    pub handler: Handler,
    /// What containerd's configuration calls that.
    name: &'static str,
    runtime: Service,
    images: Service,
}

/// A pod and what it was made with.
#[derive(Debug)]
pub struct Pod<'a> {
    node: &'a Node<'a>,
    /// The sandbox's id.
    pub id: String,
    /// Its name.
    pub name: String,
    config: Value,
}

/// What a command in a container gave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Executed {
    /// Its exit code.
    pub code: i64,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl<'a> Node<'a> {
    /// A node with the images of the tests.
    pub fn new(engine: &'a Containerd, handler: Handler) -> Self {
        Self::named(engine, handler, handler.name())
    }

    /// A node whose pods run in what containerd's configuration calls so.
    pub fn named(engine: &'a Containerd, handler: Handler, name: &'static str) -> Self {
        let service =
            |name| Service { socket: engine.host.seen("/run/containerd/containerd.sock"), name, metadata: Vec::new() };
        let node = Self {
            engine,
            handler,
            name,
            runtime: service("runtime.v1.RuntimeService"),
            images: service("runtime.v1.ImageService"),
        };
        if node
            .images
            .call("ImageStatus", &json!({"image": {"image": images::BUSYBOX}}))
            .is_ok_and(|status| status["image"].is_null())
        {
            engine.import(&["--namespace", "k8s.io"]);
        }
        let end = Instant::now() + Duration::from_secs(20);
        for image in [images::BUSYBOX, images::PAUSE] {
            // The interface learns of an import some time later.
            while !node
                .images
                .call("ImageStatus", &json!({"image": {"image": image}}))
                .is_ok_and(|status| status["image"].is_object())
            {
                assert!(Instant::now() < end, "containerd's CRI does not know {image}: {}", engine.log());
                thread::sleep(POLL);
            }
        }
        node
    }

    /// Calls a method of the runtime service.
    pub fn call(&self, method: &str, request: &Value) -> Result<Value, Failure> {
        self.runtime.call(method, request)
    }

    /// Calls a method and expects success.
    #[track_caller]
    pub fn ok(&self, method: &str, request: &Value) -> Value {
        match self.call(method, request) {
            Ok(answer) => answer,
            Err(failure) => panic!("{method}: {failure}\nrequest: {request}"),
        }
    }

    /// What a pod is made with, unless something is changed.
    pub fn pod_config(&self, name: &str, change: &Value) -> Value {
        let logs = self.logs(name);
        fs::create_dir_all(&logs).unwrap();
        let mut config = json!({
            "metadata": {"name": name, "uid": format!("uid-of-{name}"), "namespace": "test", "attempt": 0},
            "hostname": name,
            "log_directory": logs,
            "dns_config": {"servers": ["10.96.0.10"], "searches": ["test.svc.cluster.local"], "options": ["ndots:5"]},
            "labels": {"app": name},
            "linux": {
                "cgroup_parent": format!("/{}-{name}", self.engine.host.name()),
                "security_context": {"namespace_options": {"network": 0, "pid": 1, "ipc": 0}},
            },
        });
        merge(&mut config, change);
        config
    }

    /// Where a pod's logs are.
    pub fn logs(&self, pod: &str) -> PathBuf {
        self.engine.host.directory().join("logs").join(pod)
    }

    /// Tries to start a pod.
    pub fn try_pod(&self, name: &str, change: &Value) -> Result<Pod<'_>, Failure> {
        let config = self.pod_config(name, change);
        let answer = self.call("RunPodSandbox", &json!({"config": config, "runtime_handler": self.name}))?;
        let id = answer["pod_sandbox_id"].as_str().unwrap().to_owned();
        Ok(Pod { node: self, id, name: name.into(), config })
    }

    /// Starts a pod; `change` is merged into what it is made with.
    #[track_caller]
    pub fn pod(&self, name: &str, change: &Value) -> Pod<'_> {
        self.try_pod(name, change).unwrap_or_else(|failure| panic!("the pod {name}: {failure}\n{}", self.engine.log()))
    }

    /// The state of a container: times and identifiers are in it.
    #[track_caller]
    pub fn status(&self, container: &str) -> Value {
        self.ok("ContainerStatus", &json!({"container_id": container}))["status"].take()
    }

    /// Waits until a container ended, and gives its state.
    #[track_caller]
    pub fn wait(&self, container: &str) -> Value {
        let end = Instant::now() + e2e::DEADLINE;
        loop {
            let status = self.status(container);
            if status["state"] == EXITED {
                return status;
            }
            assert!(Instant::now() < end, "the container does not end: {status}\n{}", self.engine.log());
            thread::sleep(POLL);
        }
    }

    /// Runs a command in a container.
    #[track_caller]
    pub fn exec(&self, container: &str, args: &[&str]) -> Executed {
        let answer = self.ok("ExecSync", &json!({"container_id": container, "cmd": args, "timeout": 60}));
        let text = |name: &str| answer[name].as_str().unwrap_or_default().to_owned();
        Executed { code: number(&answer["exit_code"]), stdout: text("stdout"), stderr: text("stderr") }
    }

    /// Runs a shell script in a container and expects success; gives its standard output.
    #[track_caller]
    pub fn sh(&self, container: &str, script: &str) -> String {
        let executed = self.exec(container, &["sh", "-ec", script]);
        assert_eq!(executed.code, 0, "{script}: {executed:?}");
        executed.stdout
    }

    /// Runs a shell script until it succeeds.
    #[track_caller]
    pub fn until(&self, container: &str, script: &str) -> String {
        let end = Instant::now() + Duration::from_secs(60);
        loop {
            let executed = self.exec(container, &["sh", "-ec", script]);
            if executed.code == 0 {
                return executed.stdout;
            }
            assert!(Instant::now() < end, "{script}: {executed:?}");
            thread::sleep(POLL);
        }
    }

    /// Stops a container, with a grace period in seconds.
    #[track_caller]
    pub fn stop(&self, container: &str, seconds: u32) {
        self.ok("StopContainer", &json!({"container_id": container, "timeout": seconds}));
    }

    /// Removes a container.
    #[track_caller]
    pub fn remove(&self, container: &str) {
        self.ok("RemoveContainer", &json!({"container_id": container}));
    }
}

impl<'a> Pod<'a> {
    /// Where it runs.
    pub fn node(&self) -> &'a Node<'a> {
        self.node
    }

    /// Tries to create a container that runs `args`; `change` is merged into what it is made with.
    pub fn try_create(&self, name: &str, args: &[&str], change: &Value) -> Result<String, Failure> {
        let mut config = json!({
            "metadata": {"name": name, "attempt": 0},
            "image": {"image": images::BUSYBOX},
            "command": args,
            "log_path": format!("{name}.log"),
            "labels": {"container": name},
            "linux": {"security_context": {"namespace_options": {"network": 0, "pid": 1, "ipc": 0}}},
        });
        merge(&mut config, change);
        let request = json!({"pod_sandbox_id": self.id, "config": config, "sandbox_config": self.config});
        Ok(self.node.call("CreateContainer", &request)?["container_id"].as_str().unwrap().to_owned())
    }

    /// Creates a container.
    #[track_caller]
    pub fn create(&self, name: &str, args: &[&str], change: &Value) -> String {
        self.try_create(name, args, change)
            .unwrap_or_else(|failure| panic!("the container {name}: {failure}\n{}", self.node.engine.log()))
    }

    /// Creates and starts a container.
    #[track_caller]
    pub fn run(&self, name: &str, args: &[&str], change: &Value) -> String {
        let id = self.create(name, args, change);
        self.node.ok("StartContainer", &json!({"container_id": id}));
        id
    }

    /// Creates and starts a container that does nothing until it is stopped.
    #[track_caller]
    pub fn idle(&self, name: &str, change: &Value) -> String {
        self.run(name, &["sh", "-c", "trap 'exit 0' TERM; while :; do sleep 0.2; done"], change)
    }

    /// The lines of a container's log: stream and text, a line that was split put together.
    pub fn log(&self, name: &str) -> Vec<(String, String)> {
        log_lines(&self.node.logs(&self.name).join(format!("{name}.log")))
    }

    /// The pod's addresses, the first one first.
    #[track_caller]
    pub fn addresses(&self) -> Vec<String> {
        let status = self.status();
        let more = status["network"]["additional_ips"].as_array().cloned().unwrap_or_default();
        let all = std::iter::once(&status["network"]["ip"]).chain(more.iter().map(|ip| &ip["ip"]));
        all.map(|ip| ip.as_str().unwrap().to_owned()).collect()
    }

    /// The sandbox's state.
    #[track_caller]
    pub fn status(&self) -> Value {
        self.node.ok("PodSandboxStatus", &json!({"pod_sandbox_id": self.id}))["status"].take()
    }

    /// Stops the pod and removes it with all its containers.
    #[track_caller]
    pub fn remove(self) {
        self.node.ok("StopPodSandbox", &json!({"pod_sandbox_id": self.id}));
        self.node.ok("RemovePodSandbox", &json!({"pod_sandbox_id": self.id}));
    }
}

/// The lines of a log as the interface writes it: `TIME STREAM TAG TEXT`, where the tag `P` says that the line goes on.
pub fn log_lines(file: &std::path::Path) -> Vec<(String, String)> {
    let mut lines: Vec<(String, String)> = Vec::new();
    let mut open = false;
    for line in fs::read_to_string(file).unwrap_or_default().lines() {
        let mut parts = line.splitn(4, ' ');
        let (stream, tag, text) =
            (parts.nth(1).unwrap_or_default(), parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        match lines.last_mut() {
            Some((last, begun)) if open && last == stream => begun.push_str(text),
            _ => lines.push((stream.into(), text.into())),
        }
        open = tag == "P";
    }
    lines
}

/// A number that is left out when it is zero.
pub fn number(value: &Value) -> i64 {
    value.as_i64().unwrap_or_default()
}

/// Merges objects; anything else of `change` takes the place of what was there.
pub fn merge(into: &mut Value, change: &Value) {
    match (into, change) {
        (Value::Object(into), Value::Object(change)) => {
            for (key, value) in change {
                merge(into.entry(key.clone()).or_insert(Value::Null), value);
            }
        }
        (_, Value::Null) => {}
        (into, change) => *into = change.clone(),
    }
}
