//! From fragments and a source to the files of a kernel.

use std::{
    fs,
    path::{Path, PathBuf},
};

use crate::{
    Arch, Error, Interrupts, console, files,
    lock::Lock,
    make::{Job, Workshop},
    merge::{Config, Fragments},
    output::{Output, Provenance},
    source::{self, Source, SourceChoice},
    tools,
    version::Version,
};

/// This program's version, and a number that grows whenever the same inputs give another output.
const BUILDER: &str = concat!("kata-kernel ", env!("CARGO_PKG_VERSION"), " recipe 1");

/// What is to be built.
#[derive(Debug, Clone)]
pub struct Request {
    /// For which architecture.
    pub arch: Arch,
    /// From which source.
    pub source: SourceChoice,
    /// The directory of the common fragments.
    pub fragments: PathBuf,
    /// Fragments that win over those.
    pub own_fragments: Vec<PathBuf>,
    /// Where sources and objects are kept between builds.
    pub cache: PathBuf,
}

/// What came of it.
#[derive(Debug)]
pub enum Built {
    /// The output was made from just this already.
    UpToDate,
    /// The output is new.
    New,
}

struct Prepared {
    source: Source,
    version: Version,
    config: Config,
}

impl Request {
    /// All checks that need no lock, and the source.
    fn prepare(&self, interrupts: &Interrupts) -> Result<Prepared, Error> {
        tools::check(self.arch)?;
        let fragments = Fragments::read(&self.fragments, &self.own_fragments, self.arch)?;
        files::need_writable(&self.cache)?;
        let source = Source::get(&self.source, &self.absolute_cache()?, interrupts)?;
        let version = Version::of_tree(&source.tree, self.arch)?;
        let config = fragments.merge(version.series, self.arch)?;
        Ok(Prepared { source, version, config })
    }

    /// make works in another directory than this program.
    fn absolute_cache(&self) -> Result<PathBuf, Error> {
        std::path::absolute(&self.cache).map_err(|source| Error::io("find", &self.cache, source))
    }

    /// Builds the kernel into the directory `output`, with `jobs` compilers at a time.
    ///
    /// # Errors
    /// Any of [`Error`]; then the output is as it was.
    pub fn build(&self, output: &Path, jobs: usize, interrupts: &Interrupts) -> Result<Built, Error> {
        let output = Output::at(output)?;
        let Prepared { source, version, config } = self.prepare(interrupts)?;
        let compiler = tools::compiler(self.arch, interrupts)?;
        let time = source::shown(source.time);
        let key = files::sha256_of(&[&source.id, &config.text(), self.arch.name(), &compiler, BUILDER, &time]);
        if source.fixed && output.is_current(&key, interrupts)? {
            return Ok(Built::UpToDate);
        }
        let job = Job { arch: self.arch, source: &source, version: &version, config: &config };
        let cache = self.absolute_cache()?;
        let workshop = Workshop::enter(&job, &cache, "", interrupts)?;
        // Whoever held the lock may have built just this.
        if source.fixed && output.is_current(&key, interrupts)? {
            return Ok(Built::UpToDate);
        }
        console::say(&format!("Linux {} for {}: configuring", version.full, self.arch));
        let actual = workshop.configure()?;
        tools::check_for(&actual, interrupts)?;
        workshop.build(&actual, jobs)?;
        let provenance = Provenance {
            key,
            version: version.full.clone(),
            architecture: self.arch.name().into(),
            source: source.id.clone(),
            compiler,
            builder: BUILDER.into(),
            options: actual.count(),
            files: Default::default(),
        };
        let name = files::sha256_of(&[&output.directory().to_string_lossy()]);
        let lock = cache.join("kernel-build").join(format!("output-{}.lock", &name[..16]));
        let _lock = Lock::take(&lock, &output.directory().to_string_lossy(), interrupts)?;
        output.make(&workshop.objects, self.arch, provenance, interrupts)?;
        Ok(Built::New)
    }

    /// Only configures, checks, and returns the whole configuration.
    ///
    /// # Errors
    /// Any of [`Error`].
    pub fn configure(&self, interrupts: &Interrupts) -> Result<String, Error> {
        let Prepared { source, version, config } = self.prepare(interrupts)?;
        let job = Job { arch: self.arch, source: &source, version: &version, config: &config };
        // A directory of its own: a build that is going on keeps its configuration.
        let workshop = Workshop::enter(&job, &self.absolute_cache()?, "-config", interrupts)?;
        let actual = workshop.configure()?;
        let wanted = config.wanted.len();
        console::say(&format!(
            "Linux {} for {}: all {wanted} settings are there, {} options are on",
            version.full,
            self.arch,
            actual.count()
        ));
        files::text(&workshop.objects.join(".config"))
    }

    /// Only gets the source; returns the tree.
    ///
    /// # Errors
    /// Any of [`Error`].
    pub fn fetch(&self, interrupts: &Interrupts) -> Result<PathBuf, Error> {
        files::need_writable(&self.cache)?;
        let source = Source::get(&self.source, &self.absolute_cache()?, interrupts)?;
        Version::of_tree(&source.tree, self.arch)?;
        Ok(source.tree)
    }
}

/// Writes a file whole or not at all.
///
/// # Errors
/// [`Error::Io`]; then the file is as it was.
pub fn write_whole(path: &Path, text: &str) -> Result<(), Error> {
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let attempt = || {
        let new = tempfile::Builder::new().prefix(".kata-kernel-").tempfile_in(directory)?;
        fs::write(new.path(), text)?;
        fs::set_permissions(new.path(), std::os::unix::fs::PermissionsExt::from_mode(0o644))?;
        new.persist(path).map(drop).map_err(|error| error.error)
    };
    attempt().map_err(|source| Error::io("write", path, source))
}
