//! System calls that nobody else needs, each behind a safe function. All unsafe code of this test is here.

use std::{
    ffi::CString,
    io,
    os::unix::{ffi::OsStrExt, process::ExitStatusExt},
    path::Path,
    process::ExitStatus,
    ptr,
};

fn check(result: libc::c_long) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// How a child ends that makes an attempt: with the number of its error, or 0.
pub fn in_a_child(attempt: impl FnOnce() -> io::Result<()>) -> io::Result<ExitStatus> {
    // SAFETY: this process has one thread, so that the child may do whatever it could.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        let code = attempt().map_or_else(|error| error.raw_os_error().unwrap_or(libc::EIO), |()| 0);
        // SAFETY: it has no conditions.
        unsafe { libc::_exit(code) }
    }
    check(pid.into())?;
    let mut status = 0;
    // SAFETY: the number outlives the call.
    check(unsafe { libc::waitpid(pid, &raw mut status, 0) }.into())?;
    Ok(ExitStatus::from_raw(status))
}

pub fn setresuid(id: u32) -> io::Result<()> {
    // SAFETY: no pointers.
    check(unsafe { libc::setresuid(id, id, id) }.into())
}

pub fn setresgid(id: u32) -> io::Result<()> {
    // SAFETY: no pointers.
    check(unsafe { libc::setresgid(id, id, id) }.into())
}

pub fn unshare(flags: i32) -> io::Result<()> {
    // SAFETY: no pointers; the child has one thread.
    check(unsafe { libc::unshare(flags) }.into())
}

/// Mounts a file system in memory, in a namespace that the caller has made for it.
pub fn mount() -> io::Result<()> {
    let (kind, at) = (c"tmpfs".as_ptr(), c"/mnt".as_ptr());
    let (root, private) = (c"/".as_ptr(), libc::MS_REC | libc::MS_PRIVATE);
    // SAFETY: strings that are ended by zero bytes; no data.
    check(unsafe { libc::mount(ptr::null(), root, ptr::null(), private, ptr::null()) }.into())?;
    // SAFETY: as above.
    check(unsafe { libc::mount(kind, at, kind, 0, ptr::null()) }.into())
}

fn path(path: &Path) -> CString {
    CString::new(path.as_os_str().as_bytes()).unwrap_or_default()
}

pub fn chroot(directory: &Path) -> io::Result<()> {
    // SAFETY: a string that is ended by a zero byte.
    check(unsafe { libc::chroot(path(directory).as_ptr()) }.into())
}

/// Makes a node of /dev/null.
pub fn mknod(at: &Path) -> io::Result<()> {
    // SAFETY: a string that is ended by a zero byte.
    check(unsafe { libc::mknod(path(at).as_ptr(), libc::S_IFCHR | 0o666, libc::makedev(1, 3)) }.into())
}

/// Makes a map of four bytes (`BPF_MAP_CREATE`, `BPF_MAP_TYPE_ARRAY`).
pub fn bpf() -> io::Result<()> {
    let attributes = [2_u32, 4, 4, 1, 0, 0, 0, 0, 0, 0, 0, 0];
    // SAFETY: as many numbers as is said, of which the kernel reads that many.
    check(unsafe { libc::syscall(libc::SYS_bpf, 0, attributes.as_ptr(), size_of_val(&attributes)) })
}

/// Adds a key to the process's own keyring.
pub fn add_key() -> io::Result<()> {
    let (kind, payload, process) = (c"user".as_ptr(), c"x".as_ptr(), -2);
    // SAFETY: strings that are ended by zero bytes, and a payload of one byte.
    check(unsafe { libc::syscall(libc::SYS_add_key, kind, kind, payload, 1, process) })
}

pub fn nice(step: i32) -> io::Result<()> {
    // SAFETY: no pointers.
    let now = unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) };
    // SAFETY: no pointers.
    check(unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, now + step) }.into())
}

/// Attaches to a process without stopping it; the end of the caller detaches.
pub fn trace(pid: i32) -> io::Result<()> {
    // SAFETY: no pointers that are used.
    check(unsafe { libc::ptrace(libc::PTRACE_SEIZE, pid, 0, 0) })
}

/// Reads nothing of what it asks for leave to read: the first byte of the program's own code is as good as any.
pub fn read_memory(pid: i32) -> io::Result<()> {
    let mut byte = 0_u8;
    let at = read_memory as *const () as *mut libc::c_void;
    let (here, there) =
        (libc::iovec { iov_base: (&raw mut byte).cast(), iov_len: 1 }, libc::iovec { iov_base: at, iov_len: 1 });
    // SAFETY: both structures and the byte outlive the call; the other address is of another process, which the kernel checks.
    match unsafe { libc::process_vm_readv(pid, &raw const here, 1, &raw const there, 1, 0) } {
        // It may do it, but the other one has nothing there.
        -1 if io::Error::last_os_error().raw_os_error() == Some(libc::EFAULT) => Ok(()),
        result => check(result as libc::c_long),
    }
}

/// Asks whether a signal may be sent.
pub fn signal(pid: i32) -> io::Result<()> {
    // SAFETY: no pointers.
    check(unsafe { libc::kill(pid, 0) }.into())
}
