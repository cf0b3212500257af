//! `exec`.

use std::process::ExitCode;

use agent_api::WindowSize;
use cmdline::runtime::ExecArgs;
use oci_spec::runtime::Process;
use sandbox::{
    client::Client,
    store::{ContainerState, Status},
};

use super::{
    create::{console_size, refuse_descriptors, warn_of_passed_sockets},
    lifecycle::stopped,
};
use crate::{
    Error, Result,
    cli::Context,
    console,
    foreground::Foreground,
    place::{Network, Place},
    process_spec::{self, Changes},
    shim,
    signals::Signals,
    stdio,
};

/// Starts a further process.
pub(crate) fn exec(context: &Context, mut args: ExecArgs) -> Result<ExitCode> {
    let id = args.arguments.remove(0);
    let client = Client::new(&context.store, &id)?;
    let state = context.store.state(&id)?;
    match state.status {
        Status::Stopped => return Err(stopped("cannot exec in a stopped container", &state)),
        // With runc the process is there and frozen; whoever waits for it sees the same.
        Status::Paused if args.ignore_paused => client.wait_until_resumed()?,
        Status::Paused => {
            return Err(Error::refused("cannot exec in a paused container (use --ignore-paused to override)"));
        }
        _ => {}
    }
    refuse_options(&args)?;
    warn_of_passed_sockets(context);
    let process = process(context, &state, &mut args)?;
    let terminal = process.terminal().unwrap_or(false);
    console::check(terminal, args.detach, args.console_socket.as_deref())?;
    if let Some(path) = &args.pid_file {
        shim::check_pid_file(path)?;
    }
    // Unique among the container's processes: no other process has this pid at this moment.
    let name = format!("exec-{}-{}", std::process::id(), sandbox::timeline::now_ns());
    context.log.debug(|| format!("process {name} in container {id}"));
    if args.detach {
        detached(context, &state, &client, &name, process, &args)
    } else {
        foreground(context, &id, &client, &name, process, &args)
    }
}

fn refuse_options(args: &ExecArgs) -> Result<()> {
    refuse_descriptors(args.preserve_fds)?;
    if args.process_label.as_deref().is_some_and(|label| !label.is_empty()) {
        return Err(Error::refused("--process-label: the guest's kernel has no SELinux; leave it out"));
    }
    if args.apparmor.as_deref().is_some_and(|profile| !profile.is_empty()) {
        return Err(Error::refused("--apparmor: the guest's kernel has no AppArmor; leave it out"));
    }
    if !args.cgroup.is_empty() {
        return Err(Error::refused("--cgroup: the process always joins the container's own cgroup; leave it out"));
    }
    Ok(())
}

fn process(context: &Context, state: &ContainerState, args: &mut ExecArgs) -> Result<Process> {
    if let Some(path) = &args.process {
        return process_spec::from_file(path);
    }
    let changes = Changes {
        args: std::mem::take(&mut args.arguments),
        cwd: args.cwd.take(),
        env: std::mem::take(&mut args.env),
        tty: args.tty,
        user: args.user.take(),
        additional_gids: std::mem::take(&mut args.additional_gids),
        caps: std::mem::take(&mut args.cap),
        no_new_privs: args.no_new_privs,
    };
    process_spec::from_bundle(&state.bundle, state.config.as_deref(), changes, &mut |text| context.log.warning(text))
}

fn foreground(
    context: &Context,
    id: &str,
    client: &Client,
    name: &str,
    mut process: Process,
    args: &ExecArgs,
) -> Result<ExitCode> {
    let (foreground, theirs) = Foreground::prepare(process.terminal().unwrap_or(false))?;
    if let Some(size) = foreground.size() {
        process.set_console_size(Some(console_size(size)?));
    }
    let signals = Signals::hold()?;
    let running = client.exec(name, process, theirs)?;
    if let Some(path) = &args.pid_file
        && let Err(error) = shim::write_pid_file(path, std::process::id())
    {
        kill(client, name);
        return Err(error);
    }
    let status = foreground.attend(&signals, (&context.store, id), client, Some(name), running)?;
    Ok(ExitCode::from(status.shell_code() as u8))
}

fn detached(
    context: &Context,
    state: &ContainerState,
    client: &Client,
    name: &str,
    process: Process,
    args: &ExecArgs,
) -> Result<ExitCode> {
    let terminal = process.terminal().unwrap_or(false);
    let console = args.console_socket.as_deref().map(console::connect).transpose()?;
    let size = process.console_size().map(|size| WindowSize {
        rows: u16::try_from(size.height()).unwrap_or(u16::MAX),
        cols: u16::try_from(size.width()).unwrap_or(u16::MAX),
    });
    let (ends, theirs) = stdio::pairs(terminal)?;
    // Beside the process that stands for the container's first one.
    let network = (state.pid != 0).then(|| Network::At(format!("/proc/{}/ns/net", state.pid).into()));
    let place = Place { network, cgroup: state.cgroup.clone(), scope: state.scope.clone(), mounts: false };
    let job =
        shim::Job { store: &context.store, id: &state.id, exec: Some(name), ends, console, size, place, view: None };
    let waiting = shim::start(job)?;
    // Kept until the shim has taken over, so that somebody waits for the process at every moment.
    let running = client.exec(name, process, theirs)?;
    let stands =
        waiting.go().and_then(|pid| args.pid_file.as_deref().map_or(Ok(()), |path| shim::write_pid_file(path, pid)));
    drop(running);
    if let Err(error) = stands {
        kill(client, name);
        return Err(error);
    }
    Ok(ExitCode::SUCCESS)
}

/// Ends a process nobody could stand for. It may have ended by itself.
fn kill(client: &Client, name: &str) {
    let _ended = client.signal(Some(name), libc::SIGKILL, false);
}
