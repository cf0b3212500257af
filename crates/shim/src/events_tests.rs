use std::sync::{Arc, Mutex};

use containerd_shim_protos::{
    api::Empty,
    shim_async::{Events, create_events},
    ttrpc::asynchronous::{Server, TtrpcContext},
};

use super::*;

#[derive(Clone, Default)]
pub(crate) struct Received(Arc<Mutex<Vec<Envelope>>>);

#[async_trait::async_trait]
impl Events for Received {
    async fn forward(&self, _: &TtrpcContext, request: ForwardRequest) -> ttrpc::Result<Empty> {
        self.0.lock().unwrap().push(request.envelope.unwrap_or_default());
        Ok(Empty::new())
    }
}

impl Received {
    pub(crate) async fn listen(&self, path: &str) -> Server {
        let service = create_events(Arc::new(self.clone()));
        let mut server = Server::new().bind(&format!("unix://{path}")).unwrap().register_service(service);
        server.start().await.unwrap();
        server
    }

    pub(crate) fn topics(&self) -> Vec<String> {
        self.0.lock().unwrap().iter().map(|event| event.topic.clone()).collect()
    }

    pub(crate) fn all(&self) -> Vec<Envelope> {
        self.0.lock().unwrap().clone()
    }
}

fn oom(id: &str) -> events::TaskOOM {
    let mut event = events::TaskOOM::new();
    event.container_id = id.into();
    event
}

fn destination(path: &str) -> Destination {
    Destination { namespace: "n".into(), socket: Some(path.into()), ..Destination::default() }
}

#[tokio::test]
async fn events_arrive_once_and_in_order_although_containerd_is_restarted() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("c.sock.ttrpc").display().to_string();
    let received = Received::default();
    let publisher = Publisher::new(destination(&path));
    let names: Vec<String> = (0..30).map(|number| number.to_string()).collect();
    // Nobody listens yet.
    names[..10].iter().for_each(|name| publisher.publish(&oom(name)));
    sleep(Duration::from_millis(120)).await;
    let mut server = received.listen(&path).await;
    names[10..20].iter().for_each(|name| publisher.publish(&oom(name)));
    timeout(Duration::from_secs(20), async {
        while received.all().len() < 20 {
            sleep(Duration::from_millis(10)).await;
        }
    })
    .await
    .unwrap();
    server.shutdown().await.unwrap();
    drop(server);
    std::fs::remove_file(&path).unwrap();
    names[20..].iter().for_each(|name| publisher.publish(&oom(name)));
    sleep(Duration::from_millis(120)).await;
    let _server = received.listen(&path).await;
    publisher.close(Duration::from_secs(20)).await;
    let arrived: Vec<String> = received
        .all()
        .iter()
        .map(|event| events::TaskOOM::parse_from_bytes(&event.event.value).unwrap().container_id)
        .collect();
    assert_eq!(arrived, names);
    let first = &received.all()[0];
    assert_eq!((first.namespace.as_str(), first.topic.as_str()), ("n", "/tasks/oom"));
    assert_eq!(first.event.type_url, "containerd.events.TaskOOM");
}

#[tokio::test]
async fn closing_does_not_wait_for_a_containerd_that_is_gone() {
    let publisher = Publisher::new(destination("/nonexistent/c.sock.ttrpc"));
    publisher.publish(&oom("x"));
    timeout(Duration::from_secs(20), publisher.close(Duration::from_millis(100))).await.unwrap();
}

#[tokio::test]
async fn without_a_socket_the_program_publishes() {
    use std::os::unix::fs::PermissionsExt;

    let directory = tempfile::tempdir().unwrap();
    let (program, seen) = (directory.path().join("publish"), directory.path().join("seen"));
    let script = format!("#!/bin/sh\necho \"$@\" >> {0}\ncat > {0}.content\n", seen.display());
    std::fs::write(&program, script).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o700)).unwrap();
    let publisher = Publisher::new(Destination {
        namespace: "n".into(),
        socket: None,
        grpc_address: "/c.sock".into(),
        program: Some(program),
    });
    publisher.publish(&oom("c"));
    publisher.close(Duration::from_secs(20)).await;
    let line = std::fs::read_to_string(&seen).unwrap();
    assert_eq!(line.trim(), "--address /c.sock publish --topic /tasks/oom --namespace n");
    let content = std::fs::read(format!("{}.content", seen.display())).unwrap();
    assert_eq!(Any::parse_from_bytes(&content).unwrap().type_url, "containerd.events.TaskOOM");
}
