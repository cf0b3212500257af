//! Options of the runtime, as containerd passes them with `-info`, `start` and Create.
//!
//! `runtimeoptions.v1.Options` is the form for runtimes that containerd does not know; `ConfigPath` names a configuration file and `ConfigBody`
//! is what containerd's own configuration says beside it. ctr, nerdctl and Docker send the options of runc unless told otherwise: those are tolerated as long as they ask for nothing.

use std::path::PathBuf;

use containerd_shim_protos::{
    protobuf::{CodedInputStream, Message, rt::WireType, well_known_types::any::Any},
    shim::oci,
};

use crate::{Error, Result};

/// The options that this runtime has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Options {
    /// A configuration file to use instead of the node's.
    pub config_path: Option<PathBuf>,
    /// The caller manages cgroups by systemd, so a container's `cgroupsPath` is in its form.
    pub systemd_cgroup: bool,
    /// The control group of the shim's own process; the machine stays in the pod's.
    pub shim_cgroup: Option<PathBuf>,
}

impl Options {
    /// From an encoded `Any`; nothing at all is no options.
    ///
    /// # Errors
    /// [`Error::Invalid`] with the option.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        if bytes.is_empty() {
            return Ok(Self::default());
        }
        Self::from_any(&Any::parse_from_bytes(bytes).map_err(|e| unreadable("google.protobuf.Any", &e))?)
    }

    /// What containerd's CRI finds in the table `options` of a runtime without ConfigPath, as TOML.
    fn of_containerd(&mut self, table: &str) -> Result<()> {
        for line in table.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
            let (key, value) = line.split_once('=').map_or((line, ""), |(key, value)| (key.trim(), value.trim()));
            match (key, value) {
                ("SystemdCgroup", "true" | "false") => self.systemd_cgroup = value == "true",
                ("ConfigPath" | "TypeUrl" | "ShimCgroup", "\"\"" | "''") => {}
                ("ShimCgroup", _) => self.shim_cgroup = group(value.trim_matches(['"', '\'']))?,
                _ => {
                    return Err(Error::Invalid(format!(
                        "runtime option {key:?} in containerd's configuration is not known; put the runtime's own \
                         configuration into a file and name it by ConfigPath"
                    )));
                }
            }
        }
        Ok(())
    }

    /// From an `Any`.
    ///
    /// # Errors
    /// [`Error::Invalid`] with the option.
    pub fn from_any(any: &Any) -> Result<Self> {
        let name = any.type_url.rsplit('/').next().unwrap_or_default();
        match name {
            "" if any.value.is_empty() => Ok(Self::default()),
            "runtimeoptions.v1.Options" | "cri.runtimeoptions.v1.Options" => own(&any.value),
            "containerd.runc.v1.Options" => of_runc(&any.value),
            "containerd.linux.runc.CreateOptions" => of_linux(&any.value),
            // containerd 1.7's CRI passes the pod's configuration to CreateSandbox in this place.
            "runtime.v1.PodSandboxConfig" => Ok(Self::default()),
            other => Err(Error::Invalid(format!(
                "runtime options of type {other:?} are not known; runtimeoptions.v1.Options with ConfigPath is expected"
            ))),
        }
    }
}

fn unreadable(what: &str, error: &dyn std::fmt::Display) -> Error {
    Error::Invalid(format!("runtime options: {what} cannot be read: {error}"))
}

fn own(bytes: &[u8]) -> Result<Options> {
    let name = "runtimeoptions.v1.Options";
    let failed = |error| unreadable(name, &error);
    let mut options = Options::default();
    let mut input = CodedInputStream::from_bytes(bytes);
    while let Some(tag) = input.read_raw_tag_or_eof().map_err(failed)? {
        match (tag >> 3, WireType::new(tag & 7)) {
            // The type of what is in the file. Ours has one.
            (1, Some(WireType::LengthDelimited)) => drop(input.read_string().map_err(failed)?),
            (2, Some(WireType::LengthDelimited)) => {
                let path = input.read_string().map_err(failed)?;
                options.config_path = (!path.is_empty()).then(|| path.into());
            }
            (3, Some(WireType::LengthDelimited)) => {
                let body = input.read_bytes().map_err(failed)?;
                options.of_containerd(&String::from_utf8_lossy(&body))?;
            }
            (field, _) => {
                return Err(Error::Invalid(format!(
                    "runtime option number {field} of {name} is not known; TypeUrl and ConfigPath are"
                )));
            }
        }
    }
    if let Some(path) = options.config_path.as_ref().filter(|path| !path.is_absolute()) {
        return Err(Error::Invalid(format!("runtime option ConfigPath {path:?} is not an absolute path")));
    }
    Ok(options)
}

fn of_runc(bytes: &[u8]) -> Result<Options> {
    let name = "containerd.runc.v1.Options";
    let options = oci::Options::parse_from_bytes(bytes).map_err(|e| unreadable(name, &e))?;
    let refuse = |option: &str, why: &str| {
        Err(Error::Invalid(format!("runtime option {option} of {name} is not supported: {why}; leave it out")))
    };
    if !options.binary_name.is_empty() && options.binary_name != "runc" {
        return refuse("BinaryName", "no OCI runtime is called, the container is in a virtual machine");
    }
    if !options.criu_image_path.is_empty() || !options.criu_work_path.is_empty() {
        return refuse("CriuImagePath and CriuWorkPath", "checkpoints are not supported");
    }
    // TaskApiAddress is where containerd 2 has found the Task service of a pod that it made by the Sandbox service: here.
    // NoPivotRoot, NoNewKeyring and Root are about runc's own doings and change nothing that a container could see here.
    // IoUid and IoGid say whose a container's pipes shall be: in the guest they are always its user's.
    let shim_cgroup = group(&options.shim_cgroup)?;
    Ok(Options { systemd_cgroup: options.systemd_cgroup, shim_cgroup, ..Options::default() })
}

/// The option ShimCgroup, a path below each hierarchy.
fn group(path: &str) -> Result<Option<PathBuf>> {
    if !path.is_empty() && (!path.starts_with('/') || path.split('/').any(|part| part == "..")) {
        return Err(Error::Invalid(format!(
            "runtime option ShimCgroup is {path:?}; an absolute path without \"..\" is expected, which is taken below each hierarchy"
        )));
    }
    Ok((!path.is_empty()).then(|| path.into()))
}

/// What the clients of containerd 1.6 and 1.7 send to every runtime but runc's, `ctr run --no-pivot` for one: options of a runtime that
/// was dropped, which says the same in another form.
fn of_linux(bytes: &[u8]) -> Result<Options> {
    let name = "containerd.linux.runc.CreateOptions";
    let failed = |error| unreadable(name, &error);
    let mut options = Options::default();
    let mut input = CodedInputStream::from_bytes(bytes);
    while let Some(tag) = input.read_raw_tag_or_eof().map_err(failed)? {
        if let (9, Some(WireType::LengthDelimited)) = (tag >> 3, WireType::new(tag & 7)) {
            options.shim_cgroup = group(&input.read_string().map_err(failed)?)?;
            continue;
        }
        let asks = match WireType::new(tag & 7) {
            Some(WireType::Varint) => input.read_uint64().map_err(failed)? != 0,
            Some(WireType::LengthDelimited) => !input.read_bytes().map_err(failed)?.is_empty(),
            _ => true,
        };
        let option = match tag >> 3 {
            // NoPivotRoot, Terminal and NoNewKeyring: about runc's own doings, or said elsewhere too. IoUid and IoGid as above.
            1 | 4 | 8 | 10 | 11 => continue,
            2 => "OpenTcp",
            3 => "ExternalUnixSockets",
            5 => "FileLocks",
            6 => "EmptyNamespaces",
            7 => "CgroupsMode",
            12 => "CriuWorkPath",
            13 => "CriuImagePath",
            _ => "of a number that is not known",
        };
        if asks {
            return Err(Error::Invalid(format!("runtime option {option} of {name} is not supported; leave it out")));
        }
    }
    Ok(options)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_of_the_dropped_runtime_are_tolerated_when_they_say_nothing() {
        let name = "containerd.linux.runc.CreateOptions";
        // no_pivot_root and no_new_keyring set; io_uid 1000.
        assert_eq!(Options::from_any(&any(name, &[0x08, 1, 0x40, 1, 0x50, 0xe8, 7])).unwrap(), Options::default());
        let refused = Options::from_any(&any(name, &[0x62, 2, b'/', b'a'])).unwrap_err();
        assert!(refused.to_string().contains("CriuWorkPath"), "{refused}");
    }

    #[test]
    fn the_shim_s_cgroup_is_read_from_every_form() {
        let mut runc = oci::Options::new();
        runc.shim_cgroup = "/shims/a".into();
        let mut table = vec![0x1a, 0];
        table.extend(b"ShimCgroup = \"/shims/a\"\n");
        table[1] = u8::try_from(table.len() - 2).unwrap();
        let mut dropped = vec![0x4a, 8];
        dropped.extend(b"/shims/a");
        for (name, value) in [
            ("containerd.runc.v1.Options", runc.write_to_bytes().unwrap()),
            ("runtimeoptions.v1.Options", table),
            ("containerd.linux.runc.CreateOptions", dropped),
        ] {
            assert_eq!(Options::from_any(&any(name, &value)).unwrap().shim_cgroup, Some("/shims/a".into()), "{name}");
        }
        for bad in ["shims", "/../shims"] {
            runc.shim_cgroup = bad.into();
            let refused = Options::from_any(&any("containerd.runc.v1.Options", &runc.write_to_bytes().unwrap()));
            assert!(refused.unwrap_err().to_string().contains("ShimCgroup"), "{bad}");
        }
    }

    fn any(name: &str, value: &[u8]) -> Any {
        let mut any = Any::new();
        any.type_url = name.into();
        any.value = value.into();
        any
    }

    #[test]
    fn a_configuration_file_is_found_under_both_names() {
        let mut value = vec![0x0a, 3, b'a', b'/', b'b', 0x12, 6];
        value.extend(b"/etc/k");
        for name in ["runtimeoptions.v1.Options", "type.googleapis.com/cri.runtimeoptions.v1.Options"] {
            assert_eq!(Options::from_any(&any(name, &value)).unwrap().config_path, Some("/etc/k".into()));
        }
        let encoded = any("runtimeoptions.v1.Options", &value).write_to_bytes().unwrap();
        assert_eq!(Options::from_bytes(&encoded).unwrap().config_path, Some("/etc/k".into()));
        assert_eq!(Options::from_bytes(&[]).unwrap(), Options::default());
    }

    #[test]
    fn what_containerd_s_table_says_is_read_or_refused() {
        let own = |body: &str| {
            let mut value = vec![0x1a, body.len() as u8];
            value.extend(body.as_bytes());
            Options::from_any(&any("runtimeoptions.v1.Options", &value))
        };
        assert!(own("SystemdCgroup = true\n").unwrap().systemd_cgroup);
        assert_eq!(own("ConfigPath = ''\n").unwrap(), Options::default());
        let refused = own("Debug = true\n").unwrap_err();
        assert!(refused.to_string().contains("\"Debug\""), "{refused}");
    }

    #[test]
    fn runc_s_options_are_tolerated_when_they_say_nothing() {
        let mut options = oci::Options::new();
        options.systemd_cgroup = true;
        options.binary_name = "runc".into();
        options.io_uid = 1000;
        let name = "containerd.runc.v1.Options";
        let read = Options::from_any(&any(name, &options.write_to_bytes().unwrap())).unwrap();
        assert!(read.systemd_cgroup);
        options.binary_name = "crun".into();
        let refused = Options::from_any(&any(name, &options.write_to_bytes().unwrap())).unwrap_err();
        assert!(refused.to_string().contains("BinaryName"), "{refused}");
    }

    #[test]
    fn what_is_not_known_is_named() {
        let refused = Options::from_any(&any("example.v1.Options", b"x")).unwrap_err();
        assert!(refused.to_string().contains("example.v1.Options"), "{refused}");
        let refused = Options::from_any(&any("runtimeoptions.v1.Options", &[0x4a, 1, b'x'])).unwrap_err();
        assert!(refused.to_string().contains("number 9"), "{refused}");
        let refused = Options::from_any(&any("runtimeoptions.v1.Options", &[0x12, 1, b'x'])).unwrap_err();
        assert!(refused.to_string().contains("absolute"), "{refused}");
    }
}
