//! What a machine is made of, found and checked before anything is started.

use std::{
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

use config::{Config, GuestImage};
use hypervisor::Arch;
use serde::{Deserialize, Serialize};

use crate::{Result, identity::vmm_uid, steps};

/// Where what is true for the whole host until it boots again is remembered.
pub(crate) const CACHE_DIR: &str = "/run/kata-containers";

/// A machine that can be started, as it travels from who checks to who starts.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Plan {
    /// The configuration.
    pub config: Config,
    pub(crate) vmm: PathBuf,
    pub(crate) kernel: PathBuf,
    pub(crate) image: GuestImage,
    pub(crate) kvm: bool,
    pub(crate) arch: Arch,
}

impl Plan {
    /// Finds the files, decides between KVM and emulation, and refuses what cannot be booted. `warn` is told what the user should know but
    /// what is no error, in whole sentences.
    ///
    /// # Errors
    /// [`Error::Config`](crate::Error::Config) and [`Error::Hypervisor`](crate::Error::Hypervisor).
    pub fn new(config: &Config, warn: &mut dyn FnMut(&str)) -> Result<Self> {
        let guest = config.qemu.locate_guest()?;
        let arch = Arch::of_kernel(&guest.kernel)?;
        let kvm = choose_accelerator(config, arch, warn)?;
        let vmm = config.qemu.locate_program(arch.qemu_program(), arch.qemu_package(), kvm)?;
        let plan = Self { config: config.clone(), vmm, kernel: guest.kernel, image: guest.image, kvm, arch };
        hypervisor::Hypervisor::check(&plan.driver(), &plan.kernel, &plan.guest_image(), vmm_uid())?;
        Ok(plan)
    }

    /// Has this process tell its steps from now on, if the configuration says to whom (`debug_steps`).
    pub fn observe(&self) {
        steps::observe(self.config.runtime.debug_steps.as_deref());
    }

    /// The guest's architecture.
    pub fn arch(&self) -> Arch {
        self.arch
    }

    pub(crate) fn driver(&self) -> hypervisor::Qemu {
        hypervisor::Qemu::new(hypervisor::QemuConfig {
            path: self.vmm.clone(),
            machine_type: self.config.qemu.machine_type.clone(),
            accelerator: if self.kvm { hypervisor::Accelerator::Kvm } else { hypervisor::Accelerator::Tcg },
        })
    }

    pub(crate) fn guest_image(&self) -> hypervisor::GuestImage {
        match self.image.clone() {
            GuestImage::Initrd(path) => hypervisor::GuestImage::Initrd(path),
            GuestImage::Disk { path, verity } => hypervisor::GuestImage::Disk { path, verity },
        }
    }

    pub(crate) fn kernel_params(&self) -> String {
        let mut params = self.config.qemu.kernel_params.clone();
        if self.config.agent.enable_debug {
            params.push_str(" agent.log=debug");
        }
        if self.config.agent.debug_console_enabled {
            params.push_str(" agent.debug_console");
        }
        params
    }
}

/// The QEMU that guests of this architecture would run in now, for showing: which one is taken depends on whether KVM works. Leaves nothing behind.
///
/// # Errors
/// [`config::Error::Missing`] if there is none.
pub fn locate_vmm(config: &Config, arch: Arch) -> std::result::Result<PathBuf, config::Error> {
    // Nowhere to remember it, so that it is tried anew. Where KVM is demanded and does not work, that is told elsewhere.
    let choice = hypervisor::choose_accelerator(wanted(config), arch, Path::new("/nonexistent"));
    let kvm = choice.is_ok_and(|choice| choice.kvm);
    config.qemu.locate_program(arch.qemu_program(), arch.qemu_package(), kvm)
}

fn wanted(config: &Config) -> hypervisor::Accelerator {
    match config.qemu.accelerator {
        config::Accelerator::Auto => hypervisor::Accelerator::Auto,
        config::Accelerator::Kvm => hypervisor::Accelerator::Kvm,
        config::Accelerator::Tcg => hypervisor::Accelerator::Tcg,
    }
}

fn choose_accelerator(config: &Config, guest: Arch, warn: &mut dyn FnMut(&str)) -> Result<bool> {
    // Without the directory each start probes anew, which is all that it costs.
    let _ = std::fs::DirBuilder::new().mode(0o700).recursive(true).create(CACHE_DIR);
    let choice = hypervisor::choose_accelerator(wanted(config), guest, Path::new(CACHE_DIR))?;
    if let Some(warning) = choice.warning {
        warn(&warning);
    }
    Ok(choice.kvm)
}
