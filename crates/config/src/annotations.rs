//! A pod's annotations that set keys of the configuration for it alone.

use std::path::Path;

use crate::{Config, Error, file};

/// What such annotations begin with; then `hypervisor.`, `agent.` or `runtime.` and a key.
pub const PREFIX: &str = "io.katacontainers.config.";

/// Tables by the name they have in annotations.
const TABLES: [(&str, &str); 3] =
    [("hypervisor", "[hypervisor.qemu]"), ("agent", "[agent.kata]"), ("runtime", "[runtime]")];

/// Keys that name a file of the host, decide who may name one, or say whom the host talks to. Whoever may write a pod may not choose what the host
/// executes.
const OF_THE_HOST: [&str; 8] =
    ["path", "kernel", "initrd", "image", "enable_annotations", "enable_tracing", "otlp_endpoint", "debug_steps"];

/// Whether a key is never a pod's to set.
pub(crate) fn is_of_the_host(key: &str) -> bool {
    OF_THE_HOST.contains(&key)
}

/// Whether one of the names in `enable_annotations` means a key.
pub(crate) fn is_named(allowed: &[String], key: &str) -> bool {
    allowed.iter().any(|pattern| matches(pattern, key))
}

impl Config {
    /// Applies those annotations that the configuration allows. Gives a sentence for each that was ignored.
    ///
    /// # Errors
    /// [`Error::Annotation`] for one that is allowed and says something wrong.
    pub fn annotate<'a>(
        &mut self,
        annotations: impl IntoIterator<Item = (&'a String, &'a String)>,
    ) -> Result<Vec<String>, Error> {
        let allowed = self.qemu.enable_annotations.clone();
        let mut ignored = Vec::new();
        let mut ours: Vec<_> = annotations.into_iter().filter(|(name, _)| name.starts_with(PREFIX)).collect();
        ours.sort();
        for (name, value) in ours {
            let key = name[PREFIX.len()..].split_once('.');
            let known = key.and_then(|(table, key)| Some((TABLES.iter().find(|known| known.0 == table)?.1, key)));
            let Some((table, key)) = known else {
                ignored.push(format!("annotation {name} is ignored: it names no table of the configuration"));
                continue;
            };
            if is_of_the_host(key) {
                ignored.push(format!("annotation {name} is ignored: {key:?} is the host's to choose"));
            } else if !is_named(&allowed, key) {
                ignored.push(format!(
                    "annotation {name} is ignored: enable_annotations of the configuration does not name {key:?}"
                ));
            } else {
                self.apply_annotation(name, table, key, value)?;
            }
        }
        Ok(ignored)
    }

    fn apply_annotation(&mut self, name: &str, table: &str, key: &str, value: &str) -> Result<(), Error> {
        let failed = |message| Error::Annotation { name: name.into(), message };
        if !key.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') {
            return Err(failed(format!("{key:?} is no key of the configuration")));
        }
        // Annotations are text; what reads as a number or a truth value is one.
        let value = match value.parse::<i64>().is_ok() || value == "true" || value == "false" {
            true => value.to_owned(),
            false => toml::Value::String(value.into()).to_string(),
        };
        file::apply_text(self, Path::new(name), &format!("{table}\n{key} = {value}\n")).map_err(|error| match error {
            Error::Invalid { message, .. } => failed(message),
            other => other,
        })
    }
}

/// Whether a key is meant by a name in which `.*` stands for any text.
fn matches(pattern: &str, key: &str) -> bool {
    let parts: Vec<&str> = pattern.split(".*").collect();
    let [first, middle @ .., last] = &parts[..] else { return pattern == key };
    let Some(mut rest) = key.strip_prefix(first) else { return false };
    for part in middle {
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn annotate(allowed: &[&str], annotations: &[(&str, &str)]) -> (Config, Result<Vec<String>, Error>) {
        let mut config = Config::default();
        config.qemu.enable_annotations = allowed.iter().map(ToString::to_string).collect();
        let annotations: BTreeMap<String, String> =
            annotations.iter().map(|(name, value)| (format!("{PREFIX}{name}"), value.to_string())).collect();
        let done = config.annotate(&annotations);
        (config, done)
    }

    #[test]
    fn an_allowed_annotation_counts_and_others_are_ignored_with_a_reason() {
        let (config, ignored) = annotate(
            &["default_.*", "kernel_params", "debug_.*"],
            &[
                ("hypervisor.default_vcpus", "2"),
                ("hypervisor.kernel_params", "a=1"),
                ("hypervisor.machine_type", "microvm"),
                ("hypervisor.path", "/bin/evil"),
                ("runtime.debug_steps", "/run/evil"),
                ("other.key", "x"),
            ],
        );
        assert_eq!(config.qemu.default_vcpus, 2);
        assert_eq!(config.qemu.kernel_params, "a=1");
        assert_eq!(config.qemu.machine_type, None);
        let ignored = ignored.unwrap();
        assert_eq!(ignored.len(), 4);
        assert!(ignored[0].contains("machine_type") && ignored[0].contains("enable_annotations"), "{ignored:?}");
        assert!(ignored[1].contains("the host's to choose") && ignored[2].contains("no table"), "{ignored:?}");
        assert!(ignored[3].contains("debug_steps") && ignored[3].contains("the host's to choose"), "{ignored:?}");
    }

    #[test]
    fn an_allowed_annotation_with_a_bad_value_is_an_error_that_names_it() {
        for (name, value, expected) in [
            ("hypervisor.default_vcpus", "many", "default_vcpus"),
            ("hypervisor.default_vcpus", "1000", "`default_vcpus` must be 1 to 255 virtual CPUs, not 1000"),
            ("hypervisor.nonsense", "1", "unknown field `nonsense`"),
        ] {
            let error = annotate(&[".*"], &[(name, value)]).1.unwrap_err().to_string();
            assert!(error.starts_with(&format!("annotation {PREFIX}{name}: ")) && error.contains(expected), "{error}");
        }
    }

    #[test]
    fn patterns_have_a_wildcard() {
        for (pattern, key, expected) in [
            ("default_vcpus", "default_vcpus", true),
            ("default_vcpus", "default_vcpus2", false),
            ("default_.*", "default_memory", true),
            (".*", "anything", true),
            ("d.*_m.*y", "default_memory", true),
            ("d.*_x.*y", "default_memory", false),
            ("default", "default_memory", false),
        ] {
            assert_eq!(matches(pattern, key), expected, "{pattern} {key}");
        }
    }
}
