//! The process that owns a sandbox.
//!
//! It is single-threaded: every task runs on one thread, shares the [`Sandbox`](crate::pod::Sandbox) by reference counting, and borrows
//! cells only between two awaits. One task per connection ([`serve`]) carries out one call.
//!
//! The daemon's mount namespace is private and QEMU and the virtio-fs server are killed by the kernel when it ends, so
//! whatever kills it leaves just the state directory.

mod events;
mod members;
mod serve;

use std::{
    cell::RefCell,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::net::UnixStream,
    },
    path::Path,
    process::ExitCode,
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use agent_api::frame;
use tokio::net::UnixListener;

use self::serve::Host;
use crate::{
    Error, Result,
    api::{Reply, StdioSet},
    cgroup::HostCgroup,
    client::StdioEnds,
    journal::{Journal, Recorder},
    launch::Boot,
    passing,
    pod::{Birth, GuestNetwork, Io, Sandbox},
    store::{StateDir, Status},
    sys,
    translate::{Parts, Prepared},
};

/// `argv[0]` under which the executable becomes a sandbox daemon.
pub const ROLE: &str = "kata-sandbox";

/// How long the caller may take to say what to boot.
const FIRST_MESSAGE: Duration = Duration::from_secs(10);

/// The daemon's main function. Standard input is the socket to the caller, standard error the log.
pub fn role_main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{}", error.chain());
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    // Whatever the caller had open and let through is not the sandbox's business, and would be kept open by it.
    sys::close_all_but_stdio().map_err(|e| Error::io("close inherited descriptors", e))?;
    rustix::process::setsid().map_err(|e| Error::io("start a session", e))?;
    rustix::process::chdir("/").map_err(|e| Error::io("change to /", e))?;
    let socket = sys::take_stdin().map_err(|e| Error::io("take the caller's socket", e))?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| Error::io("start the event loop", e))?;
    tokio::task::LocalSet::new().block_on(&runtime, main(socket))
}

async fn main(socket: OwnedFd) -> Result<()> {
    let socket = UnixStream::from(socket);
    let stream = socket.set_nonblocking(true).and_then(|()| tokio::net::UnixStream::from_std(socket));
    let mut caller = stream.map_err(|e| Error::io("use the caller's socket", e))?;
    let said = "the caller's first message";
    let (boot, descriptors) =
        tokio::time::timeout(FIRST_MESSAGE, passing::receive::<Boot>(&mut caller, frame::MAX_REQUEST))
            .await
            .map_err(|_| Error::Deadline { what: said.into(), seconds: FIRST_MESSAGE.as_secs() })?
            .map_err(|source| Error::Frame { step: said.into(), source })?;

    let dir = StateDir::at(&boot.dir);
    let booted = tokio::select! {
        booted = self::boot(boot, dir.clone(), descriptors) => booted,
        () = hung_up(&caller) => Err(Error::State("the caller ended while the sandbox was being started".into())),
    };
    match booted {
        Ok((host, listener, pid)) => {
            let first = serve::answer_until_exit(caller, host.clone(), None, Some(Reply::Created { pid }));
            tokio::task::spawn_local(first);
            serve::serve(host, listener).await;
            Ok(())
        }
        Err(error) => {
            record_failure(&dir, &error);
            let (kind, message) = match &error {
                Error::Sandbox { kind, message } => (*kind, message.clone()),
                other => (None, other.chain()),
            };
            // The caller may be what is gone; the log has the reason too.
            let _ = frame::write(&mut caller, &Reply::Failed { kind, message }).await;
            Err(error)
        }
    }
}

/// Returns when the other side of a connection on which nothing more is expected has closed it.
async fn hung_up(stream: &tokio::net::UnixStream) {
    let mut byte = [0];
    loop {
        if stream.readable().await.is_err() {
            return;
        }
        match stream.try_read(&mut byte) {
            Ok(0) => return,
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(_) => return,
        }
    }
}

/// From nothing to a container. Gives its process's id in the guest.
async fn boot(boot: Boot, dir: StateDir, mut descriptors: Vec<OwnedFd>) -> Result<(Rc<Host>, UnixListener, u32)> {
    let Boot { state, parts, stdio, start, plan, demand, network, host_network, cgroup, begun_ns, .. } = boot;
    plan.observe();
    let (mut prepared, stdio) = unpack(parts, stdio, &mut descriptors)?;
    let disks = prepared.take_disks();
    let scope = state.scope.clone();
    let journal = Journal::claim(dir.clone(), state)?;
    let listener = listen(&dir)?;
    let mut host_cgroup = None;
    if let Some(scope) = scope {
        host_cgroup = Some(HostCgroup::enter_scope(&scope)?);
    } else if let Some(path) = cgroup {
        let mut made = |made| journal.update(|state| drop(state.cgroups.splice(0..0, made)));
        match HostCgroup::enter(&path, &mut made) {
            Ok(entered) => host_cgroup = Some(entered),
            // The container's limits are the guest's business; only the accounting suffers.
            Err(error) => eprintln!("enter the cgroup {}: {}", path.display(), error.chain()),
        }
    }
    devices::share::enter_private_namespace()?;
    let tracing = plan.config.runtime.enable_tracing;
    let home = if tracing { Some(Arc::new(network::Namespace::current()?)) } else { None };
    if let Some(path) = &network {
        // This is the only thread.
        network::Namespace::open(path)?.enter()?;
    }
    let recorder = Rc::new(Recorder::default());
    recorder.add(&journal);
    let sandbox = Sandbox::boot(Birth {
        plan,
        demand,
        journal: journal.clone(),
        observer: recorder.clone(),
        pod: None,
        network: match network {
            Some(_) => GuestNetwork::Namespace,
            None if host_network => GuestNetwork::Host,
            None => GuestNetwork::None,
        },
        disks,
        begun_ns,
        home,
    })
    .await?;
    let guest_pid = match sandbox.create(dir.id(), prepared, Io::of_sockets(stdio)?, start).await {
        Ok(guest_pid) => guest_pid,
        Err(error) => {
            sandbox.stop().await;
            return Err(error);
        }
    };
    // Before anything else is awaited, so that a process that ends at once is not called running after it was called stopped.
    journal.update(|state| state.status = if start { Status::Running } else { Status::Created })?;
    sandbox.save_timeline()?;
    let cgroup = Rc::new(RefCell::new(host_cgroup));
    let host = Host {
        sandbox,
        journal,
        recorder,
        cgroup,
        leaving: Rc::default(),
        resumed: tokio::sync::Notify::new(),
        console_only: false,
    };
    Ok((Rc::new(host), listener, guest_pid))
}

/// A container and its stdio, as they came.
fn unpack(parts: Parts, stdio: StdioSet, descriptors: &mut Vec<OwnedFd>) -> Result<(Prepared, StdioEnds)> {
    let (trees, disks) = (parts.shares.len(), parts.disks.len());
    if descriptors.len() != trees + disks + stdio.count() {
        return Err(Error::State("the caller sent another number of descriptors than it said".into()));
    }
    let stdio = StdioEnds::from_descriptors(stdio, descriptors.split_off(trees + disks)).unwrap_or_default();
    let disks = descriptors.split_off(trees);
    Ok((Prepared { parts, trees: std::mem::take(descriptors), disks }, stdio))
}

/// Lets programs be run in the guest of a sandbox that another process than a daemon hosts, outside of its containers: by a socket in its state
/// directory, as long as it lives. To be called only where the configuration allows that.
///
/// # Errors
/// [`Error::Io`] when there can be no such socket.
pub fn serve_console(sandbox: &Rc<Sandbox>) -> Result<()> {
    serve::serve_console(sandbox)
}

/// Makes the socket on which a container's callers are answered.
fn listen(dir: &StateDir) -> Result<UnixListener> {
    UnixListener::bind(socket_path(dir)?.path())
        .map_err(|e| Error::io(format!("listen on {}", dir.file("sock").display()), e))
}

/// Writes down why a sandbox is not.
fn record_failure(dir: &StateDir, error: &Error) {
    let Ok(mut state) = dir.load() else { return };
    state.status = Status::Stopped;
    state.failure = Some(error.chain());
    if let Err(error) = dir.save(&state) {
        eprintln!("{}", error.chain());
    }
}

/// The daemon's own socket, through the directory's descriptor: its path may be longer than a socket's may be.
struct SocketPath {
    _directory: OwnedFd,
    path: std::path::PathBuf,
}

impl SocketPath {
    fn path(&self) -> &Path {
        &self.path
    }
}

fn socket_path(dir: &StateDir) -> Result<SocketPath> {
    let directory = rustix::fs::open(
        dir.path(),
        rustix::fs::OFlags::PATH | rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::CLOEXEC,
        rustix::fs::Mode::empty(),
    )
    .map_err(|e| Error::io(format!("open {}", dir.path().display()), e))?;
    let path = format!("/proc/self/fd/{}/sock", directory.as_raw_fd()).into();
    Ok(SocketPath { _directory: directory, path })
}
