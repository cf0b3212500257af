//! Hooks: programs of the host that a bundle names, run at points of a container's life (OCI runtime specification, `config.md`,
//! "POSIX-platform Hooks"). Docker before 27.4 gives a container its network by one: it is told the process id, and puts interfaces into
//! that process's network namespace.
//!
//! Hooks run where this process was started, not in the pod's network namespace. Those that belong into the container's
//! own namespaces have been refused with the bundle.

use std::{
    fs::File,
    io::{Read, Seek, Write},
    os::{fd::OwnedFd, unix::process::CommandExt},
    path::Path,
    process::{Command, Stdio},
    sync::Arc,
    time::Duration,
};

use network::Namespace;
use oci_spec::runtime::Hook;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::{MemfdFlags, Mode, OFlags, memfd_create},
    process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open},
    thread::{LinkNameSpaceType, move_into_link_name_space},
};
use sandbox::bundle::Bundle;
use serde_json::{Value, json};
use tokio::sync::oneshot;

use crate::{Error, Result, log, sys};

/// How long a hook without a `timeout` may take.
const PATIENCE: Duration = Duration::from_secs(120);
/// Most of what a failing hook says that is repeated, bytes.
const MOST_SAID: u64 = 2048;

/// Where the process was when it started.
#[derive(Debug)]
pub(crate) struct Origin {
    network: Namespace,
    mounts: OwnedFd,
}

impl Origin {
    /// Where the calling thread is.
    ///
    /// # Errors
    /// When `/proc` is not what it should be.
    pub(crate) fn here() -> Result<Self> {
        const MOUNTS: &str = "/proc/thread-self/ns/mnt";
        let network = Namespace::current().map_err(|error| Error::Sandbox(error.into()))?;
        let mounts = rustix::fs::open(MOUNTS, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
        Ok(Self { network, mounts: mounts.map_err(|e| Error::io(format!("open {MOUNTS}"), e))? })
    }

    /// Takes the calling thread there, for good.
    fn enter(&self) -> Result<()> {
        let failed = |e| Error::io("return to the host's mounts for a hook", e);
        sys::own_directories().map_err(failed)?;
        move_into_link_name_space(std::os::fd::AsFd::as_fd(&self.mounts), Some(LinkNameSpaceType::Mount))
            .map_err(|e| failed(e.into()))?;
        self.network.enter().map_err(|error| Error::Sandbox(error.into()))
    }
}

/// The hooks of a container.
pub(crate) struct Hooks {
    origin: Arc<Origin>,
    hooks: oci_spec::runtime::Hooks,
    /// What they are told, but for the status.
    state: Value,
}

impl Hooks {
    /// Those that a bundle names, if any.
    pub(crate) fn of(origin: &Arc<Origin>, id: &str, bundle: &Bundle) -> Option<Self> {
        let hooks = bundle.spec.hooks().clone()?;
        let state = json!({
            "ociVersion": bundle.spec.version(),
            "id": id,
            "pid": std::process::id(),
            "bundle": bundle.dir,
            "annotations": bundle.spec.annotations().clone().unwrap_or_default(),
        });
        Some(Self { origin: origin.clone(), hooks, state })
    }

    /// The container is being created, and its network namespace is there.
    ///
    /// # Errors
    /// The first that fails, with what it said; no further one is run.
    pub(crate) async fn creating(&self) -> Result<()> {
        #[allow(deprecated)]
        let lists = [("prestart", self.hooks.prestart()), ("createRuntime", self.hooks.create_runtime())];
        for (point, list) in lists {
            for (index, hook) in list.iter().flatten().enumerate() {
                self.run(&format!("{point}[{index}]"), hook, "creating").await?;
            }
        }
        Ok(())
    }

    /// The container has started. What fails does not concern it.
    pub(crate) async fn started(&self) {
        self.try_all("poststart", self.hooks.poststart().as_deref(), "running").await;
    }

    /// The container is gone. What fails does not concern it.
    pub(crate) async fn gone(&self) {
        self.try_all("poststop", self.hooks.poststop().as_deref(), "stopped").await;
    }

    async fn try_all(&self, point: &str, hooks: Option<&[Hook]>, status: &str) {
        for (index, hook) in hooks.unwrap_or_default().iter().enumerate() {
            if let Err(error) = self.run(&format!("{point}[{index}]"), hook, status).await {
                log::warn(&error.chain());
            }
        }
    }

    async fn run(&self, field: &str, hook: &Hook, status: &str) -> Result<()> {
        let name = format!("the hook {field}, {}", hook.path().display());
        let mut state = self.state.clone();
        state["status"] = status.into();
        let (told, outcome) = oneshot::channel();
        let (origin, hook) = (self.origin.clone(), hook.clone());
        // A thread of its own, because it leaves the namespaces of this process.
        let work = {
            let name = name.clone();
            move || drop(told.send(origin.enter().and_then(|()| one(&name, &hook, &state.to_string()))))
        };
        let thread = std::thread::Builder::new().name("hook".into()).spawn(work);
        thread.map_err(|e| Error::io(format!("start a thread for {name}"), e))?;
        outcome.await.map_err(|_| Error::io(format!("run {name}"), std::io::Error::other("its thread panicked")))?
    }
}

/// Runs one hook where the calling thread is, and waits for it.
fn one(name: &str, hook: &Hook, state: &str) -> Result<()> {
    let failed = |step: &str| {
        let step = format!("{step} {name}");
        move |error| Error::io(step, error)
    };
    let file = || Ok::<_, std::io::Error>(File::from(memfd_create("hook", MemfdFlags::CLOEXEC)?));
    let mut input = file().map_err(failed("make the input of"))?;
    input.write_all(state.as_bytes()).and_then(|()| input.rewind()).map_err(failed("write the input of"))?;
    let said = file().map_err(failed("make the output of"))?;
    let both = said.try_clone().and_then(|out| Ok((out, said.try_clone()?))).map_err(failed("make the output of"))?;
    let mut command = Command::new(hook.path());
    let args = hook.args().as_deref().unwrap_or_default();
    if let Some((first, rest)) = args.split_first() {
        command.arg0(first).args(rest);
    }
    command.env_clear();
    for variable in hook.env().iter().flatten() {
        let (key, value) = variable.split_once('=').unwrap_or((variable, ""));
        command.env(key, value);
    }
    command.current_dir(Path::new("/")).process_group(0);
    command.stdin(input).stdout(Stdio::from(both.0)).stderr(Stdio::from(both.1));
    let mut child = command.spawn().map_err(failed("start"))?;
    let pid = Pid::from_child(&child);
    let seconds = hook.timeout().and_then(|seconds| u64::try_from(seconds).ok()).filter(|seconds| *seconds > 0);
    let patience = seconds.map_or(PATIENCE, Duration::from_secs);
    let ended = pidfd_open(pid, PidfdFlags::empty()).and_then(|process| {
        let timeout = Timespec { tv_sec: patience.as_secs().try_into().unwrap_or(i64::MAX), tv_nsec: 0 };
        poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&timeout))
    });
    if !matches!(ended, Ok(1..)) {
        let _gone = kill_process_group(pid, Signal::KILL);
    }
    let status = child.wait().map_err(failed("wait for"))?;
    match ended {
        Ok(0) => return Err(Error::Deadline { what: format!("the end of {name}"), seconds: patience.as_secs() }),
        Ok(_) => {}
        Err(error) => return Err(failed("wait for")(error.into())),
    }
    if status.success() {
        return Ok(());
    }
    Err(Error::Hook { name: name.into(), status: status.to_string(), said: tail(said) })
}

/// The end of what a hook said.
fn tail(mut said: File) -> String {
    let mut bytes = Vec::new();
    let start = said.metadata().map_or(0, |metadata| metadata.len().saturating_sub(MOST_SAID));
    let read = said.seek(std::io::SeekFrom::Start(start)).and_then(|_| said.read_to_end(&mut bytes));
    if read.is_err() || bytes.is_empty() {
        return "it said nothing".into();
    }
    String::from_utf8_lossy(&bytes).trim_end().replace('\n', "; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hook(script: &str, timeout: Option<i64>) -> Hook {
        serde_json::from_value(serde_json::json!({
            "path": "/bin/sh", "args": ["named", "-c", script], "env": ["ONE=1", "TWO=a=b"], "timeout": timeout,
        }))
        .unwrap()
    }

    #[test]
    fn a_hook_gets_its_arguments_its_environment_and_the_state() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("told").display().to_string();
        let script = format!("{{ echo $0 $ONE $TWO $HOME; cat; pwd; }} >{file}");
        one("a hook", &hook(&script, None), "the state\n").unwrap();
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "named 1 a=b\nthe state\n/\n");
    }

    #[test]
    fn a_hook_that_fails_is_quoted() {
        let error = one("a hook", &hook("echo first; echo why >&2; exit 3", None), "").unwrap_err().chain();
        assert_eq!(error, "a hook failed (exit status: 3): first; why");
        let error = one("a hook", &hook("exit 4", None), "").unwrap_err().chain();
        assert_eq!(error, "a hook failed (exit status: 4): it said nothing");
        let missing: Hook = serde_json::from_value(serde_json::json!({"path": "/no/such/hook"})).unwrap();
        let error = one("the hook /no/such/hook", &missing, "").unwrap_err().chain();
        assert!(error.contains("/no/such/hook") && error.contains("No such file"), "{error}");
    }

    #[test]
    fn a_hook_that_does_not_end_is_killed() {
        let error = one("a hook", &hook("sleep 1000 & sleep 1000", Some(1)), "").unwrap_err().chain();
        assert_eq!(error, "the end of a hook did not happen within 1 s");
    }
}
