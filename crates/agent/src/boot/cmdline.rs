//! What the kernel command line says to the agent.
//!
//! | option | meaning |
//! | --- | --- |
//! | `agent.log=error\|warn\|info\|debug` | what goes to the console; `warn` unless given |
//! | `agent.debug_console` | programs may be run outside of containers |
//! | `agent.crash_at=create\|start\|running\|exec` | the agent aborts at that step, see [`CrashPoint`] |
//!
//! Other options are not the agent's business and are ignored.

use crate::log::Level;

/// A step at which the agent aborts, so that the host's handling of a guest that dies can be tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CrashPoint {
    /// When asked to create a container.
    Create,
    /// When about to let a container's first process run.
    Start,
    /// Half a second after a container's first process was started.
    Running,
    /// When asked for a further process.
    Exec,
}

/// The agent's options.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// What goes to the console.
    pub log: Level,
    /// Programs may be run outside of containers.
    pub debug_console: bool,
    /// Where to abort.
    pub crash_at: Option<CrashPoint>,
}

impl Options {
    /// Reads the command line. What cannot be understood is as if it were not there: a guest that does not start because
    /// of a debugging option would be worse.
    pub fn parse(cmdline: &str) -> Self {
        let mut options = Self { log: Level::Warn, debug_console: false, crash_at: None };
        for word in cmdline.split_ascii_whitespace() {
            match word.split_once('=') {
                None if word == "agent.debug_console" => options.debug_console = true,
                Some(("agent.log", level)) => options.log = Level::named(level).unwrap_or(options.log),
                Some(("agent.crash_at", step)) => {
                    options.crash_at = match step {
                        "create" => Some(CrashPoint::Create),
                        "start" => Some(CrashPoint::Start),
                        "running" => Some(CrashPoint::Running),
                        "exec" => Some(CrashPoint::Exec),
                        _ => None,
                    };
                }
                _ => {}
            }
        }
        options
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_found_among_the_kernels() {
        let options =
            Options::parse("quiet agent.log=debug panic=-1 agent.crash_at=exec agent.debug_console root=/dev/vda\n");
        assert_eq!(options, Options { log: Level::Debug, debug_console: true, crash_at: Some(CrashPoint::Exec) });
    }

    #[test]
    fn nonsense_is_as_if_absent() {
        let options = Options::parse("agent.log=loud agent.crash_at=never agent.log agent.debug_console=0");
        assert_eq!(options, Options { log: Level::Warn, debug_console: false, crash_at: None });
    }
}
