//! Places for devices that come and go, what is in them from the start, and the device that memory comes from.

use std::fmt::Display;

use super::{Arguments, Descriptors, Places, virtio};
use crate::{
    Result, VmConfig,
    qemu::{
        devices::{self, BRIDGE, Backend, Name},
        hotplug::{MEMORY_BACKEND, MEMORY_DEVICE},
        inventory::{Inventory, MEMORY_STEP_MIB},
    },
};

/// The bridge's last slot.
const CHANNELS_SLOT: &str = "1f";

/// The first slot of the root bus whose functions are ports; QEMU puts other devices into the first that are free.
const PORTS_SLOT: usize = 0x10;

/// Functions of a slot.
const FUNCTIONS: usize = 8;

/// Where the channel's device is, as the rest of its options. In a bridge that is empty when Linux starts, no device that comes later
/// has room for its registers: nobody but Linux lays out the addresses. With one device in it there is room for 60.
pub(super) fn channels_place(inventory: &Inventory) -> String {
    match inventory.model.places {
        Places::Bridge if inventory.places() > 0 => format!(",bus={BRIDGE},addr={CHANNELS_SLOT}"),
        _ => String::new(),
    }
}

impl Arguments {
    /// What devices that come and go are plugged into.
    pub(super) fn places(&mut self, inventory: &Inventory) {
        match inventory.model.places {
            _ if inventory.places() == 0 => {}
            Places::None => {}
            Places::Bridge => {
                // The default of every version of the machine that is not very old.
                self.pair("-global", "ICH9-LPC.acpi-pci-hotplug-with-bridge-support=on");
                self.device(format_args!("pci-bridge,id={BRIDGE},chassis_nr=1,shpc=off"));
            }
            Places::Ports => {
                for number in 0..inventory.places() {
                    let (slot, function) = (PORTS_SLOT + number / FUNCTIONS, number % FUNCTIONS);
                    let more = if function == 0 { ",multifunction=on" } else { "" };
                    let (id, chassis) = (devices::port(number), number + 1);
                    self.device(format_args!(
                        "pcie-root-port,id={id},chassis={chassis},bus=pcie.0,addr={slot:x}.{function}{more}"
                    ));
                }
            }
        }
    }

    /// The device that memory comes from, empty.
    pub(super) fn memory_device(&mut self, inventory: &Inventory, vm: &VmConfig) {
        let Some(size) = inventory.memory_device_mib() else { return };
        // The server of the shared directory must see this memory, too.
        let kind = if vm.shared_fs.is_some() { "memory-backend-memfd,share=on" } else { "memory-backend-ram" };
        // Nothing of it is there before the guest has it.
        self.pair("-object", format_args!("{kind},id={MEMORY_BACKEND},size={size}M,reserve=off"));
        let device = virtio(inventory.model.bus, "virtio-mem");
        self.device(format_args!(
            "{device},id={MEMORY_DEVICE},memdev={MEMORY_BACKEND},requested-size=0,block-size={MEMORY_STEP_MIB}M"
        ));
    }

    /// Disks and interfaces.
    pub(super) fn devices(&mut self, inventory: &Inventory, vm: &VmConfig, fds: &Descriptors) -> Result<()> {
        for (disk, fd) in vm.disks.iter().zip(&fds.disks) {
            let plugged = inventory.find(&Name::disk(&disk.serial))?;
            self.pair("-add-fd", format_args!("fd={fd},set={}", plugged.set));
            self.pair("-blockdev", devices::disk_backend(disk, disk.check()?, plugged.set));
            self.device(devices::disk_frontend(disk, plugged.place));
        }
        for (nic, [queues, vhost]) in vm.nics.iter().zip(&fds.nics) {
            let plugged = inventory.find(&Name::nic(&nic.id))?;
            self.pair("-netdev", devices::nic_backend(&nic.id, Backend::of(nic), &texts(queues), &texts(vhost)));
            self.device(devices::nic_frontend(nic, plugged.place));
        }
        Ok(())
    }
}

fn texts(numbers: &[impl Display]) -> Vec<String> {
    numbers.iter().map(|number| number.to_string()).collect()
}
