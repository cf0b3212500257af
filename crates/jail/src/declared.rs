//! The declarations.

use rustix::{
    io::Errno,
    thread::{CapabilitySet, CapabilitySets, remove_capability_from_bounding_set, set_capabilities},
};

use crate::filter::{KERNEL, NAMESPACES, SOCKETS, Verdict};

/// What is left to a process.
#[derive(Debug)]
pub struct Declaration {
    /// What it is called.
    pub name: &'static str,
    /// Whose it is.
    pub user: User,
    /// What it may do as that user beyond others. Its bounding, inheritable and ambient sets are empty.
    pub capabilities: CapabilitySet,
    /// Namespaces of its own: `CLONE_NEW*`.
    pub namespaces: libc::c_int,
    /// What it sees of file systems.
    pub files: Files,
    /// System calls that are refused, by their groups, and how.
    pub refused: &'static [&'static [libc::c_long]],
    /// What happens to who tries one.
    pub verdict: Verdict,
    /// Files that it may have open at most; as its parent, if there is no number.
    pub open_files: Option<u64>,
    /// Largest core dump, bytes. It would hold the guest's memory.
    pub core: u64,
}

impl Declaration {
    /// Takes all capabilities from the calling thread but those that are declared. One system call.
    ///
    /// # Errors
    /// Those of capset(2).
    pub fn keep_capabilities(&self) -> Result<(), Errno> {
        let kept = self.capabilities;
        set_capabilities(None, CapabilitySets { effective: kept, permitted: kept, inheritable: CapabilitySet::empty() })
    }
}

/// Has no program that the calling thread becomes get a capability. System calls and nothing else.
///
/// # Errors
/// Those of prctl(2); `CAP_SETPCAP` is needed.
pub fn empty_bounding_set() -> Result<(), Errno> {
    for number in 0..64 {
        match remove_capability_from_bounding_set(CapabilitySet::from_bits_retain(1 << number)) {
            Ok(()) => {}
            // The first number the kernel does not know.
            Err(Errno::INVAL) => break,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Whose a process is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum User {
    /// A user and a group that nobody else is, for each sandbox, if there are such to be had.
    OfSandbox,
    /// Root without what it is not declared to be capable of.
    Root,
}

/// What a process sees of file systems, besides descriptors that it is given.
#[derive(Debug)]
pub enum Files {
    /// Those beneath these paths, as far as they exist.
    Beneath {
        /// May be read.
        read: &'static [&'static str],
        /// May be read and written.
        write: &'static [&'static str],
    },
    /// One directory, which it makes its root.
    Root,
}

/// The virtual machine monitor.
pub const QEMU: Declaration = Declaration {
    name: "QEMU",
    user: User::OfSandbox,
    capabilities: CapabilitySet::empty(),
    namespaces: libc::CLONE_NEWNET | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS,
    // Where its libraries, its firmware and what its libraries are configured by are; what the C library asks of the kernel; and the accelerator.
    files: Files::Beneath {
        read: &[
            "/usr",
            "/lib",
            "/lib64",
            "/nix/store",
            "/gnu/store",
            "/etc/ld.so.cache",
            "/etc/gnutls",
            "/etc/ssl/openssl.cnf",
            "/dev/urandom",
            "/dev/random",
            "/proc/cpuinfo",
            "/proc/meminfo",
            "/proc/stat",
            "/proc/sys/vm",
            "/sys/devices/system",
            "/sys/kernel/mm/transparent_hugepage",
        ],
        write: &["/dev/null", "/dev/zero", "/dev/kvm"],
    },
    refused: &[KERNEL, NAMESPACES, SOCKETS],
    // Libraries try some and do without.
    verdict: Verdict::Refuse,
    open_files: None,
    core: 0,
};

/// The file server behind virtio-fs. To create and change files as any user, with any mode, device nodes and file capabilities, is what
/// root in a container does. Reaching files by handle (`CAP_DAC_READ_SEARCH`), which knows no root directory, is not among it.
pub const FILE_SERVER: Declaration = Declaration {
    name: "the virtio-fs server",
    user: User::Root,
    capabilities: CapabilitySet::CHOWN
        .union(CapabilitySet::DAC_OVERRIDE)
        .union(CapabilitySet::FOWNER)
        .union(CapabilitySet::FSETID)
        .union(CapabilitySet::SETGID)
        .union(CapabilitySet::SETUID)
        .union(CapabilitySet::MKNOD)
        .union(CapabilitySet::SETFCAP),
    // Every one but the user's and the clock's: users are the host's, as the files are.
    namespaces: libc::CLONE_NEWNS
        | libc::CLONE_NEWPID
        | libc::CLONE_NEWNET
        | libc::CLONE_NEWIPC
        | libc::CLONE_NEWUTS
        | libc::CLONE_NEWCGROUP,
    files: Files::Root,
    // On top of a list of what is allowed, which comes with the library that it is made from.
    refused: &[NAMESPACES],
    verdict: Verdict::Kill,
    // More are of no use to a guest and cost the host memory.
    open_files: Some(1 << 20),
    core: 0,
};

/// passt(1), which turns a guest's frames into connections of the host. Beyond this it confines itself, and knows best what it needs: an empty root
/// directory, namespaces of its own but for the network's, which is what it is for, and a list of system calls that are allowed.
pub const PASST: Declaration = Declaration {
    name: "passt",
    user: User::OfSandbox,
    capabilities: CapabilitySet::empty(),
    namespaces: 0,
    files: Files::Root,
    refused: &[KERNEL],
    verdict: Verdict::Refuse,
    open_files: None,
    core: 0,
};
