//! What the host is told without asking for it each time: [`Event`]s, which wait until it listens.

use std::cell::RefCell;
use std::collections::VecDeque;

use agent_api::{Event, Reply, frame};
use tokio::io::AsyncReadExt;
use tokio::sync::Notify;

use crate::io::BoxStream;

/// How many events may wait. With nobody listening, older ones are dropped for newer ones.
const MAX_WAITING: usize = 128;

/// Events that nobody was told yet.
#[derive(Default)]
pub struct Events {
    waiting: RefCell<VecDeque<Event>>,
    arrived: Notify,
}

impl Events {
    /// Something has happened.
    pub fn push(&self, event: Event) {
        let mut waiting = self.waiting.borrow_mut();
        if waiting.len() == MAX_WAITING {
            waiting.pop_front();
        }
        waiting.push_back(event);
        self.arrived.notify_one();
    }

    /// Tells a stream everything that waits and that happens, until the host closes it. Each event is told to one stream.
    pub async fn tell(&self, stream: &mut BoxStream) {
        loop {
            let next = self.waiting.borrow_mut().pop_front();
            let Some(event) = next else {
                let mut ignored = [0; 64];
                tokio::select! {
                    biased;
                    read = stream.read(&mut ignored) => match read {
                        Ok(1..) => {}
                        // Another one that listens may have been woken in vain by what woke this one.
                        Ok(0) | Err(_) => return self.arrived.notify_one(),
                    },
                    () = self.arrived.notified() => {}
                }
                continue;
            };
            if frame::write(stream, &Reply::Event(event.clone())).await.is_err() {
                self.waiting.borrow_mut().push_front(event);
                return self.arrived.notify_one();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::duplex;

    fn out_of_memory(container: &str) -> Event {
        Event::OutOfMemory { container: container.to_owned() }
    }

    async fn next(stream: &mut tokio::io::DuplexStream) -> Event {
        match frame::read::<Reply>(stream, frame::MAX_REPLY).await.unwrap() {
            Reply::Event(event) => event,
            other => panic!("not an event: {other:?}"),
        }
    }

    #[tokio::test(flavor = "current_thread")]
    async fn what_happened_before_somebody_listens_is_told_and_each_event_once() {
        let events = Events::default();
        events.push(out_of_memory("before"));
        for (name, expected) in [("first", "before"), ("second", "while")] {
            let (mut host, guest) = duplex(4096);
            let mut guest: BoxStream = Box::new(guest);
            let listen = async {
                assert_eq!(next(&mut host).await, out_of_memory(expected), "{name}");
                drop(host);
            };
            if expected == "while" {
                events.push(out_of_memory("while"));
            }
            tokio::join!(events.tell(&mut guest), listen);
        }
        assert!(events.waiting.borrow().is_empty());
    }

    #[test]
    fn the_queue_is_bounded_and_keeps_the_newest() {
        let events = Events::default();
        for number in 0..=MAX_WAITING {
            events.push(out_of_memory(&number.to_string()));
        }
        let waiting = events.waiting.borrow();
        assert_eq!(waiting.len(), MAX_WAITING);
        assert_eq!(waiting.back(), Some(&out_of_memory(&MAX_WAITING.to_string())));
    }
}
