//! As much of HTTP/1.1 as a scraper of metrics speaks (RFC 9112): one request, one answer, and the connection ends.

use std::time::Duration;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    time::timeout,
};

/// Longest head of a request, bytes.
const MOST_HEAD: usize = 8192;
/// Most header lines of a request.
const MOST_HEADERS: usize = 64;
/// What is read of a request that was refused, bytes.
const MOST_UNREAD: u64 = 1 << 20;
/// How long a caller may take to ask, and to take the answer.
const DEADLINE: Duration = Duration::from_secs(10);

/// An answer.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) status: &'static str,
    pub(super) kind: &'static str,
    pub(super) body: String,
}

impl Answer {
    /// Text for whoever asked.
    pub(super) fn text(status: &'static str, body: impl Into<String>) -> Self {
        Self { status, kind: "text/plain; charset=utf-8", body: body.into() }
    }

    fn bytes(&self) -> Vec<u8> {
        let Self { status, kind, body } = self;
        let length = body.len();
        format!(
            "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
        )
        .into_bytes()
    }
}

/// Answers one request. `handle` is given the method and the path, without what follows a question mark.
pub(super) async fn answer<F: Future<Output = Answer>>(
    mut stream: UnixStream,
    handle: impl FnOnce(String, String) -> F,
) {
    let answer = match timeout(DEADLINE, head(&mut stream)).await {
        Ok(Some((method, path))) => handle(method, path).await,
        Ok(None) => Answer::text("400 Bad Request", "this is not HTTP\n"),
        Err(_) => return,
    };
    // A caller that has gone misses nothing.
    let _ = timeout(DEADLINE, async {
        stream.write_all(&answer.bytes()).await?;
        stream.shutdown().await?;
        // Closing with something unread would reset the connection and take the answer back.
        tokio::io::copy(&mut stream.take(MOST_UNREAD), &mut tokio::io::sink()).await
    })
    .await;
}

/// Reads a request's head.
async fn head(stream: &mut UnixStream) -> Option<(String, String)> {
    let mut bytes = Vec::new();
    loop {
        let mut buffer = [0; 1024];
        let count = stream.read(&mut buffer).await.ok().filter(|count| *count > 0)?;
        bytes.extend_from_slice(&buffer[..count]);
        let mut headers = [httparse::EMPTY_HEADER; MOST_HEADERS];
        let mut request = httparse::Request::new(&mut headers);
        match request.parse(&bytes) {
            Ok(httparse::Status::Complete(_)) => {
                let path = request.path?.split('?').next()?;
                return Some((request.method?.to_owned(), path.to_owned()));
            }
            Ok(httparse::Status::Partial) if bytes.len() < MOST_HEAD => {}
            _ => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn ask(request: &str) -> String {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let served = answer(theirs, |method, path| async move { Answer::text("200 OK", format!("{method} {path}")) });
        let asked = async {
            let mut ours = ours;
            ours.write_all(request.as_bytes()).await.unwrap();
            let mut text = String::new();
            ours.read_to_string(&mut text).await.unwrap();
            text
        };
        tokio::join!(served, asked).1
    }

    #[tokio::test]
    async fn a_request_is_answered_and_nonsense_is_refused() {
        let text = ask("GET /metrics?x=1 HTTP/1.1\r\nHost: shim\r\n\r\n").await;
        assert!(text.starts_with("HTTP/1.1 200 OK\r\n") && text.contains("Content-Length: 12\r\n"), "{text}");
        assert!(text.ends_with("\r\n\r\nGET /metrics"), "{text}");
        assert!(ask("nonsense\r\n\r\n").await.starts_with("HTTP/1.1 400"));
        let long = format!("GET / HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(2 * MOST_HEAD));
        assert!(ask(&long).await.starts_with("HTTP/1.1 400"));
    }
}
