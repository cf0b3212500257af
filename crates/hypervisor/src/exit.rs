//! How a machine ended.

use std::{fmt, path::PathBuf};

/// What to do about a guest image that is not what its root hash was made for.
pub(crate) const MISMATCH_REMEDY: &str = "restore it, or build it and its root hash anew";

/// How a machine ended, and the words for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExitReason {
    /// The process that was the machine.
    pub pid: u32,
    /// What happened.
    pub cause: ExitCause,
    /// What the hypervisor wrote last to its standard error; see [`crate::Vm::stderr_tail`].
    pub stderr: Vec<String>,
}

/// What ended a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExitCause {
    /// [`crate::Vm::kill`] was called or the machine was dropped.
    Killed,
    /// A signal that this crate did not send.
    Signal(i32),
    /// QEMU gave up with this exit code, which is not 0.
    Code(i32),
    /// The guest's kernel panicked; the line of its console that says why. It is the guest's word.
    Panic(String),
    /// The guest's kernel read a block of its image that is not what the root hash was made for, and panicked. It is the
    /// guest's word, but one that an image cannot talk it out of.
    Mismatch {
        /// The image.
        image: PathBuf,
        /// The line of the console that says so.
        line: String,
    },
    /// The guest's kernel could not mount its image as the root file system, and panicked.
    NoRoot {
        /// The image.
        image: PathBuf,
        /// The line of the console that says so.
        line: String,
    },
    /// The guest's kernel found nothing in its image that it could execute as the first program, and panicked.
    NoInit {
        /// The image.
        image: PathBuf,
        /// The line of the console that says so.
        line: String,
    },
    /// The guest powered itself off.
    PowerOff,
    /// The guest restarted itself. Machines do not restart, they end.
    Reboot,
    /// QEMU ended without an error and without saying why.
    Quit,
}

impl fmt::Display for ExitReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pid = self.pid;
        match &self.cause {
            ExitCause::Killed => return write!(f, "QEMU (pid {pid}) was ended on request"),
            ExitCause::Signal(signal) => write!(f, "QEMU (pid {pid}) was killed by {}", signal_name(*signal))?,
            ExitCause::Code(code) => write!(f, "QEMU (pid {pid}) exited with code {code}")?,
            ExitCause::Panic(line) => return write!(f, "the guest's kernel panicked: {line}"),
            ExitCause::Mismatch { image, line } => {
                let image = image.display();
                return write!(
                    f,
                    "the guest image {image} does not match its root hash: it is damaged or was tampered with; \
                     {MISMATCH_REMEDY} (the guest's kernel: {line})"
                );
            }
            ExitCause::NoRoot { image, line } => {
                let image = image.display();
                return write!(
                    f,
                    "the guest's kernel cannot mount the guest image {image}: it must have virtio-blk, the image's file system \
                     and, if the image has a hash tree, dm-verity with dm-mod.create built in; set kernel to one that has, or \
                     initrd instead of image (the guest's kernel: {line})"
                );
            }
            ExitCause::NoInit { image, line } => {
                let image = image.display();
                return write!(
                    f,
                    "the guest image {image} has no agent that the guest's kernel can execute: none, or one for another \
                     architecture; build it anew (the guest's kernel: {line})"
                );
            }
            ExitCause::PowerOff => return f.write_str("the guest powered itself off"),
            ExitCause::Reboot => return f.write_str("the guest restarted itself"),
            ExitCause::Quit => write!(f, "QEMU (pid {pid}) ended by itself")?,
        }
        if !self.stderr.is_empty() {
            write!(f, " after writing: {}", self.stderr.join(" | "))?;
        }
        Ok(())
    }
}

/// `SIGKILL` for 9, for the signals a process commonly dies of.
fn signal_name(signal: i32) -> String {
    let name = match signal {
        libc::SIGHUP => "SIGHUP",
        libc::SIGINT => "SIGINT",
        libc::SIGQUIT => "SIGQUIT",
        libc::SIGILL => "SIGILL",
        libc::SIGTRAP => "SIGTRAP",
        libc::SIGABRT => "SIGABRT",
        libc::SIGBUS => "SIGBUS",
        libc::SIGFPE => "SIGFPE",
        libc::SIGKILL => "SIGKILL",
        libc::SIGSEGV => "SIGSEGV",
        libc::SIGPIPE => "SIGPIPE",
        libc::SIGTERM => "SIGTERM",
        libc::SIGXCPU => "SIGXCPU",
        libc::SIGXFSZ => "SIGXFSZ",
        libc::SIGSYS => "SIGSYS (a system call that its seccomp filter forbids)",
        other => return format!("signal {other}"),
    };
    name.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_who_died_of_what() {
        let reason =
            |cause, stderr: &[&str]| ExitReason { pid: 7, cause, stderr: stderr.iter().map(|&l| l.into()).collect() };
        assert_eq!(reason(ExitCause::Signal(9), &[]).to_string(), "QEMU (pid 7) was killed by SIGKILL");
        assert_eq!(reason(ExitCause::Signal(64), &[]).to_string(), "QEMU (pid 7) was killed by signal 64");
        let refused = reason(ExitCause::Code(1), &["qemu: -foo: invalid option"]).to_string();
        assert_eq!(refused, "QEMU (pid 7) exited with code 1 after writing: qemu: -foo: invalid option");
        let panic = ExitCause::Panic("Kernel panic - not syncing: no init".into());
        assert_eq!(
            reason(panic, &["x"]).to_string(),
            "the guest's kernel panicked: Kernel panic - not syncing: no init"
        );
        let mismatch = ExitCause::Mismatch { image: "/i".into(), line: "metadata block 1 is corrupted".into() };
        assert_eq!(
            reason(mismatch, &["x"]).to_string(),
            "the guest image /i does not match its root hash: it is damaged or was tampered with; restore it, or build \
             it and its root hash anew (the guest's kernel: metadata block 1 is corrupted)"
        );
    }
}
