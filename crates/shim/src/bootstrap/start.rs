//! `start`: the shim of a new container.

use std::{
    fs,
    io::Read,
    os::fd::OwnedFd,
    path::Path,
    process::{Command, Stdio},
};

use super::socket::{Address, Claim};
use crate::{
    Error, Flags, Result,
    group::{Brief, Network, Role},
    join,
    options::Options,
    sys,
};

/// `/proc/PID/oom_score_adj` at most.
const HIGHEST_OOM_SCORE: i32 = 1000;
/// Options are a few hundred bytes; containerd's configuration may have a body in them.
const MOST_OPTIONS: u64 = 1 << 20;

/// Gives the address of the shim that answers for the container, after starting it if need be.
///
/// # Errors
/// What cannot work is refused before anything is started.
pub(crate) fn start(flags: &Flags, bundle: &Path) -> Result<String> {
    sandbox::store::Store::check_id(&flags.id)?;
    let mut brief = Brief::read(bundle)?.unwrap_or_default();
    refuse_unknown_options()?;
    if let Network::At(path) = brief.network()
        && !path.exists()
    {
        let problem = format!("linux.namespaces: the network namespace {} is not there", path.display());
        return Err(Error::Bundle { file: bundle.join("config.json"), problem });
    }
    if brief.role() == Role::Single
        && let Some(sandbox) = join::joined(&flags.namespace, bundle, &brief)?
    {
        brief.join(bundle, sandbox)?;
    }
    let role = brief.role();
    let address = Address::of(&flags.address, &flags.namespace, role.sandbox(&flags.id));
    if let Role::Member(sandbox) | Role::Joined(sandbox) = &role {
        // Only the sandbox container, or the sandbox API, starts a pod's machine.
        if !address.is_answered() {
            return Err(Error::Precondition(format!(
                "container {:?} belongs to {sandbox:?}, whose shim does not answer at {}; create that again",
                flags.id,
                address.url()
            )));
        }
    } else if let Claim::Ours(socket) = address.claim()? {
        spawn(flags, bundle, socket.into()).inspect_err(|_| address.remove())?;
    }
    // containerd 1.6 and 1.7 look for the shim there when they are restarted.
    let file = bundle.join("address");
    fs::write(&file, address.url()).map_err(|e| Error::io(format!("write {}", file.display()), e))?;
    Ok(address.url())
}

/// containerd passes the options of the runtime as standard input, and again to whoever uses them. Refusing them here leaves nothing behind.
fn refuse_unknown_options() -> Result<()> {
    use std::io::IsTerminal;

    let mut bytes = Vec::new();
    let stdin = std::io::stdin();
    if stdin.is_terminal() {
        return Ok(());
    }
    stdin.lock().take(MOST_OPTIONS).read_to_end(&mut bytes).map_err(|e| Error::io("read the runtime options", e))?;
    Options::from_bytes(&bytes).map(drop)
}

fn spawn(flags: &Flags, bundle: &Path, socket: OwnedFd) -> Result<()> {
    if std::env::var_os("SCHED_CORE").is_some_and(|value| !value.is_empty()) {
        sys::share_cores_with_nobody().map_err(|e| {
            Error::io("give the sandbox processor cores of its own, which containerd's `sched_core` asks for", e)
        })?;
    }
    let itself = std::env::current_exe().map_err(|e| Error::io("find this program", e))?;
    let called = std::env::args_os().next().unwrap_or_else(|| "containerd-shim-kata-v2".into());
    let mut command = Command::new(itself);
    std::os::unix::process::CommandExt::arg0(&mut command, called);
    command.args(["-namespace", &flags.namespace, "-id", &flags.id, "-address", &flags.address]);
    if let Some(binary) = &flags.publish_binary {
        command.arg("-publish-binary").arg(binary);
    }
    if flags.debug {
        command.arg("-debug");
    }
    // containerd waits for the end of both outputs, so the shim must not hold them.
    command.current_dir(bundle).stdin(Stdio::from(socket)).stdout(Stdio::null()).stderr(Stdio::null());
    let child = command.spawn().map_err(|e| Error::io("start the shim", e))?;
    raise_oom_score(child.id());
    Ok(())
}

/// The kernel shall kill a pod before it kills containerd. Where that cannot be arranged the pod runs nevertheless.
fn raise_oom_score(pid: u32) {
    let of = |pid: &str| fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).ok()?.trim().parse::<i32>().ok();
    let parent = rustix::process::getppid().map(|parent| parent.as_raw_pid().to_string());
    let Some(score) = parent.and_then(|parent| of(&parent)) else { return };
    let _refused = fs::write(format!("/proc/{pid}/oom_score_adj"), (score + 1).min(HIGHEST_OOM_SCORE).to_string());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_without_its_pod_is_refused_and_leaves_nothing() {
        let bundle = tempfile::tempdir().unwrap();
        let config =
            r#"{"annotations":{"io.kubernetes.cri.container-type":"container","io.kubernetes.cri.sandbox-id":"gone"}}"#;
        fs::write(bundle.path().join("config.json"), config).unwrap();
        let flags = Flags {
            namespace: "test".into(),
            id: "c".into(),
            address: format!("{}/c.sock", bundle.path().display()),
            ..Flags::default()
        };
        let role = Brief::read(bundle.path()).unwrap().unwrap().role();
        assert_eq!(role, Role::Member("gone".into()));
        let address = Address::of(&flags.address, &flags.namespace, role.sandbox(&flags.id));
        assert!(!address.is_answered());
        assert!(!bundle.path().join("address").exists());
    }
}
