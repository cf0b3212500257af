//! What a process does between fork and exec.
//!
//! It is a copy of the agent with one thread, so it may do anything but touch the runtime (tokio) it was copied with. Descriptors:
//! 0 to 2 are its stdio, 3 is [`ChildEnd`]; all others are closed first, so nothing of the agent is left in a process
//! that waits to be started. What goes wrong is reported over descriptor 3 in runc's words.

use std::convert::Infallible;
use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use agent_api::{Fault, SeccompFilter};
use rustix::fs::{Gid, Mode, OFlags, Uid};
use rustix::io::Errno;
use rustix::process::{chdir, ioctl_tiocsctty, setsid, umask};
use rustix::thread::{
    move_into_thread_name_spaces, set_keep_capabilities, set_no_new_privs, set_thread_res_gid, set_thread_res_uid,
};

use super::capabilities::Sets;
use super::mount::{attach, clone_tree};
use super::namespaces::Namespaces;
use super::status::ChildEnd;
use super::{hooks, lookup, rlimits, rootfs, sysctl, user};
use crate::fault::{Context, NOT_STARTED, internal, invalid, prefixed, reason};
use crate::io::Wiring;
use crate::spec::{Process, Spec};
use crate::{sys, tty};

/// Where the status socket is.
const STATUS: i32 = 3;

/// Execution domains (sys/personality.h).
const PER_LINUX: u64 = 0;
const PER_LINUX32: u64 = 8;

/// What the first process of a container needs to know.
pub struct First<'a> {
    /// Name of the container.
    pub id: &'a str,
    /// Its configuration.
    pub spec: &'a Spec,
    /// Its namespaces; the process is in those of `clone_flags` already.
    pub namespaces: Namespaces,
    /// Directory of its cgroup, which the process is in already.
    pub cgroup: &'a Path,
    /// Its filter.
    pub seccomp: Option<&'a SeccompFilter>,
    /// What its hooks are told.
    pub told: Option<&'a str>,
}

/// What a further process of a container needs to know.
pub struct Further<'a> {
    /// Name of the container.
    pub id: &'a str,
    /// The process.
    pub process: &'a Process,
    /// The container's namespaces.
    pub namespaces: Namespaces,
    /// The container's first process.
    pub pidfd: &'a OwnedFd,
    /// Its filter.
    pub seccomp: Option<&'a SeccompFilter>,
}

/// Becomes the first process of a container.
pub fn become_first(first: &First<'_>, wiring: &Wiring, status: &ChildEnd) -> ! {
    let status = arrange(wiring, status).and_then(close_others);
    run(status, |status| {
        first.prepare(wiring, status).map_err(|fault| prefixed("error during container init: ", fault))?;
        let hooks = |env: &[CString]| hooks::run(first.spec.start_hooks(), first.told.unwrap_or("{}"), env);
        finish(&first.spec.process, first.seccomp, ChildEnd::wait, hooks, status)
    })
}

/// Becomes a further process of a container.
pub fn become_further(further: &Further<'_>, wiring: &Wiring, status: &ChildEnd) -> ! {
    run(arrange(wiring, status), |status| {
        further.prepare(status)?;
        finish(further.process, further.seccomp, |_| Ok(()), |_| Ok(()), status)
    })
}

/// Becomes a process outside of containers: in the agent's namespaces, with its rights.
pub fn become_outside(process: &Process, wiring: &Wiring, status: &ChildEnd) -> ! {
    let status = arrange(wiring, status).and_then(close_others);
    run(status, |status| {
        new_session("console")?;
        if process.terminal {
            open_terminal(process, status)?;
        }
        enter_cwd(&process.cwd, false)?;
        execute(process, |_| Ok(()), || Ok(()), |_| Ok(()), status)
    })
}

fn run(status: io::Result<ChildEnd>, body: impl FnOnce(&ChildEnd) -> Result<Infallible, Fault>) -> ! {
    // Without a way to report, the end of this process is the report.
    if let Ok(status) = status
        && let Err(fault) = body(&status)
    {
        status.failed(prefixed(NOT_STARTED, fault));
    }
    sys::exit_now(1)
}

/// Puts stdio and status to their places.
fn arrange(wiring: &Wiring, status: &ChildEnd) -> io::Result<ChildEnd> {
    sys::restore_signals();
    // Descriptors of the agent are above 2, so none is overwritten before it was copied; the last of them may be 3.
    let highest = lift(status.fd().as_fd())?;
    for (target, fd) in (0..).zip(&wiring.fds) {
        sys::place(fd.as_fd(), target)?;
    }
    sys::place(highest.as_fd(), STATUS)?;
    Ok(ChildEnd::new(sys::take_placed(STATUS)?))
}

/// A copy of a descriptor that is above the places.
fn lift(fd: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    Ok(rustix::io::fcntl_dupfd_cloexec(fd, STATUS + 1)?)
}

fn close_others(status: ChildEnd) -> io::Result<ChildEnd> {
    sys::close_from(STATUS as u32 + 1)?;
    Ok(status)
}

impl First<'_> {
    fn prepare(&self, wiring: &Wiring, status: &ChildEnd) -> Result<(), Fault> {
        let process = &self.spec.process;
        new_session(self.id)?;
        if self.namespaces.user {
            // The agent maps ids, and sets limits that this process has no right to set any more.
            status.wait()?;
            become_root()?;
        } else {
            rlimits::apply(process, None, "ready process")?;
        }
        if self.namespaces.cgroup {
            sys::unshare(libc::CLONE_NEWCGROUP).context(|| "making a cgroup namespace".into())?;
        }
        sysctl::write(&self.spec.linux.sysctl, false)?;
        self.set_names()?;
        rootfs::enter(self.spec, self.cgroup, self.namespaces.cgroup)?;
        reopen_null(wiring.is_null)?;
        make_cwd(&process.cwd)?;
        if process.terminal {
            let terminal = open_terminal(process, status)?;
            show_as_console(&terminal)?;
        }
        umask(Mode::from_raw_mode(0o022));
        rootfs::seal(self.spec)?;
        if let Some(personality) = &self.spec.linux.personality {
            let persona = match personality.domain.as_str() {
                "LINUX" => PER_LINUX,
                "LINUX32" => PER_LINUX32,
                name => {
                    return Err(invalid(format!("linux.personality.domain is {name:?}, expected LINUX or LINUX32")));
                }
            };
            sys::personality(persona).context(|| "setting the personality".into())?;
        }
        Ok(())
    }

    fn set_names(&self) -> Result<(), Fault> {
        let names = [
            ("hostname", &self.spec.hostname, rustix::system::sethostname as fn(&[u8]) -> _),
            ("domainname", &self.spec.domainname, rustix::system::setdomainname),
        ];
        for (key, name, set) in names {
            let Some(name) = name.as_ref().filter(|name| !name.is_empty()) else { continue };
            if !self.namespaces.uts {
                return Err(invalid(format!(
                    "{key} is {name:?}, expected none without a UTS namespace of the container's own"
                )));
            }
            set(name.as_bytes()).context(|| format!("set{key} {name:?}"))?;
        }
        Ok(())
    }
}

impl Further<'_> {
    fn prepare(&self, status: &ChildEnd) -> Result<(), Fault> {
        rlimits::apply(self.process, None, "process")?;
        move_into_thread_name_spaces(self.pidfd.as_fd(), self.namespaces.to_join())
            .context(|| "joining the container's namespaces".into())?;
        sys::close_from(STATUS as u32 + 1).context(|| "closing the agent's descriptors".into())?;
        new_session(self.id)?;
        if self.namespaces.user {
            become_root()?;
        }
        if self.process.terminal {
            open_terminal(self.process, status)?;
        }
        Ok(())
    }
}

fn new_session(id: &str) -> Result<(), Fault> {
    setsid().context(|| "setsid".into())?;
    let name = CString::new(format!("_ses.{id}")).map_err(|_| invalid("the container's name has a NUL"))?;
    match sys::new_session_keyring(&name) {
        // A kernel without keys, or a user who has too many.
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::EDQUOT)) => Ok(()),
        other => other.context(|| "joining a session keyring".into()),
    }
}

/// Becomes root of the user namespace that this process is in.
fn become_root() -> Result<(), Fault> {
    let (uid, gid) = (Uid::ROOT, Gid::ROOT);
    set_thread_res_gid(gid, gid, gid).context(|| "becoming group 0 of the user namespace".into())?;
    set_thread_res_uid(uid, uid, uid).context(|| "becoming user 0 of the user namespace".into())
}

/// Exchanges the guest's /dev/null for the container's.
fn reopen_null(is_null: [bool; 3]) -> Result<(), Fault> {
    if is_null == [false; 3] {
        return Ok(());
    }
    let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOCTTY;
    let null = rustix::fs::open("/dev/null", flags, Mode::empty()).context(|| "open /dev/null".into())?;
    for (target, _) in (0..).zip(is_null).filter(|(_, is_null)| *is_null) {
        sys::place(null.as_fd(), target).context(|| "reopen /dev/null inside container".into())?;
    }
    Ok(())
}

/// Makes the working directory, as runc does, so that an image need not have it.
fn make_cwd(cwd: &Path) -> Result<(), Fault> {
    // The usual case costs one call.
    if cwd.as_os_str().is_empty()
        || rustix::fs::stat(cwd).is_ok_and(|stat| stat.st_mode & libc::S_IFMT == libc::S_IFDIR)
    {
        return Ok(());
    }
    let mut path = std::path::PathBuf::new();
    for component in cwd.components() {
        path.push(component);
        match rustix::fs::stat(&path) {
            Ok(stat) if stat.st_mode & libc::S_IFMT == libc::S_IFDIR => {}
            Ok(_) => return Err(Errno::NOTDIR).context(|| format!("mkdir {}", path.display())),
            Err(_) => {
                rustix::fs::mkdir(&path, Mode::from_raw_mode(0o755)).context(|| format!("mkdir {}", path.display()))?
            }
        }
    }
    Ok(())
}

/// Makes a terminal, gives it to the agent, and takes its other end as stdio and controlling terminal.
fn open_terminal(process: &Process, status: &ChildEnd) -> Result<tty::Terminal, Fault> {
    let terminal = tty::open(process)?;
    status.terminal(&terminal.master)?;
    for target in 0..3 {
        sys::place(terminal.slave.as_fd(), target).context(|| "making the terminal the standard streams".into())?;
    }
    ioctl_tiocsctty(&terminal.slave).context(|| "making the terminal the controlling one".into())?;
    Ok(terminal)
}

fn show_as_console(terminal: &tty::Terminal) -> Result<(), Fault> {
    let what = || "mounting the terminal on /dev/console".into();
    let flags = OFlags::CREATE | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NOCTTY;
    match rustix::fs::open("/dev/console", flags, Mode::from_raw_mode(0o666)) {
        Ok(_) | Err(Errno::NXIO | Errno::PERM | Errno::ROFS) => {}
        Err(error) => return Err(error).context(what),
    }
    let place = rustix::fs::open("/dev/console", OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty());
    let place = place.context(what)?;
    let tree = clone_tree(terminal.slave.as_fd(), false).context(what)?;
    attach(&tree, place.as_fd()).context(what)
}

/// The last steps, which first and further processes share: give up rights, find the program, and become it.
fn finish(
    process: &Process,
    seccomp: Option<&SeccompFilter>,
    wait: impl FnOnce(&ChildEnd) -> Result<(), Fault>,
    hooks: impl FnOnce(&[CString]) -> Result<(), Fault>,
    status: &ChildEnd,
) -> Result<Infallible, Fault> {
    let user = &process.user;
    umask(Mode::from_raw_mode(user.umask.unwrap_or(0o022) & 0o777));
    rlimits::schedule(process)?;
    let no_new_privileges = process.no_new_privileges;
    if no_new_privileges {
        set_no_new_privs(true).context(|| "set no_new_privs".into())?;
    } else {
        // Without it, only who has CAP_SYS_ADMIN may install a filter, so now is the time.
        filter(seccomp)?;
    }

    let filter_late = || if no_new_privileges { filter(seccomp) } else { Ok(()) };

    let entered = enter_cwd(&process.cwd, true)?;
    let sets = Sets::new(process.capabilities.as_ref())?;
    sets.limit()?;
    set_keep_capabilities(true).context(|| "unable to set keep caps".into())?;
    user::become_user(user)?;
    if !entered {
        enter_cwd(&process.cwd, false)?;
    }
    set_keep_capabilities(false).context(|| "unable to clear keep caps".into())?;
    sets.apply()?;
    execute(process, wait, filter_late, hooks, status)
}

/// Becomes the program, once the caller has been told that all is ready.
fn execute(
    process: &Process,
    wait: impl FnOnce(&ChildEnd) -> Result<(), Fault>,
    filter: impl FnOnce() -> Result<(), Fault>,
    hooks: impl FnOnce(&[CString]) -> Result<(), Fault>,
    status: &ChildEnd,
) -> Result<Infallible, Fault> {
    let env = Environment::new(&process.env, || user::home(process.user.uid))?;
    let args = &process.args;
    let name = args.first().ok_or_else(|| invalid("process.args is empty, expected a command"))?;
    let program = lookup::find(name, env.get("PATH").unwrap_or(""))?;
    let (program, args, env) = (c_string(&program)?, c_strings(args.iter())?, c_strings(env.lines())?);

    status.ready()?;
    wait(status)?;
    filter()?;
    // They are in the container, and its filter holds for them.
    hooks(&env)?;
    let error = sys::execve(&program, &references(&args), &references(&env));
    // The caller was told that the process exists, so this is said as the process would say it.
    let text = format!("exec {}: {}\n", program.to_string_lossy(), reason(&error));
    // It is the last thing this process does; there is nobody left to tell.
    let _ = rustix::io::write(rustix::stdio::stderr(), text.as_bytes());
    sys::exit_now(1)
}

fn filter(seccomp: Option<&SeccompFilter>) -> Result<(), Fault> {
    let Some(filter) = seccomp else { return Ok(()) };
    sys::seccomp(&filter.program, filter.flags)
        .context(|| "unable to init seccomp: error loading seccomp filter into kernel".into())
}

/// Enters the working directory. A user may be allowed to where root, by a network file system, is not: `retry` tells whether there
/// is another attempt. Gives whether it was entered.
fn enter_cwd(cwd: &Path, retry: bool) -> Result<bool, Fault> {
    match chdir(cwd) {
        Ok(()) => Ok(true),
        Err(Errno::PERM | Errno::ACCESS) if retry => Ok(false),
        Err(error) => {
            Err(internal(format!("chdir to cwd ({cwd:?}) set in config.json failed: {}", reason(&error.into()))))
        }
    }
}

/// A process's environment: of two with the same name the later one counts.
struct Environment(Vec<(String, String)>);

impl Environment {
    fn new(lines: &[String], home: impl FnOnce() -> String) -> Result<Self, Fault> {
        let mut env = Self(Vec::with_capacity(lines.len() + 1));
        for line in lines {
            let (name, value) = line
                .split_once('=')
                .ok_or_else(|| invalid(format!("invalid environment variable {line:?}: missing '='")))?;
            env.set(name, value);
        }
        if env.get("HOME").is_none_or(str::is_empty) {
            env.set("HOME", &home());
        }
        Ok(env)
    }

    fn set(&mut self, name: &str, value: &str) {
        match self.0.iter_mut().find(|(known, _)| known == name) {
            Some((_, known)) => value.clone_into(known),
            None => self.0.push((name.to_owned(), value.to_owned())),
        }
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    fn lines(&self) -> impl Iterator<Item = String> {
        self.0.iter().map(|(name, value)| format!("{name}={value}"))
    }
}

fn c_string(text: &str) -> Result<CString, Fault> {
    CString::new(text).map_err(|_| invalid(format!("{text:?} has a NUL")))
}

fn c_strings(texts: impl Iterator<Item = impl AsRef<str>>) -> Result<Vec<CString>, Fault> {
    texts.map(|text| c_string(text.as_ref())).collect()
}

fn references(strings: &[CString]) -> Vec<&CStr> {
    strings.iter().map(CString::as_c_str).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env(lines: &[&str]) -> Vec<String> {
        let lines: Vec<String> = lines.iter().map(ToString::to_string).collect();
        Environment::new(&lines, || "/home/x".into()).unwrap().lines().collect()
    }

    #[test]
    fn the_later_of_two_counts_and_home_is_added() {
        assert_eq!(env(&["A=1", "B=", "A=2=3"]), ["A=2=3", "B=", "HOME=/home/x"]);
        assert_eq!(env(&["HOME=/root"]), ["HOME=/root"]);
        assert_eq!(env(&["HOME="]), ["HOME=/home/x"]);
        assert!(Environment::new(&["A".to_owned()], String::new).is_err());
    }
}
