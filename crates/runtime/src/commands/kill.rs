//! `kill`.

use std::process::ExitCode;

use sandbox::{client::Client, store::Status};

use super::lifecycle::stopped;
use crate::{Error, Result, cli::Context, go, sys};

/// Sends a signal.
pub(crate) fn kill(context: &Context, id: &str, signal: Option<&str>, all: bool) -> Result<ExitCode> {
    let client = Client::new(&context.store, id)?;
    let signal = parse(signal.unwrap_or("SIGTERM"))?;
    let state = context.store.state(id)?;
    if state.status == Status::Stopped {
        // As in runc: nobody is left, so everybody has had it.
        return if all { Ok(ExitCode::SUCCESS) } else { Err(stopped("container not running", &state)) };
    }
    if !(0..=sys::last_signal()).contains(&signal) {
        return Err(Error::refused("unable to signal init: invalid argument"));
    }
    client.signal(None, signal, all)?;
    Ok(ExitCode::SUCCESS)
}

/// Names of signals without `SIG`, and their numbers (signal(7)).
const NAMES: [(&str, i32); 34] = [
    ("ABRT", libc::SIGABRT),
    ("ALRM", libc::SIGALRM),
    ("BUS", libc::SIGBUS),
    ("CHLD", libc::SIGCHLD),
    ("CLD", libc::SIGCHLD),
    ("CONT", libc::SIGCONT),
    ("FPE", libc::SIGFPE),
    ("HUP", libc::SIGHUP),
    ("ILL", libc::SIGILL),
    ("INT", libc::SIGINT),
    ("IO", libc::SIGIO),
    ("IOT", libc::SIGIOT),
    ("KILL", libc::SIGKILL),
    ("PIPE", libc::SIGPIPE),
    ("POLL", libc::SIGPOLL),
    ("PROF", libc::SIGPROF),
    ("PWR", libc::SIGPWR),
    ("QUIT", libc::SIGQUIT),
    ("SEGV", libc::SIGSEGV),
    ("STKFLT", libc::SIGSTKFLT),
    ("STOP", libc::SIGSTOP),
    ("SYS", libc::SIGSYS),
    ("TERM", libc::SIGTERM),
    ("TRAP", libc::SIGTRAP),
    ("TSTP", libc::SIGTSTP),
    ("TTIN", libc::SIGTTIN),
    ("TTOU", libc::SIGTTOU),
    ("URG", libc::SIGURG),
    ("USR1", libc::SIGUSR1),
    ("USR2", libc::SIGUSR2),
    ("VTALRM", libc::SIGVTALRM),
    ("WINCH", libc::SIGWINCH),
    ("XCPU", libc::SIGXCPU),
    ("XFSZ", libc::SIGXFSZ),
];

/// A signal by number, or by name in either case, with or without `SIG`. A number is not checked.
fn parse(text: &str) -> Result<i32> {
    if let Ok(number) = text.parse() {
        return Ok(number);
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    NAMES
        .iter()
        .find(|(known, _)| *known == name)
        .map(|(_, number)| *number)
        .ok_or_else(|| Error::refused(format!("unknown signal {}", go::quote(text))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_have_names_and_numbers() {
        for text in ["KILL", "SIGKILL", "sigkill", "kill", "9"] {
            assert_eq!(parse(text).unwrap(), 9, "{text}");
        }
        assert_eq!(parse("SIGUSR1").unwrap(), libc::SIGUSR1);
        assert_eq!(parse("99").unwrap(), 99);
        for text in ["FOO", "SIG", "", "SIGSIGKILL", "9x"] {
            assert_eq!(parse(text).unwrap_err().to_string(), format!("unknown signal \"{text}\""));
        }
    }
}
