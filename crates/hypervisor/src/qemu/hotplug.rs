//! Changes of a machine while it runs.
//!
//! One change at a time, each to its end: what was made of one that fails is taken back, and nobody can abandon it half done.
//! Files reach QEMU as descriptors over the control connection, because it has no way to any path.

use std::{
    os::fd::OwnedFd,
    sync::atomic::{AtomicU32, AtomicU64, Ordering},
    time::Duration,
};

use serde_json::{Value, json};
use tokio::{
    sync::Mutex,
    time::{Instant, sleep},
};

use super::{
    args::MoreVcpus,
    devices::{Backend, Kind, Name, disk_backend, disk_frontend, nic_backend, nic_frontend},
    inventory::{Inventory, MEMORY_STEP_MIB, Plugged},
    qmp::Qmp,
};
use crate::{Disk, Error, Nic, REMOVAL_DEADLINE, Result, devices::Backing};

/// How long after a request a guest is asked again to let go of a device: one that was still starting did not hear it.
const ASK_AGAIN: Duration = Duration::from_secs(1);

/// How long QEMU may still use what was behind a device that is gone: requests to the disk that are under way.
const RELEASE_DEADLINE: Duration = Duration::from_secs(5);

/// How often it is tried meanwhile.
const RELEASE_RETRY: Duration = Duration::from_millis(10);

/// How long a guest may take to give or take memory at most, and how long it may do nothing meanwhile.
const MEMORY_DEADLINE: Duration = Duration::from_secs(10);
const MEMORY_PATIENCE: Duration = Duration::from_secs(3);

/// How often it is looked at how far the guest is.
const MEMORY_LOOK: Duration = Duration::from_millis(20);

const MIB: u64 = 1 << 20;

/// Name of the device that memory comes from, and that of the memory behind it.
pub(super) const MEMORY_DEVICE: &str = "hotmem";
pub(super) const MEMORY_BACKEND: &str = "memory1";

/// Where it is in QEMU's tree of objects.
const MEMORY_PATH: &str = "/machine/peripheral/hotmem";

/// What can be changed of a machine.
pub(super) struct Hotplug {
    qmp: Qmp,
    inventory: Mutex<Inventory>,
    vcpus: AtomicU32,
    memory_mib: AtomicU64,
}

/// A step of adding or removing a device that failed.
struct Failed {
    step: &'static str,
    source: Error,
}

/// As `map_err`'s argument: which step it was.
fn at(step: &'static str) -> impl Fn(Error) -> Failed {
    move |source| Failed { step, source }
}

impl Failed {
    fn of(self, action: &'static str, name: &Name) -> Error {
        let Self { step, source } = self;
        match source {
            // It says everything.
            Error::Held { .. } => source,
            source => Error::Device { action, device: name.to_string(), step, source: Box::new(source) },
        }
    }
}

impl Hotplug {
    pub(super) fn new(qmp: Qmp, inventory: Inventory, vcpus: u32) -> Self {
        let memory_mib = AtomicU64::new(inventory.boot_mib);
        Self { qmp, inventory: Mutex::new(inventory), vcpus: AtomicU32::new(vcpus), memory_mib }
    }

    pub(super) fn vcpus(&self) -> u32 {
        self.vcpus.load(Ordering::Relaxed)
    }

    pub(super) fn memory_mib(&self) -> u64 {
        self.memory_mib.load(Ordering::Relaxed)
    }

    pub(super) async fn add_disk(&self, disk: Disk) -> Result<()> {
        let backing = disk.check()?;
        let name = Name::disk(&disk.serial);
        let mut inventory = self.inventory.lock().await;
        let plugged = inventory.add(name.clone())?;
        self.plug_disk(disk, backing, plugged).await.map_err(|failed| {
            inventory.remove(&name);
            failed.of("add", &name)
        })
    }

    pub(super) async fn add_nic(&self, nic: Nic) -> Result<()> {
        nic.check()?;
        let name = Name::nic(&nic.id);
        let mut inventory = self.inventory.lock().await;
        let plugged = inventory.add(name.clone())?;
        self.plug_nic(nic, plugged).await.map_err(|failed| {
            inventory.remove(&name);
            failed.of("add", &name)
        })
    }

    pub(super) async fn remove(&self, name: Name) -> Result<()> {
        let mut inventory = self.inventory.lock().await;
        let plugged = inventory.find(&name)?;
        if inventory.places() == 0 {
            return Err(Error::Builtin { device: name.to_string() });
        }
        self.unplug(&name).await.map_err(|failed| failed.of("remove", &name))?;
        self.release(&name, plugged).await.map_err(|failed| failed.of("remove", &name))?;
        inventory.remove(&name);
        Ok(())
    }

    /// A file in a set of descriptors, a node on the set, a device on the node.
    async fn plug_disk(&self, disk: Disk, backing: Backing, plugged: Plugged) -> std::result::Result<(), Failed> {
        let node = disk_backend(&disk, backing, plugged.set);
        let device = disk_frontend(&disk, plugged.place);
        let set = json!({ "fdset-id": plugged.set });
        self.qmp.pass("add-fd", set.clone(), disk.file).await.map_err(at("hand over its file"))?;
        if let Err(source) = self.qmp.call("blockdev-add", node).await {
            self.take_back("remove-fd", set).await;
            return Err(Failed { step: "open its file", source });
        }
        if let Err(source) = self.qmp.call("device_add", device.clone()).await {
            self.take_back("blockdev-del", json!({ "node-name": device["drive"] })).await;
            self.take_back("remove-fd", set).await;
            return Err(Failed { step: "plug it in", source });
        }
        Ok(())
    }

    /// Named descriptors, a backend that takes them, a device on the backend.
    async fn plug_nic(&self, nic: Nic, plugged: Plugged) -> std::result::Result<(), Failed> {
        let device = nic_frontend(&nic, plugged.place);
        let name = Name::nic(&nic.id).id();
        let mut passed = Vec::new();
        let backend = Backend::of(&nic);
        let [queues, vhost] = nic.link.into_descriptors();
        let handed = async {
            let queues = self.pass_all(queues, &format!("{name}-queue"), &mut passed).await?;
            let vhost = self.pass_all(vhost, &format!("{name}-vhost"), &mut passed).await?;
            Ok((queues, vhost))
        };
        let handed: Result<_> = handed.await;
        let (step, made) = match handed {
            Ok((queues, vhost)) => {
                let made = self.qmp.call("netdev_add", nic_backend(&nic.id, backend, &queues, &vhost)).await;
                ("set up its queues", made.map(drop))
            }
            Err(error) => ("hand over its descriptors", Err(error)),
        };
        if let Err(source) = made {
            // QEMU may have taken some of them, and those it no longer knows by their names.
            for fd in passed {
                self.take_back("closefd", json!({ "fdname": fd })).await;
            }
            return Err(Failed { step, source });
        }
        if let Err(source) = self.qmp.call("device_add", device).await {
            self.take_back("netdev_del", json!({ "id": name })).await;
            return Err(Failed { step: "plug it in", source });
        }
        Ok(())
    }

    /// Hands over descriptors by names that start with `prefix`; those that QEMU has are added to `passed`.
    async fn pass_all(&self, fds: Vec<OwnedFd>, prefix: &str, passed: &mut Vec<String>) -> Result<Vec<String>> {
        let mut names = Vec::new();
        for (number, fd) in fds.into_iter().enumerate() {
            let name = format!("{prefix}{number}");
            self.qmp.pass("getfd", json!({ "fdname": name }), fd).await?;
            passed.push(name.clone());
            names.push(name);
        }
        Ok(names)
    }

    /// Undoes a step after a later one failed, whose error is the one to be told.
    async fn take_back(&self, command: &'static str, arguments: Value) {
        let _what_failed_first_is_told = self.qmp.ask(command, arguments).await;
    }

    /// Asks the guest to let go of a device until it has.
    async fn unplug(&self, name: &Name) -> std::result::Result<(), Failed> {
        let id = name.id();
        let end = Instant::now() + REMOVAL_DEADLINE;
        self.qmp.expect_end_of(&id);
        let mut asked = false;
        loop {
            let answer = self.qmp.ask("device_del", json!({ "id": id })).await.map_err(at("ask the guest for it"))?;
            match answer {
                Err(refusal) if refusal.is_unknown_device() => return Ok(()),
                // Only the first request must be taken. QEMU refuses to repeat one that the guest is busy with.
                Err(refusal) if !asked => return Err(at("ask the guest for it")(refusal.of("device_del"))),
                _ => asked = true,
            }
            let left = end.saturating_duration_since(Instant::now());
            if self.qmp.is_gone_within(left.min(ASK_AGAIN)).await {
                return Ok(());
            }
            if left <= ASK_AGAIN {
                let held = Error::Held { device: name.to_string(), deadline: REMOVAL_DEADLINE };
                return Err(at("wait for the guest")(held));
            }
        }
    }

    /// Gives back what was behind a device that is gone.
    async fn release(&self, name: &Name, plugged: Plugged) -> std::result::Result<(), Failed> {
        match name.kind {
            Kind::Nic => {
                let removed = self.qmp.call("netdev_del", json!({ "id": name.id() })).await;
                removed.map(drop).map_err(at("close its queues"))
            }
            Kind::Disk => {
                let end = Instant::now() + RELEASE_DEADLINE;
                while let Err(error) = self.qmp.call("blockdev-del", json!({ "node-name": name.id() })).await {
                    if Instant::now() >= end || !matches!(error, Error::Refused { .. }) {
                        return Err(at("close its file")(error));
                    }
                    sleep(RELEASE_RETRY).await;
                }
                let removed = self.qmp.call("remove-fd", json!({ "fdset-id": plugged.set })).await;
                removed.map(drop).map_err(at("close its file"))
            }
        }
    }

    pub(super) async fn set_vcpus(&self, wanted: u32) -> Result<u32> {
        let inventory = self.inventory.lock().await;
        let most = inventory.max_vcpus;
        if wanted > most {
            let expected = format!("the machine was started for at most {most} (max_vcpus)");
            return Err(Error::Setting { setting: "vcpus", value: wanted.to_string(), expected });
        }
        let mut present = self.vcpus();
        if wanted <= present {
            return Ok(present);
        }
        if inventory.more_vcpus == MoreVcpus::Waiting {
            self.vcpus.store(wanted, Ordering::Relaxed);
            return Ok(wanted);
        }
        let answer = self.qmp.call("query-hotpluggable-cpus", Value::Null).await?;
        for socket in free_sockets(&answer) {
            if present >= wanted {
                break;
            }
            let mut device = socket["props"].clone();
            device["driver"] = socket["type"].clone();
            device["id"] = format!("cpu-{present}").into();
            self.qmp.call("device_add", device).await?;
            present += 1;
            self.vcpus.store(present, Ordering::Relaxed);
        }
        Ok(present)
    }

    pub(super) async fn set_memory(&self, wanted: u64) -> Result<u64> {
        let inventory = self.inventory.lock().await;
        let (boot, most) = (inventory.boot_mib, inventory.max_mib);
        if wanted < boot || wanted > most {
            let expected = format!("the machine was started with {boot} MiB and for at most {most} (max_memory_mib)");
            return Err(Error::Setting { setting: "memory", value: format!("{wanted} MiB"), expected });
        }
        if inventory.memory_device_mib().is_none() {
            return Ok(boot);
        }
        let goal = (wanted - boot).next_multiple_of(MEMORY_STEP_MIB) * MIB;
        let order = json!({ "path": MEMORY_PATH, "property": "requested-size", "value": goal });
        self.qmp.call("qom-set", order).await?;
        let end = Instant::now() + MEMORY_DEADLINE;
        let mut plugged = self.plugged().await?;
        let mut moved = Instant::now();
        while plugged != goal && Instant::now() < end && moved.elapsed() < MEMORY_PATIENCE {
            sleep(MEMORY_LOOK).await;
            let now = self.plugged().await?;
            if now != plugged {
                (plugged, moved) = (now, Instant::now());
            }
        }
        let mib = boot + plugged / MIB;
        self.memory_mib.store(mib, Ordering::Relaxed);
        Ok(mib)
    }

    /// Bytes that the guest has of the memory device.
    async fn plugged(&self) -> Result<u64> {
        let size = self.qmp.call("qom-get", json!({ "path": MEMORY_PATH, "property": "size" })).await?;
        size.as_u64().ok_or_else(|| Error::Control(format!("it says that the memory device has {size} bytes")))
    }
}

/// The processors that can be plugged, in the order of their places.
fn free_sockets(answer: &Value) -> Vec<&Value> {
    let place = |socket: &Value| {
        ["socket-id", "die-id", "module-id", "core-id", "thread-id"].map(|name| socket["props"][name].as_u64())
    };
    let all = answer.as_array().map(Vec::as_slice).unwrap_or_default();
    let mut free: Vec<&Value> =
        all.iter().filter(|socket| socket["qom-path"].is_null() && socket["props"].is_object()).collect();
    free.sort_by_key(|socket| place(socket));
    free
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processors_are_plugged_in_order() {
        let socket = |core: u64, taken: bool| {
            let mut socket = json!({ "type": "max", "props": { "socket-id": 0, "core-id": core, "thread-id": 0 } });
            if taken {
                socket["qom-path"] = "/machine/unattached/device[0]".into();
            }
            socket
        };
        let answer = json!([socket(3, false), socket(10, false), socket(2, false), socket(0, true), { "type": "odd" }]);
        let cores: Vec<_> = free_sockets(&answer).iter().map(|socket| socket["props"]["core-id"].clone()).collect();
        assert_eq!(cores, [2, 3, 10]);
        assert!(free_sockets(&Value::Null).is_empty());
    }
}
