//! One program at a time.

use std::{
    fs::{File, OpenOptions},
    path::{Path, PathBuf},
    sync::mpsc,
    thread,
    time::Duration,
};

use rustix::fs::{FlockOperation, flock};

use crate::{Error, Interrupts, console, files};

/// Longer than any build on a machine that is good enough for one.
const DEADLINE: Duration = Duration::from_secs(6 * 3600);

/// A lock that is held until it is dropped, or this program ends however it ends.
#[derive(Debug)]
pub(crate) struct Lock {
    _file: File,
}

impl Lock {
    /// Takes the lock at `path`, which is made if need be; waits for who else holds it, and says so.
    pub(crate) fn take(path: &Path, of: &str, interrupts: &Interrupts) -> Result<Lock, Error> {
        Lock::take_within(path, of, interrupts, DEADLINE)
    }

    fn take_within(path: &Path, of: &str, interrupts: &Interrupts, deadline: Duration) -> Result<Lock, Error> {
        if let Some(directory) = path.parent() {
            files::make_directory(directory)?;
        }
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(path);
        let file = file.map_err(|source| Error::io("open the lock", path, source))?;
        if flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok() {
            return Ok(Lock { _file: file });
        }
        console::say(&format!("waiting for another kata-kernel that works on {of} ({})", path.display()));
        wait(file, path.to_path_buf(), interrupts, deadline)
    }
}

/// What ends the wait.
enum Event {
    Locked(Result<File, Error>),
    Signal(i32),
}

fn wait(file: File, path: PathBuf, interrupts: &Interrupts, deadline: Duration) -> Result<Lock, Error> {
    let (events, queue) = mpsc::channel();
    let signals = events.clone();
    let busy = Error::Busy { path: path.clone(), deadline };
    let _listening = interrupts.listen(move |signal| drop(signals.send(Event::Signal(signal))));
    // flock(2) cannot be interrupted from another thread. One that waits in vain ends with this program, or takes the lock
    // and drops it at once.
    thread::spawn(move || {
        let locked = flock(&file, FlockOperation::LockExclusive);
        let locked = locked.map(|()| file).map_err(|error| Error::io("lock", &path, error.into()));
        drop(events.send(Event::Locked(locked)));
    });
    match queue.recv_timeout(deadline) {
        Ok(Event::Locked(file)) => Ok(Lock { _file: file? }),
        Ok(Event::Signal(signal)) => Err(Error::Interrupted { signal }),
        Err(_) => Err(busy),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_is_waited_for_and_given_up() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("new/lock");
        let interrupts = Interrupts::none();
        let first = Lock::take(&path, "a test", &interrupts).unwrap();
        let error = Lock::take_within(&path, "a test", &interrupts, Duration::from_millis(10)).unwrap_err();
        assert!(matches!(error, Error::Busy { .. }));
        let waiting = thread::spawn({
            let path = path.clone();
            move || Lock::take(&path, "a test", &Interrupts::none()).map(drop)
        });
        drop(first);
        waiting.join().unwrap().unwrap();
    }
}
