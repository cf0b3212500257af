//! Whom a sandbox's processes tell their steps (`debug_steps` of the configuration).

use std::{
    io::{BufRead, BufReader, Write},
    os::unix::net::{UnixListener, UnixStream},
    path::PathBuf,
    sync::{Arc, Mutex},
    thread,
};

/// A step that a process has come to. It waits until it is answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reached {
    /// The process.
    pub pid: u32,
    /// Whether it may be made to fail.
    pub may_fail: bool,
    /// What it is about to do, or has done if it may not fail.
    pub step: String,
}

/// What a process is to do at a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// Go on.
    Go,
    /// Fail.
    Fail,
}

type Policy = Box<dyn FnMut(&Reached) -> Answer + Send>;

/// Who answers. Processes that come to a step when it is gone go on.
pub struct Debugger {
    directory: tempfile::TempDir,
    policy: Arc<Mutex<Policy>>,
}

impl Debugger {
    /// One that lets everything go on.
    pub fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(directory.path().join("steps")).unwrap();
        let policy: Arc<Mutex<Policy>> = Arc::new(Mutex::new(Box::new(|_| Answer::Go)));
        let answers = Arc::downgrade(&policy);
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (stream, answers) = (stream.unwrap(), answers.clone());
                if answers.strong_count() == 0 {
                    return;
                }
                thread::spawn(move || {
                    // It ends with the process that speaks.
                    let mut stream = BufReader::new(stream);
                    while let Some(reached) = read(&mut stream) {
                        let Some(policy) = answers.upgrade() else { return };
                        let answer = policy.lock().unwrap()(&reached);
                        let answer = if answer == Answer::Fail { "fail\n" } else { "go\n" };
                        if stream.get_mut().write_all(answer.as_bytes()).is_err() {
                            return;
                        }
                    }
                });
            }
        });
        Self { directory, policy }
    }

    /// Where it listens.
    pub fn socket(&self) -> PathBuf {
        self.directory.path().join("steps")
    }

    /// Has every step answered by `policy` from now on.
    pub fn answer(&self, policy: impl FnMut(&Reached) -> Answer + Send + 'static) {
        *self.policy.lock().unwrap() = Box::new(policy);
    }
}

impl Default for Debugger {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Debugger {
    fn drop(&mut self) {
        // Its thread looks whether there is still somebody when it hears of somebody.
        *self.policy.lock().unwrap() = Box::new(|_| Answer::Go);
        let socket = self.socket();
        self.policy = Arc::new(Mutex::new(Box::new(|_| Answer::Go)));
        let _ = UnixStream::connect(socket);
    }
}

fn read(stream: &mut BufReader<UnixStream>) -> Option<Reached> {
    let mut line = String::new();
    stream.read_line(&mut line).ok()?;
    let mut words = line.trim_end().splitn(3, ' ');
    Some(Reached {
        pid: words.next()?.parse().ok()?,
        may_fail: words.next()? == "may-fail",
        step: words.next()?.to_owned(),
    })
}
