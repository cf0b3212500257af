//! `version`.

/// The version of the OCI runtime specification.
pub(crate) const OCI: &str = oci_spec::runtime::VERSION;

/// What is printed, in the lines that Docker looks for.
pub(crate) fn text() -> String {
    let mut text = format!("kata-runtime version {}\n", env!("CARGO_PKG_VERSION"));
    if let Some(commit) = option_env!("KATA_COMMIT") {
        text.push_str(&format!("commit: {commit}\n"));
    }
    text.push_str(&format!("spec: {}\n", OCI));
    text
}
