//! The process that `exec` starts: the container's own, changed by what the command line says, or one from a file.

use std::{fs, path::Path, str::FromStr};

use oci_spec::runtime::{Capabilities, Capability, LinuxCapabilities, Process};
use sandbox::bundle;

use crate::{Error, Result};

/// What the command line says.
#[derive(Debug, Clone, Default)]
pub(crate) struct Changes {
    /// Program and arguments.
    pub args: Vec<String>,
    /// Working directory.
    pub cwd: Option<String>,
    /// Further variables, `NAME=VALUE`.
    pub env: Vec<String>,
    /// Whether it gets a terminal.
    pub tty: bool,
    /// `UID[:GID]`.
    pub user: Option<String>,
    /// Further groups.
    pub additional_gids: Vec<i64>,
    /// Further capabilities, `CAP_…`.
    pub caps: Vec<String>,
    /// Whether it may never gain privileges.
    pub no_new_privs: bool,
}

/// Reads a process from a file.
///
/// # Errors
/// The file cannot be read or does not hold a process.
pub(crate) fn from_file(path: &Path) -> Result<Process> {
    let bytes = fs::read(path).map_err(|e| Error::io(format!("open {}", path.display()), e))?;
    let malformed = |e: serde_json::Error| Error::io(format!("read the process in {}", path.display()), e);
    let mut process: serde_json::Value = serde_json::from_slice(&bytes).map_err(malformed)?;
    bundle::complete_process(&mut process);
    let process: Process = serde_json::from_value(process).map_err(malformed)?;
    bundle::check_process(path, "process", &process)?;
    Ok(process)
}

/// Makes one from the container's own in `bundle` and the changes.
///
/// # Errors
/// What the command line says makes no sense. `warn` is told what is left out.
pub(crate) fn from_bundle(
    bundle: &Path,
    file: Option<&Path>,
    changes: Changes,
    warn: &mut dyn FnMut(&str),
) -> Result<Process> {
    if changes.args.is_empty() {
        return Err(Error::refused("process args cannot be empty"));
    }
    let bundle::Read { file, spec, .. } = bundle::read_spec(bundle, file)?;
    let Some(mut process) = spec.process().clone() else {
        return Err(Error::refused(format!("{}: process: is missing", file.display())));
    };
    apply(&mut process, changes, warn)?;
    if !process.cwd().is_absolute() {
        return Err(Error::refused("Cwd must be an absolute path"));
    }
    bundle::check_process(&file, "process", &process)?;
    Ok(process)
}

fn apply(process: &mut Process, changes: Changes, warn: &mut dyn FnMut(&str)) -> Result<()> {
    process.set_args(Some(changes.args));
    if let Some(cwd) = changes.cwd {
        process.set_cwd(cwd.into());
    }
    if !changes.env.is_empty() {
        let mut env = process.env().clone().unwrap_or_default();
        env.extend(changes.env);
        process.set_env(Some(env));
    }
    process.set_terminal(Some(changes.tty));
    process.set_console_size(None);
    if changes.no_new_privs {
        process.set_no_new_privileges(Some(true));
    }
    let mut user = process.user().clone();
    if let Some(text) = &changes.user {
        let (uid, gid) = parse_user(text)?;
        user.set_uid(uid);
        if let Some(gid) = gid {
            user.set_gid(gid);
        }
    }
    if !changes.additional_gids.is_empty() {
        let mut gids = user.additional_gids().clone().unwrap_or_default();
        for gid in changes.additional_gids {
            let number = u32::try_from(gid)
                .map_err(|_| Error::refused(format!("additional-gids must be a positive number {gid}")))?;
            gids.push(number);
        }
        user.set_additional_gids(Some(gids));
    }
    process.set_user(user);
    if !changes.caps.is_empty() {
        let capabilities = process.capabilities().clone().unwrap_or_default();
        process.set_capabilities(Some(with_capabilities(capabilities, &changes.caps, warn)));
    }
    Ok(())
}

/// Adds capabilities, as runc does: not to the inheritable and ambient sets, which would hand them on to other programs. Unknown ones are left out.
fn with_capabilities(mut sets: LinuxCapabilities, names: &[String], warn: &mut dyn FnMut(&str)) -> LinuxCapabilities {
    let known = |name: &&String| name.strip_prefix("CAP_").and_then(|rest| Capability::from_str(rest).ok());
    let unknown: Vec<&str> = names.iter().filter(|name| known(name).is_none()).map(String::as_str).collect();
    if !unknown.is_empty() {
        warn(&format!("ignoring unknown or unavailable capabilities: [{}]", unknown.join(" ")));
    }
    let added: Capabilities = names.iter().filter_map(|name| known(&name)).collect();
    let extended = |set: &Option<Capabilities>| Some(set.iter().flatten().chain(&added).copied().collect());
    let (bounding, effective) = (extended(sets.bounding()), extended(sets.effective()));
    let permitted = extended(sets.permitted());
    sets.set_bounding(bounding);
    sets.set_effective(effective);
    sets.set_permitted(permitted);
    sets
}

/// `UID[:GID]`.
fn parse_user(text: &str) -> Result<(u32, Option<u32>)> {
    let number = |what: &str, text: &str| {
        text.parse::<u32>().map_err(|_| {
            Error::refused(format!(
                "parsing {text} as int for {what} failed: a number from 0 to {} is expected",
                u32::MAX
            ))
        })
    };
    match text.split_once(':') {
        // runc looks at the group first.
        Some((uid, gid)) => {
            let gid = number("gid", gid)?;
            Ok((number("uid", uid)?, Some(gid)))
        }
        None => Ok((number("uid", text)?, None)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process() -> Process {
        serde_json::from_value(serde_json::json!({
            "cwd": "/", "args": ["sh"], "user": {"uid": 0, "gid": 0, "additionalGids": [5]}, "terminal": true,
            "env": ["A=1"], "capabilities": {"bounding": ["CAP_KILL"]},
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 10, "soft": 10}],
        }))
        .unwrap()
    }

    #[test]
    fn users_are_numbers() {
        assert_eq!(parse_user("1").unwrap(), (1, None));
        assert_eq!(parse_user("1:2").unwrap(), (1, Some(2)));
        for (text, words) in
            [("abc", "parsing abc as int for uid failed"), ("1:b", "parsing b as int for gid failed"), ("-1", "uid")]
        {
            assert!(parse_user(text).unwrap_err().to_string().contains(words));
        }
    }

    #[test]
    fn changes_add_to_the_containers_process() {
        let mut process = process();
        let changes = Changes {
            args: vec!["id".into()],
            cwd: Some("/tmp".into()),
            env: vec!["B=2".into()],
            user: Some("7:8".into()),
            additional_gids: vec![9],
            caps: vec!["CAP_NET_RAW".into(), "cap_foo".into()],
            ..Changes::default()
        };
        let mut warnings = Vec::new();
        apply(&mut process, changes, &mut |warning| warnings.push(warning.to_owned())).unwrap();
        assert_eq!(process.args().as_deref().unwrap(), ["id"]);
        assert_eq!(process.env().as_deref().unwrap(), ["A=1", "B=2"]);
        assert_eq!((process.user().uid(), process.user().gid()), (7, 8));
        assert_eq!(process.user().additional_gids().as_deref().unwrap(), [5, 9]);
        assert_eq!(process.terminal(), Some(false));
        assert!(process.rlimits().is_some());
        let bounding = process.capabilities().as_ref().unwrap().bounding().clone().unwrap();
        assert!(bounding.contains(&Capability::Kill) && bounding.contains(&Capability::NetRaw));
        let sets = process.capabilities().as_ref().unwrap();
        assert!(sets.permitted().as_ref().unwrap().contains(&Capability::NetRaw));
        let handed_on = [sets.inheritable(), sets.ambient()];
        assert!(handed_on.iter().all(|set| !set.iter().flatten().any(|capability| *capability == Capability::NetRaw)));
        assert_eq!(warnings, ["ignoring unknown or unavailable capabilities: [cap_foo]"]);
    }

    #[test]
    fn a_negative_group_is_refused_in_runcs_words() {
        let changes = Changes { additional_gids: vec![-3], ..Changes::default() };
        let error = apply(&mut process(), changes, &mut |_| ()).unwrap_err();
        assert_eq!(error.to_string(), "additional-gids must be a positive number -3");
    }

    #[test]
    fn a_file_must_hold_a_whole_process() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("p.json");
        for (text, words) in
            [("{", "p.json"), ("{\"args\":[\"a\"],\"cwd\":\"x\",\"user\":{\"uid\":0,\"gid\":0}}", "cwd")]
        {
            std::fs::write(&path, text).unwrap();
            let message = from_file(&path).unwrap_err().chain();
            assert!(message.contains(words), "{message}");
        }
        assert!(from_file(&dir.path().join("none")).unwrap_err().chain().contains("none"));
    }
}
