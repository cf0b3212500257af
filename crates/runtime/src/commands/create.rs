//! `create` and `run`.

use std::{fs, path::Path, process::ExitCode};

use agent_api::WindowSize;
use cmdline::runtime::{CreateArgs, RunArgs};
use config::Config;
use oci_spec::runtime::BoxBuilder;
use sandbox::{
    bundle::Bundle,
    client::{Client, Running, StdioEnds},
    launch::{Launch, launch},
    store::{ProcessRef, Store},
};

use crate::{Error, Result, cli::Context, console, foreground::Foreground, shim, signals::Signals, stdio};

/// `create`.
pub(crate) fn create(context: &Context, id: &str, args: &CreateArgs) -> Result<ExitCode> {
    detached(context, id, args, false)
}

/// `run`.
pub(crate) fn run(context: &Context, id: &str, args: &RunArgs) -> Result<ExitCode> {
    if args.detach {
        detached(context, id, &args.create, true)
    } else {
        foreground(context, id, &args.create, args.keep)
    }
}

/// What was asked for, checked.
struct Order {
    bundle: Bundle,
    config: Config,
    terminal: bool,
}

/// Checks all that can be checked before anything is started.
fn check(context: &Context, id: &str, args: &CreateArgs, detached: bool) -> Result<Order> {
    context.store.check_free(id)?;
    let bundle = Bundle::load(args.bundle.as_deref().unwrap_or(Path::new(".")), sandbox::bundle::Role::Alone)?;
    bundle.refuse_hooks()?;
    refuse_descriptors(args.preserve_fds)?;
    warn_of_passed_sockets(context);
    let terminal = bundle.spec.process().as_ref().and_then(|process| process.terminal()).unwrap_or(false);
    console::check(terminal, detached, args.console_socket.as_deref())?;
    if let Some(path) = &args.pid_file {
        shim::check_pid_file(path)?;
    }
    let config = Config::load(context.config_file.as_deref())?;
    context.log.debug(|| format!("bundle {}, configuration from {:?}", bundle.dir.display(), config.sources));
    Ok(Order { bundle, config, terminal })
}

/// Refuses descriptors beyond stdio.
pub(crate) fn refuse_descriptors(number: u32) -> Result<()> {
    match number {
        0 => Ok(()),
        number => Err(Error::refused(format!(
            "--preserve-fds {number}: descriptors of the host cannot be passed into a virtual machine; only 0 is accepted"
        ))),
    }
}

/// Says that sockets a service manager passed (sd_listen_fds(3)) stay outside.
pub(crate) fn warn_of_passed_sockets(context: &Context) {
    if std::env::var("LISTEN_FDS").is_ok_and(|number| number.parse().is_ok_and(|number: u32| number > 0)) {
        context.log.warning("LISTEN_FDS is set, but descriptors of the host cannot be passed into a virtual machine");
    }
}

/// Launches, so that a signal that ends this command also ends what it has started.
fn launch_order(
    context: &Context,
    id: &str,
    order: &Order,
    stdio: StdioEnds,
    start: bool,
    signals: &Signals,
) -> Result<Running> {
    let (store, name) = (context.store.clone(), id.to_owned());
    signals.abort_after(move || abandon(&store, &name));
    let mut warn = |text: &str| context.log.warning(text);
    let launched = launch(Launch {
        store: &context.store,
        id,
        bundle: &order.bundle,
        config: &order.config,
        stdio,
        start,
        begun_ns: context.begun_ns,
        warn: &mut warn,
    });
    // If a signal is just ending this command, it is not the launch that failed.
    signals.hold_again();
    Ok(launched?)
}

/// Removes a sandbox this very process is starting, and no other of that name.
fn abandon(store: &Store, id: &str) {
    let me = std::process::id();
    let Ok(dir) = store.find(id) else { return };
    let Ok(state) = dir.load() else { return };
    let ours = state.creator.is_some_and(|creator| Some(creator) == ProcessRef::of(me))
        || state.daemon.is_some_and(|daemon| parent(daemon.pid) == Some(me));
    if ours {
        // What cannot be removed now, `delete --force` will.
        let _left_over = dir.purge();
    }
}

fn parent(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat[stat.rfind(')')? + 1..].split_ascii_whitespace().nth(1)?.parse().ok()
}

/// Removes a container whose creation failed after its launch. The failure is what is reported, so this only logs.
fn remove(context: &Context, client: &Client) {
    if let Err(error) = client.delete(true) {
        context.log.error(&error.chain());
    }
}

fn detached(context: &Context, id: &str, args: &CreateArgs, start: bool) -> Result<ExitCode> {
    let order = check(context, id, args, true)?;
    let console = args.console_socket.as_deref().map(console::connect).transpose()?;
    let (ends, theirs) = stdio::pairs(order.terminal)?;
    let signals = Signals::hold()?;
    let running = launch_order(context, id, &order, theirs, start, &signals)?;
    let client = Client::new(&context.store, id)?;
    let size = order.bundle.spec.process().as_ref().and_then(|process| process.console_size()).map(|size| WindowSize {
        rows: u16::try_from(size.height()).unwrap_or(u16::MAX),
        cols: u16::try_from(size.width()).unwrap_or(u16::MAX),
    });
    let job = shim::Job { store: &context.store, id, exec: None, ends, console, size };
    let stands = shim::start(job).and_then(|pid| {
        context.log.debug(|| format!("kata-shim has pid {pid}"));
        args.pid_file.as_deref().map_or(Ok(()), |path| shim::write_pid_file(path, pid))
    });
    drop(running);
    if let Err(error) = stands {
        remove(context, &client);
        return Err(error);
    }
    Ok(ExitCode::SUCCESS)
}

fn foreground(context: &Context, id: &str, args: &CreateArgs, keep: bool) -> Result<ExitCode> {
    let mut order = check(context, id, args, false)?;
    let (foreground, theirs) = Foreground::prepare(order.terminal)?;
    if let Some(size) = foreground.size()
        && let Some(process) = order.bundle.spec.process_mut()
    {
        process.set_console_size(Some(console_size(size)?));
    }
    let signals = Signals::hold()?;
    let running = launch_order(context, id, &order, theirs, true, &signals)?;
    let client = Client::new(&context.store, id)?;
    let attended = client
        .supervise(None)
        .map_err(Error::from)
        .and_then(|supervised| {
            drop(running);
            args.pid_file.as_deref().map_or(Ok(()), |path| shim::write_pid_file(path, std::process::id()))?;
            Ok(supervised)
        })
        .and_then(|supervised| foreground.attend(&signals, (&context.store, id), &client, None, supervised));
    if !keep || attended.is_err() {
        remove(context, &client);
    }
    Ok(ExitCode::from(attended?.shell_code() as u8))
}

/// A size as the specification has it.
pub(crate) fn console_size(size: WindowSize) -> Result<oci_spec::runtime::Box> {
    BoxBuilder::default()
        .height(u64::from(size.rows))
        .width(u64::from(size.cols))
        .build()
        .map_err(|e| Error::io("describe the terminal's size", std::io::Error::other(e)))
}
