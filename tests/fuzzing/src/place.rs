//! Where the file server's requests are tried: a thread whose root directory is a file system in memory, so that no name of the host's is
//! within reach, with the server's capabilities and no more.

use std::{
    cell::OnceCell,
    fs, panic,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread,
};

use devices::{
    share,
    virtiofs::{Bare, Config, ThriftyFs},
};
use rustix::{
    mount::{MountFlags, mount},
    thread::{CapabilitySet, CapabilitySets},
};

use crate::scratch::Scratch;

/// Files that the guest may have open, as the server counts.
pub(crate) const FILES: u64 = 700;

type Job = Box<dyn FnOnce(&Bare) + Send>;

struct Place {
    jobs: SyncSender<Job>,
    done: Receiver<()>,
    panicked: Arc<AtomicBool>,
}

/// Has panics of other threads than this one noted, and not handled there: a fuzzer writes down the input in the thread that panics, and
/// in those that are made here it would write into the file system in memory.
fn note_panics() -> Arc<AtomicBool> {
    let panicked = Arc::new(AtomicBool::new(false));
    let (noted, here, usual) = (panicked.clone(), thread::current().id(), panic::take_hook());
    panic::set_hook(Box::new(move |info| {
        if thread::current().id() == here {
            usual(info);
        } else {
            eprintln!("{info}\n{}", std::backtrace::Backtrace::force_capture());
            noted.store(true, Ordering::Relaxed);
        }
    }));
    panicked
}

impl Place {
    fn new() -> Self {
        let panicked = note_panics();
        let (jobs, taken) = sync_channel::<Job>(0);
        let (tell, done) = sync_channel(0);
        let scratch = Scratch::new();
        let at = scratch.path().to_owned();
        let (entered, wait) = sync_channel(0);
        thread::spawn(move || {
            share::enter_private_namespace().expect("a mount namespace");
            let harmless = MountFlags::NODEV | MountFlags::NOSUID | MountFlags::NOEXEC;
            let in_memory =
                |path| mount("tmpfs", path, "tmpfs", harmless, Some(c"size=8m,nr_inodes=4k")).expect("a tmpfs");
            in_memory(&at);
            let shared = at.join("c1");
            fs::create_dir(&shared).expect("a directory");
            in_memory(&shared);
            let bare = Bare::enter(Config::new(&at)).expect("a root directory");
            let (kept, empty) = (jail::FILE_SERVER.capabilities, CapabilitySet::empty());
            let sets = CapabilitySets { effective: kept, permitted: kept, inheritable: empty };
            rustix::thread::set_capabilities(None, sets).expect("fewer capabilities");
            let _ = entered.send(());
            for job in taken {
                job(&bare);
                clear();
                if tell.send(()).is_err() {
                    return;
                }
            }
        });
        // The directory's name is not needed after that.
        wait.recv().expect("a place");
        Self { jobs, done, panicked }
    }
}

/// Removes all that a guest has made.
fn clear() {
    for entry in fs::read_dir("/c1").expect("the share").flatten() {
        let path = entry.path();
        let removed =
            if path.is_dir() && !path.is_symlink() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        removed.expect("an empty share");
    }
}

thread_local! {
    static PLACE: OnceCell<Place> = const { OnceCell::new() };
}

/// Makes a file system with a file in it and has it used there.
pub(crate) fn with_file_system(data: &[u8], work: fn(&[u8], ThriftyFs)) {
    with_directory(data, move |data, bare| work(data, bare.file_system(FILES).expect("a file system")));
}

/// Has a directory with a file in it served there.
pub(crate) fn with_directory(data: &[u8], work: impl FnOnce(&[u8], &Bare) + Send + 'static) {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: only root may mount and make namespaces");
        return;
    }
    let data = data.to_vec();
    PLACE.with(|place| {
        let place = place.get_or_init(Place::new);
        let job: Job = Box::new(move |bare| {
            fs::write("/c1/file", "hello").expect("a file");
            work(&data, bare);
        });
        let served = place.jobs.send(job).is_ok() && place.done.recv().is_ok();
        assert!(served && !place.panicked.load(Ordering::Relaxed), "a thread of the file server has panicked");
    });
}
