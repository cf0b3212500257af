//! What an administrator asks: what this host can do, what is in force, what is left over, where the time of a start went.

pub(crate) mod check;
pub(crate) mod console;
pub(crate) mod doctor;
pub(crate) mod env;
pub(crate) mod explain;
pub(crate) mod gc;
pub(crate) mod timeline;

use std::path::{Path, PathBuf};

use sandbox::store::Store;
use serde::Serialize;

use crate::{Error, Result, cli::Context, go};

/// The state directory of a container of this command line's, or of a shim's sandbox.
fn find(context: &Context, id: &str) -> Result<PathBuf> {
    let not_found = match context.store.find(id) {
        Ok(dir) => return Ok(dir.path().to_owned()),
        Err(error @ sandbox::Error::NotFound { .. }) => error,
        Err(error) => return Err(error.into()),
    };
    let shims = shim::leftovers::stores()?;
    let found: Vec<(String, PathBuf)> = shims
        .into_iter()
        .filter_map(|(namespace, store): (String, Store)| Some((namespace, store.find(id).ok()?.path().to_owned())))
        .collect();
    match &found[..] {
        [] => Err(Error::refused(format!(
            "{not_found}, and no shim has a sandbox of that name; of a pod, name its sandbox, not a container"
        ))),
        [(_, path)] => Ok(path.clone()),
        several => {
            let namespaces: Vec<&str> = several.iter().map(|(namespace, _)| namespace.as_str()).collect();
            Err(Error::refused(format!(
                "there are sandboxes {id:?} in several of containerd's namespaces: {}; say which by --root {}/NAMESPACE",
                namespaces.join(", "),
                several[0].1.parent().and_then(Path::parent).unwrap_or(Path::new("/")).display()
            )))
        }
    }
}

/// JSON for programs, a line of its own.
fn json(value: &impl Serialize) -> Result<String> {
    let text = serde_json::to_string_pretty(value).map_err(|e| Error::io("write the answer as JSON", e))?;
    Ok(text + "\n")
}

/// A table with its heading.
fn table<const COLUMNS: usize>(heading: [&str; COLUMNS], rows: impl IntoIterator<Item = [String; COLUMNS]>) -> String {
    let mut all = vec![heading.map(String::from)];
    all.extend(rows);
    go::table(&all)
}
