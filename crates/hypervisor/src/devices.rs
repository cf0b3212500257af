//! Disks and network interfaces: what they are, and whether a description of one makes sense.

use std::os::fd::OwnedFd;

use rustix::fs::{FileType, OFlags, fcntl_getfl, fstat};

use crate::{Error, Result};

/// Longest serial number of a virtio disk, and longest [`Nic::id`], bytes.
const NAME_LIMIT: usize = 20;

/// Most queue pairs of an interface.
pub(crate) const MAX_QUEUES: usize = 64;

/// The smallest MTU that IPv4 allows, and the largest that virtio can tell.
const MTUS: std::ops::RangeInclusive<u16> = 68..=65_535;

/// A disk. What is in it, the hypervisor does not look at: every byte of the file is one of the disk's.
#[derive(Debug)]
pub struct Disk {
    /// Serial number, by which the guest finds it, unique in the machine: 1 to 20 letters, digits, `.`, `_` and `-`.
    pub serial: String,
    /// A block device or a regular file, opened for reading if `read_only`, else for reading and writing. Nobody needs a way to its
    /// path.
    pub file: OwnedFd,
    /// The guest cannot write to it. A file that can be written is locked while the machine has it.
    pub read_only: bool,
}

/// A network interface.
#[derive(Debug)]
pub struct Nic {
    /// Name of it, unique among the machine's interfaces: 1 to 20 letters, digits, `.`, `_` and `-`. The guest does not see it.
    pub id: String,
    /// What its frames come from and go to.
    pub link: Link,
    /// Address of it, by which the guest finds it.
    pub mac: [u8; 6],
    /// Size of the largest packet, which the guest's driver then takes over.
    pub mtu: Option<u16>,
}

/// What is at the host's end of a [`Nic`].
#[derive(Debug)]
pub enum Link {
    /// A tap or macvtap device.
    Tap {
        /// Its queues, with headers of virtio (`IFF_VNET_HDR`): a descriptor for each pair of them.
        /// With several, they must be new: QEMU aborts on a queue that a machine left disabled.
        queues: Vec<OwnedFd>,
        /// As many descriptors of `/dev/vhost-net`, so that the host's kernel moves the packets; or none, and QEMU does.
        vhost: Vec<OwnedFd>,
    },
    /// A connected Unix stream socket with a process at its other end. Each frame follows its length, four bytes in network byte order,
    /// as passt(1) has it.
    Stream(OwnedFd),
}

impl Link {
    /// Descriptors of the queues, and of vhost.
    pub(crate) fn into_descriptors(self) -> [Vec<OwnedFd>; 2] {
        match self {
            Self::Tap { queues, vhost } => [queues, vhost],
            Self::Stream(socket) => [vec![socket], Vec::new()],
        }
    }

    /// The same, where they are.
    pub(crate) fn descriptors(&self) -> [&[OwnedFd]; 2] {
        match self {
            Self::Tap { queues, vhost } => [queues, vhost],
            Self::Stream(socket) => [std::slice::from_ref(socket), &[]],
        }
    }
}

/// What a disk is kept in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Backing {
    BlockDevice,
    RegularFile,
}

impl Disk {
    /// Finds what would make the hypervisor refuse it, and what it is kept in.
    pub(crate) fn check(&self) -> Result<Backing> {
        let Self { serial, file, read_only } = self;
        check_name("disk's serial number", serial)?;
        let refuse = |value: String, expected: &str| {
            Err(Error::Setting { setting: "disk", value: format!("{serial}: {value}"), expected: expected.into() })
        };
        let failed = |error: rustix::io::Errno| Error::Io { step: "look at a disk's file", source: error.into() };
        let status = fstat(file).map_err(failed)?;
        let mode = fcntl_getfl(file).map_err(failed)? & OFlags::RWMODE;
        // The hypervisor takes a descriptor for what it was opened for and nothing less.
        match (read_only, mode) {
            (true, OFlags::RDONLY) | (false, OFlags::RDWR) => {}
            (true, _) => {
                return refuse("opened for writing".into(), "a read-only disk's file is opened for reading only");
            }
            (false, _) => {
                return refuse("not opened for reading and writing".into(), "a disk's file is, unless it is read-only");
            }
        }
        match FileType::from_raw_mode(status.st_mode) {
            FileType::BlockDevice => Ok(Backing::BlockDevice),
            FileType::RegularFile => Ok(Backing::RegularFile),
            other => refuse(format!("{other:?}"), "a disk is kept in a block device or a regular file"),
        }
    }
}

impl Nic {
    /// Finds what would make the hypervisor refuse it.
    pub(crate) fn check(&self) -> Result<()> {
        let Self { id, link, mac, mtu } = self;
        let [queues, vhost] = link.descriptors();
        check_name("interface's name", id)?;
        let refuse = |value: String, expected: &str| {
            let value = format!("{id}: {value}");
            Err(Error::Setting { setting: "network interface", value, expected: expected.into() })
        };
        if queues.is_empty() || queues.len() > MAX_QUEUES {
            return refuse(format!("{} taps", queues.len()), "an interface has 1 to 64 pairs of queues");
        }
        if !vhost.is_empty() && vhost.len() != queues.len() {
            return refuse(format!("{} vhost descriptors", vhost.len()), "there are as many as taps, or none");
        }
        // The first bit is a group's, and a host's address is never all zeros.
        if mac[0] & 1 != 0 || *mac == [0; 6] {
            return refuse(mac_text(*mac), "an interface's address is one station's");
        }
        if mtu.is_some_and(|mtu| !MTUS.contains(&mtu)) {
            return refuse(format!("MTU {}", mtu.unwrap_or_default()), "the MTU is 68 to 65535 bytes");
        }
        Ok(())
    }
}

/// `02:00:00:00:00:01`.
pub(crate) fn mac_text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// Names become part of the hypervisor's own names for things.
fn check_name(setting: &'static str, name: &str) -> Result<()> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || ".-_".contains(c);
    if !name.is_empty() && name.len() <= NAME_LIMIT && name.chars().all(allowed) {
        return Ok(());
    }
    let expected = "1 to 20 letters, digits, '.', '_' and '-' were expected".into();
    Err(Error::Setting { setting, value: name.into(), expected })
}

/// Finds a name that two of a machine's devices have.
pub(crate) fn check_unique<'a>(setting: &'static str, names: impl Iterator<Item = &'a str>) -> Result<()> {
    let mut seen = std::collections::BTreeSet::new();
    for name in names {
        if !seen.insert(name) {
            return Err(Error::Setting { setting, value: name.into(), expected: "only one may have it".into() });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    fn nic(taps: usize, vhost: usize) -> Nic {
        let fds = |count| (0..count).map(|_| File::open("/dev/null").unwrap().into()).collect();
        let link = Link::Tap { queues: fds(taps), vhost: fds(vhost) };
        Nic { id: "eth0".into(), link, mac: [2, 0, 0, 0, 0, 1], mtu: Some(1500) }
    }

    #[test]
    fn a_disks_descriptor_fits_what_it_is_for() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let disk = |serial: &str, write: bool, read_only| {
            let opened = File::options().read(true).write(write).open(file.path()).unwrap();
            Disk { serial: serial.into(), file: opened.into(), read_only }
        };
        assert_eq!(disk("a.b-c_1", true, false).check().unwrap(), Backing::RegularFile);
        assert_eq!(disk("12345678901234567890", false, true).check().unwrap(), Backing::RegularFile);
        for (disk, part) in [
            (disk("a", false, false), "disk is \"a: not opened for reading and writing\""),
            (disk("a", true, true), "disk is \"a: opened for writing\""),
            (disk("", true, false), "disk's serial number is \"\", but 1 to 20 letters"),
            (disk("123456789012345678901", true, false), "1 to 20 letters"),
            (disk("a,b", true, false), "1 to 20 letters"),
            (
                Disk { serial: "a".into(), file: File::open("/dev/null").unwrap().into(), read_only: true },
                "CharacterDevice",
            ),
        ] {
            let error = disk.check().unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn an_interface_makes_sense() {
        nic(1, 0).check().unwrap();
        nic(4, 4).check().unwrap();
        for (nic, part) in [
            (nic(0, 0), "network interface is \"eth0: 0 taps\""),
            (nic(65, 0), "65 taps"),
            (nic(2, 1), "1 vhost descriptors"),
            (Nic { mac: [1, 0, 0, 0, 0, 0], ..nic(1, 0) }, "01:00:00:00:00:00"),
            (Nic { mac: [0; 6], ..nic(1, 0) }, "00:00:00:00:00:00"),
            (Nic { mtu: Some(67), ..nic(1, 0) }, "MTU 67"),
            (Nic { id: "a b".into(), ..nic(1, 0) }, "interface's name is \"a b\""),
        ] {
            let error = nic.check().unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
        assert!(check_unique("x", ["a", "b"].into_iter()).is_ok());
        assert!(check_unique("x", ["a", "b", "a"].into_iter()).is_err());
    }
}
