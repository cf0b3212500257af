//! What executes the guest's code: decided before a machine is started, by trying.

use std::{
    fs,
    io::Write,
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::Path,
};

use crate::{Arch, Error, Result, kvm};

/// What shall execute the guest's code.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Accelerator {
    /// KVM if a probe shows that it works, else TCG with a warning.
    #[default]
    Auto,
    /// KVM, or an error.
    Kvm,
    /// QEMU's TCG, which emulates the processor: slow, but it works everywhere.
    Tcg,
}

/// What [`choose_accelerator`] found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    /// KVM is used; otherwise TCG.
    pub kvm: bool,
    /// Something the user should be told, once per command: why the guest is slow, and what would help.
    pub warning: Option<String>,
}

/// Where it is probed.
const DEVICE: &str = "/dev/kvm";

/// Name, in the directory for the cache, of the file that remembers the outcome.
const CACHE: &str = "kvm-probe";

/// Decides between KVM and TCG for a guest of an architecture: another than the host's can only be emulated.
///
/// Opening `/dev/kvm` proves little: hosts exist where it opens and every real guest dies. So a guest of a few instructions is
/// run in a process of its own, which takes a few milliseconds and at most three seconds where KVM hangs. Unless it may pass, like a lack of permission, the outcome is kept in the file `kvm-probe` of `cache_dir`
/// and holds until the host boots again or the device is made anew; a directory that does not exist or cannot be
/// written to only means that the next call probes again. Only root's files should be in that directory: whoever can
/// write there can deny KVM to others.
///
/// Blocks; safe in a process with threads.
///
/// # Errors
/// [`Error::NoKvm`] if `wanted` is [`Accelerator::Kvm`] and it does not work; on an architecture without such a guest, if the device
/// cannot be opened.
pub fn choose_accelerator(wanted: Accelerator, guest: Arch, cache_dir: &Path) -> Result<Choice> {
    if wanted == Accelerator::Tcg {
        return Ok(Choice { kvm: false, warning: None });
    }
    if !guest.is_host() {
        let reason = format!("the guest kernel is for {guest}, this host's processor is {}", std::env::consts::ARCH);
        return match wanted {
            Accelerator::Kvm => Err(Error::NoKvm { reason }),
            _ => Ok(Choice { kvm: false, warning: Some(foreign_warning(&reason)) }),
        };
    }
    if wanted == Accelerator::Kvm && !kvm::CAN_BE_TRIED {
        let opened = fs::OpenOptions::new().read(true).write(true).open(DEVICE);
        let failed = |error| Error::NoKvm { reason: format!("{DEVICE} cannot be opened ({error})") };
        return opened.map(|_device| Choice { kvm: true, warning: None }).map_err(failed);
    }
    match (kvm_works(cache_dir), wanted) {
        (Ok(()), _) => Ok(Choice { kvm: true, warning: None }),
        (Err(reason), Accelerator::Kvm) => Err(Error::NoKvm { reason }),
        (Err(reason), _) => Ok(Choice { kvm: false, warning: Some(warning(&reason)) }),
    }
}

fn foreign_warning(reason: &str) -> String {
    format!(
        "{reason}: it is emulated, which is many times slower. Set accelerator to \"tcg\" to emulate without this warning"
    )
}

/// What an administrator can do where KVM does not work.
pub fn kvm_remedy() -> &'static str {
    match fs::OpenOptions::new().read(true).write(true).open(DEVICE) {
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
            "Give this user the device (usermod --append --groups kvm USER, and log in anew)"
        }
        _ => {
            "On a machine of its own, enable virtualisation in the firmware and load kvm_intel or kvm_amd; in a virtual machine, nested \
             virtualisation must be enabled outside"
        }
    }
}

fn warning(reason: &str) -> String {
    let remedy = kvm_remedy();
    format!(
        "KVM cannot be used: {reason}. The guest's processor is emulated instead, which is many times slower. {remedy}. Set accelerator to \
         \"tcg\" to emulate without this warning"
    )
}

fn kvm_works(cache_dir: &Path) -> std::result::Result<(), String> {
    let device = fs::metadata(DEVICE).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => format!("{DEVICE} does not exist"),
        _ => format!("{DEVICE} cannot be looked at ({error})"),
    })?;
    let Ok(boot) = fs::read_to_string("/proc/sys/kernel/random/boot_id") else {
        return kvm::probe().map_err(|problem| problem.reason);
    };
    let key = format!("{} {:x}:{}", boot.trim(), device.rdev(), device.ino());
    let cache = cache_dir.join(CACHE);
    if let Some(known) = recall(&cache, &key) {
        return known;
    }
    let outcome = kvm::probe();
    let lasting = outcome.as_ref().map_or_else(|problem| problem.lasting, |()| true);
    let outcome = outcome.map_err(|problem| problem.reason);
    if lasting {
        // A cache that cannot be written costs time, nothing else.
        let _slower = remember(&cache, &key, &outcome);
    }
    outcome
}

/// What the cache says about this boot and device.
fn recall(cache: &Path, key: &str) -> Option<std::result::Result<(), String>> {
    let text = fs::read_to_string(cache).ok()?;
    let mut lines = text.lines();
    (lines.next()? == key).then_some(())?;
    match lines.next()? {
        "works" => Some(Ok(())),
        reason => Some(Err(reason.to_owned())),
    }
}

/// Replaces the cache at once, so that nobody reads half of it.
fn remember(cache: &Path, key: &str, outcome: &std::result::Result<(), String>) -> std::io::Result<()> {
    let outcome = outcome.as_ref().err().map_or("works", String::as_str);
    let new = cache.with_extension(std::process::id().to_string());
    // A leftover of a process with the same number.
    let _ = fs::remove_file(&new);
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
    let written = file.write_all(format!("{key}\n{outcome}\n").as_bytes()).and_then(|()| fs::rename(&new, cache));
    if written.is_err() {
        fs::remove_file(&new)?;
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_outcome_is_remembered_for_one_boot() {
        let dir = std::env::temp_dir().join(format!("hypervisor-accelerator-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let cache = dir.join(CACHE);
        assert_eq!(recall(&cache, "boot 1"), None);
        remember(&cache, "boot 1", &Err("it is slow (very)".into())).unwrap();
        assert_eq!(recall(&cache, "boot 1"), Some(Err("it is slow (very)".into())));
        assert_eq!(recall(&cache, "boot 2"), None);
        remember(&cache, "boot 2", &Ok(())).unwrap();
        assert_eq!(recall(&cache, "boot 2"), Some(Ok(())));
        for broken in ["", "boot 2", "boot 2\n"] {
            fs::write(&cache, broken).unwrap();
            assert_eq!(recall(&cache, "boot 2"), None, "{broken:?}");
        }
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 1, "nothing is left behind");
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn the_choice_agrees_with_the_probe() {
        let nowhere = Path::new("/nonexistent");
        assert_eq!(
            choose_accelerator(Accelerator::Tcg, Arch::HOST.unwrap(), nowhere).unwrap(),
            Choice { kvm: false, warning: None }
        );
        let choice = choose_accelerator(Accelerator::Auto, Arch::HOST.unwrap(), nowhere).unwrap();
        assert_eq!(choice.kvm, choice.warning.is_none());
        match choose_accelerator(Accelerator::Kvm, Arch::HOST.unwrap(), nowhere) {
            Ok(found) => assert!(found.kvm && choice.kvm),
            Err(error) => {
                eprintln!("{error}");
                assert!(choice.warning.unwrap().contains("KVM cannot be used: "));
            }
        }
    }

    #[test]
    fn a_foreign_guest_is_emulated_and_the_user_told() {
        let foreign = if Arch::Aarch64.is_host() { Arch::X86_64 } else { Arch::Aarch64 };
        let nowhere = Path::new("/nonexistent");
        let choice = choose_accelerator(Accelerator::Auto, foreign, nowhere).unwrap();
        let warning = choice.warning.unwrap();
        assert!(!choice.kvm && warning.starts_with(&format!("the guest kernel is for {foreign}, ")), "{warning}");
        assert_eq!(choose_accelerator(Accelerator::Tcg, foreign, nowhere).unwrap().warning, None);
        let error = choose_accelerator(Accelerator::Kvm, foreign, nowhere).unwrap_err().to_string();
        assert!(error.starts_with("KVM cannot be used: the guest kernel is for "), "{error}");
    }
}
