//! The system calls that no safe library offers: signal masks, inherited descriptors, local time.

use std::{
    ffi::{CStr, CString},
    io,
    mem::{self, MaybeUninit},
    os::fd::{FromRawFd, OwnedFd, RawFd},
    ptr,
};

/// Signals that are left alone: the kernel's for a fault of this very process, those of job control that stop it, and those
/// that say something of its own descriptors and children.
const LEFT_ALONE: [i32; 11] = [
    libc::SIGSEGV,
    libc::SIGBUS,
    libc::SIGFPE,
    libc::SIGILL,
    libc::SIGTRAP,
    libc::SIGSYS,
    libc::SIGTTIN,
    libc::SIGTTOU,
    libc::SIGPIPE,
    libc::SIGCHLD,
    libc::SIGURG,
];

fn forwarded() -> libc::sigset_t {
    // SAFETY: sigset_t is plain memory, for which all zeroes are valid; the calls only write to it. They fail for signals
    // that do not exist, of which there are none in the list.
    unsafe {
        let mut set: libc::sigset_t = mem::zeroed();
        libc::sigfillset(&mut set);
        for signal in LEFT_ALONE {
            libc::sigdelset(&mut set, signal);
        }
        set
    }
}

/// Blocks, in this thread and those it will start, every signal that [`next_signal`] returns.
pub(crate) fn block_signals() {
    let set = forwarded();
    // SAFETY: the set is initialised; no old set is asked for.
    unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &set, ptr::null_mut()) };
}

/// Unblocks every signal. What is started from here inherits that.
pub(crate) fn unblock_signals() {
    // SAFETY: as in `block_signals`.
    unsafe {
        let mut set: libc::sigset_t = mem::zeroed();
        libc::sigemptyset(&mut set);
        libc::pthread_sigmask(libc::SIG_SETMASK, &set, ptr::null_mut());
    }
}

/// Waits for a signal that [`block_signals`] holds back and returns its number.
pub(crate) fn next_signal() -> i32 {
    let set = forwarded();
    loop {
        // SAFETY: the set is initialised; no further information is asked for.
        let signal = unsafe { libc::sigwaitinfo(&set, ptr::null_mut()) };
        if signal > 0 {
            return signal;
        }
    }
}

/// Ends this process by a signal, or as a shell would show that where the signal does not end processes.
pub(crate) fn die_by(signal: i32) -> ! {
    // SAFETY: plain system calls on initialised values. Setting a default action installs no handler.
    unsafe {
        libc::signal(signal, libc::SIG_DFL);
        let mut set: libc::sigset_t = mem::zeroed();
        libc::sigemptyset(&mut set);
        libc::sigaddset(&mut set, signal);
        libc::pthread_sigmask(libc::SIG_UNBLOCK, &set, ptr::null_mut());
        libc::raise(signal);
    }
    std::process::exit(128 + signal)
}

/// The greatest number of a signal (`SIGRTMAX`).
pub(crate) fn last_signal() -> i32 {
    libc::SIGRTMAX()
}

/// Descriptors this process inherited by number.
///
/// There is one of these at most, made first thing in a new process image; each number is given out once.
#[derive(Debug)]
pub(crate) struct Inherited {
    left: Vec<RawFd>,
}

impl Inherited {
    /// Closes every descriptor above 2 but `numbers`, and marks these to be closed when another program is executed.
    ///
    /// # Errors
    /// One of them is not open, or is given twice.
    pub(crate) fn only(numbers: &[RawFd]) -> io::Result<Self> {
        let mut left = numbers.to_vec();
        left.sort_unstable();
        let mut from = 3;
        for &number in &left {
            if number < from {
                return Err(io::Error::from_raw_os_error(libc::EINVAL));
            }
            close_range(from, number - 1)?;
            // SAFETY: setting the flag touches no memory; it fails if the number is not open.
            if unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) } != 0 {
                return Err(io::Error::last_os_error());
            }
            from = number + 1;
        }
        close_range(from, RawFd::MAX)?;
        Ok(Self { left })
    }

    /// Hands out one of them.
    pub(crate) fn take(&mut self, number: RawFd) -> Option<OwnedFd> {
        let index = self.left.iter().position(|left| *left == number)?;
        self.left.swap_remove(index);
        // SAFETY: `only` saw that it is open, nobody else owns it, and it has just been struck off the list.
        Some(unsafe { OwnedFd::from_raw_fd(number) })
    }
}

fn close_range(first: RawFd, last: RawFd) -> io::Result<()> {
    if first > last {
        return Ok(());
    }
    // SAFETY: touches no memory. It is called before anything in this process image has opened a descriptor above 2 that
    // safe code would still use.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// An extended regular expression (regex(7)), as the C library understands it.
#[derive(Debug)]
pub(crate) struct Pattern(Box<libc::regex_t>);

impl Pattern {
    /// # Errors
    /// It is none, in the library's words.
    pub(crate) fn new(text: &str) -> Result<Self, String> {
        let text = CString::new(text).map_err(|_| "contains a NUL byte".to_owned())?;
        let mut compiled = Box::new(MaybeUninit::<libc::regex_t>::uninit());
        // SAFETY: the first argument is room for a regex_t, which the call fills if it succeeds; the text ends with NUL.
        let code = unsafe { libc::regcomp(compiled.as_mut_ptr(), text.as_ptr(), libc::REG_EXTENDED | libc::REG_NOSUB) };
        if code == 0 {
            // SAFETY: regcomp has filled it. A regex_t may move.
            return Ok(Self(Box::new(unsafe { compiled.assume_init_read() })));
        }
        let mut words = [0u8; 256];
        // SAFETY: regerror writes at most that many bytes, the last of which is NUL; for an error of regcomp the expression may be anything.
        unsafe { libc::regerror(code, compiled.as_ptr(), words.as_mut_ptr().cast(), words.len()) };
        Err(CStr::from_bytes_until_nul(&words).map(|words| words.to_string_lossy().into_owned()).unwrap_or_default())
    }

    /// Whether the text has a match.
    pub(crate) fn is_in(&self, text: &str) -> bool {
        let Ok(text) = CString::new(text) else { return false };
        // SAFETY: the expression is compiled, the text ends with NUL, and no matches are asked for.
        unsafe { libc::regexec(&raw const *self.0, text.as_ptr(), 0, ptr::null_mut(), 0) == 0 }
    }
}

impl Drop for Pattern {
    fn drop(&mut self) {
        // SAFETY: it was compiled and is not used any more.
        unsafe { libc::regfree(&raw mut *self.0) };
    }
}

/// A moment, as clocks on the wall show it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LocalTime {
    /// Year of the Gregorian calendar.
    pub year: i32,
    /// 1 to 12.
    pub month: i32,
    /// 1 to 31.
    pub day: i32,
    /// 0 to 23.
    pub hour: i32,
    /// 0 to 59.
    pub minute: i32,
    /// 0 to 60.
    pub second: i32,
    /// Days since 1 January.
    pub day_of_year: i32,
    /// Seconds east of UTC.
    pub offset: i64,
}

impl LocalTime {
    /// As RFC 3339 has it, without fractions.
    pub(crate) fn rfc3339(&self) -> String {
        let Self { year, month, day, hour, minute, second, offset, .. } = self;
        let zone = match offset {
            0 => "Z".to_owned(),
            offset => {
                let minutes = offset.abs() / 60;
                format!("{}{:02}:{:02}", if *offset < 0 { '-' } else { '+' }, minutes / 60, minutes % 60)
            }
        };
        format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}{zone}")
    }
}

/// The local time at `seconds` since the epoch.
pub(crate) fn local_time(seconds: i64) -> LocalTime {
    // SAFETY: struct tm is plain memory, for which all zeroes are valid (its zone pointer is not read here). The call reads
    // one and writes the other. It may read the environment, which this program never changes.
    let time = unsafe {
        let mut time: libc::tm = mem::zeroed();
        libc::localtime_r(&seconds, &mut time);
        time
    };
    LocalTime {
        year: time.tm_year + 1900,
        month: time.tm_mon + 1,
        day: time.tm_mday,
        hour: time.tm_hour,
        minute: time.tm_min,
        second: time.tm_sec,
        day_of_year: time.tm_yday,
        offset: time.tm_gmtoff,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_with_their_zone() {
        let mut time =
            LocalTime { year: 2026, month: 1, day: 2, hour: 3, minute: 4, second: 5, day_of_year: 1, offset: 0 };
        assert_eq!(time.rfc3339(), "2026-01-02T03:04:05Z");
        time.offset = -(5 * 3600 + 1800);
        assert_eq!(time.rfc3339(), "2026-01-02T03:04:05-05:30");
        time.offset = 3600;
        assert_eq!(time.rfc3339(), "2026-01-02T03:04:05+01:00");
    }

    #[test]
    fn patterns_are_those_of_regcomp() {
        let pattern = Pattern::new("^test-(a|b)*$").unwrap();
        assert!(pattern.is_in("test-abba") && !pattern.is_in("a-test-a") && !pattern.is_in("test-abc"));
        assert!(Pattern::new("test-*").unwrap().is_in("a-test"));
        assert!(Pattern::new("(").unwrap_err().contains("Unmatched"));
    }

    #[test]
    fn local_time_counts_from_the_epoch() {
        let time = local_time(86_400 * 400);
        assert!(time.year == 1971 && (33..=35).contains(&(time.day_of_year)), "{time:?}");
    }
}
