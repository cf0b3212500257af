//! Pid 1 of the guest: brings it up, creates and supervises the containers inside it.
//!
//! # Start
//!
//! The kernel runs the agent as `/init` of an initrd, or as `/sbin/init` of a disk that it can only read. The image may hold
//! nothing else, but kernel modules if the kernel needs them. [`boot`] says what is done in which order; when it is over, the agent serves the channel to the host, and when the channel ends it powers the
//! guest off. If the agent cannot go on, it says why on the console and ends, and the kernel's panic that follows ends the guest.
//!
//! # One thread
//!
//! Everything runs on one thread: calls, pumps of stdio and the reaper are tasks that give way to each other only where they
//! wait. That is what makes it sound to fork and go on in the child with ordinary code ([`container`]), and
//! why nothing here is locked. Calls that block are made only where they cannot take long.
//!
//! # Calls
//!
//! Each stream that the host opens is a call or a process's stdio (`agent-api`), answered in [`server`]. Stdio streams wait in [`tokens`] for
//! the call that names them, and are pumped by [`io`].
//!
//! [`dial`] connects to the guest's ports, [`names`] stands in for a resolver of the host. What containers share is the [`pod`]'s; file systems of the guest's own are in [`storage`]; CPUs and memory that are plugged come
//! [`online`]. [`events`] and [`metrics`] are what the host hears about the guest. Work that may block is put [`aside`].

mod agent;
mod aside;
mod boot;
mod container;
mod dial;
mod error;
mod events;
mod fault;
mod io;
mod listeners;
mod log;
mod metrics;
mod names;
mod network;
mod online;
mod pod;
mod reaper;
mod server;
mod spec;
mod storage;
mod sys;
mod tokens;
mod tty;
mod uevents;

use std::os::fd::OwnedFd;
use std::rc::Rc;

use agent::Agent;
use boot::{Options, Ports, SharedFs, Stages};
use error::{Error, Step};
use log::{Log, chain};
use reaper::Reaper;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{DumpableBehavior, Pid, PidfdFlags, pidfd_open};
use rustix::system::{RebootCommand, reboot};
use sys::Cloned;

fn main() {
    // Before the next: in a container of its own it is pid 1 as well.
    if std::env::args_os().nth(1).is_some_and(|argument| argument == "--version") {
        println!("kata-agent {}", env!("CARGO_PKG_VERSION"));
        return;
    }
    if std::process::id() != 1 {
        eprintln!("kata-agent is the init of a guest: it runs as pid 1 only");
        std::process::exit(2);
    }
    let log = Log { level: log::Level::Warn };
    match run(log) {
        Ok(()) => power_off(log),
        Err(error) => {
            log.error(chain(&error));
            // The host learns it from the kernel's panic.
            std::process::exit(1);
        }
    }
}

fn run(mut log: Log) -> Result<(), Error> {
    let mut stages = Stages::default();
    stages.done("agent-started");
    // Containers' processes that share its namespaces must not look into it, nor into its children before they execute.
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable).step("protecting", "the agent")?;
    boot::essential_mounts()?;
    let cmdline = std::fs::read_to_string("/proc/cmdline").step("reading", "/proc/cmdline")?;
    let options = Options::parse(&cmdline);
    log.level = options.log;
    let ports = Ports::listen()?;
    stages.done("mounts-done");
    boot::load_modules()?;
    stages.done("modules-loaded");
    boot::remaining_mounts()?;
    let shared = SharedFs::mount();
    if shared.is_mounted() {
        stages.done("shared-fs-mounted");
    }
    boot::loopback_up()?;
    rustix::system::sethostname(b"localhost").step("setting the host name to", "localhost")?;
    let (path, port) = ports.open()?;
    boot::connect_host(&path, &port)?;
    stages.done("channel-open");

    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .build()
        .step("starting", "the runtime")?;
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, serve(log, options, stages, shared, path, port))
}

async fn serve(
    log: Log,
    options: Options,
    stages: Stages,
    shared: SharedFs,
    path: String,
    port: OwnedFd,
) -> Result<(), Error> {
    let agent = Rc::new(Agent {
        log,
        options,
        stages,
        shared,
        tokens: tokens::Tokens::default(),
        reaper: Reaper::new().step("watching", "child processes")?,
        containers: container::Containers::default(),
        consoles: container::Consoles::default(),
        network: network::GuestNetwork::default(),
        pod: pod::Pod::default(),
        storages: storage::Storages::default(),
        events: events::Events::default(),
        metrics: metrics::Metrics::default(),
        namespaces: container::OwnNamespaces::open().step("opening", "/proc/self/ns")?,
        greeted: false.into(),
    });
    let reaping = agent.clone();
    tokio::task::spawn_local(async move { reaping.reaper.run().await });
    let port = io::Port::new(port).step("registering", path)?;
    let (_opener, acceptor, driver) = proxy::connect(port, proxy::Side::Guest, proxy::Limits::guest());
    tokio::task::spawn_local(server::serve(agent, acceptor));
    // However it ends, there is nobody left to serve.
    if let Err(error) = driver.await {
        log.warn(chain(&Error::Channel(error)));
    }
    Ok(())
}

/// Writes everything back that is not yet where it belongs, by a child that is not waited for longer than two seconds: if a
/// file server of the host is gone as well, it never ends.
fn write_back(log: Log) {
    let forked = match sys::clone3(0, None) {
        Ok(Cloned::Child) => {
            rustix::fs::sync();
            sys::exit_now(0)
        }
        Ok(Cloned::Parent(pid)) => pid,
        Err(error) => return log.warn(format_args!("a process to write everything back could not be made: {error}")),
    };
    let ended = Pid::from_raw(forked.cast_signed()).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
    let Some(ended) = ended else { return };
    let deadline = Timespec { tv_sec: 2, tv_nsec: 0 };
    if !matches!(poll(&mut [PollFd::new(&ended, PollFlags::IN)], Some(&deadline)), Ok(1)) {
        log.warn("not everything was written back within 2 s");
    }
}

/// Ends the guest: the host has closed the channel, so nobody is left to serve.
fn power_off(log: Log) -> ! {
    log.info("the host has closed the channel: powering off");
    write_back(log);
    // The hypervisor is told not to reboot, so a reset ends it, and needs no ACPI in the guest.
    let failed = reboot(RebootCommand::Restart);
    log.error(format_args!("the guest could not be powered off: {failed:?}"));
    std::process::exit(0);
}
