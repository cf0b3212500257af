//! `-info` and `-v`: what this runtime is (containerd 2).

use containerd_shim_protos::{
    protobuf::Message,
    types::introspection::{RuntimeInfo, RuntimeVersion},
};

use crate::{Error, Result, options::Options};

/// The runtime's name.
pub(crate) const NAME: &str = "io.containerd.kata.v2";

/// What `-info` prints, given what containerd writes to it: the options of the runtime, or nothing.
pub(crate) fn info(options: &[u8]) -> Result<Vec<u8>> {
    Options::from_bytes(options)?;
    let mut info = RuntimeInfo::new();
    info.name = NAME.into();
    let mut version = RuntimeVersion::new();
    version.version = env!("CARGO_PKG_VERSION").into();
    info.version = Some(version).into();
    info.write_to_bytes().map_err(|e| Error::io("encode the description of the runtime", std::io::Error::other(e)))
}

/// What `-v` prints.
pub(crate) fn version(called: &str) -> String {
    format!("{called}:\n  Version:  {}\n", env!("CARGO_PKG_VERSION"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn info_is_a_message_that_containerd_reads() {
        let info = RuntimeInfo::parse_from_bytes(&info(&[]).unwrap()).unwrap();
        assert_eq!(info.name, "io.containerd.kata.v2");
        assert_eq!(info.version.version, env!("CARGO_PKG_VERSION"));
    }
}
