//! Building a guest image: from a source to a tree, from the tree to a file.

use std::{
    collections::HashSet,
    fs,
    io::{Read, Seek, SeekFrom},
    path::{Path, PathBuf},
};

use sha2::{Digest, Sha256};

use crate::{
    Architecture, Compression, Disk, Error, Options, Parameters,
    agent::{self, First},
    image, initrd,
    output::Output,
    read, run, sbom,
    sources::Source,
    tree::Tree,
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
    /// The lock file of the workspace that the agent was built from, for the bill of materials.
    pub agent_lock: Option<PathBuf>,
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
    /// How many packages are in it.
    pub packages: usize,
    /// How long the image is, bytes.
    pub length: u64,
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
    let crates = match &build.agent_lock {
        Some(path) => {
            let lock = String::from_utf8_lossy(&read(path)?).into_owned();
            sbom::crates(&lock).map_err(|why| Error::unusable(path, format!("it is no Cargo.lock: {why}")))?
        }
        None => Vec::new(),
    };
    let wanted = build.options.architecture;
    if let Some((path, bytes)) = &agent {
        let program = agent::Program::parse(bytes).map_err(|why| Error::unusable(*path, why))?;
        fits(path, program.architecture, wanted)?;
    }
    let source = build.source.prepare(&build.options)?;
    let mut output = Output::create(&build.output)?;
    let mut root = source.root(wanted, epoch, build.shown)?;

    let before = names(&root.tree);
    let alone = matches!(build.source, Source::AgentOnly);
    let first = if matches!(build.format, Format::Initrd(_)) { First::Init { alone } } else { First::SbinInit };
    let architecture = agent::install(&mut root.tree, agent, first)?;
    fits(Path::new(agent::AGENT), architecture, wanted.or(source.architecture()))?;
    if let Some(directory) = &build.modules_directory {
        initrd::install_modules(&mut root.tree, directory, &build.modules, architecture)?;
    }
    let mut added: Vec<String> = names(&root.tree).difference(&before).cloned().collect();
    added.extend(before.contains(agent::AGENT).then(|| agent::AGENT.to_owned()));
    added.sort();

    let verity = match &build.format {
        Format::Initrd(compression) => {
            initrd::pack(&root.tree, *compression, epoch, &mut output)?;
            None
        }
        Format::Image(disk) => image::write(&root.tree, architecture, disk, epoch, &mut output)?,
    };
    let (digest, length) = digest(&mut output, &build.output)?;
    let materials = sbom::document(&sbom::About {
        name: build.output.file_name().unwrap_or_default().to_string_lossy().into_owned(),
        digest,
        architecture,
        root: &root,
        files: &added,
        crates: &crates,
        epoch,
    })?;
    // Everything is written before anything gets its name; the image comes last, so that nobody finds it without what belongs to it.
    let mut besides = vec![Output::with(&materials_file(&build.output), &materials)?];
    let parameters = image::parameters_file(&build.output);
    match &verity {
        Some(verity) => besides.push(Output::with(&parameters, format!("{verity}\n").as_bytes())?),
        None => remove_stale(&parameters)?,
    }
    run::check()?;
    besides.into_iter().try_for_each(Output::finish)?;
    output.finish()?;
    Ok(Built { architecture, verity, packages: root.packages.len(), length })
}

/// The file beside `image` with its bill of materials.
#[must_use]
pub fn materials_file(image: &Path) -> PathBuf {
    image::beside(image, ".spdx.json")
}

fn fits(agent: &Path, architecture: Architecture, wanted: Option<Architecture>) -> Result<(), Error> {
    match wanted {
        Some(wanted) if wanted != architecture => {
            Err(Error::unusable(agent, format!("it is for {architecture}, and the image is to be for {wanted}")))
        }
        _ => Ok(()),
    }
}

fn names(tree: &Tree) -> HashSet<String> {
    tree.iter().map(|(path, _, _)| path.to_string_lossy().into_owned()).collect()
}

fn digest(output: &mut Output, path: &Path) -> Result<([u8; 32], u64), Error> {
    let failed = |source| Error::Read { path: path.to_path_buf(), source };
    let file = output.file();
    file.seek(SeekFrom::Start(0)).map_err(failed)?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 18];
    let mut length = 0;
    loop {
        run::check()?;
        match file.read(&mut buffer).map_err(failed)? {
            0 => return Ok((hash.finalize().into(), length)),
            count => {
                length += count as u64;
                hash.update(buffer.get(..count).unwrap_or_default());
            }
        }
    }
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
    match fs::remove_file(path) {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::Write { path: path.to_path_buf(), source })
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
#[path = "build_tests.rs"]
mod tests;
