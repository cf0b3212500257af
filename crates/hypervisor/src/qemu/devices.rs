//! Disks and interfaces in QEMU's words: the same objects for its command line and for its control connection.

use std::{fmt, fmt::Display};

use serde_json::{Value, json};

use super::args::Bus;
use crate::{
    Disk, Link, Nic,
    devices::{Backing, mac_text},
};

/// Name of the bridge whose slots are places.
pub(super) const BRIDGE: &str = "places";

/// The kind of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    Disk,
    Nic,
}

/// A device by the name that the caller gave it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Name {
    pub(super) kind: Kind,
    pub(super) name: String,
}

impl Name {
    pub(super) fn disk(serial: &str) -> Self {
        Self { kind: Kind::Disk, name: serial.into() }
    }

    pub(super) fn nic(id: &str) -> Self {
        Self { kind: Kind::Nic, name: id.into() }
    }

    /// What QEMU calls it, and what is behind it.
    pub(super) fn id(&self) -> String {
        match self.kind {
            Kind::Disk => format!("disk-{}", self.name),
            Kind::Nic => format!("nic-{}", self.name),
        }
    }
}

impl Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            Kind::Disk => write!(f, "disk {:?}", self.name),
            Kind::Nic => write!(f, "network interface {:?}", self.name),
        }
    }
}

/// Where a device is plugged in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// Where QEMU likes; it stays there.
    Fixed(Bus),
    /// A slot of [`BRIDGE`], from 1 on.
    Slot(usize),
    /// A port, by its number from 0 on.
    Port(usize),
}

/// Name of a port.
pub(super) fn port(number: usize) -> String {
    format!("place{number}")
}

/// A virtio device there.
fn virtio(device: &str, place: Place) -> Value {
    match place {
        Place::Fixed(Bus::Mmio) => json!({ "driver": format!("{device}-device") }),
        // Without the interface from before virtio 1.0.
        Place::Fixed(Bus::Pci) => json!({ "driver": format!("{device}-pci"), "disable-legacy": "on" }),
        Place::Slot(slot) => json!({
            "driver": format!("{device}-pci"), "disable-legacy": "on", "bus": BRIDGE, "addr": format!("{slot:x}"),
        }),
        Place::Port(number) => {
            json!({ "driver": format!("{device}-pci"), "disable-legacy": "on", "bus": port(number) })
        }
    }
}

/// What is behind a disk: the only file of a set of descriptors.
pub(super) fn disk_backend(disk: &Disk, backing: Backing, set: u32) -> Value {
    let mut node = json!({
        "driver": match backing {
            Backing::BlockDevice => "host_device",
            Backing::RegularFile => "file",
        },
        "node-name": Name::disk(&disk.serial).id(),
        "filename": format!("/dev/fdset/{set}"),
        "read-only": disk.read_only,
        // Through the host's cache; a flush of the guest's is one of the host's.
        "cache": { "direct": false, "no-flush": false },
        "aio": "threads",
    });
    if disk.read_only {
        // Nobody writes to it here, and whoever shares it should not be kept from locking it.
        node["locking"] = "off".into();
    } else {
        // What the guest trims is free on the host.
        node["discard"] = "unmap".into();
    }
    node
}

/// The disk itself.
pub(super) fn disk_frontend(disk: &Disk, place: Place) -> Value {
    let mut device = virtio("virtio-blk", place);
    let id = Name::disk(&disk.serial).id();
    device["drive"] = id.as_str().into();
    device["id"] = id.into();
    device["serial"] = disk.serial.as_str().into();
    // The guest may write later what it has not flushed.
    device["write-cache"] = "on".into();
    device
}

/// How frames reach an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Backend {
    Tap,
    Stream,
}

impl Backend {
    pub(super) fn of(nic: &Nic) -> Self {
        match nic.link {
            Link::Tap { .. } => Self::Tap,
            Link::Stream(_) => Self::Stream,
        }
    }
}

/// What is behind an interface: descriptors, by their numbers or the names that QEMU was told.
pub(super) fn nic_backend(id: &str, backend: Backend, queues: &[String], vhost: &[String]) -> Value {
    let id = Name::nic(id).id();
    let mut backend = match backend {
        Backend::Tap => json!({ "type": "tap", "id": id, "fds": queues.join(":") }),
        Backend::Stream => {
            json!({ "type": "stream", "id": id, "server": false, "addr": { "type": "fd", "str": queues.join(":") } })
        }
    };
    if !vhost.is_empty() {
        backend["vhost"] = true.into();
        backend["vhostfds"] = vhost.join(":").into();
    }
    backend
}

/// The interface itself. Which offloads it has follows from the taps.
pub(super) fn nic_frontend(nic: &Nic, place: Place) -> Value {
    let mut device = virtio("virtio-net", place);
    let id = Name::nic(&nic.id).id();
    device["netdev"] = id.as_str().into();
    device["id"] = id.into();
    device["mac"] = mac_text(nic.mac).into();
    if let Some(mtu) = nic.mtu {
        device["host_mtu"] = mtu.into();
    }
    if place != Place::Fixed(Bus::Mmio) {
        // Nobody boots from it.
        device["romfile"] = "".into();
    }
    let [queues, _] = nic.link.descriptors();
    let pairs = queues.len();
    if pairs > 1 {
        device["mq"] = true.into();
        if place != Place::Fixed(Bus::Mmio) {
            // An interrupt for each queue, for changes of the configuration, and for the control queue.
            device["vectors"] = (2 * pairs + 2).into();
        }
    }
    device
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    #[test]
    fn disks_are_described() {
        let file = || File::open("/dev/null").unwrap().into();
        let disk = Disk { serial: "data".into(), file: file(), read_only: false };
        let node = disk_backend(&disk, Backing::BlockDevice, 3);
        assert_eq!((&node["driver"], &node["filename"]), (&json!("host_device"), &json!("/dev/fdset/3")));
        assert_eq!((&node["discard"], &node["locking"]), (&json!("unmap"), &Value::Null));
        let expected = json!({
            "driver": "virtio-blk-pci", "disable-legacy": "on", "bus": "places", "addr": "1e",
            "id": "disk-data", "drive": "disk-data", "serial": "data", "write-cache": "on",
        });
        assert_eq!(disk_frontend(&disk, Place::Slot(30)), expected);
        let disk = Disk { serial: "data".into(), file: file(), read_only: true };
        let node = disk_backend(&disk, Backing::RegularFile, 3);
        assert_eq!((&node["driver"], &node["read-only"]), (&json!("file"), &json!(true)));
        assert_eq!((&node["discard"], &node["locking"]), (&Value::Null, &json!("off")));
        assert_eq!(disk_frontend(&disk, Place::Port(7))["bus"], "place7");
        assert_eq!(disk_frontend(&disk, Place::Fixed(Bus::Mmio))["driver"], "virtio-blk-device");
    }

    #[test]
    fn interfaces_are_described() {
        let nic = |taps| Nic {
            id: "eth0".into(),
            link: Link::Tap {
                queues: (0..taps).map(|_| File::open("/dev/null").unwrap().into()).collect(),
                vhost: Vec::new(),
            },
            mac: [2, 0, 0, 0, 0, 0x1f],
            mtu: Some(1400),
        };
        let strings = |all: &[&str]| all.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
        let one = nic(1);
        let backend = nic_backend("eth0", Backend::of(&one), &strings(&["5"]), &[]);
        assert_eq!(backend, json!({ "type": "tap", "id": "nic-eth0", "fds": "5" }));
        let two = nic(2);
        let backend = nic_backend("eth0", Backend::of(&two), &strings(&["a", "b"]), &strings(&["c", "d"]));
        let expected = json!({ "type": "tap", "id": "nic-eth0", "fds": "a:b", "vhost": true, "vhostfds": "c:d" });
        assert_eq!(backend, expected);
        let expected = json!({
            "driver": "virtio-net-pci", "disable-legacy": "on", "id": "nic-eth0", "netdev": "nic-eth0",
            "mac": "02:00:00:00:00:1f", "host_mtu": 1400, "romfile": "", "mq": true, "vectors": 6,
        });
        assert_eq!(nic_frontend(&two, Place::Fixed(Bus::Pci)), expected);
        let stream = Nic { link: Link::Stream(File::open("/dev/null").unwrap().into()), ..nic(1) };
        let expected =
            json!({ "type": "stream", "id": "nic-eth0", "server": false, "addr": { "type": "fd", "str": "7" } });
        assert_eq!(nic_backend("eth0", Backend::of(&stream), &strings(&["7"]), &[]), expected);
        let device = nic_frontend(&one, Place::Fixed(Bus::Mmio));
        assert_eq!(
            (&device["driver"], &device["romfile"], &device["mq"]),
            (&json!("virtio-net-device"), &Value::Null, &Value::Null)
        );
    }
}
