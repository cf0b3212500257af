//! What the guests of the tests boot from.

use std::{fs, path::PathBuf};

fn configured() -> config::Qemu {
    config::Config::load(None).unwrap().qemu
}

/// Whether the guest kernel is one of ours, with everything built in: others boot neither from a disk nor on a microvm. Says so on standard
/// error if not.
pub fn needs_monolithic_kernel() -> bool {
    let kernel = configured().kernel.unwrap_or_else(|| share("vmlinux.container"));
    let ours = release(&fs::read(kernel).unwrap()).is_some_and(|release| release.ends_with("-kata"));
    if !ours {
        eprintln!("skipped: needs a guest kernel with everything built in (`make kernel`)");
    }
    ours
}

/// The guest image that is a disk, if there is one. Says so on standard error if not.
pub fn disk_image() -> Option<PathBuf> {
    let image = configured().image.unwrap_or_else(|| share("kata-containers.img"));
    let found = image.exists().then_some(image);
    if found.is_none() {
        eprintln!("skipped: needs a guest image that is a disk, in the stage or named by KATA_CONF_FILE");
    }
    found
}

fn share(name: &str) -> PathBuf {
    crate::stage().join("share/kata-containers").join(name)
}

/// What `uname -r` will say, from the banner in an uncompressed kernel.
fn release(kernel: &[u8]) -> Option<String> {
    const BANNER: &[u8] = b"Linux version ";
    let at = kernel.windows(BANNER.len()).position(|window| window == BANNER)? + BANNER.len();
    let release = kernel[at..].split(|byte| *byte == b' ').next()?;
    Some(String::from_utf8_lossy(release).into_owned())
}
