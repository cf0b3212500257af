//! What the CRI says of a pod when containerd makes it by the Sandbox service: `runtime.v1.PodSandboxConfig`, of which a few fields matter.
//! (Kubernetes, `cri-api/pkg/apis/runtime/v1/api.proto`.)

use std::{collections::HashMap, path::Path};

use containerd_shim_protos::protobuf::{self, CodedInputStream, rt, well_known_types::any::Any};
use oci_spec::runtime::{Linux, Spec};

use crate::{Error, Result};

/// Type of the message.
const NAME: &str = "runtime.v1.PodSandboxConfig";

/// The configuration that a pod without a bundle has.
///
/// # Errors
/// [`Error::Invalid`] when it cannot be decoded.
pub(crate) fn spec(sandbox: &str, options: Option<&Any>) -> Result<Spec> {
    let mut pod = Pod::default();
    if let Some(any) = options.filter(|any| any.type_url.ends_with(NAME)) {
        pod.read(&any.value).map_err(|error| Error::Invalid(format!("options of the sandbox ({NAME}): {error}")))?;
    }
    let mut linux = Linux::default();
    linux.set_sysctl(Some(pod.sysctls));
    let parent = (!pod.cgroup_parent.is_empty()).then(|| match pod.cgroup_parent.ends_with(".slice") {
        // As containerd names a container of its CRI in systemd's form.
        true => {
            let slice = Path::new(&pod.cgroup_parent).file_name().unwrap_or_default().to_string_lossy().into_owned();
            format!("{slice}:cri-containerd:{sandbox}").into()
        }
        false => Path::new(&pod.cgroup_parent).join(sandbox),
    });
    linux.set_cgroups_path(parent);
    let mut spec = Spec::default();
    spec.set_hostname(Some(pod.hostname)).set_annotations(Some(pod.annotations)).set_linux(Some(linux));
    Ok(spec)
}

#[derive(Default)]
struct Pod {
    hostname: String,
    annotations: HashMap<String, String>,
    cgroup_parent: String,
    sysctls: HashMap<String, String>,
}

impl Pod {
    fn read(&mut self, bytes: &[u8]) -> protobuf::Result<()> {
        fields(bytes, |number, tag, input| {
            match number {
                2 => self.hostname = input.read_string()?,
                7 => self.annotations.extend([entry(&input.read_bytes()?)?]),
                8 => self.read_linux(&input.read_bytes()?)?,
                _ => rt::skip_field_for_tag(tag, input)?,
            }
            Ok(())
        })
    }

    /// `LinuxPodSandboxConfig`.
    fn read_linux(&mut self, bytes: &[u8]) -> protobuf::Result<()> {
        fields(bytes, |number, tag, input| {
            match number {
                1 => self.cgroup_parent = input.read_string()?,
                3 => self.sysctls.extend([entry(&input.read_bytes()?)?]),
                _ => rt::skip_field_for_tag(tag, input)?,
            }
            Ok(())
        })
    }
}

/// An entry of a map from text to text.
fn entry(bytes: &[u8]) -> protobuf::Result<(String, String)> {
    let mut entry = (String::new(), String::new());
    fields(bytes, |number, tag, input| {
        match number {
            1 => entry.0 = input.read_string()?,
            2 => entry.1 = input.read_string()?,
            _ => rt::skip_field_for_tag(tag, input)?,
        }
        Ok(())
    })?;
    Ok(entry)
}

/// Goes through the fields of a message.
fn fields(
    bytes: &[u8],
    mut each: impl FnMut(u32, u32, &mut CodedInputStream<'_>) -> protobuf::Result<()>,
) -> protobuf::Result<()> {
    let mut input = CodedInputStream::from_bytes(bytes);
    while let Some(tag) = input.read_raw_tag_or_eof()? {
        each(tag >> 3, tag, &mut input)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A field with bytes.
    fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
        [&[number << 3 | 2, u8::try_from(bytes.len()).unwrap()], bytes].concat()
    }

    #[test]
    fn what_matters_is_read_and_the_rest_is_passed_over() {
        let pair = |key: &str, value: &str| [field(1, key.as_bytes()), field(2, value.as_bytes())].concat();
        let linux = [field(1, b"/kubepods/pod1"), field(2, b"\x08\x01"), field(3, &pair("net.x", "1"))].concat();
        let value = [field(1, b""), field(2, b"host"), field(7, &pair("a", "b")), field(8, &linux)].concat();
        let any = Any { type_url: NAME.into(), value, ..Any::default() };
        let spec = spec("s1", Some(&any)).unwrap();
        assert_eq!(spec.hostname().as_deref(), Some("host"));
        assert_eq!(spec.annotations().as_ref().unwrap()["a"], "b");
        let linux = spec.linux().as_ref().unwrap();
        assert_eq!(linux.cgroups_path().as_deref(), Some(Path::new("/kubepods/pod1/s1")));
        assert_eq!(linux.sysctl().as_ref().unwrap()["net.x"], "1");
        let broken = Any { type_url: NAME.into(), value: vec![0x12, 9, b'x'], ..Any::default() };
        assert!(super::spec("s1", Some(&broken)).unwrap_err().chain().contains(NAME));
        assert_eq!(super::spec("s1", None).unwrap().hostname().as_deref(), Some(""));
    }
}
