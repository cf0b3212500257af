//! `start`, `pause`, `resume` and `delete`: one call to the sandbox each, with runc's words for a state that does not
//! allow it.

use std::{
    process::ExitCode,
    time::{Duration, Instant},
};

use sandbox::{
    client::Client,
    hooks::{self, Point, Told},
    store::{ContainerState, ProcessRef, Status},
};

use crate::{Error, Result, cli::Context, sys};

fn find(context: &Context, id: &str) -> Result<(Client, ContainerState)> {
    let client = Client::new(&context.store, id)?;
    let state = context.store.state(id)?;
    Ok((client, state))
}

/// Does something to the container of this name, or to each whose name has a match of it, as crun does. The first failure ends it.
pub(crate) fn each(
    context: &Context,
    name: &str,
    is_pattern: bool,
    action: impl Fn(&str) -> Result<ExitCode>,
) -> Result<ExitCode> {
    if !is_pattern {
        return action(name);
    }
    let pattern = sys::Pattern::new(name).map_err(|why| Error::refused(format!("--regex {name}: {why}")))?;
    for (id, _) in context.store.list()? {
        if pattern.is_in(&id) {
            action(&id)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// runc's words for a container that has stopped, and why it has.
pub(crate) fn stopped(words: &str, state: &ContainerState) -> Error {
    Error::refused(state.stopped(words))
}

/// How long `start` waits for a `create` that is still at it, and how often it looks. A machine takes a moment in which a container of runc's
/// would not even be known.
const CREATION: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(50);

/// `start`.
pub(crate) fn start(context: &Context, id: &str) -> Result<ExitCode> {
    let (client, mut state) = find(context, id)?;
    let end = Instant::now() + CREATION;
    while state.status == Status::Creating && Instant::now() < end {
        std::thread::sleep(PAUSE);
        state = context.store.state(id)?;
    }
    match state.status {
        Status::Created => {
            client.start()?;
            started(&client, &state)?;
        }
        Status::Stopped => return Err(stopped("cannot start a container that has stopped", &state)),
        Status::Running => return Err(Error::refused("cannot start an already running container")),
        status => return Err(Error::refused(format!("cannot start a container in the {status} state"))),
    }
    Ok(ExitCode::SUCCESS)
}

/// Runs the hooks that follow a start. As in runc, a container whose hook fails does not stay.
///
/// # Errors
/// The first hook that fails.
pub(crate) fn started(client: &Client, state: &ContainerState) -> Result<()> {
    let Some(hooks) = &state.hooks else { return Ok(()) };
    hooks::run(Point::Poststart, hooks, &Told::of_state(state)).map_err(|error| {
        // It may have ended by itself.
        let _gone = client.signal(None, libc::SIGKILL, false);
        error.into()
    })
}

/// Runs the hooks that follow the end of a container that is gone. It stays gone, whatever they do.
pub(crate) fn gone(context: &Context, state: &ContainerState) {
    if let Some(hooks) = &state.hooks {
        let told = Told::of_state(state);
        hooks::run_all(Point::Poststop, hooks, &told, |error| context.log.warning(&error.chain()));
    }
}

/// `pause`.
pub(crate) fn pause(context: &Context, id: &str) -> Result<ExitCode> {
    let (client, state) = find(context, id)?;
    match state.status {
        Status::Created | Status::Running => client.pause()?,
        _ => return Err(stopped("container not running", &state)),
    }
    Ok(ExitCode::SUCCESS)
}

/// `resume`.
pub(crate) fn resume(context: &Context, id: &str) -> Result<ExitCode> {
    let (client, state) = find(context, id)?;
    if state.status != Status::Paused {
        return Err(Error::refused("container not paused"));
    }
    client.resume()?;
    Ok(ExitCode::SUCCESS)
}

/// `delete`. As in runc, a container that was created and never started may be deleted without force, and by force also
/// one that does not exist.
pub(crate) fn delete(context: &Context, id: &str, force: bool) -> Result<ExitCode> {
    let client = match Client::new(&context.store, id) {
        Err(sandbox::Error::NotFound { .. }) if force => return Ok(ExitCode::SUCCESS),
        other => other?,
    };
    let state = context.store.state(id);
    let state = if force { state.ok() } else { Some(state?) };
    let kill = force
        || match state.as_ref().map(|state| state.status) {
            Some(Status::Created) => true,
            Some(Status::Stopped) | None => false,
            // Who has seen the process end that stands for the container takes it for stopped. It will be in a moment, and the daemon waits for that.
            Some(_) if state.as_ref().is_some_and(|state| ProcessRef::of(state.pid).is_none()) => false,
            Some(status) => {
                return Err(Error::refused(format!("cannot delete container {id} that is not stopped: {status}")));
            }
        };
    client.delete(kill)?;
    if let Some(state) = state {
        gone(context, &state);
    }
    Ok(ExitCode::SUCCESS)
}
