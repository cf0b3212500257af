//! What a scope is called, and what annotations ask for it.

use std::path::Path;

use super::Value;
use crate::{Error, Result};

/// What the name of a scope begins with for which nobody asks, as with runc: callers look for it there.
const PREFIX: &str = "runc";
/// Longest name of a unit (systemd.unit(5)).
const LONGEST: usize = 255;
/// What the annotations begin with that hold properties, as with runc.
const PROPERTY: &str = "org.systemd.property.";

#[derive(Debug, PartialEq, Eq)]
pub(super) struct Names {
    /// Unless the manager's usual one.
    pub(super) slice: Option<String>,
    pub(super) unit: String,
}

impl Names {
    /// What `linux.cgroupsPath` names: nothing, or `slice:prefix:name`.
    pub(super) fn of(id: &str, path: Option<&Path>) -> Result<Self> {
        let text = path.map(Path::to_string_lossy).unwrap_or_default();
        if text.is_empty() {
            return Ok(Self { slice: None, unit: scope(PREFIX, id)? });
        }
        let [slice, prefix, name] = text.split(':').collect::<Vec<_>>()[..] else {
            return Err(bad(&format!(
                "expected cgroupsPath to be of format \"slice:prefix:name\" for systemd cgroups, got {text:?} instead"
            )));
        };
        if !slice.is_empty() && !is_slice(slice) {
            return Err(bad(&format!(
                "linux.cgroupsPath is {text:?}: {slice:?} is no name of a slice, such as \"a-b.slice\""
            )));
        }
        let slice = (!slice.is_empty()).then(|| slice.to_owned());
        Ok(Self { slice, unit: scope(prefix, name)? })
    }
}

fn bad(problem: &str) -> Error {
    Error::State(problem.into())
}

fn scope(prefix: &str, name: &str) -> Result<String> {
    let unit = if prefix.is_empty() { format!("{name}.scope") } else { format!("{prefix}-{name}.scope") };
    if name.is_empty() || unit.len() > LONGEST || !is_plain(&unit) {
        return Err(bad(&format!(
            "{unit:?} is no name of a scope: 1 to {LONGEST} letters, digits and :-_.\\ are expected; choose another id, or name the scope by \
             linux.cgroupsPath"
        )));
    }
    Ok(unit)
}

/// Characters of a unit's name (systemd.unit(5)).
fn is_plain(name: &str) -> bool {
    name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b":-_.\\".contains(&byte))
}

fn is_slice(name: &str) -> bool {
    let Some(stem) = name.strip_suffix(".slice").filter(|_| name.len() <= LONGEST && is_plain(name)) else {
        return false;
    };
    stem == "-" || (!stem.is_empty() && stem.split('-').all(|part| !part.is_empty()))
}

/// The properties that annotations hold, in the order of their names.
pub(super) fn properties<'a>(
    annotations: impl IntoIterator<Item = (&'a String, &'a String)>,
) -> Result<Vec<(String, Value)>> {
    let mut found = Vec::new();
    for (key, text) in annotations {
        let Some(name) = key.strip_prefix(PROPERTY) else { continue };
        let read = property(name, text.trim());
        found.push(read.ok_or_else(|| {
            bad(&format!(
                "annotation {key} is {text:?}: a property's name and true, false, a number, int64 or uint32 or uint64 with a number, 'text' or \
                 ['text', ...] are expected"
            ))
        })?);
    }
    found.sort_by(|(one, _), (other, _)| one.cmp(other));
    Ok(found)
}

fn property(name: &str, text: &str) -> Option<(String, Value)> {
    let is_name = name.len() > 2 && name.starts_with(|c: char| c.is_ascii_uppercase());
    if !is_name || !name.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
        return None;
    }
    let value = value(text)?;
    // Times are given in seconds, and systemd is told microseconds.
    let Some(stem) = name.strip_suffix("Sec").filter(|stem| !stem.ends_with('U')) else {
        return Some((name.into(), value));
    };
    let seconds = match value {
        Value::Int32(seconds) => u64::try_from(seconds).ok()?,
        Value::Uint32(seconds) => seconds.into(),
        Value::Int64(seconds) => u64::try_from(seconds).ok()?,
        Value::Uint64(seconds) => seconds,
        _ => return None,
    };
    Some((format!("{stem}USec"), Value::Uint64(seconds.checked_mul(1_000_000)?)))
}

/// A value in the text form of GVariant, as far as units have such properties.
fn value(text: &str) -> Option<Value> {
    if let Some((kind, number)) = text.split_once(' ') {
        let number = number.trim();
        match kind {
            "int64" => return number.parse().ok().map(Value::Int64),
            "uint32" => return number.parse().ok().map(Value::Uint32),
            "uint64" => return number.parse().ok().map(Value::Uint64),
            _ => {}
        }
    }
    match text {
        "true" => return Some(Value::Truth(true)),
        "false" => return Some(Value::Truth(false)),
        _ => {}
    }
    if let Some(inner) = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')) {
        return inner.split(',').map(|item| quoted(item.trim())).collect::<Option<_>>().map(Value::Texts);
    }
    quoted(text).map(Value::Text).or_else(|| text.parse().ok().map(Value::Int32))
}

/// Text in quotation marks, without escapes.
fn quoted(text: &str) -> Option<String> {
    let inner = ['\'', '"'].iter().find_map(|mark| text.strip_prefix(*mark)?.strip_suffix(*mark))?;
    (!inner.contains(['\\', '\'', '"', '\0'])).then(|| inner.into())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn names(path: &str) -> Result<(Option<String>, String)> {
        Names::of("c1", Some(Path::new(path))).map(|names| (names.slice, names.unit))
    }

    #[test]
    fn a_scope_has_the_name_that_runc_gives_it() {
        assert_eq!(names("").unwrap(), (None, "runc-c1.scope".into()));
        assert_eq!(Names::of("c1", None).unwrap().unit, "runc-c1.scope");
        assert_eq!(names("machine.slice:libpod:7").unwrap(), (Some("machine.slice".into()), "libpod-7.scope".into()));
        assert_eq!(names(":docker:7").unwrap(), (None, "docker-7.scope".into()));
        assert_eq!(names("a-b_c.slice::7").unwrap(), (Some("a-b_c.slice".into()), "7.scope".into()));
        assert_eq!(names("-.slice:a:7").unwrap(), (Some("-.slice".into()), "a-7.scope".into()));
    }

    #[test]
    fn what_systemd_would_not_take_is_refused() {
        for path in ["/a/b", "a.slice:b", "a.slice:b:c:d"] {
            let error = names(path).unwrap_err().to_string();
            assert_eq!(
                error,
                format!(
                    "expected cgroupsPath to be of format \"slice:prefix:name\" for systemd cgroups, got {path:?} instead"
                )
            );
        }
        for path in ["a:b:c", "a/b.slice:b:c", "-a.slice:b:c", "a--b.slice:b:c", ".slice:b:c"] {
            assert!(names(path).unwrap_err().to_string().contains("no name of a slice"), "{path}");
        }
        for path in ["a.slice:b:", "a.slice:b:c+d", "a.slice:/b:c"] {
            assert!(names(path).unwrap_err().to_string().contains("no name of a scope"), "{path}");
        }
        let long = "x".repeat(LONGEST);
        assert!(Names::of(&long, None).is_err());
    }

    #[test]
    fn annotations_hold_properties() {
        let annotations = |entries: &[(&str, &str)]| -> BTreeMap<String, String> {
            entries.iter().map(|(name, text)| (format!("{PROPERTY}{name}"), (*text).to_owned())).collect()
        };
        let mut given = annotations(&[
            ("TimeoutStopUSec", "uint64 7"),
            ("KillSignal", "15"),
            ("TimeoutStopSec", "2"),
            ("After", "['a.service', \"b.service\"]"),
            ("SendSIGHUP", "true"),
            ("CollectMode", "'inactive'"),
        ]);
        given.insert("other".into(), "?".into());
        let wanted = [
            ("After", Value::Texts(vec!["a.service".into(), "b.service".into()])),
            ("CollectMode", Value::Text("inactive".into())),
            ("KillSignal", Value::Int32(15)),
            ("SendSIGHUP", Value::Truth(true)),
            ("TimeoutStopUSec", Value::Uint64(2_000_000)),
            ("TimeoutStopUSec", Value::Uint64(7)),
        ];
        assert_eq!(properties(&given).unwrap(), wanted.map(|(name, value)| (name.to_owned(), value)));
        for (name, text) in
            [("x", "true"), ("killSignal", "1"), ("A b", "1"), ("Abc", "word"), ("AbcSec", "'x'"), ("Abc", "uint64 -1")]
        {
            let error = properties(&annotations(&[(name, text)])).unwrap_err().to_string();
            assert!(error.contains(name) && error.contains(text), "{error}");
        }
    }
}
