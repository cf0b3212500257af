//! `kata-runtime`: the OCI command line, and the other names of the one host executable.
//!
//! # Roles
//!
//! The executable looks at the name it is called by (`argv[0]`): under the names of the sandbox daemon and of the virtio-fs
//! server it becomes these, under `kata-shim` it becomes the process that stands on the host for one process of a
//! container ([`shim`]), under `containerd-shim-kata-v2` containerd's shim (the crate of the name `shim`), and under any other name it is the
//! command line ([`cli`]).
//!
//! # Stdio
//!
//! For each of a process's stdio streams the command makes a socket pair. One end goes to the sandbox's daemon, which carries
//! its bytes into the guest; the other is pumped by a blocking thread to or from the real descriptor ([`pump`]). The
//! pumping process is `kata-runtime` itself in the foreground, and the process's `kata-shim` for `create`, `run --detach`
//! and `exec --detach`. Inherited descriptors are shared with the caller, so their flags are never changed.
//!
//! # Foreground and detached
//!
//! ```text
//! run:                      kata-runtime ──── daemon ──── guest      kata-runtime's pid is the container's
//! create, run -d, exec -d:  kata-runtime (returns)
//!                             `── kata-shim ── daemon ──── guest      kata-shim's pid is the container's
//! ```
//!
//! Whoever stands for a process forwards signals to it, follows its terminal's size ([`signals`]), and ends as it did.
//!
//! # Output and errors
//!
//! Formats, messages and exit codes are runc's wherever the thing itself is the same. Errors go through [`log`], whose lines
//! callers parse.

mod admin;
mod cli;
mod commands;
mod console;
mod error;
mod foreground;
mod go;
mod log;
mod place;
mod process_spec;
mod pump;
mod rootless;
mod shim;
mod signals;
mod stdio;
mod sys;
mod terminal;
mod users;
mod view;

use std::{ffi::OsStr, path::Path, process::ExitCode};

pub(crate) use error::{Error, Result};

fn main() -> ExitCode {
    let begun_ns = sandbox::timeline::now_ns();
    let mut arguments = std::env::args_os();
    let called = arguments.next().unwrap_or_default();
    let role = Path::new(&called).file_name().and_then(OsStr::to_str).unwrap_or_default();
    match role {
        sandbox::daemon::ROLE => {
            // The command that starts a daemon holds signals back, and a new program inherits that.
            sys::unblock_signals();
            sandbox::daemon::role_main()
        }
        devices::virtiofs::ROLE => devices::virtiofs::role_main(arguments),
        shim::ROLE => shim::role_main(arguments),
        name if ::shim::is_role(name) => ::shim::main(),
        _ => cli::main(begun_ns),
    }
}
