//! Giving memory back when the guest rests.
//!
//! To answer a request the server touches pages of the guest's memory, and each then counts as memory of the server, too:
//! in time half of what the guest caches. So when the guest has asked for nothing for a second, the server forgets the
//! pages (which stay where they are, in memory shared with the VMM) and returns what its allocator holds. Touching a page
//! again costs less than a microsecond. No thread wakes up while the guest rests.

use std::{
    io,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    thread::{self, Thread},
    time::Duration,
};

use vm_memory::{GuestAddressSpace, GuestMemory};

use super::Memory;
use crate::sys;

/// How long a guest must rest.
const REST: Duration = Duration::from_secs(1);
/// Stack of the thread that waits for that, bytes.
const STACK: usize = 64 << 10;

/// Counts what the guest does, and has memory given back when it stops.
#[derive(Default)]
pub(super) struct Activity {
    events: AtomicU64,
    /// Whether the thread sleeps until the next event.
    asleep: AtomicBool,
    thread: OnceLock<Thread>,
}

impl Activity {
    /// The guest has done something.
    pub(super) fn note(&self) {
        self.events.fetch_add(1, SeqCst);
        if self.asleep.swap(false, SeqCst)
            && let Some(thread) = self.thread.get()
        {
            thread.unpark();
        }
    }

    /// Starts the thread that gives `memory` back.
    pub(super) fn watch(self: &Arc<Self>, memory: Memory) -> io::Result<()> {
        let activity = Arc::clone(self);
        thread::Builder::new().name("rest".into()).stack_size(STACK).spawn(move || {
            let mut seen = 0;
            loop {
                seen = activity.next_rest(seen, REST);
                forget_pages(&memory);
                sys::trim_heap();
            }
        })?;
        Ok(())
    }

    /// Waits until there has been an event after the first `seen` and then none for `rest`. Returns the number of events.
    /// Always to be called by the same thread.
    fn next_rest(&self, mut seen: u64, rest: Duration) -> u64 {
        self.thread.get_or_init(thread::current);
        loop {
            self.asleep.store(true, SeqCst);
            // An event before the line above is seen here; one after it unparks.
            if self.events.load(SeqCst) == seen {
                thread::park();
            }
            if self.events.load(SeqCst) != seen {
                break;
            }
        }
        self.asleep.store(false, SeqCst);
        loop {
            let before = self.events.load(SeqCst);
            thread::park_timeout(rest);
            seen = self.events.load(SeqCst);
            if seen == before {
                return seen;
            }
        }
    }
}

fn forget_pages(memory: &Memory) {
    for region in memory.memory().iter() {
        sys::forget_shared_pages(region);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    const REST: Duration = Duration::from_millis(400);

    #[test]
    fn a_rest_is_reported_once_after_activity_and_not_before() {
        let activity = Arc::new(Activity::default());
        let (rests, reported) = mpsc::channel();
        let watched = Arc::clone(&activity);
        let watcher = thread::spawn(move || {
            let mut seen = 0;
            while seen < 4 {
                seen = watched.next_rest(seen, REST);
                rests.send(seen).unwrap();
            }
        });
        assert!(reported.recv_timeout(REST * 2).is_err(), "nothing has happened yet");
        for _ in 0..3 {
            activity.note();
            assert!(reported.recv_timeout(REST / 4).is_err(), "still busy");
        }
        assert_eq!(reported.recv_timeout(REST * 3).unwrap(), 3);
        assert!(reported.recv_timeout(REST * 2).is_err(), "still the same rest");
        activity.note();
        assert_eq!(reported.recv_timeout(REST * 3).unwrap(), 4);
        watcher.join().unwrap();
    }
}
