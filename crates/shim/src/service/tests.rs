//! The services over a real socket, with a stand-in for the sandbox: what it can do is end when told.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    fs,
    path::Path,
    time::Duration,
};

use agent_api::{ExitStatus, WindowSize, statistics::Statistics};
use containerd_shim_protos::{
    api::{
        CheckpointTaskRequest, CreateTaskRequest, DeleteRequest, ExecProcessRequest, KillRequest, PauseRequest,
        PidsRequest, ResumeRequest, ShutdownRequest, StartRequest, StateRequest, StatsRequest, Status, WaitRequest,
    },
    events::task as events,
    protobuf::{EnumOrUnknown, Message, well_known_types::any::Any},
    sandbox_api::{CreateSandboxRequest, SandboxStatusRequest, StartSandboxRequest, StopSandboxRequest},
    sandbox_async::SandboxClient,
    shim_async::{Client, TaskClient},
    ttrpc::{Code, asynchronous::Server, context},
};
use oci_spec::runtime::{LinuxResources, Process as Spec};
use tokio::{
    io::AsyncWriteExt,
    sync::watch,
    task::{LocalSet, spawn_local},
    time::{sleep, timeout},
};

use super::*;
use crate::{
    backend::{Boot, Booter, Ending, Io, NewContainer, Outcome, Sandbox},
    events::{Destination, Publisher, tests::Received},
};

/// Long enough for a busy machine.
const SOON: Duration = Duration::from_secs(20);

type Name = (String, Option<String>);

#[derive(Default)]
struct StandIn {
    processes: RefCell<HashMap<Name, watch::Sender<Option<Outcome>>>>,
    booted: Cell<usize>,
    stopped: Cell<usize>,
    /// How long Start takes.
    slow: Cell<Duration>,
}

impl StandIn {
    fn add(&self, id: &str, exec: Option<&str>) {
        self.processes.borrow_mut().insert((id.into(), exec.map(Into::into)), watch::Sender::new(None));
    }

    fn end(&self, id: &str, exec: Option<&str>, outcome: Outcome) {
        if let Some(told) = self.processes.borrow().get(&(id.to_string(), exec.map(Into::into))) {
            told.send_if_modified(|known| known.is_none().then(|| *known = Some(outcome)).is_some());
        }
    }
}

/// A stand-in that is shared with the test.
#[derive(Clone, Default)]
struct Shared(Rc<StandIn>);

impl Booter for Shared {
    fn boot(&self, _: Boot) -> Local<'_, Result<Rc<dyn Sandbox>>> {
        self.0.booted.set(self.0.booted.get() + 1);
        Box::pin(async { Ok(Rc::new(self.clone()) as Rc<dyn Sandbox>) })
    }
}

impl Sandbox for Shared {
    fn guest_metrics(&self) -> Local<'_, Result<String>> {
        Box::pin(async { Ok("kata_guest_load{item=\"load1\"} 0\n".into()) })
    }

    fn failure(&self) -> Option<String> {
        None
    }

    fn host_processes(&self) -> Vec<(&'static str, u32)> {
        vec![("hypervisor", std::process::id())]
    }

    fn create(&self, container: NewContainer) -> Local<'_, Result<()>> {
        Box::pin(async move {
            if container.id == "refused" {
                return Err(Error::Invalid("as the test wants it".into()));
            }
            self.0.add(&container.id, None);
            Ok(())
        })
    }

    fn create_pause(&self, id: &str) -> Result<()> {
        self.0.add(id, None);
        Ok(())
    }

    fn start<'a>(&'a self, id: &'a str) -> Local<'a, Result<()>> {
        Box::pin(async move {
            if id == "short" {
                // It ends before anybody knows that it was started.
                self.0.end(id, None, Ok(ExitStatus::Code(3)));
            }
            sleep(self.0.slow.get()).await;
            Ok(())
        })
    }

    fn exec<'a>(&'a self, id: &'a str, exec: &'a str, process: Spec, io: Io) -> Local<'a, Result<()>> {
        Box::pin(async move {
            let args = process.args().clone().unwrap_or_default();
            if args[0] == "nosuch" {
                let kind = Some(agent_api::FaultKind::CommandNotFound);
                return Err(::sandbox::Error::Sandbox { kind, message: "execute nosuch".into() }.into());
            }
            self.0.add(id, Some(exec));
            if args[0] == "say" {
                // The end is known before the output has arrived.
                self.0.end(id, Some(exec), Ok(ExitStatus::Code(0)));
                let mut stdout = io.stdout.unwrap();
                spawn_local(async move {
                    sleep(Duration::from_millis(100)).await;
                    stdout.write_all(args[1].as_bytes()).await.unwrap();
                });
            }
            Ok(())
        })
    }

    fn signal<'a>(&'a self, id: &'a str, exec: Option<&'a str>, signal: i32, _: bool) -> Local<'a, Result<()>> {
        Box::pin(async move {
            self.0.end(id, exec, Ok(ExitStatus::Signal(signal as u8)));
            if exec.is_none() {
                let names: Vec<Name> = self.0.processes.borrow().keys().cloned().collect();
                for (container, exec) in names.iter().filter(|(container, exec)| container == id && exec.is_some()) {
                    self.0.end(container, exec.as_deref(), Ok(ExitStatus::Signal(9)));
                }
            }
            Ok(())
        })
    }

    fn resize<'a>(&'a self, _: &'a str, _: Option<&'a str>, _: WindowSize) -> Local<'a, Result<()>> {
        Box::pin(async { Ok(()) })
    }

    fn pause<'a>(&'a self, _: &'a str) -> Local<'a, Result<()>> {
        Box::pin(async { Ok(()) })
    }

    fn resume<'a>(&'a self, _: &'a str) -> Local<'a, Result<()>> {
        Box::pin(async { Ok(()) })
    }

    fn update<'a>(&'a self, _: &'a str, _: LinuxResources) -> Local<'a, Result<()>> {
        Box::pin(async { Ok(()) })
    }

    fn statistics<'a>(&'a self, _: &'a str) -> Local<'a, Result<Statistics>> {
        Box::pin(async { Ok(Statistics::default()) })
    }

    fn ending(&self, id: &str, exec: Option<&str>) -> Result<Ending> {
        let processes = self.0.processes.borrow();
        let told = processes.get(&(id.to_string(), exec.map(Into::into)));
        told.map(watch::Sender::subscribe).ok_or_else(|| Error::NotFound("no such process".into()))
    }

    fn remove<'a>(&'a self, _: &'a str) -> Local<'a, Result<()>> {
        Box::pin(async { Ok(()) })
    }

    fn stop(&self) -> Local<'_, Result<()>> {
        Box::pin(async {
            self.0.stopped.set(self.0.stopped.get() + 1);
            let names: Vec<Name> = self.0.processes.borrow().keys().cloned().collect();
            for (id, exec) in names {
                self.0.end(&id, exec.as_deref(), Err("the machine was ended".into()));
            }
            Ok(())
        })
    }
}

/// A shim with its events and a client, in a directory.
struct Bench {
    directory: tempfile::TempDir,
    task: TaskClient,
    client: Client,
    pod: Rc<Pod>,
    machine: Rc<StandIn>,
    received: Received,
    _servers: (Server, Server),
}

fn ctx() -> context::Context {
    context::with_duration(SOON)
}

impl Bench {
    async fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name).display().to_string();
        let received = Received::default();
        let events = received.listen(&path("events")).await;
        let (desk, mut jobs) = Desk::new();
        let mut server = Server::new()
            .bind(&format!("unix://{}", path("shim")))
            .unwrap()
            .register_service(task_services(&desk))
            .register_service(sandbox_service(&desk));
        server.start().await.unwrap();
        let destination = Destination { namespace: "n".into(), socket: Some(path("events")), ..Destination::default() };
        let (victims, _) = mpsc::unbounded_channel();
        let settings = Settings { namespace: "n".into(), sandbox: "pod".into(), unified: true };
        let machine = Shared::default();
        let pod = Pod::new(settings, Rc::new(machine.clone()), Publisher::new(destination), victims);
        let owner = pod.clone();
        spawn_local(async move {
            while let Some(job) = jobs.recv().await {
                spawn_local(job(owner.clone()));
            }
        });
        let client = Client::connect(&format!("unix://{}", path("shim"))).await.unwrap();
        let task = TaskClient::new(client.clone());
        Self { directory, task, client, pod, machine: machine.0, received, _servers: (server, events) }
    }

    fn bundle(&self, id: &str, annotations: &str) -> String {
        let bundle = self.directory.path().join(id);
        fs::create_dir_all(&bundle).unwrap();
        fs::write(bundle.join("config.json"), format!("{{\"annotations\":{{{annotations}}}}}")).unwrap();
        bundle.display().to_string()
    }

    async fn create(&self, id: &str, annotations: &str) -> ttrpc::Result<()> {
        let mut request = CreateTaskRequest::new();
        request.id = id.into();
        request.bundle = self.bundle(id, annotations);
        let response = self.task.create(ctx(), &request).await?;
        assert_eq!(response.pid, std::process::id());
        Ok(())
    }

    async fn start(&self, id: &str, exec: &str) -> ttrpc::Result<()> {
        let mut request = StartRequest::new();
        (request.id, request.exec_id) = (id.into(), exec.into());
        self.task.start(ctx(), &request).await.map(drop)
    }

    async fn exec(&self, id: &str, exec: &str, args: &[&str], stdout: &str) -> ttrpc::Result<()> {
        let mut request = ExecProcessRequest::new();
        (request.id, request.exec_id, request.stdout) = (id.into(), exec.into(), stdout.into());
        let mut spec = Any::new();
        spec.type_url = "types.containerd.io/opencontainers/runtime-spec/1/Process".into();
        spec.value = serde_json::to_vec(&serde_json::json!({
            "cwd": "/", "args": args, "user": {"uid": 0, "gid": 0}
        }))
        .unwrap();
        request.spec = Some(spec).into();
        self.task.exec(ctx(), &request).await.map(drop)
    }

    async fn kill(&self, id: &str, exec: &str, signal: u32) -> ttrpc::Result<()> {
        let mut request = KillRequest::new();
        (request.id, request.exec_id, request.signal) = (id.into(), exec.into(), signal);
        self.task.kill(ctx(), &request).await.map(drop)
    }

    async fn wait(&self, id: &str, exec: &str) -> u32 {
        let mut request = WaitRequest::new();
        (request.id, request.exec_id) = (id.into(), exec.into());
        self.task.wait(ctx(), &request).await.unwrap().exit_status
    }

    async fn delete(&self, id: &str, exec: &str) -> ttrpc::Result<u32> {
        let mut request = DeleteRequest::new();
        (request.id, request.exec_id) = (id.into(), exec.into());
        self.task.delete(ctx(), &request).await.map(|response| response.exit_status)
    }

    async fn status(&self, id: &str, exec: &str) -> EnumOrUnknown<Status> {
        let mut request = StateRequest::new();
        (request.id, request.exec_id) = (id.into(), exec.into());
        self.task.state(ctx(), &request).await.unwrap().status
    }

    /// Topics without their common beginning, once all are delivered.
    async fn topics(&self) -> Vec<String> {
        self.pod.close(SOON).await;
        self.received.topics().iter().map(|topic| topic.trim_start_matches("/tasks/").into()).collect()
    }
}

fn code<T>(result: ttrpc::Result<T>) -> Code {
    match result {
        Err(ttrpc::Error::RpcStatus(status)) => status.code(),
        Err(other) => panic!("{other}"),
        Ok(_) => Code::OK,
    }
}

async fn within<F: Future>(test: F) -> F::Output {
    let local = LocalSet::new();
    timeout(SOON * 3, local.run_until(test)).await.unwrap()
}

const SANDBOX: &str = r#""io.kubernetes.cri.container-type":"sandbox","io.kubernetes.cri.sandbox-id":"pod""#;
const MEMBER: &str = r#""io.kubernetes.cri.container-type":"container","io.kubernetes.cri.sandbox-id":"pod""#;

#[tokio::test]
async fn a_container_lives_and_every_event_is_in_its_place() {
    within(async {
        let bench = Bench::new().await;
        bench.create("c", "").await.unwrap();
        assert_eq!(bench.status("c", "").await, Status::CREATED.into());
        assert_eq!(code(bench.create("c", "").await), Code::ALREADY_EXISTS);
        bench.start("c", "").await.unwrap();
        assert_eq!(code(bench.start("c", "").await), Code::FAILED_PRECONDITION);
        assert_eq!(code(bench.delete("c", "").await), Code::FAILED_PRECONDITION);
        bench.exec("c", "e", &["wait"], "").await.unwrap();
        assert_eq!(code(bench.exec("c", "e", &["wait"], "").await), Code::ALREADY_EXISTS);
        assert_eq!(code(bench.kill("c", "e", 9).await), Code::FAILED_PRECONDITION);
        bench.start("c", "e").await.unwrap();
        let mut pids = PidsRequest::new();
        pids.id = "c".into();
        let pids = bench.task.pids(ctx(), &pids).await.unwrap().processes;
        assert_eq!(pids.iter().map(|entry| entry.pid).collect::<Vec<_>>(), [std::process::id(); 2]);
        let mut pause = PauseRequest::new();
        pause.id = "c".into();
        bench.task.pause(ctx(), &pause).await.unwrap();
        assert_eq!(bench.status("c", "e").await, Status::PAUSED.into());
        assert_eq!(code(bench.exec("c", "f", &["wait"], "").await), Code::FAILED_PRECONDITION);
        let mut resume = ResumeRequest::new();
        resume.id = "c".into();
        bench.task.resume(ctx(), &resume).await.unwrap();
        // The executed process ends with the container, and is told first.
        bench.kill("c", "", 15).await.unwrap();
        assert_eq!(bench.wait("c", "").await, 128 + 15);
        assert_eq!(bench.wait("c", "e").await, 128 + 9);
        assert_eq!(code(bench.kill("c", "", 15).await), Code::NOT_FOUND);
        assert_eq!(bench.delete("c", "e").await.unwrap(), 128 + 9);
        assert_eq!(bench.delete("c", "").await.unwrap(), 128 + 15);
        assert_eq!(code(bench.delete("c", "").await), Code::NOT_FOUND);
        assert_eq!((bench.machine.booted.get(), bench.machine.stopped.get()), (1, 1));
        let expected = ["create", "start", "exec-added", "exec-started", "paused", "resumed", "exit", "exit", "delete"];
        assert_eq!(bench.topics().await, expected);
        let exits: Vec<_> = bench.received.all().iter().filter(|event| event.topic == "/tasks/exit").cloned().collect();
        let first = events::TaskExit::parse_from_bytes(&exits[0].event.value).unwrap();
        assert_eq!((first.container_id.as_str(), first.id.as_str(), first.exit_status), ("c", "e", 128 + 9));
        let second = events::TaskExit::parse_from_bytes(&exits[1].event.value).unwrap();
        assert_eq!((second.id.as_str(), second.exit_status), ("c", 128 + 15));
    })
    .await;
}

#[tokio::test]
async fn a_short_life_is_told_in_order() {
    within(async {
        let bench = Bench::new().await;
        bench.machine.slow.set(Duration::from_millis(100));
        bench.create("short", "").await.unwrap();
        bench.start("short", "").await.unwrap();
        assert_eq!(bench.wait("short", "").await, 3);
        bench.delete("short", "").await.unwrap();
        assert_eq!(bench.topics().await, ["create", "start", "exit", "delete"]);
    })
    .await;
}

#[tokio::test]
async fn an_end_is_told_after_the_last_byte() {
    within(async {
        let bench = Bench::new().await;
        bench.create("c", "").await.unwrap();
        bench.start("c", "").await.unwrap();
        let path = bench.directory.path().join("output");
        bench.exec("c", "e", &["say", "hello"], &format!("file://{}", path.display())).await.unwrap();
        bench.start("c", "e").await.unwrap();
        assert_eq!(bench.wait("c", "e").await, 0);
        assert_eq!(fs::read_to_string(&path).unwrap(), "hello");
    })
    .await;
}

#[tokio::test]
async fn a_command_that_is_not_there_ends_the_exec_in_docker_s_words() {
    within(async {
        let bench = Bench::new().await;
        bench.create("c", "").await.unwrap();
        bench.start("c", "").await.unwrap();
        bench.exec("c", "e", &["nosuch"], "").await.unwrap();
        let Err(ttrpc::Error::RpcStatus(status)) = bench.start("c", "e").await else { panic!("it was started") };
        assert!(status.message.contains("executable file not found in $PATH"), "{}", status.message);
        bench.wait("c", "e").await;
        bench.delete("c", "e").await.unwrap();
        assert_eq!(code(bench.exec("c", "bad id", &["x"], "").await), Code::INVALID_ARGUMENT);
    })
    .await;
}

#[tokio::test]
async fn what_was_never_started_is_told_to_have_ended_before_it_is_deleted() {
    within(async {
        let bench = Bench::new().await;
        bench.create("c", "").await.unwrap();
        bench.delete("c", "").await.unwrap();
        assert_eq!(bench.topics().await, ["create", "exit", "delete"]);
    })
    .await;
}

#[tokio::test]
async fn a_failed_create_leaves_no_machine_and_no_event() {
    within(async {
        let bench = Bench::new().await;
        assert_eq!(code(bench.create("refused", "").await), Code::INVALID_ARGUMENT);
        assert_eq!((bench.machine.booted.get(), bench.machine.stopped.get()), (1, 1));
        assert_eq!(code(bench.delete("refused", "").await), Code::NOT_FOUND);
        // A second one is not held against it.
        bench.create("c", "").await.unwrap();
        // A stranger is refused, and the machine of the other lives.
        assert_eq!(code(bench.create("d", "").await), Code::ALREADY_EXISTS);
        bench.start("c", "").await.unwrap();
        assert_eq!(bench.topics().await, ["create", "start"]);
    })
    .await;
}

#[tokio::test]
async fn the_machine_ends_with_the_last_of_those_that_have_joined_its_first_container() {
    within(async {
        let bench = Bench::new().await;
        bench.create("pod", "").await.unwrap();
        fs::write(Path::new(&bench.bundle("y", "")).join("kata-sandbox"), "pod").unwrap();
        bench.create("y", "").await.unwrap();
        for id in ["pod", "y"] {
            bench.start(id, "").await.unwrap();
        }
        // The first ends and comes back.
        for _ in 0..2 {
            bench.kill("pod", "", 9).await.unwrap();
            bench.wait("pod", "").await;
            bench.delete("pod", "").await.unwrap();
            assert_eq!((bench.machine.booted.get(), bench.machine.stopped.get()), (1, 0));
            bench.create("pod", "").await.unwrap();
            bench.start("pod", "").await.unwrap();
        }
        assert_eq!(bench.status("y", "").await, Status::RUNNING.into());
        for (id, stopped) in [("pod", 0), ("y", 1)] {
            bench.kill(id, "", 9).await.unwrap();
            bench.wait(id, "").await;
            bench.delete(id, "").await.unwrap();
            assert_eq!(bench.machine.stopped.get(), stopped, "{id}");
        }
        fs::write(Path::new(&bench.bundle("z", "")).join("kata-sandbox"), "other").unwrap();
        assert_eq!(code(bench.create("z", "").await), Code::FAILED_PRECONDITION);
    })
    .await;
}

#[tokio::test]
async fn a_pod_s_containers_end_before_its_sandbox() {
    within(async {
        let bench = Bench::new().await;
        assert_eq!(code(bench.create("a", MEMBER).await), Code::NOT_FOUND, "there is no pod yet");
        bench.create("pod", SANDBOX).await.unwrap();
        bench.start("pod", "").await.unwrap();
        bench.create("a", MEMBER).await.unwrap();
        bench.start("a", "").await.unwrap();
        assert_eq!(code(bench.exec("pod", "e", &["x"], "").await), Code::FAILED_PRECONDITION);
        let other = r#""io.kubernetes.cri.container-type":"container","io.kubernetes.cri.sandbox-id":"other""#;
        assert_eq!(code(bench.create("b", other).await), Code::FAILED_PRECONDITION);
        // Shutdown is not heeded while there is a container.
        bench.task.shutdown(ctx(), &ShutdownRequest::new()).await.unwrap();
        assert!(timeout(Duration::from_millis(20), bench.pod.left()).await.is_err());
        bench.kill("pod", "", 9).await.unwrap();
        assert_eq!(bench.wait("pod", "").await, 128 + 9);
        assert_eq!(bench.machine.stopped.get(), 1);
        bench.delete("a", "").await.unwrap();
        bench.delete("pod", "").await.unwrap();
        bench.task.shutdown(ctx(), &ShutdownRequest::new()).await.unwrap();
        timeout(SOON, bench.pod.left()).await.unwrap();
        bench.topics().await;
        let exits = bench.received.all().into_iter().filter(|event| event.topic == "/tasks/exit");
        let order: Vec<String> =
            exits.map(|event| events::TaskExit::parse_from_bytes(&event.event.value).unwrap().id).collect();
        assert_eq!(order, ["a", "pod"]);
    })
    .await;
}

#[tokio::test]
async fn a_shim_with_nothing_to_answer_for_does_not_wait_for_ever_to_be_shut_down() {
    within(async {
        let bench = Bench::new().await;
        let patience = Duration::from_millis(20);
        bench.create("a", "").await.unwrap();
        bench.pod.leave_when_idle(patience);
        assert!(timeout(patience * 5, bench.pod.left()).await.is_err(), "there is a container");
        bench.start("a", "").await.unwrap();
        bench.kill("a", "", 9).await.unwrap();
        bench.wait("a", "").await;
        bench.pod.leave_when_idle(patience);
        assert!(timeout(patience * 5, bench.pod.left()).await.is_err(), "it has ended, and may be asked about");
        bench.delete("a", "").await.unwrap();
        bench.pod.leave_when_idle(patience);
        timeout(SOON, bench.pod.left()).await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn what_is_not_supported_is_refused_by_name() {
    within(async {
        let bench = Bench::new().await;
        bench.create("c", "").await.unwrap();
        let mut checkpoint = CheckpointTaskRequest::new();
        checkpoint.id = "c".into();
        assert_eq!(code(bench.task.checkpoint(ctx(), &checkpoint).await), Code::UNIMPLEMENTED);
        let mut restore = CreateTaskRequest::new();
        (restore.id, restore.checkpoint) = ("r".into(), "/c".into());
        assert_eq!(code(bench.task.create(ctx(), &restore).await), Code::UNIMPLEMENTED);
        let mut unknown = CreateTaskRequest::new();
        unknown.id = "u".into();
        unknown.bundle = bench.bundle("u", "");
        unknown.options.mut_or_insert_default().type_url = "example.v1.Options".into();
        unknown.options.mut_or_insert_default().value = b"x".to_vec();
        assert_eq!(code(bench.task.create(ctx(), &unknown).await), Code::INVALID_ARGUMENT);
        assert_eq!(code(bench.kill("c", "", 65).await), Code::INVALID_ARGUMENT);
        let mut stats = StatsRequest::new();
        stats.id = "c".into();
        let stats = bench.task.stats(ctx(), &stats).await.unwrap().stats;
        assert_eq!(stats.type_url, "io.containerd.cgroups.v2.Metrics");
    })
    .await;
}

#[tokio::test]
async fn older_containerds_find_the_service_under_its_older_name() {
    within(async {
        let bench = Bench::new().await;
        let mut request = ttrpc::Request::new();
        request.service = "containerd.task.v2.Task".into();
        request.method = "Connect".into();
        request.timeout_nano = SOON.as_nanos() as i64;
        let response = bench.client.request(request).await.unwrap();
        let response = containerd_shim_protos::api::ConnectResponse::parse_from_bytes(&response.payload).unwrap();
        assert_eq!(response.shim_pid, std::process::id());
    })
    .await;
}

#[tokio::test]
async fn the_sandbox_api_makes_a_pod_without_a_sandbox_container() {
    within(async {
        let bench = Bench::new().await;
        let sandbox = SandboxClient::new(bench.client.clone());
        let mut create = CreateSandboxRequest::new();
        create.sandbox_id = "pod".into();
        create.bundle_path = Path::new("/nonexistent").display().to_string();
        sandbox.create_sandbox(ctx(), &create).await.unwrap();
        assert_eq!(code(sandbox.create_sandbox(ctx(), &create).await), Code::ALREADY_EXISTS);
        let mut start = StartSandboxRequest::new();
        start.sandbox_id = "pod".into();
        assert_eq!(sandbox.start_sandbox(ctx(), &start).await.unwrap().pid, std::process::id());
        let status = async |expected: &str| {
            let mut request = SandboxStatusRequest::new();
            request.sandbox_id = "pod".into();
            assert_eq!(sandbox.sandbox_status(ctx(), &request).await.unwrap().state, expected);
        };
        status("SANDBOX_READY").await;
        bench.create("a", MEMBER).await.unwrap();
        bench.start("a", "").await.unwrap();
        let mut stop = StopSandboxRequest::new();
        stop.sandbox_id = "pod".into();
        sandbox.stop_sandbox(ctx(), &stop).await.unwrap();
        status("SANDBOX_NOTREADY").await;
        bench.delete("a", "").await.unwrap();
        assert_eq!(bench.topics().await, ["create", "start", "exit", "delete"]);
    })
    .await;
}
