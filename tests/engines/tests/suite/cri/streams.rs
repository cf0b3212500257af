//! Streaming exec and attach, with and without a terminal, and forwarded ports.

use std::io::{Read, Write};

use engines::{Containerd, Handler, cases, cri::Node, stream::Stream};
use serde_json::{Value, json};

use super::{PLAIN, wait_until};

cases!(exec_streams, exec_on_a_terminal, attach, attach_on_a_terminal, port_forward);

fn open(node: &Node<'_>, method: &str, request: &Value) -> Stream {
    let url = node.ok(method, request)["url"].as_str().unwrap().to_owned();
    Stream::open(&node.engine.host.network(), &url)
}

fn exec_streams(engine: &Containerd, handler: Handler) -> Value {
    let node = Node::new(engine, handler);
    let pod = node.pod("streams", &PLAIN);
    let container = pod.idle("main", &PLAIN);
    let script = "read line; echo \"got $line\"; echo err >&2; exit 5";
    let request =
        json!({"container_id": container, "cmd": ["sh", "-c", script], "stdin": true, "stdout": true, "stderr": true});
    let mut stream = open(&node, "Exec", &request);
    stream.send(0, b"words\n");
    let code = stream.finish();
    assert_eq!((code, stream.seen(1).as_str(), stream.seen(2).as_str()), (5, "got words\n", "err\n"));
    let request = json!({"container_id": container, "cmd": ["seq", "1", "100000"], "stdout": true, "stderr": true});
    let mut much = open(&node, "Exec", &request);
    assert_eq!(much.finish(), 0);
    assert_eq!(much.seen(1).lines().count(), 100_000);
    pod.remove();
    json!([code, stream.seen(1), stream.seen(2)])
}

fn exec_on_a_terminal(engine: &Containerd, handler: Handler) -> Value {
    let node = Node::new(engine, handler);
    let pod = node.pod("tty", &PLAIN);
    let container = pod.idle("main", &PLAIN);
    let mut stream = open(
        &node,
        "Exec",
        &json!({"container_id": container, "cmd": ["sh"], "stdin": true, "stdout": true, "tty": true}),
    );
    stream.resize(33, 77);
    stream.send(0, b"until [ \"$(stty size)\" = '33 77' ]; do sleep 0.1; done; echo fir''st\n");
    stream.expect(1, "first\r\n");
    stream.resize(50, 120);
    stream.send(0, b"until [ \"$(stty size)\" = '50 120' ]; do sleep 0.1; done; echo sec''ond; tty\n");
    stream.expect(1, "second\r\n");
    stream.send(0, b"exit 8\n");
    let code = stream.finish();
    assert_eq!(code, 8);
    pod.remove();
    json!(code)
}

fn attach(engine: &Containerd, handler: Handler) -> Value {
    let node = Node::new(engine, handler);
    let pod = node.pod("attached", &PLAIN);
    let script = "while read line; do echo \"got $line\"; echo \"err $line\" >&2; [ \"$line\" != end ] || exit 6; done";
    let container = pod.run("main", &["sh", "-c", script], &json!({"stdin": true}));
    let request = json!({"container_id": container, "stdin": true, "stdout": true, "stderr": true});
    let mut first = open(&node, "Attach", &request);
    first.send(0, b"one\n");
    first.expect(1, "got one\n");
    first.expect(2, "err one\n");
    drop(first);
    // It goes on without the one, and another one can come.
    let mut second = open(&node, "Attach", &request);
    second.send(0, b"two\n");
    second.expect(1, "got two\n");
    // What comes last need not reach who is attached: containerd closes the stream at the container's end. The log has it.
    second.send(0, b"end\n");
    let status = node.wait(&container);
    wait_until("all is in the log", || pod.log("main").len() == 6);
    let mut log = pod.log("main");
    log.sort();
    pod.remove();
    assert_eq!(status["exit_code"], 6);
    json!([status["exit_code"], log])
}

fn attach_on_a_terminal(engine: &Containerd, handler: Handler) -> Value {
    let node = Node::new(engine, handler);
    let pod = node.pod("attached", &PLAIN);
    let container = pod.run("main", &["sh"], &json!({"stdin": true, "tty": true}));
    let mut stream =
        open(&node, "Attach", &json!({"container_id": container, "stdin": true, "stdout": true, "tty": true}));
    stream.resize(41, 91);
    stream.send(0, b"until [ \"$(stty size)\" = '41 91' ]; do sleep 0.1; done; echo re''ady\n");
    stream.expect(1, "ready\r\n");
    stream.send(0, b"exit 7\n");
    let status = node.wait(&container);
    pod.remove();
    assert_eq!(status["exit_code"], 7);
    json!(status["exit_code"])
}

fn port_forward(engine: &Containerd, handler: Handler) -> Value {
    let node = Node::new(engine, handler);
    let pod = node.pod("forwarded", &PLAIN);
    let server = pod.run("main", &["httpd", "-f", "-p", "127.0.0.1:8080", "-h", "/etc"], &PLAIN);
    node.until(&server, "wget -qO- http://127.0.0.1:8080/from-image");
    let url =
        node.ok("PortForward", &json!({"pod_sandbox_id": pod.id, "port": [8080]}))["url"].as_str().unwrap().to_owned();
    let mut stream = Stream::open(&engine.host.network(), &url);
    // Each channel begins with the port's number.
    stream.send(0, b"GET /from-image HTTP/1.0\r\n\r\n");
    let answer = stream.expect(0, "of the image\n");
    assert!(answer.contains("200 OK"), "{answer}");
    drop(stream);
    // Nothing else is reachable from the node at that address.
    let address = format!("{}:8080", pod.addresses()[0]).parse().unwrap();
    let refused = engines::stream::connect(&engine.host.network(), address).and_then(|mut tcp| {
        tcp.write_all(b"GET /from-image HTTP/1.0\r\n\r\n")?;
        tcp.read(&mut [0; 16])
    });
    pod.remove();
    assert!(refused.is_err(), "{refused:?}");
    Value::Null
}
