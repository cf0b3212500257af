//! The child's half: being the server.

use std::{
    ffi::OsString,
    os::{fd::OwnedFd, unix::net::UnixListener},
    process::ExitCode,
    sync::Arc,
};

use vhost::vhost_user::{Error as VhostUserError, Listener};
use vhost_user_backend::{Error as DaemonError, VhostUserDaemon};
use virtiofsd::passthrough::{self, CachePolicy, PassthroughFs};
use vm_memory::{GuestMemoryAtomic, GuestMemoryMmap};

use super::{
    Cache, Config, LISTENER, Memory, arguments,
    backend::Backend,
    filesystem::ThriftyFs,
    idle::Activity,
    jail,
    messages::{log_to_stderr, say},
    requests::Requests,
};
use crate::{Error, sys};

/// Descriptors for other things than the guest's files: memory regions (a vhost-user VMM may pass 509), queues, threads.
const OWN_FILES: u64 = 640;

/// The `main` of the server, to be called when the process was started as [`ROLE`](super::ROLE), with the arguments after the name.
/// It returns when the VMM has closed the connection, and does not when it is killed.
pub fn role_main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    // A thread that panics must take the process with it: half a server would leave the guest waiting for ever.
    std::panic::set_hook(Box::new(|panic| {
        say(&format!("error: {panic}"));
        sys::exit_now(101);
    }));
    match serve(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let causes = std::iter::successors(Some(&error as &dyn std::error::Error), |error| error.source());
            say(&format!("error: {}", causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")));
            ExitCode::FAILURE
        }
    }
}

/// What a confined process serves with.
pub struct Confined {
    config: Config,
    listener: UnixListener,
    own_descriptors: OwnedFd,
    files: u64,
}

/// What the server does to itself before it serves. The process may do no more than that afterwards, whatever it does; tests try that.
///
/// # Errors
/// Its step.
pub fn confine(arguments: impl IntoIterator<Item = OsString>) -> Result<Confined, Error> {
    jail::die_with_parent()?;
    let config = arguments::read(arguments)?;
    log_to_stderr(config.log_level);
    sys::one_arena();

    let listener: UnixListener = sys::inherited(LISTENER).map_err(Error::step("find the vhost-user socket"))?.into();
    let files = jail::set_limits()?;
    let own_descriptors = jail::enter(&config.shared_dir)?;
    jail::give_up_privileges()?;
    Ok(Confined { config, listener, own_descriptors, files })
}

fn serve(arguments: impl IntoIterator<Item = OsString>) -> Result<(), Error> {
    let Confined { config, listener, own_descriptors, files } = confine(arguments)?;
    sys::trim_heap();

    let memory: Memory = GuestMemoryAtomic::new(GuestMemoryMmap::new());
    let activity = Arc::new(Activity::default());
    activity.watch(memory.clone()).map_err(Error::step("start the thread that gives memory back"))?;
    connect(root_directory(&config, own_descriptors, files, activity)?, memory, listener)
}

/// The root directory as a file system.
fn root_directory(
    config: &Config,
    own_descriptors: OwnedFd,
    files: u64,
    activity: Arc<Activity>,
) -> Result<ThriftyFs, Error> {
    let passthrough = PassthroughFs::new(passthrough_config(config, own_descriptors, files))
        .map_err(Error::step("open the jail's root as a file system"))?;
    Ok(ThriftyFs::new(passthrough, config.cache, activity))
}

/// What a server serves, without the server: for tests that feed requests to it in their own process. There is no jail but that
/// the shared directory is the root.
pub struct Bare {
    config: Config,
    own_descriptors: OwnedFd,
}

impl Bare {
    /// Makes the shared directory the root directory of the calling thread, which must have a mount namespace of its own
    /// ([`enter_private_namespace`](crate::share::enter_private_namespace)).
    ///
    /// # Errors
    /// [`Error::Step`] without `CAP_SYS_ADMIN`.
    pub fn enter(config: Config) -> Result<Self, Error> {
        let own_descriptors = jail::enter(&config.shared_dir)?;
        Ok(Self { config, own_descriptors })
    }

    /// The directory as a file system of which no guest has seen anything yet, with room for so many open files.
    ///
    /// # Errors
    /// [`Error::Step`] without descriptors.
    pub fn file_system(&self, files: u64) -> Result<ThriftyFs, Error> {
        let own_descriptors = self.own_descriptors.try_clone().map_err(Error::step("duplicate a descriptor"))?;
        root_directory(&self.config, own_descriptors, files, Arc::default())
    }

    /// Has `work` use this in a thread with descriptors of its own. A server leaves one open, which its end would close.
    ///
    /// # Errors
    /// [`Error::Step`] without descriptors.
    pub fn apart(&self, data: &[u8], work: fn(&Self, &[u8])) -> Result<(), Error> {
        sys::with_own_descriptors(self, data, work).map_err(Error::step("have descriptors of its own"))
    }

    /// Serves a VMM until it is gone or makes no sense, in `memory`, which is what that has then told.
    ///
    /// # Errors
    /// As for [`Self::file_system`]; [`Error::Serve`] says why it ended.
    pub fn serve(&self, files: u64, listener: UnixListener, memory: Memory) -> Result<(), Error> {
        connect(self.file_system(files)?, memory, listener)
    }
}

fn passthrough_config(config: &Config, own_descriptors: OwnedFd, files: u64) -> passthrough::Config {
    passthrough::Config {
        entry_timeout: config.cache.timeout(),
        attr_timeout: config.cache.timeout(),
        cache_policy: match config.cache {
            Cache::Never => CachePolicy::Never,
            Cache::Metadata => CachePolicy::Metadata,
            Cache::Auto => CachePolicy::Auto,
            Cache::Always => CachePolicy::Always,
        },
        root_dir: "/".into(),
        proc_sfd_rawfd: Some(own_descriptors.into()),
        // Several host file systems appear in one tree: each must have its own device number in the guest.
        announce_submounts: true,
        // Without caches there is nothing that attributes read in advance could serve for.
        readdirplus: config.cache != Cache::Never,
        xattr: true,
        killpriv_v2: true,
        allow_direct_io: true,
        // A database maps its files whether or not they are cached.
        allow_mmap: true,
        guest_fd_limit: files - OWN_FILES.min(files / 2),
        ..passthrough::Config::default()
    }
}

/// Serves the first connection until it is closed.
fn connect(filesystem: ThriftyFs, memory: Memory, listener: UnixListener) -> Result<(), Error> {
    let reason = |reason: String| Error::Serve { reason };
    let backend = Backend::new(Requests::new(filesystem, memory.clone()));
    let mut daemon = VhostUserDaemon::new("vhost-user".into(), Arc::new(backend), memory)
        .map_err(|error| reason(error.to_string()))?;
    let mut listener = Listener::from(listener);
    daemon.start(&mut listener).map_err(|error| reason(error.to_string()))?;
    drop(listener);
    match daemon.wait() {
        Ok(()) | Err(DaemonError::HandleRequest(VhostUserError::Disconnected | VhostUserError::PartialMessage)) => {
            Ok(())
        }
        Err(error) => Err(reason(error.to_string())),
    }
}
