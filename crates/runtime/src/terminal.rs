//! The caller's terminal, and terminals made for callers.

use std::{
    fs::OpenOptions,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::fs::OpenOptionsExt,
    },
    sync::Arc,
};

use agent_api::WindowSize;
use rustix::{
    fs::{Mode, OFlags},
    pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt},
    termios::{OptionalActions, Termios, Winsize, isatty, tcgetattr, tcgetwinsize, tcsetattr, tcsetwinsize},
};

use crate::{Error, Result};

/// A terminal somebody sits at.
#[derive(Debug)]
pub(crate) struct Terminal {
    descriptor: OwnedFd,
}

impl Terminal {
    /// The caller's: the first of stdin, stdout and stderr that is one, else the controlling terminal.
    ///
    /// # Errors
    /// There is none.
    pub(crate) fn of_caller() -> Result<Self> {
        let standard = [rustix::stdio::stdin(), rustix::stdio::stdout(), rustix::stdio::stderr()];
        if let Some(found) = standard.into_iter().find(|descriptor| isatty(descriptor)) {
            let descriptor = rustix::io::fcntl_dupfd_cloexec(found, 3).map_err(|e| Error::io("use the terminal", e))?;
            return Ok(Self { descriptor });
        }
        let opened = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NOCTTY).open("/dev/tty");
        opened.map(|file| Self { descriptor: file.into() }).map_err(|e| Error::io("open /dev/tty", rustix_text(e)))
    }

    /// One end of a pair.
    pub(crate) fn new(descriptor: OwnedFd) -> Self {
        Self { descriptor }
    }

    /// Its size; `None` when it has none.
    pub(crate) fn size(&self) -> Option<WindowSize> {
        let size = tcgetwinsize(&self.descriptor).ok()?;
        (size.ws_row != 0 || size.ws_col != 0).then_some(WindowSize { rows: size.ws_row, cols: size.ws_col })
    }

    /// Passes every byte through as it is until the guard is dropped, also if this program fails.
    ///
    /// # Errors
    /// The terminal refuses.
    pub(crate) fn raw(self: &Arc<Self>) -> Result<RawMode> {
        let saved = tcgetattr(&self.descriptor).map_err(|e| Error::io("read the terminal's settings", e))?;
        let guard = RawMode { terminal: self.clone(), saved };
        guard.set(&raw(&guard.saved)).map_err(|e| Error::io("set the terminal to raw mode", e))?;
        let (terminal, saved) = (self.clone(), guard.saved.clone());
        let report = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            let _as_well_as_possible = tcsetattr(&terminal.descriptor, OptionalActions::Now, &saved);
            report(info);
        }));
        Ok(guard)
    }
}

impl AsFd for Terminal {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

/// The system's words without Rust's "(os error N)".
fn rustix_text(error: std::io::Error) -> std::io::Error {
    match error.raw_os_error() {
        Some(libc::ENXIO) => std::io::Error::other("no such device or address"),
        Some(libc::ENOENT) => std::io::Error::other("no such file or directory"),
        _ => error,
    }
}

/// A terminal in raw mode.
#[derive(Debug)]
pub(crate) struct RawMode {
    terminal: Arc<Terminal>,
    saved: Termios,
}

impl RawMode {
    fn set(&self, settings: &Termios) -> rustix::io::Result<()> {
        tcsetattr(&self.terminal, OptionalActions::Now, settings)
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        // A terminal that is gone needs no settings.
        let _gone = self.set(&self.saved);
    }
}

fn raw(settings: &Termios) -> Termios {
    let mut raw = settings.clone();
    raw.make_raw();
    raw
}

/// A new pseudoterminal in raw mode: the master, for whoever asked, and the slave.
///
/// # Errors
/// The system has no more of them, or no `/dev/ptmx`.
pub(crate) fn open_pair(size: Option<WindowSize>) -> Result<(OwnedFd, OwnedFd)> {
    let failed = |step: &str, e: rustix::io::Errno| Error::io(format!("make a pseudoterminal: {step}"), e);
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)
        .map_err(|e| failed("open /dev/ptmx", e))?;
    grantpt(&master).map_err(|e| failed("grant its slave", e))?;
    unlockpt(&master).map_err(|e| failed("unlock its slave", e))?;
    let path = ptsname(&master, Vec::new()).map_err(|e| failed("name its slave", e))?;
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let slave = rustix::fs::open(path.as_c_str(), flags, Mode::empty()).map_err(|e| failed("open its slave", e))?;
    let settings = tcgetattr(&slave).map_err(|e| failed("read its settings", e))?;
    tcsetattr(&slave, OptionalActions::Now, &raw(&settings)).map_err(|e| failed("set raw mode", e))?;
    if let Some(WindowSize { rows, cols }) = size {
        let size = Winsize { ws_row: rows, ws_col: cols, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(&slave, size).map_err(|e| failed("set its size", e))?;
    }
    Ok((master, slave))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        fs::File,
        io::{Read, Write},
    };

    #[test]
    fn a_new_pair_passes_bytes_untouched_and_has_the_size() {
        let (master, slave) = open_pair(Some(WindowSize { rows: 10, cols: 20 })).unwrap();
        assert_eq!(Terminal::new(master.try_clone().unwrap()).size(), Some(WindowSize { rows: 10, cols: 20 }));
        let (mut master, mut slave) = (File::from(master), File::from(slave));
        slave.write_all(b"out\n").unwrap();
        let mut bytes = [0; 4];
        master.read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes, b"out\n");
        master.write_all(b"\x03in\r").unwrap();
        slave.read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes, b"\x03in\r");
    }

    #[test]
    fn raw_mode_ends_with_its_guard() {
        let (_master, slave) = open_pair(None).unwrap();
        let mut cooked = tcgetattr(&slave).unwrap();
        cooked.local_modes |= rustix::termios::LocalModes::ECHO | rustix::termios::LocalModes::ICANON;
        tcsetattr(&slave, OptionalActions::Now, &cooked).unwrap();
        let terminal = Arc::new(Terminal::new(slave));
        let echoes = || tcgetattr(&terminal).unwrap().local_modes.contains(rustix::termios::LocalModes::ECHO);
        let guard = terminal.raw().unwrap();
        assert!(!echoes());
        drop(guard);
        assert!(echoes());
        assert_eq!(terminal.size(), None);
    }
}
