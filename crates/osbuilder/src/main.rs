//! `kata-osbuilder`: builds what a guest boots from. The work is in the library.

use std::{error::Error, path::PathBuf, process::ExitCode};

use clap::Parser;
use osbuilder::{
    Build, Check, Compression, Contents, Disk, FileSystem, Format, Options, Source,
    cli::{BuildArgs, Cli, Command, CompressionArg, FileSystemArg, FormatArg, ModulesSource},
};

fn modules_directory(source: ModulesSource) -> Result<Option<PathBuf>, osbuilder::Error> {
    let from_package = source.package_dir.map(|package| osbuilder::modules_in_package(&package)).transpose()?;
    Ok(from_package.or(source.modules_dir))
}

fn build(args: BuildArgs) -> Result<(), osbuilder::Error> {
    let compression = match args.compression {
        CompressionArg::None => Compression::None,
        CompressionArg::Zstd => Compression::Zstd,
    };
    let file_system = match args.fs {
        FileSystemArg::Erofs => FileSystem::Erofs,
        FileSystemArg::Ext4 => FileSystem::Ext4,
    };
    let format = match args.format {
        FormatArg::Initrd => Format::Initrd(compression),
        FormatArg::Image if args.compression != CompressionArg::None => {
            return Err(osbuilder::Error::Usage(
                "--compression is for an initrd; a disk image is not compressed".into(),
            ));
        }
        FormatArg::Image => Format::Image(Disk { file_system, verity: !args.no_verity }),
    };
    let build = Build {
        source: match args.definition {
            Some(path) => Source::Definition(path),
            None => args.source.parse()?,
        },
        format,
        agent: args.agent,
        agent_lock: args.agent_lock,
        options: Options {
            architecture: args.arch,
            release: args.release,
            repositories: args.repositories,
            keys: args.keys,
            packages: args.packages,
        },
        modules_directory: modules_directory(args.modules_source)?,
        modules: args.modules,
        output: args.output,
        shown: args.verbose,
    };
    let built = osbuilder::build(&build)?;
    let (output, length) = (build.output.display(), built.length);
    eprintln!("built {output} for {}: {length} bytes, {} packages", built.architecture, built.packages);
    if let Some(verity) = built.verity {
        println!("{verity}");
    }
    Ok(())
}

fn run(command: Command) -> Result<(), osbuilder::Error> {
    match command {
        Command::Kernel { source, output } => {
            let from_package = source.package_dir.map(|package| osbuilder::kernel_in_package(&package)).transpose()?;
            // One of the two is there: the group is required.
            let vmlinuz = from_package.or(source.vmlinuz).unwrap_or_default();
            osbuilder::kernel(&vmlinuz, &output)
        }
        Command::Build(args) => build(*args),
        Command::Check { image, runtime, kernel, program } => {
            let checked = osbuilder::check(&Check { image: image.clone(), runtime, kernel, program })?;
            let seconds = checked.took.as_secs_f64();
            println!(
                "{}, {}: a container ran in it and said {:?}; {seconds:.1} s",
                image.display(),
                checked.kind,
                checked.said
            );
            Ok(())
        }
        Command::Definition { name } => match osbuilder::definition(&name) {
            Some(text) => {
                print!("{text}");
                Ok(())
            }
            None => Err(osbuilder::Error::Usage(format!(
                "there is no definition {name}; there are {}",
                osbuilder::definition_names().join(", ")
            ))),
        },
        Command::Verify { image, parameters } => {
            let parameters = osbuilder::verify(&image, parameters.as_deref())?;
            println!("{}: all {} blocks match the root hash", image.display(), parameters.data_blocks);
            Ok(())
        }
        Command::Initrd { agent, source, modules, output } => {
            let directory = modules_directory(source)?;
            let contents = Contents { agent: &agent, modules_directory: directory.as_deref(), modules: &modules };
            osbuilder::initrd(&contents, &output)
        }
    }
}

fn main() -> ExitCode {
    let command = Cli::parse().command;
    match osbuilder::catch_interrupts().and_then(|()| run(command)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let mut message = error.to_string();
            let mut source = error.source();
            while let Some(cause) = source {
                message.push_str(&format!(": {cause}"));
                source = cause.source();
            }
            eprintln!("kata-osbuilder: {message}");
            ExitCode::FAILURE
        }
    }
}
