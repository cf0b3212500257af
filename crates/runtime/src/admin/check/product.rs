//! Checks of what is installed and configured.

use std::{
    env,
    path::{Path, PathBuf},
};

use config::{GuestImage, Internetworking};
use hypervisor::Arch;

use super::{Subject, Verdict};
use crate::rootless;

const CORRECT_IT: &str =
    "correct the file where the message says; `kata-runtime config explain` says what each key means";
const INSTALL_GUEST: &str =
    "install the package with the guest's files, or set `kernel` and `initrd` or `image` in [hypervisor.qemu]";

pub(super) fn privilege(_: &Subject) -> Verdict {
    match rootless::check() {
        Ok(()) if rootless::is_root_of_host() => Verdict::works("root"),
        Ok(()) => Verdict::works("root of a user namespace"),
        Err(error) => Verdict::fails(error.chain(), "run this as root, or by `podman unshare`"),
    }
}

pub(super) fn configuration(subject: &Subject) -> Verdict {
    match &subject.config {
        Ok(config) if config.sources.is_empty() => Verdict::works("there is none, and none is needed"),
        Ok(config) => {
            let files: Vec<String> = config.sources.iter().map(|path| path.display().to_string()).collect();
            Verdict::works(files.join(", "))
        }
        Err(problem) => Verdict::fails(problem.clone(), CORRECT_IT),
    }
}

/// The architecture of guests, by their kernel's file.
fn arch(subject: &Subject) -> Option<Arch> {
    let kernel = subject.config().qemu.locate_guest().ok().and_then(|guest| Arch::of_kernel(&guest.kernel).ok());
    kernel.or(Arch::HOST)
}

pub(super) fn qemu(subject: &Subject) -> Verdict {
    let Some(arch) = arch(subject) else { return super::host::cpu(subject) };
    let remedy = format!("install QEMU (Debian: {}), or set `path` in [hypervisor.qemu]", arch.qemu_package());
    let program = match sandbox::plan::locate_vmm(&subject.config(), arch) {
        Ok(program) => program,
        Err(error) => return Verdict::fails(error.to_string(), remedy),
    };
    let at = program.display();
    match hypervisor::qemu::version(&program) {
        Ok((version, is_supported)) if is_supported => Verdict::works(format!("{at}, version {version}")),
        Ok((version, _)) => Verdict::fails(format!("{at} is version {version}, which is too old"), remedy),
        Err(error) => Verdict::fails(format!("{at} does not run: {}", sandbox::chain(&error)), remedy),
    }
}

pub(super) fn guest_kernel(subject: &Subject) -> Verdict {
    let guest = match subject.config().qemu.locate_guest() {
        Ok(guest) => guest,
        Err(error) => return Verdict::fails(error.to_string(), INSTALL_GUEST),
    };
    match Arch::of_kernel(&guest.kernel) {
        Ok(arch) => Verdict::works(format!("{} for {arch}", guest.kernel.display())),
        Err(error) => Verdict::fails(sandbox::chain(&error), INSTALL_GUEST),
    }
}

pub(super) fn guest_image(subject: &Subject) -> Verdict {
    let config = subject.config();
    let guest = match config.qemu.locate_guest() {
        Ok(guest) => guest,
        Err(error) => return Verdict::fails(error.to_string(), INSTALL_GUEST),
    };
    let found = match &guest.image {
        GuestImage::Initrd(path) => format!("{}, an initrd", path.display()),
        GuestImage::Disk { path, verity: None } => format!("{}, a disk", path.display()),
        GuestImage::Disk { path, verity: Some(_) } => format!("{}, a disk whose blocks are checked", path.display()),
    };
    // Whether they go together is found out as before a start.
    match sandbox::plan::Plan::new(&config, &mut |_| {}) {
        Ok(_) => Verdict::works(found),
        Err(error) => Verdict::fails(error.chain(), "correct what the message names"),
    }
}

pub(super) fn virtio_fs(_: &Subject) -> Verdict {
    match sandbox::trial::file_server() {
        Ok(()) => Verdict::works("the file server started in its jail and ended"),
        Err(error) => Verdict::fails(error.chain(), "run this as root; in a container, it must be privileged"),
    }
}

pub(super) fn passt(subject: &Subject) -> Verdict {
    if subject.config().runtime.internetworking_model != Internetworking::Passt {
        return Verdict::works("not asked for");
    }
    match in_path("passt") {
        Some(path) => Verdict::works(path.display().to_string()),
        None => Verdict::lacks(
            "there is none in PATH: a container with the host's network is not started",
            "install passt (Debian: passt), or set internetworking_model to \"tcfilter\"",
        ),
    }
}

pub(super) fn shim(_: &Subject) -> Verdict {
    let itself = env::current_exe().ok();
    match in_path(::shim::ROLE) {
        Some(path) if path.canonicalize().ok() == itself.as_ref().and_then(|path| path.canonicalize().ok()) => {
            Verdict::works(path.display().to_string())
        }
        Some(path) => Verdict::lacks(
            format!("{} is another program than this one", path.display()),
            "make both of one version, or mind which one containerd's PATH has",
        ),
        None => Verdict::lacks(
            format!("there is no {} in PATH: containerd and Docker do not find it", ::shim::ROLE),
            "link it to this program in a directory of containerd's PATH, or name its path in containerd's configuration",
        ),
    }
}

fn in_path(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    env::split_paths(&path)
        .filter(|directory| directory.is_absolute())
        .map(|d| d.join(name))
        .find(|path| Path::is_file(path))
}
