//! Terminals: a pseudo terminal of the container's own devpts.

use std::os::fd::{AsFd, OwnedFd};

use agent_api::{Fault, WindowSize};
use rustix::fs::{Mode, OFlags};
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

use crate::fault::Context;
use crate::spec::Process;

/// Both ends of a new terminal.
pub struct Terminal {
    /// The end that the agent gets.
    pub master: OwnedFd,
    /// The end that the process gets.
    pub slave: OwnedFd,
}

/// Makes a terminal, as seen from inside the container, with the size that the process asks for.
///
/// # Errors
/// When the container has no devpts.
pub fn open(process: &Process) -> Result<Terminal, Fault> {
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    // The devpts itself, not /dev/ptmx, which is a link that the container may have changed.
    let master = rustix::fs::open("/dev/pts/ptmx", flags | OFlags::NOFOLLOW, Mode::empty())
        .or_else(|_| rustix::fs::open("/dev/ptmx", flags, Mode::empty()))
        .context(|| "open /dev/ptmx".into())?;
    unlockpt(&master).context(|| "unlocking the terminal".into())?;
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let slave = ioctl_tiocgptpeer(&master, flags).context(|| "open the other end of the terminal".into())?;
    if let Some(size) = &process.console_size {
        let clamp = |number: u64| u16::try_from(number).unwrap_or(u16::MAX);
        resize(master.as_fd(), WindowSize { rows: clamp(size.height), cols: clamp(size.width) })?;
    }
    Ok(Terminal { master, slave })
}

/// Sets a terminal's size.
///
/// # Errors
/// Those of ioctl_tty(2).
pub fn resize(terminal: impl AsFd, size: WindowSize) -> Result<(), Fault> {
    let size = Winsize { ws_row: size.rows, ws_col: size.cols, ws_xpixel: 0, ws_ypixel: 0 };
    tcsetwinsize(terminal, size).context(|| "setting the terminal's size".into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::termios::tcgetwinsize;

    #[test]
    fn a_terminal_has_the_size_it_is_asked_for() {
        let process: Process = serde_json::from_str(
            r#"{"user":{"uid":0,"gid":0},"cwd":"/","terminal":true,"consoleSize":{"height":33,"width":77}}"#,
        )
        .unwrap();
        let terminal = open(&process).unwrap();
        assert!(rustix::termios::isatty(&terminal.slave));
        let size = tcgetwinsize(&terminal.slave).unwrap();
        assert_eq!((size.ws_row, size.ws_col), (33, 77));
        resize(&terminal.master, WindowSize { rows: 5, cols: 6 }).unwrap();
        assert_eq!(tcgetwinsize(&terminal.slave).unwrap().ws_col, 6);
    }
}
