//! Finding the guest's disks, and giving them to containers as devices.

use std::path::{Path, PathBuf};

use agent_api::Fault;
use agent_api::storage::DiskDevice;

use crate::fault::{internal, invalid};
use crate::spec::{Device, DeviceRule, Spec};
use crate::uevents::{DEADLINE, Uevents};

const DISKS: &str = "/sys/block";
/// Longest serial number of a virtio disk, bytes (`VIRTIO_BLK_ID_BYTES`).
const MAX_SERIAL: usize = 20;

/// A disk of the guest.
#[derive(Debug, PartialEq, Eq)]
pub struct Disk {
    /// Its node in the guest's /dev.
    pub node: PathBuf,
    major: i64,
    minor: i64,
}

/// Refuses what no disk can have.
pub fn check_serial(serial: &str) -> Result<(), Fault> {
    if serial.is_empty() || serial.len() > MAX_SERIAL {
        return Err(invalid(format!(
            "the disk's serial number is {serial:?}, expected one of 1 to {MAX_SERIAL} bytes"
        )));
    }
    Ok(())
}

/// Finds a disk by its serial number, waiting for it if it has not appeared yet.
///
/// # Errors
/// When it does not appear in time.
pub async fn find(serial: &str) -> Result<Disk, Fault> {
    let missing = || format!("no disk with the serial number {serial:?} appeared");
    let events = Uevents::listen()?;
    events.until(DEADLINE, missing, || Ok(look(Path::new(DISKS), serial))).await
}

fn look(disks: &Path, serial: &str) -> Option<Disk> {
    for entry in std::fs::read_dir(disks).ok()?.flatten() {
        let read = |file: &str| std::fs::read_to_string(entry.path().join(file)).ok();
        if read("serial").is_none_or(|text| text.trim_end_matches(['\n', ' ', '\0']) != serial) {
            continue;
        }
        let numbers = read("dev")?;
        let (major, minor) = numbers.trim_end().split_once(':')?;
        // A slash in a disk's name is an exclamation mark there.
        let name = entry.file_name().to_string_lossy().replace('!', "/");
        return Some(Disk {
            node: Path::new("/dev").join(name),
            major: major.parse().ok()?,
            minor: minor.parse().ok()?,
        });
    }
    None
}

/// Puts disks into a container's specification: their nodes, with the numbers that they have in this guest, and the right to use them.
///
/// # Errors
/// When a disk does not appear in time, or its path is taken by something else.
pub async fn give(spec: &mut Spec, wanted: &[DiskDevice]) -> Result<(), Fault> {
    for disk in wanted {
        check_serial(&disk.serial)?;
        if !Path::new(&disk.path).is_absolute() {
            return Err(invalid(format!(
                "the disk {:?} has the path {:?}, expected an absolute one",
                disk.serial, disk.path
            )));
        }
    }
    let mut found = Vec::with_capacity(wanted.len());
    for disk in wanted {
        found.push((disk, find(&disk.serial).await?));
    }
    edit(spec, &found)
}

fn edit(spec: &mut Spec, disks: &[(&DiskDevice, Disk)]) -> Result<(), Fault> {
    let linux = &mut spec.linux;
    let rules = &mut linux.resources.get_or_insert_default().devices;
    // The host's numbers are other devices here. All go before any is added, lest one of them equal one of the guest's.
    let mut given = Vec::with_capacity(disks.len());
    for (disk, found) in disks {
        let mut access = None;
        if let Some(device) = linux.devices.iter().find(|device| device.path == Path::new(&disk.path)) {
            if device.kind != "b" {
                return Err(internal(format!(
                    "the disk {:?} is to be {}, which linux.devices has as a device of type {:?}, expected b",
                    disk.serial, disk.path, device.kind
                )));
            }
            let numbers = (Some(device.major), Some(device.minor));
            rules.retain_mut(|rule| {
                let of_disk = rule.allow && rule.kind.as_deref() == Some("b") && (rule.major, rule.minor) == numbers;
                if of_disk {
                    access = rule.access.take();
                }
                !of_disk
            });
        }
        let mut access = access.filter(|access| !access.is_empty()).unwrap_or_else(|| "rwm".to_owned());
        if disk.read_only {
            access.retain(|letter| letter != 'w');
        }
        given.push((*disk, found, access));
    }
    for (disk, found, access) in given {
        let (kind, major, minor) = ("b".to_owned(), found.major, found.minor);
        rules.push(DeviceRule {
            allow: true,
            kind: Some(kind.clone()),
            major: Some(major),
            minor: Some(minor),
            // Nothing would mean everything.
            access: Some(if access.is_empty() { "r".to_owned() } else { access }),
        });
        match linux.devices.iter_mut().find(|device| device.path == Path::new(&disk.path)) {
            Some(device) => (device.major, device.minor) = (major, minor),
            None => linux.devices.push(Device {
                path: disk.path.clone().into(),
                kind,
                major,
                minor,
                file_mode: Some(0o660),
                uid: None,
                gid: None,
            }),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_found_by_its_serial_number() {
        let top = std::env::temp_dir().join(format!("kata-agent-disks-{}", std::process::id()));
        for (name, serial, dev) in [("vda", "root", "254:0"), ("vdb", "data-1\n", "254:16"), ("loop0", "", "7:0")] {
            std::fs::create_dir_all(top.join(name)).unwrap();
            if !serial.is_empty() {
                std::fs::write(top.join(name).join("serial"), serial).unwrap();
            }
            std::fs::write(top.join(name).join("dev"), format!("{dev}\n")).unwrap();
        }
        assert_eq!(look(&top, "data-1"), Some(Disk { node: "/dev/vdb".into(), major: 254, minor: 16 }));
        assert_eq!(look(&top, "data"), None);
        std::fs::remove_dir_all(top).unwrap();
        assert!(check_serial("").is_err() && check_serial("x23456789012345678901").is_err());
    }

    #[test]
    fn a_disk_replaces_the_hosts_device_and_its_rule() {
        let mut spec: Spec = serde_json::from_str(
            r#"{"root":{"path":"/r"},"process":{},"linux":{
                "devices":[{"path":"/dev/xvda","type":"b","major":254,"minor":16,"fileMode":384,"uid":7},
                           {"path":"/dev/xvdb","type":"b","major":254,"minor":32}],
                "resources":{"devices":[{"allow":false,"access":"rwm"},
                    {"allow":true,"type":"b","major":254,"minor":16,"access":"rw"},
                    {"allow":true,"type":"b","major":254,"minor":32,"access":"rwm"}]}}}"#,
        )
        .unwrap();
        let device =
            |serial: &str, path: &str, read_only| DiskDevice { serial: serial.into(), path: path.into(), read_only };
        let (a, b, c) =
            (device("a", "/dev/xvda", false), device("b", "/dev/xvdb", true), device("c", "/dev/new", false));
        let disk = |minor| Disk { node: "/dev/x".into(), major: 254, minor };
        // The first disk has in the guest the numbers that the second one has on the host.
        edit(&mut spec, &[(&a, disk(32)), (&b, disk(48)), (&c, disk(64))]).unwrap();
        let devices: Vec<_> =
            spec.linux.devices.iter().map(|d| (d.path.to_str().unwrap(), d.minor, d.file_mode, d.uid)).collect();
        assert_eq!(
            devices,
            [
                ("/dev/xvda", 32, Some(0o600), Some(7)),
                ("/dev/xvdb", 48, None, None),
                ("/dev/new", 64, Some(0o660), None)
            ]
        );
        let rules: Vec<_> = spec.linux.resources.as_ref().unwrap().devices.iter().skip(1).collect();
        let rules: Vec<_> = rules.iter().map(|r| (r.minor.unwrap(), r.access.as_deref().unwrap())).collect();
        assert_eq!(rules, [(32, "rw"), (48, "rm"), (64, "rwm")]);
    }
}
