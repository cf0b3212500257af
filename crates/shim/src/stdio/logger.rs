//! Loggers: programs that containerd's clients name with `binary://`. nerdctl's log drivers are such.
//!
//! A logger reads the outputs from its descriptors 3 and 4 and tells that it is ready by closing 5, or by writing to it. It learns whose output it
//! is from its environment, which holds nothing else. When the process is deleted it is asked to end.

use std::{os::fd::OwnedFd, path::Path, process::Stdio, time::Duration};

use rustix::{
    pipe::{PipeFlags, pipe_with},
    process::{Pid, Signal, kill_process},
};
use tokio::{
    io::AsyncReadExt,
    net::unix::pipe,
    process::{Child, Command},
    time::timeout,
};

use crate::{Error, Result, log, sys};

/// How long a logger may take to be ready.
const READY_DEADLINE: Duration = Duration::from_secs(10);
/// How long it may take to write down what it has read, once it is asked to end.
const END_DEADLINE: Duration = Duration::from_secs(12);

/// A running logger.
pub(super) struct Logger {
    program: String,
    child: Child,
}

impl Logger {
    /// Starts a logger and waits until it is ready; gives the ends for standard output and error.
    pub(super) async fn start(
        program: &Path,
        arguments: &[String],
        id: &str,
        namespace: &str,
    ) -> Result<(Self, pipe::Sender, pipe::Sender)> {
        let name = program.display().to_string();
        let failed = |error: std::io::Error| Error::io(format!("start the logger {name}"), error);
        let pipe = || pipe_with(PipeFlags::CLOEXEC).map_err(|e| failed(e.into()));
        let ((stdout, to_stdout), (stderr, to_stderr), (ready, to_ready)) = (pipe()?, pipe()?, pipe()?);
        let mut command = Command::new(program);
        command.args(arguments).env_clear().env("CONTAINER_ID", id).env("CONTAINER_NAMESPACE", namespace);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
        sys::pass_descriptors(&mut command, &[&stdout, &stderr, &to_ready]).map_err(failed)?;
        let child = command.spawn().map_err(failed)?;
        // The command holds copies of the logger's ends.
        drop((command, stdout, stderr, to_ready));
        let logger = Self { program: name.clone(), child };
        let sender = |end: OwnedFd| pipe::Sender::from_owned_fd(end).map_err(failed);
        let (to_stdout, to_stderr) = (sender(to_stdout)?, sender(to_stderr)?);
        let mut ready = pipe::Receiver::from_owned_fd(ready).map_err(failed)?;
        match timeout(READY_DEADLINE, ready.read(&mut [0])).await {
            Ok(read) => read.map_err(failed)?,
            Err(_) => {
                return Err(Error::Deadline {
                    what: format!("that the logger {name} is ready, by closing its descriptor 5,"),
                    seconds: READY_DEADLINE.as_secs(),
                });
            }
        };
        Ok((logger, to_stdout, to_stderr))
    }

    /// Asks it to end, and sees to it that it does.
    pub(super) async fn end(mut self) {
        if let Some(pid) = self.child.id().and_then(|pid| Pid::from_raw(pid.cast_signed())) {
            let _gone = kill_process(pid, Signal::TERM);
        }
        if timeout(END_DEADLINE, self.child.wait()).await.is_err() {
            log::warn(&format!("the logger {} does not end when asked to; it is killed", self.program));
            if let Err(error) = self.child.kill().await {
                log::warn(&format!("kill the logger {}: {error}", self.program));
            }
        }
    }
}
