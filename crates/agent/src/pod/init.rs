//! The first process of the pod's process ids.
//!
//! It does nothing: it is there because a namespace of process ids ends with its first process, and orphans go to it. The kernel
//! reaps them for it, because it ignores their ends. Containers see it, so it has nothing that they could want: no files, no
//! rights, an empty root, and a user that no container is by default.

use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

use agent_api::Fault;
use rustix::fs::{Gid, Mode, OFlags, Uid};
use rustix::process::setsid;
use rustix::thread::{set_no_new_privs, set_thread_res_gid, set_thread_res_uid};

use crate::container::status::ChildEnd;
use crate::container::{attach, empty_tmpfs, limit_to_no_capabilities, pivot};
use crate::fault::Context;
use crate::sys;

/// The user that such processes are by custom.
const USER: u32 = 65535;
/// So that it is among the last that are killed for want of memory: with it all containers that share its namespace end.
const OOM_SCORE: &str = "-998";

/// Becomes that process, if all goes well for ever.
pub fn become_init(status: &ChildEnd) -> Result<(), Fault> {
    sys::ignore_children();
    setsid().context(|| "setsid".into())?;
    rustix::thread::set_name(c"pause").context(|| "naming the process".into())?;
    rename_command();
    // Without the right to do so it is killed as others are.
    let _ = std::fs::write("/proc/self/oom_score_adj", OOM_SCORE);
    leave_root().context(|| "leaving the guest's root".into())?;
    limit_to_no_capabilities()?;
    set_no_new_privs(true).context(|| "set no_new_privs".into())?;
    let (uid, gid) = (Uid::from_raw(USER), Gid::from_raw(USER));
    set_thread_res_gid(gid, gid, gid).context(|| format!("becoming group {USER}"))?;
    set_thread_res_uid(uid, uid, uid).context(|| format!("becoming user {USER}"))?;
    status.ready()?;
    sys::close_from(0).context(|| "closing everything".into())?;
    sys::sleep_for_ever()
}

/// Has ps(1) show another command than the agent's: the kernel shows what is in memory where the arguments are.
fn rename_command() {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<u64> = stat
        .rsplit_once(')')
        .map_or("", |(_, fields)| fields)
        .split_ascii_whitespace()
        .map(|field| field.parse().unwrap_or(0))
        .collect();
    // Fields 48 and 49 of proc(5); the first one here is the third.
    let (Some(&start), Some(&end)) = (fields.get(45), fields.get(46)) else { return };
    let length = usize::try_from(end.saturating_sub(start)).unwrap_or(0).min(4096);
    let mut text = vec![0; length];
    for (to, from) in text.iter_mut().zip(b"pause") {
        *to = *from;
    }
    // It only is about what is shown.
    if let (Some(last), Ok(memory)) = (text.last_mut(), std::fs::OpenOptions::new().write(true).open("/proc/self/mem"))
    {
        *last = 0;
        let _ = memory.write_all_at(&text, start);
    }
}

/// Exchanges the root for an empty one, in a mount namespace of its own.
fn leave_root() -> std::io::Result<()> {
    let empty = empty_tmpfs()?;
    let place = rustix::fs::open("/proc", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    attach(&empty, place.as_fd())?;
    pivot(&empty)
}
