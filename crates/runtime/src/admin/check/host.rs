//! Checks of the machine and its kernel.

use std::{
    fs,
    path::{Path, PathBuf},
};

use config::Accelerator;
use hypervisor::Arch;

use super::{Subject, Verdict};

/// The oldest kernel that has every system call that is used: mount_setattr(2) is the youngest.
const OLDEST_KERNEL: (u32, u32) = (5, 12);

fn read(path: &str) -> Option<String> {
    fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

pub(super) fn cpu(_: &Subject) -> Verdict {
    match Arch::HOST {
        Some(arch @ (Arch::X86_64 | Arch::Aarch64)) => Verdict::works(arch.name()),
        _ => Verdict::fails(
            format!("{} is no architecture that guests can have", std::env::consts::ARCH),
            "use a machine with an x86_64 or aarch64 processor",
        ),
    }
}

pub(super) fn kernel(_: &Subject) -> Verdict {
    kernel_of(&rustix::system::uname().release().to_string_lossy())
}

fn kernel_of(release: &str) -> Verdict {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|number| number.parse::<u32>().ok());
    let version = numbers.next().flatten().zip(numbers.next().flatten());
    match version {
        Some(version) if version < OLDEST_KERNEL => Verdict::fails(
            format!("Linux {release}"),
            format!("install Linux {}.{} or newer", OLDEST_KERNEL.0, OLDEST_KERNEL.1),
        ),
        _ => Verdict::works(format!("Linux {release}")),
    }
}

pub(super) fn kvm(subject: &Subject) -> Verdict {
    let wanted = subject.config().qemu.accelerator;
    let Some(arch) = Arch::HOST else { return cpu(subject) };
    // Nowhere, so that it is tried anew.
    let tried = hypervisor::choose_accelerator(hypervisor::Accelerator::Kvm, arch, Path::new("/nonexistent"));
    match (tried, wanted) {
        (Ok(_), Accelerator::Tcg) => {
            Verdict::works("a small guest ran on /dev/kvm, but `accelerator` is \"tcg\": guests are emulated")
        }
        (Ok(_), _) => Verdict::works("a small guest ran on /dev/kvm"),
        (Err(hypervisor::Error::NoKvm { reason }), Accelerator::Kvm) => {
            Verdict::fails(reason, hypervisor::kvm_remedy())
        }
        (Err(hypervisor::Error::NoKvm { reason }), Accelerator::Tcg) => {
            Verdict::works(format!("not asked for, since `accelerator` is \"tcg\" ({reason})"))
        }
        (Err(hypervisor::Error::NoKvm { reason }), Accelerator::Auto) => {
            Verdict::lacks(format!("{reason}; guests are emulated, many times slower"), hypervisor::kvm_remedy())
        }
        (Err(other), _) => Verdict::lacks(sandbox::chain(&other), hypervisor::kvm_remedy()),
    }
}

pub(super) fn memory(subject: &Subject) -> Verdict {
    let mib = subject.config().qemu.default_memory;
    match meminfo("MemAvailable") {
        Some(available) => memory_of(available / 1024, mib.into()),
        None => Verdict::lacks("/proc/meminfo does not say how much is available", "mount /proc"),
    }
}

/// A figure of `/proc/meminfo`, KiB.
pub(crate) fn meminfo(name: &str) -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    line.trim().strip_suffix("kB")?.trim().parse().ok()
}

fn memory_of(available: u64, wanted: u64) -> Verdict {
    let found = format!("{available} MiB are available, a guest may use {wanted} MiB");
    let least = u64::from(config::MIN_MEMORY_MIB);
    if available < least {
        Verdict::fails(found, format!("free memory: no guest boots in less than {least} MiB"))
    } else if available < wanted {
        Verdict::lacks(found, "free memory, or lower `default_memory` in [hypervisor.qemu]")
    } else {
        Verdict::works(found)
    }
}

pub(super) fn cgroups(_: &Subject) -> Verdict {
    match sandbox::cgroup::mounted() {
        Ok(mounted) if mounted.is_empty() => Verdict::lacks(
            "no hierarchy is mounted: sandboxes are not accounted for",
            "mount -t cgroup2 none /sys/fs/cgroup, or boot with systemd",
        ),
        Ok(mounted) => Verdict::works(describe(&mounted)),
        Err(error) => Verdict::lacks(error.chain(), "mount /proc"),
    }
}

/// Where version 1 has controllers, version 2 has none.
fn describe(mounted: &[(PathBuf, Vec<String>)]) -> String {
    let old: Vec<String> =
        mounted.iter().filter(|(_, controllers)| !controllers.is_empty()).map(|(_, names)| names.join(",")).collect();
    match mounted.first() {
        Some((at, _)) if old.is_empty() => format!("version 2 at {}", at.display()),
        _ => format!("version 1: {}", old.join(" ")),
    }
}

pub(super) fn seccomp(_: &Subject) -> Verdict {
    match read("/proc/sys/kernel/seccomp/actions_avail") {
        Some(actions) if actions.split(' ').any(|action| action == "kill_process") => {
            Verdict::works("filters are there")
        }
        _ => Verdict::fails(
            "the kernel has no seccomp filters, by which QEMU and the file server are confined",
            "use a kernel with CONFIG_SECCOMP_FILTER",
        ),
    }
}

pub(super) fn tap(_: &Subject) -> Verdict {
    match network::try_mirror() {
        Ok(()) => Verdict::works("a tap was made, and frames redirected to it"),
        Err(error) => Verdict::lacks(
            format!("{}: containers have no network", sandbox::chain(&error)),
            "load the modules tun, sch_ingress, cls_u32 and act_mirred; /dev/net/tun must be there",
        ),
    }
}

pub(super) fn vhost_net(_: &Subject) -> Verdict {
    match fs::OpenOptions::new().read(true).write(true).open("/dev/vhost-net") {
        Ok(_) => Verdict::works("/dev/vhost-net opens"),
        Err(error) => Verdict::lacks(
            format!("/dev/vhost-net: {error}: QEMU carries guests' frames, which is slower"),
            "modprobe vhost_net",
        ),
    }
}

pub(super) fn vhost_vsock(_: &Subject) -> Verdict {
    let there =
        if Path::new("/dev/vhost-vsock").exists() { "is there, but not used" } else { "is not there and not needed" };
    Verdict::works(format!("/dev/vhost-vsock {there}: the agent is reached by virtio-serial"))
}

pub(super) fn users(_: &Subject) -> Verdict {
    let most = read("/proc/sys/user/max_user_namespaces").and_then(|number| number.parse::<u64>().ok());
    let clone = read("/proc/sys/kernel/unprivileged_userns_clone");
    match (most, clone.as_deref()) {
        (None | Some(0), _) => Verdict::lacks(
            "there are no user namespaces: only root runs containers",
            "sysctl user.max_user_namespaces=10000, with a kernel that has CONFIG_USER_NS",
        ),
        (_, Some("0")) => {
            Verdict::lacks("only root may make user namespaces", "sysctl kernel.unprivileged_userns_clone=1")
        }
        _ => Verdict::works("users may make them"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_kernel_is_refused() {
        for release in ["6.1.0-27-amd64", "5.12.0", "5.15.0-rc1", "7.3"] {
            assert!(matches!(kernel_of(release), Verdict::Works(_)), "{release}");
        }
        for release in ["5.11.9", "4.19.0-27-amd64", "3.10"] {
            assert!(matches!(kernel_of(release), Verdict::Fails { .. }), "{release}");
        }
    }

    #[test]
    fn a_host_with_both_versions_accounts_by_the_first() {
        let at = |path: &str, names: &[&str]| (path.into(), names.iter().map(ToString::to_string).collect());
        assert_eq!(describe(&[at("/c", &[])]), "version 2 at /c");
        assert_eq!(
            describe(&[at("/u", &[]), at("/m", &["memory"]), at("/x", &["cpu", "cpuacct"])]),
            "version 1: memory cpu,cpuacct"
        );
    }

    #[test]
    fn memory_for_one_guest_is_asked_for() {
        assert!(matches!(memory_of(4096, 2048), Verdict::Works(_)));
        assert!(matches!(memory_of(1024, 2048), Verdict::Lacks { .. }));
        assert!(matches!(memory_of(32, 2048), Verdict::Fails { .. }));
        assert!(meminfo("MemTotal").unwrap() > 0 && meminfo("Nonsense").is_none());
    }
}
