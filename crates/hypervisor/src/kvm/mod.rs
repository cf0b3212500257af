//! Whether KVM works, found out by running a guest.

#[cfg(target_arch = "x86_64")]
pub(crate) mod guest;
#[cfg(target_arch = "x86_64")]
mod run;

/// What is wrong with KVM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Problem {
    /// The rest of a sentence about KVM.
    pub(crate) reason: String,
    /// It will be so until the host boots again. Otherwise it may depend on who asks, or pass.
    pub(crate) lasting: bool,
}

/// Tries it.
#[cfg(target_arch = "x86_64")]
pub(crate) fn probe() -> Result<(), Problem> {
    run::probe()
}

/// Without a guest to run, nothing can be promised; but whoever knows better may ask for it ([`CAN_BE_TRIED`]).
#[cfg(not(target_arch = "x86_64"))]
pub(crate) fn probe() -> Result<(), Problem> {
    let reason = "on this architecture it is not tried out; set accelerator to \"kvm\" if it is known to work";
    Err(Problem { reason: reason.into(), lasting: true })
}

/// Whether [`probe`] finds out anything.
pub(crate) const CAN_BE_TRIED: bool = cfg!(target_arch = "x86_64");
