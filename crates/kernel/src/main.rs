//! `kata-kernel`: builds the guest's kernel. The work is in the library.

use std::{
    error::Error as _,
    io::Write,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Instant,
};

use clap::{Args, Parser, Subcommand};
use kernel_builder::{Arch, Built, Error, Interrupts, Request, SourceChoice, die_by, write_whole};

/// Builds the guest's kernel from source and configuration fragments.
#[derive(Debug, Parser)]
#[command(name = "kata-kernel", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Build the kernel. Does nothing if the output was made from the same inputs already.
    Build {
        #[command(flatten)]
        source: SourceArgs,
        #[command(flatten)]
        fragments: FragmentArgs,
        /// The directory to write; its contents are replaced as a whole [default: guest-kernel/ARCH in the cache].
        #[arg(long)]
        output: Option<PathBuf>,
        /// Compilers at a time [default: one for each processor].
        #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
        jobs: Option<u16>,
    },
    /// Configure only: check that everything that is wanted is there, and print the kernel's whole configuration.
    Config {
        #[command(flatten)]
        source: SourceArgs,
        #[command(flatten)]
        fragments: FragmentArgs,
        /// Write it to this file instead.
        #[arg(long)]
        output: Option<PathBuf>,
    },
    /// Get the source only: download, verify and unpack it into the cache. Prints where it is.
    Fetch {
        #[command(flatten)]
        source: SourceArgs,
    },
}

#[derive(Debug, Args)]
struct SourceArgs {
    /// The guest's architecture: x86_64, aarch64, s390x or ppc64le [default: this machine's].
    #[arg(long)]
    arch: Option<Arch>,
    /// A tarball of the Linux source, or a directory with it, instead of the one that sources.toml names.
    #[arg(long, value_name = "TARBALL|DIR")]
    source: Option<PathBuf>,
    /// The SHA-256 that the tarball must have.
    #[arg(long, requires = "source", value_name = "HEX")]
    sha256: Option<String>,
    /// The file that names the version to take and its checksum.
    #[arg(long, default_value = "kernel/sources.toml", value_name = "FILE")]
    sources: PathBuf,
    /// Take the very version that sources.toml names, or none.
    #[arg(long, conflicts_with = "source")]
    locked: bool,
    /// Where sources and objects are kept [default: KATA_CACHE, or kata in the user's cache directory].
    #[arg(long, value_name = "DIR")]
    cache: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct FragmentArgs {
    /// The directory of the configuration fragments.
    #[arg(long, default_value = "kernel/fragments", value_name = "DIR")]
    fragments: PathBuf,
    /// A fragment of your own, which wins over those of the directory; may be repeated.
    #[arg(long = "fragment", value_name = "FILE")]
    own: Vec<PathBuf>,
}

/// The request, and the architecture's place for an output.
fn request(source: SourceArgs, fragments: FragmentArgs) -> Result<(Request, PathBuf), String> {
    let arch = source.arch.or_else(Arch::of_this_machine);
    let arch = arch.ok_or("a guest cannot have this machine's architecture; name another with --arch")?;
    let cache = source.cache.or_else(cache).ok_or("no HOME is set; name a directory with --cache")?;
    let output = cache.join("guest-kernel").join(arch.name());
    let source = match source.source {
        Some(path) => SourceChoice::Path { path, sha256: source.sha256 },
        None => SourceChoice::Pinned { sources: source.sources, locked: source.locked },
    };
    let request = Request { arch, source, fragments: fragments.fragments, own_fragments: fragments.own, cache };
    Ok((request, output))
}

/// The cache that the project's scripts use, too.
fn cache() -> Option<PathBuf> {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    set("KATA_CACHE")
        .or_else(|| Some(set("XDG_CACHE_HOME")?.join("kata")))
        .or_else(|| Some(set("HOME")?.join(".cache/kata")))
}

fn run(command: Command, interrupts: &Interrupts) -> Result<(), Failure> {
    let no_fragments = FragmentArgs { fragments: PathBuf::new(), own: Vec::new() };
    match command {
        Command::Build { source, fragments, output, jobs } => {
            let (request, default) = request(source, fragments)?;
            let output = output.unwrap_or(default);
            let jobs = jobs.map_or_else(|| std::thread::available_parallelism().map_or(1, usize::from), usize::from);
            let start = Instant::now();
            let built = request.build(&output, jobs, interrupts)?;
            print(&match built {
                Built::UpToDate => format!("==> {} is up to date\n", output.display()),
                Built::New => format!("==> built {} in {} s\n", output.display(), start.elapsed().as_secs()),
            });
        }
        Command::Config { source, fragments, output } => {
            let text = request(source, fragments)?.0.configure(interrupts)?;
            match output {
                Some(path) => write_whole(&path, &text)?,
                None => print(&text),
            }
        }
        Command::Fetch { source } => {
            let tree = request(source, no_fragments)?.0.fetch(interrupts)?;
            print(&format!("{}\n", Path::display(&tree)));
        }
    }
    Ok(())
}

fn print(text: &str) {
    // Whoever stopped reading wanted no more.
    let _gone = std::io::stdout().write_all(text.as_bytes());
}

enum Failure {
    Library(Error),
    Request(String),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        Failure::Library(error)
    }
}

impl From<String> for Failure {
    fn from(text: String) -> Failure {
        Failure::Request(text)
    }
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = Interrupts::watch().map_err(Failure::from).and_then(|interrupts| run(cli.command, &interrupts));
    let (message, signal) = match result {
        Ok(()) => return ExitCode::SUCCESS,
        Err(Failure::Request(message)) => (message, None),
        Err(Failure::Library(error)) => {
            let mut message = error.to_string();
            let mut source = error.source();
            while let Some(cause) = source {
                message.push_str(&format!(": {cause}"));
                source = cause.source();
            }
            let signal = if let Error::Interrupted { signal } = error { Some(signal) } else { None };
            (message, signal)
        }
    };
    eprintln!("kata-kernel: {message}");
    match signal {
        Some(signal) => die_by(signal),
        None => ExitCode::FAILURE,
    }
}
