//! Figures of a pod for Prometheus, over HTTP on a Unix socket of its own: `/run/kata/SANDBOX/shim-monitor.sock`.
//!
//! | path | answer |
//! | --- | --- |
//! | `/metrics` | figures of the shim, the hypervisor, the file server, the agent and the guest |
//!
//! What the guest says is read as text, not believed: a line that is not one of a family of the guest's is left out.

mod figures;
mod http;

use std::{
    cell::RefCell,
    fs,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    rc::Rc,
    time::Instant,
};

use tokio::net::UnixListener;

pub(crate) use self::figures::Durations;
use self::http::Answer;
use crate::{Error, Result, log, service::Pod};

/// Directory of the sockets, where Kata's users look for them.
const DIRECTORY: &str = "/run/kata";
/// Name of a socket.
const SOCKET: &str = "shim-monitor.sock";
/// The format of Prometheus.
const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";
/// Most of the guest's text that is passed on, bytes.
const MOST_GUEST_TEXT: usize = 256 << 10;

/// A socket that answers for a pod. Dropping it removes the socket.
pub(crate) struct Monitor {
    path: PathBuf,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Monitor {
    fn drop(&mut self) {
        self.task.abort();
        remove(&self.path);
    }
}

/// What is measured from one scrape to the next.
#[derive(Debug)]
struct Sample {
    at: Instant,
    cpu_seconds: f64,
}

impl Monitor {
    /// Listens for scrapers of the pod `sandbox`.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(crate) fn open(pod: &Rc<Pod>, sandbox: &str) -> Result<Self> {
        let path = socket(sandbox);
        let directory = path.parent().unwrap_or(Path::new(DIRECTORY));
        let made = fs::DirBuilder::new().mode(0o700).recursive(true).create(directory);
        made.map_err(|e| Error::io(format!("create {}", directory.display()), e))?;
        // One that a shim left behind that was killed.
        let _ = fs::remove_file(&path);
        let listener = UnixListener::bind(&path).map_err(|e| Error::io(format!("listen on {}", path.display()), e))?;
        let (pod, last) = (Rc::downgrade(pod), Rc::new(RefCell::new(None)));
        let task = tokio::task::spawn_local(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (Some(pod), last) = (pod.upgrade(), last.clone()) else { return };
                tokio::task::spawn_local(http::answer(stream, |method, path| async move {
                    match (method.as_str(), path.as_str()) {
                        ("GET", "/metrics") => {
                            Answer { status: "200 OK", kind: TEXT, body: metrics(&pod, &last).await }
                        }
                        ("GET", _) => Answer::text("404 Not Found", "there is /metrics\n"),
                        _ => Answer::text("405 Method Not Allowed", "GET is expected\n"),
                    }
                }));
            }
        });
        Ok(Self { path, task })
    }
}

/// Where a pod's socket is.
pub(crate) fn socket(sandbox: &str) -> PathBuf {
    Path::new(DIRECTORY).join(sandbox).join(SOCKET)
}

/// Removes the socket of a pod whose shim was killed.
pub(crate) fn remove_of(sandbox: &str) {
    remove(&socket(sandbox));
}

/// Removes the directory of a pod's socket, if it is empty.
pub(crate) fn remove_directory_of(sandbox: &str) {
    let _ = fs::remove_dir(Path::new(DIRECTORY).join(sandbox));
}

fn remove(path: &Path) {
    let _ = fs::remove_file(path);
    if let Some(directory) = path.parent() {
        let _ = fs::remove_dir(directory);
    }
}

async fn metrics(pod: &Rc<Pod>, last: &RefCell<Option<Sample>>) -> String {
    let mut text = String::new();
    let own = std::process::id();
    figures::of_process("kata_shim", own, &mut text);
    pod.calls.borrow().write(
        "kata_shim_rpc_durations_histogram_milliseconds",
        "How long the shim took to answer containerd.",
        &mut text,
    );
    pod.agent_calls.borrow().write(
        "kata_shim_agent_rpc_durations_histogram_milliseconds",
        "How long the agent took to answer the shim.",
        &mut text,
    );
    let Ok(machine) = pod.machine() else { return text };
    let mut pids = vec![own];
    for (name, pid) in machine.host_processes() {
        figures::of_process(&format!("kata_{name}"), pid, &mut text);
        pids.push(pid);
    }
    let (used_memory, used_cpu) = pod.used().await;
    let memory = pids.iter().map(|pid| figures::memory(*pid)).sum::<u64>().saturating_sub(used_memory);
    figures::gauge(
        &mut text,
        "kata_shim_pod_overhead_memory_in_bytes",
        "Memory of the pod's processes on the host beyond what its containers use.",
        memory,
    );
    let cpu_seconds = pids.iter().map(|pid| figures::cpu_seconds(*pid)).sum::<f64>() - used_cpu;
    let now = Sample { at: Instant::now(), cpu_seconds };
    if let Some(before) = last.replace(Some(Sample { ..now })) {
        let elapsed = now.at.duration_since(before.at).as_secs_f64();
        let percent = 100.0 * (cpu_seconds - before.cpu_seconds).max(0.0) / elapsed.max(0.001);
        figures::gauge(
            &mut text,
            "kata_shim_pod_overhead_cpu",
            "Processor time of the pod's processes on the host beyond its containers', percent of one processor since the last scrape.",
            percent,
        );
    }
    match machine.guest_metrics().await {
        Ok(guest) => text.push_str(&of_guest(&guest)),
        Err(error) => log::warn(&format!("metrics of the guest: {}", error.chain())),
    }
    text
}

/// What may be repeated of the figures that a guest gives: those of its own families, because anything else could pass for a figure of the host.
pub fn of_guest(figures: &str) -> String {
    let most = (0..=figures.len().min(MOST_GUEST_TEXT)).rev().find(|at| figures.is_char_boundary(*at)).unwrap_or(0);
    let mut text = String::new();
    for line in figures[..most].lines() {
        let name = line.strip_prefix("# HELP ").or(line.strip_prefix("# TYPE ")).unwrap_or(line);
        let is_own = name.starts_with("kata_agent_") || name.starts_with("kata_guest_");
        if is_own && !line.chars().any(char::is_control) {
            text.push_str(line);
            text.push('\n');
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_reports_its_own_families_only() {
        let text = of_guest(
            "# HELP kata_guest_load Load.\nkata_guest_load{item=\"1\"} 0\nkata_shim_fds 1\nkata_agent_x \u{7} 1\n# HELP # HELP kata_agent_x x\n",
        );
        assert_eq!(text, "# HELP kata_guest_load Load.\nkata_guest_load{item=\"1\"} 0\n");
    }

    #[test]
    fn no_more_is_repeated_than_that_wherever_the_end_falls() {
        let long = format!("kata_guest_{}", "\u{e9}".repeat(MOST_GUEST_TEXT));
        let text = of_guest(&long);
        assert!(text.len() <= MOST_GUEST_TEXT + 1 && text.starts_with("kata_guest_"), "{}", text.len());
    }
}
