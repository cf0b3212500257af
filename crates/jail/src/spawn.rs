//! Takes everything away from a process between fork and exec that it is not declared to need.
//!
//! Only system calls happen there: no allocation, no lock, no formatting. Which step failed is told over a pipe, because the
//! standard library passes on the error number alone.

use std::{
    fs::File,
    io::{self, PipeReader, Read},
    os::{
        fd::{AsRawFd, BorrowedFd, OwnedFd},
        unix::{
            fs::{FileExt, FileTypeExt},
            process::CommandExt,
        },
    },
    path::{Path, PathBuf},
    process::{Child, Command},
};

use rustix::{
    fs::{Mode, OFlags},
    io::{Errno, FdFlags, fcntl_setfd},
    process::{Pid, Resource, Rlimit, Signal, getpid, getppid, set_parent_process_death_signal, setrlimit, setsid},
    thread::{
        Gid, Uid, UnshareFlags, clear_ambient_capability_set, set_no_new_privs, set_thread_groups, set_thread_res_gid,
        set_thread_res_uid,
    },
};

use crate::{
    declared::{Declaration, Files, User, empty_bounding_set},
    filter::Filter,
    landlock::{Access, Rules},
};

/// What a process is given, beside what is declared.
#[derive(Debug)]
pub struct Confinement {
    /// What it may do.
    pub declaration: &'static Declaration,
    /// Descriptors that stay open under their own numbers, besides the standard ones. What they are of may be opened anew by
    /// `/proc/self/fd`, as they were opened.
    pub inherit: Vec<OwnedFd>,
    /// User and group id, not `u32::MAX`; `None` keeps the caller's.
    pub uid: Option<u32>,
    /// The one supplementary group, if any.
    pub group: Option<u32>,
    /// The caller is root: give namespaces of its own to the process and empty its capability bounding set. Both need
    /// privileges, and without privileges there is nothing to take.
    pub privileged: bool,
}

impl Confinement {
    /// Nothing but what is declared, as the caller's user.
    pub fn new(declaration: &'static Declaration) -> Self {
        Self { declaration, inherit: Vec::new(), uid: None, group: None, privileged: false }
    }
}

/// A confinement and what of it is made before the fork.
struct Prepared {
    confinement: Confinement,
    rules: Option<Rules>,
    filter: Filter,
    parent: Pid,
}

/// What is done in the child, in this order; the index is what the pipe carries.
const STEPS: [&str; 12] = [
    "start a session of its own",
    "leave the host's namespaces",
    "forbid core dumps",
    "drop the capability bounding set",
    "take its user and group ids",
    "drop its capabilities",
    "forbid itself new privileges",
    "tie its life to its parent's",
    "keep its parent's descriptors from it",
    "inherit its descriptors",
    "keep to its files (Landlock)",
    "filter its system calls",
];

/// Starts `command` confined.
///
/// # Errors
/// The step that failed, as a verb, and what the system said.
pub fn spawn(mut command: Command, confinement: Confinement) -> Result<Child, (&'static str, io::Error)> {
    let (mut failed, report) = io::pipe().map_err(|error| ("make a pipe", error))?;
    let declaration = confinement.declaration;
    let rules = rules(Path::new(command.get_program()), &confinement)
        .map_err(|error| ("list the files that it may reach", error))?;
    let filter = Filter::new(declaration.refused, declaration.verdict);
    let prepared = Prepared { confinement, rules, filter, parent: getpid() };
    let closure = move || {
        for step in 0..STEPS.len() {
            if let Err(error) = take(step, &prepared) {
                let _ = rustix::io::write(&report, &[step as u8]);
                return Err(error.into());
            }
        }
        Ok(())
    };
    // SAFETY: the closure runs in the child of a fork, where only async-signal-safe functions may be called. `take` makes raw
    // system calls through rustix and libc alone; nothing it or this closure does allocates, locks or unwinds.
    unsafe { command.pre_exec(closure) };
    let spawned = command.spawn();
    // The command owns the closure and so the writing end of the pipe and the inherited descriptors.
    drop(command);
    spawned.map_err(|error| (failed_step(&mut failed), error))
}

/// The step the child named, or the last one of all, which has no number.
fn failed_step(report: &mut PipeReader) -> &'static str {
    let mut step = [u8::MAX];
    match report.read(&mut step) {
        Ok(1) => STEPS.get(usize::from(step[0])).copied().unwrap_or("run the program"),
        _ => "run the program",
    }
}

/// What may be reached of file systems. None where that is not for Landlock to say, or the kernel has none.
fn rules(program: &Path, confinement: &Confinement) -> io::Result<Option<Rules>> {
    let Files::Beneath { read, write } = confinement.declaration.files else { return Ok(None) };
    let Some(rules) = Rules::new()? else { return Ok(None) };
    // What is no ELF file is a script, of which nobody knows what it executes.
    let interpreter = interpreter(program);
    let library = if interpreter.is_some() { Access::Read } else { Access::Execute };
    rules.path(program, Access::Execute)?;
    if let Some(Some(interpreter)) = &interpreter {
        rules.path(interpreter, Access::Execute)?;
    }
    // Where a program's own data and libraries are, if it is not installed with those of the system.
    let prefix = program.canonicalize().ok().and_then(|file| Some(file.parent()?.parent()?.to_path_buf()));
    let own = prefix.iter().flat_map(|prefix| ["share", "lib", "lib64", "libexec"].map(|part| prefix.join(part)));
    for path in read.iter().map(PathBuf::from).chain(own) {
        rules.path(&path, library)?;
    }
    for path in write {
        rules.path(Path::new(path), Access::Write)?;
    }
    for file in &confinement.inherit {
        let kind = File::from(file.try_clone()?).metadata()?.file_type();
        if kind.is_file() || kind.is_block_device() || kind.is_char_device() {
            let opened = rustix::fs::fcntl_getfl(file)?;
            let may_write = opened.intersects(OFlags::WRONLY | OFlags::RDWR);
            rules.file(file, if may_write { Access::Write } else { Access::Read })?;
        }
    }
    Ok(Some(rules))
}

/// The interpreter that an ELF file of 64 bits names (`PT_INTERP`), if it names one; nothing if it is no such file.
fn interpreter(program: &Path) -> Option<Option<PathBuf>> {
    use std::os::unix::ffi::OsStringExt;

    const INTERPRETER: [u8; 4] = 3_u32.to_le_bytes();
    let file = File::open(program).ok()?;
    let mut header = [0; 64];
    file.read_exact_at(&mut header, 0).ok()?;
    let number = |at: usize| u64::from_le_bytes(std::array::from_fn(|byte| header[at + byte]));
    let short = |at: usize| u64::from(u16::from_le_bytes([header[at], header[at + 1]]));
    if header[..5] != *b"\x7fELF\x02" {
        return None;
    }
    for index in 0..short(56) {
        let mut entry = [0; 56];
        let at = number(32).checked_add(index * short(54))?;
        file.read_exact_at(&mut entry, at).ok()?;
        if entry[..4] == INTERPRETER {
            let number = |at: usize| u64::from_le_bytes(std::array::from_fn(|byte| entry[at + byte]));
            let mut name = vec![0; usize::try_from(number(32)).ok().filter(|length| *length <= 4096)?];
            file.read_exact_at(&mut name, number(8)).ok()?;
            name.truncate(name.iter().position(|byte| *byte == 0).unwrap_or(name.len()));
            return Some(Some(std::ffi::OsString::from_vec(name).into()));
        }
    }
    Some(None)
}

/// One step of [`STEPS`], in the child.
fn take(step: usize, prepared: &Prepared) -> Result<(), Errno> {
    let Prepared { confinement, rules, filter, parent } = prepared;
    let declaration = confinement.declaration;
    match step {
        // A signal for the terminal's foreground process group is not meant for the machine.
        0 => setsid().map(drop),
        1 if confinement.privileged => unshare(UnshareFlags::from_bits_retain(declaration.namespaces.cast_unsigned())),
        2 => {
            let (core, files) = (Some(declaration.core), declaration.open_files);
            setrlimit(Resource::Core, Rlimit { current: core, maximum: core })?;
            files.map_or(Ok(()), |_| setrlimit(Resource::Nofile, Rlimit { current: files, maximum: files }))
        }
        3 if confinement.privileged => empty_bounding_set(),
        4 => take_ids(confinement),
        5 => {
            // A kernel that knows no ambient set has none to clear.
            let _ = clear_ambient_capability_set();
            declaration.keep_capabilities()
        }
        6 => set_no_new_privs(true),
        // After the ids, because changing them clears it.
        7 => {
            set_parent_process_death_signal(Some(Signal::KILL))?;
            // The parent may have died before the kernel was told to watch it.
            if getppid() == Some(*parent) { Ok(()) } else { Err(Errno::SRCH) }
        }
        8 => close_on_exec_from(3),
        9 => confinement.inherit.iter().try_for_each(|fd| fcntl_setfd(fd, FdFlags::empty())),
        10 => rules.as_ref().map_or(Ok(()), keep_to),
        11 => filter.install().map_err(|error| errno(&error)),
        _ => Ok(()),
    }
}

fn keep_to(rules: &Rules) -> Result<(), Errno> {
    // Its own only now is what it is called: a process that is forked is another one.
    let itself = rustix::fs::open(c"/proc/self", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    rules.file(&itself, Access::Read).and_then(|()| rules.keep()).map_err(|error| errno(&error))
}

fn errno(error: &io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::INVAL)
}

fn unshare(flags: UnshareFlags) -> Result<(), Errno> {
    // SAFETY: none of the namespaces asked for is one that other threads' memory or descriptors depend on, and a forked child
    // has no other thread.
    unsafe { rustix::thread::unshare_unsafe(flags) }
}

fn take_ids(confinement: &Confinement) -> Result<(), Errno> {
    let Some(id) = confinement.uid.filter(|_| confinement.declaration.user == User::OfSandbox) else { return Ok(()) };
    let (uid, gid) = (Uid::from_raw(id), Gid::from_raw(id));
    match confinement.group {
        Some(group) => set_thread_groups(&[Gid::from_raw(group)])?,
        None => set_thread_groups(&[])?,
    }
    set_thread_res_gid(gid, gid, gid)?;
    set_thread_res_uid(uid, uid, uid)
}

/// Marks every descriptor from `first` on to be closed by exec. Descriptors that this process inherited unmarked would
/// otherwise reach the hypervisor.
fn close_on_exec_from(first: u32) -> Result<(), Errno> {
    // SAFETY: close_range with CLOSE_RANGE_CLOEXEC closes nothing and touches no memory; it sets a flag that exec reads.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    if result == 0 { Ok(()) } else { Err(errno(&io::Error::last_os_error())) }
}

/// The number a descriptor keeps in the child.
pub fn number(fd: &OwnedFd) -> i32 {
    BorrowedFd::as_raw_fd(&std::os::fd::AsFd::as_fd(fd))
}

#[cfg(test)]
mod tests {
    use std::process::Stdio;

    use super::*;
    use crate::QEMU;

    /// As QEMU, but a shell may execute other programs.
    static SHELL: Declaration = Declaration { name: "a shell", files: Files::Root, ..QEMU };

    fn run(program: &str, script: &str, confinement: Confinement) -> String {
        let mut command = Command::new(program);
        command.args(["-c", script]).stdin(Stdio::null()).stdout(Stdio::piped());
        let output = spawn(command, confinement).unwrap().wait_with_output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    }

    fn is_root() -> bool {
        let root = rustix::process::geteuid().is_root();
        if !root {
            eprintln!("skipped: needs root to take privileges away");
        }
        root
    }

    #[test]
    fn nothing_is_left_of_root() {
        if !is_root() {
            return;
        }
        let (_reader, writer) = io::pipe().unwrap();
        let kept = writer.as_raw_fd();
        let confinement = Confinement {
            inherit: vec![writer.into()],
            uid: Some(0x6b00_1234),
            group: Some(0x6b00_4321),
            privileged: true,
            ..Confinement::new(&SHELL)
        };
        let status =
            run("/bin/sh", "cat /proc/self/status; ls /proc/$$/fd; ulimit -c; wc -l </proc/net/dev", confinement);
        for line in [
            "Uid:\t1795166772\t1795166772\t1795166772\t1795166772",
            "Gid:\t1795166772\t1795166772\t1795166772\t1795166772",
            "Groups:\t1795179297 ",
            "CapInh:\t0000000000000000",
            "CapPrm:\t0000000000000000",
            "CapEff:\t0000000000000000",
            "CapBnd:\t0000000000000000",
            "CapAmb:\t0000000000000000",
            "NoNewPrivs:\t1",
        ] {
            assert!(status.lines().any(|found| found == line), "{line:?} is not in:\n{status}");
        }
        let after: Vec<&str> = status.lines().skip_while(|line| !line.starts_with("nonvoluntary")).skip(1).collect();
        let kept = kept.to_string();
        // Its own descriptors, no core, and a network with nothing but the loopback device.
        let mut descriptors = ["0", "1", "2", kept.as_str()];
        // As ls sorts them.
        descriptors.sort_unstable();
        assert_eq!(after, [&descriptors[..], &["0", "3"]].concat(), "{status}");
    }

    #[test]
    fn root_that_stays_root_has_no_capability() {
        if !is_root() {
            return;
        }
        let confinement = Confinement { privileged: true, ..Confinement::new(&SHELL) };
        let status = run("/bin/sh", "grep -E '^(Cap|Uid)' /proc/self/status", confinement);
        assert!(
            status.contains("CapEff:\t0000000000000000") && status.contains("CapPrm:\t0000000000000000"),
            "{status}"
        );
        assert!(status.contains("Uid:\t0\t0\t0\t0"), "{status}");
    }

    #[test]
    fn dies_with_the_thread_that_started_it() {
        let uid = is_root().then_some(0x6b00_1234);
        let mut command = Command::new("/bin/sleep");
        command.arg("1000").stdin(Stdio::null());
        let confinement = Confinement { uid, ..Confinement::new(&SHELL) };
        let mut child = std::thread::spawn(move || spawn(command, confinement).unwrap()).join().unwrap();
        let status = child.wait().unwrap();
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(libc::SIGKILL));
    }

    #[test]
    fn the_failing_step_is_named() {
        let (step, error) = spawn(Command::new("/nonexistent"), Confinement::new(&SHELL)).unwrap_err();
        assert_eq!((step, error.kind()), ("run the program", io::ErrorKind::NotFound));
        let (mut reader, mut writer) = io::pipe().unwrap();
        io::Write::write_all(&mut writer, &[4]).unwrap();
        drop(writer);
        assert_eq!(failed_step(&mut reader), "take its user and group ids");
        assert_eq!(failed_step(&mut reader), "run the program", "nothing was written");
    }
}
