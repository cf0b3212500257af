//! The system calls that `rustix` does not have, each behind a safe function, and so all of this crate's `unsafe`.

use std::{
    ffi::{CStr, CString, c_char},
    io,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
    ptr,
};

use rustix::process::Pid;

/// How `mount_setattr(2)` changes the propagation of a mount.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Propagation {
    /// Leave it.
    Keep,
    /// Nothing comes, nothing goes.
    Private,
    /// What is mounted at the origin arrives, nothing goes.
    Slave,
    /// Mounts travel between all copies.
    Shared,
}

/// Attributes that every mount of this crate gets: nothing on it is executed, opened as a device or trusted for its
/// set-user-ID bit *by the host*.
pub(crate) const INERT: u64 = libc::MOUNT_ATTR_NODEV | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NOEXEC;
/// No writing through this mount.
pub(crate) const READ_ONLY: u64 = libc::MOUNT_ATTR_RDONLY;

/// Sets attributes and propagation of the mount that `mount` refers to, with all mounts beneath it if `recursive`.
/// See mount_setattr(2); Linux 5.12.
pub(crate) fn mount_setattr(
    mount: BorrowedFd<'_>,
    set: u64,
    propagation: Propagation,
    recursive: bool,
) -> io::Result<()> {
    let attributes = libc::mount_attr {
        attr_set: set,
        attr_clr: 0,
        propagation: match propagation {
            Propagation::Keep => 0,
            Propagation::Private => libc::MS_PRIVATE,
            Propagation::Slave => libc::MS_SLAVE,
            Propagation::Shared => libc::MS_SHARED,
        },
        userns_fd: 0,
    };
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path is a string, the attributes a structure of the length given, and both outlive the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Gives the calling thread a mount namespace of its own, a copy of the one it has.
pub(crate) fn unshare_mounts() -> io::Result<()> {
    // SAFETY: touches no memory; that the thread's working directory is no longer shared with other threads is harmless.
    if unsafe { libc::unshare(libc::CLONE_NEWNS) } < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Calls `work` in a thread whose descriptors are its own: a copy of those that the caller has, of which none is left afterwards,
/// whatever `work` has left open. It gets and gives nothing that could hold one.
pub(crate) fn with_own_descriptors<S: Sync>(subject: &S, data: &[u8], work: fn(&S, &[u8])) -> io::Result<()> {
    let alone = || {
        // SAFETY: touches no memory. Numbers of descriptors mean in this thread what they meant before, and what is opened here stays
        // here: `work` captures nothing and returns nothing, and what it borrows cannot be changed through that.
        if unsafe { libc::unshare(libc::CLONE_FILES) } < 0 {
            return Err(io::Error::last_os_error());
        }
        work(subject, data);
        Ok(())
    };
    std::thread::scope(|scope| scope.spawn(alone).join()).unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Keeps the allocator to one arena: a few threads that allocate little need no pool of pages each.
pub(crate) fn one_arena() {
    // SAFETY: sets a parameter of the allocator; takes no pointers.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
}

/// Gives back to the kernel what the allocator holds and nobody uses.
pub(crate) fn trim_heap() {
    // SAFETY: takes no pointers and leaves every live allocation alone.
    unsafe { libc::malloc_trim(0) };
}

/// Forgets the pages of a shared mapping of guest memory: they stay in the memory it maps, and come back when touched.
/// Does nothing to a mapping that is not shared, whose pages would be lost.
pub(crate) fn forget_shared_pages<B: vm_memory::bitmap::Bitmap>(region: &vm_memory::GuestRegionMmap<B>) {
    if region.flags() & libc::MAP_SHARED != 0 {
        // SAFETY: the region maps these addresses for as long as it is borrowed. Dropping a shared mapping's page table
        // entries changes no contents, so whoever reads or writes there meanwhile notices nothing.
        unsafe { libc::madvise(region.as_ptr().cast(), region.size(), libc::MADV_DONTNEED) };
    }
}

/// Takes over descriptor `number`, which the process was started with.
///
/// # Errors
/// `EBADF` when it is not open.
pub(crate) fn inherited(number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: asking for the flags of a number is harmless whatever it is.
    if unsafe { libc::fcntl(number, libc::F_GETFD) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it is open, and the role that calls this does so once, before anything else could own it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Ends the process at once, without running anything.
pub(crate) fn exit_now(code: i32) -> ! {
    // SAFETY: _exit(2) has no conditions.
    unsafe { libc::_exit(code) }
}

/// What [`spawn`] starts.
pub(crate) struct Command<'a> {
    /// The file to execute.
    pub(crate) executable: &'a CStr,
    /// Its arguments, its name first. The environment is empty.
    pub(crate) arguments: &'a [CString],
    /// What the process gets as descriptors 0, 1, 2 and so on; it gets no other.
    pub(crate) descriptors: &'a [BorrowedFd<'a>],
    /// `CLONE_NEW*` flags.
    pub(crate) namespaces: i32,
    /// Where the child writes the error number (native order) if it cannot execute; closed by a successful execution.
    pub(crate) failure: BorrowedFd<'a>,
}

/// Descriptors are first moved out of the way of the child's low numbers.
const FREE_FROM: RawFd = 16;

/// Starts a process directly in new namespaces, by clone3(2): it returns before the child has executed.
/// The descriptor refers to the process (pidfd_open(2)).
pub(crate) fn spawn(command: &Command<'_>) -> io::Result<(Pid, OwnedFd)> {
    // Whatever allocates happens here: the child of a process with threads may only make system calls.
    let mut arguments: Vec<*const c_char> = command.arguments.iter().map(|a| a.as_ptr()).collect();
    arguments.push(ptr::null());
    let environment = [ptr::null::<c_char>()];
    let parked = command.descriptors.iter().map(|&fd| park(fd)).collect::<io::Result<Vec<_>>>()?;
    let sources: Vec<RawFd> = parked.iter().map(AsRawFd::as_raw_fd).collect();
    let failure = park(command.failure)?;

    let mut pidfd: RawFd = -1;
    // SAFETY: the structure consists of integers, for which zero is valid and means "nothing asked".
    let mut clone: libc::clone_args = unsafe { std::mem::zeroed() };
    clone.flags = u64::from((command.namespaces | libc::CLONE_PIDFD).cast_unsigned());
    clone.pidfd = (&raw mut pidfd) as u64;
    clone.exit_signal = libc::SIGCHLD as u64;
    // SAFETY: without CLONE_VM this is fork(2): the child runs on a copy of this memory. `pidfd` outlives the call.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw mut clone, size_of::<libc::clone_args>()) };
    match pid {
        0 => {
            // SAFETY: this is the new child, and the pointers stem from C strings and null-terminated arrays that live on.
            unsafe {
                execute(
                    command.executable.as_ptr(),
                    arguments.as_ptr(),
                    environment.as_ptr(),
                    &sources,
                    failure.as_raw_fd(),
                )
            }
        }
        1.. => {
            // SAFETY: clone3 succeeded, so it has stored a new descriptor that nobody else owns.
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::InvalidData)?;
            Ok((pid, pidfd))
        }
        _ => Err(io::Error::last_os_error()),
    }
}

fn park(fd: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    Ok(rustix::io::fcntl_dupfd_cloexec(fd, FREE_FROM)?)
}

/// The child's half of [`spawn`]: system calls only.
///
/// # Safety
/// To be called in a fresh child, with a C string and two null-terminated arrays of C strings.
unsafe fn execute(
    executable: *const c_char,
    arguments: *const *const c_char,
    environment: *const *const c_char,
    sources: &[RawFd],
    failure: RawFd,
) -> ! {
    // SAFETY: numbers, and pointers that the caller vouches for. The signal set is filled in before it is used.
    unsafe {
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        let mut failed = libc::sigprocmask(libc::SIG_SETMASK, &raw const none, ptr::null_mut()) < 0;
        let mut number = 0;
        for &source in sources {
            failed |= libc::dup2(source, number) < 0;
            number += 1;
        }
        failed |= libc::syscall(libc::SYS_close_range, number, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC) < 0;
        if !failed {
            libc::execve(executable, arguments, environment);
        }
        let error = *libc::__errno_location();
        libc::write(failure, (&raw const error).cast(), size_of::<i32>());
        libc::_exit(127)
    }
}

#[cfg(test)]
mod tests {
    use std::{io::Read, os::fd::AsFd};

    use super::*;

    #[test]
    fn a_child_gets_the_descriptors_it_was_given_and_no_other() {
        let (mut output, output_end) = std::io::pipe().unwrap();
        let (mut failure, failure_end) = std::io::pipe().unwrap();
        let null = std::fs::File::open("/dev/null").unwrap();
        let shell = c"/bin/sh";
        let arguments = [c"sh".to_owned(), c"-c".to_owned(), c"ls /proc/self/fd; exit 7".to_owned()];
        let (pid, _pidfd) = spawn(&Command {
            executable: shell,
            arguments: &arguments,
            descriptors: &[null.as_fd(), output_end.as_fd(), output_end.as_fd(), null.as_fd()],
            namespaces: 0,
            failure: failure_end.as_fd(),
        })
        .unwrap();
        drop((output_end, failure_end));
        let mut text = String::new();
        output.read_to_string(&mut text).unwrap();
        // The fifth is ls reading the directory.
        assert_eq!(text, "0\n1\n2\n3\n4\n");
        let mut error = Vec::new();
        failure.read_to_end(&mut error).unwrap();
        assert!(error.is_empty());
        let (_, status) = rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty()).unwrap().unwrap();
        assert_eq!(status.exit_status(), Some(7));
    }

    #[test]
    fn a_child_that_cannot_execute_says_why() {
        let (mut failure, failure_end) = std::io::pipe().unwrap();
        let (pid, _pidfd) = spawn(&Command {
            executable: c"/nowhere",
            arguments: &[],
            descriptors: &[],
            namespaces: 0,
            failure: failure_end.as_fd(),
        })
        .unwrap();
        drop(failure_end);
        let mut error = Vec::new();
        failure.read_to_end(&mut error).unwrap();
        assert_eq!(error, libc::ENOENT.to_ne_bytes());
        rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty()).unwrap();
    }
}
