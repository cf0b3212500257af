//! `kata-manuals DIRECTORY [PROGRAM]...`: writes the manual pages and the completions for bash, zsh and fish of every command line, laid
//! out as below `share/`. The same definitions give the same bytes.

mod page;
mod text;

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{Command, CommandFactory, Parser};
use clap_complete::{Shell, generate};

use text::Extra;

/// Write the manual pages and shell completions of all programs
#[derive(Debug, Parser)]
#[command(name = "kata-manuals")]
struct Cli {
    /// The directory to write to: man/, bash-completion/, zsh/ and fish/ are made in it
    directory: PathBuf,
    /// The programs to write for [default: all]
    programs: Vec<String>,
}

/// Why nothing, or not everything, was written.
#[derive(Debug, thiserror::Error)]
enum Error {
    /// A file cannot be written.
    #[error("cannot write {}: {source}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A program that has no command line defined.
    #[error("there is no program {0}; there are {1}")]
    NoProgram(String, String),
    /// A text belongs to a command that does not exist.
    #[error("there is a text for `{0}`, but no such command; correct text.rs")]
    NoCommand(String),
}

/// One program: what it accepts and what its pages say beyond that.
struct Program {
    command: Command,
    /// The manual's section: 1 for everybody's programs, 8 for an administrator's.
    section: &'static str,
    extras: &'static [Extra],
    /// Other names of it, whose pages refer to its own.
    also: &'static [&'static str],
}

fn programs() -> Vec<Program> {
    vec![
        Program {
            command: cmdline::runtime::Cli::command(),
            section: "8",
            extras: text::RUNTIME,
            also: &["kata-shim"],
        },
        Program { command: kernel_builder::cli::Cli::command(), section: "1", extras: text::KERNEL, also: &[] },
        Program { command: osbuilder::cli::Cli::command(), section: "1", extras: text::OSBUILDER, also: &[] },
    ]
}

/// Every file, by its path below `share/`.
fn files(programs: Vec<Program>) -> Result<Vec<(PathBuf, Vec<u8>)>, Error> {
    let mut files = Vec::new();
    for program in programs {
        let name = program.command.get_name().to_owned();
        for (shell, path) in [
            (Shell::Bash, format!("bash-completion/completions/{name}")),
            (Shell::Zsh, format!("zsh/site-functions/_{name}")),
            (Shell::Fish, format!("fish/vendor_completions.d/{name}.fish")),
        ] {
            let mut script = Vec::new();
            generate(shell, &mut program.command.clone(), &name, &mut script);
            files.push((path.into(), script));
        }
        let directory = PathBuf::from(format!("man/man{}", program.section));
        for other in program.also {
            let reference = format!(".so man{0}/{name}.{0}\n", program.section);
            files.push((directory.join(format!("{other}.{}", program.section)), reference.into_bytes()));
        }
        for (page, text) in page::pages(program.command, program.section, program.extras)? {
            files.push((directory.join(page), text));
        }
    }
    Ok(files)
}

/// The programs of these names, or all if there are none.
fn chosen(names: &[String]) -> Result<Vec<Program>, Error> {
    let mut all = programs();
    let known: Vec<String> = all.iter().map(|program| program.command.get_name().to_owned()).collect();
    if let Some(unknown) = names.iter().find(|name| !known.contains(name)) {
        return Err(Error::NoProgram(unknown.clone(), known.join(", ")));
    }
    all.retain(|program| names.is_empty() || names.iter().any(|name| name == program.command.get_name()));
    Ok(all)
}

fn write(directory: &Path, names: &[String]) -> Result<(), Error> {
    for (path, content) in files(chosen(names)?)? {
        let path = directory.join(path);
        let failed = |source| Error::Write { path: path.clone(), source };
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(failed)?;
        }
        // Under another name first, so that no half page lies under its own.
        let mut new = path.clone().into_os_string();
        new.push(".new");
        let new = PathBuf::from(new);
        fs::write(&new, content).and_then(|()| fs::rename(&new, &path)).map_err(|error| {
            let _best_effort = fs::remove_file(&new);
            failed(error)
        })?;
    }
    Ok(())
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match write(&cli.directory, &cli.programs) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("kata-manuals: {error}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> Vec<(String, String)> {
        let text =
            |(path, content): (PathBuf, Vec<u8>)| (path.display().to_string(), String::from_utf8(content).unwrap());
        files(programs()).unwrap().into_iter().map(text).collect()
    }

    #[test]
    fn every_command_has_a_page_and_its_programs_page_names_it() {
        let files = all();
        let page = |name: &str| {
            let found = files.iter().find(|(path, _)| path.ends_with(&format!("/{name}")));
            found.unwrap_or_else(|| panic!("no page {name}")).1.as_str()
        };
        for program in programs() {
            let main = page(&format!("{}.{}", program.command.get_name(), program.section));
            for command in program.command.get_subcommands() {
                let name = format!("{}-{}", program.command.get_name(), command.get_name());
                let own = page(&format!("{name}.{}", program.section));
                assert!(own.contains(".SH SYNOPSIS") && own.contains(".SH EXAMPLES"), "{name}: {own}");
                assert!(main.contains(&name.replace('-', "\\-")), "{name} in {main}");
            }
            for section in
                ["NAME", "SYNOPSIS", "DESCRIPTION", "OPTIONS", "EXIT STATUS", "FILES", "ENVIRONMENT", "EXAMPLES"]
            {
                assert!(
                    main.contains(&format!(".SH {section}")) || main.contains(&format!(".SH \"{section}\"")),
                    "{section}"
                );
            }
        }
    }

    #[test]
    fn pages_say_the_same_every_time() {
        assert_eq!(all(), all());
    }

    #[test]
    fn a_text_for_a_command_that_does_not_exist_is_refused() {
        let extras = &[Extra { command: "fly", sections: &[] }];
        let error = page::pages(cmdline::runtime::Cli::command(), "8", extras).unwrap_err().to_string();
        assert!(error.contains("`fly`"), "{error}");
    }

    #[test]
    fn files_appear_below_the_directory_and_a_failure_names_the_file() {
        let directory = tempfile::tempdir().unwrap();
        write(directory.path(), &["kata-runtime".into()]).unwrap();
        assert!(directory.path().join("man/man8/kata-runtime-run.8").is_file());
        assert!(!directory.path().join("man/man1").exists(), "of a program that was not asked for");
        let error = write(directory.path(), &["fly".into()]).unwrap_err().to_string();
        assert!(error.starts_with("there is no program fly; there are kata-runtime, "), "{error}");
        let stop = directory.path().join("stop");
        fs::write(&stop, "").unwrap();
        assert!(write(&stop, &[]).unwrap_err().to_string().contains("/stop/"));
    }
}
