//! What is meant to differ between a container and a virtual machine.

use serde_json::Value;

/// A difference that is meant.
#[derive(Debug)]
pub struct Difference {
    /// The case: `ctr::events`.
    pub case: &'static str,
    /// What of its observation is not compared, as a JSON pointer.
    pub pointer: &'static str,
    /// Why it differs.
    pub reason: &'static str,
}

/// All of them.
pub const DIFFERENCES: &[Difference] = &[Difference {
    case: "ctr::life::figures",
    pointer: "/kinds",
    reason: "ours tells of the guest's interfaces, too: the host cannot see them in the container's network namespace",
}];

/// Removes from an observation what is not compared.
pub(crate) fn leave_out(case: &str, observed: &mut Value) {
    for difference in DIFFERENCES.iter().filter(|difference| difference.case == case) {
        if let Some(value) = observed.pointer_mut(difference.pointer) {
            *value = Value::from(difference.reason);
        }
    }
}
