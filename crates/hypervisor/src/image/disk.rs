//! A guest image that is a disk: what is in its partitions, and whether a guest can boot from it.

use std::{
    fs::{self, File},
    io::Read,
    path::{Path, PathBuf},
};

use super::{
    IMAGE, IMAGE_REMEDY,
    gpt::{self, Partition},
    is_initrd, open, read_at_most, u16_at, u32_at, unreadable,
    verity::{SUPERBLOCK_SIZE, Verity, is_superblock},
};
use crate::{Arch, Error, Result};

/// Numbers of the partitions with the root file system and the hash tree.
const ROOT: u32 = 1;
const HASHES: u32 = 2;

/// What may be in any partition for Linux.
const LINUX: &str = "0fc63daf-8483-4772-8e79-3d69d8477de4";

/// Types of partitions by the Discoverable Partitions Specification: architecture, root file system, its hash tree.
const TYPES: [(Arch, &str, &str); 4] = [
    (Arch::X86_64, "4f68bce3-e8cd-4db1-96e7-fbcaf984b709", "2c7357ed-ebd2-46d9-aec1-23d437ec2bf5"),
    (Arch::Aarch64, "b921b045-1df0-41c3-af44-4c6f280d3fae", "df3300ce-d69f-4c92-978c-9bfb0f38d820"),
    (Arch::Ppc64le, "c31c45e6-3f39-412e-80fb-4809c4980599", "906bd944-4589-4aae-a4e4-dd983917446a"),
    (Arch::S390x, "5eead9a9-fe09-4a1e-a1d7-520d00531306", "b325bfbe-c7be-4ab8-8357-139e652d2f6b"),
];

/// Longest file of verity parameters, bytes.
const PARAMETERS_LIMIT: u64 = 4096;

/// A disk image that was checked.
#[derive(Debug)]
pub(crate) struct Disk {
    /// The file, opened for reading.
    pub(crate) file: File,
    /// Linux's name of the root file system.
    pub(crate) file_system: &'static str,
    /// How its blocks are checked, and the hash block at which the tree starts.
    pub(crate) verity: Option<(Verity, u64)>,
}

impl Disk {
    /// Opens and checks one. Without `parameters`, those in the file of the same name with `.verity` appended are taken, if it
    /// exists.
    ///
    /// # Errors
    /// [`Error::File`] with what was expected, or [`Error::Setting`] for `parameters`.
    pub(super) fn open(path: &Path, parameters: Option<&str>, arch: Arch) -> Result<Self> {
        let file = open(IMAGE, path, IMAGE_REMEDY)?;
        let refuse =
            |problem: String| Error::File { what: IMAGE, path: path.into(), problem, remedy: IMAGE_REMEDY.into() };
        let failed = |error| unreadable(IMAGE, path, IMAGE_REMEDY, &error);
        let mut head = [0; 8];
        let length = read_at_most(&file, &mut head, 0).map_err(failed)?;
        if is_initrd(&head[..length]) {
            return Err(Error::File {
                what: IMAGE,
                path: path.into(),
                problem: "is an initial RAM disk, not a disk image".into(),
                remedy: "set initrd instead of image in the configuration".into(),
            });
        }
        let partitions = gpt::read(&file).map_err(failed)?.map_err(refuse)?;
        let root = find(&partitions, ROOT).ok_or_else(|| refuse(format!("has no partition {ROOT}")))?;
        check_type(root, arch, |(_, root, _)| root).map_err(refuse)?;
        let mut head = [0; 2048];
        read_at_most(&file, &mut head, root.offset).map_err(failed)?;
        let file_system = file_system(&head)
            .ok_or_else(|| refuse(format!("has neither an erofs nor an ext4 file system in partition {ROOT}")))?;

        let hashes = find(&partitions, HASHES);
        let mut superblock = [0; SUPERBLOCK_SIZE];
        if let Some(hashes) = hashes {
            read_at_most(&file, &mut superblock, hashes.offset).map_err(failed)?;
        }
        let has_tree = hashes.is_some_and(|hashes| {
            is_superblock(&superblock) || TYPES.iter().any(|(_, _, verity)| hashes.kind == *verity)
        });
        let Some(verity) = parameters_of(path, parameters)? else {
            if !has_tree {
                return Ok(Self { file, file_system, verity: None });
            }
            return Err(Error::File {
                what: IMAGE,
                path: path.into(),
                problem: format!(
                    "has a hash tree in partition {HASHES}, but the parameters to check it by are missing"
                ),
                remedy: format!(
                    "set kernel_verity_params in the configuration, or restore {}",
                    parameters_file(path).display()
                ),
            });
        };
        let Some(hashes) = hashes else {
            return Err(refuse(format!("has verity parameters, but no partition {HASHES} with a hash tree")));
        };
        check_type(hashes, arch, |(_, _, verity)| verity).map_err(refuse)?;
        let contradicts = |what: String| mismatch(path, &what);
        let start = verity.tree_start(&superblock).map_err(contradicts)?;
        if verity.data_length().is_none_or(|length| length > root.length) {
            return Err(contradicts(format!("partition {ROOT} is shorter than data_blocks say")));
        }
        if verity.tree_length(start).is_none_or(|length| length > hashes.length) {
            return Err(contradicts(format!("partition {HASHES} is too short for the hash tree")));
        }
        Ok(Self { file, file_system, verity: Some((verity, start)) })
    }

    /// Kernel parameters by which the guest finds its root file system on its first disk.
    pub(crate) fn kernel_params(&self) -> String {
        let file_system = self.file_system;
        match &self.verity {
            None => format!("root=/dev/vda{ROOT} rootfstype={file_system} ro"),
            Some((verity, start)) => {
                let table = verity.table(&format!("/dev/vda{ROOT}"), &format!("/dev/vda{HASHES}"), *start);
                format!("dm-mod.create=\"root,,,ro,{table}\" root=/dev/dm-0 rootfstype={file_system} ro")
            }
        }
    }
}

/// The error for an image that is not what its parameters were made for.
fn mismatch(path: &Path, what: &str) -> Error {
    Error::File {
        what: IMAGE,
        path: path.into(),
        problem: format!("does not match its root hash: {what}; it is damaged or was tampered with"),
        remedy: crate::exit::MISMATCH_REMEDY.into(),
    }
}

fn find(partitions: &[Partition], number: u32) -> Option<&Partition> {
    partitions.iter().find(|partition| partition.number == number)
}

/// Refuses a partition that says it is for something else.
fn check_type(
    partition: &Partition,
    arch: Arch,
    wanted: impl Fn((Arch, &'static str, &'static str)) -> &'static str,
) -> std::result::Result<(), String> {
    if partition.kind == LINUX {
        return Ok(());
    }
    match TYPES.into_iter().find(|types| wanted(*types) == partition.kind) {
        Some((found, ..)) if found == arch => Ok(()),
        Some((found, ..)) => Err(format!("is for {found}, but the guest kernel is for {arch}")),
        None => Err(format!(
            "has a partition {} of type {}: {LINUX} or {} was expected",
            partition.number,
            partition.kind,
            TYPES.into_iter().find(|types| types.0 == arch).map_or(LINUX, wanted)
        )),
    }
}

/// Told by its magic number, from the start of its partition.
fn file_system(head: &[u8; 2048]) -> Option<&'static str> {
    const EROFS: u32 = 0xe0f5_e1e2;
    const EXT4: u16 = 0xef53;
    if u32_at(head, 1024) == EROFS {
        Some("erofs")
    } else if u16_at(head, 1024 + 56) == EXT4 {
        Some("ext4")
    } else {
        None
    }
}

/// Where the parameters of an image are that are not in the configuration.
fn parameters_file(image: &Path) -> PathBuf {
    let mut name = image.as_os_str().to_owned();
    name.push(".verity");
    name.into()
}

/// The parameters from the configuration, or from the file beside the image, if there are any.
fn parameters_of(image: &Path, configured: Option<&str>) -> Result<Option<Verity>> {
    if let Some(text) = configured {
        return Verity::parse(text).map(Some).map_err(|expected| Error::Setting {
            setting: "kernel_verity_params",
            value: text.into(),
            expected,
        });
    }
    const WHAT: &str = "file of verity parameters";
    let path = parameters_file(image);
    if fs::symlink_metadata(&path).is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound) {
        return Ok(None);
    }
    let remedy = "restore it or build the guest image anew";
    let file = open(WHAT, &path, remedy)?;
    let mut text = String::new();
    file.take(PARAMETERS_LIMIT).read_to_string(&mut text).map_err(|error| unreadable(WHAT, &path, remedy, &error))?;
    Verity::parse(&text).map(Some).map_err(|problem| Error::File {
        what: WHAT,
        path,
        problem: format!("is malformed: {problem}"),
        remedy: remedy.into(),
    })
}

#[cfg(test)]
#[path = "disk_tests.rs"]
mod tests;
