//! Which value of each key is in force, and where it comes from.

use std::{
    collections::HashMap,
    env, fs,
    path::{Path, PathBuf},
};

use serde::Serialize;
use toml::de::{DeTable, DeValue};

use crate::{ANNOTATION_PREFIX, Config, Error, FILE_VARIABLE, annotations, keys::KEYS, keys::Key};

/// Where a value comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// Nobody has written it.
    Default,
    /// A file says it.
    File {
        /// The file.
        path: PathBuf,
        /// Line, counted from 1.
        line: usize,
        /// Whether it is one of `config.d`.
        drop_in: bool,
    },
}

impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File { path, line, drop_in } => {
                write!(f, "{}:{line}{}", path.display(), if *drop_in { " (drop-in)" } else { "" })
            }
        }
    }
}

/// Whether a pod's annotation may set a key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Annotation {
    /// This one may.
    Allowed(String),
    /// This one may if `enable_annotations` names the key.
    NotNamed(String),
    /// It is the host's to choose.
    Never,
}

/// What there is to say of a key.
#[derive(Debug)]
pub struct Explained {
    /// It.
    pub key: &'static Key,
    /// The value in force, as it would be written; none if it is unset.
    pub value: Option<String>,
    /// Where that comes from.
    pub origin: Origin,
    /// Whether a pod may set it.
    pub annotation: Annotation,
}

impl Config {
    /// Explains every key.
    ///
    /// # Errors
    /// [`Error::Read`] when a file has become unreadable since it was loaded.
    pub fn explain(&self) -> Result<Vec<Explained>, Error> {
        let mut origins = HashMap::new();
        for path in &self.sources {
            let text = fs::read_to_string(path);
            let given_by = || "read again to find its lines".to_owned();
            let text = text.map_err(|source| Error::Read { path: path.clone(), given_by: given_by(), source })?;
            let drop_in = path.parent().is_some_and(|directory| directory.ends_with("config.d"));
            for (name, line) in lines_of_keys(&text) {
                origins.insert(name, Origin::File { path: path.clone(), line, drop_in });
            }
        }
        Ok(KEYS.iter().map(|key| self.explain_one(key, &origins)).collect())
    }

    fn explain_one(&self, key: &'static Key, origins: &HashMap<String, Origin>) -> Explained {
        let value = (key.value)(self);
        // A guest image that a later file replaced is not in force.
        let origin = if value.is_some() { origins.get(&key.full_name()).cloned() } else { None };
        Explained { key, value, origin: origin.unwrap_or(Origin::Default), annotation: self.annotation_of(key) }
    }

    fn annotation_of(&self, key: &Key) -> Annotation {
        if annotations::is_of_the_host(key.name) {
            return Annotation::Never;
        }
        let table = key.table.split('.').next().unwrap_or_default();
        let name = format!("{ANNOTATION_PREFIX}{table}.{}", key.name);
        match annotations::is_named(&self.qemu.enable_annotations, key.name) {
            true => Annotation::Allowed(name),
            false => Annotation::NotNamed(name),
        }
    }
}

/// How the files were chosen that [`Config::load`] reads.
pub fn chosen_by(explicit: Option<&Path>) -> String {
    match (explicit, env::var_os(FILE_VARIABLE).filter(|value| !value.is_empty())) {
        (Some(_), _) => "named by --config".into(),
        (None, Some(_)) => format!("named by the environment variable {FILE_VARIABLE}"),
        (None, None) => "found by its place".into(),
    }
}

/// The keys of a file, with their tables, and their lines. A file that was loaded is well-formed.
fn lines_of_keys(text: &str) -> Vec<(String, usize)> {
    fn descend(table: &DeTable<'_>, above: &str, text: &str, found: &mut Vec<(String, usize)>) {
        for (key, value) in table {
            let name = if above.is_empty() { key.get_ref().to_string() } else { format!("{above}.{}", key.get_ref()) };
            match value.get_ref() {
                DeValue::Table(inner) => descend(inner, &name, text, found),
                _ => {
                    let before = text.as_bytes().get(..key.span().start).unwrap_or_default();
                    found.push((name, before.iter().filter(|byte| **byte == b'\n').count() + 1));
                }
            }
        }
    }
    let mut found = Vec::new();
    if let Ok(table) = DeTable::parse(text) {
        descend(table.get_ref(), "", text, &mut found);
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn explained<'a>(all: &'a [Explained], name: &str) -> &'a Explained {
        all.iter().find(|one| one.key.full_name() == name).unwrap()
    }

    #[test]
    fn each_value_says_where_it_comes_from() {
        let directory = tempfile::tempdir().unwrap();
        let main = directory.path().join("configuration.toml");
        let text = "# a comment\n[hypervisor.qemu]\ndefault_vcpus = 2\ndefault_memory = 512\nenable_annotations = [\"default_.*\"]\n\
                    image = \"/i\"\n[agent.kata]\ndial_timeout = 7\n";
        fs::write(&main, text).unwrap();
        fs::create_dir(directory.path().join("config.d")).unwrap();
        let drop_in = directory.path().join("config.d/10.toml");
        fs::write(&drop_in, "[hypervisor.qemu]\ninitrd = \"/r\"\ndefault_memory = 256\n").unwrap();
        let config = Config::load(Some(&main)).unwrap();
        let all = config.explain().unwrap();
        let file = |path: &Path, line, drop_in| Origin::File { path: path.into(), line, drop_in };
        let check = |name: &str, value: Option<&str>, origin: Origin| {
            let one = explained(&all, name);
            assert_eq!((one.value.as_deref(), &one.origin), (value, &origin), "{name}");
        };
        check("hypervisor.qemu.default_vcpus", Some("2"), file(&main, 3, false));
        check("hypervisor.qemu.default_memory", Some("256"), file(&drop_in, 3, true));
        check("hypervisor.qemu.initrd", Some("\"/r\""), file(&drop_in, 2, true));
        check("hypervisor.qemu.image", None, Origin::Default);
        check("agent.kata.dial_timeout", Some("7"), file(&main, 8, false));
        check("runtime.enable_debug", Some("false"), Origin::Default);
        assert_eq!(file(&drop_in, 3, true).to_string(), format!("{}:3 (drop-in)", drop_in.display()));

        let allowed = Annotation::Allowed("io.katacontainers.config.hypervisor.default_vcpus".into());
        assert_eq!(explained(&all, "hypervisor.qemu.default_vcpus").annotation, allowed);
        let not = Annotation::NotNamed("io.katacontainers.config.agent.dial_timeout".into());
        assert_eq!(explained(&all, "agent.kata.dial_timeout").annotation, not);
        assert_eq!(explained(&all, "hypervisor.qemu.path").annotation, Annotation::Never);
    }

    #[test]
    fn keys_are_found_however_their_tables_are_written() {
        let found = lines_of_keys("runtime.enable_debug = true\n\n[hypervisor]\nqemu = { default_vcpus = 1 }\n");
        assert_eq!(
            found.into_iter().collect::<std::collections::BTreeMap<_, _>>(),
            [("runtime.enable_debug".to_owned(), 1), ("hypervisor.qemu.default_vcpus".to_owned(), 4)].into()
        );
    }

    #[test]
    fn a_file_that_is_gone_is_an_error_that_names_it() {
        let config = Config { sources: vec!["/nonexistent/c.toml".into()], ..Config::default() };
        assert!(config.explain().unwrap_err().to_string().contains("/nonexistent/c.toml"));
    }
}
