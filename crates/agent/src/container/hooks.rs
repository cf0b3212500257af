//! Hooks that are run in the container, just before its program.
//!
//! As in runc, the process that is to become the program runs them, with its rights: one that hangs or fails keeps it from becoming it.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use agent_api::Fault;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, SeekFrom, memfd_create, seek};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, WaitOptions, WaitStatus, pidfd_open, waitpid};

use crate::fault::{Context, internal, invalid};
use crate::spec::Hook;
use crate::sys::{self, Cloned};

/// How long a hook without a timeout may take.
const PATIENCE: Duration = Duration::from_secs(120);
/// Most of what a failing hook says that is repeated, bytes.
const MOST_SAID: u64 = 2048;
/// Exit code of a child that could not become the hook.
const NOT_EXECUTED: i32 = 127;

/// How long hooks may take in all.
pub fn patience(hooks: &[Hook]) -> Duration {
    hooks.iter().map(timeout).sum()
}

fn timeout(hook: &Hook) -> Duration {
    let seconds = hook.timeout.and_then(|seconds| u64::try_from(seconds).ok()).filter(|seconds| *seconds > 0);
    seconds.map_or(PATIENCE, Duration::from_secs)
}

/// Runs hooks one after the other. `told` is the state without the process id; `env` is for a hook that has none of its own.
///
/// # Errors
/// The first that fails.
pub fn run(hooks: &[Hook], told: &str, env: &[CString]) -> Result<(), Fault> {
    if hooks.is_empty() {
        return Ok(());
    }
    let mut state: serde_json::Value =
        serde_json::from_str(told).map_err(|error| invalid(format!("the state for hooks is not JSON: {error}")))?;
    state["pid"] = std::process::id().into();
    let state = state.to_string();
    for (index, hook) in hooks.iter().enumerate() {
        let failed =
            |why: String| internal(format!("error running hook #{index}: the startContainer hook {} {why}", hook.path));
        let (status, said) = one(hook, &state, env).map_err(|fault| failed(format!("failed: {}", fault.message)))?;
        match status {
            None => return Err(failed(format!("did not end within {} s", timeout(hook).as_secs()))),
            Some(status) if status.exit_status() == Some(0) => {}
            Some(status) => {
                let how = match (status.exit_status(), status.terminating_signal()) {
                    (Some(code), _) => format!("exit status: {code}"),
                    (_, Some(signal)) => format!("signal: {}", signal_in_words(signal)),
                    _ => "unknown".to_owned(),
                };
                return Err(failed(format!("failed ({how}): {said}")));
            }
        }
    }
    Ok(())
}

/// As readers of runc's messages know them.
fn signal_in_words(signal: i32) -> String {
    match signal {
        libc::SIGABRT => "aborted".into(),
        libc::SIGBUS => "bus error".into(),
        libc::SIGFPE => "floating point exception".into(),
        libc::SIGKILL => "killed".into(),
        libc::SIGSEGV => "segmentation fault".into(),
        libc::SIGSYS => "bad system call".into(),
        libc::SIGTERM => "terminated".into(),
        signal => signal.to_string(),
    }
}

/// Runs one; gives how it ended, if it did in time, and the end of what it said.
fn one(hook: &Hook, state: &str, env: &[CString]) -> Result<(Option<WaitStatus>, String), Fault> {
    let strings = |texts: &[String]| -> Result<Vec<CString>, Fault> {
        texts
            .iter()
            .map(|text| CString::new(text.as_str()).map_err(|_| invalid(format!("{text:?} has a NUL"))))
            .collect()
    };
    let path = strings(std::slice::from_ref(&hook.path))?.remove(0);
    let args = if hook.args.is_empty() { vec![path.clone()] } else { strings(&hook.args)? };
    let env = hook.env.as_deref().map(strings).transpose()?.unwrap_or_else(|| env.to_vec());
    let (args, env): (Vec<&CStr>, Vec<&CStr>) =
        (args.iter().map(CString::as_c_str).collect(), env.iter().map(CString::as_c_str).collect());
    let input = memory(state.as_bytes()).context(|| "making its input".into())?;
    let said = memory(b"").context(|| "making its output".into())?;

    let pid = match sys::clone3(0, None).context(|| "clone3".into())? {
        Cloned::Parent(pid) => pid,
        Cloned::Child => {
            let placed = [&input, &said, &said].iter().zip(0..).try_for_each(|(fd, at)| sys::place(fd.as_fd(), at));
            if placed.is_ok() {
                let error = sys::execve(&path, &args, &env);
                let _ = rustix::io::write(&said, crate::fault::reason(&error).as_bytes());
            }
            sys::exit_now(NOT_EXECUTED)
        }
    };
    let status = wait(pid, timeout(hook)).context(|| "waiting for it".into())?;
    Ok((status, tail(&said)))
}

/// A file in memory with these contents, to be read from its beginning.
fn memory(bytes: &[u8]) -> io::Result<OwnedFd> {
    let file = memfd_create("hook", MemfdFlags::CLOEXEC)?;
    let mut left = bytes;
    while !left.is_empty() {
        let count = rustix::io::write(&file, left)?;
        left = &left[count..];
    }
    seek(&file, SeekFrom::Start(0))?;
    Ok(file)
}

fn wait(pid: u32, patience: Duration) -> io::Result<Option<WaitStatus>> {
    let pid = Pid::from_raw(pid.cast_signed()).ok_or(Errno::SRCH)?;
    let process = pidfd_open(pid, PidfdFlags::empty())?;
    let end = Instant::now() + patience;
    let ended = loop {
        let left = end.saturating_duration_since(Instant::now());
        let left = Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: left.subsec_nanos().into() };
        match poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&left)) {
            Err(Errno::INTR) => {}
            other => break other?,
        }
    };
    if ended == 0 {
        let _gone = sys::kill(pid.as_raw_nonzero().get().cast_unsigned(), libc::SIGKILL);
    }
    let status = waitpid(Some(pid), WaitOptions::empty())?.map(|(_, status)| status);
    Ok(status.filter(|_| ended > 0))
}

fn tail(said: &OwnedFd) -> String {
    let mut bytes = vec![0; MOST_SAID as usize];
    let length = rustix::fs::fstat(said).map_or(0, |stat| stat.st_size.cast_unsigned());
    let read = rustix::io::pread(said, &mut bytes[..], length.saturating_sub(MOST_SAID)).unwrap_or(0);
    match String::from_utf8_lossy(&bytes[..read]).trim_end() {
        "" => "it said nothing".into(),
        text => text.replace('\n', "; "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hook(script: &str, timeout: Option<i64>) -> Hook {
        let args = ["sh", "-c", script].map(str::to_owned).to_vec();
        Hook { path: "/bin/sh".into(), args, env: None, timeout }
    }

    #[test]
    fn hooks_get_the_state_with_their_process_and_the_first_that_fails_ends_it() {
        let dir = tempfile_dir();
        let told = format!("{dir}/told");
        let hooks = [
            hook(&format!("cat >{told}; echo $A >>{told}"), None),
            hook("echo why >&2; exit 4", None),
            hook(&format!("echo never >>{told}"), None),
        ];
        let fault = run(&hooks, r#"{"id":"c"}"#, &[c"A=b".to_owned()]).unwrap_err();
        assert_eq!(
            fault.message,
            "error running hook #1: the startContainer hook /bin/sh failed (exit status: 4): why"
        );
        let text = std::fs::read_to_string(&told).unwrap();
        assert_eq!(text, format!("{{\"id\":\"c\",\"pid\":{}}}b\n", std::process::id()));
        std::fs::remove_dir_all(dir).unwrap();
    }

    fn tempfile_dir() -> String {
        let dir = std::env::temp_dir().join(format!("kata-agent-hooks-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        dir.display().to_string()
    }

    #[test]
    fn a_hook_that_does_not_end_is_killed_and_one_that_is_not_there_named() {
        let fault = run(&[hook("exec sleep 1000", Some(1))], "{}", &[]).unwrap_err();
        assert!(fault.message.ends_with("/bin/sh did not end within 1 s"), "{}", fault.message);
        let missing = Hook { path: "/no/such".into(), args: Vec::new(), env: None, timeout: None };
        let fault = run(&[missing], "{}", &[]).unwrap_err();
        assert!(fault.message.contains("/no/such failed (exit status: 127): no such file"), "{}", fault.message);
    }

    #[test]
    fn patience_is_the_sum() {
        assert_eq!(patience(&[hook("", Some(3)), hook("", None)]), Duration::from_secs(123));
    }
}
