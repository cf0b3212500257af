//! Macvtaps.
//!
//! A macvtap's queues are opened by a character device, which udev or devtmpfs would make in `/dev` under a name
//! that two network namespaces may both want. So its number is read from a sysfs of this namespace, and its node made in
//! a tmpfs, neither of which is mounted anywhere.

use std::os::fd::{AsFd, OwnedFd};

use netlink::Socket;
use netlink::route::{self, Link};
use rustix::fs::{Dir, FileType, Mode, OFlags, makedev, mknodat, openat};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};

use crate::error::Error;
use crate::sys;

/// Makes a macvtap on top of a link. Gives its descriptors and its number.
///
/// It is of the mode `passthru`: it takes all frames and has the link's hardware address. In the mode `bridge` it would have to have another one,
/// and the guest would differ from what the namespace shows.
pub(super) fn make(socket: &mut Socket, on: &Link, name: &str, queues: u16) -> Result<(Vec<OwnedFd>, u32), Error> {
    if let Some(kind @ ("macvlan" | "macvtap" | "ipvlan")) = on.kind.as_deref() {
        let reason =
            format!("it is a {kind} itself, on which no macvtap can be; set internetworking_model = \"tcfilter\"");
        return Err(Error::Unsuitable { name: on.name.clone(), reason });
    }
    const MODE: u16 = 1;
    const PASSTHRU: u32 = 8;
    let made = route::add_link(
        socket,
        name,
        "macvtap",
        |link| {
            link.number(libc::IFLA_LINK, on.index);
        },
        |data| {
            data.number(MODE, PASSTHRU);
        },
    );
    made.map_err(Error::kernel("make the macvtap", name))?;
    let links = route::links(socket).map_err(Error::kernel("read", "the interfaces of the pod"))?;
    let found = links.iter().find(|link| link.name == name);
    let index = found.map(|link| link.index).ok_or_else(|| Error::NoInterface { name: name.to_owned() })?;
    match open(name, queues) {
        Ok(taps) => Ok((taps, index)),
        Err(error) => {
            let _ = route::delete_link(socket, index);
            Err(error)
        }
    }
}

fn open(name: &str, queues: u16) -> Result<Vec<OwnedFd>, Error> {
    let device = number(name).map_err(Error::device("find the device number of", name))?;
    let directory = detached("tmpfs").map_err(Error::device("make a directory for the device of", name))?;
    mknodat(&directory, "tap", FileType::CharacterDevice, Mode::RUSR | Mode::WUSR, device)
        .map_err(Error::device("make the device of", name))?;
    let mut flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    if queues > 1 {
        flags |= libc::IFF_MULTI_QUEUE;
    }
    let open = |_| {
        let file = openat(&directory, "tap", OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK, Mode::empty())
            .map_err(Error::device("open the device of", name))?;
        sys::set_interface(file.as_fd(), name, flags).map_err(Error::device("set up a queue of", name))?;
        Ok(file)
    };
    (0..queues).map(open).collect()
}

/// A new instance of a file system, mounted nowhere.
fn detached(kind: &str) -> Result<OwnedFd, Errno> {
    let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_create(&context)?;
    fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())
}

/// The number of the character device of a macvtap in the calling thread's network namespace.
fn number(name: &str) -> Result<u64, Errno> {
    let sysfs = detached("sysfs")?;
    let directory = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let devices = openat(&sysfs, format!("class/net/{name}/macvtap"), directory, Mode::empty())?;
    for entry in Dir::read_from(&devices)? {
        let entry = entry?;
        let Some(device) = entry.file_name().to_str().ok().filter(|name| name.starts_with("tap")) else { continue };
        let file = openat(&devices, format!("{device}/dev"), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        let mut text = [0; 32];
        let length = rustix::io::read(&file, &mut text)?;
        let numbers = std::str::from_utf8(&text[..length]).ok().and_then(|text| text.trim().split_once(':'));
        let numbers = numbers.and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)));
        let (major, minor) = numbers.ok_or(Errno::PROTO)?;
        return Ok(makedev(major, minor));
    }
    Err(Errno::NOENT)
}
