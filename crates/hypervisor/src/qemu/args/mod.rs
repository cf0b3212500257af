//! QEMU's command line and the kernel's, with the reason for each argument.
//!
//! Only what is needed or was measured to help is here. `model.rs` says what differs between machines, `cmdline.rs` what the
//! kernel is told.

mod cmdline;
mod model;
mod plugged;

use std::path::{Path, PathBuf};

use self::model::Tuning;
pub(super) use self::model::{Bus, Model, MoreVcpus, Places};
use super::{QemuConfig, inventory::Inventory};
use crate::{Accelerator, Arch, Result, VmConfig, image, sys::tsc};

/// Numbers of the descriptors that QEMU inherits.
#[derive(Debug, Clone, Default)]
pub struct Descriptors {
    /// QMP.
    pub qmp: i32,
    /// The guest's serial console.
    pub console: i32,
    /// The channel to the agent.
    pub channel: i32,
    /// The kernel, opened for reading.
    pub kernel: i32,
    /// The guest image, opened for reading.
    pub image: i32,
    /// The vhost-user connection of the shared directory.
    pub shared_fs: Option<i32>,
    /// The file of each disk.
    pub disks: Vec<i32>,
    /// The taps of each interface, and its descriptors of `/dev/vhost-net`.
    pub nics: Vec<[Vec<i32>; 2]>,
}

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

/// Everything after the program's name.
pub(super) fn arguments(
    qemu: &QemuConfig,
    inventory: &Inventory,
    vm: &VmConfig,
    disk: Option<&image::Disk>,
    fds: &Descriptors,
) -> Result<Vec<String>> {
    let mut args = Arguments::default();
    let model = inventory.model;
    let tuning = model.tuning(qemu.accelerator, vm.vcpus);
    // Devices and settings come from here and nowhere else.
    args.flag("-nodefaults").flag("-no-user-config").pair("-display", "none");
    // A guest that restarts itself has ended.
    args.flag("-no-reboot");
    args.pair("-sandbox", SANDBOX);
    // What ps shows.
    args.pair("-name", "kata");
    args.machine(qemu, inventory, &tuning, vm);
    if let Some(firmware) = firmware(&qemu.path).filter(|_| model.firmware) {
        args.pair("-bios", firmware.display());
    }
    args.pair("-kernel", format_args!("/proc/self/fd/{}", fds.kernel));
    if disk.is_some() {
        args.disk(model, fds.image);
    } else {
        args.pair("-initrd", format_args!("/proc/self/fd/{}", fds.image));
    }
    let reads_the_hosts_counter = qemu.accelerator == Accelerator::Tcg && model.arch == Arch::X86_64;
    let tsc_khz = reads_the_hosts_counter.then(tsc::khz).flatten();
    args.pair("-append", cmdline::kernel_command_line(inventory, &tuning, vm, disk, tsc_khz));

    args.socket("qmp", fds.qmp).pair("-mon", "chardev=qmp,mode=control");
    // A plain serial port works from the kernel's first line to its last, so that every panic is seen.
    args.socket("console", fds.console).pair("-serial", "chardev:console");
    args.socket("channel", fds.channel);
    args.places(inventory);
    let serial = virtio(model.bus, "virtio-serial");
    let at = plugged::channels_place(inventory);
    args.device(format_args!("{serial}{at},id=serial,max_ports={SERIAL_PORTS}"));
    args.device(format_args!(
        "virtserialport,id=port,bus=serial.0,nr=1,chardev=channel,name={}",
        agent_api::CHANNEL_PORT
    ));
    if let (Some(fs), Some(fd)) = (&vm.shared_fs, fds.shared_fs) {
        args.socket("fs", fd);
        let device = virtio(model.bus, "vhost-user-fs");
        args.device(format_args!("{device},chardev=fs,tag={},queue-size={FS_QUEUE}", fs.tag));
    }
    args.memory_device(inventory, vm);
    args.devices(inventory, vm, fds)?;
    Ok(args.0)
}

/// A virtio device on a machine's bus, without the interface from before virtio 1.0.
fn virtio(bus: Bus, device: &str) -> String {
    match bus {
        // This one has no such interface, and no option to leave it out.
        Bus::Pci if device.starts_with("vhost-user-") => format!("{device}-pci"),
        Bus::Pci => format!("{device}-pci,disable-legacy=on"),
        Bus::Mmio => format!("{device}-device"),
    }
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

    /// The guest image as a disk. Nobody writes to it, so nothing is locked: all sandboxes share it, and its pages in the host's cache.
    fn disk(&mut self, model: &Model, fd: i32) {
        let file = format_args!("filename=/proc/self/fd/{fd},locking=off");
        self.pair("-blockdev", format_args!("driver=file,node-name=image,read-only=on,{file}"));
        // It is read while booting and hardly ever after: one queue will do.
        self.device(format_args!("{},drive=image,num-queues=1", virtio(model.bus, "virtio-blk")));
    }

    fn machine(&mut self, qemu: &QemuConfig, inventory: &Inventory, tuning: &Tuning, vm: &VmConfig) {
        let model = inventory.model;
        let mut machine = model.machine(qemu.machine_type.as_deref(), tuning);
        if vm.shared_fs.is_some() {
            // The server of the shared directory reads and writes the guest's memory, so it must be a file both can map.
            let size = vm.memory_mib;
            self.pair("-object", format_args!("memory-backend-memfd,id=memory,size={size}M,share=on"));
            machine.push_str(",memory-backend=memory");
        }
        self.pair("-machine", machine);
        if model.bus == Bus::Mmio {
            self.pair("-global", "virtio-mmio.force-legacy=false");
        }
        match inventory.memory_device_mib() {
            None => self.pair("-m", format_args!("{}M", vm.memory_mib)),
            Some(more) => self.pair("-m", format_args!("{}M,maxmem={}M", vm.memory_mib, vm.memory_mib + more)),
        };
        match inventory.more_vcpus {
            MoreVcpus::Plugged if vm.max_vcpus > vm.vcpus => {
                self.pair("-smp", format_args!("{},maxcpus={}", vm.vcpus, vm.max_vcpus))
            }
            MoreVcpus::Plugged | MoreVcpus::Waiting => self.pair("-smp", vm.max_vcpus),
        };
        if qemu.accelerator != Accelerator::Tcg {
            self.pair("-accel", "kvm");
        }
        if qemu.accelerator != Accelerator::Kvm {
            self.pair("-accel", format_args!("tcg,tb-size={TRANSLATION_MIB}"));
        }
        self.pair("-cpu", tuning.cpu);
    }
}

#[cfg(test)]
pub(super) mod tests;
