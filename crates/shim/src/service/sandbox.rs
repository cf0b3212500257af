//! The Sandbox service of containerd 1.7 and later: the machine as a thing of its own, which containers come to by the Task service.
//!
//! Inside, such a sandbox is a sandbox container without a bundle, so that its end, and what the end of its machine means for the containers,
//! are those of any pod.

use std::{cell::Cell, collections::HashMap, path::PathBuf, rc::Rc, sync::Arc, time::SystemTime};

use async_trait::async_trait;
use containerd_shim_protos::{
    sandbox_api::{
        CreateSandboxRequest, CreateSandboxResponse, PingRequest, PingResponse, PlatformRequest, PlatformResponse,
        SandboxMetricsRequest, SandboxMetricsResponse, SandboxStatusRequest, SandboxStatusResponse,
        ShutdownSandboxRequest, ShutdownSandboxResponse, StartSandboxRequest, StartSandboxResponse, StopSandboxRequest,
        StopSandboxResponse, WaitSandboxRequest, WaitSandboxResponse,
    },
    sandbox_async::{Sandbox, create_sandbox},
    ttrpc::{
        self,
        asynchronous::{Service, TtrpcContext},
    },
};
use oci_spec::runtime::Spec;
use tokio::time::{Duration, timeout};

use super::{
    Desk, Pod,
    container::{Container, Kind, Process},
};
use crate::{
    Error, Result,
    backend::Unbundled,
    group::Role,
    options::Options,
    pod_config,
    state::{Exit, State},
    stdio::Names,
    translate::{metrics, timestamp},
};

/// How long StopSandbox may take when the caller says nothing.
const STOP_DEADLINE: Duration = Duration::from_secs(30);

/// A sandbox that was created by this API.
pub(super) struct Made {
    container: Rc<Container>,
    options: Options,
    spec: Spec,
    netns: Option<PathBuf>,
    created: SystemTime,
    started: Cell<bool>,
}

impl Made {
    /// Whether it has been started and has not ended.
    pub(super) fn is_running(&self) -> bool {
        self.started.get() && self.container.init.state.get().exit().is_none()
    }
}

/// The service.
pub(crate) fn service(desk: &Desk) -> HashMap<String, Service> {
    create_sandbox(Arc::new(Door { desk: desk.clone() }))
}

impl Pod {
    /// The sandbox, if it has this name.
    fn made<T>(&self, id: &str, look: impl FnOnce(&Made) -> T) -> Result<T> {
        let api = self.api.borrow();
        let made = api.as_ref().filter(|made| made.container.id == id);
        made.map(look).ok_or_else(|| Error::NotFound(format!("sandbox {id:?} was not created here")))
    }

    fn create_sandbox(&self, request: &CreateSandboxRequest) -> Result<CreateSandboxResponse> {
        sandbox::store::Store::check_id(&request.sandbox_id)?;
        if request.sandbox_id != self.settings.sandbox {
            let problem = format!(
                "this shim was started for the sandbox {:?}, not for {:?}",
                self.settings.sandbox, request.sandbox_id
            );
            return Err(Error::Invalid(problem));
        }
        if self.api.borrow().is_some() || self.machine.borrow().is_some() {
            return Err(Error::AlreadyExists(format!("sandbox {:?} already exists", request.sandbox_id)));
        }
        let options = match request.options.as_ref() {
            Some(options) => Options::from_any(options)?,
            None => Options::default(),
        };
        let spec = pod_config::spec(&request.sandbox_id, request.options.as_ref())?;
        let container = Container {
            id: request.sandbox_id.clone(),
            bundle: request.bundle_path.clone().into(),
            kind: Kind::Api,
            init: Process::new(&request.sandbox_id, Names::default(), None),
            execs: Default::default(),
            leaving: Cell::new(false),
        };
        *self.api.borrow_mut() = Some(Made {
            container: Rc::new(container),
            options,
            spec,
            netns: (!request.netns_path.is_empty()).then(|| request.netns_path.clone().into()),
            created: SystemTime::now(),
            started: Cell::new(false),
        });
        Ok(CreateSandboxResponse::new())
    }

    async fn start_sandbox(self: &Rc<Self>, id: &str) -> Result<StartSandboxResponse> {
        let (container, options, created) =
            self.made(id, |made| (made.container.clone(), made.options.clone(), made.created))?;
        let unbundled = self.made(id, |made| Unbundled { spec: made.spec.clone(), netns: made.netns.clone() })?;
        let _turn = container.init.turn.lock().await;
        container.init.state.get().may_start()?;
        let machine = self.boot(&container.bundle, Role::Sandbox, Vec::new(), options, Some(unbundled)).await?;
        let entered = machine.create_pause(id).and_then(|()| self.follow(container.clone(), container.init.clone()));
        if let Err(error) = entered {
            self.stop_machine().await?;
            return Err(error);
        }
        container.init.state.set(State::Running);
        self.made(id, |made| made.started.set(true))?;
        let mut response = StartSandboxResponse::new();
        response.pid = Self::pid();
        response.created_at = Some(timestamp(created)).into();
        Ok(response)
    }

    async fn stop_sandbox(&self, id: &str, seconds: u32) -> Result<()> {
        let (container, running) = self.made(id, |made| (made.container.clone(), made.is_running()))?;
        if !running {
            if container.init.state.get() == State::Created {
                container.init.finish(Exit { status: 0, at: SystemTime::now() });
            }
            return Ok(());
        }
        let deadline = if seconds == 0 { STOP_DEADLINE } else { Duration::from_secs(seconds.into()) };
        let stop = async {
            if let Ok(machine) = self.machine() {
                machine.signal(id, None, libc::SIGKILL, true).await?;
            }
            container.init.wait().await.map(drop)
        };
        timeout(deadline, stop).await.unwrap_or_else(|_| {
            Err(Error::Deadline { what: format!("the end of the sandbox {id:?}"), seconds: deadline.as_secs() })
        })
    }

    async fn wait_sandbox(&self, id: &str) -> Result<WaitSandboxResponse> {
        let container = self.made(id, |made| made.container.clone())?;
        let exit = container.init.wait().await?;
        let mut response = WaitSandboxResponse::new();
        response.exit_status = exit.status;
        response.exited_at = Some(timestamp(exit.at)).into();
        Ok(response)
    }

    fn sandbox_status(&self, request: &SandboxStatusRequest) -> Result<SandboxStatusResponse> {
        self.made(&request.sandbox_id, |made| {
            let mut response = SandboxStatusResponse::new();
            response.sandbox_id = request.sandbox_id.clone();
            response.pid = if made.is_running() { Self::pid() } else { 0 };
            // The words of the CRI.
            response.state = if made.is_running() { "SANDBOX_READY" } else { "SANDBOX_NOTREADY" }.into();
            response.created_at = Some(timestamp(made.created)).into();
            if let Some(exit) = made.container.init.state.get().exit() {
                response.exited_at = Some(timestamp(exit.at)).into();
            }
            response
        })
    }

    async fn sandbox_metrics(&self, id: &str) -> Result<SandboxMetricsResponse> {
        self.made(id, |_| ())?;
        let statistics = self.machine()?.statistics(id).await?;
        let mut response = SandboxMetricsResponse::new();
        let metric = response.metrics.mut_or_insert_default();
        metric.id = id.into();
        metric.timestamp = Some(timestamp(SystemTime::now())).into();
        metric.data = Some(metrics(&statistics, self.settings.unified)?).into();
        Ok(response)
    }

    async fn shutdown_sandbox(&self, id: &str) -> Result<()> {
        // containerd also asks after it failed to create one.
        if self.made(id, |_| ()).is_ok() {
            self.stop_sandbox(id, 0).await?;
        }
        self.leave();
        Ok(())
    }
}

struct Door {
    desk: Desk,
}

/// Handlers that pass a request on. A body is for the thread that owns the pod.
macro_rules! pass {
    ($($name:ident($request:ident: $Request:ty) -> $Response:ty { |$pod:ident| $body:expr })*) => {
        #[async_trait]
        impl Sandbox for Door {
            $(async fn $name(&self, _: &TtrpcContext, $request: $Request) -> ttrpc::Result<$Response> {
                self.desk.ask(stringify!($name), move |$pod| Box::pin(async move { $body })).await
            })*
        }
    };
}

pass! {
    create_sandbox(request: CreateSandboxRequest) -> CreateSandboxResponse { |pod| pod.create_sandbox(&request) }
    start_sandbox(request: StartSandboxRequest) -> StartSandboxResponse {
        |pod| pod.start_sandbox(&request.sandbox_id).await
    }
    platform(_request: PlatformRequest) -> PlatformResponse { |_pod| Ok(platform()) }
    stop_sandbox(request: StopSandboxRequest) -> StopSandboxResponse {
        |pod| pod.stop_sandbox(&request.sandbox_id, request.timeout_secs).await.map(|()| StopSandboxResponse::new())
    }
    wait_sandbox(request: WaitSandboxRequest) -> WaitSandboxResponse {
        |pod| pod.wait_sandbox(&request.sandbox_id).await
    }
    sandbox_status(request: SandboxStatusRequest) -> SandboxStatusResponse { |pod| pod.sandbox_status(&request) }
    ping_sandbox(request: PingRequest) -> PingResponse {
        |pod| pod.made(&request.sandbox_id, |_| PingResponse::new())
    }
    shutdown_sandbox(request: ShutdownSandboxRequest) -> ShutdownSandboxResponse {
        |pod| pod.shutdown_sandbox(&request.sandbox_id).await.map(|()| ShutdownSandboxResponse::new())
    }
    sandbox_metrics(request: SandboxMetricsRequest) -> SandboxMetricsResponse {
        |pod| pod.sandbox_metrics(&request.sandbox_id).await
    }
}

/// Containers run on the guest's kernel, which is of the host's architecture where this service is asked; in Go's words.
fn platform() -> PlatformResponse {
    let mut response = PlatformResponse::new();
    let platform = response.platform.mut_or_insert_default();
    platform.os = "linux".into();
    platform.architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
    .into();
    response
}
