//! The system calls that `rustix` does not offer, each behind a safe function. All of the agent's unsafe code is here.

use std::ffi::{CStr, c_char, c_int, c_long, c_ulong};
use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Turns what a system call returned into a result.
fn check(returned: c_long) -> io::Result<c_long> {
    if returned < 0 { Err(io::Error::last_os_error()) } else { Ok(returned) }
}

/// Takes over a descriptor that a system call has just returned.
fn own(returned: c_long) -> io::Result<OwnedFd> {
    let raw = RawFd::try_from(check(returned)?).map_err(io::Error::other)?;
    // SAFETY: the kernel has just made this descriptor for us and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}

/// Not in all versions of the C library's headers with the right width (linux/sched.h).
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// `struct clone_args` (linux/sched.h), which the libc crate has for some architectures only.
#[repr(C)]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

/// Which side of [`clone3`] this is.
pub enum Cloned {
    /// The new process.
    Child,
    /// The process that called, with the child's id.
    Parent(u32),
}

/// Forks, with `flags` of clone(2) such as `CLONE_NEWPID`, into a version 2 cgroup given by its directory.
///
/// The child goes on with a copy of everything, as after fork(2). That is sound here because the agent has one
/// thread: no lock can be held by somebody who is missing in the child.
///
/// # Errors
/// Those of clone3(2).
pub fn clone3(flags: u64, cgroup: Option<BorrowedFd<'_>>) -> io::Result<Cloned> {
    let mut args = CloneArgs { flags, exit_signal: libc::SIGCHLD as u64, ..CloneArgs::default() };
    if let Some(cgroup) = cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = cgroup.as_raw_fd() as u64;
    }
    // SAFETY: `args` has the kernel's layout and lives through the call, and no flag among ours shares memory (the callers pass
    // namespaces only).
    let pid = check(unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of::<CloneArgs>()) })?;
    Ok(if pid == 0 { Cloned::Child } else { Cloned::Parent(u32::try_from(pid).map_err(io::Error::other)?) })
}

/// Ends this process without running anything of what the parent had set up.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: _exit(2) takes any code and does not return.
    unsafe { libc::_exit(code) }
}

/// Replaces this process by a program. Returns only if that failed, with the reason.
pub fn execve(path: &CStr, args: &[&CStr], env: &[&CStr]) -> io::Error {
    let pointers = |strings: &[&CStr]| -> Vec<*const c_char> {
        strings.iter().map(|s| s.as_ptr()).chain([std::ptr::null()]).collect()
    };
    let (argv, envp) = (pointers(args), pointers(env));
    // SAFETY: both arrays are null-terminated and point to strings that outlive the call.
    unsafe { libc::execve(path.as_ptr(), argv.as_ptr(), envp.as_ptr()) };
    io::Error::last_os_error()
}

/// Blocks SIGCHLD and gives a non-blocking descriptor that is readable while it is pending.
///
/// # Errors
/// Those of signalfd(2).
pub fn signalfd_of_children() -> io::Result<OwnedFd> {
    // SAFETY: the set is initialised by sigemptyset before it is used, and outlives the calls.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, libc::SIGCHLD);
        check(libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()).into())?;
        own(libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK).into())
    }
}

/// Undoes what the agent and Rust's runtime changed about signals: a new program starts with none blocked or ignored.
pub fn restore_signals() {
    // SAFETY: SIGPIPE, which Rust ignores, gets its default action; the set is initialised before it is used.
    unsafe {
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const set, std::ptr::null_mut());
    }
}

/// Has the kernel reap the children of this process: it does not want to know how they ended.
pub fn ignore_children() {
    // SAFETY: sets an action that is no function.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_IGN) };
}

/// Does nothing until this process is killed.
pub fn sleep_for_ever() -> ! {
    loop {
        // SAFETY: pause(2) touches no memory of ours.
        unsafe { libc::pause() };
    }
}

/// Sends a signal; 0 only checks that the process is there.
///
/// # Errors
/// Those of kill(2).
pub fn kill(pid: u32, signal: i32) -> io::Result<()> {
    let pid = libc::pid_t::try_from(pid).ok().filter(|&pid| pid > 0).ok_or(io::ErrorKind::InvalidInput)?;
    // SAFETY: kill(2) touches no memory of ours.
    check(unsafe { libc::kill(pid, signal) }.into()).map(drop)
}

/// Makes `target` another name of `fd`, closing what was there, kept open across execve(2).
///
/// # Errors
/// Those of dup2(2).
pub fn place(fd: BorrowedFd<'_>, target: RawFd) -> io::Result<()> {
    if fd.as_raw_fd() == target {
        // SAFETY: clears the close-on-exec flag, the only one there is.
        return check(unsafe { libc::fcntl(target, libc::F_SETFD, 0) }.into()).map(drop);
    }
    // SAFETY: only called in a freshly forked child for descriptors 0 to 3, which it then owns by these numbers.
    check(unsafe { libc::dup2(fd.as_raw_fd(), target) }.into()).map(drop)
}

/// Takes over the descriptor that [`place`] put at `target`, and lets execve(2) close it.
///
/// # Errors
/// When there is no such descriptor.
pub fn take_placed(target: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: sets a flag; fails when the descriptor does not exist.
    check(unsafe { libc::fcntl(target, libc::F_SETFD, libc::FD_CLOEXEC) }.into())?;
    // SAFETY: the descriptor is open, and was put there by `place` for whoever calls this.
    Ok(unsafe { OwnedFd::from_raw_fd(target) })
}

/// Closes every descriptor from `first` on. Only for a forked child that uses none of them any more.
///
/// # Errors
/// Those of close_range(2).
pub fn close_from(first: u32) -> io::Result<()> {
    // SAFETY: called in a child that never drops the copies of the parent's owners of these descriptors.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, 0) }).map(drop)
}

/// What [`mount_setattr`] changes: bits of `MOUNT_ATTR_*` and one of `MS_SHARED` and its like.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MountAttr {
    /// Attributes to set.
    pub set: u64,
    /// Attributes to clear, before setting.
    pub clear: u64,
    /// New propagation, or 0.
    pub propagation: u64,
}

impl MountAttr {
    /// Nothing is changed.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Changes the attributes of the mount that `mount` is the root of, and of those below it if `recursive`.
///
/// # Errors
/// Those of mount_setattr(2).
pub fn mount_setattr(mount: BorrowedFd<'_>, recursive: bool, attr: MountAttr) -> io::Result<()> {
    let attr =
        libc::mount_attr { attr_set: attr.set, attr_clr: attr.clear, propagation: attr.propagation, userns_fd: 0 };
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path and the structure outlive the call, and the size given is the structure's.
    check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attr,
            size_of::<libc::mount_attr>(),
        )
    })
    .map(drop)
}

/// Installs a seccomp filter in this process. Needs no_new_privs or CAP_SYS_ADMIN.
///
/// # Errors
/// Those of seccomp(2).
pub fn seccomp(program: &[(u16, u8, u8, u32)], flags: u64) -> io::Result<()> {
    let mut instructions: Vec<libc::sock_filter> =
        program.iter().map(|&(code, jt, jf, k)| libc::sock_filter { code, jt, jf, k }).collect();
    let length = u16::try_from(instructions.len()).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
    let filter = libc::sock_fprog { len: length, filter: instructions.as_mut_ptr() };
    // SAFETY: `filter` and the instructions it points to outlive the call, and `len` is their number.
    check(unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const filter) })
        .map(drop)
}

/// The part of `union bpf_attr` that loading a program uses (linux/bpf.h).
#[repr(C)]
#[derive(Default)]
struct BpfLoad {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
}

/// The part of `union bpf_attr` that attaching a program uses (linux/bpf.h).
#[repr(C)]
struct BpfAttach {
    target_fd: u32,
    attach_bpf_fd: u32,
    attach_type: u32,
    attach_flags: u32,
}

const BPF_PROG_LOAD: c_int = 5;
const BPF_PROG_ATTACH: c_int = 8;
const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const BPF_CGROUP_DEVICE: u32 = 6;
const BPF_F_ALLOW_MULTI: u32 = 2;

/// Loads a device filter: instructions as `struct bpf_insn` in the machine's byte order.
///
/// # Errors
/// Those of bpf(2), for instance that the verifier refused the program.
pub fn load_device_filter(instructions: &[u64]) -> io::Result<OwnedFd> {
    let attr = BpfLoad {
        prog_type: BPF_PROG_TYPE_CGROUP_DEVICE,
        insn_cnt: u32::try_from(instructions.len()).map_err(io::Error::other)?,
        insns: instructions.as_ptr() as u64,
        license: c"Apache-2.0".as_ptr() as u64,
        ..BpfLoad::default()
    };
    // SAFETY: `attr` has the layout the kernel expects, its size is given, and what it points to outlives the call.
    own(unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_LOAD, &raw const attr, size_of::<BpfLoad>()) })
}

/// Attaches a device filter to a cgroup given by its directory.
///
/// # Errors
/// Those of bpf(2).
pub fn attach_device_filter(cgroup: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let attr = BpfAttach {
        target_fd: cgroup.as_raw_fd() as u32,
        attach_bpf_fd: program.as_raw_fd() as u32,
        attach_type: BPF_CGROUP_DEVICE,
        attach_flags: BPF_F_ALLOW_MULTI,
    };
    // SAFETY: `attr` has the layout the kernel expects and its size is given.
    check(unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_ATTACH, &raw const attr, size_of::<BpfAttach>()) }).map(drop)
}

/// Most entropy that is taken at a time, bytes.
const ENTROPY_MAX: usize = 512;

/// `struct rand_pool_info` (linux/random.h) with room for [`ENTROPY_MAX`].
#[repr(C)]
struct RandPoolInfo {
    entropy_count: c_int,
    buf_size: c_int,
    buf: [u8; ENTROPY_MAX],
}

/// `_IOW('R', 0x03, int [2])`, whose number is not the same on every architecture.
const RNDADDENTROPY: c_ulong = rustix::ioctl::opcode::write::<[c_int; 2]>(b'R', 3) as c_ulong;

/// Adds bytes that nobody can predict to the kernel's entropy pool; at most 512 are used.
///
/// # Errors
/// Those of random(4).
pub fn add_entropy(random: BorrowedFd<'_>, bytes: &[u8]) -> io::Result<()> {
    let bytes = &bytes[..bytes.len().min(ENTROPY_MAX)];
    let length = bytes.len() as c_int;
    let mut info = RandPoolInfo { entropy_count: length * 8, buf_size: length, buf: [0; ENTROPY_MAX] };
    info.buf[..bytes.len()].copy_from_slice(bytes);
    // SAFETY: `info` has the layout the kernel expects and `buf_size` is not larger than the buffer.
    check(unsafe { libc::ioctl(random.as_raw_fd(), RNDADDENTROPY, &raw const info) }.into()).map(drop)
}

/// Brings a network interface up, by any socket.
///
/// # Errors
/// Those of netdevice(7).
pub fn interface_up(socket: BorrowedFd<'_>, name: &str) -> io::Result<()> {
    // SAFETY: the structure is plain data, for which zero is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if name.len() >= request.ifr_name.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as i16;
    // SAFETY: the name is terminated, because the array is longer than the name and was zero.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) }.into()).map(drop)
}

/// Leaves namespaces for new ones: flags of unshare(2) that concern no memory.
///
/// # Errors
/// Those of unshare(2).
pub fn unshare(namespaces: c_int) -> io::Result<()> {
    // SAFETY: the flags are namespaces (the callers pass CLONE_NEWCGROUP and CLONE_NEWTIME), not the file table.
    check(unsafe { libc::unshare(namespaces) }.into()).map(drop)
}

/// Gives this process a session keyring of its own.
///
/// # Errors
/// Those of keyctl(2).
pub fn new_session_keyring(name: &CStr) -> io::Result<()> {
    const KEYCTL_JOIN_SESSION_KEYRING: c_int = 1;
    // SAFETY: the name outlives the call.
    check(unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, name.as_ptr()) }).map(drop)
}

/// Sets the execution domain of this process.
///
/// # Errors
/// Those of personality(2).
pub fn personality(persona: c_ulong) -> io::Result<()> {
    // SAFETY: touches no memory of ours.
    check(unsafe { libc::personality(persona) }.into()).map(drop)
}

/// Sets the I/O priority of this process: class (1 to 3) and level (0 to 7).
///
/// # Errors
/// Those of ioprio_set(2).
pub fn set_io_priority(class: u32, level: u32) -> io::Result<()> {
    const IOPRIO_WHO_PROCESS: c_int = 1;
    // SAFETY: touches no memory of ours.
    check(unsafe { libc::syscall(libc::SYS_ioprio_set, IOPRIO_WHO_PROCESS, 0, class << 13 | level) }).map(drop)
}

/// `struct sched_attr` (sched_setattr(2)), without the later fields.
#[repr(C)]
#[derive(Debug, Default)]
pub struct SchedAttr {
    /// Set by [`set_scheduler`].
    pub size: u32,
    /// One of `SCHED_*`.
    pub policy: u32,
    /// `SCHED_FLAG_*`.
    pub flags: u64,
    /// Nice value, for the ordinary policies.
    pub nice: i32,
    /// Priority, for the real-time policies.
    pub priority: u32,
    /// Nanoseconds, for `SCHED_DEADLINE`.
    pub runtime: u64,
    /// Nanoseconds, for `SCHED_DEADLINE`.
    pub deadline: u64,
    /// Nanoseconds, for `SCHED_DEADLINE`.
    pub period: u64,
}

/// Sets the scheduling policy of this process.
///
/// # Errors
/// Those of sched_setattr(2).
pub fn set_scheduler(mut attr: SchedAttr) -> io::Result<()> {
    attr.size = size_of::<SchedAttr>() as u32;
    // SAFETY: the structure has the kernel's layout, its size is in it, and it outlives the call.
    check(unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attr, 0) }).map(drop)
}

/// Ticks per second of the times in `/proc/<pid>/stat`.
pub fn clock_ticks() -> u64 {
    // SAFETY: touches no memory of ours.
    let ticks = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
    u64::try_from(ticks).unwrap_or(100).max(1)
}

/// Bytes in a page of memory.
pub fn page_size() -> u64 {
    // SAFETY: touches no memory of ours.
    let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    u64::try_from(size).unwrap_or(4096)
}

/// Registers a descriptor with the runtime, to be waited for.
///
/// # Errors
/// Those of epoll_ctl(2).
pub fn register(fd: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` is open as long as it lives, always has the same number, and is not changed by others.
    Ok(unsafe { AsyncFd::register_with_interest(fd, interest) }?)
}
