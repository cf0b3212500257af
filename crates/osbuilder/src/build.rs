//! Building a guest image: from a source to a tree, from the tree to a file.

use std::path::{Path, PathBuf};

use crate::{
    Architecture, Compression, Disk, Error, Options, Parameters,
    agent::{self, First},
    image, initrd,
    output::{self, Output},
    read,
    sources::Source,
};

/// What is written.
#[derive(Debug, Clone, Copy)]
pub enum Format {
    /// An archive that the kernel unpacks into memory.
    Initrd(Compression),
    /// A disk.
    Image(Disk),
}

/// What is to be built.
#[derive(Debug)]
pub struct Build {
    /// Where the root file system comes from.
    pub source: Source,
    /// What is made of it.
    pub format: Format,
    /// The agent to put in; a source that holds one needs none.
    pub agent: Option<PathBuf>,
    /// What the source's definition leaves open or the user wants otherwise.
    pub options: Options,
    /// `lib/modules/VERSION` of the kernel, or `None` for one with everything built in.
    pub modules_directory: Option<PathBuf>,
    /// Names of the modules needed; those they depend on are found.
    pub modules: Vec<String>,
    /// The file to write.
    pub output: PathBuf,
    /// Whether the tools' own messages are shown while they work.
    pub shown: bool,
}

/// What was built.
#[derive(Debug)]
pub struct Built {
    /// For which processor.
    pub architecture: Architecture,
    /// With which verity parameters.
    pub verity: Option<Parameters>,
}

/// Builds a guest image, with its verity parameters and its bill of materials beside it.
///
/// # Errors
/// Any [`Error`]; then no output is left, nor anything else.
pub fn build(build: &Build) -> Result<Built, Error> {
    let epoch = epoch()?;
    if let Format::Image(disk) = &build.format {
        image::preconditions(disk)?;
    }
    let agent = match &build.agent {
        Some(path) => Some((path.as_path(), read(path)?)),
        None => None,
    };
    let source = build.source.prepare(&build.options)?;
    if let (Some((path, bytes)), Some(wanted)) = (&agent, build.options.architecture) {
        let program = agent::Program::parse(bytes).map_err(|why| Error::unusable(*path, why))?;
        if program.architecture != wanted {
            let why = format!("it is for {}, and the image is to be for {wanted}", program.architecture);
            return Err(Error::unusable(*path, why));
        }
    }
    let mut output = Output::create(&build.output)?;
    let architecture = build.options.architecture;
    let mut root = source.root(architecture, epoch, build.shown)?;
    let alone = matches!(build.source, Source::AgentOnly);
    let first = if matches!(build.format, Format::Initrd(_)) { First::Init { alone } } else { First::SbinInit };
    let architecture = agent::install(&mut root.tree, agent, first)?;
    if let Some(wanted) = build.options.architecture.filter(|wanted| *wanted != architecture) {
        let agent = build.agent.clone().unwrap_or_else(|| agent::AGENT.into());
        return Err(Error::unusable(agent, format!("it is for {architecture}, and the image is to be for {wanted}")));
    }
    if let Some(directory) = &build.modules_directory {
        initrd::install_modules(&mut root.tree, directory, &build.modules, architecture)?;
    }
    let verity = match &build.format {
        Format::Initrd(compression) => {
            initrd::pack(&root.tree, *compression, epoch, &mut output)?;
            None
        }
        Format::Image(disk) => image::write(&root.tree, architecture, disk, epoch, &mut output)?,
    };
    let parameters = image::parameters_file(&build.output);
    match &verity {
        Some(verity) => output::write(&parameters, format!("{verity}\n").as_bytes())?,
        None => remove_stale(&parameters)?,
    }
    output.finish()?;
    Ok(Built { architecture, verity })
}

/// The time that everything in an image has: `SOURCE_DATE_EPOCH`, as reproducible builds agreed to call it, or the epoch itself.
fn epoch() -> Result<u32, Error> {
    match std::env::var("SOURCE_DATE_EPOCH") {
        Err(_) => Ok(0),
        Ok(text) => text.parse().map_err(|_| {
            Error::Usage(format!("SOURCE_DATE_EPOCH is {text:?}; it must be seconds since 1970, below 2^32"))
        }),
    }
}

/// What an earlier build left beside its output must not be taken for this one's.
fn remove_stale(path: &Path) -> Result<(), Error> {
    match std::fs::remove_file(path) {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::Write { path: path.to_path_buf(), source })
        }
        _ => Ok(()),
    }
}
