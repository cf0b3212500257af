//! The file server behind virtio-fs: starting it, watching it, and being it ([`role_main`]).
//!
//! One server serves one VM over one vhost-user connection. It ends when the VMM closes the connection, when its parent
//! dies, and when the [`Server`] is dropped.
//!
//! # How few requests
//!
//! Every request costs an exit from the guest and two wake-ups, and far more where the guest is emulated. With
//! [`Cache::Auto`] the guest asks again for a name or for attributes after a second, as NFS does, and:
//!
//! * a file that is opened again and has not changed (size, modification and change time) keeps its pages in the guest, so
//!   executing the same programs again reads nothing;
//! * closing a file that was open for reading sends no `FLUSH`;
//! * the target of a symbolic link is asked for once, as it can never change;
//! * a directory is listed with the attributes of its entries (`READDIRPLUS`);
//! * clearing set-user-ID bits and capabilities upon writing is the server's duty (`HANDLE_KILLPRIV_V2`), so a write is
//!   not preceded by a question for the file's capabilities;
//! * locks stay in the guest.
//!
//! Names that do not exist are not remembered by the guest: what the host puts there is found at once.

mod arguments;
mod backend;
mod filesystem;
mod idle;
mod jail;
mod messages;
mod requests;
mod role;
mod server;

pub use filesystem::ThriftyFs;
pub use requests::answer;
pub use role::{Bare, Confined, confine, role_main};
pub use server::{Server, spawn};

use std::{path::PathBuf, str::FromStr, time::Duration};

use vhost_user_backend::bitmap::BitmapMmapRegion;
use vm_memory::{GuestMemoryAtomic, GuestMemoryMmap};

/// The guest's memory, as the server maps it.
pub type Memory = GuestMemoryAtomic<GuestMemoryMmap<BitmapMmapRegion>>;

/// The name (`argv[0]`) under which the executable is the file server.
pub const ROLE: &str = "kata-virtiofs";

/// What the guest may remember of files, and for how long. The names are those of the configuration key `virtio_fs_cache`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Cache {
    /// Nothing: every access asks the host. For directories that the host changes while the guest looks.
    Never,
    /// Names and attributes for a day, contents never.
    Metadata,
    /// Names and attributes for a second, contents until the next opening finds the file changed. The exception is a file that a
    /// host process writes through a mapping: its times change only when the kernel writes the pages back.
    #[default]
    Auto,
    /// Everything for a day: only for directories that the host does not change.
    Always,
}

impl Cache {
    const ALL: [Self; 4] = [Self::Never, Self::Metadata, Self::Auto, Self::Always];

    /// The name in the configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Never => "never",
            Self::Metadata => "metadata",
            Self::Auto => "auto",
            Self::Always => "always",
        }
    }

    /// How long a name or attributes hold.
    fn timeout(self) -> Duration {
        match self {
            Self::Never => Duration::ZERO,
            Self::Auto => Duration::from_secs(1),
            Self::Metadata | Self::Always => Duration::from_secs(86_400),
        }
    }
}

impl FromStr for Cache {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let names = || Self::ALL.map(Self::as_str).join(", ");
        Self::ALL
            .into_iter()
            .find(|cache| cache.as_str() == text)
            .ok_or_else(|| format!("{text:?} is not a cache mode: expected one of {}", names()))
    }
}

/// What the server writes to its messages. Nothing it does for a well-behaved guest is at [`Self::Warn`] or above.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogLevel {
    /// Why it ended.
    Error,
    /// And what the guest or the host's file systems made it do without.
    #[default]
    Warn,
    /// And connections.
    Info,
    /// And every request.
    Debug,
}

impl LogLevel {
    const ALL: [Self; 4] = [Self::Error, Self::Warn, Self::Info, Self::Debug];

    fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
        }
    }
}

/// How to serve.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The directory to share: a mount of its own with shared propagation, as [`SharedDir`](crate::share::SharedDir) makes it.
    /// The guest cannot write to the mount itself, only to those beneath it.
    pub shared_dir: PathBuf,
    /// What the guest may remember.
    pub cache: Cache,
    /// What to log.
    pub log_level: LogLevel,
}

impl Config {
    /// The defaults for `shared_dir`.
    pub fn new(shared_dir: impl Into<PathBuf>) -> Self {
        Self { shared_dir: shared_dir.into(), cache: Cache::default(), log_level: LogLevel::default() }
    }
}

/// Descriptor numbers that the server is started with, beside 0 (nothing to read), 1 and 2 (its messages).
const LISTENER: i32 = 3;

/// Ends the server, with a reason.
fn end(reason: &str) -> ! {
    messages::say(&format!("error: {reason}"));
    crate::sys::exit_now(1)
}
