//! Hooks: programs of the host that a bundle names, run at points of a container's life (OCI runtime specification, `config.md`,
//! "POSIX-platform Hooks").
//!
//! | point | where it is run | when |
//! | --- | --- | --- |
//! | prestart, createRuntime | where the caller is | the network namespace is there, the machine is not: it has the interfaces that they bring |
//! | createContainer | in the network and mount namespaces of the process that stands for the container; the guest sees what is mounted below the root file system there | after those |
//! | startContainer | in the guest, by the agent, in the container | before its program |
//! | poststart | where the caller is | the program runs |
//! | poststop | where the caller is | the container is gone |
//!
//! Each gets the state of the container on its standard input.

use std::{
    fs::File,
    io::{Read, Seek, Write},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use oci_spec::runtime::{Hook, Hooks};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::{MemfdFlags, memfd_create},
    process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open},
};
use serde_json::{Value, json};

use crate::{Error, Result, bundle::Bundle, store::ContainerState};

/// How long a hook without a `timeout` may take.
const PATIENCE: Duration = Duration::from_secs(120);
/// Most of what a failing hook says that is repeated, bytes.
const MOST_SAID: u64 = 2048;

/// A point of a container's life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Point {
    /// The network namespace is there.
    Prestart,
    /// As `Prestart`, after it.
    CreateRuntime,
    /// The root file system is there.
    CreateContainer,
    /// The container's program is about to be started.
    StartContainer,
    /// It has been started.
    Poststart,
    /// The container is gone.
    Poststop,
}

impl Point {
    /// As the bundle calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Prestart => "prestart",
            Self::CreateRuntime => "createRuntime",
            Self::CreateContainer => "createContainer",
            Self::StartContainer => "startContainer",
            Self::Poststart => "poststart",
            Self::Poststop => "poststop",
        }
    }

    /// Those that are to be run there.
    #[allow(deprecated)]
    pub fn of(self, hooks: &Hooks) -> &[Hook] {
        let list = match self {
            Self::Prestart => hooks.prestart(),
            Self::CreateRuntime => hooks.create_runtime(),
            Self::CreateContainer => hooks.create_container(),
            Self::StartContainer => hooks.start_container(),
            Self::Poststart => hooks.poststart(),
            Self::Poststop => hooks.poststop(),
        };
        list.as_deref().unwrap_or_default()
    }

    /// How long those that are to be run there may take.
    pub fn patience(self, hooks: &Hooks) -> Duration {
        self.of(hooks).iter().map(timeout).sum()
    }

    /// The status that a hook is told.
    fn status(self) -> &'static str {
        match self {
            Self::Prestart | Self::CreateRuntime | Self::CreateContainer => "creating",
            Self::StartContainer => "created",
            Self::Poststart => "running",
            Self::Poststop => "stopped",
        }
    }
}

/// What hooks are told of a container, but for its status.
#[derive(Debug, Clone)]
pub struct Told {
    state: Value,
    rootfs: PathBuf,
}

impl Told {
    /// Of a container that is being created, for which the process `pid` of the host stands.
    pub fn of_bundle(id: &str, bundle: &Bundle, pid: u32) -> Self {
        let state = json!({
            "ociVersion": bundle.spec.version(),
            "id": id,
            "pid": pid,
            "bundle": bundle.dir,
            "annotations": bundle.spec.annotations().clone().unwrap_or_default(),
        });
        Self { state, rootfs: bundle.rootfs.clone() }
    }

    /// Of one that exists, or did.
    pub fn of_state(state: &ContainerState) -> Self {
        let mut told = json!({
            "ociVersion": state.oci_version,
            "id": state.id,
            "bundle": state.bundle,
            "annotations": state.annotations,
        });
        if state.pid != 0 {
            told["pid"] = state.pid.into();
        }
        Self { state: told, rootfs: state.rootfs.clone() }
    }

    /// The state, in JSON, as hooks of a point get it.
    pub fn at(&self, point: Point) -> String {
        let mut state = self.state.clone();
        state["status"] = point.status().into();
        if point == Point::Poststop
            && let Some(state) = state.as_object_mut()
        {
            // There is no process any more.
            state.remove("pid");
        }
        state.to_string()
    }

    /// The process of the host that stands for the container.
    pub fn pid(&self) -> Option<u32> {
        self.state["pid"].as_u64().and_then(|pid| pid.try_into().ok())
    }

    /// Where hooks of a point begin: those that belong into the container in its files, as with runc.
    fn directory(&self, point: Point) -> &Path {
        let directory = match point {
            Point::CreateContainer => &self.rootfs,
            _ => Path::new(self.state["bundle"].as_str().unwrap_or("/")),
        };
        if directory.is_dir() { directory } else { Path::new("/") }
    }
}

/// Runs the hooks of a point, one after the other, in the namespaces of the calling thread.
///
/// # Errors
/// The first that fails, with what it said; no further one is run.
pub fn run(point: Point, hooks: &Hooks, told: &Told) -> Result<()> {
    for (index, hook) in point.of(hooks).iter().enumerate() {
        one(point, index, hook, told)?;
    }
    Ok(())
}

/// Runs all hooks of a point, also after one that fails. `warn` is told of each that does.
pub fn run_all(point: Point, hooks: &Hooks, told: &Told, mut warn: impl FnMut(&Error)) {
    for (index, hook) in point.of(hooks).iter().enumerate() {
        if let Err(error) = one(point, index, hook, told) {
            warn(&error);
        }
    }
}

/// Runs one hook and waits for it.
fn one(point: Point, index: usize, hook: &Hook, told: &Told) -> Result<()> {
    let name = format!("the {} hook #{index}, {}", point.name(), hook.path().display());
    let failed = |step: &str| {
        let step = format!("{step} {name}");
        move |error| Error::io(step, error)
    };
    let file = || Ok::<_, std::io::Error>(File::from(memfd_create("hook", MemfdFlags::CLOEXEC)?));
    let mut input = file().map_err(failed("make the input of"))?;
    let state = told.at(point);
    input.write_all(state.as_bytes()).and_then(|()| input.rewind()).map_err(failed("write the input of"))?;
    let said = file().map_err(failed("make the output of"))?;
    let both = said.try_clone().and_then(|out| Ok((out, said.try_clone()?))).map_err(failed("make the output of"))?;
    let mut command = Command::new(hook.path());
    let args = hook.args().as_deref().unwrap_or_default();
    if let Some((first, rest)) = args.split_first() {
        command.arg0(first).args(rest);
    }
    // As in runc, a hook without an environment of its own has the caller's.
    if let Some(variables) = hook.env() {
        command.env_clear();
        for variable in variables {
            let (key, value) = variable.split_once('=').unwrap_or((variable, ""));
            command.env(key, value);
        }
    }
    command.current_dir(told.directory(point)).process_group(0);
    command.stdin(input).stdout(Stdio::from(both.0)).stderr(Stdio::from(both.1));
    crate::sys::unblock_signals_of(&mut command);
    let mut child = command.spawn().map_err(failed("start"))?;
    let pid = Pid::from_child(&child);
    let patience = timeout(hook);
    let ended = pidfd_open(pid, PidfdFlags::empty()).and_then(|process| {
        let end = std::time::Instant::now() + patience;
        loop {
            let left = end.saturating_duration_since(std::time::Instant::now());
            let timeout = Timespec { tv_sec: left.as_secs() as _, tv_nsec: left.subsec_nanos().into() };
            match poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&timeout)) {
                Err(rustix::io::Errno::INTR) => {}
                other => return other,
            }
        }
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
    Err(Error::Hook {
        point: point.name(),
        index,
        path: hook.path().clone(),
        status: status.to_string(),
        said: tail(said),
    })
}

/// How long a hook may take.
fn timeout(hook: &Hook) -> Duration {
    let seconds = hook.timeout().and_then(|seconds| u64::try_from(seconds).ok()).filter(|seconds| *seconds > 0);
    seconds.map_or(PATIENCE, Duration::from_secs)
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

    fn hooks(json: Value) -> Hooks {
        serde_json::from_value(json).unwrap()
    }

    fn shell(script: &str) -> Value {
        json!({"path": "/bin/sh", "args": ["named", "-c", script], "env": ["ONE=1", "TWO=a=b"]})
    }

    fn told() -> Told {
        Told { state: json!({"id": "c", "pid": 7, "bundle": "/usr"}), rootfs: "/usr/bin".into() }
    }

    #[test]
    fn hooks_of_the_container_begin_in_its_files() {
        let hook = shell("[ $(pwd) = /usr/bin ]");
        run(Point::CreateContainer, &hooks(json!({"createContainer": [hook]})), &told()).unwrap();
    }

    #[test]
    fn hooks_are_run_in_order_with_arguments_environment_and_the_state() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("told").display().to_string();
        let first = shell(&format!("{{ echo $0 $ONE $TWO $HOME; cat; echo; pwd; }} >{file}"));
        let second = shell(&format!("echo second >>{file}"));
        run(Point::CreateRuntime, &hooks(json!({"createRuntime": [first, second]})), &told()).unwrap();
        assert_eq!(
            std::fs::read_to_string(&file).unwrap(),
            "named 1 a=b\n{\"bundle\":\"/usr\",\"id\":\"c\",\"pid\":7,\"status\":\"creating\"}\n/usr\nsecond\n"
        );
    }

    #[test]
    fn the_first_that_fails_is_quoted_and_ends_it_and_after_the_end_of_the_container_all_are_run() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("ran");
        let list = json!([
            shell("true"),
            shell("echo first; echo why >&2; exit 3"),
            shell(&format!("echo ran >>{}", file.display())),
            {"path": "/no/such/hook"}
        ]);
        let hooks = hooks(json!({"poststop": list, "prestart": list}));
        let error = run(Point::Prestart, &hooks, &told()).unwrap_err().chain();
        assert_eq!(error, "error running hook #1: the prestart hook /bin/sh failed (exit status: 3): first; why");
        assert!(!file.exists());
        let mut errors = Vec::new();
        run_all(Point::Poststop, &hooks, &told(), |error| errors.push(error.chain()));
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "ran\n");
        assert!(errors.len() == 2 && errors[1].contains("/no/such/hook") && errors[1].contains("No such file"));
    }

    #[test]
    fn a_hook_that_does_not_end_is_killed() {
        let hooks = hooks(
            json!({"prestart": [{"path": "/bin/sh", "args": ["sh", "-c", "sleep 1000 & sleep 1000"], "timeout": 1}]}),
        );
        let error = run(Point::Prestart, &hooks, &told()).unwrap_err().chain();
        assert_eq!(error, "the end of the prestart hook #0, /bin/sh did not happen within 1 s");
    }

    #[test]
    fn a_container_that_is_gone_has_no_process() {
        let told = told();
        assert_eq!(told.at(Point::Poststop), r#"{"bundle":"/usr","id":"c","status":"stopped"}"#);
        assert!(told.at(Point::Poststart).contains(r#""status":"running""#));
    }
}
