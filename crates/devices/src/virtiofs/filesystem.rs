//! The file system that is served: `virtiofsd`'s, made to need fewer requests. See [the module above](super) for what the
//! guest is spared; this one says how.

use std::{
    collections::HashMap,
    ffi::CStr,
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use virtiofsd::{
    filesystem::{
        Context, Entry, Extensions, FileSystem, FsOptions, GetxattrReply, ListxattrReply, OpenOptions,
        SerializableFileSystem, SetattrValid, SetxattrFlags, ZeroCopyReader, ZeroCopyWriter,
    },
    fuse::{Attr, ROOT_ID, SetattrIn},
    passthrough::PassthroughFs,
};

use super::{Cache, idle::Activity};

/// Two changes of a file this close together may leave the same times on it: the kernel stamps files with the time of its last
/// tick, 10 ms apart at most.
const TICK: Duration = Duration::from_millis(20);

/// What tells one state of a file's contents from another.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Stamp {
    size: u64,
    modified: (u64, u32),
    changed: (u64, u32),
}

impl Stamp {
    /// None while a further change could go unnoticed.
    fn new(attributes: &Attr, now: Duration) -> Option<Self> {
        let changed = Duration::new(attributes.ctime, attributes.ctimensec.min(999_999_999));
        (changed + TICK < now).then_some(Self {
            size: attributes.size,
            modified: (attributes.mtime, attributes.mtimensec),
            changed: (attributes.ctime, attributes.ctimensec),
        })
    }
}

/// The file system of the jail's root directory.
pub struct ThriftyFs {
    inner: PassthroughFs,
    cache: Cache,
    /// How each file was when the guest last opened it. The pages in the guest are no older: it reads them after
    /// opening. Files leave when the guest forgets them, and it can know no more files than the limit on them.
    opened: Mutex<HashMap<u64, Stamp>>,
    activity: Arc<Activity>,
}

impl ThriftyFs {
    /// Tells `activity` of what needs memory, or frees it.
    pub(super) fn new(inner: PassthroughFs, cache: Cache, activity: Arc<Activity>) -> Self {
        Self { inner, cache, opened: Mutex::default(), activity }
    }

    fn opened(&self) -> MutexGuard<'_, HashMap<u64, Stamp>> {
        self.opened.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Remembers how `inode` is now, and says whether it was the same when last opened.
    fn unchanged(&self, ctx: Context, inode: u64) -> bool {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let stamp = self.inner.getattr(ctx, inode, None).ok().and_then(|(attributes, _)| Stamp::new(&attributes, now));
        match stamp {
            Some(stamp) => self.opened().insert(inode, stamp) == Some(stamp),
            None => {
                self.opened().remove(&inode);
                false
            }
        }
    }
}

/// Refuses places in files that no file has. The inner file system panics at them.
fn check_place(offset: u64) -> io::Result<()> {
    i64::try_from(offset).map(drop).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))
}

/// Methods that the inner file system answers as they are.
macro_rules! inner {
    ($(fn $name:ident($($argument:ident: $type:ty),* $(,)?) $(-> $result:ty)?;)*) => {
        $(fn $name(&self, $($argument: $type),*) $(-> $result)? { self.inner.$name($($argument),*) })*
    };
}

impl FileSystem for ThriftyFs {
    type Inode = u64;
    type Handle = u64;
    type DirIter = <PassthroughFs as FileSystem>::DirIter;

    fn init(&self, capable: FsOptions) -> io::Result<FsOptions> {
        self.opened().clear();
        // An inode is the same symbolic link for as long as the guest knows it, and no link's target ever changes.
        let links = if self.cache == Cache::Never { FsOptions::empty() } else { FsOptions::CACHE_SYMLINKS };
        Ok(self.inner.init(capable)? | links)
    }

    fn destroy(&self) {
        self.opened().clear();
        self.inner.destroy();
    }

    /// Names in the root directory are the host's, a few for each container. The guest asks for them each time, so that it lets go of one
    /// that is gone, with all that is below it, as soon as it looks.
    fn lookup(&self, ctx: Context, parent: u64, name: &CStr) -> io::Result<Entry> {
        let mut entry = self.inner.lookup(ctx, parent, name)?;
        if parent == ROOT_ID {
            entry.entry_timeout = Duration::ZERO;
        }
        Ok(entry)
    }

    fn forget(&self, ctx: Context, inode: u64, count: u64) {
        self.activity.note();
        self.opened().remove(&inode);
        self.inner.forget(ctx, inode, count);
    }

    fn batch_forget(&self, ctx: Context, requests: Vec<(u64, u64)>) {
        self.activity.note();
        let mut opened = self.opened();
        for (inode, _) in &requests {
            opened.remove(inode);
        }
        drop(opened);
        self.inner.batch_forget(ctx, requests);
    }

    fn open(&self, ctx: Context, inode: u64, kill_priv: bool, flags: u32) -> io::Result<(Option<u64>, OpenOptions)> {
        let (handle, mut options) = self.inner.open(ctx, inode, kill_priv, flags)?;
        // After opening, which may have truncated it.
        if self.cache == Cache::Auto && self.unchanged(ctx, inode) {
            options |= OpenOptions::KEEP_CACHE;
        }
        // A flush reports what writing failed to; there is no lock to release, those stay in the guest.
        if flags & libc::O_ACCMODE as u32 == libc::O_RDONLY as u32 {
            options |= OpenOptions::NOFLUSH;
        }
        Ok((handle, options))
    }

    fn read<W: ZeroCopyWriter>(
        &self,
        ctx: Context,
        inode: u64,
        handle: u64,
        w: W,
        size: u32,
        offset: u64,
        lock_owner: Option<u64>,
        flags: u32,
    ) -> io::Result<usize> {
        self.activity.note();
        check_place(offset)?;
        self.inner.read(ctx, inode, handle, w, size, offset, lock_owner, flags)
    }

    fn write<R: ZeroCopyReader>(
        &self,
        ctx: Context,
        inode: u64,
        handle: u64,
        r: R,
        size: u32,
        offset: u64,
        lock_owner: Option<u64>,
        delayed_write: bool,
        kill_priv: bool,
        flags: u32,
    ) -> io::Result<usize> {
        self.activity.note();
        check_place(offset)?;
        self.inner.write(ctx, inode, handle, r, size, offset, lock_owner, delayed_write, kill_priv, flags)
    }

    fn readdir(&self, ctx: Context, inode: u64, handle: u64, size: u32, offset: u64) -> io::Result<Self::DirIter> {
        self.activity.note();
        self.inner.readdir(ctx, inode, handle, size, offset)
    }

    inner! {
        fn getattr(ctx: Context, inode: u64, handle: Option<u64>) -> io::Result<(Attr, Duration)>;
        fn setattr(
            ctx: Context, inode: u64, attr: SetattrIn, handle: Option<u64>, valid: SetattrValid,
        ) -> io::Result<(Attr, Duration)>;
        fn readlink(ctx: Context, inode: u64) -> io::Result<Vec<u8>>;
        fn symlink(
            ctx: Context, target: &CStr, parent: u64, name: &CStr, extensions: Extensions,
        ) -> io::Result<Entry>;
        fn mknod(
            ctx: Context, parent: u64, name: &CStr, mode: u32, rdev: u32, umask: u32, extensions: Extensions,
        ) -> io::Result<Entry>;
        fn mkdir(
            ctx: Context, parent: u64, name: &CStr, mode: u32, umask: u32, extensions: Extensions,
        ) -> io::Result<Entry>;
        fn unlink(ctx: Context, parent: u64, name: &CStr) -> io::Result<()>;
        fn rmdir(ctx: Context, parent: u64, name: &CStr) -> io::Result<()>;
        fn rename(
            ctx: Context, parent: u64, name: &CStr, to_parent: u64, to_name: &CStr, flags: u32,
        ) -> io::Result<()>;
        fn link(ctx: Context, inode: u64, parent: u64, name: &CStr) -> io::Result<Entry>;
        fn create(
            ctx: Context, parent: u64, name: &CStr, mode: u32, kill_priv: bool, flags: u32, umask: u32,
            extensions: Extensions,
        ) -> io::Result<(Entry, Option<u64>, OpenOptions)>;
        fn flush(ctx: Context, inode: u64, handle: u64, lock_owner: u64) -> io::Result<()>;
        fn fsync(ctx: Context, inode: u64, datasync: bool, handle: u64) -> io::Result<()>;
        fn fallocate(ctx: Context, inode: u64, handle: u64, mode: u32, offset: u64, length: u64) -> io::Result<()>;
        fn release(
            ctx: Context, inode: u64, flags: u32, handle: u64, flush: bool, flock_release: bool,
            lock_owner: Option<u64>,
        ) -> io::Result<()>;
        fn statfs(ctx: Context, inode: u64) -> io::Result<libc::statvfs64>;
        fn setxattr(
            ctx: Context, inode: u64, name: &CStr, value: &[u8], flags: u32, extra_flags: SetxattrFlags,
        ) -> io::Result<()>;
        fn getxattr(ctx: Context, inode: u64, name: &CStr, size: u32) -> io::Result<GetxattrReply>;
        fn listxattr(ctx: Context, inode: u64, size: u32) -> io::Result<ListxattrReply>;
        fn removexattr(ctx: Context, inode: u64, name: &CStr) -> io::Result<()>;
        fn opendir(ctx: Context, inode: u64, flags: u32) -> io::Result<(Option<u64>, OpenOptions)>;
        fn fsyncdir(ctx: Context, inode: u64, datasync: bool, handle: u64) -> io::Result<()>;
        fn releasedir(ctx: Context, inode: u64, flags: u32, handle: u64) -> io::Result<()>;
        fn access(ctx: Context, inode: u64, mask: u32) -> io::Result<()>;
        fn lseek(ctx: Context, inode: u64, handle: u64, offset: u64, whence: u32) -> io::Result<u64>;
        fn copyfilerange(
            ctx: Context, inode_in: u64, handle_in: u64, offset_in: u64, inode_out: u64, handle_out: u64,
            offset_out: u64, len: u64, flags: u64,
        ) -> io::Result<usize>;
        fn syncfs(ctx: Context, inode: u64) -> io::Result<()>;
    }
}

/// Its state is not moved to another host, which the default is.
impl SerializableFileSystem for ThriftyFs {}

#[cfg(test)]
mod tests {
    use super::*;

    fn attributes(size: u64, changed: u64) -> Attr {
        Attr { size, ctime: changed, mtime: changed, ..Attr::default() }
    }

    #[test]
    fn a_stamp_tells_states_apart_and_is_not_given_for_a_state_that_may_not_be_over() {
        let later = Duration::from_secs(200);
        let stamp = Stamp::new(&attributes(5, 100), later);
        assert!(stamp.is_some());
        assert!(stamp == Stamp::new(&attributes(5, 100), later));
        assert!(stamp != Stamp::new(&attributes(6, 100), later));
        assert!(stamp != Stamp::new(&attributes(5, 101), later));
        assert!(Stamp::new(&attributes(5, 100), Duration::from_millis(100_010)).is_none());
        assert!(Stamp::new(&attributes(5, 300), later).is_none());
    }
}
