//! QEMU's machines that guests run on, as data: what differs between them is here and in [`Model::tuning`] and nowhere else.

use crate::{Accelerator, Arch, Error, Result};

/// Where disks and interfaces are plugged in that come and go while the machine runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) enum Places {
    /// Nowhere.
    None,
    /// The slots of a conventional PCI bridge, whose hot-plug is ACPI's: 7 million instructions of a boot, however many slots are
    /// used, against 1.5 million for every port of PCI Express. The guest ejects a device at once, too, instead of after five seconds.
    Bridge,
    /// A port of PCI Express each, which needs no ACPI.
    Ports,
}

/// Where virtual CPUs come from while the machine runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) enum MoreVcpus {
    /// QEMU plugs them.
    Plugged,
    /// They are there from the start, and the guest's kernel is told not to use them. Linux accepts a plugged one only if the machine
    /// says that it is KVM, and some machines have no way to plug one. Each costs 0.8 million instructions of a boot.
    Waiting,
}

/// How virtio devices are attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) enum Bus {
    /// PCI: each device is found by its slot.
    Pci,
    /// A page of memory for each device, with nothing to enumerate.
    Mmio,
}

/// The machines themselves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A PC with PCI Express.
    Q35,
    /// A PC with virtio-mmio and hardly anything else.
    Microvm,
    /// QEMU's machine for Arm.
    Virt,
}

/// How many disks and interfaces a machine takes. There is always room for as many as both limits allow, unless `all` is less.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) struct Room {
    pub(in super::super) disks: u32,
    pub(in super::super) nics: u32,
    pub(in super::super) all: u32,
}

/// The slots of the root bus that the machine and our other devices leave, or those of the bridge but the channel's.
const PCI_ROOM: Room = Room { disks: 18, nics: 8, all: 26 };

/// A microvm has eight transports. The channel has one, and the shared directory and the image may have one each.
const MICROVM_ROOM: Room = Room { disks: 5, nics: 5, all: 5 };

/// One machine of QEMU.
#[derive(Debug)]
pub(crate) struct Model {
    pub(super) kind: Kind,
    /// QEMU's name.
    pub(in super::super) name: &'static str,
    /// What the names of its versions start with; empty if it has none.
    versions: &'static str,
    arch: Arch,
    pub(in super::super) bus: Bus,
    pub(in super::super) places: Places,
    /// Virtual CPUs can be plugged by ACPI.
    plugs_vcpus: bool,
    /// Disks and interfaces there is room for, of those that are there from the start and those that come.
    pub(in super::super) room: Room,
    /// What Linux calls the serial port.
    pub(super) console: &'static str,
    /// Whether it is booted by [`super::firmware`]; otherwise QEMU itself puts the kernel in place.
    pub(super) firmware: bool,
    /// Options that switch off what no guest of ours uses.
    pub(super) options: &'static str,
    /// What its kernels must be told, whatever executes them.
    pub(super) kernel_params: &'static str,
}

/// Options of every machine: no guest memory in core dumps, and none of the host's work on merging equal pages.
const COMMON: &str = "dump-guest-core=off,mem-merge=off";

/// What each CPU has of its own is allotted by pages. Otherwise a guest with one CPU allots it by 2 MiB, and keeps an array of 4 MiB
/// to know which control group has what of them.
const PC_MEMORY: &str = "percpu_alloc=page";

/// The first of an architecture is its default.
const MODELS: [Model; 3] = [
    Model {
        kind: Kind::Q35,
        name: "q35",
        versions: "pc-q35-",
        arch: Arch::X86_64,
        bus: Bus::Pci,
        places: Places::Bridge,
        plugs_vcpus: true,
        room: PCI_ROOM,
        console: "ttyS0",
        firmware: true,
        // The PIT and the PIC stay: kernels calibrate their clocks by them.
        options: "sata=off,smbus=off,usb=off,vmport=off,graphics=off,i8042=off,smm=off",
        kernel_params: PC_MEMORY,
    },
    Model {
        kind: Kind::Microvm,
        name: "microvm",
        versions: "",
        arch: Arch::X86_64,
        bus: Bus::Mmio,
        places: Places::None,
        plugs_vcpus: false,
        room: MICROVM_ROOM,
        console: "ttyS0",
        firmware: true,
        // Without ACPI there is no bytecode to interpret; QEMU then names the devices on the kernel's command line.
        options: "acpi=off,auto-kernel-cmdline=on,isa-serial=on",
        // The only reset that this machine has is a triple fault.
        kernel_params: "reboot=t percpu_alloc=page",
    },
    Model {
        kind: Kind::Virt,
        name: "virt",
        versions: "virt-",
        arch: Arch::Aarch64,
        bus: Bus::Pci,
        places: Places::Ports,
        plugs_vcpus: false,
        room: PCI_ROOM,
        console: "ttyAMA0",
        firmware: false,
        // QEMU describes the machine in a device tree as well, which kernels read faster than ACPI's tables.
        options: "acpi=off",
        // The serial port's driver comes late; until then the kernel writes to it as the device tree says, so that every panic is seen.
        kernel_params: "earlycon",
    },
];

/// The emulated processor. Five levels of page tables (`la57`) are one more to walk for every miss of the emulated TLB. `erms`,
/// `fsrm` and what function 7's further leaves announce are string instructions that are fast in hardware only: emulated, each
/// byte is an instruction, and eight bytes of an ordinary loop are three. 15 million instructions.
const TCG_X86_64: &str = "max,la57=off,erms=off,fsrm=off,level-func7=0";

/// `no_timer_check`: that the timer's interrupt arrives needs no proof by waiting for ten of them, which is 12 million; KVM's guests know
/// that by themselves. It fails, too, where the emulator gets no processor time meanwhile. `noreplace-smp`: a lone CPU's kernel would
/// take the lock prefixes out of its code and put them back when a second one is plugged; emulated, the prefix costs nothing. 6 million.
const TCG_PC: &str = "no_timer_check noreplace-smp";

/// The same where another timer than the local APIC's is used.
const TCG_PC_ONE_CPU: &str = "no_timer_check noreplace-smp nolapic_timer";

/// What depends on what executes the guest's code as well.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Tuning {
    /// Further options of the machine.
    pub(super) machine: &'static str,
    /// The processor.
    pub(super) cpu: &'static str,
    /// Further kernel parameters.
    pub(super) kernel_params: &'static str,
    /// The kernel is to be told the rate of its time stamp counter, which is that of the host's.
    ///
    /// It would measure it against a timer. Where the emulator gets no processor time between the two, the result is wrong, by a factor of
    /// 14 on a busy machine once, and all the guest's deadlines with it.
    pub(super) told_tsc: bool,
}

impl Model {
    /// The machine for a guest, by the name it is given in the configuration.
    ///
    /// # Errors
    /// [`Error::Setting`] for a machine that the other arguments do not fit, or that is another architecture's.
    pub(crate) fn find(arch: Arch, machine_type: Option<&str>) -> Result<&'static Model> {
        let mut of_arch = MODELS.iter().filter(|model| model.arch == arch);
        let Some(name) = machine_type else {
            return of_arch.next().ok_or_else(|| Error::Setting {
                setting: "kernel",
                value: arch.name().into(),
                expected: format!("guests are {} only", architectures()),
            });
        };
        of_arch.clone().find(|model| model.is_called(name)).ok_or_else(|| {
            let expected: Vec<String> = of_arch.map(Model::names).collect();
            let expected = format!("{} was expected for an {arch} kernel", expected.join(", or "));
            Error::Setting { setting: "machine_type", value: name.into(), expected }
        })
    }

    /// The machine that is meant before a kernel is looked at, as far as can be told: by its name, or by the program's.
    pub(crate) fn meant(program: &std::path::Path, machine_type: Option<&str>) -> &'static Model {
        let program = program.file_name().unwrap_or_default().to_string_lossy();
        let mut models = MODELS.iter();
        let found = match machine_type {
            Some(name) => models.find(|model| model.is_called(name)),
            None => models.find(|model| program.starts_with(model.arch.qemu_program())),
        };
        found.unwrap_or(&MODELS[0])
    }

    /// Whose guests it is for.
    pub(crate) fn arch(&self) -> Arch {
        self.arch
    }

    fn is_called(&self, name: &str) -> bool {
        let version = |c: char| c.is_ascii_alphanumeric() || ".-_".contains(c);
        let is_version = || {
            !self.versions.is_empty() && name.strip_prefix(self.versions).is_some_and(|rest| rest.chars().all(version))
        };
        name == self.name || is_version()
    }

    fn names(&self) -> String {
        match self.versions {
            "" => self.name.into(),
            versions => format!("{} or one of its versions ({versions}...)", self.name),
        }
    }

    /// Where virtual CPUs come from while the machine runs.
    pub(in super::super) fn more_vcpus(&self, accelerator: Accelerator) -> MoreVcpus {
        match accelerator {
            Accelerator::Kvm if self.plugs_vcpus => MoreVcpus::Plugged,
            _ => MoreVcpus::Waiting,
        }
    }

    /// Everything after the name in `-machine`, in the order of who decides.
    pub(super) fn machine(&self, machine_type: Option<&str>, tuning: &Tuning) -> String {
        [machine_type.unwrap_or(self.name), COMMON, self.options, tuning.machine]
            .into_iter()
            .filter(|part| !part.is_empty())
            .collect::<Vec<_>>()
            .join(",")
    }

    /// What the accelerator asks for. The figures are guest instructions, as `kata-bench boot` counts them, of a boot with 2048 MiB.
    pub(super) fn tuning(&self, accelerator: Accelerator, vcpus: u32) -> Tuning {
        use Accelerator::{Auto, Kvm, Tcg};
        let cpu = match (self.arch, accelerator) {
            (_, Kvm) => "host",
            (Arch::X86_64, Tcg) => TCG_X86_64,
            // The architecture's own cipher for signing pointers takes longer to emulate than all the rest of the kernel.
            (Arch::Aarch64, Tcg) => "max,pauth-impdef=on",
            _ => "max",
        };
        let (machine, kernel_params) = match (self.kind, accelerator) {
            // Under TCG there is no TSC deadline timer, and the kernel would measure the local APIC's timer for 100 ms. These
            // machines have another one, of known frequency; it interrupts one CPU only. CPUs that are plugged later are
            // told the time by the first one, which is slower, but not as slow as to measure.
            (Kind::Q35, Tcg) if vcpus == 1 => ("hpet=on", TCG_PC_ONE_CPU),
            (Kind::Microvm, Tcg) if vcpus == 1 => ("", TCG_PC_ONE_CPU),
            (Kind::Q35, Tcg) => ("hpet=off", TCG_PC),
            (Kind::Q35, _) => ("hpet=off", ""),
            (Kind::Microvm, Tcg) => ("", TCG_PC),
            (Kind::Microvm, _) => ("", ""),
            (Kind::Virt, Tcg) => ("gic-version=3", ""),
            (Kind::Virt, Kvm) => ("gic-version=host", ""),
            (Kind::Virt, Auto) => ("gic-version=max", ""),
        };
        let told_tsc = (self.arch, accelerator) == (Arch::X86_64, Tcg);
        Tuning { machine, cpu, kernel_params, told_tsc }
    }
}

/// `x86_64 or aarch64`.
fn architectures() -> String {
    let mut names: Vec<&str> = MODELS.iter().map(|model| model.arch.name()).collect();
    names.dedup();
    names.join(" or ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_is_found_by_architecture_and_name() {
        for (arch, name, kind) in [
            (Arch::X86_64, None, Kind::Q35),
            (Arch::X86_64, Some("q35"), Kind::Q35),
            (Arch::X86_64, Some("pc-q35-7.2"), Kind::Q35),
            (Arch::X86_64, Some("microvm"), Kind::Microvm),
            (Arch::Aarch64, None, Kind::Virt),
            (Arch::Aarch64, Some("virt-7.2"), Kind::Virt),
        ] {
            assert_eq!(Model::find(arch, name).unwrap().kind, kind, "{arch} {name:?}");
        }
    }

    #[test]
    fn the_machine_that_is_meant_is_known_before_the_kernel() {
        for (program, name, kind) in [
            ("/usr/bin/qemu-system-x86_64", None, Kind::Q35),
            ("/usr/bin/qemu-system-aarch64", None, Kind::Virt),
            ("/tmp/bin/qemu", None, Kind::Q35),
            ("/usr/bin/qemu-system-x86_64", Some("microvm"), Kind::Microvm),
            ("/usr/bin/qemu-system-aarch64", Some("virt-7.2"), Kind::Virt),
            ("/usr/bin/qemu-system-x86_64", Some("nonsense"), Kind::Q35),
        ] {
            assert_eq!(Model::meant(std::path::Path::new(program), name).kind, kind, "{program} {name:?}");
        }
    }

    #[test]
    fn other_machines_are_refused() {
        for bad in ["", "pc", "microvm-7.2", "q35,accel=kvm", "pc-q35-7.2,usb=on", "none", "virt"] {
            let error = Model::find(Arch::X86_64, Some(bad)).unwrap_err().to_string();
            let expected = "but q35 or one of its versions (pc-q35-...), or microvm was expected for an x86_64 kernel";
            assert_eq!(error, format!("machine_type is {bad:?}, {expected}"));
        }
        let error = Model::find(Arch::Aarch64, Some("q35")).unwrap_err().to_string();
        assert!(error.contains("virt or one of its versions (virt-...) was expected for an aarch64 kernel"), "{error}");
        let error = Model::find(Arch::S390x, None).unwrap_err().to_string();
        assert_eq!(error, "kernel is \"s390x\", but guests are x86_64 or aarch64 only");
    }
}
