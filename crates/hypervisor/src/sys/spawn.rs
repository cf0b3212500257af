//! Takes everything away from a process between fork and exec that a hypervisor does not need.
//!
//! Only system calls happen there: no allocation, no lock, no formatting. Which step failed is told over a pipe, because the
//! standard library passes on the error number alone.

use std::{
    io::{self, PipeReader, Read},
    os::{
        fd::{AsRawFd, BorrowedFd, OwnedFd},
        unix::process::CommandExt,
    },
    process::{Child, Command},
};

use rustix::{
    io::{Errno, FdFlags, fcntl_setfd},
    process::{Pid, Resource, Rlimit, Signal, getpid, getppid, set_parent_process_death_signal, setrlimit, setsid},
    thread::{
        CapabilitySet, CapabilitySets, Gid, Uid, UnshareFlags, clear_ambient_capability_set,
        remove_capability_from_bounding_set, set_capabilities, set_no_new_privs, set_thread_groups, set_thread_res_gid,
        set_thread_res_uid,
    },
};

/// What is taken from a process, and what is left to it.
#[derive(Debug, Default)]
pub(crate) struct Confinement {
    /// Descriptors that stay open under their own numbers, besides the standard ones.
    pub(crate) inherit: Vec<OwnedFd>,
    /// User and group id, not `u32::MAX`; `None` keeps the caller's.
    pub(crate) uid: Option<u32>,
    /// The one supplementary group, if any.
    pub(crate) group: Option<u32>,
    /// The caller is root: give namespaces of its own to the process and empty its capability bounding set. Both need
    /// privileges, and without privileges there is nothing to take.
    pub(crate) privileged: bool,
}

/// What is done in the child, in this order; the index is what the pipe carries.
const STEPS: [&str; 10] = [
    "start a session of its own",
    "leave the host's network, IPC and host name namespaces",
    "forbid core dumps",
    "drop the capability bounding set",
    "take its user and group ids",
    "drop its capabilities",
    "forbid itself new privileges",
    "tie its life to its parent's",
    "keep its parent's descriptors from it",
    "inherit its descriptors",
];

/// Starts `command` confined.
///
/// # Errors
/// The step that failed, as a verb, and what the system said.
pub(crate) fn spawn(mut command: Command, confinement: Confinement) -> Result<Child, (&'static str, io::Error)> {
    let (mut failed, report) = io::pipe().map_err(|error| ("make a pipe", error))?;
    let parent = getpid();
    let closure = move || {
        for step in 0..STEPS.len() {
            if let Err(error) = take(step, &confinement, parent) {
                let _ = rustix::io::write(&report, &[step as u8]);
                return Err(error.into());
            }
        }
        Ok(())
    };
    // SAFETY: the closure runs in the child of a fork, where only async-signal-safe functions may be called. `take` makes raw
    // system calls through rustix and libc alone; nothing it or this closure does allocates, locks or unwinds.
    unsafe { command.pre_exec(closure) };
    let spawned = command.spawn();
    // The command owns the closure and so the writing end of the pipe and the inherited descriptors.
    drop(command);
    spawned.map_err(|error| (failed_step(&mut failed), error))
}

/// The step the child named, or the last one of all, which has no number.
fn failed_step(report: &mut PipeReader) -> &'static str {
    let mut step = [u8::MAX];
    match report.read(&mut step) {
        Ok(1) => STEPS.get(usize::from(step[0])).copied().unwrap_or("run the program"),
        _ => "run the program",
    }
}

/// One step of [`STEPS`], in the child.
fn take(step: usize, confinement: &Confinement, parent: Pid) -> Result<(), Errno> {
    match step {
        // A signal for the terminal's foreground process group is not meant for the machine.
        0 => setsid().map(drop),
        1 if confinement.privileged => unshare(UnshareFlags::NEWNET | UnshareFlags::NEWIPC | UnshareFlags::NEWUTS),
        // A core would hold the guest's memory.
        2 => setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) }),
        3 if confinement.privileged => empty_bounding_set(),
        4 => take_ids(confinement),
        5 => {
            // A kernel that knows no ambient set has none to clear.
            let _ = clear_ambient_capability_set();
            let none = CapabilitySet::empty();
            set_capabilities(None, CapabilitySets { effective: none, permitted: none, inheritable: none })
        }
        6 => set_no_new_privs(true),
        // After the ids, because changing them clears it.
        7 => {
            set_parent_process_death_signal(Some(Signal::KILL))?;
            // The parent may have died before the kernel was told to watch it.
            if getppid() == Some(parent) { Ok(()) } else { Err(Errno::SRCH) }
        }
        8 => close_on_exec_from(3),
        9 => confinement.inherit.iter().try_for_each(|fd| fcntl_setfd(fd, FdFlags::empty())),
        _ => Ok(()),
    }
}

fn unshare(flags: UnshareFlags) -> Result<(), Errno> {
    // SAFETY: none of the namespaces asked for is one that other threads' memory or descriptors depend on, and a forked child
    // has no other thread.
    unsafe { rustix::thread::unshare_unsafe(flags) }
}

fn empty_bounding_set() -> Result<(), Errno> {
    for number in 0..64 {
        match remove_capability_from_bounding_set(CapabilitySet::from_bits_retain(1 << number)) {
            Ok(()) => {}
            // The first number the kernel does not know.
            Err(Errno::INVAL) => break,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn take_ids(confinement: &Confinement) -> Result<(), Errno> {
    let Some(id) = confinement.uid else { return Ok(()) };
    let (uid, gid) = (Uid::from_raw(id), Gid::from_raw(id));
    match confinement.group {
        Some(group) => set_thread_groups(&[Gid::from_raw(group)])?,
        None => set_thread_groups(&[])?,
    }
    set_thread_res_gid(gid, gid, gid)?;
    set_thread_res_uid(uid, uid, uid)
}

/// Marks every descriptor from `first` on to be closed by exec. Descriptors that this process inherited unmarked would
/// otherwise reach the hypervisor.
fn close_on_exec_from(first: u32) -> Result<(), Errno> {
    // SAFETY: close_range with CLOSE_RANGE_CLOEXEC closes nothing and touches no memory; it sets a flag that exec reads.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    if result == 0 { Ok(()) } else { Err(Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::INVAL)) }
}

/// The number a descriptor keeps in the child.
pub(crate) fn number(fd: &OwnedFd) -> i32 {
    BorrowedFd::as_raw_fd(&std::os::fd::AsFd::as_fd(fd))
}

#[cfg(test)]
mod tests {
    use std::process::Stdio;

    use super::*;

    fn run(program: &str, script: &str, confinement: Confinement) -> String {
        let mut command = Command::new(program);
        command.args(["-c", script]).stdin(Stdio::null()).stdout(Stdio::piped());
        let output = spawn(command, confinement).unwrap().wait_with_output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    }

    fn is_root() -> bool {
        let root = rustix::process::geteuid().is_root();
        if !root {
            eprintln!("skipped: needs root to take privileges away");
        }
        root
    }

    #[test]
    fn nothing_is_left_of_root() {
        if !is_root() {
            return;
        }
        let (_reader, writer) = io::pipe().unwrap();
        let kept = writer.as_raw_fd();
        let confinement = Confinement {
            inherit: vec![writer.into()],
            uid: Some(0x6b00_1234),
            group: Some(0x6b00_4321),
            privileged: true,
        };
        let status =
            run("/bin/sh", "cat /proc/self/status; ls /proc/$$/fd; ulimit -c; wc -l </proc/net/dev", confinement);
        for line in [
            "Uid:\t1795166772\t1795166772\t1795166772\t1795166772",
            "Gid:\t1795166772\t1795166772\t1795166772\t1795166772",
            "Groups:\t1795179297 ",
            "CapInh:\t0000000000000000",
            "CapPrm:\t0000000000000000",
            "CapEff:\t0000000000000000",
            "CapBnd:\t0000000000000000",
            "CapAmb:\t0000000000000000",
            "NoNewPrivs:\t1",
        ] {
            assert!(status.lines().any(|found| found == line), "{line:?} is not in:\n{status}");
        }
        let after: Vec<&str> = status.lines().skip_while(|line| !line.starts_with("nonvoluntary")).skip(1).collect();
        let kept = kept.to_string();
        // Its own descriptors, no core, and a network with nothing but the loopback device.
        let mut descriptors = ["0", "1", "2", kept.as_str()];
        // As ls sorts them.
        descriptors.sort_unstable();
        assert_eq!(after, [&descriptors[..], &["0", "3"]].concat(), "{status}");
    }

    #[test]
    fn root_that_stays_root_has_no_capability() {
        if !is_root() {
            return;
        }
        let confinement = Confinement { privileged: true, ..Confinement::default() };
        let status = run("/bin/sh", "grep -E '^(Cap|Uid)' /proc/self/status", confinement);
        assert!(
            status.contains("CapEff:\t0000000000000000") && status.contains("CapPrm:\t0000000000000000"),
            "{status}"
        );
        assert!(status.contains("Uid:\t0\t0\t0\t0"), "{status}");
    }

    #[test]
    fn dies_with_the_thread_that_started_it() {
        let uid = is_root().then_some(0x6b00_1234);
        let mut command = Command::new("/bin/sleep");
        command.arg("1000").stdin(Stdio::null());
        let confinement = Confinement { uid, ..Confinement::default() };
        let mut child = std::thread::spawn(move || spawn(command, confinement).unwrap()).join().unwrap();
        let status = child.wait().unwrap();
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(libc::SIGKILL));
    }

    #[test]
    fn the_failing_step_is_named() {
        let (step, error) = spawn(Command::new("/nonexistent"), Confinement::default()).unwrap_err();
        assert_eq!((step, error.kind()), ("run the program", io::ErrorKind::NotFound));
        let (mut reader, mut writer) = io::pipe().unwrap();
        io::Write::write_all(&mut writer, &[4]).unwrap();
        drop(writer);
        assert_eq!(failed_step(&mut reader), "take its user and group ids");
        assert_eq!(failed_step(&mut reader), "run the program", "nothing was written");
    }
}
