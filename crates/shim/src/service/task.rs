//! The Task service, under the names of its versions 2 (containerd 1.6 and 1.7, and 2 for a shim of version 2) and 3, which differ in nothing else.

use std::{collections::HashMap, sync::Arc};

use async_trait::async_trait;
use containerd_shim_protos::{
    api::{
        CheckpointTaskRequest, CloseIORequest, ConnectRequest, ConnectResponse, CreateTaskRequest, CreateTaskResponse,
        DeleteRequest, DeleteResponse, Empty, ExecProcessRequest, KillRequest, PauseRequest, PidsRequest, PidsResponse,
        ResizePtyRequest, ResumeRequest, ShutdownRequest, StartRequest, StartResponse, StateRequest, StateResponse,
        StatsRequest, StatsResponse, UpdateTaskRequest, WaitRequest, WaitResponse,
    },
    shim_async::{Task, create_task},
    ttrpc::{
        self,
        asynchronous::{Service, TtrpcContext},
    },
};

use super::Desk;
use crate::Error;

/// The name of version 2, which the generated code does not know.
const VERSION_2: &str = "containerd.task.v2.Task";

/// The service under both names.
pub(crate) fn services(desk: &Desk) -> HashMap<String, Service> {
    let make = || create_task(Arc::new(Door { desk: desk.clone() }));
    let mut services = make();
    services.extend(make().into_values().map(|service| (VERSION_2.to_string(), service)));
    services
}

struct Door {
    desk: Desk,
}

/// Handlers that pass a request on. A body is for the thread that owns the pod.
macro_rules! pass {
    ($($name:ident($request:ident: $Request:ty) -> $Response:ty { |$pod:ident| $body:expr })*) => {
        #[async_trait]
        impl Task for Door {
            $(async fn $name(&self, _: &TtrpcContext, $request: $Request) -> ttrpc::Result<$Response> {
                self.desk.ask(stringify!($name), move |$pod| Box::pin(async move { $body })).await
            })*
        }
    };
}

pass! {
    create(request: CreateTaskRequest) -> CreateTaskResponse { |pod| pod.create(&request).await }
    start(request: StartRequest) -> StartResponse { |pod| pod.start(&request).await }
    delete(request: DeleteRequest) -> DeleteResponse { |pod| pod.delete(&request).await }
    exec(request: ExecProcessRequest) -> Empty { |pod| pod.exec(&request).map(empty) }
    resize_pty(request: ResizePtyRequest) -> Empty { |pod| pod.resize(&request).await.map(empty) }
    close_io(request: CloseIORequest) -> Empty { |pod| pod.close_io(&request).map(empty) }
    state(request: StateRequest) -> StateResponse { |pod| pod.state(&request) }
    wait(request: WaitRequest) -> WaitResponse { |pod| pod.wait(&request).await }
    kill(request: KillRequest) -> Empty { |pod| pod.kill(&request).await.map(empty) }
    pids(request: PidsRequest) -> PidsResponse { |pod| pod.pids(&request) }
    pause(request: PauseRequest) -> Empty { |pod| pod.pause(&request.id).await.map(empty) }
    resume(request: ResumeRequest) -> Empty { |pod| pod.resume(&request.id).await.map(empty) }
    update(request: UpdateTaskRequest) -> Empty { |pod| pod.update(&request).await.map(empty) }
    stats(request: StatsRequest) -> StatsResponse { |pod| pod.stats(&request).await }
    connect(request: ConnectRequest) -> ConnectResponse { |pod| Ok(pod.connect(&request)) }
    shutdown(_request: ShutdownRequest) -> Empty {
        |pod| {
            pod.shutdown();
            Ok(Empty::new())
        }
    }
    checkpoint(request: CheckpointTaskRequest) -> Empty {
        |pod| {
            pod.container(&request.id)?;
            Err(Error::Unimplemented(format!(
                "checkpoint of container {:?} is not supported: the state of its processes is a virtual machine's",
                request.id
            )))
        }
    }
}

fn empty((): ()) -> Empty {
    Empty::new()
}
