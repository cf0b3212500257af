//! `kata-kernel`: builds the guest's kernel. The work is in the library.

use std::{
    error::Error as _,
    io::Write,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Instant,
};

use clap::Parser;
use kernel_builder::{
    Arch, Built, Error, Interrupts, Request, SourceChoice,
    cli::{Cli, Command, FragmentArgs, SourceArgs},
    die_by, write_whole,
};

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
