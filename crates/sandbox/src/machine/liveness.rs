//! Whether a machine that neither ends nor breaks still lives.
//!
//! Containers may be silent for months, so that silence says nothing. A few times per [patience](lost) the agent is asked for a sign of
//! life over the channel, and the kernel whether somebody has stopped the machine's processes (SIGSTOP). What counts are questions in a row that
//! found no life, not time: after the host was asleep, or all processes of the pod were frozen, the guest has its chance to answer.

use std::time::Duration;

use crate::store;

/// Questions without an answer after which the machine is given up.
const QUESTIONS: u32 = 4;

/// Resolves when there was no sign of life for `patience`, with what is to be said of it; never if that is 0.
pub(super) async fn lost(opener: &proxy::Opener, processes: [(&str, u32); 2], patience: Duration) -> String {
    if patience.is_zero() {
        return std::future::pending().await;
    }
    let seconds = patience.as_secs();
    let (mut question, mut unanswered, mut stopped) = (0_u32, 0, [0; 2]);
    loop {
        question = question.wrapping_add(1);
        opener.ping(question);
        tokio::time::sleep(patience / QUESTIONS).await;
        for ((name, pid), times) in processes.iter().zip(&mut stopped) {
            *times = if store::is_stopped(*pid) { *times + 1 } else { 0 };
            if *times >= QUESTIONS {
                return format!("{name} (pid {pid}) was stopped by a signal for {seconds} s (liveness_timeout)");
            }
        }
        unanswered = match opener.answered() {
            // Until the guest is up, another deadline counts.
            None => 0,
            Some(answered) if answered == question => 0,
            Some(_) => unanswered + 1,
        };
        if unanswered >= QUESTIONS {
            return format!("the agent in the guest gave no sign of life for {seconds} s (liveness_timeout)");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use rustix::process::{Pid, Signal, kill_process};

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(8);

    /// A channel whose peer is a real one, or nobody from the moment its driver is aborted.
    fn channel() -> (proxy::Opener, tokio::task::JoinHandle<Result<(), proxy::Error>>) {
        let (here, there) = tokio::io::duplex(1 << 16);
        let (opener, _, driver) = proxy::connect(here, proxy::Side::Host, proxy::Limits::host());
        tokio::spawn(driver);
        let (_, _, driver) = proxy::connect(there, proxy::Side::Guest, proxy::Limits::guest());
        (opener, tokio::spawn(driver))
    }

    fn me() -> [(&'static str, u32); 2] {
        [("one", std::process::id()), ("two", std::process::id())]
    }

    #[tokio::test(start_paused = true)]
    async fn a_guest_that_answers_lives_for_ever() {
        let (opener, _guest) = channel();
        assert!(tokio::time::timeout(PATIENCE * 50, lost(&opener, me(), PATIENCE)).await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_has_not_begun_to_answer_is_waited_for_and_one_that_ceases_is_given_up() {
        let (here, there) = tokio::io::duplex(1 << 16);
        let (opener, _, driver) = proxy::connect(here, proxy::Side::Host, proxy::Limits::host());
        tokio::spawn(driver);
        let patient = opener.clone();
        let mut watched = tokio::spawn(async move { lost(&patient, me(), PATIENCE).await });
        assert!(tokio::time::timeout(PATIENCE * 5, &mut watched).await.is_err());
        let (_, _, driver) = proxy::connect(there, proxy::Side::Guest, proxy::Limits::guest());
        let guest = tokio::spawn(async move {
            let _silent_from_now_on = tokio::time::timeout(PATIENCE * 3, driver).await;
            std::future::pending::<()>().await
        });
        assert!(tokio::time::timeout(PATIENCE * 2, &mut watched).await.is_err());
        let said = tokio::time::timeout(PATIENCE * 5, watched).await.unwrap().unwrap();
        assert!(said.contains("no sign of life for 8 s"), "{said}");
        guest.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn a_process_that_was_stopped_is_named() {
        let (opener, _guest) = channel();
        let mut child = Command::new("sleep").arg("100").spawn().unwrap();
        let pid = Pid::from_child(&child);
        kill_process(pid, Signal::STOP).unwrap();
        rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::UNTRACED).unwrap();
        let processes = [("one", std::process::id()), ("two", child.id())];
        let said = tokio::time::timeout(PATIENCE * 3, lost(&opener, processes, PATIENCE)).await.unwrap();
        assert_eq!(said, format!("two (pid {}) was stopped by a signal for 8 s (liveness_timeout)", child.id()));
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
