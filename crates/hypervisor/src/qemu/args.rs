//! QEMU's command line and the kernel's, with the reason for each argument.
//!
//! Only what is needed or was measured to help is here. The figures are processor time of a boot to init with a distribution's kernel
//! under TCG, which is 1.17 s with the arguments below but without those that have a figure.

use std::path::{Path, PathBuf};

use super::QemuConfig;
use crate::{Accelerator, Error, Result, VmConfig};

/// Numbers of the descriptors that QEMU inherits.
#[derive(Debug, Clone, Copy)]
pub struct Descriptors {
    /// QMP.
    pub qmp: i32,
    /// The guest's serial console.
    pub console: i32,
    /// The channel to the agent.
    pub channel: i32,
    /// The kernel, opened for reading.
    pub kernel: i32,
    /// The RAM disk, opened for reading.
    pub initrd: i32,
    /// The vhost-user connection of the shared directory.
    pub shared_fs: Option<i32>,
}

/// The machine unless told otherwise.
const MACHINE: &str = "q35";

/// Parts of a q35 that no guest of ours uses. The PIT and the PIC stay: kernels calibrate their clocks by them.
const MACHINE_WITHOUT: &str =
    "sata=off,smbus=off,usb=off,vmport=off,graphics=off,i8042=off,smm=off,dump-guest-core=off,mem-merge=off";

/// QEMU's seccomp filter, as tight as it gets.
const SANDBOX: &str = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny";

/// Host memory for translated code, MiB. It is touched as far as it is used; booting uses 40.
const TRANSLATION_MIB: u32 = 128;

/// Small firmware that does nothing but find the kernel; 30 ms and a good part of the code SeaBIOS brings are saved. Part
/// of QEMU's data files, but packaged separately by some distributions.
const FIRMWARE: &str = "share/qemu/qboot.rom";

/// Queues of the virtio-serial device: port 0 is reserved for a console, port 1 is the channel.
const SERIAL_PORTS: u32 = 2;

/// Descriptors in the queue of the shared directory: virtio's limit, so that reads of many pages are one request.
const FS_QUEUE: u32 = 1024;

/// Refuses a machine type that the other arguments do not fit.
pub(super) fn check_machine_type(machine_type: Option<&str>) -> Result<()> {
    let name = machine_type.unwrap_or(MACHINE);
    let version = |c: char| c.is_ascii_alphanumeric() || ".-_".contains(c);
    if name == MACHINE || name.strip_prefix("pc-q35-").is_some_and(|rest| rest.chars().all(version)) {
        return Ok(());
    }
    let expected = "q35 or one of its versions (pc-q35-...) was expected".into();
    Err(Error::Setting { setting: "machine_type", value: name.into(), expected })
}

/// Everything after the program's name.
pub(super) fn arguments(qemu: &QemuConfig, vm: &VmConfig, fds: &Descriptors) -> Vec<String> {
    let mut args = Arguments::default();
    // Devices and settings come from here and nowhere else.
    args.flag("-nodefaults").flag("-no-user-config").pair("-display", "none");
    // A guest that restarts itself has ended.
    args.flag("-no-reboot");
    args.pair("-sandbox", SANDBOX);
    // What ps shows.
    args.pair("-name", "kata");
    args.machine(qemu, vm);
    if let Some(firmware) = firmware(&qemu.path) {
        args.pair("-bios", firmware.display());
    }
    args.pair("-kernel", format_args!("/proc/self/fd/{}", fds.kernel));
    args.pair("-initrd", format_args!("/proc/self/fd/{}", fds.initrd));
    args.pair("-append", kernel_command_line(qemu.accelerator, vm));

    args.socket("qmp", fds.qmp).pair("-mon", "chardev=qmp,mode=control");
    // A plain serial port works from the kernel's first line to its last, so that every panic is seen.
    args.socket("console", fds.console).pair("-serial", "chardev:console");
    args.socket("channel", fds.channel);
    args.device(format_args!("virtio-serial-pci,id=serial,disable-legacy=on,max_ports={SERIAL_PORTS}"));
    args.device(format_args!("virtserialport,bus=serial.0,nr=1,chardev=channel,name={}", agent_api::CHANNEL_PORT));
    if let (Some(fs), Some(fd)) = (&vm.shared_fs, fds.shared_fs) {
        args.socket("fs", fd);
        args.device(format_args!("vhost-user-fs-pci,chardev=fs,tag={},queue-size={FS_QUEUE}", fs.tag));
    }
    args.0
}

/// Whether QEMU may end up emulating the processor. For [`Accelerator::Auto`] the arguments suit both.
fn surely_tcg(accelerator: Accelerator) -> bool {
    accelerator == Accelerator::Tcg
}

/// Whether the guest's only clock interrupt is to be the HPET's: under TCG there is no TSC deadline timer, and the kernel
/// spends 100 ms measuring the local APIC's timer; the HPET states its frequency. It interrupts one CPU only.
fn hpet_timer(accelerator: Accelerator, vcpus: u32) -> bool {
    surely_tcg(accelerator) && vcpus == 1
}

/// The kernel's command line.
fn kernel_command_line(accelerator: Accelerator, vm: &VmConfig) -> String {
    // A panic ends the machine at once, so that it is noticed.
    let mut line = String::from("console=ttyS0 panic=-1");
    // Each line on the serial port costs an exit per byte.
    line.push_str(if vm.debug { " ignore_loglevel" } else { " quiet" });
    // The kernel's cryptography need not prove itself to every guest: 130 ms.
    line.push_str(" cryptomgr.notests");
    if hpet_timer(accelerator, vm.vcpus) {
        // 100 ms.
        line.push_str(" nolapic_timer");
    }
    if !vm.kernel_params.trim().is_empty() {
        line.push(' ');
        line.push_str(vm.kernel_params.trim());
    }
    line
}

/// The firmware that belongs to this QEMU, if it is installed where QEMU's own build puts it.
fn firmware(program: &Path) -> Option<PathBuf> {
    let file = program.parent()?.parent()?.join(FIRMWARE);
    // A comma in an option's value would have to be doubled; nobody installs QEMU there.
    (file.is_file() && !file.to_string_lossy().contains(',')).then_some(file)
}

/// A command line in the making.
#[derive(Default)]
struct Arguments(Vec<String>);

impl Arguments {
    fn flag(&mut self, name: &str) -> &mut Self {
        self.0.push(name.into());
        self
    }

    fn pair(&mut self, name: &str, value: impl ToString) -> &mut Self {
        self.0.push(name.into());
        self.0.push(value.to_string());
        self
    }

    fn socket(&mut self, id: &str, fd: i32) -> &mut Self {
        self.pair("-chardev", format_args!("socket,id={id},fd={fd}"))
    }

    fn device(&mut self, device: impl ToString) -> &mut Self {
        self.pair("-device", device)
    }

    fn machine(&mut self, qemu: &QemuConfig, vm: &VmConfig) {
        let name = qemu.machine_type.as_deref().unwrap_or(MACHINE);
        let hpet = if hpet_timer(qemu.accelerator, vm.vcpus) { "on" } else { "off" };
        let mut machine = format!("{name},{MACHINE_WITHOUT},hpet={hpet}");
        if vm.shared_fs.is_some() {
            // The server of the shared directory reads and writes the guest's memory, so it must be a file both can map.
            let size = vm.memory_mib;
            self.pair("-object", format_args!("memory-backend-memfd,id=memory,size={size}M,share=on"));
            machine.push_str(",memory-backend=memory");
        }
        self.pair("-machine", machine);
        self.pair("-m", format_args!("{}M", vm.memory_mib)).pair("-smp", vm.vcpus);
        match qemu.accelerator {
            // Five levels of page tables are one more to walk for every miss of the emulated TLB.
            Accelerator::Tcg => {
                self.pair("-accel", format_args!("tcg,tb-size={TRANSLATION_MIB}")).pair("-cpu", "max,la57=off")
            }
            Accelerator::Kvm => self.pair("-accel", "kvm").pair("-cpu", "host"),
            Accelerator::Auto => self
                .pair("-accel", "kvm")
                .pair("-accel", format_args!("tcg,tb-size={TRANSLATION_MIB}"))
                .pair("-cpu", "max"),
        };
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;

    use super::*;
    use crate::SharedFs;

    const FDS: Descriptors =
        Descriptors { qmp: 10, console: 11, channel: 12, kernel: 13, initrd: 14, shared_fs: Some(15) };

    fn qemu(accelerator: Accelerator) -> QemuConfig {
        QemuConfig { path: "/nowhere/bin/qemu".into(), machine_type: None, accelerator }
    }

    fn vm(shared: bool) -> VmConfig {
        let socket = OwnedFd::from(std::os::unix::net::UnixStream::pair().unwrap().0);
        VmConfig {
            kernel: "/k".into(),
            initrd: "/i".into(),
            kernel_params: " agent.log=debug ".into(),
            vcpus: 1,
            memory_mib: 512,
            shared_fs: shared.then(|| SharedFs { tag: "share".into(), socket }),
            debug: false,
            run_dir: "/r".into(),
            uid: None,
        }
    }

    /// The value of the one argument `name`, or of the one whose value starts with `prefix`.
    fn value<'a>(args: &'a [String], name: &str, prefix: &str) -> Option<&'a str> {
        let mut found = args.windows(2).filter(|w| w[0] == name && w[1].starts_with(prefix)).map(|w| w[1].as_str());
        let first = found.next();
        assert_eq!(found.next(), None, "{name} {prefix} twice");
        first
    }

    #[test]
    fn descriptors_are_where_they_belong() {
        let args = arguments(&qemu(Accelerator::Tcg), &vm(true), &FDS);
        assert_eq!(value(&args, "-kernel", "").unwrap(), "/proc/self/fd/13");
        assert_eq!(value(&args, "-initrd", "").unwrap(), "/proc/self/fd/14");
        for (id, fd) in [("qmp", 10), ("console", 11), ("channel", 12), ("fs", 15)] {
            let chardev = value(&args, "-chardev", &format!("socket,id={id},")).unwrap();
            assert_eq!(chardev, format!("socket,id={id},fd={fd}"));
        }
        assert!(value(&args, "-device", "virtserialport").unwrap().ends_with("name=io.katacontainers.channel"));
        assert!(
            !args.concat().contains("/k,") && !args.iter().any(|a| a == "/k"),
            "the kernel's path is not QEMU's business"
        );
    }

    #[test]
    fn memory_is_shared_only_with_a_file_server() {
        let args = arguments(&qemu(Accelerator::Tcg), &vm(true), &FDS);
        assert_eq!(value(&args, "-object", "").unwrap(), "memory-backend-memfd,id=memory,size=512M,share=on");
        assert!(value(&args, "-machine", "q35,").unwrap().contains(",memory-backend=memory"));
        assert!(value(&args, "-device", "vhost-user-fs-pci").unwrap().contains("tag=share,"));
        let args = arguments(&qemu(Accelerator::Tcg), &vm(false), &FDS);
        assert_eq!(value(&args, "-object", ""), None);
        assert_eq!(value(&args, "-device", "vhost-user-fs-pci"), None);
        assert!(!args.concat().contains("memory-backend"));
    }

    #[test]
    fn accelerators_differ() {
        let line = |accelerator, vcpus| {
            let args = arguments(&qemu(accelerator), &VmConfig { vcpus, ..vm(false) }, &FDS);
            (args.join(" "), value(&args, "-append", "").unwrap().to_owned())
        };
        let (args, append) = line(Accelerator::Tcg, 1);
        assert!(args.contains("-accel tcg") && args.contains("hpet=on") && append.contains("nolapic_timer"), "{args}");
        assert!(!args.contains("kvm"), "{args}");
        let (args, append) = line(Accelerator::Tcg, 2);
        assert!(args.contains("hpet=off") && args.contains("-smp 2") && !append.contains("nolapic_timer"), "{args}");
        let (args, append) = line(Accelerator::Kvm, 1);
        assert!(args.contains("-accel kvm") && args.contains("-cpu host") && args.contains("hpet=off"), "{args}");
        assert!(!args.contains("tcg") && !append.contains("nolapic_timer"), "{args}");
    }

    #[test]
    fn the_users_kernel_parameters_come_last() {
        let vm = vm(false);
        let line = kernel_command_line(Accelerator::Tcg, &vm);
        assert!(line.ends_with(" agent.log=debug") && line.contains(" quiet "), "{line}");
        let line = kernel_command_line(Accelerator::Tcg, &VmConfig { debug: true, ..vm });
        assert!(line.contains(" ignore_loglevel ") && !line.contains("quiet"), "{line}");
    }

    #[test]
    fn other_machines_are_refused() {
        for good in [None, Some("q35"), Some("pc-q35-7.2")] {
            check_machine_type(good).unwrap();
        }
        for bad in ["", "pc", "microvm", "q35,accel=kvm", "pc-q35-7.2,usb=on", "none"] {
            let error = check_machine_type(Some(bad)).unwrap_err().to_string();
            assert!(error.starts_with(&format!("machine_type is {bad:?}, but q35 or")), "{error}");
        }
    }

    #[test]
    fn the_firmware_is_used_if_it_is_there() {
        let prefix = std::env::temp_dir().join(format!("hypervisor-args-{}", std::process::id()));
        let program = prefix.join("bin/qemu");
        assert_eq!(firmware(&program), None);
        std::fs::create_dir_all(prefix.join("share/qemu")).unwrap();
        std::fs::write(prefix.join(FIRMWARE), "rom").unwrap();
        assert_eq!(firmware(&program), Some(prefix.join(FIRMWARE)));
        std::fs::remove_dir_all(prefix).unwrap();
    }
}
