//! The shim itself: one process for each pod, as long as the pod lives.

use std::{os::unix::net::UnixListener, path::Path, rc::Rc, time::Duration};

use containerd_shim_protos::ttrpc::asynchronous::Server;
use tokio::{
    runtime,
    signal::unix::{SignalKind, signal},
    sync::mpsc,
    task::LocalSet,
    time::{sleep, timeout},
};

use crate::{
    Error, Flags, Result,
    backend::Booter,
    bootstrap::socket::Address,
    events::{Destination, Publisher},
    group::Brief,
    host, log,
    monitor::Monitor,
    service::{Desk, Job, Pod, Settings, sandbox_service, task_services},
    sys, translate,
};

/// How long events may keep a shim that is to end. containerd gives Shutdown 3 s.
const EVENTS_DEADLINE: Duration = Duration::from_secs(2);
/// How long containerd may take until it asks for something. It does so at once, unless it was killed.
const FIRST_CALL: Duration = Duration::from_secs(60);
/// How long a machine may take to end when the shim is ended by a signal.
const STOP_DEADLINE: Duration = Duration::from_secs(20);
/// Until answers that are on their way have left: whoever asked to shut down is to hear that it was done.
const LAST_ANSWERS: Duration = Duration::from_millis(10);

/// Serves a pod until containerd shuts it down.
///
/// # Errors
/// What kept it from serving.
pub(crate) fn serve(flags: &Flags, bundle: &Path, booter: Rc<dyn Booter>) -> Result<()> {
    // First, while there is one thread: a namespace is a thread's, and later ones inherit it.
    let entered = Brief::read(bundle).and_then(|brief| host::enter_namespaces(&brief.unwrap_or_default().network()));
    log::open(bundle, flags.debug)?;
    entered?;
    // The bundle is containerd's to remove.
    rustix::process::chdir("/").map_err(|e| Error::io("change to /", e))?;
    // containerd's own shim is a child subreaper because its containers would become its children. Ours has none but those it waits for.
    let _is_leader_already = rustix::process::setsid();
    let listener = listen(flags)?;
    let runtime = runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|e| Error::io("start the runtime of the shim", e))?;
    let settings = Settings {
        namespace: flags.namespace.clone(),
        sandbox: flags.id.clone(),
        unified: translate::host_is_unified(),
    };
    let destination = Destination {
        namespace: flags.namespace.clone(),
        socket: std::env::var("TTRPC_ADDRESS").ok().filter(|address| !address.is_empty()),
        grpc_address: flags.address.clone(),
        program: flags.publish_binary.clone(),
    };
    let address = Address::of(&flags.address, &flags.namespace, &flags.id);
    let result = LocalSet::new().block_on(&runtime, async {
        let publisher = Publisher::new(destination);
        let result = run(listener, settings, booter, publisher, &address).await;
        address.remove();
        result
    });
    // A blocking task may be in a system call that does not return.
    runtime.shutdown_timeout(Duration::from_millis(100));
    result
}

fn listen(flags: &Flags) -> Result<UnixListener> {
    match &flags.socket {
        Some(path) => UnixListener::bind(path).map_err(|e| Error::io(format!("listen on {}", path.display()), e)),
        None => {
            let descriptor = sys::take_stdin().map_err(|e| Error::io("take the socket over from `start`", e))?;
            let listening = rustix::net::sockopt::socket_acceptconn(&descriptor);
            if !listening.is_ok_and(|listening| listening) {
                return Err(Error::Flags(
                    "standard input is not a listening socket: a shim is started by containerd, with `start`".into(),
                ));
            }
            Ok(descriptor.into())
        }
    }
}

async fn run(
    listener: UnixListener,
    settings: Settings,
    booter: Rc<dyn Booter>,
    publisher: Publisher,
    address: &Address,
) -> Result<()> {
    let (desk, mut jobs) = Desk::new();
    let (out_of_memory, victims) = mpsc::unbounded_channel();
    let sandbox = settings.sandbox.clone();
    let pod = Pod::new(settings, booter, publisher, out_of_memory);
    let listener = sys::ttrpc_listener(listener).map_err(|e| Error::io("use the socket of `start`", e))?;
    let mut server = Server::new()
        .add_listener(listener)
        .register_service(task_services(&desk))
        .register_service(sandbox_service(&desk));
    server.start().await.map_err(|e| Error::rpc("serve containerd", e))?;
    let monitor = Monitor::open(&pod, &sandbox).map_err(|error| log::warn(&error.chain())).ok();
    let served = work(&pod, &mut jobs, victims).await;
    let by_signal = matches!(served, Ok(End::Signal));
    let _unanswered = by_signal.then_some(jobs);
    drop(monitor);
    // Whoever looks for this pod's shim from now on shall start a new one.
    address.remove();
    sleep(LAST_ANSWERS).await;
    let stopped = timeout(STOP_DEADLINE, pod.stop_machine()).await;
    let stopped = stopped.unwrap_or(Err(Error::Deadline {
        what: "the end of the virtual machine".into(),
        seconds: STOP_DEADLINE.as_secs(),
    }));
    pod.close(EVENTS_DEADLINE).await;
    // What was asked since a signal is not answered: an answer would be an error to containerd, the end of the connection is to it the end
    // of the task.
    if !by_signal && let Err(error) = server.shutdown().await {
        log::debug(&format!("stop serving: {error}"));
    }
    served.and(stopped)
}

/// Why the shim ends.
enum End {
    /// containerd asked for it.
    Asked,
    /// Somebody who took its process for the task's, or who ends all processes of the host.
    Signal,
}

/// Does what is asked, until the shim is to end.
async fn work(
    pod: &Rc<Pod>,
    jobs: &mut mpsc::UnboundedReceiver<Job>,
    mut victims: mpsc::UnboundedReceiver<String>,
) -> Result<End> {
    let signals = |kind| signal(kind).map_err(|e| Error::io("listen to signals", e));
    let (mut term, mut int) = (signals(SignalKind::terminate())?, signals(SignalKind::interrupt())?);
    let mut left = std::pin::pin!(pod.left());
    pod.leave_when_idle(FIRST_CALL);
    loop {
        tokio::select! {
            Some(job) = jobs.recv() => drop(tokio::task::spawn_local(job(pod.clone()))),
            Some(container) = victims.recv() => pod.out_of_memory(&container),
            () = &mut left => return Ok(End::Asked),
            _ = term.recv() => break,
            _ = int.recv() => break,
        }
    }
    log::info("ended by a signal");
    Ok(End::Signal)
}
