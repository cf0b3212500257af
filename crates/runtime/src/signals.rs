//! What becomes of signals while this process stands for another one, or is about to.
//!
//! All of them are blocked and taken by one thread. What it does with one depends on how far the command has come.

use std::{
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
};

use sandbox::client::Client;

use crate::{Error, Result, sys, terminal::Terminal};

/// Signals that ask a program to end. While a sandbox is being started they end the command and what it has started.
const ENDING: [i32; 4] = [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGTERM];
/// Stack of the thread, bytes: it encodes one small message at a time.
const STACK: usize = 128 * 1024;

/// Where signals are forwarded to.
#[derive(Debug)]
pub(crate) struct Target {
    /// The sandbox.
    pub client: Client,
    /// The exec'd process, or the container's first one.
    pub exec: Option<String>,
    /// The terminal whose size the process's terminal follows.
    pub terminal: Option<Arc<Terminal>>,
}

enum Phase {
    /// Signals wait.
    Hold,
    /// Those that end programs end this one, after this.
    Abort(Box<dyn FnMut() + Send>),
    /// Signals go to the process.
    Forward(Arc<Target>),
}

/// The thread that takes signals.
pub(crate) struct Signals {
    shared: Arc<(Mutex<Phase>, Condvar)>,
}

fn lock(phase: &Mutex<Phase>) -> MutexGuard<'_, Phase> {
    phase.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Signals {
    /// Holds all signals back. To be called before any other thread is started.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub(crate) fn hold() -> Result<Self> {
        sys::block_signals();
        let shared = Arc::new((Mutex::new(Phase::Hold), Condvar::new()));
        let signals = Self { shared: shared.clone() };
        let thread = thread::Builder::new().name("signals".into()).stack_size(STACK).spawn(move || {
            loop {
                take(&shared, sys::next_signal());
            }
        });
        thread.map(|_| signals).map_err(|e| Error::io("start a thread for signals", e))
    }

    fn enter(&self, phase: Phase) {
        *lock(&self.shared.0) = phase;
        self.shared.1.notify_all();
    }

    /// Lets signals that end programs end this one, after `cleanup`.
    pub(crate) fn abort_after(&self, cleanup: impl FnMut() + Send + 'static) {
        self.enter(Phase::Abort(Box::new(cleanup)));
    }

    /// Forwards signals from now on, beginning with those that were held back.
    pub(crate) fn forward_to(&self, target: Target) {
        self.enter(Phase::Forward(Arc::new(target)));
    }

    /// Holds signals back again. If one is just ending this process, this does not return.
    pub(crate) fn hold_again(&self) {
        self.enter(Phase::Hold);
    }
}

fn take((phase, changed): &(Mutex<Phase>, Condvar), signal: i32) {
    let mut phase = lock(phase);
    let target = loop {
        match &mut *phase {
            Phase::Hold => phase = changed.wait(phase).unwrap_or_else(PoisonError::into_inner),
            Phase::Abort(cleanup) => {
                if ENDING.contains(&signal) {
                    cleanup();
                    sys::die_by(signal);
                }
                return;
            }
            Phase::Forward(target) => break target.clone(),
        }
    };
    // Not while the lock is held: the call may take its time, and the command may end meanwhile.
    drop(phase);
    forward(&target, signal);
}

fn forward(target: &Target, signal: i32) {
    let exec = target.exec.as_deref();
    let size = target.terminal.as_ref().filter(|_| signal == libc::SIGWINCH).and_then(|terminal| terminal.size());
    // The process may have ended, which whoever waits for it is about to hear.
    let _gone = match size {
        Some(size) => target.client.resize(exec, size),
        None => target.client.signal(exec, signal, false),
    };
}
