//! Spans for a collector of traces: OpenTelemetry's protocol in its JSON form, over HTTP.
//!
//! A few lines of HTTP/1.1 instead of OpenTelemetry's own library, which would bring an HTTP client, and mostly its own machinery of recording, to
//! what is one POST a start. It is sent by a thread of its own in the network namespace that the host's process began in, with a deadline, and
//! what becomes of it changes nothing.

use std::{
    io::{Read, Write},
    net::{TcpStream, ToSocketAddrs},
    sync::Arc,
    time::{Duration, Instant},
};

use config::OtlpEndpoint;
use network::Namespace;
use serde_json::{Value, json};

use super::{Span, Timeline};

/// How long a collector may take.
const DEADLINE: Duration = Duration::from_secs(5);
/// The thread's: the collector's name is looked up on it.
const STACK: usize = 256 << 10;

/// Exports the spans of one sandbox, all under one trace.
pub(crate) struct Tracer {
    endpoint: OtlpEndpoint,
    home: Option<Arc<Namespace>>,
    sandbox: String,
    trace: String,
    root: String,
    /// Steps that were exported.
    sent: usize,
}

impl Tracer {
    /// One for a sandbox. `home` is the network namespace that the collector is reached from.
    pub(crate) fn new(endpoint: OtlpEndpoint, home: Option<Arc<Namespace>>, sandbox: &str) -> Self {
        Self { endpoint, home, sandbox: sandbox.into(), trace: random(16), root: random(8), sent: 0 }
    }

    /// Exports what has come to the timeline since the last time. Does not wait.
    pub(crate) fn export(&mut self, timeline: &Timeline) {
        let Some(body) = self.body(timeline) else { return };
        let (endpoint, home) = (self.endpoint.clone(), self.home.clone());
        let work = move || {
            let entered = home.map_or(Ok(()), |home| home.enter());
            let sent = entered.map_err(|error| error.to_string()).and_then(|()| post(&endpoint, body.as_bytes()));
            if let Err(problem) = sent {
                eprintln!("the trace was not exported to {endpoint}: {problem}");
            }
        };
        let started = std::thread::Builder::new().name("otlp".into()).stack_size(STACK).spawn(work);
        if let Err(error) = started {
            eprintln!("the trace was not exported: {error}");
        }
    }

    /// The message; none if there is nothing new.
    fn body(&mut self, timeline: &Timeline) -> Option<String> {
        let spans = timeline.spans();
        let steps: Vec<&Span> = spans.iter().filter(|span| span.step.is_some()).collect();
        let new = steps.get(self.sent..).filter(|new| !new.is_empty())?;
        let first = self.sent == 0;
        self.sent = steps.len();
        let mut out = Vec::new();
        if first {
            let end_ns = steps.last().map_or(0, |span| span.end_ns);
            out.push(self.span(timeline, (&self.root, ""), "sandbox start", (0, end_ns), &[]));
        }
        let phases: Vec<(String, &Span)> =
            spans.iter().filter(|span| first && span.step.is_none()).map(|span| (random(8), span)).collect();
        for (id, span) in &phases {
            out.push(self.span(timeline, (id, &self.root), span.phase.name(), (span.start_ns, span.end_ns), &[]));
        }
        for span in new {
            let Some(step) = &span.step else { continue };
            let parent = phases.iter().find(|(_, phase)| phase.phase == span.phase).map_or(&self.root, |(id, _)| id);
            let attributes = [("kata.actor", step.actor.as_str()), ("kata.phase", span.phase.name())];
            let times = (span.start_ns, span.end_ns);
            out.push(self.span(timeline, (&random(8), parent), &step.name, times, &attributes));
        }
        let resource = [("service.name", "kata-containers"), ("service.version", env!("CARGO_PKG_VERSION"))];
        let body = json!({"resourceSpans": [{
            "resource": {"attributes": attributes(&resource)},
            "scopeSpans": [{"scope": {"name": "kata-runtime", "version": env!("CARGO_PKG_VERSION")}, "spans": out}],
        }]});
        Some(body.to_string())
    }

    fn span(
        &self,
        timeline: &Timeline,
        (id, parent): (&str, &str),
        name: &str,
        (start, end): (u64, u64),
        more: &[(&str, &str)],
    ) -> Value {
        const INTERNAL: u8 = 1;
        let unix = |ns: u64| timeline.begun_unix_ns.saturating_add(ns).to_string();
        let mut all = vec![("kata.sandbox", self.sandbox.as_str())];
        all.extend(more);
        json!({
            "traceId": self.trace, "spanId": id, "parentSpanId": parent, "name": name, "kind": INTERNAL,
            "startTimeUnixNano": unix(start), "endTimeUnixNano": unix(end), "attributes": attributes(&all),
        })
    }
}

fn attributes(pairs: &[(&str, &str)]) -> Value {
    pairs.iter().map(|(key, value)| json!({"key": key, "value": {"stringValue": value}})).collect()
}

/// So many random bytes, in hexadecimal. Identifiers only have to be different.
fn random(bytes: usize) -> String {
    let mut buffer = vec![0; bytes];
    let _better_than_none = rustix::rand::getrandom(&mut buffer, rustix::rand::GetRandomFlags::empty());
    buffer.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Posts the message, within [`DEADLINE`] in all.
fn post(endpoint: &OtlpEndpoint, body: &[u8]) -> Result<(), String> {
    let end = Instant::now() + DEADLINE;
    let left = || end.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
    let addresses = (endpoint.host.as_str(), endpoint.port).to_socket_addrs();
    let addresses = addresses.map_err(|error| format!("look up {}: {error}", endpoint.host))?;
    let mut last = format!("{} has no address", endpoint.host);
    let mut connected = None;
    for address in addresses {
        match TcpStream::connect_timeout(&address, left()) {
            Ok(stream) => {
                connected = Some(stream);
                break;
            }
            Err(error) => last = format!("connect to {address}: {error}"),
        }
    }
    let mut stream = connected.ok_or(last)?;
    let failed = |error: std::io::Error| format!("speak to it: {error}");
    let head = format!(
        "POST {} HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        endpoint.path,
        endpoint.authority(),
        body.len()
    );
    stream.set_write_timeout(Some(left())).map_err(failed)?;
    stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body)).map_err(failed)?;
    stream.set_read_timeout(Some(left())).map_err(failed)?;
    // No more of it is read than its status.
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).map_err(failed)?;
    let status = String::from_utf8_lossy(&answer);
    match status.strip_prefix("HTTP/1.").and_then(|rest| rest.get(2..5)) {
        Some(code) if code.starts_with('2') => Ok(()),
        _ => Err(format!("it answered {:?}", status.trim())),
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::{super::tests::usual, *};

    fn tracer(port: u16) -> Tracer {
        Tracer::new(format!("http://127.0.0.1:{port}").parse().unwrap(), None, "pod")
    }

    #[test]
    fn spans_are_of_one_trace_and_sent_once() {
        let (mut tracer, mut timeline) = (tracer(1), usual());
        let body: Value = serde_json::from_str(&tracer.body(&timeline).unwrap()).unwrap();
        let spans = body["resourceSpans"][0]["scopeSpans"][0]["spans"].as_array().unwrap();
        assert_eq!(spans.len(), 1 + 6 + 11);
        let root = &spans[0];
        assert_eq!(root["name"], "sandbox start");
        assert_eq!(root["startTimeUnixNano"], "1700000000000000000");
        assert_eq!(root["endTimeUnixNano"], "1700000001100000000");
        assert!(spans.iter().all(|span| span["traceId"] == root["traceId"]));
        let kernel = spans.iter().find(|span| span["name"] == "kernel").unwrap();
        assert_eq!(kernel["parentSpanId"], root["spanId"]);
        let step = spans.iter().find(|span| span["name"] == "agent-started").unwrap();
        assert_eq!(step["parentSpanId"], kernel["spanId"]);
        assert_eq!(tracer.body(&timeline), None);
        timeline.mark_at("host", "container-started", 1_200_000_000);
        let body: Value = serde_json::from_str(&tracer.body(&timeline).unwrap()).unwrap();
        let spans = body["resourceSpans"][0]["scopeSpans"][0]["spans"].as_array().unwrap();
        assert_eq!((spans.len(), &spans[0]["name"]), (1, &json!("container-started")));
    }

    #[test]
    fn a_collector_is_posted_to_and_its_refusal_is_said() {
        for (answer, expected) in [
            ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}", Ok(())),
            ("HTTP/1.1 404 Not Found\r\n\r\n", Err("it answered \"HTTP/1.1 404\"".to_owned())),
        ] {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let endpoint = tracer(listener.local_addr().unwrap().port()).endpoint;
            let collector = std::thread::spawn(move || {
                let (mut stream, _) = listener.accept().unwrap();
                let mut request = Vec::new();
                while !request.ends_with(b"{\"a\":1}") {
                    let mut byte = [0];
                    stream.read_exact(&mut byte).unwrap();
                    request.push(byte[0]);
                }
                stream.write_all(answer.as_bytes()).unwrap();
                String::from_utf8(request).unwrap()
            });
            assert_eq!(post(&endpoint, b"{\"a\":1}"), expected);
            let request = collector.join().unwrap();
            assert!(request.starts_with("POST /v1/traces HTTP/1.1\r\nHost: 127.0.0.1:"), "{request}");
        }
    }

    #[test]
    fn nobody_there_is_said_at_once() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        let problem = post(&tracer(port).endpoint, b"{}").unwrap_err();
        assert!(problem.contains("connect to 127.0.0.1"), "{problem}");
    }
}
