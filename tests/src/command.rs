//! Commands with a deadline.

use std::{
    fs::File,
    io::{Read, Seek, SeekFrom, Write},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use crate::DEADLINE;

/// What a command gave.
#[derive(Debug, Clone)]
pub struct Output {
    /// Exit code; 128 plus the signal's number if killed.
    pub code: i32,
    /// Standard output.
    pub stdout: Vec<u8>,
    /// Standard error.
    pub stderr: String,
}

impl Output {
    /// Standard output as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }
}

/// A command that goes on while the test does other things; killed when dropped.
///
/// Its output goes to files: a pipe would stay open as long as a detached container does, and its end never come.
#[derive(Debug)]
pub struct Background {
    child: Child,
    stdout: File,
    stderr: File,
    what: String,
}

impl Background {
    /// Starts it with its output collected.
    pub fn start(command: &mut Command) -> Self {
        let what = format!("{command:?}");
        let (stdout, stderr) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        command.stdout(stdout.try_clone().unwrap()).stderr(stderr.try_clone().unwrap());
        let child = command.spawn().expect("start a command");
        Self { child, stdout, stderr, what }
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Whether it has ended.
    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// What it has written to its standard output so far.
    pub fn said(&self) -> String {
        let mut bytes = vec![0; 4096];
        let count = std::os::unix::fs::FileExt::read_at(&self.stdout, &mut bytes, 0).unwrap();
        String::from_utf8_lossy(&bytes[..count]).into_owned()
    }

    /// Waits for its end; panics when it does not come within `deadline`.
    #[track_caller]
    pub fn finish_within(self, deadline: Duration) -> Output {
        let what = self.what.clone();
        self.finish_or_kill(deadline).unwrap_or_else(|| panic!("did not end within {deadline:?}: {what}"))
    }

    /// Waits for its end; kills it when that does not come within `deadline`.
    pub fn finish_or_kill(mut self, deadline: Duration) -> Option<Output> {
        let end = Instant::now() + deadline;
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            if Instant::now() > end {
                return None;
            }
            thread::sleep(Duration::from_millis(5));
        };
        let code =
            std::os::unix::process::ExitStatusExt::signal(&status).map_or(status.code().unwrap_or(-1), |s| 128 + s);
        let take = |mut file: &File| {
            let mut bytes = Vec::new();
            file.seek(SeekFrom::Start(0)).unwrap();
            file.read_to_end(&mut bytes).unwrap();
            bytes
        };
        let stderr = String::from_utf8_lossy(&take(&self.stderr)).into_owned();
        Some(Output { code, stdout: take(&self.stdout), stderr })
    }

    /// Waits for its end.
    #[track_caller]
    pub fn finish(self) -> Output {
        self.finish_within(DEADLINE)
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// Runs a command to its end.
#[track_caller]
pub fn run(command: &mut Command) -> Output {
    Background::start(command).finish()
}

/// Runs a command to its end, feeding it.
#[track_caller]
pub fn run_with_input(command: &mut Command, input: impl FnOnce(&mut dyn Write) + Send + 'static) -> Output {
    let mut running = Background::start(command.stdin(Stdio::piped()));
    let mut stdin = running.child.stdin.take().unwrap();
    let feeder = thread::spawn(move || input(&mut stdin));
    let output = running.finish();
    feeder.join().unwrap();
    output
}
