//! `gc`: what is left over of sandboxes that nobody answers for any more.
//!
//! Found is what a state directory names, and what mirrors have left in network namespaces where no sandbox lives. With `--root` it is what is
//! below that directory; without, also what dead shims have left, and what belongs to no sandbox.

use std::{
    collections::HashSet,
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::ExitCode,
};

use network::Namespace;
use sandbox::{leftovers::Leftover, store::Store};
use serde::Serialize;
use shim::leftovers::{self as shims, ShimLeftover};

use super::{json, table};
use crate::{
    Result,
    cli::{Context, output},
    rootless,
};

/// Where engines and CNI keep the names of network namespaces.
const NAMED_NAMESPACES: [&str; 2] = ["/run/netns", "/run/docker/netns"];

/// A line of the list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Item {
    /// Of what kind it is: `sandbox`, `process`, `cgroup`, `socket`, `network` or `file`.
    pub kind: &'static str,
    /// What it is.
    pub what: String,
    /// Why it is left over.
    pub why: String,
}

impl Item {
    fn new(kind: &'static str, what: impl Into<String>, why: impl Into<String>) -> Self {
        Self { kind, what: what.into(), why: why.into() }
    }
}

/// Something that is removed as one.
pub(crate) struct Piece {
    /// It, and what goes with it.
    pub items: Vec<Item>,
    remove: Remove,
}

enum Remove {
    Sandbox(Box<Leftover>),
    Shim(Box<ShimLeftover>),
    Mirror(PathBuf, network::MirrorLeftover),
    File(PathBuf),
}

/// What was found.
#[derive(Default)]
pub(crate) struct Found {
    /// What can be removed, in the order in which it is.
    pub pieces: Vec<Piece>,
    /// What nothing can be said about, and why.
    pub unclear: Vec<(PathBuf, String)>,
}

impl Found {
    /// Every line of the list.
    pub(crate) fn items(&self) -> impl Iterator<Item = &Item> {
        self.pieces.iter().flat_map(|piece| &piece.items)
    }
}

/// Looks for what is left over.
///
/// # Errors
/// When state directories cannot be read.
pub(crate) fn find(context: &Context) -> Result<Found> {
    let own = context.store.leftovers()?;
    let mut found = Found { pieces: Vec::new(), unclear: own.unclear };
    let whole_host = !context.one_root && rootless::is_root_of_host();
    let shims = if whole_host { shims::find()? } else { Default::default() };
    found.unclear.extend(shims.unclear);
    let of_shims = shims.leftovers.iter().map(|shim| &shim.sandbox);
    let mut namespaces: Vec<PathBuf> =
        own.leftovers.iter().chain(of_shims).filter_map(|left| shims::network_of(left.state()?)).collect();
    if whole_host {
        namespaces.extend(NAMED_NAMESPACES.iter().flat_map(|directory| entries(Path::new(directory))));
    }
    // Before what names the namespaces.
    if rootless::is_root_of_host() {
        found.pieces.extend(in_namespaces(namespaces, &inhabited()));
    }
    found.pieces.extend(own.leftovers.into_iter().map(of_sandbox));
    found.pieces.extend(shims.leftovers.into_iter().map(of_shim));
    if whole_host {
        let files = sandbox::leftovers::unfinished_files();
        found.pieces.extend(files.into_iter().map(|path| Piece {
            items: vec![Item::new("file", path.display().to_string(), "whoever wrote it is gone")],
            remove: Remove::File(path),
        }));
    }
    Ok(found)
}

fn entries(directory: &Path) -> Vec<PathBuf> {
    fs::read_dir(directory).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path())).collect()
}

fn of_sandbox(leftover: Leftover) -> Piece {
    Piece { items: items_of(&leftover, &[]), remove: Remove::Sandbox(Box::new(leftover)) }
}

fn of_shim(leftover: ShimLeftover) -> Piece {
    Piece { items: items_of(&leftover.sandbox, &leftover.sockets), remove: Remove::Shim(Box::new(leftover)) }
}

fn items_of(leftover: &Leftover, sockets: &[PathBuf]) -> Vec<Item> {
    let of = format!("of {}", leftover.id());
    let mut items = vec![Item::new("sandbox", leftover.path().display().to_string(), leftover.why())];
    let processes = leftover.processes();
    items
        .extend(processes.iter().map(|(name, process)| Item::new("process", format!("{name} ({})", process.pid), &of)));
    items.extend(leftover.cgroups().iter().map(|path| Item::new("cgroup", path.display().to_string(), &of)));
    items.extend(leftover.scope().map(|unit| Item::new("scope", unit, &of)));
    items.extend(sockets.iter().map(|path| Item::new("socket", path.display().to_string(), &of)));
    items
}

/// The file of a namespace, told from others'.
fn identity(path: &Path) -> Option<(u64, u64)> {
    fs::metadata(path).ok().map(|metadata| (metadata.dev(), metadata.ino()))
}

/// The network namespaces that a process of ours is in.
fn inhabited() -> HashSet<(u64, u64)> {
    let ours = |process: &PathBuf| {
        let line = fs::read(process.join("cmdline")).ok()?;
        let called = line.split(|byte| *byte == 0).next()?;
        let name = Path::new(std::str::from_utf8(called).ok()?).file_name()?.to_str()?;
        let hosts = name == sandbox::daemon::ROLE || name == crate::shim::ROLE || shim::is_role(name);
        hosts.then(|| identity(&process.join("ns/net")))?
    };
    entries(Path::new("/proc")).iter().filter_map(ours).collect()
}

/// What mirrors have left in these namespaces, if nobody lives there.
fn in_namespaces(mut paths: Vec<PathBuf>, inhabited: &HashSet<(u64, u64)>) -> Vec<Piece> {
    let mut seen = HashSet::new();
    paths.retain(|path| identity(path).is_some_and(|id| !inhabited.contains(&id) && seen.insert(id)));
    let mut pieces = Vec::new();
    for path in paths {
        // A name that is no namespace's, or a namespace that is going away, has nothing of ours.
        let Ok(namespace) = Namespace::open(&path) else { continue };
        if namespace.is_host().unwrap_or(true) {
            continue;
        }
        let Ok(Ok(left)) = namespace.run(network::mirror_leftovers) else { continue };
        pieces.extend(left.into_iter().map(|mirror| Piece {
            items: vec![Item::new("network", format!("{mirror} in {}", path.display()), "no sandbox lives there")],
            remove: Remove::Mirror(path.clone(), mirror),
        }));
    }
    pieces
}

impl Remove {
    fn carry_out(self, store: &Store) -> std::result::Result<(), String> {
        match self {
            Self::Sandbox(leftover) => {
                leftover.remove().map_err(|error| error.chain())?;
                store.remove_if_empty(0);
                Ok(())
            }
            Self::Shim(leftover) => leftover.remove().map_err(|error| error.chain()),
            Self::Mirror(path, mirror) => {
                // A sandbox may have come to live there since.
                if identity(&path).is_some_and(|id| inhabited().contains(&id)) {
                    return Ok(());
                }
                let removed = Namespace::open(&path).and_then(|namespace| namespace.run(|| mirror.remove())?);
                removed.map_err(|error| sandbox::chain(&error))
            }
            Self::File(path) => match fs::remove_file(&path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    Err(format!("remove {}: {error}", path.display()))
                }
                _ => Ok(()),
            },
        }
    }
}

#[derive(Serialize)]
struct Report<'a> {
    items: Vec<&'a Item>,
    unclear: Vec<String>,
    problems: &'a [String],
    removed: bool,
}

/// `gc`.
pub(crate) fn gc(context: &Context, dry_run: bool, as_json: bool) -> Result<ExitCode> {
    let found = find(context)?;
    let items: Vec<Item> = found.items().cloned().collect();
    let unclear: Vec<String> =
        found.unclear.iter().map(|(path, why)| format!("{} is left alone: {why}", path.display())).collect();
    unclear.iter().for_each(|unclear| context.log.warning(unclear));
    let mut problems = Vec::new();
    if !dry_run {
        for piece in found.pieces {
            problems.extend(piece.remove.carry_out(&context.store).err());
        }
    }
    problems.iter().for_each(|problem| context.log.error(problem));
    if as_json {
        let report = Report { items: items.iter().collect(), unclear, problems: &problems, removed: !dry_run };
        output(context, &json(&report)?)?;
    } else {
        output(context, &text(&items, dry_run))?;
    }
    Ok(if problems.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The list for people.
pub(crate) fn text(items: &[Item], dry_run: bool) -> String {
    if items.is_empty() {
        return "nothing is left over\n".into();
    }
    let rows = items.iter().map(|item| [item.kind.into(), item.what.clone(), item.why.clone()]);
    let mut text = table(["KIND", "WHAT", "WHY"], rows);
    text.push_str(if dry_run { "nothing was removed: this was a dry run\n" } else { "" });
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_says_what_and_why() {
        let items = [Item::new("sandbox", "/run/kata-runtime/c", "its process 7 is gone")];
        assert_eq!(
            text(&items, true),
            "KIND        WHAT                  WHY\n\
             sandbox     /run/kata-runtime/c   its process 7 is gone\n\
             nothing was removed: this was a dry run\n"
        );
        assert_eq!(text(&[], false), "nothing is left over\n");
    }

    #[test]
    fn what_is_no_namespace_or_the_hosts_is_not_looked_into() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("file");
        fs::write(&file, "").unwrap();
        let paths = vec![file, directory.path().join("gone"), "/proc/self/ns/net".into(), "/proc/1/ns/net".into()];
        assert!(in_namespaces(paths, &HashSet::new()).is_empty());
    }
}
