//! What happens between the kernel starting `/init` and the agent serving its channel.
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
pub use mounts::{CGROUP_ROOT, essential as essential_mounts, remaining as remaining_mounts};
pub use network::loopback_up;
pub use port::{Ports, connect_host};
pub use shared::SharedFs;
pub use stages::Stages;
