//! A child process that runs a small guest by `/dev/kvm`, and tells how far it came.
//!
//! A child, because a broken KVM may hang: the caller waits for it with a deadline and then kills it. It is forked without
//! exec and may be the fork of a process with threads, so it makes system calls only: nothing in it allocates, locks or formats. The
//! layouts and numbers are those of the kernel's `include/uapi/linux/kvm.h` and `arch/x86/include/uapi/asm/kvm.h`.

use std::{
    io::{self, PipeReader},
    os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
};

use rustix::process::Pid;

use super::super::kvm::guest;

/// What the child reports: a step that failed with an error number, or how the guest left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Report {
    /// The guest did everything right.
    Works,
    /// The version of the interface is another one.
    Version(i32),
    /// A system call failed: its number in [`CALLS`], and errno.
    Failed(u8, i32),
    /// The guest left for this reason (`KVM_EXIT_…`) instead of the expected one.
    Exit(i32),
    /// The guest ended as expected but computed something else.
    WrongResult,
}

/// The calls the child makes, by number.
pub(crate) const CALLS: [&str; 8] = [
    "open /dev/kvm",
    "KVM_CREATE_VM",
    "KVM_SET_USER_MEMORY_REGION",
    "KVM_CREATE_VCPU",
    "map the virtual CPU",
    "KVM_SET_CPUID2",
    "KVM_SET_SREGS",
    "KVM_RUN",
];

const KVM_GET_API_VERSION: libc::c_ulong = 0xae00;
const KVM_CREATE_VM: libc::c_ulong = 0xae01;
const KVM_GET_VCPU_MMAP_SIZE: libc::c_ulong = 0xae04;
const KVM_GET_SUPPORTED_CPUID: libc::c_ulong = 0xc008_ae05;
const KVM_CREATE_VCPU: libc::c_ulong = 0xae41;
const KVM_SET_USER_MEMORY_REGION: libc::c_ulong = 0x4020_ae46;
const KVM_RUN: libc::c_ulong = 0xae80;
const KVM_SET_REGS: libc::c_ulong = 0x4090_ae82;
const KVM_GET_SREGS: libc::c_ulong = 0x8138_ae83;
const KVM_SET_SREGS: libc::c_ulong = 0x4138_ae84;
const KVM_SET_CPUID2: libc::c_ulong = 0x4008_ae90;

/// The one version there has ever been since 2007.
const API_VERSION: i32 = 12;

#[repr(C)]
struct MemoryRegion {
    slot: u32,
    flags: u32,
    guest_address: u64,
    size: u64,
    host_address: u64,
}

/// `struct kvm_regs`.
#[repr(C)]
#[derive(Default)]
pub(crate) struct Regs {
    pub(crate) rax: u64,
    pub(crate) rbx: u64,
    pub(crate) rcx: u64,
    pub(crate) rdx: u64,
    pub(crate) rsi: u64,
    pub(crate) rdi: u64,
    pub(crate) rsp: u64,
    pub(crate) rbp: u64,
    pub(crate) r8_to_r15: [u64; 8],
    pub(crate) rip: u64,
    pub(crate) rflags: u64,
}

/// `struct kvm_segment`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(crate) struct Segment {
    pub(crate) base: u64,
    pub(crate) limit: u32,
    pub(crate) selector: u16,
    pub(crate) kind: u8,
    pub(crate) present: u8,
    pub(crate) dpl: u8,
    pub(crate) db: u8,
    pub(crate) s: u8,
    pub(crate) l: u8,
    pub(crate) g: u8,
    pub(crate) avl: u8,
    pub(crate) unusable: u8,
    pub(crate) padding: u8,
}

/// `struct kvm_sregs`.
#[repr(C)]
#[derive(Default)]
pub(crate) struct Sregs {
    pub(crate) cs: Segment,
    /// ds, es, fs, gs and ss.
    pub(crate) data: [Segment; 5],
    pub(crate) tr_ldt: [Segment; 2],
    /// gdt and idt.
    pub(crate) tables: [[u64; 2]; 2],
    pub(crate) cr0: u64,
    pub(crate) cr2: u64,
    pub(crate) cr3: u64,
    pub(crate) cr4: u64,
    pub(crate) cr8: u64,
    pub(crate) efer: u64,
    pub(crate) apic_base: u64,
    pub(crate) interrupts: [u64; 4],
}

/// `struct kvm_cpuid2` with room for more entries than any kernel returns.
#[repr(C)]
struct Cpuid {
    count: u32,
    padding: u32,
    entries: [[u32; 10]; 256],
}

/// The part of `struct kvm_run` that is read: the exit reason, and `io` of the union.
#[repr(C)]
struct Run {
    before: [u8; 8],
    exit_reason: u32,
    between: [u8; 20],
    io_direction: u8,
    io_size: u8,
    io_port: u16,
    io_count: u32,
    io_data_offset: u64,
}

const KVM_EXIT_IO: u32 = 2;

const _: () = {
    assert!(size_of::<Regs>() == 0x90 && size_of::<Sregs>() == 0x138 && size_of::<MemoryRegion>() == 0x20);
    assert!(std::mem::offset_of!(Run, exit_reason) == 8 && std::mem::offset_of!(Run, io_direction) == 32);
};

/// Starts the child. Its report comes over the pipe: nothing, if it dies before.
///
/// # Errors
/// When there is no pipe or no process to be had.
pub(crate) fn spawn_probe() -> io::Result<(Pid, PipeReader)> {
    let (reader, writer) = io::pipe()?;
    let writer = writer.as_raw_fd();
    // SAFETY: the child calls `report_and_exit`, which makes system calls only and never returns.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => report_and_exit(writer),
        child => match Pid::from_raw(child) {
            Some(pid) => Ok((pid, reader)),
            None => Err(io::ErrorKind::Other.into()),
        },
    }
}

/// Bytes of an encoded [`Report`].
pub(crate) const REPORT_SIZE: usize = 6;

fn encode(report: Report) -> [u8; REPORT_SIZE] {
    let (kind, call, value) = match report {
        Report::Works => (0, 0, 0),
        Report::Version(version) => (1, 0, version),
        Report::Failed(call, errno) => (2, call, errno),
        Report::Exit(reason) => (3, 0, reason),
        Report::WrongResult => (4, 0, 0),
    };
    let value = value.to_le_bytes();
    [kind, call, value[0], value[1], value[2], value[3]]
}

/// The report in what the child wrote; `None` if it is none.
pub(crate) fn decode(bytes: [u8; REPORT_SIZE]) -> Option<Report> {
    let value = i32::from_le_bytes([bytes[2], bytes[3], bytes[4], bytes[5]]);
    match bytes[0] {
        0 => Some(Report::Works),
        1 => Some(Report::Version(value)),
        2 => Some(Report::Failed(bytes[1], value)),
        3 => Some(Report::Exit(value)),
        4 => Some(Report::WrongResult),
        _ => None,
    }
}

fn report_and_exit(writer: RawFd) -> ! {
    // SAFETY: prctl with PR_SET_PDEATHSIG touches no memory: a probe whose caller died has nobody to report to.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
    let report = encode(run_guest());
    // SAFETY: `report` is valid for its length, `writer` is this process's copy of the pipe; `_exit` runs no handlers of
    // the parent's.
    unsafe {
        libc::write(writer, report.as_ptr().cast(), report.len());
        libc::_exit(0)
    }
}

/// An ioctl of KVM's that takes a number or a pointer.
///
/// # Safety
/// If `request` takes a pointer, `argument` must be one to memory of the size and validity `request` demands.
unsafe fn ioctl(fd: RawFd, request: libc::c_ulong, argument: u64) -> Result<i32, i32> {
    // SAFETY: the caller's promise.
    let result = unsafe { libc::ioctl(fd, request as _, argument) };
    if result < 0 { Err(errno()) } else { Ok(result) }
}

fn errno() -> i32 {
    io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO)
}

/// An address as an ioctl wants it.
fn address<T>(value: &mut T) -> u64 {
    std::ptr::from_mut(value) as u64
}

fn run_guest() -> Report {
    match try_guest() {
        Ok(report) => report,
        Err((call, errno)) => Report::Failed(call, errno),
    }
}

fn try_guest() -> Result<Report, (u8, i32)> {
    let at = |call: u8| move |errno: i32| (call, errno);
    // SAFETY: the path is a C string.
    let kvm = unsafe { libc::open(c"/dev/kvm".as_ptr(), libc::O_RDWR | libc::O_CLOEXEC) };
    if kvm < 0 {
        return Err((0, errno()));
    }
    // SAFETY: `kvm` was opened above and belongs to nobody else.
    let kvm = unsafe { OwnedFd::from_raw_fd(kvm) };
    let kvm = kvm.as_raw_fd();
    // SAFETY: neither takes a pointer.
    let (version, vm) =
        unsafe { (ioctl(kvm, KVM_GET_API_VERSION, 0).map_err(at(0))?, ioctl(kvm, KVM_CREATE_VM, 0).map_err(at(1))?) };
    if version != API_VERSION {
        return Ok(Report::Version(version));
    }
    let memory = map(guest::MEMORY_SIZE, None).map_err(at(2))?;
    // SAFETY: the mapping has this size, is zeroed, aligned to a page, and nothing else refers to it. The kernel writes to it
    // only during KVM_RUN, and it is read again only afterwards.
    guest::load(unsafe { std::slice::from_raw_parts_mut(memory, guest::MEMORY_SIZE) });
    let mut region = MemoryRegion {
        slot: 0,
        flags: 0,
        guest_address: 0,
        size: guest::MEMORY_SIZE as u64,
        host_address: memory as u64,
    };
    // SAFETY: `region` is the structure asked for; the memory it names lives until this process ends.
    unsafe { ioctl(vm, KVM_SET_USER_MEMORY_REGION, address(&mut region)).map_err(at(2))? };
    // SAFETY: neither takes a pointer.
    let (vcpu, size) = unsafe {
        (ioctl(vm, KVM_CREATE_VCPU, 0).map_err(at(3))?, ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0).map_err(at(4))?)
    };
    let size = usize::try_from(size).unwrap_or(0);
    if size < size_of::<Run>() {
        return Err((4, libc::EINVAL));
    }
    let run = map(size, Some(vcpu)).map_err(at(4))?;

    let mut cpuid = Cpuid { count: 256, padding: 0, entries: [[0; 10]; 256] };
    let (mut sregs, mut regs) = (Sregs::default(), guest::registers());
    // SAFETY: each argument is a structure of the type its ioctl demands, and `cpuid` has room for the entries it announces.
    unsafe {
        ioctl(kvm, KVM_GET_SUPPORTED_CPUID, address(&mut cpuid)).map_err(at(5))?;
        ioctl(vcpu, KVM_SET_CPUID2, address(&mut cpuid)).map_err(at(5))?;
        ioctl(vcpu, KVM_GET_SREGS, address(&mut sregs)).map_err(at(6))?;
        guest::enter_long_mode(&mut sregs);
        ioctl(vcpu, KVM_SET_SREGS, address(&mut sregs)).map_err(at(6))?;
        ioctl(vcpu, KVM_SET_REGS, address(&mut regs)).map_err(at(6))?;
    }
    // SAFETY: takes no pointer; the guest can write to the two mappings only, to which no reference is alive.
    while let Err(errno) = unsafe { ioctl(vcpu, KVM_RUN, 0) } {
        if errno != libc::EINTR {
            return Err((7, errno));
        }
    }
    // SAFETY: the mapping is at least as large as `Run`, page-aligned, any bit pattern is a valid `Run`, and the kernel writes
    // to it during KVM_RUN only.
    let exit = unsafe { std::ptr::read_volatile(run.cast::<Run>()) };
    if exit.exit_reason != KVM_EXIT_IO {
        return Ok(Report::Exit(exit.exit_reason as i32));
    }
    let data = usize::try_from(exit.io_data_offset).ok().filter(|&offset| offset < size);
    // SAFETY: the offset lies within the mapping, as was just seen.
    let byte = data.map(|offset| unsafe { std::ptr::read_volatile(run.add(offset)) });
    // SAFETY: as for the loading above; the guest does not run any more.
    let memory = unsafe { std::slice::from_raw_parts(memory, guest::MEMORY_SIZE) };
    let right = exit.io_port == guest::PORT && byte == Some(guest::ANSWER) && guest::did_its_work(memory);
    Ok(if right { Report::Works } else { Report::WrongResult })
}

/// Maps anonymous memory, or a descriptor's. Lives until the process ends.
fn map(size: usize, fd: Option<RawFd>) -> Result<*mut u8, i32> {
    let flags = if fd.is_some() { libc::MAP_SHARED } else { libc::MAP_PRIVATE | libc::MAP_ANONYMOUS };
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: a new mapping at an address of the kernel's choice replaces nothing.
    let at = unsafe { libc::mmap(std::ptr::null_mut(), size, protection, flags, fd.unwrap_or(-1), 0) };
    if at == libc::MAP_FAILED { Err(errno()) } else { Ok(at.cast()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_survive_the_pipe() {
        for report in
            [Report::Works, Report::Version(13), Report::Failed(7, libc::EFAULT), Report::Exit(17), Report::WrongResult]
        {
            assert_eq!(decode(encode(report)), Some(report));
        }
        assert_eq!(decode([9; REPORT_SIZE]), None);
    }
}
