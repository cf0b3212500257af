//! `containerd-shim-kata-v2`: a pod behind containerd's shim protocol, runtime v2.
//!
//! containerd calls this program by the name that it makes of the runtime's (`io.containerd.kata.v2`, or `io.containerd.kata-NAME.v2` for a second
//! configuration), and keeps one process of it for each pod:
//!
//! ```text
//! containerd --exec--> start  ---------.                       events ---> containerd.sock.ttrpc
//!                                      | exec                    ^
//!            --ttrpc------------> shim process: Task, Sandbox -> pod -> sandbox library -> virtual machine
//!            --exec--> delete         |
//!                                     `- stdio: FIFOs, files, loggers
//! ```
//!
//! | module | what |
//! | --- | --- |
//! | [`flags`], [`bootstrap`] | the command line; `start`, `delete`, `-info` |
//! | [`group`] | which pod a container belongs to |
//! | [`join`] | which container a new one has joined |
//! | [`options`] | options of the runtime |
//! | [`serve`] | the shim process |
//! | [`service`] | the Task and the Sandbox service |
//! | [`state`] | what may happen to a process when |
//! | [`events`] | events, once and in order |
//! | [`stdio`] | FIFOs, files and loggers |
//! | [`translate`] | times, figures, OCI parts of messages |
//! | [`hooks`] | programs of the host that a bundle names |
//! | [`leftovers`] | what dead shims have left behind, for `kata-runtime gc` |
//! | [`backend`], [`host`] | what is needed of a sandbox; the sandbox library as that |
//!
//! What containerd's own shim does is the measure: names of states, codes of errors, the order of events, what happens to stdio.

mod backend;
mod bootstrap;
mod error;
mod events;
mod flags;
mod group;
mod hooks;
mod host;
mod join;
pub mod leftovers;
mod log;
pub mod monitor;
pub mod options;
mod pod_config;
mod serve;
mod service;
mod state;
mod stdio;
mod sys;
mod translate;

use std::{
    io::{Read, Write},
    path::PathBuf,
    process::ExitCode,
    rc::Rc,
};

pub use error::Error;
pub use flags::Flags;

/// Result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// The name that containerd calls the shim by.
pub const ROLE: &str = "containerd-shim-kata-v2";

/// Whether a program that is called by this name is the shim: [`ROLE`], or `containerd-shim-kata-NAME-v2`.
pub fn is_role(name: &str) -> bool {
    let middle = name.strip_prefix("containerd-shim-kata").and_then(|rest| rest.strip_suffix("-v2"));
    middle.is_some_and(|middle| middle.is_empty() || (middle.starts_with('-') && middle.len() > 1))
}

/// Runs the shim with the arguments of this process.
pub fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // containerd shows standard error of `start` and `delete` to its user; the serving process has its log there.
            eprintln!("{}", error.chain());
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let mut arguments = std::env::args_os();
    let called = arguments.next().unwrap_or_default();
    let called = PathBuf::from(called).file_name().map(|name| name.to_string_lossy().into_owned());
    let flags = Flags::parse(arguments)?;
    if flags.version {
        return print(bootstrap::info::version(called.as_deref().unwrap_or(ROLE)).as_bytes());
    }
    if flags.info {
        let mut options = Vec::new();
        std::io::stdin().read_to_end(&mut options).map_err(|e| Error::io("read the runtime options", e))?;
        return print(&bootstrap::info::info(&options)?);
    }
    for (flag, value) in [("namespace", &flags.namespace), ("id", &flags.id)] {
        if value.is_empty() {
            return Err(Error::Flags(format!("-{flag} is missing")));
        }
    }
    let bundle = match &flags.bundle {
        Some(bundle) => bundle.clone(),
        None => std::env::current_dir().map_err(|e| Error::io("find the bundle, the working directory", e))?,
    };
    match flags.action.as_str() {
        "start" => print(bootstrap::start(&flags, &bundle)?.as_bytes()),
        "delete" => print(&bootstrap::delete(&flags, &bundle)?),
        "" => serve::serve(&flags, &bundle, Rc::new(host::Host::new()?)),
        other => Err(Error::Flags(format!("unknown action {other:?}; start, delete or none is expected"))),
    }
}

fn print(bytes: &[u8]) -> Result<()> {
    let mut stdout = std::io::stdout();
    stdout.write_all(bytes).and_then(|()| stdout.flush()).map_err(|e| Error::io("write to standard output", e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn containerd_s_names_are_known() {
        for name in ["containerd-shim-kata-v2", "containerd-shim-kata-qemu-v2", "containerd-shim-kata-a-b-v2"] {
            assert!(is_role(name), "{name}");
        }
        for name in ["containerd-shim-runc-v2", "containerd-shim-kata-v1", "containerd-shim-kata--v2x", "kata-runtime"]
        {
            assert!(!is_role(name), "{name}");
        }
    }
}
