//! Where a root file system comes from.

pub(crate) mod apk;
mod apt;
pub(crate) mod oci;
pub(crate) mod packages;
mod rpm;

use std::{
    path::{Path, PathBuf},
    str::FromStr,
};

use tempfile::TempDir;

pub(crate) use packages::Package;

use crate::{
    Architecture, Error, Options,
    definition::{self, Definition, Kind},
    read, run,
    tree::{Content, Node, Tree},
};

/// Where a root file system comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// Nothing but the agent.
    AgentOnly,
    /// A definition that comes along.
    Distribution(&'static str),
    /// A definition of the user's.
    Definition(PathBuf),
    /// An OCI image layout: a directory or an archive of one.
    Oci(PathBuf),
    /// A directory on the host, taken as it is.
    Directory(PathBuf),
}

impl FromStr for Source {
    type Err = Error;

    fn from_str(text: &str) -> Result<Source, Error> {
        if text == "agent-only" {
            return Ok(Source::AgentOnly);
        }
        if let Some(name) = definition::names().into_iter().find(|name| *name == text) {
            return Ok(Source::Distribution(name));
        }
        match text.split_once(':') {
            Some(("dir", path)) if !path.is_empty() => Ok(Source::Directory(path.into())),
            Some(("oci", path)) if !path.is_empty() => Ok(Source::Oci(path.into())),
            _ => Err(Error::Usage(format!(
                "there is no source {text}; there are agent-only, {}, oci:LAYOUT and dir:PATH, or --definition FILE",
                definition::names().join(", ")
            ))),
        }
    }
}

/// A root file system, and what is known about it.
#[derive(Debug, Default)]
pub(crate) struct Root {
    pub(crate) tree: Tree,
    pub(crate) packages: Vec<Package>,
    /// What it is, for people.
    pub(crate) description: String,
    /// Where contents are that the tree refers to.
    pub(crate) _keep: Vec<TempDir>,
}

impl Source {
    /// Checks everything that can be wrong before anything is done.
    pub(crate) fn prepare(&self, options: &Options) -> Result<Prepared, Error> {
        let of_packages = matches!(self, Source::Distribution(_) | Source::Definition(_));
        let given = !options.repositories.is_empty() || !options.keys.is_empty() || !options.packages.is_empty();
        if !of_packages && (given || options.release.is_some()) {
            let why = "--release, --repository, --key and --package are for sources that are made of packages";
            return Err(Error::Usage(why.into()));
        }
        let definition = match self {
            Source::AgentOnly => return Ok(Prepared::Nothing),
            Source::Directory(path) => {
                path.read_dir().map_err(|source| Error::Read { path: path.clone(), source })?;
                return Ok(Prepared::Directory(path.clone()));
            }
            Source::Oci(path) => {
                path.symlink_metadata().map_err(|source| Error::Read { path: path.clone(), source })?;
                return Ok(Prepared::Oci(path.clone()));
            }
            Source::Distribution(name) => {
                let text = definition::built_in(name).unwrap_or_default();
                Definition::parse(name, None, text, options)?
            }
            Source::Definition(path) => {
                let text = String::from_utf8(read(path)?).map_err(|_| Error::unusable(path, "it is not UTF-8"))?;
                Definition::parse("", Some(path), &text, options)?
            }
        };
        let architecture = options.architecture.or_else(Architecture::host).ok_or_else(|| {
            Error::Usage("guests are not built for this machine's processor; name one with --arch".into())
        })?;
        if !definition.architectures.contains(&architecture) {
            let names: Vec<&str> = definition.architectures.iter().map(|a| a.name()).collect();
            let why =
                format!("{} exists for {} only, not for {architecture}", definition.description, names.join(", "));
            return Err(Error::Usage(why));
        }
        match definition.kind {
            Kind::Apt => apt::preconditions(&definition)?,
            Kind::Rpm => rpm::preconditions()?,
            Kind::Apk => apk::preconditions()?,
        }
        // A key that is not there is a mistake to be told now.
        let probe = run::work_directory()?;
        for key in &definition.keys {
            key.file(probe.path())?;
        }
        Ok(Prepared::Packages(Box::new(definition), architecture))
    }
}

/// A source that has passed every check.
#[derive(Debug)]
pub(crate) enum Prepared {
    Nothing,
    Directory(PathBuf),
    Oci(PathBuf),
    Packages(Box<Definition>, Architecture),
}

impl Prepared {
    /// For which processor its packages are.
    pub(crate) fn architecture(&self) -> Option<Architecture> {
        match self {
            Prepared::Packages(_, architecture) => Some(*architecture),
            _ => None,
        }
    }

    /// Makes the root. `architecture` is what an image with several is looked through for; `shown` lets tools talk.
    pub(crate) fn root(&self, architecture: Option<Architecture>, epoch: u32, shown: bool) -> Result<Root, Error> {
        let mut root = match self {
            Prepared::Nothing => Root { description: "the agent alone".into(), ..Root::default() },
            Prepared::Directory(path) => {
                Root { tree: Tree::read(path)?, description: "a directory".into(), ..Root::default() }
            }
            Prepared::Oci(path) => oci::root(path, architecture.or_else(Architecture::host))?,
            Prepared::Packages(definition, architecture) => {
                let mut root = match definition.kind {
                    Kind::Apt => apt::root(definition, *architecture, epoch, shown)?,
                    Kind::Rpm => rpm::root(definition, *architecture, epoch, shown)?,
                    Kind::Apk => apk::root(definition, *architecture)?,
                };
                finish(&mut root, definition)?;
                root
            }
        };
        if root.packages.is_empty() {
            root.packages = packages::in_tree(&root.tree)?;
        }
        Ok(root)
    }
}

/// Cleans up, and adds what no package brings.
fn finish(root: &mut Root, definition: &Definition) -> Result<(), Error> {
    root.packages =
        if root.packages.is_empty() { packages::in_tree(&root.tree)? } else { std::mem::take(&mut root.packages) };
    root.description = definition.description.clone();
    root.tree.remove_matching(&definition.remove)?;
    let files = definition.files.iter().map(|file| {
        let mode = if file.executable { 0o755 } else { 0o644 };
        (&file.path, Node::file(mode, Content::Bytes(file.text.clone().into_bytes())))
    });
    let links = definition.links.iter().map(|link| (&link.path, Node::link(&link.target)));
    for (path, node) in files.chain(links) {
        let cannot = |why| Error::unusable(path, format!("it cannot be put into the root: {why}"));
        root.tree.install(path, node).map_err(cannot)?;
    }
    Ok(())
}

/// Refuses to go on without root.
fn needs_root(what: &str) -> Result<(), Error> {
    if run::is_root() {
        return Ok(());
    }
    Err(Error::Usage(format!("{what} gives files their owners, which root alone can do; run kata-osbuilder by sudo")))
}

/// What an error of a package tool says about where packages were to come from.
fn from(definition: &Definition, architecture: Architecture) -> String {
    let urls: Vec<String> = definition.repositories.iter().map(|r| definition.fill(&r.url, architecture)).collect();
    format!("installing packages from {} (--repository names another, --key its key)", urls.join(", "))
}

fn path_of(directory: &TempDir, name: &str) -> PathBuf {
    Path::new(directory.path()).join(name)
}
