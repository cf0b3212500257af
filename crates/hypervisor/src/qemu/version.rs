//! Which version a QEMU program is of, without starting a machine.

use std::{
    io::Read,
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use super::qmp::OLDEST;
use crate::{Error, Result};

/// How long a program may take to say its version.
const DEADLINE: Duration = Duration::from_secs(10);
/// How often that is looked at.
const PAUSE: Duration = Duration::from_millis(5);
/// More than this it does not say.
const MOST: u64 = 4096;

/// The version that a program says it is of, and whether that is new enough.
///
/// # Errors
/// [`Error::Io`] when it cannot be run, or says something else.
pub fn version(program: &Path) -> Result<(String, bool)> {
    let failed = Error::io("ask QEMU for its version");
    let mut command = Command::new(program);
    command.arg("--version").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().map_err(&failed)?;
    let end = Instant::now() + DEADLINE;
    while child.try_wait().map_err(&failed)?.is_none() {
        if Instant::now() > end {
            let _it_ends = child.kill().and_then(|()| child.wait());
            return Err(failed(std::io::ErrorKind::TimedOut.into()));
        }
        std::thread::sleep(PAUSE);
    }
    let mut said = String::new();
    if let Some(stdout) = child.stdout.take() {
        stdout.take(MOST).read_to_string(&mut said).map_err(&failed)?;
    }
    parse(&said).ok_or_else(|| failed(std::io::Error::other("it does not say that it is a QEMU")))
}

/// "QEMU emulator version 10.0.2 (Debian ...)".
fn parse(said: &str) -> Option<(String, bool)> {
    let version = said.strip_prefix("QEMU ")?.split_once("version ")?.1.split_whitespace().next()?;
    let mut numbers = version.split('.').map(|number| number.parse::<u32>().ok());
    let supported = (numbers.next()??, numbers.next()??) >= OLDEST;
    Some((version.to_owned(), supported))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_ones_are_told_from_new_ones() {
        let parsed =
            |version: &str| parse(&format!("QEMU emulator version {version} (Debian 1:1)\nCopyright")).unwrap().1;
        assert!(parsed("10.0.2") && parsed("7.2.0") && !parsed("7.1.9") && !parsed("6.2.0"));
        assert_eq!(parse("qemu"), None);
        assert_eq!(parse("QEMU emulator version x.y"), None);
    }

    #[test]
    fn what_is_no_qemu_is_an_error() {
        assert!(version(Path::new("/nonexistent")).is_err());
        assert!(version(Path::new("/bin/true")).unwrap_err().to_string().contains("version"));
    }
}
