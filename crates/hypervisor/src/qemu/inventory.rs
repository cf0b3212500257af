//! What a machine has: which place is whose, and what may still come.

use std::collections::BTreeMap;

use super::{
    args::{Model, MoreVcpus, Places},
    devices::{Name, Place},
};
use crate::{Accelerator, Error, Result, VmConfig, devices::check_unique};

/// Granularity of a memory device, MiB: QEMU's block, and a huge page.
pub(super) const MEMORY_STEP_MIB: u64 = 2;

/// What memory Linux adds or removes at once, MiB. A device that ends within such a block cannot be used to its end.
const MEMORY_BLOCK_MIB: u64 = 128;

/// A device that is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Plugged {
    pub(super) place: Place,
    /// Number of the set of descriptors that a disk's file is in.
    pub(super) set: u32,
}

/// Devices and places of a machine.
#[derive(Debug)]
pub(super) struct Inventory {
    pub(super) model: &'static Model,
    /// How many devices can come and go, at the same time.
    places: usize,
    devices: BTreeMap<Name, Plugged>,
    next_set: u32,
    pub(super) max_vcpus: u32,
    pub(super) more_vcpus: MoreVcpus,
    pub(super) boot_mib: u64,
    pub(super) max_mib: u64,
}

impl Inventory {
    /// That of a machine that is about to start; everything it starts with has its place.
    ///
    /// # Errors
    /// [`Error::Setting`] for what the machine cannot have.
    pub(super) fn new(model: &'static Model, accelerator: Accelerator, vm: &VmConfig) -> Result<Self> {
        let refuse = |setting, value: String, expected: String| Err(Error::Setting { setting, value, expected });
        let only = |what: &str| format!("{} machine {what}; set machine_type to q35, or this", model.name);
        if vm.hotplug_slots > 0 && model.places == Places::None {
            return refuse(
                "hotplug_slots",
                vm.hotplug_slots.to_string(),
                only("takes no devices while it runs") + " to 0",
            );
        }
        if vm.max_memory_mib > vm.memory_mib && model.places == Places::None {
            let expected = only("takes no memory while it runs") + &format!(" to {}", vm.memory_mib);
            return refuse("max_memory_mib", vm.max_memory_mib.to_string(), expected);
        }
        let cold = vm.disks.len() + vm.nics.len();
        let slots = usize::try_from(vm.hotplug_slots).unwrap_or(usize::MAX);
        let places = if slots == 0 { 0 } else { cold.saturating_add(slots) };
        let room = model.room.all as usize;
        if cold.max(places) > room {
            let value = format!("{cold} and {} more later", vm.hotplug_slots);
            return refuse("number of disks and network interfaces", value, format!("the machine has room for {room}"));
        }
        let mut inventory = Self {
            model,
            places,
            devices: BTreeMap::new(),
            next_set: 0,
            max_vcpus: vm.max_vcpus,
            more_vcpus: model.more_vcpus(accelerator),
            boot_mib: vm.memory_mib,
            max_mib: vm.max_memory_mib,
        };
        check_unique("disk's serial number", vm.disks.iter().map(|disk| disk.serial.as_str()))?;
        check_unique("interface's name", vm.nics.iter().map(|nic| nic.id.as_str()))?;
        let disks = vm.disks.iter().map(|disk| Name::disk(&disk.serial));
        for name in disks.chain(vm.nics.iter().map(|nic| Name::nic(&nic.id))) {
            if places == 0 {
                let set = inventory.next_set();
                inventory.devices.insert(name, Plugged { place: Place::Fixed(model.bus), set });
            } else {
                inventory.add(name)?;
            }
        }
        Ok(inventory)
    }

    /// How many places there are.
    pub(super) fn places(&self) -> usize {
        self.places
    }

    /// A device that is there.
    ///
    /// # Errors
    /// [`Error::Unknown`].
    pub(super) fn find(&self, name: &Name) -> Result<Plugged> {
        self.devices.get(name).copied().ok_or_else(|| Error::Unknown { device: name.to_string() })
    }

    /// Gives a device a place.
    ///
    /// # Errors
    /// [`Error::Fixed`], [`Error::Present`] or [`Error::Full`].
    pub(super) fn add(&mut self, name: Name) -> Result<Plugged> {
        if self.places == 0 {
            let remedy = match self.model.places {
                Places::None => "set machine_type to q35",
                Places::Bridge | Places::Ports => "start it with places for devices that come later (hotplug_slots)",
            };
            return Err(Error::Fixed { machine: self.model.name, what: "disks or network interfaces", remedy });
        }
        if self.devices.contains_key(&name) {
            return Err(Error::Present { device: name.to_string() });
        }
        let free = (0..self.places).map(|number| self.place(number));
        let mut free = free.filter(|place| self.devices.values().all(|plugged| plugged.place != *place));
        let Some(place) = free.next() else {
            return Err(Error::Full { device: name.to_string(), places: self.places });
        };
        let plugged = Plugged { place, set: self.next_set() };
        self.devices.insert(name, plugged);
        Ok(plugged)
    }

    /// Frees the place of a device that is gone.
    pub(super) fn remove(&mut self, name: &Name) {
        self.devices.remove(name);
    }

    /// Memory behind the device that more comes from, MiB; `None` if none may come.
    pub(super) fn memory_device_mib(&self) -> Option<u64> {
        let more = self.max_mib.saturating_sub(self.boot_mib);
        (more > 0).then(|| more.next_multiple_of(MEMORY_BLOCK_MIB))
    }

    fn place(&self, number: usize) -> Place {
        match self.model.places {
            Places::Ports => Place::Port(number),
            // The first slot's number is 1: 0 would be that of a bridge's own controller.
            Places::Bridge | Places::None => Place::Slot(number + 1),
        }
    }

    fn next_set(&mut self) -> u32 {
        self.next_set = self.next_set.wrapping_add(1);
        self.next_set
    }
}

#[cfg(test)]
mod tests {
    use super::{super::args::tests::vm, *};
    use crate::{Arch, Disk};

    fn config(disks: usize, hotplug_slots: u32) -> VmConfig {
        let disk = |n| Disk {
            serial: format!("d{n}"),
            file: std::fs::File::open("/dev/null").unwrap().into(),
            read_only: true,
        };
        VmConfig { disks: (0..disks).map(disk).collect(), hotplug_slots, ..vm(false) }
    }

    fn q35(vm: &VmConfig) -> Result<Inventory> {
        Inventory::new(Model::find(Arch::X86_64, None).unwrap(), Accelerator::Tcg, vm)
    }

    #[test]
    fn places_are_given_and_given_back() {
        let mut inventory = q35(&config(1, 2)).unwrap();
        assert_eq!(inventory.find(&Name::disk("d0")).unwrap().place, Place::Slot(1));
        assert_eq!(inventory.add(Name::nic("d0")).unwrap().place, Place::Slot(2));
        let again = inventory.add(Name::nic("d0")).unwrap_err().to_string();
        assert_eq!(again, "the machine already has network interface \"d0\"");
        let third = inventory.add(Name::disk("x")).unwrap();
        assert_eq!(third, Plugged { place: Place::Slot(3), set: 3 });
        let full = inventory.add(Name::disk("y")).unwrap_err();
        assert!(matches!(full, Error::Full { places: 3, .. }), "{full}");
        inventory.remove(&Name::nic("d0"));
        assert!(matches!(inventory.find(&Name::nic("d0")), Err(Error::Unknown { .. })));
        assert_eq!(inventory.add(Name::disk("y")).unwrap(), Plugged { place: Place::Slot(2), set: 4 });
    }

    #[test]
    fn a_machine_without_places_keeps_what_it_has() {
        let mut inventory = q35(&config(2, 0)).unwrap();
        assert!(matches!(inventory.find(&Name::disk("d1")).unwrap().place, Place::Fixed(_)));
        let error = inventory.add(Name::disk("x")).unwrap_err().to_string();
        assert!(error.contains("q35 machine") && error.contains("hotplug_slots"), "{error}");
        let microvm = Model::find(Arch::X86_64, Some("microvm")).unwrap();
        let error = Inventory::new(microvm, Accelerator::Tcg, &config(1, 0))
            .unwrap()
            .add(Name::disk("x"))
            .unwrap_err()
            .to_string();
        assert!(error.contains("microvm machine") && error.contains("set machine_type to q35"), "{error}");
    }

    #[test]
    fn what_a_machine_cannot_have_is_refused() {
        let microvm = Model::find(Arch::X86_64, Some("microvm")).unwrap();
        for (vm, part) in [
            (config(0, 1), "hotplug_slots is \"1\""),
            (VmConfig { max_memory_mib: 1024, ..config(0, 0) }, "max_memory_mib is \"1024\""),
            (config(6, 0), "the machine has room for 5"),
        ] {
            let error = Inventory::new(microvm, Accelerator::Tcg, &vm).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
        assert!(q35(&config(27, 0)).is_err() && q35(&config(6, 21)).is_err() && q35(&config(0, u32::MAX)).is_err());
        assert!(q35(&config(26, 0)).is_ok() && q35(&config(6, 20)).is_ok());
        let mut twice = config(2, 0);
        twice.disks[1].serial = "d0".into();
        assert!(q35(&twice).unwrap_err().to_string().contains("only one may have it"));
    }

    #[test]
    fn memory_comes_in_blocks() {
        let memory = |max_memory_mib| q35(&VmConfig { max_memory_mib, ..config(0, 0) }).unwrap().memory_device_mib();
        assert_eq!([512, 513, 640, 641].map(memory), [None, Some(128), Some(128), Some(256)]);
    }
}
