//! `console`: a program in a guest, outside of its containers.
//!
//! Kata calls this `exec`, which here, as in runc, runs a process in a container; engines call that, so the name is taken.

use std::process::ExitCode;

use oci_spec::runtime::{Process, ProcessBuilder};
use sandbox::{api::CONSOLE, client::Client, store::Store};

use super::find;
use crate::{Error, Result, cli::Context, commands::create::console_size, foreground::Foreground, signals::Signals};

/// Where programs are looked for in the guest.
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// `console`.
pub(crate) fn console(context: &Context, tty: bool, id: &str, command: &[String]) -> Result<ExitCode> {
    let dir = find(context, id)?;
    let name = dir.file_name().and_then(|name| name.to_str()).unwrap_or(id);
    let store = Store::new(dir.parent().unwrap_or(&dir));
    if !dir.join("sock").exists() {
        return Err(Error::refused(format!(
            "the sandbox {id:?} has no console: set debug_console_enabled = true in [agent.kata] of the configuration and start it anew"
        )));
    }
    let client = Client::new(&store, name)?;
    let (foreground, theirs) = Foreground::prepare(tty)?;
    let mut process = process(tty, command)?;
    if let Some(size) = foreground.size() {
        process.set_console_size(Some(console_size(size)?));
    }
    let signals = Signals::hold()?;
    let exec = format!("{CONSOLE}{}-{}", std::process::id(), sandbox::timeline::now_ns());
    let running = client.exec(&exec, process, theirs)?;
    let status = foreground.attend(&signals, (&store, name), &client, Some(&exec), running)?;
    Ok(ExitCode::from(status.shell_code() as u8))
}

/// Without arguments, the agent looks for a shell.
fn process(tty: bool, command: &[String]) -> Result<Process> {
    let term = std::env::var("TERM").unwrap_or_else(|_| "linux".into());
    ProcessBuilder::default()
        .terminal(tty)
        .cwd("/")
        .args(command.to_vec())
        .env(vec![PATH.into(), "HOME=/".into(), format!("TERM={term}")])
        .build()
        .map_err(|e| Error::io("describe the program", std::io::Error::other(e)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_roots_and_a_shell_has_no_arguments() {
        let shell = process(true, &[]).unwrap();
        assert!(shell.terminal() == Some(true) && shell.args().as_ref().unwrap().is_empty());
        let program = process(false, &["ls".into(), "-l".into()]).unwrap();
        assert_eq!((program.user().uid(), program.args().as_ref().unwrap().len()), (0, 2));
    }
}
