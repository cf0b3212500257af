//! Frames of JSON: of the agent, of the host, and of callers of the daemon.

use std::{
    fmt::Debug,
    io::Read,
    pin::pin,
    task::{Context, Poll, Waker},
};

use agent_api::{
    Reply, Request,
    frame::{self, MAX_REPLY, MAX_REQUEST},
    names::{self, MAX_ANSWER},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

use crate::agent_spec;

/// What a future gives that has nothing to wait for.
fn now<F: Future>(future: F) -> F::Output {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => output,
        Poll::Pending => panic!("it waits for more than all there is"),
    }
}

/// Reads frames until there are none, by both readers, and gives them.
fn all<T: DeserializeOwned + Debug>(data: &[u8], limit: usize) -> Vec<T> {
    let (mut blocking, mut waiting) = (data, data);
    let mut read = Vec::new();
    loop {
        let one = frame::read_blocking::<T>(&mut blocking, limit);
        let other = now(frame::read::<T>(&mut waiting, limit));
        match (one, other) {
            (Ok(one), Ok(_)) => {
                assert_eq!(blocking, waiting);
                read.push(one);
            }
            (Err(one), Err(other)) => {
                assert_eq!(one.to_string(), other.to_string());
                return read;
            }
            (one, other) => panic!("{one:?} is not {other:?}"),
        }
    }
}

/// What was understood must come back as it is.
fn same_again<T: Serialize + DeserializeOwned>(message: &T, limit: usize) {
    let once = frame::encode(message).expect("what was read can be written");
    // As much as was read at the most; escapes may make it longer.
    let back: T = match frame::read_blocking(&mut once.as_slice(), usize::MAX) {
        Ok(back) => back,
        Err(error) => panic!("what was written cannot be read: {error:?} {:?}", String::from_utf8_lossy(&once)),
    };
    let twice = frame::encode(&back).expect("what was read can be written");
    let value = |bytes: &[u8]| ordered(serde_json::from_slice(&bytes[4..]).unwrap());
    assert_eq!(value(&once), value(&twice));
    assert!(once.len() <= 8 * limit);
}

/// Maps and sets may come in another order. The sets are those of capabilities.
fn ordered(value: Value) -> Value {
    match value {
        Value::Object(members) => members.into_iter().map(|(key, value)| (key, ordered(value))).collect(),
        Value::Array(mut items) => {
            if items.iter().all(|item| item.as_str().is_some_and(|name| name.starts_with("CAP_"))) {
                items.sort_by_key(|item| item.as_str().map(str::to_owned));
            }
            items.into_iter().map(ordered).collect()
        }
        other => other,
    }
}

pub(crate) fn reply(data: &[u8]) {
    for reply in all::<Reply>(data, MAX_REPLY) {
        same_again(&reply, MAX_REPLY);
    }
}

pub(crate) fn request(data: &[u8]) {
    all::<agent_spec::Request>(data, MAX_REQUEST);
    for request in all::<Request>(data, MAX_REQUEST) {
        let bytes = frame::encode(&request).expect("what was read can be written");
        let heard = frame::read_blocking::<agent_spec::Request>(&mut bytes.as_slice(), usize::MAX);
        match heard {
            Ok(heard) => assert_eq!(heard.name(), request.name()),
            // What the agent does not take it says so, and the host checks the bundle before it sends it.
            Err(error) => assert!(matches!(error, frame::FrameError::Json(_)), "{error:?}"),
        }
    }
}

pub(crate) fn names(data: &[u8]) {
    let mut rest = data;
    while let Ok(message) = now(names::read(&mut rest, MAX_ANSWER)) {
        let mut written = Vec::new();
        now(names::write(&mut written, &message)).expect("what was read can be written");
        assert_eq!(now(names::read(&mut written.as_slice(), MAX_ANSWER)).unwrap(), message);
    }
}

pub(crate) fn daemon(data: &[u8]) {
    let mut kind = [0];
    let mut data = data;
    let _ = data.read(&mut kind);
    if kind[0] & 1 == 0 {
        for request in all::<sandbox::api::Request>(data, MAX_REQUEST) {
            same_again(&request, MAX_REQUEST);
        }
    } else {
        for reply in all::<sandbox::api::Reply>(data, MAX_REPLY) {
            same_again(&reply, MAX_REPLY);
        }
    }
}
