//! Starts the child that runs the guest, waits for it, and puts its report into words.

use std::{
    io::Read,
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, poll},
    io::Errno,
    process::{Signal, WaitOptions, kill_process, waitpid},
    time::Timespec,
};

use super::Problem;
use crate::sys::kvm::{CALLS, REPORT_SIZE, Report, decode, spawn_probe};

/// How long the guest may take. It needs about a millisecond; a host that is short of processor time, much longer.
const DEADLINE: Duration = Duration::from_secs(3);

/// Runs a guest in a process of its own.
pub(super) fn probe() -> Result<(), Problem> {
    let passing = |reason| Problem { reason, lasting: false };
    let (pid, mut pipe) =
        spawn_probe().map_err(|error| passing(format!("no process could be made to try it ({error})")))?;
    let end = Instant::now() + DEADLINE;
    let answered = loop {
        let left = end.saturating_duration_since(Instant::now());
        let timeout = Timespec { tv_sec: left.as_secs() as _, tv_nsec: left.subsec_nanos().into() };
        match poll(&mut [PollFd::new(&pipe, PollFlags::IN)], Some(&timeout)) {
            Ok(0) => break false,
            Ok(_) => break true,
            Err(Errno::INTR) => {}
            Err(_) => break false,
        }
    };
    if !answered {
        // A child of ours that is not reaped yet: the number cannot belong to anyone else.
        let _gone = kill_process(pid, Signal::KILL);
    }
    let mut bytes = [0; REPORT_SIZE];
    let report = if answered && pipe.read_exact(&mut bytes).is_ok() { decode(bytes) } else { None };
    while matches!(waitpid(Some(pid), WaitOptions::empty()), Err(Errno::INTR)) {}
    match report {
        Some(Report::Works) => Ok(()),
        // Who may open the device, and who else holds the processor's virtualisation, can change.
        Some(report) => Err(Problem { reason: describe(report), lasting: !matches!(report, Report::Failed(..)) }),
        None if answered => Err(passing("the process that tried it died".into())),
        None => {
            let reason = format!("a guest of a few instructions did not end within {} s", DEADLINE.as_secs());
            Err(Problem { reason, lasting: true })
        }
    }
}

fn describe(report: Report) -> String {
    match report {
        Report::Works => "it works".into(),
        Report::Version(version) => format!("it has version {version} of its interface, and 12 was expected"),
        Report::Failed(call, errno) => {
            let call = CALLS.get(usize::from(call)).copied().unwrap_or("a call");
            format!("{call} failed ({})", std::io::Error::from_raw_os_error(errno))
        }
        Report::Exit(reason) => format!(
            "it does not run a guest's code as a processor would: {}",
            match reason {
                5 => "cmpxchg16b gave another result".into(),
                8 => "the guest crashed".into(),
                9 => "the processor refused to enter the guest".into(),
                17 => "it came upon an instruction it cannot emulate".into(),
                other => format!("the guest left for the unexpected reason {other}"),
            }
        ),
        Report::WrongResult => "its guest computed something else than a processor would".into(),
    }
}
