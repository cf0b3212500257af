//! `config explain`: each key's value in force, where it comes from, and what it means.

use std::process::ExitCode;

use config::{Annotation, Config, Explained, GuestImage, KEYS, Origin, plain};
use hypervisor::Arch;
use serde::Serialize;

use super::json;
use crate::{
    Error, Result,
    cli::{Context, output},
};

#[derive(Serialize)]
struct Shown<'a> {
    key: String,
    value: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    found: Option<String>,
    origin: &'a Origin,
    meaning: String,
    values: String,
    default: String,
    annotation: &'a Annotation,
}

#[derive(Serialize)]
struct Report<'a> {
    files: Vec<String>,
    chosen_by: String,
    keys: Vec<Shown<'a>>,
}

/// `config explain`.
pub(crate) fn explain(context: &Context, key: Option<&str>, as_json: bool) -> Result<ExitCode> {
    if let Some(key) = key {
        check_name(key)?;
    }
    let config = Config::load(context.config_file.as_deref())?;
    let all = config.explain()?;
    let wanted = |one: &&Explained| key.is_none_or(|key| is_meant(one.key, key));
    let shown: Vec<Shown<'_>> = all.iter().filter(wanted).map(|one| show(&config, one)).collect();
    let files: Vec<String> = config.sources.iter().map(|path| path.display().to_string()).collect();
    let chosen_by = config::chosen_by(context.config_file.as_deref());
    if as_json {
        return output(context, &json(&Report { files, chosen_by, keys: shown })?);
    }
    let mut text = match &files[..] {
        [] => "# no configuration file: every value is the default\n".to_owned(),
        files => format!("# {}, {chosen_by}\n", files.join(", ")),
    };
    for one in &shown {
        text.push_str(&paragraph(one));
    }
    output(context, &text)
}

fn is_meant(key: &config::Key, name: &str) -> bool {
    key.name == name || key.full_name() == name
}

/// Refuses a name that is no key, in words that help.
fn check_name(name: &str) -> Result<()> {
    if KEYS.iter().any(|key| is_meant(key, name)) {
        return Ok(());
    }
    if config::is_upstreams(name.rsplit('.').next().unwrap_or(name)) {
        return Err(Error::refused(format!("{name:?} is a key of upstream Kata that this version does not carry out")));
    }
    let alike: Vec<String> = KEYS.iter().filter(|key| is_alike(key.name, name)).map(config::Key::full_name).collect();
    let hint = match &alike[..] {
        [] => "`kata-runtime config explain` lists all".to_owned(),
        alike => format!("did you mean {}?", alike.join(" or ")),
    };
    Err(Error::refused(format!("there is no key {name:?}; {hint}")))
}

/// Whether one name has most of the other in it.
fn is_alike(key: &str, name: &str) -> bool {
    let name = name.rsplit('.').next().unwrap_or(name);
    let common = key.bytes().zip(name.bytes()).take_while(|(one, other)| one == other).count();
    (!name.is_empty() && key.contains(name)) || common * 3 >= key.len() * 2
}

fn show<'a>(config: &Config, one: &'a Explained) -> Shown<'a> {
    Shown {
        key: one.key.full_name(),
        value: one.value.as_deref(),
        found: if one.value.is_none() { found(config, one.key.name) } else { None },
        origin: &one.origin,
        meaning: plain(one.key.meaning),
        values: plain(one.key.values),
        default: plain(one.key.default),
        annotation: &one.annotation,
    }
}

/// What is used where nothing is written.
fn found(config: &Config, name: &str) -> Option<String> {
    let guest = config.qemu.locate_guest().ok()?;
    let arch = Arch::of_kernel(&guest.kernel).ok().or(Arch::HOST)?;
    let path = match (name, guest.image) {
        ("path", _) => sandbox::plan::locate_vmm(config, arch).ok()?,
        ("kernel", _) => guest.kernel,
        ("initrd", GuestImage::Initrd(path)) | ("image", GuestImage::Disk { path, .. }) => path,
        _ => return None,
    };
    Some(path.display().to_string())
}

fn paragraph(one: &Shown<'_>) -> String {
    let value = match (one.value, &one.found) {
        (Some(value), _) => value.to_owned(),
        (None, Some(found)) => format!("(unset; found: {found})"),
        (None, None) => "(unset)".to_owned(),
    };
    let annotation = match one.annotation {
        Annotation::Allowed(name) => format!("a pod may set it by {name}"),
        Annotation::NotNamed(_) => "not a pod's to set: enable_annotations does not name it".to_owned(),
        Annotation::Never => "never a pod's to set".to_owned(),
    };
    format!(
        "\n{} = {value}\n    from: {}\n    meaning: {}\n    values: {}\n    default: {}\n    annotation: {annotation}\n",
        one.key, one.origin, one.meaning, one.values, one.default
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_name_is_answered_with_the_right_one() {
        check_name("default_vcpus").unwrap();
        check_name("agent.kata.dial_timeout").unwrap();
        let refusal = |name| check_name(name).unwrap_err().chain();
        assert!(
            refusal("default_vcpu").contains("did you mean hypervisor.qemu.default_vcpus"),
            "{}",
            refusal("default_vcpu")
        );
        assert!(refusal("runtime.experimental").contains("upstream"));
        assert!(refusal("qqq").contains("lists all") && refusal("").contains("lists all"));
    }

    #[test]
    fn a_paragraph_says_all_there_is() {
        let config = Config::default();
        let all = config.explain().unwrap();
        let one = all.iter().find(|one| one.key.name == "dial_timeout").unwrap();
        assert_eq!(
            paragraph(&show(&config, one)),
            "\nagent.kata.dial_timeout = 60\n    from: default\n    meaning: how long the agent may take until it has answered\n    \
             values: seconds: 1 to 3600\n    default: 60\n    annotation: not a pod's to set: enable_annotations does not name it\n"
        );
    }
}
