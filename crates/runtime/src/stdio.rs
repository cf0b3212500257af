//! The two ends of a process's stdio: the daemon's, and the one that is pumped.

use std::{
    os::{
        fd::{AsFd, BorrowedFd},
        unix::net::UnixStream,
    },
    sync::Arc,
};

use rustix::fs::FileType;
use sandbox::client::StdioEnds;

use crate::{
    Error, Result,
    pump::{Pumps, Real},
    terminal::Terminal,
};

/// Our ends of a process's stdio.
#[derive(Debug, Default)]
pub(crate) struct OurEnds {
    /// Standard input, or what is typed.
    pub stdin: Option<UnixStream>,
    /// Standard output, or what the terminal shows.
    pub stdout: Option<UnixStream>,
    /// Standard error; never with a terminal.
    pub stderr: Option<UnixStream>,
}

/// Makes the socket pairs. A stream that leads to `/dev/null` here gets none, since that is what it then is in the guest.
///
/// # Errors
/// No more descriptors.
pub(crate) fn pairs(terminal: bool) -> Result<(OurEnds, StdioEnds)> {
    let mut ours = OurEnds::default();
    let mut theirs = StdioEnds::default();
    let make = || UnixStream::pair().map_err(|e| Error::io("make a socket pair for stdio", e));
    if terminal || !is_null(rustix::stdio::stdin()) {
        let (our, their) = make()?;
        (ours.stdin, theirs.stdin) = (Some(our), Some(their.into()));
    }
    if terminal || !is_null(rustix::stdio::stdout()) {
        let (our, their) = make()?;
        (ours.stdout, theirs.stdout) = (Some(our), Some(their.into()));
    }
    if !terminal && !is_null(rustix::stdio::stderr()) {
        let (our, their) = make()?;
        (ours.stderr, theirs.stderr) = (Some(our), Some(their.into()));
    }
    Ok((ours, theirs))
}

/// Whether it is `/dev/null` (character device 1:3), or not open at all, which is to a process much the same.
fn is_null(descriptor: BorrowedFd<'_>) -> bool {
    match rustix::fs::fstat(descriptor) {
        Ok(stat) => {
            FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice
                && (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev)) == (1, 3)
        }
        Err(_) => true,
    }
}

impl OurEnds {
    /// Starts to carry bytes between our ends and our own stdio, or `instead`, the terminal the process's stands for. Who is `detached` keeps
    /// none of it open for longer than the process does.
    ///
    /// # Errors
    /// No more threads.
    pub(crate) fn pump(self, terminal: bool, instead: Option<&Terminal>, detached: bool) -> Result<Pumps> {
        let pumps = Pumps::default();
        let own = match instead {
            Some(terminal) => {
                Some(Arc::new(terminal.as_fd().try_clone_to_owned().map_err(|e| Error::io("use the terminal", e))?))
            }
            None => None,
        };
        let real = |standard: fn() -> Result<Real>| match &own {
            Some(own) => Ok(Real::Own(own.clone())),
            None => standard(),
        };
        if let Some(socket) = self.stdin {
            pumps.input(real(Real::stdin)?, socket, terminal)?;
        }
        if let Some(socket) = self.stdout {
            pumps.output(socket, real(Real::stdout)?)?;
        }
        if let Some(socket) = self.stderr {
            pumps.output(socket, if detached { Real::StderrUntilItsEnd } else { Real::Stderr })?;
        }
        Ok(pumps)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_null_device_is_known() {
        assert!(is_null(std::fs::File::open("/dev/null").unwrap().as_fd()));
        assert!(!is_null(std::fs::File::open("/dev/zero").unwrap().as_fd()));
        assert!(!is_null(std::fs::File::open("/").unwrap().as_fd()));
    }

    #[test]
    fn a_terminal_has_two_streams() {
        let (ours, theirs) = pairs(true).unwrap();
        assert!(ours.stdin.is_some() && ours.stdout.is_some() && ours.stderr.is_none());
        assert!(theirs.stdin.is_some() && theirs.stdout.is_some() && theirs.stderr.is_none());
    }
}
