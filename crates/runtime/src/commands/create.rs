//! `create` and `run`.

use std::{fs, path::Path, process::ExitCode};

use agent_api::{ExitStatus, WindowSize};
use cmdline::runtime::{CreateArgs, RunArgs};
use config::Config;
use oci_spec::runtime::BoxBuilder;
use sandbox::{
    bundle::Bundle,
    client::{Client, Running, StdioEnds},
    hooks::{self, Point, Told},
    joining::Joining,
    launch::{Launch, Launching, initial_state},
    store::{ProcessRef, Store},
    systemd,
};

use super::lifecycle;
use crate::{
    Error, Result,
    cli::Context,
    console,
    foreground::Foreground,
    place::{Network, Place},
    rootless, shim,
    signals::Signals,
    stdio,
    view::View,
};

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
    /// The sandbox that it goes into.
    joining: Option<Joining>,
    config: Config,
    terminal: bool,
}

/// Checks all that can be checked before anything is started.
fn check(context: &Context, id: &str, args: &CreateArgs, detached: bool) -> Result<Order> {
    rootless::check()?;
    context.store.check_free(id)?;
    if context.systemd {
        systemd::check()?;
    }
    let dir = args.bundle.as_deref().unwrap_or(Path::new("."));
    let (bundle, joining) = Bundle::load_joining(dir, args.config.as_deref(), &context.store)?;
    if !bundle.unknown_capabilities.is_empty() {
        let names = bundle.unknown_capabilities.join(" ");
        context.log.warning(&format!("ignoring unknown or unavailable capabilities: [{names}]"));
    }
    refuse_descriptors(args.preserve_fds)?;
    warn_of_passed_sockets(context);
    let terminal = bundle.spec.process().as_ref().and_then(|process| process.terminal()).unwrap_or(false);
    console::check(terminal, detached, args.console_socket.as_deref())?;
    if let Some(path) = &args.pid_file {
        shim::check_pid_file(path)?;
    }
    let config = Config::load(context.config_file.as_deref())?;
    context.log.debug(|| format!("bundle {}, configuration from {:?}", bundle.dir.display(), config.sources));
    Ok(Order { bundle, joining, config, terminal })
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

/// A container that is being made, and what is to be undone if it comes to nothing.
struct Making<'a> {
    context: &'a Context,
    id: &'a str,
    order: &'a Order,
    signals: &'a Signals,
    /// Whether hooks have been run, which have others to follow them.
    hooked: bool,
}

impl<'a> Making<'a> {
    fn new(context: &'a Context, id: &'a str, order: &'a Order, signals: &'a Signals) -> Self {
        Self { context, id, order, signals, hooked: false }
    }

    /// Checks, and takes the name. From here on, a signal that ends this command also ends what it has started.
    fn prepare(&self, growing: bool) -> Result<Launching<'a>> {
        let (store, name) = (self.context.store.clone(), self.id.to_owned());
        self.signals.abort_after(move || abandon(&store, &name));
        // An engine that creates takes what is on standard error for the container's output.
        let quiet = growing && !self.context.log.is_heard();
        let mut unsaid = Vec::new();
        let mut warn = |text: &str| if quiet { unsaid.push(text.to_owned()) } else { self.context.log.warning(text) };
        let prepared = Launch {
            store: &self.context.store,
            id: self.id,
            bundle: &self.order.bundle,
            joining: self.order.joining.as_ref(),
            config: &self.order.config,
            systemd: self.context.systemd,
            growing,
            begun_ns: self.context.begun_ns,
        }
        .prepare(&mut warn)?;
        unsaid.iter().for_each(|text| prepared.note(text));
        Ok(prepared)
    }

    /// Runs the hooks of a creation, if there are any, and launches. `pid` is the process that stands for the container's.
    fn launch(
        &mut self,
        launching: &mut Launching<'_>,
        stdio: StdioEnds,
        start: bool,
        pid: Option<u32>,
    ) -> Result<Running> {
        let network = match (launching.network(), pid) {
            (Some(path), _) => Some(path.to_owned()),
            (None, Some(pid)) if !launching.has_host_network() => Some(format!("/proc/{pid}/ns/net").into()),
            (None, _) => None,
        };
        let told = pid.map(|pid| Told::of_bundle(self.id, &self.order.bundle, pid));
        if let Some((hooks, told)) = self.order.bundle.spec.hooks().as_ref().zip(told.as_ref()) {
            self.hooked = true;
            hooks::run(Point::Prestart, hooks, told)?;
            hooks::run(Point::CreateRuntime, hooks, told)?;
        }
        let launched = launching.go(stdio, start, network.as_deref(), told.as_ref());
        // If a signal is just ending this command, it is not the launch that failed.
        self.signals.hold_again();
        Ok(launched?)
    }

    /// The container has come to nothing.
    fn undone(&self) {
        if self.hooked {
            lifecycle::gone(self.context, &initial_state(self.id, &self.order.bundle));
        }
    }
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

/// Removes a container after its launch. What led here is what is reported, so this only logs.
fn remove(context: &Context, id: &str) {
    let removed = Client::new(&context.store, id).and_then(|client| client.delete(true));
    match removed {
        Ok(()) | Err(sandbox::Error::NotFound { .. }) => {}
        Err(error) => context.log.error(&error.chain()),
    }
}

fn detached(context: &Context, id: &str, args: &CreateArgs, start: bool) -> Result<ExitCode> {
    let order = check(context, id, args, true)?;
    let console = args.console_socket.as_deref().map(console::connect).transpose()?;
    let (ends, theirs) = stdio::pairs(order.terminal)?;
    let signals = Signals::hold()?;
    let mut making = Making::new(context, id, &order, &signals);
    let size = order.bundle.spec.process().as_ref().and_then(|process| process.console_size()).map(|size| WindowSize {
        rows: u16::try_from(size.height()).unwrap_or(u16::MAX),
        cols: u16::try_from(size.width()).unwrap_or(u16::MAX),
    });
    // An engine that creates may connect and limit anew until the end; who runs has said all.
    // Declared before what may be in its cgroup, so that it goes after that.
    let mut launching = making.prepare(!start)?;
    let cgroup = launching.cgroup().map(Into::into);
    let scope = launching.scope().cloned();
    let place = Place { network: network_of(&launching), cgroup, scope, mounts: order.bundle.spec.hooks().is_some() };
    let view = View { root: order.bundle.rootfs.clone(), mounts: order.bundle.visible()? };
    let job = shim::Job { store: &context.store, id, exec: None, ends, console, size, place, view: Some(view) };
    let made = shim::start(job).and_then(|waiting| {
        let pid = waiting.pid();
        context.log.debug(|| format!("kata-shim has pid {pid}"));
        let running = making.launch(&mut launching, theirs, start, Some(pid))?;
        let stands = waiting.go().and_then(|pid| {
            args.pid_file.as_deref().map_or(Ok(()), |path| shim::write_pid_file(path, pid))?;
            let client = Client::new(&context.store, id)?;
            if start { lifecycle::started(&client, &context.store.state(id)?) } else { Ok(()) }
        });
        drop(running);
        stands.inspect_err(|_| remove(context, id))
    });
    if made.is_err() {
        making.undone();
    }
    made.map(|()| ExitCode::SUCCESS)
}

/// Where the process is that stands for the container; `None` for the host's network, which this process is in.
fn network_of(launching: &Launching<'_>) -> Option<Network> {
    let own = || launching.network().map_or(Network::New, |path| Network::At(path.into()));
    (!launching.has_host_network()).then(own)
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
    let mut making = Making::new(context, id, &order, &signals);
    let mut launching = making.prepare(false)?;
    // Only hooks can look for this process, or bring interfaces into a namespace that is new.
    let hooked = order.bundle.spec.hooks().is_some();
    let network = if hooked { network_of(&launching) } else { None };
    let place = Place { network, cgroup: None, scope: None, mounts: hooked };
    let begin = |placed: Result<()>| {
        placed?;
        let running = making.launch(&mut launching, theirs, true, hooked.then(std::process::id))?;
        let attended = attend(context, id, args, foreground, &signals, running);
        if !keep || attended.is_err() {
            remove(context, id);
            if attended.is_ok() {
                making.undone();
            }
        }
        attended
    };
    let attended = if hooked { place.stand(|placed| begin(placed.map(drop))) } else { begin(Ok(())) };
    if attended.is_err() {
        making.undone();
    }
    Ok(ExitCode::from(attended?.shell_code() as u8))
}

/// Stands for the container's process until its end.
fn attend(
    context: &Context,
    id: &str,
    args: &CreateArgs,
    foreground: Foreground,
    signals: &Signals,
    running: Running,
) -> Result<ExitStatus> {
    let client = Client::new(&context.store, id)?;
    let supervised = client.supervise(None)?;
    drop(running);
    args.pid_file.as_deref().map_or(Ok(()), |path| shim::write_pid_file(path, std::process::id()))?;
    lifecycle::started(&client, &context.store.state(id)?)?;
    foreground.attend(signals, (&context.store, id), &client, None, supervised)
}

/// A size as the specification has it.
pub(crate) fn console_size(size: WindowSize) -> Result<oci_spec::runtime::Box> {
    BoxBuilder::default()
        .height(u64::from(size.rows))
        .width(u64::from(size.cols))
        .build()
        .map_err(|e| Error::io("describe the terminal's size", std::io::Error::other(e)))
}
