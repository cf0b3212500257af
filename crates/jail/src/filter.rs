//! A filter of system calls, as seccomp(2) takes it: a list of what is refused, for programs of which nobody can say what all they call.

use std::io;

use libc::c_long;

/// What happens to who calls what is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The call fails with EPERM.
    Refuse,
    /// The process is killed.
    Kill,
}

/// What changes the kernel or what all share, looks into other processes, or is a large part of the kernel for few users.
pub const KERNEL: &[c_long] = &[
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_pidfd_getfd,
    libc::SYS_kcmp,
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_acct,
    libc::SYS_syslog,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_adjtimex,
    libc::SYS_clock_adjtime,
    libc::SYS_quotactl,
    libc::SYS_name_to_handle_at,
    libc::SYS_open_by_handle_at,
    libc::SYS_fanotify_init,
    libc::SYS_lookup_dcookie,
    libc::SYS_vhangup,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
];

/// What makes or enters namespaces, or changes what is mounted. Those that clone(2) makes are refused with them.
pub const NAMESPACES: &[c_long] = &[
    libc::SYS_unshare,
    libc::SYS_setns,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_open_tree,
    libc::SYS_move_mount,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_mount_setattr,
];

/// What makes sockets, for who is given all it needs. Pairs are not among it.
pub const SOCKETS: &[c_long] = &[libc::SYS_socket];

/// `CLONE_NEW*` that clone(2) takes. `CLONE_NEWTIME` is not among them: it has the place of a signal.
const NEW: u32 = (libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET)
    .cast_unsigned();

#[cfg(target_arch = "x86_64")]
const ARCHITECTURE: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const ARCHITECTURE: u32 = 0xc000_00b7;
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
compile_error!("the filter of system calls knows no other host");

/// A filter, ready to be installed.
#[derive(Debug)]
pub struct Filter(Vec<libc::sock_filter>);

// Places in `struct seccomp_data`; the architectures that there are have their least significant bytes first.
const NUMBER: u32 = 0;
const ARCH: u32 = 4;
const FIRST_ARGUMENT: u32 = 16;

impl Filter {
    /// A filter that refuses these groups of calls.
    pub fn new(refused: &[&[c_long]], verdict: Verdict) -> Self {
        const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
        const EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
        const LESS: u16 = (libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K) as u16;
        const ANY: u16 = (libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K) as u16;
        const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
        let line = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
        let refuse = match verdict {
            Verdict::Refuse => libc::SECCOMP_RET_ERRNO | libc::EPERM.cast_unsigned(),
            Verdict::Kill => libc::SECCOMP_RET_KILL_PROCESS,
        };
        let number = |call: c_long| u32::try_from(call).unwrap_or(u32::MAX);
        let no_namespaces = refused.iter().any(|group| group.contains(&libc::SYS_unshare));
        let mut program = vec![
            // Numbers mean something else to another architecture, and to the one for 32-bit pointers (from 2^30).
            line(LOAD, 0, 0, ARCH),
            line(EQUAL, 1, 0, ARCHITECTURE),
            line(RETURN, 0, 0, libc::SECCOMP_RET_KILL_PROCESS),
            line(LOAD, 0, 0, NUMBER),
            line(LESS, 0, 1, 1 << 30),
            line(RETURN, 0, 0, refuse),
        ];
        for call in refused.iter().copied().flatten() {
            // Other directories, and flags that concern the caller's own, are nothing to refuse.
            if *call != libc::SYS_unshare {
                program.push(line(EQUAL, 0, 1, number(*call)));
                program.push(line(RETURN, 0, 0, refuse));
            }
        }
        if no_namespaces {
            // The flags of clone3 are behind a pointer, where a filter cannot see. The C library then uses clone.
            program.push(line(EQUAL, 0, 1, number(libc::SYS_clone3)));
            program.push(line(RETURN, 0, 0, libc::SECCOMP_RET_ERRNO | libc::ENOSYS.cast_unsigned()));
            let time = 0x80;
            for (call, flags) in [(libc::SYS_clone, NEW), (libc::SYS_unshare, NEW | time)] {
                program.push(line(EQUAL, 0, 4, number(call)));
                program.push(line(LOAD, 0, 0, FIRST_ARGUMENT));
                program.push(line(ANY, 0, 1, flags));
                program.push(line(RETURN, 0, 0, refuse));
                program.push(line(LOAD, 0, 0, NUMBER));
            }
        }
        program.push(line(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW));
        Self(program)
    }

    /// Installs it for the calling thread, for good. No new privileges must be possible any more, or the caller needs `CAP_SYS_ADMIN`. Makes
    /// one system call and nothing else.
    ///
    /// # Errors
    /// Those of seccomp(2).
    pub fn install(&self) -> io::Result<()> {
        let program = libc::sock_fprog {
            len: u16::try_from(self.0.len()).unwrap_or(u16::MAX),
            filter: self.0.as_ptr().cast_mut(),
        };
        // SAFETY: the program is an array of as many instructions as it says, which the kernel copies and does not change.
        let result = unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const program) };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}

#[cfg(test)]
mod tests {
    use std::{ptr, thread};

    use rustix::thread::set_no_new_privs;

    use super::*;

    /// What a thread finds that has the filter.
    fn filtered<T: Send>(attempt: fn() -> T) -> T {
        let filter = Filter::new(&[KERNEL, NAMESPACES], Verdict::Refuse);
        thread::scope(|scope| {
            let thread = scope.spawn(move || {
                set_no_new_privs(true).unwrap();
                filter.install().unwrap();
                attempt()
            });
            thread.join().unwrap()
        })
    }

    fn refusal(result: c_long) -> Option<i32> {
        (result < 0).then(|| io::Error::last_os_error().raw_os_error().unwrap())
    }

    #[test]
    fn what_is_listed_is_refused_and_the_rest_is_not() {
        // SAFETY: calls without pointers that are used: they fail before.
        let calls = || unsafe {
            [
                refusal(libc::syscall(libc::SYS_ptrace, 0, 0, 0, 0)),
                refusal(libc::syscall(libc::SYS_bpf, 0, ptr::null::<u8>(), 0)),
                refusal(libc::syscall(libc::SYS_keyctl, 0, 0, 0, 0, 0)),
                refusal(libc::unshare(libc::CLONE_NEWUSER).into()),
                refusal(libc::unshare(libc::CLONE_FS | libc::CLONE_NEWNS).into()),
                refusal(libc::syscall(libc::SYS_clone, libc::CLONE_NEWUSER | libc::SIGCHLD, 0, 0, 0, 0)),
            ]
        };
        assert_eq!(filtered(calls), [Some(libc::EPERM); 6]);
        // SAFETY: as above.
        let clone3 = || refusal(unsafe { libc::syscall(libc::SYS_clone3, ptr::null::<u8>(), 0) });
        assert_eq!(filtered(clone3), Some(libc::ENOSYS));
        // SAFETY: no pointers.
        assert_eq!(filtered(|| refusal(unsafe { libc::unshare(libc::CLONE_FS) }.into())), None);
        assert!(filtered(|| thread::spawn(|| 7).join().is_ok_and(|seven| seven == 7)));
    }
}
