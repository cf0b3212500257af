//! Making [`Fault`]s: what goes wrong in a call.
//!
//! Texts follow runc's, because callers know them: `step: reason`, with the reason as Go prints an error number.

use std::io;

use agent_api::{Fault, FaultKind};

/// What runc puts before every reason why a process could not be started.
pub const NOT_STARTED: &str = "unable to start container process: ";

/// A fault of some kind.
pub fn fault(kind: FaultKind, message: impl Into<String>) -> Fault {
    Fault { kind, message: message.into() }
}

/// A fault for which there is no kind of its own.
pub fn internal(message: impl Into<String>) -> Fault {
    fault(FaultKind::Internal, message)
}

/// The request asks for something that is wrong or unsupported.
pub fn invalid(message: impl Into<String>) -> Fault {
    fault(FaultKind::InvalidArgument, message)
}

/// The same fault with something put before its message.
pub fn prefixed(prefix: &str, mut fault: Fault) -> Fault {
    fault.message.insert_str(0, prefix);
    fault
}

/// An error's text without Rust's `(os error N)`, beginning in lower case.
pub fn reason(error: &io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    let mut chars = text.chars();
    chars.next().map(|first| first.to_ascii_lowercase()).into_iter().chain(chars).collect()
}

/// Adds to an error what was being done.
pub trait Context<T> {
    /// The fault `what: reason`.
    fn context(self, what: impl FnOnce() -> String) -> Result<T, Fault>;
}

impl<T, E: Into<io::Error>> Context<T> for Result<T, E> {
    fn context(self, what: impl FnOnce() -> String) -> Result<T, Fault> {
        self.map_err(|error| internal(format!("{}: {}", what(), reason(&error.into()))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_read_as_gos() {
        assert_eq!(reason(&io::Error::from_raw_os_error(libc::ENOENT)), "no such file or directory");
        assert_eq!(reason(&io::Error::from_raw_os_error(libc::ENOEXEC)), "exec format error");
        let fault = Err::<(), _>(rustix::io::Errno::ACCESS).context(|| "open /x".into()).unwrap_err();
        assert_eq!(fault.message, "open /x: permission denied");
    }
}
