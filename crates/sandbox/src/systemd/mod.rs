//! A scope of systemd for a sandbox's processes on the host: where systemd owns the cgroups, it is asked for one instead of making a directory
//! behind its back.
//!
//! A scope exists as long as a process is in it, so each process asks for it for itself: the first one makes it, those after it are taken
//! in. Limits are not among its properties: a container's act in its guest, and those upon the whole machine would starve it.
//!
//! ```text
//! kata-shim, daemon, containerd's shim --StartTransientUnit--> systemd: SLICE/PREFIX-NAME.scope
//!                                      <-----JobRemoved------
//! ```
//!
//! systemd listens for root at a socket of its own, on which no bus is needed; the bus is what remains where that socket is not to be had.

mod bus;
mod names;
mod wire;

use std::{
    env, fs, io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

use self::bus::{Arguments, Bus, Failure};
pub use self::wire::Value;
use crate::{Error, Result};

/// What is there where systemd is the first process (sd_booted(3)).
const BOOTED: &str = "/run/systemd/system";
/// How long a scope may take to be made or to be gone, as with runc.
const DEADLINE: Duration = Duration::from_secs(30);

const UNIT_EXISTS: &str = "org.freedesktop.systemd1.UnitExists";
const NO_SUCH_UNIT: &str = "org.freedesktop.systemd1.NoSuchUnit";

/// Which systemd is asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Manager {
    /// The host's.
    System,
    /// That of a user, who has this directory (`XDG_RUNTIME_DIR`).
    User(PathBuf),
}

/// A scope, as it is written down before it is asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scope {
    manager: Manager,
    unit: String,
    slice: String,
    /// Names the state directory, by which it is told from somebody else's of that name.
    description: String,
    /// What the container's annotations ask for besides.
    #[serde(default)]
    properties: Vec<(String, Value)>,
}

/// Refuses a host on which systemd does not run.
///
/// # Errors
/// [`Error::State`] in runc's words.
pub fn check() -> Result<()> {
    if Path::new(BOOTED).is_dir() {
        return Ok(());
    }
    Err(Error::State("systemd not running on this host, cannot use systemd cgroups manager".into()))
}

impl Manager {
    /// The one that this process may ask: root the host's, others, and whoever is root in a user namespace only, the user's.
    ///
    /// # Errors
    /// [`Error::State`] for a user without a directory.
    pub fn here() -> Result<Self> {
        if rustix::process::geteuid().is_root() && !crate::identity::in_user_namespace() {
            return Ok(Self::System);
        }
        let directory = env::var_os("XDG_RUNTIME_DIR").filter(|directory| !directory.is_empty());
        directory.map(|directory| Self::User(directory.into())).ok_or_else(|| {
            Error::State(
                "XDG_RUNTIME_DIR is not set, so the user's systemd cannot be asked for a scope; log in by a session of its own, or use the \
                 cgroup manager cgroupfs"
                    .into(),
            )
        })
    }

    /// The slice in which scopes are unless something else is asked for, as with runc.
    fn slice(&self) -> &'static str {
        match self {
            Self::System => "system.slice",
            Self::User(_) => "user.slice",
        }
    }

    /// Its sockets in the order in which they are tried, and whether a bus is behind them.
    fn sockets(&self) -> [(PathBuf, bool); 2] {
        match self {
            Self::System => [("/run/systemd/private".into(), false), ("/run/dbus/system_bus_socket".into(), true)],
            Self::User(directory) => [(directory.join("systemd/private"), false), (directory.join("bus"), true)],
        }
    }

    /// Connects; nothing if nobody listens.
    fn connect(&self) -> std::result::Result<Option<Bus>, Failure> {
        let end = Instant::now() + DEADLINE;
        let mut last = None;
        for (path, is_bus) in self.sockets() {
            match Bus::open(&path, is_bus, end) {
                Err(Failure::Io(error))
                    if [io::ErrorKind::NotFound, io::ErrorKind::ConnectionRefused].contains(&error.kind()) => {}
                // Of its own socket it may be private; a bus is for all.
                Err(failure @ (Failure::Io(_) | Failure::Nonsense(_))) if !is_bus => last = Some(failure),
                other => return other.map(Some),
            }
        }
        last.map_or(Ok(None), Err)
    }
}

impl Scope {
    /// The scope of the container `id` with the state directory `dir`, which `path` (`linux.cgroupsPath`) names, or else has the name that runc
    /// gives. `annotations` may hold properties, as with runc (`org.systemd.property.NAME`).
    ///
    /// # Errors
    /// [`Error::State`] for what systemd would not take, and without a systemd to ask.
    pub fn new<'a>(
        id: &str,
        dir: &Path,
        path: Option<&Path>,
        annotations: impl IntoIterator<Item = (&'a String, &'a String)>,
    ) -> Result<Self> {
        check()?;
        Self::of(Manager::here()?, id, dir, path, annotations)
    }

    fn of<'a>(
        manager: Manager,
        id: &str,
        dir: &Path,
        path: Option<&Path>,
        annotations: impl IntoIterator<Item = (&'a String, &'a String)>,
    ) -> Result<Self> {
        let names = names::Names::of(id, path)?;
        Ok(Self {
            slice: names.slice.unwrap_or_else(|| manager.slice().into()),
            unit: names.unit,
            description: format!("Kata container {id} ({})", dir.display()),
            properties: names::properties(annotations)?,
            manager,
        })
    }

    /// Its name.
    pub fn unit(&self) -> &str {
        &self.unit
    }

    /// Takes the calling process into the scope, which is made if this is the first.
    ///
    /// # Errors
    /// [`Error::Systemd`]; the process is where it was then.
    pub fn enter(&self) -> Result<()> {
        let failed = |failure| self.failed("ask systemd for", &failure);
        let mut bus = self.manager.connect().map_err(failed)?.ok_or_else(|| self.unheard())?;
        self.enter_by(&mut bus).map_err(failed)
    }

    fn enter_by(&self, bus: &mut Bus) -> std::result::Result<(), Failure> {
        match self.start(bus) {
            Err(Failure::Refused { name, text }) if name == UNIT_EXISTS => match self.description_of(bus)? {
                Some(description) if description == self.description => self.join(bus),
                Some(description) => {
                    let text = format!(
                        "it exists already, and is {description:?}: stop it (systemctl stop {}) or choose another name",
                        self.unit
                    );
                    Err(Failure::Refused { name, text })
                }
                // It went away meanwhile.
                None => self.start(bus).map_err(|failure| match failure {
                    Failure::Refused { name, .. } => Failure::Refused { name, text },
                    other => other,
                }),
            },
            other => other,
        }
    }

    fn start(&self, bus: &mut Bus) -> std::result::Result<(), Failure> {
        let arguments = Arguments::new("ssa(sv)a(sa(sv))", |values| {
            values.text(&self.unit).text("replace").properties(&self.all_properties());
            values.array(8, |_| {});
        });
        let answer = bus.manage("StartTransientUnit", arguments)?;
        finish(bus, &answer)
    }

    /// Has systemd take the calling process into the scope that exists.
    fn join(&self, bus: &mut Bus) -> std::result::Result<(), Failure> {
        let arguments = Arguments::new("ssau", |values| {
            values.text(&self.unit).text("").array(4, |pids| {
                pids.u32(SELF);
            });
        });
        bus.manage("AttachProcessesToUnit", arguments).map(drop)
    }

    fn all_properties(&self) -> Vec<(String, Value)> {
        let own = [
            ("Description", Value::Text(self.description.clone())),
            ("Slice", Value::Text(self.slice.clone())),
            ("PIDs", Value::Numbers(vec![SELF])),
            ("Delegate", Value::Truth(true)),
            ("DefaultDependencies", Value::Truth(false)),
            ("CPUAccounting", Value::Truth(true)),
            ("MemoryAccounting", Value::Truth(true)),
            ("IOAccounting", Value::Truth(true)),
            ("TasksAccounting", Value::Truth(true)),
            // So that one that failed does not stay when nobody comes to remove it.
            ("CollectMode", Value::Text("inactive-or-failed".into())),
        ];
        let own = own.into_iter().map(|(name, value)| (name.to_owned(), value));
        let asked = |name: &str| self.properties.iter().any(|(asked, _)| asked == name);
        own.filter(|(name, _)| !asked(name)).chain(self.properties.iter().cloned()).collect()
    }

    /// What systemd says the unit of this name is; nothing if there is none.
    fn description_of(&self, bus: &mut Bus) -> std::result::Result<Option<String>, Failure> {
        let unit = match bus.manage("GetUnit", Arguments::text(&self.unit)) {
            Err(Failure::Refused { name, .. }) if name == NO_SUCH_UNIT => return Ok(None),
            other => other?,
        };
        let path = unit.reader().text().ok_or(NONSENSE)?.to_owned();
        let which = Arguments::texts("org.freedesktop.systemd1.Unit", "Description");
        let answer = bus.call(&path, "org.freedesktop.DBus.Properties", "Get", which)?;
        Ok(Some(answer.reader().variant_text().ok_or(NONSENSE)?.into()))
    }

    /// Whether systemd has it. To be told, not to be relied upon.
    pub fn exists(&self) -> bool {
        let found = self.manager.connect().and_then(|bus| {
            let Some(mut bus) = bus else { return Ok(None) };
            self.description_of(&mut bus)
        });
        found.is_ok_and(|found| found.as_ref() == Some(&self.description))
    }

    /// Ends it with all that is in it, unless the calling process is: then it goes with that one. One of that name that is not ours stays.
    ///
    /// # Errors
    /// [`Error::Systemd`]; it can be tried again.
    pub(crate) fn remove(&self) -> Result<()> {
        let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        if own.lines().any(|line| line.rsplit('/').next() == Some(&self.unit)) {
            return Ok(());
        }
        let failed = |failure| self.failed("have systemd stop", &failure);
        // Where nobody listens no systemd runs, and it has no scopes.
        let Some(mut bus) = self.manager.connect().map_err(failed)? else { return Ok(()) };
        self.remove_by(&mut bus).map_err(failed)
    }

    fn remove_by(&self, bus: &mut Bus) -> std::result::Result<(), Failure> {
        let gone = |result: std::result::Result<(), Failure>| match result {
            Err(Failure::Refused { name, .. }) if name == NO_SUCH_UNIT => Ok(()),
            other => other,
        };
        if self.description_of(bus)?.as_ref() != Some(&self.description) {
            return Ok(());
        }
        let stopped = bus.manage("StopUnit", Arguments::texts(&self.unit, "replace"));
        gone(stopped.and_then(|answer| finish(bus, &answer)))?;
        gone(bus.manage("ResetFailedUnit", Arguments::text(&self.unit)).map(drop))
    }

    fn failed(&self, what: &str, failure: &Failure) -> Error {
        let step = format!("{what} the scope {} in {}", self.unit, self.slice);
        match failure {
            Failure::Late => Error::Systemd {
                step,
                problem: format!(
                    "it did not do so within {} s; see systemctl status {} and systemctl list-jobs",
                    DEADLINE.as_secs(),
                    self.unit
                ),
            },
            other => Error::Systemd {
                step,
                problem: format!("{other}; see journalctl -b, or use the cgroup manager cgroupfs"),
            },
        }
    }

    fn unheard(&self) -> Error {
        let sockets = self.manager.sockets().map(|(path, _)| path.display().to_string()).join(" nor ");
        let remedy = match self.manager {
            Manager::System => "use the cgroup manager cgroupfs",
            Manager::User(_) => {
                "log in by a session of its own (or loginctl enable-linger), or use the cgroup manager cgroupfs"
            }
        };
        Error::Systemd {
            step: format!("ask systemd for the scope {} in {}", self.unit, self.slice),
            problem: format!("it listens neither at {sockets}; {remedy}"),
        }
    }
}

/// The process that asks, whatever number systemd knows it by.
const SELF: u32 = 0;
const NONSENSE: Failure = Failure::Nonsense("an answer of another form than was expected");

/// Waits for the job that an answer names.
fn finish(bus: &mut Bus, answer: &wire::Message) -> std::result::Result<(), Failure> {
    let job = answer.reader().text().ok_or(NONSENSE)?;
    match bus.job(job)?.as_str() {
        "done" => Ok(()),
        result => Err(Failure::Refused { name: String::new(), text: format!("its job ended with {result:?}") }),
    }
}

#[cfg(test)]
mod tests;
