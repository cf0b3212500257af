//! gRPC over a Unix socket: one call, one connection.

use std::{
    fmt,
    path::{Path, PathBuf},
    time::Duration,
};

use serde_json::Value;
use tokio::net::UnixStream;

use crate::proto;

/// Why a call failed, as the server says.
#[derive(Debug, Clone)]
pub struct Failure {
    /// The status: 5 is "not found", for one.
    pub code: u32,
    /// The message.
    pub message: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(to, "{} (code {})", self.message, self.code)
    }
}

/// A service behind a socket.
#[derive(Debug)]
pub struct Service {
    /// The socket.
    pub socket: PathBuf,
    /// The service's full name.
    pub name: &'static str,
    /// Metadata of every call.
    pub metadata: Vec<(&'static str, String)>,
}

impl Service {
    /// Calls a method with a message `METHODRequest`; gives a `METHODResponse`.
    pub fn call(&self, method: &str, request: &Value) -> Result<Value, Failure> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let message = proto::encode(&format!("{method}Request"), request);
        let path = format!("/{}/{method}", self.name);
        let call = unary(&self.socket, &path, &self.metadata, &message);
        let answer = runtime.block_on(async { tokio::time::timeout(e2e::DEADLINE, call).await });
        let answer =
            answer.unwrap_or_else(|_| panic!("{method} gives no answer within {:?}: {request}", e2e::DEADLINE));
        Ok(proto::decode(&format!("{method}Response"), &answer?))
    }
}

fn broken(reason: impl fmt::Display) -> Failure {
    // What gRPC calls "unavailable".
    Failure { code: 14, message: reason.to_string() }
}

async fn unary(socket: &Path, path: &str, metadata: &[(&str, String)], message: &[u8]) -> Result<Vec<u8>, Failure> {
    let stream = UnixStream::connect(socket).await.map_err(broken)?;
    let (mut client, connection) = h2::client::handshake(stream).await.map_err(broken)?;
    let driver = tokio::spawn(async move {
        let _ = connection.await;
    });
    let mut request = http::Request::post(format!("http://localhost{path}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers");
    for (key, value) in metadata {
        request = request.header(*key, value);
    }
    let (response, mut body) = client.send_request(request.body(()).unwrap(), false).map_err(broken)?;
    let mut frame = vec![0];
    frame.extend((message.len() as u32).to_be_bytes());
    frame.extend(message);
    body.send_data(frame.into(), true).map_err(broken)?;
    let response = response.await.map_err(broken)?;
    let (head, mut body) = response.into_parts();
    let mut answer = Vec::new();
    while let Some(chunk) = body.data().await {
        let chunk = chunk.map_err(broken)?;
        let _ = body.flow_control().release_capacity(chunk.len());
        answer.extend_from_slice(&chunk);
    }
    let trailers = body.trailers().await.map_err(broken)?.unwrap_or(head.headers);
    driver.abort();
    let text = |name| trailers.get(name).and_then(|value| value.to_str().ok());
    match text("grpc-status").and_then(|code| code.parse().ok()) {
        Some(0) => Ok(answer.split_off(5.min(answer.len()))),
        Some(code) => Err(Failure { code, message: unescaped(text("grpc-message").unwrap_or_default()) }),
        None => Err(broken("an answer without a status")),
    }
}

/// Undoes the percent-encoding of messages.
fn unescaped(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let [first, after @ ..] = rest {
        let hex = after.get(..2).and_then(|hex| u8::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok());
        match hex {
            Some(byte) if *first == b'%' => {
                bytes.push(byte);
                rest = &after[2..];
            }
            _ => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// How often something that is waited for is looked at.
pub(crate) const POLL: Duration = Duration::from_millis(50);

#[cfg(test)]
mod tests {
    #[test]
    fn escapes_are_undone() {
        assert_eq!(super::unescaped("50%25 of %22x%22 %"), "50% of \"x\" %");
    }
}
