//! What happens to a container, told to whoever asks.

use std::{rc::Rc, time::Duration};

use agent_api::frame;
use tokio::{net::UnixStream, sync::broadcast};

use super::{
    hung_up,
    serve::{Host, failed},
};
use crate::{api::Reply, machine::ended};

/// How long after a container's end an event of it may come.
const LAST_WORDS: Duration = Duration::from_millis(200);

/// Tells what happens until the container stops.
pub(super) async fn tell(mut stream: UnixStream, host: Rc<Host>) {
    let ending = match host.sandbox.ending(host.container(), None) {
        Ok(ending) => ending,
        Err(error) => return drop(frame::write(&mut stream, &failed(error)).await),
    };
    let (mut heard, is_first) = host.recorder.listen();
    if is_first {
        host.sandbox.listen();
    }
    // One that was missed among others may have been this container's.
    let is_ours = |event: &Result<String, broadcast::error::RecvError>| match event {
        Ok(container) => container == host.container(),
        Err(broadcast::error::RecvError::Lagged(_)) => true,
        Err(broadcast::error::RecvError::Closed) => false,
    };
    if frame::write(&mut stream, &Reply::Done).await.is_err() {
        return;
    }
    let mut ending = std::pin::pin!(ended(ending));
    loop {
        tokio::select! {
            // What was heard before the end is told before it.
            biased;
            event = heard.recv() => {
                if is_ours(&event) && frame::write(&mut stream, &Reply::OutOfMemory).await.is_err() {
                    return;
                }
            }
            _ = &mut ending => break,
            () = hung_up(&stream) => return,
        }
    }
    // What killed it is told on another stream than its end.
    while let Ok(event) = tokio::time::timeout(LAST_WORDS, heard.recv()).await {
        if is_ours(&event) && frame::write(&mut stream, &Reply::OutOfMemory).await.is_err() {
            return;
        }
    }
}
