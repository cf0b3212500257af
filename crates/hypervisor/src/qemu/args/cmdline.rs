//! The guest kernel's command line.

use super::{MoreVcpus, model::Tuning};
use crate::{VmConfig, image::Disk, qemu::inventory::Inventory};

/// Memory that comes later holds what can be moved, as far as there is enough for the rest, so that it can be taken away again.
const MOVABLE: &str = "memory_hotplug.online_policy=auto-movable";

/// A kernel with these drivers built in makes interfaces of theirs at its start, which no container expects to find.
const NO_INTERFACES: &str = "dummy.numdummies=0 ifb.numifbs=0";

/// Everything the kernel is told; the user's part is last, so that it wins.
pub(super) fn kernel_command_line(
    inventory: &Inventory,
    tuning: &Tuning,
    vm: &VmConfig,
    disk: Option<&Disk>,
) -> String {
    let model = inventory.model;
    let waiting = match inventory.more_vcpus {
        // Who asks for the others writes to sysfs.
        MoreVcpus::Waiting if vm.max_vcpus > vm.vcpus => format!("maxcpus={}", vm.vcpus),
        MoreVcpus::Waiting | MoreVcpus::Plugged => String::new(),
    };
    let root = disk.map(Disk::kernel_params).unwrap_or_default();
    let console = format!("console={}", model.console);
    let words = [
        console.as_str(),
        // A panic ends the machine at once, so that it is noticed.
        "panic=-1",
        // Each line on the serial port costs an exit per byte.
        if vm.debug { "ignore_loglevel" } else { "quiet" },
        // The kernel's cryptography need not prove itself to every guest: 130 ms.
        "cryptomgr.notests",
        NO_INTERFACES,
        model.kernel_params,
        &waiting,
        if vm.max_memory_mib > vm.memory_mib { MOVABLE } else { "" },
        tuning.kernel_params,
        &root,
        vm.kernel_params.trim(),
    ];
    words.into_iter().filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::{super::tests::vm, *};
    use crate::{Accelerator, Arch, qemu::args::Model};

    fn line(arch: Arch, machine_type: Option<&str>, accelerator: Accelerator, vm: &VmConfig) -> String {
        let model = Model::find(arch, machine_type).unwrap();
        let inventory = Inventory::new(model, accelerator, vm).unwrap();
        kernel_command_line(&inventory, &model.tuning(accelerator, vm.vcpus), vm, None)
    }

    #[test]
    fn what_may_come_is_told() {
        let vm = VmConfig { max_vcpus: 4, max_memory_mib: 1024, ..vm(false) };
        let text = line(Arch::X86_64, None, Accelerator::Tcg, &vm);
        assert!(text.contains(" maxcpus=1 memory_hotplug.online_policy=auto-movable "), "{text}");
        let text = line(Arch::X86_64, None, Accelerator::Kvm, &vm);
        assert!(!text.contains("maxcpus") && text.contains("memory_hotplug"), "{text}");
    }

    #[test]
    fn the_users_kernel_parameters_come_last() {
        let vm = vm(false);
        let text = line(Arch::X86_64, None, Accelerator::Tcg, &vm);
        assert!(text.ends_with(" agent.log=debug") && text.contains(" quiet "), "{text}");
        let text = line(Arch::X86_64, None, Accelerator::Tcg, &VmConfig { debug: true, ..vm });
        assert!(text.contains(" ignore_loglevel ") && !text.contains("quiet"), "{text}");
    }

    #[test]
    fn machines_differ() {
        let vm = VmConfig { kernel_params: String::new(), ..vm(false) };
        for (arch, machine, expected) in [
            (
                Arch::X86_64,
                None,
                "console=ttyS0 panic=-1 quiet cryptomgr.notests dummy.numdummies=0 ifb.numifbs=0 percpu_alloc=page \
                 no_timer_check noreplace-smp nolapic_timer",
            ),
            (
                Arch::X86_64,
                Some("microvm"),
                "console=ttyS0 panic=-1 quiet cryptomgr.notests dummy.numdummies=0 ifb.numifbs=0 reboot=t percpu_alloc=page \
                 no_timer_check noreplace-smp nolapic_timer",
            ),
            (
                Arch::Aarch64,
                None,
                "console=ttyAMA0 panic=-1 quiet cryptomgr.notests dummy.numdummies=0 ifb.numifbs=0 earlycon",
            ),
        ] {
            assert_eq!(line(arch, machine, Accelerator::Tcg, &vm), expected);
        }
    }
}
