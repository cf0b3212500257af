//! Running another program: its output line by line, a deadline for its silence, and an end on request.

use std::{
    io::{self, BufRead, BufReader},
    os::{fd::OwnedFd, unix::process::CommandExt},
    process::{Child, Command, ExitStatus, Stdio},
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, poll},
    process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open},
    time::Timespec,
};

use crate::{Error, Interrupts, sys};

/// A program that was asked to end gets this long before it is killed.
const GRACE: Duration = Duration::from_secs(10);

enum Event {
    Line(String),
    /// Everything that could write has ended.
    End,
    Signal(i32),
}

/// Runs `command` in a process group of its own and hands every line of its output, standard and error, to `on_line`. When it
/// says nothing for `silence`, or this program is asked to end, the whole group is ended.
pub(crate) fn run(
    mut command: Command,
    interrupts: &Interrupts,
    silence: Duration,
    mut on_line: impl FnMut(&str),
) -> Result<ExitStatus, Error> {
    let program = command.get_program().to_string_lossy().into_owned();
    let failed = |source| Error::Start { program: program.clone(), source };
    let (reader, writer) = io::pipe().map_err(failed)?;
    command.stdin(Stdio::null()).stdout(writer.try_clone().map_err(failed)?).stderr(writer).process_group(0);
    sys::tie(&mut command);
    let (events, queue) = mpsc::channel();
    let signals = events.clone();
    let started = command.spawn();
    // It holds the writing ends, whose closing tells of the end.
    drop(command);
    let mut group = Group::of(started.map_err(failed)?).map_err(failed)?;
    let _listening = interrupts.listen(move |signal| drop(signals.send(Event::Signal(signal))));
    thread::spawn(move || {
        let mut reader = BufReader::new(reader);
        let mut line = Vec::new();
        while let Ok(1..) = reader.read_until(b'\n', &mut line) {
            let text = String::from_utf8_lossy(&line).trim_end().to_string();
            line.clear();
            if events.send(Event::Line(text)).is_err() {
                return;
            }
        }
        drop(events.send(Event::End));
    });
    loop {
        match queue.recv_timeout(silence) {
            Ok(Event::Line(line)) => on_line(&line),
            Ok(Event::Signal(signal)) => {
                group.end();
                return Err(Error::Interrupted { signal });
            }
            Ok(Event::End) | Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {
                group.end();
                return Err(Error::Silent { program, silence });
            }
        }
    }
    match group.wait(GRACE).map_err(failed)? {
        Some(status) => Ok(status),
        // It has closed its output and goes on: nothing that is run here does so.
        None => {
            group.end();
            Err(Error::Silent { program, silence: GRACE })
        }
    }
}

/// Runs `command` for its output; an error has that too.
pub(crate) fn output(command: Command, interrupts: &Interrupts, silence: Duration) -> Result<String, Error> {
    let shown = shown(&command);
    let mut lines = Vec::new();
    let status = run(command, interrupts, silence, |line| lines.push(line.to_string()))?;
    if status.success() { Ok(lines.join("\n")) } else { Err(Error::Program { shown, status, output: tail(&lines) }) }
}

/// A command as one would type it.
fn shown(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

fn tail(lines: &[String]) -> String {
    lines[lines.len().saturating_sub(10)..].join("\n")
}

/// A started program with all that it starts. Dropped before its end, it is ended.
struct Group {
    child: Child,
    handle: OwnedFd,
    ended: bool,
}

impl Group {
    fn of(mut child: Child) -> io::Result<Group> {
        match pidfd_open(Pid::from_child(&child), PidfdFlags::empty()) {
            Ok(handle) => Ok(Group { child, handle, ended: false }),
            Err(error) => {
                child.kill()?;
                child.wait()?;
                Err(error.into())
            }
        }
    }

    /// Waits for its end; `None` when that has not come in time.
    fn wait(&mut self, deadline: Duration) -> io::Result<Option<ExitStatus>> {
        let end = Instant::now() + deadline;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let timeout = Timespec { tv_sec: left.as_secs() as _, tv_nsec: left.subsec_nanos().into() };
            match poll(&mut [PollFd::new(&self.handle, PollFlags::IN)], Some(&timeout)) {
                Ok(0) => return Ok(None),
                Ok(_) => {
                    self.ended = true;
                    return self.child.wait().map(Some);
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Asks all of it to end, and kills what does not.
    fn end(&mut self) {
        // Until it is waited for, its number belongs to no other group.
        if self.ended {
            return;
        }
        let pid = Pid::from_child(&self.child);
        let _gone = kill_process_group(pid, Signal::TERM);
        let in_time = matches!(poll_end(&self.handle), Ok(true));
        // Compilers may outlive the make that started them; the group's number is kept by the child not waited for yet.
        let _gone = kill_process_group(pid, Signal::KILL);
        if in_time || self.child.kill().is_ok() {
            let _reaped = self.child.wait();
        }
        self.ended = true;
    }
}

/// Waits for an end without taking the status.
fn poll_end(handle: &OwnedFd) -> io::Result<bool> {
    let timeout = Timespec { tv_sec: GRACE.as_secs() as _, tv_nsec: 0 };
    Ok(poll(&mut [PollFd::new(handle, PollFlags::IN)], Some(&timeout))? > 0)
}

impl Drop for Group {
    fn drop(&mut self) {
        self.end();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn both_outputs_are_seen_in_their_order() {
        let mut lines = Vec::new();
        let script = "echo one; echo two >&2; printf three; exit 3";
        let status = run(shell(script), &Interrupts::none(), LONG, |line| lines.push(line.to_string())).unwrap();
        assert_eq!(lines, ["one", "two", "three"]);
        assert_eq!(status.code(), Some(3));
    }

    #[test]
    fn silence_ends_the_whole_group() {
        let mut pids = Vec::new();
        let script = "sleep 1000 & echo $!; sleep 1000 & echo $!; wait";
        let result = run(shell(script), &Interrupts::none(), Duration::from_secs(1), |pid| pids.push(pid.to_string()));
        assert!(matches!(result, Err(Error::Silent { .. })), "{result:?}");
        assert_eq!(pids.len(), 2);
        for pid in pids {
            let pid = Pid::from_raw(pid.parse().unwrap()).unwrap();
            // Killed, they may still be waiting for somebody to reap them.
            if let Ok(handle) = pidfd_open(pid, PidfdFlags::empty()) {
                assert!(poll_end(&handle).unwrap());
            }
        }
    }

    #[test]
    fn an_error_names_the_command_and_has_its_output() {
        let error = output(shell("echo reason; exit 4"), &Interrupts::none(), LONG).unwrap_err().to_string();
        assert!(error.contains("sh -c echo reason; exit 4") && error.contains("exit status: 4"), "{error}");
        assert!(error.ends_with("reason"), "{error}");
        let error = output(Command::new("/no/such/program"), &Interrupts::none(), LONG).unwrap_err();
        assert!(matches!(error, Error::Start { .. }));
        assert_eq!(output(shell("echo a; echo b"), &Interrupts::none(), LONG).unwrap(), "a\nb");
    }
}
