//! Where stdio streams wait for the call that names them, and calls for their streams.
//!
//! The host opens a process's streams and makes the call that starts it at the same time, so either may come first.

use std::cell::RefCell;
use std::collections::HashMap;
use std::time::Duration;

use agent_api::{Fault, Stdio, StreamToken};
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout, timeout_at};

use crate::fault::{internal, invalid};
use crate::io::{BoxStream, Streams};

/// How many streams and calls may wait. A call has at most three streams.
const MAX_WAITING: usize = 256;
/// How long a stream waits for its call.
const STREAM_DEADLINE: Duration = Duration::from_secs(30);
/// How long a call waits for its streams.
const CALL_DEADLINE: Duration = Duration::from_secs(10);

enum Slot {
    /// With what tells the one who left it that it was taken.
    Stream(BoxStream, oneshot::Sender<()>),
    Call(oneshot::Sender<BoxStream>),
}

/// The table of tokens.
#[derive(Default)]
pub struct Tokens {
    waiting: RefCell<HashMap<StreamToken, Slot>>,
}

impl Tokens {
    /// Leaves a stream for the call that names `token`, and returns when it was taken or nobody came for it in time, in
    /// which case it is closed.
    ///
    /// # Errors
    /// When the token is in use or too much waits already.
    pub async fn park(&self, token: StreamToken, stream: BoxStream) -> Result<(), Fault> {
        let mut taken = {
            let mut waiting = self.waiting.borrow_mut();
            match waiting.remove(&token) {
                Some(Slot::Call(call)) => {
                    // A call that has given up meanwhile does not need its stream.
                    let _ = call.send(stream);
                    return Ok(());
                }
                Some(parked @ Slot::Stream(..)) => {
                    waiting.insert(token, parked);
                    return Err(invalid(format!("stream token {token} is in use already")));
                }
                None if waiting.len() >= MAX_WAITING => {
                    return Err(internal(format!("{MAX_WAITING} streams wait for the call that names them already")));
                }
                None => {
                    let (sender, taken) = oneshot::channel();
                    waiting.insert(token, Slot::Stream(stream, sender));
                    taken
                }
            }
        };
        if timeout(STREAM_DEADLINE, &mut taken).await.is_err() {
            self.waiting.borrow_mut().remove(&token);
        }
        Ok(())
    }

    /// Takes the streams that a call names, waiting for those that are not there yet.
    ///
    /// # Errors
    /// When one is claimed by two calls or does not come in time.
    pub async fn claim(&self, stdio: &Stdio, terminal: bool) -> Result<Streams, Fault> {
        let deadline = Instant::now() + CALL_DEADLINE;
        let stderr = if terminal { None } else { stdio.stderr };
        Ok(Streams {
            stdin: self.claim_one("stdin", stdio.stdin, deadline).await?,
            stdout: self.claim_one("stdout", stdio.stdout, deadline).await?,
            stderr: self.claim_one("stderr", stderr, deadline).await?,
        })
    }

    async fn claim_one(
        &self,
        name: &str,
        token: Option<StreamToken>,
        deadline: Instant,
    ) -> Result<Option<BoxStream>, Fault> {
        let Some(token) = token else { return Ok(None) };
        let call = {
            let mut waiting = self.waiting.borrow_mut();
            match waiting.remove(&token) {
                Some(Slot::Stream(stream, taken)) => {
                    // Who left it may have stopped waiting in this very moment.
                    let _ = taken.send(());
                    return Ok(Some(stream));
                }
                Some(call @ Slot::Call(_)) => {
                    waiting.insert(token, call);
                    return Err(invalid(format!("{name}: stream token {token} is claimed by another call")));
                }
                None if waiting.len() >= MAX_WAITING => {
                    return Err(internal(format!("{name}: {MAX_WAITING} streams are waited for already")));
                }
                None => {
                    let (sender, receiver) = oneshot::channel();
                    waiting.insert(token, Slot::Call(sender));
                    receiver
                }
            }
        };
        let arrived = timeout_at(deadline, call).await;
        if !matches!(arrived, Ok(Ok(_))) {
            self.waiting.borrow_mut().remove(&token);
        }
        match arrived {
            Ok(Ok(stream)) => Ok(Some(stream)),
            _ => Err(internal(format!(
                "the host did not open the {name} stream with token {token} within {} s",
                CALL_DEADLINE.as_secs()
            ))),
        }
    }
}

/// Waits for `future`, at most for `limit`.
///
/// # Errors
/// A fault that says what was waited for.
pub async fn within<T>(limit: Duration, what: &str, future: impl Future<Output = T>) -> Result<T, Fault> {
    timeout(limit, future).await.map_err(|_| internal(format!("{what} did not happen within {} s", limit.as_secs())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    fn stdin(token: StreamToken) -> Stdio {
        Stdio { stdin: Some(token), ..Stdio::default() }
    }

    #[tokio::test(flavor = "current_thread", start_paused = true)]
    async fn stream_and_call_meet_whichever_comes_first() {
        for stream_first in [true, false] {
            let tokens = Tokens::default();
            let (here, mut there) = duplex(64);
            let park = async {
                // It is over when the stream was taken, not when the deadline is.
                if !stream_first {
                    tokio::task::yield_now().await;
                }
                timeout(Duration::from_secs(1), tokens.park(5, Box::new(here))).await
            };
            let claim = async {
                if stream_first {
                    tokio::task::yield_now().await;
                }
                tokens.claim(&stdin(5), false).await
            };
            let (parked, claimed) = tokio::join!(park, claim);
            parked.unwrap().unwrap();
            claimed.unwrap().stdin.unwrap().write_all(b"x").await.unwrap();
            assert_eq!(there.read_u8().await.unwrap(), b'x');
        }
    }

    #[tokio::test(flavor = "current_thread", start_paused = true)]
    async fn a_stream_that_does_not_come_is_named() {
        let tokens = Tokens::default();
        let Err(fault) = tokens.claim(&stdin(9), false).await else { panic!("claimed nothing") };
        assert_eq!(fault.message, "the host did not open the stdin stream with token 9 within 10 s");
        assert!(tokens.waiting.borrow().is_empty());
    }

    #[tokio::test(flavor = "current_thread", start_paused = true)]
    async fn a_stream_nobody_names_is_closed() {
        let tokens = Tokens::default();
        let (here, mut there) = duplex(64);
        tokens.park(5, Box::new(here)).await.unwrap();
        assert_eq!(there.read(&mut [0]).await.unwrap(), 0);
    }

    #[tokio::test(flavor = "current_thread", start_paused = true)]
    async fn the_table_is_bounded_and_tokens_are_unique() {
        let tokens = std::rc::Rc::new(Tokens::default());
        let local = tokio::task::LocalSet::new();
        local
            .run_until(async {
                for token in 0..MAX_WAITING as u64 {
                    let tokens = tokens.clone();
                    tokio::task::spawn_local(async move { tokens.park(token, Box::new(duplex(1).0)).await });
                }
                while tokens.waiting.borrow().len() < MAX_WAITING {
                    tokio::task::yield_now().await;
                }
                let full = tokens.park(1000, Box::new(duplex(1).0)).await.unwrap_err();
                assert!(full.message.contains("256 streams wait"), "{full}");
                let twice = tokens.park(0, Box::new(duplex(1).0)).await.unwrap_err();
                assert_eq!(twice.kind, agent_api::FaultKind::InvalidArgument);
            })
            .await;
    }
}
