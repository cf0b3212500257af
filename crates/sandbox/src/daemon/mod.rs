//! The process that owns a sandbox.
//!
//! It is single-threaded: every task runs on one thread, shares [`machine::Machine`] by reference counting, and borrows its
//! cells only between two awaits. Three kinds of task exist:
//!
//! * one that **watches** for the machine's death (`machine::watch`): QEMU, the virtio-fs server or the channel ending. It
//!   says once, to all, who died and why; every other task that waits for the guest waits for that too, so no call hangs
//!   on a dead machine;
//! * one per **process** of the container, that waits for its end and remembers it;
//! * one per **connection** (`serve`), which carries out one call.
//!
//! The daemon's mount namespace is private and QEMU and the virtio-fs server are killed by the kernel when it ends, so
//! whatever kills it leaves just the state directory.

mod boot;
mod machine;
mod relay;
mod serve;

use std::{
    os::{fd::OwnedFd, unix::net::UnixStream},
    process::ExitCode,
    time::Duration,
};

use agent_api::frame;

use crate::{Error, Result, api::Reply, launch::Boot, passing, store::StateDir, sys};

pub(crate) use boot::{check, choose_accelerator};

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
        booted = boot::boot(boot, dir.clone(), descriptors) => booted,
        () = hung_up(&caller) => Err(Error::State("the caller ended while the sandbox was being started".into())),
    };
    match booted {
        Ok(booted) => {
            let created = Reply::Created { pid: booted.guest_pid };
            let first = serve::answer_until_exit(caller, booted.machine.clone(), None, Some(created));
            tokio::task::spawn_local(first);
            serve::serve(booted.machine, booted.listener).await
        }
        Err(error) => {
            boot::record_failure(&dir, &error);
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
