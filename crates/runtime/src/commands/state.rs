//! `state` and `list`.

use std::{collections::BTreeMap, os::unix::fs::MetadataExt, path::Path, process::ExitCode};

use sandbox::store::{ContainerState, Status};
use serde::Serialize;

use crate::{
    Error, Result,
    cli::{Context, output},
    go,
    users::Users,
};

/// A container as runc shows it, keys in its order.
#[derive(Debug, Serialize)]
struct Shown {
    #[serde(rename = "ociVersion")]
    oci_version: String,
    id: String,
    pid: u32,
    status: Status,
    bundle: String,
    rootfs: String,
    created: String,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    annotations: BTreeMap<String, String>,
    owner: String,
}

impl Shown {
    fn new(state: ContainerState, owner: String) -> Self {
        let text = |path: &Path| path.to_string_lossy().into_owned();
        Self {
            oci_version: state.oci_version,
            id: state.id,
            pid: state.pid,
            status: state.status,
            bundle: text(&state.bundle),
            rootfs: text(&state.rootfs),
            created: state.created,
            annotations: state.annotations.into_iter().collect(),
            owner,
        }
    }
}

fn encode(error: serde_json::Error) -> Error {
    Error::io("write the state as JSON", error)
}

/// `state`.
pub(crate) fn state(context: &Context, id: &str) -> Result<ExitCode> {
    let shown = Shown::new(context.store.state(id)?, String::new());
    output(context, &go::json_indented(&shown, "  ").map_err(encode)?)
}

/// `list`.
pub(crate) fn list(context: &Context, format: &str, quiet: bool) -> Result<ExitCode> {
    let users = Users::of_host();
    let mut containers = Vec::new();
    for (id, state) in context.store.list()? {
        match state {
            Ok(state) => containers.push(Shown::new(state, owner(&context.store.root().join(&id), &users))),
            // It may have been deleted since its name was read.
            Err(_) if !context.store.root().join(&id).exists() => {}
            Err(error) => context.log.error(&format!("load container {id}: {}", error.chain())),
        }
    }
    if quiet {
        return output(context, &containers.iter().map(|c| format!("{}\n", c.id)).collect::<String>());
    }
    match format {
        "table" => output(context, &table(&containers)),
        // As an empty slice in Go.
        "json" if containers.is_empty() => output(context, "null\n"),
        "json" => output(context, &(go::json(&containers).map_err(encode)? + "\n")),
        _ => Err(Error::refused("invalid format option")),
    }
}

fn owner(directory: &Path, users: &Users) -> String {
    let Ok(metadata) = directory.metadata() else { return String::new() };
    users.name(metadata.uid()).map_or_else(|| format!("#{}", metadata.uid()), Into::into)
}

fn table(containers: &[Shown]) -> String {
    let mut rows = vec![["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"].map(String::from)];
    rows.extend(containers.iter().map(|c| {
        let [id, bundle, created, owner] = [&c.id, &c.bundle, &c.created, &c.owner].map(Clone::clone);
        [id, c.pid.to_string(), c.status.to_string(), bundle, created, owner]
    }));
    go::table(&rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn container(annotations: &[(&str, &str)]) -> Shown {
        Shown {
            oci_version: "1.0.2".into(),
            id: "s1".into(),
            pid: 13002,
            status: Status::Created,
            bundle: "/tmp/b".into(),
            rootfs: "/tmp/b/rootfs".into(),
            created: "2026-11-24T00:52:17.275797814Z".into(),
            annotations: annotations.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect(),
            owner: String::new(),
        }
    }

    #[test]
    fn the_state_has_runcs_keys_in_runcs_order() {
        let text = go::json(&container(&[("b", "2"), ("a", "1")])).unwrap();
        assert_eq!(
            text,
            r#"{"ociVersion":"1.0.2","id":"s1","pid":13002,"status":"created","bundle":"/tmp/b","rootfs":"/tmp/b/rootfs","created":"2026-11-24T00:52:17.275797814Z","annotations":{"a":"1","b":"2"},"owner":""}"#
        );
        assert!(!go::json(&container(&[])).unwrap().contains("annotations"));
    }

    #[test]
    fn the_table_has_runcs_layout() {
        assert_eq!(
            table(&[container(&[])]),
            "ID          PID         STATUS      BUNDLE      CREATED                          OWNER\n\
             s1          13002       created     /tmp/b      2026-11-24T00:52:17.275797814Z   \n"
        );
        assert_eq!(table(&[]), "ID          PID         STATUS      BUNDLE      CREATED     OWNER\n");
    }
}
