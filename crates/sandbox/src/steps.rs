//! The steps of a sandbox's life, told to a debugger as they are reached: to see where a start stands, and to try what happens when
//! something breaks there.
//!
//! The key `debug_steps` of the configuration's table `[runtime]`, which no annotation can set, names a socket (`SOCK_STREAM`). Each process
//! that works for the sandbox connects to it once and says at each step a line, then waits for one:
//!
//! ```text
//! PID may-fail STEP         what may fail, before it is done: a write of state.json, a call of the agent
//! PID passed STEP           what has just been done
//! go | fail                 the answer; what was passed cannot fail any more
//! ```
//!
//! Without that key nothing is said and nobody waited for. A debugger that goes away, or thinks for longer than a minute, is forgotten.

use std::{
    io::{self, BufRead, BufReader, Write},
    os::unix::net::UnixStream,
    path::Path,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use serde_json::Value;

use crate::{Error, Result, store::ContainerState};

/// How long the debugger may think.
const PATIENCE: Duration = Duration::from_secs(60);

/// Somebody who is told.
struct Debugger(BufReader<UnixStream>);

impl Debugger {
    fn connect(socket: &Path) -> io::Result<Self> {
        let stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(Self(BufReader::new(stream)))
    }

    /// Tells a step, and gives the answer.
    fn tell(&mut self, kind: &str, step: &str) -> io::Result<String> {
        let line = format!("{} {kind} {}\n", std::process::id(), step.replace('\n', " "));
        self.0.get_mut().write_all(line.as_bytes())?;
        let mut answer = String::new();
        match self.0.read_line(&mut answer)? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(answer.trim_end().into()),
        }
    }
}

/// Whom this process tells.
static DEBUGGER: Mutex<Option<Debugger>> = Mutex::new(None);

fn debugger() -> MutexGuard<'static, Option<Debugger>> {
    DEBUGGER.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Tells the steps from now on, if the configuration says to whom.
pub(crate) fn observe(socket: Option<&Path>) {
    let Some(socket) = socket else { return };
    let mut debugger = debugger();
    if debugger.is_none() {
        match Debugger::connect(socket) {
            Ok(connected) => *debugger = Some(connected),
            Err(error) => eprintln!("debug_steps: connect to {}: {error}", socket.display()),
        }
    }
}

/// Says that something is about to be done that may fail.
///
/// # Errors
/// [`Error::Io`] if the debugger wants it to.
pub(crate) fn reach(step: &str) -> Result<()> {
    judge(say("may-fail", || Some(step.into())))
}

/// Says that something was done.
pub(crate) fn passed(step: &str) {
    say("passed", || Some(step.into()));
}

/// Says that `state.json` is about to be written, by what changes in it, if anything does. `old` is what it holds.
///
/// # Errors
/// [`Error::Io`] if the debugger wants it to.
pub(crate) fn reach_write(old: impl FnOnce() -> io::Result<Vec<u8>>, new: &ContainerState) -> Result<()> {
    judge(say("may-fail", || {
        let old = old().ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or(Value::Null);
        let changed = difference(&old, &serde_json::to_value(new).unwrap_or_default())?;
        Some(format!("write state.json: {changed}"))
    }))
}

/// A step and what the debugger answers, if there is one who answers.
fn say(kind: &str, step: impl FnOnce() -> Option<String>) -> Option<(String, String)> {
    let mut place = debugger();
    let debugger = place.as_mut()?;
    let step = step()?;
    let answer = debugger.tell(kind, &step).ok();
    if answer.is_none() {
        *place = None;
    }
    Some((step, answer?))
}

fn judge(told: Option<(String, String)>) -> Result<()> {
    match told {
        Some((step, answer)) if answer == "fail" => {
            Err(Error::io(step, io::Error::other("made to fail by debug_steps")))
        }
        _ => Ok(()),
    }
}

/// The keys of `new` whose values are others in `old`. With another status, which others change as well is chance: a process may have ended
/// a moment before.
fn difference(old: &Value, new: &Value) -> Option<String> {
    let members = new.as_object()?;
    if old.is_null() {
        return Some("new".into());
    }
    let mut changed = members.iter().filter(|(key, value)| old.get(key) != Some(value)).peekable();
    changed.peek()?;
    if let Some(status) = new["status"].as_str().filter(|_| old["status"] != new["status"]) {
        return Some(format!("status={status}"));
    }
    Some(changed.map(|(key, _)| key.as_str()).collect::<Vec<_>>().join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_is_called_by_what_changes() {
        let old = serde_json::json!({"status": "creating", "pid": 0, "vmm": null});
        let new = serde_json::json!({"status": "created", "pid": 0, "vmm": {"pid": 7}});
        let difference = |old: &Value, new: &Value| difference(old, new).unwrap_or_default();
        assert_eq!(difference(&old, &new), "status=created");
        assert_eq!(difference(&old, &serde_json::json!({"status": "creating", "pid": 1, "vmm": {}})), "pid, vmm");
        assert_eq!(difference(&Value::Null, &new), "new");
        assert_eq!(difference(&new, &new), "", "it is not told");
    }

    #[test]
    fn a_debugger_is_told_and_may_fail_what_may_fail() {
        let top = tempfile::tempdir().unwrap();
        let path = top.path().join("socket");
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let mut debugger = Debugger::connect(&path).unwrap();
        let answering = std::thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            let mut stream = BufReader::new(stream);
            ["go", "fail"].map(|answer| {
                let mut line = String::new();
                stream.read_line(&mut line).unwrap();
                stream.get_mut().write_all(format!("{answer}\n").as_bytes()).unwrap();
                line
            })
        });
        assert_eq!(debugger.tell("may-fail", "one").unwrap(), "go");
        assert_eq!(debugger.tell("passed", "two\nlines").unwrap(), "fail");
        let pid = std::process::id();
        assert_eq!(
            answering.join().unwrap(),
            ["may-fail one", "passed two lines"].map(|said| format!("{pid} {said}\n"))
        );
        debugger.tell("may-fail", "gone").unwrap_err();
        judge(Some(("one".into(), "go".into()))).unwrap();
        judge(None).unwrap();
        let failed = judge(Some(("one".into(), "fail".into()))).unwrap_err();
        assert_eq!(failed.chain(), "one: made to fail by debug_steps");
    }
}
