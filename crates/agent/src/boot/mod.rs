//! What happens between the kernel starting the agent and the agent serving its channel.
//!
//! Nothing is written to the guest image's file system, which may be read-only: whatever has to be made is made on file
//! systems that the agent mounts itself. An image has the directories `/dev`, `/proc`, `/run` and `/sys`; only an initrd may lack them.
//!
//! The order is chosen by what waits for what. Modules come first that bring the devices up, because the port then
//! appears by itself while the remaining file systems are mounted; only after that is it waited for.

mod clock;
mod cmdline;
mod modules;
mod mounts;
mod network;
mod port;
mod shared;
mod stages;

pub use clock::{add_entropy, now_ns, set_wall_clock};
pub use cmdline::{CrashPoint, Options};
pub use modules::load as load_modules;
pub use mounts::{CGROUP_ROOT, essential as essential_mounts, make_dirs, remaining as remaining_mounts};
pub use network::loopback_up;
pub use port::{Ports, connect_host};
pub use shared::SharedFs;
pub use stages::Stages;
