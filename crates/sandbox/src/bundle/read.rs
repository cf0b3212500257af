//! Reading a bundle's configuration.

use std::{
    fs,
    path::{Path, PathBuf},
};

use oci_spec::runtime::{Capability, Spec};

use crate::{Error, Result};

/// What [`read_spec`] found.
#[derive(Debug)]
pub struct Read {
    /// The bundle's directory, absolute.
    pub dir: PathBuf,
    /// The configuration's file, absolute.
    pub file: PathBuf,
    /// What it says.
    pub spec: Spec,
    /// Capabilities it asks for that do not exist. They are left out.
    pub unknown_capabilities: Vec<String>,
}

/// Reads `DIR/config.json`, or another file, without checking what it says.
///
/// # Errors
/// [`Error::Bundle`] where it is not JSON of the expected form, [`Error::Io`].
pub fn read_spec(dir: &Path, file: Option<&Path>) -> Result<Read> {
    let dir = fs::canonicalize(dir).map_err(|e| Error::io(format!("open the bundle {}", dir.display()), e))?;
    let file = dir.join(file.unwrap_or(Path::new("config.json")));
    let bytes =
        fs::read(&file).map_err(|e| Error::io(format!("read the bundle's configuration {}", file.display()), e))?;
    let mut json: serde_json::Value = serde_json::from_slice(&bytes).map_err(|e| Error::Bundle {
        file: file.clone(),
        field: "the whole file".into(),
        problem: e.to_string(),
    })?;
    let unknown_capabilities = leave_out_unknown_capabilities(&mut json);
    if let Some(process) = json.get_mut("process") {
        complete_process(process);
    }
    let spec = serde_path_to_error::deserialize(json).map_err(|e| {
        let field = match e.path().to_string() {
            path if path == "." => "the whole file".to_string(),
            path => path,
        };
        Error::Bundle { file: file.clone(), field, problem: e.inner().to_string() }
    })?;
    Ok(Read { dir, file, spec, unknown_capabilities })
}

/// Who leaves a process's user out, as programs in Go do for zeroes, means root.
pub fn complete_process(process: &mut serde_json::Value) {
    let Some(process) = process.as_object_mut() else { return };
    let user = process.entry("user").or_insert_with(|| serde_json::json!({}));
    if let Some(user) = user.as_object_mut() {
        for id in ["uid", "gid"] {
            user.entry(id).or_insert(0.into());
        }
    }
}

/// The specification wants a warning for them, not an error. Gives each once.
fn leave_out_unknown_capabilities(config: &mut serde_json::Value) -> Vec<String> {
    let mut unknown = Vec::new();
    let sets = config.pointer_mut("/process/capabilities").and_then(serde_json::Value::as_object_mut);
    for names in sets.into_iter().flat_map(|sets| sets.values_mut()).filter_map(serde_json::Value::as_array_mut) {
        names.retain(|name| {
            let known = serde_json::from_value::<Capability>(name.clone()).is_ok();
            if let Some(name) = name.as_str().filter(|name| !known && !unknown.iter().any(|other| other == name)) {
                unknown.push(name.to_owned());
            }
            // What is no string at all is an error still.
            known || !name.is_string()
        });
    }
    unknown
}
