//! The port by which commands go into the machine and their output comes back (`system/usr/local/sbin/lab-agent` is the other end).

use std::time::Duration;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    time::{Instant, timeout_at},
};

use crate::Result;

/// What stands before a status, so that other bytes are output.
const MARK: &[u8] = b"\0lab:";
/// No status is longer.
const LONGEST: usize = MARK.len() + 8;

/// What came by the port.
#[derive(Debug, PartialEq, Eq)]
enum Came {
    Output(Vec<u8>),
    Status(String),
}

/// Tells output from statuses, whatever pieces they come in.
#[derive(Default)]
struct Decoder(Vec<u8>);

impl Decoder {
    fn feed(&mut self, bytes: &[u8]) -> Vec<Came> {
        self.0.extend_from_slice(bytes);
        let mut came = Vec::new();
        let mut from = 0;
        while let Some(nul) = self.0[from..].iter().position(|byte| *byte == 0).map(|at| from + at) {
            let rest = &self.0[nul..];
            let known = rest.len().min(MARK.len());
            if rest[..known] == MARK[..known] {
                if let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
                    let status = String::from_utf8_lossy(&rest[MARK.len()..end]).into_owned();
                    output(&mut came, &self.0[..nul]);
                    came.push(Came::Status(status));
                    self.0.drain(..=nul + end);
                    from = 0;
                    continue;
                }
                if rest.len() < LONGEST {
                    output(&mut came, &self.0[..nul]);
                    self.0.drain(..nul);
                    return came;
                }
            }
            from = nul + 1;
        }
        output(&mut came, &std::mem::take(&mut self.0));
        came
    }
}

fn output(came: &mut Vec<Came>, bytes: &[u8]) {
    if !bytes.is_empty() {
        came.push(Came::Output(bytes.to_vec()));
    }
}

/// The host's end.
pub struct Port {
    stream: UnixStream,
    decoder: Decoder,
}

impl Port {
    pub fn new(stream: UnixStream) -> Self {
        Self { stream, decoder: Decoder::default() }
    }

    /// Waits for the next status and hands on the output before it. `silence` is how long nothing may come.
    async fn status(&mut self, silence: Duration, sink: &mut dyn FnMut(&[u8])) -> Result<String> {
        let mut bytes = vec![0; 64 << 10];
        loop {
            let read = timeout_at(Instant::now() + silence, self.stream.read(&mut bytes)).await;
            let count = match read {
                Err(_) => return Err(format!("nothing comes from the machine for {} s", silence.as_secs())),
                Ok(Err(e)) => return Err(format!("read from the machine: {e}")),
                Ok(Ok(0)) => return Err("the machine has ended; its console said why".into()),
                Ok(Ok(count)) => count,
            };
            let mut status = None;
            for came in self.decoder.feed(&bytes[..count]) {
                match came {
                    Came::Output(bytes) => sink(&bytes),
                    Came::Status(text) => status = Some(text),
                }
            }
            if let Some(status) = status {
                return Ok(status);
            }
        }
    }

    /// Waits until a machine that boots says that it takes commands.
    pub async fn ready(&mut self, patience: Duration) -> Result<()> {
        match self.status(patience, &mut |_| {}).await?.as_str() {
            "ready" => Ok(()),
            other => Err(format!("the machine says {other} in place of ready")),
        }
    }

    /// Runs a line as root's shell would, hands its output on as it comes and gives its exit status.
    pub async fn run(&mut self, line: &str, silence: Duration, sink: &mut dyn FnMut(&[u8])) -> Result<i32> {
        if line.contains('\n') {
            return Err(format!("a command in the lab is one line: {line:?}"));
        }
        let sent = self.stream.write_all(format!("{line}\n").as_bytes()).await;
        sent.map_err(|e| format!("send a command to the machine: {e}"))?;
        let status = self.status(silence, sink).await?;
        status.parse().map_err(|_| format!("the machine says {status} in place of an exit status of `{line}`"))
    }

    /// The same, of a command that must succeed.
    pub async fn ok(&mut self, line: &str, silence: Duration) -> Result<String> {
        let mut said = Vec::new();
        let status = self.run(line, silence, &mut |bytes| said.extend_from_slice(bytes)).await?;
        let said = String::from_utf8_lossy(&said).into_owned();
        if status == 0 { Ok(said) } else { Err(format!("in the machine `{line}` failed ({status}): {said}")) }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn decoded(pieces: &[&[u8]]) -> (Vec<u8>, Vec<String>) {
        let mut decoder = Decoder::default();
        let (mut bytes, mut statuses) = (Vec::new(), Vec::new());
        for came in pieces.iter().flat_map(|piece| decoder.feed(piece)) {
            match came {
                Came::Output(more) => bytes.extend(more),
                Came::Status(status) => statuses.push(status),
            }
        }
        (bytes, statuses)
    }

    #[test]
    fn a_status_is_told_from_output_in_whatever_pieces_it_comes() {
        let whole: &[u8] = b"one\0two\0lab\n\0lab:17\nthree\0lab:ready\n\0\0lab:0\n";
        let expected = (b"one\0two\0lab\nthree\0".to_vec(), vec!["17".to_owned(), "ready".into(), "0".into()]);
        assert_eq!(decoded(&[whole]), expected);
        let bytes: Vec<&[u8]> = whole.chunks(1).collect();
        assert_eq!(decoded(&bytes), expected);
    }

    #[test]
    fn output_is_not_kept_back() {
        let mut decoder = Decoder::default();
        assert_eq!(decoder.feed(b"no line yet"), [Came::Output(b"no line yet".to_vec())]);
        assert_eq!(decoder.feed(b"\0lab:"), []);
        assert_eq!(decoder.feed(b"a long text, no status"), [Came::Output(b"\0lab:a long text, no status".to_vec())]);
    }
}
