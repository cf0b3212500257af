//! Being asked to end.
//!
//! Signals that end programs are taken by one thread. Long steps ask [`Interrupts::check`] between their parts; the wait
//! for a child process is told at once. Whoever sees the signal returns [`Error::Interrupted`] like any error, so that
//! everything temporary is removed on the way out, and the program then ends by that very signal.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicI32, Ordering},
    },
    thread,
};

use crate::{Error, sys};

type Listener = Box<dyn Fn(i32) + Send>;

#[derive(Default)]
struct Shared {
    /// The first signal; 0 if there was none.
    signal: AtomicI32,
    listener: Mutex<Option<Listener>>,
}

impl Shared {
    fn listener(&self) -> MutexGuard<'_, Option<Listener>> {
        self.listener.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether this program was asked to end.
#[derive(Clone)]
pub struct Interrupts {
    shared: Arc<Shared>,
}

impl std::fmt::Debug for Interrupts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Interrupts({})", self.shared.signal.load(Ordering::SeqCst))
    }
}

impl Interrupts {
    /// Takes the signals that end programs from now on. To be called before any other thread is started.
    ///
    /// # Errors
    /// The thread that takes them cannot be started.
    pub fn watch() -> Result<Interrupts, Error> {
        sys::block_signals();
        let interrupts = Interrupts::none();
        let shared = interrupts.shared.clone();
        let thread = thread::Builder::new().name("signals".into()).spawn(move || {
            loop {
                let signal = sys::next_signal();
                // What is cleaned up after the first one takes a moment; others change nothing.
                let first = shared.signal.compare_exchange(0, signal, Ordering::SeqCst, Ordering::SeqCst).is_ok();
                if first && let Some(listener) = shared.listener().as_ref() {
                    listener(signal);
                }
            }
        });
        thread.map(|_| interrupts).map_err(|source| Error::Start { program: "a thread for signals".into(), source })
    }

    /// Never an interrupt; signals do what they would do otherwise.
    pub fn none() -> Interrupts {
        Interrupts { shared: Arc::default() }
    }

    /// # Errors
    /// [`Error::Interrupted`] once a signal has come.
    pub fn check(&self) -> Result<(), Error> {
        match self.shared.signal.load(Ordering::SeqCst) {
            0 => Ok(()),
            signal => Err(Error::Interrupted { signal }),
        }
    }

    /// Calls `listener` for the first signal, at once if that has come already, until the guard is dropped.
    pub(crate) fn listen(&self, listener: impl Fn(i32) + Send + 'static) -> Listening<'_> {
        let mut place = self.shared.listener();
        match self.shared.signal.load(Ordering::SeqCst) {
            0 => *place = Some(Box::new(listener)),
            signal => listener(signal),
        }
        drop(place);
        Listening { interrupts: self }
    }
}

/// Ends this process by a signal, so that whoever started it sees why.
pub fn die_by(signal: i32) -> ! {
    sys::die_by(signal)
}

/// Someone listens for as long as this lives.
pub(crate) struct Listening<'a> {
    interrupts: &'a Interrupts,
}

impl Drop for Listening<'_> {
    fn drop(&mut self) {
        *self.interrupts.shared.listener() = None;
    }
}
