//! `timeline`: where the time of a sandbox's start went.

use std::{fs, path::Path, process::ExitCode};

use sandbox::timeline::{Span, Timeline};
use serde::Serialize;

use super::{find, json};
use crate::{
    Error, Result,
    cli::{Context, output},
};

#[derive(Serialize)]
struct Report {
    sandbox: String,
    spans: Vec<Span>,
}

/// `timeline`.
pub(crate) fn timeline(context: &Context, id: &str, as_json: bool, svg: Option<&Path>) -> Result<ExitCode> {
    let dir = find(context, id)?;
    // What another's sandbox took to start is what this container's did.
    let dir = context.store.state(id).ok().and_then(|state| state.sandbox).unwrap_or(dir);
    let timeline = Timeline::load(&dir).map_err(|error| match error {
        sandbox::Error::Io { source, .. } if source.kind() == std::io::ErrorKind::NotFound => Error::refused(format!(
            "the start of {id:?} is not written down in {}: it has not been finished, or was not asked for",
            dir.display()
        )),
        other => other.into(),
    })?;
    if let Some(path) = svg {
        fs::write(path, timeline.svg()).map_err(|e| Error::io(format!("write {}", path.display()), e))?;
    }
    if as_json {
        return output(context, &json(&Report { sandbox: id.into(), spans: timeline.spans() })?);
    }
    let table: String = timeline.table().into_iter().map(|line| line + "\n").collect();
    if svg.is_some() { Ok(ExitCode::SUCCESS) } else { output(context, &table) }
}
