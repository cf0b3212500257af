//! The command line: usage errors, and the way to each command. What is accepted is defined in the crate `cmdline`.

use std::{io::Write, path::PathBuf, process::ExitCode};

use clap::{CommandFactory, Parser, error::ErrorKind};
use cmdline::runtime::{Cli, Command, ConfigCommand};
use sandbox::store::Store;

use crate::{Error, Result, admin, commands, log::Log, rootless};

/// What every command is given.
pub(crate) struct Context {
    /// The containers.
    pub store: Store,
    /// Where messages go.
    pub log: Log,
    /// The configuration file named on the command line.
    pub config_file: Option<PathBuf>,
    /// Whether systemd shall account for containers.
    pub systemd: bool,
    /// Whether the command line names the directory of the store.
    pub one_root: bool,
    /// `CLOCK_MONOTONIC` when the command began, nanoseconds.
    pub begun_ns: u64,
}

/// Exit code for a command that does not exist, as runc.
const NO_SUCH_COMMAND: u8 = 3;
/// Exit code of an `exec` that started nothing, as runc.
const EXEC_FAILED: u8 = 255;

/// The command line's main function.
pub(crate) fn main(begun_ns: u64) -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return unusable(&error),
    };
    if cli.version {
        return print(&commands::version::text(), &Log::plain());
    }
    if cli.show_default_config_paths {
        return print(&config::SEARCHED.map(|path| format!("{path}\n")).concat(), &Log::plain());
    }
    let log = match cli.log_format.parse().and_then(|format| Log::open(cli.log.as_deref(), format, cli.debug)) {
        Ok(log) => log,
        Err(error) => {
            Log::plain().fatal(&error.chain());
            return ExitCode::FAILURE;
        }
    };
    let Some(command) = cli.command else {
        return print(&Cli::command().render_help().to_string(), &log);
    };
    if !matches!(cli.rootless.as_str(), "auto" | "true" | "false") {
        log.fatal(&format!("--rootless {}: true, false or auto is expected", cli.rootless));
        return ExitCode::FAILURE;
    }
    let one_root = cli.root.is_some();
    let root = cli.root.unwrap_or_else(rootless::state_root);
    let systemd = cli.systemd_cgroup || cli.cgroup_manager.as_deref() == Some("systemd");
    let context = Context { store: Store::new(root), log, config_file: cli.config, systemd, one_root, begun_ns };
    let (prefix, failure) = match &command {
        Command::Create(_) => ("kata-runtime create failed: ", 1),
        Command::Run(_) => ("kata-runtime run failed: ", 1),
        Command::Exec(_) => ("exec failed: ", EXEC_FAILED),
        _ => ("", 1),
    };
    match carry_out(&context, command) {
        Ok(code) => code,
        Err(Failure::Usage(error, command)) => {
            let mut cli = Cli::command();
            // So that each command's usage begins with the program's name.
            cli.build();
            let help = cli.find_subcommand_mut(command).map(|c| c.render_help().to_string());
            let _unread = write!(std::io::stdout(), "Incorrect Usage.\n\n{}\n", help.unwrap_or_default());
            context.log.fatal(&error);
            ExitCode::FAILURE
        }
        Err(Failure::Command(error)) => {
            error.details().iter().for_each(|line| context.log.warning(line));
            context.log.fatal(&format!("{prefix}{}", error.chain()));
            ExitCode::from(failure)
        }
    }
}

/// Why a command was not carried out.
enum Failure {
    /// The wrong number of arguments, for this command.
    Usage(String, &'static str),
    Command(Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Command(error)
    }
}

fn carry_out(context: &Context, command: Command) -> std::result::Result<ExitCode, Failure> {
    Ok(match command {
        Command::Create(args) => commands::create::create(context, one("create", &args.ids.arguments)?, &args)?,
        Command::Run(args) => commands::create::run(context, one("run", &args.create.ids.arguments)?, &args)?,
        Command::Start(ids) => commands::lifecycle::start(context, one("start", &ids.arguments)?)?,
        Command::State(ids) => commands::state::state(context, one("state", &ids.arguments)?)?,
        Command::Kill(args) => {
            count("kill", &args.arguments, 1, 2)?;
            let (signal, all) = (args.arguments.get(1).map(String::as_str), args.all);
            commands::lifecycle::each(context, &args.arguments[0], args.regex, |id| {
                commands::kill::kill(context, id, signal, all)
            })?
        }
        Command::Delete(args) => {
            let (id, force) = (one("delete", &args.ids.arguments)?, args.force);
            commands::lifecycle::each(context, id, args.regex, |id| commands::lifecycle::delete(context, id, force))?
        }
        Command::Exec(args) => {
            count("exec", &args.arguments, 1, usize::MAX)?;
            commands::exec::exec(context, args)?
        }
        Command::Ps(args) => {
            count("ps", &args.arguments, 1, usize::MAX)?;
            commands::ps::ps(context, &args.arguments[0], &args.format, &args.arguments[1..])?
        }
        Command::List(args) => {
            count("list", &args.nothing.arguments, 0, 0)?;
            commands::state::list(context, &args.format, args.quiet)?
        }
        Command::Events(args) => {
            commands::events::events(context, one("events", &args.ids.arguments)?, &args.interval, args.stats)?
        }
        Command::Update(args) => commands::update::update(context, one("update", &args.ids.arguments)?, &args)?,
        Command::Checkpoint(_) => return Err(without_a_checkpoint("checkpoint")),
        Command::Restore(_) => return Err(without_a_checkpoint("restore")),
        Command::Pause(ids) => commands::lifecycle::pause(context, one("pause", &ids.arguments)?)?,
        Command::Resume(ids) => commands::lifecycle::resume(context, one("resume", &ids.arguments)?)?,
        Command::Spec(args) => {
            count("spec", &args.nothing.arguments, 0, 0)?;
            commands::spec::spec(args.bundle.as_deref(), args.rootless)?
        }
        Command::Check(args) => admin::check::check(context, &args.arguments, args.strict, args.json)?,
        Command::Env(args) => {
            count("env", &args.nothing.arguments, 0, 0)?;
            admin::env::env(context, args.json)?
        }
        Command::Gc(args) => {
            count("gc", &args.nothing.arguments, 0, 0)?;
            admin::gc::gc(context, args.dry_run, args.json)?
        }
        Command::Doctor(args) => {
            count("doctor", &args.nothing.arguments, 0, 0)?;
            admin::doctor::doctor(context, args.boot)?
        }
        Command::Config(ConfigCommand::Explain(args)) => {
            admin::explain::explain(context, args.key.as_deref(), args.json)?
        }
        Command::Timeline(args) => {
            let id = one("timeline", &args.ids.arguments)?;
            admin::timeline::timeline(context, id, args.json, args.svg.as_deref())?
        }
        Command::Console(args) => {
            count("console", &args.arguments, 1, usize::MAX)?;
            admin::console::console(context, args.tty, &args.arguments[0], &args.arguments[1..])?
        }
        Command::Features(nothing) => {
            count("features", &nothing.arguments, 0, 0)?;
            print(&commands::features::text()?, &context.log)
        }
        Command::Version(nothing) => {
            count("version", &nothing.arguments, 0, 0)?;
            print(&commands::version::text(), &context.log)
        }
    })
}

fn without_a_checkpoint(command: &str) -> Failure {
    Failure::Command(Error::refused(format!(
        "{command} is not supported: CRIU saves processes of the host's kernel, and a container's are its virtual machine's"
    )))
}

/// Checks the number of arguments.
fn count(command: &'static str, arguments: &[String], least: usize, most: usize) -> std::result::Result<(), Failure> {
    let says = |what: &str, number: usize| {
        Err(Failure::Usage(format!("kata-runtime: {command:?} requires {what} {number} argument(s)"), command))
    };
    match arguments.len() {
        number if least == most && number != least => says("exactly", least),
        number if number < least => says("a minimum of", least),
        number if number > most => says("a maximum of", most),
        _ => Ok(()),
    }
}

/// The only argument.
fn one<'a>(command: &'static str, arguments: &'a [String]) -> std::result::Result<&'a str, Failure> {
    count(command, arguments, 1, 1)?;
    Ok(&arguments[0])
}

/// Writes a command's output; a reader that has gone is no error worth words.
pub(crate) fn print(text: &str, log: &Log) -> ExitCode {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => {
            log.fatal(&format!("write to standard output: {error}"));
            ExitCode::FAILURE
        }
    }
}

/// [`print`], for commands.
pub(crate) fn output(context: &Context, text: &str) -> Result<ExitCode> {
    Ok(print(text, &context.log))
}

/// Answers a command line that cannot be understood, or that asks for help.
fn unusable(error: &clap::Error) -> ExitCode {
    let log = Log::plain();
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand | ErrorKind::DisplayVersion => {
            print(&error.render().to_string(), &log)
        }
        ErrorKind::InvalidSubcommand => {
            let name = error.get(clap::error::ContextKind::InvalidSubcommand).map(ToString::to_string);
            let name = name.unwrap_or_default();
            log.fatal(&format!("No help topic for '{name}'"));
            ExitCode::from(NO_SUCH_COMMAND)
        }
        _ => {
            let text = error.render().to_string();
            let (what, usage) = text.split_once("\n\n").unwrap_or((&text, ""));
            let _unread = write!(std::io::stdout(), "Incorrect Usage.\n\n{usage}");
            let what = what.trim_start_matches("error: ").split_whitespace().collect::<Vec<_>>().join(" ");
            log.fatal(&what);
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Cli {
        Cli::try_parse_from(line.split(' ')).unwrap_or_else(|error| panic!("{line}: {error}"))
    }

    #[test]
    fn what_callers_of_runc_write_is_understood() {
        for line in [
            "k --root /r --log /l --log-format json --systemd-cgroup create --bundle /b --pid-file /p --console-socket /c x",
            "k --rootless=auto run -b /b -d --no-pivot --preserve-fds 0 --keep --no-subreaper --no-new-keyring x",
            "k run x --detach",
            "k kill --all x 9",
            "k kill x KILL",
            "k delete --force x",
            "k list -q -f json",
            "k exec --process /p --pid-file /q --detach x",
            "k exec -g -3 x true",
            "k --cgroup-manager systemd run --config other.json x",
            "k events --interval 100ms --stats x",
            "k update --memory 64m --memory-swap -1 --pids-limit -1 --cpu-quota -1 x",
            "k update -r - x",
            "k checkpoint --image-path /i --work-path /w x",
            "k kill -a x",
            "k kill --regex ^x KILL",
            "k delete --force --regex ^x",
        ] {
            parse(line);
        }
    }

    #[test]
    fn everything_after_an_execs_container_is_its_command() {
        let arguments = |line| match parse(line).command {
            Some(Command::Exec(args)) => args.arguments,
            other => panic!("{other:?}"),
        };
        assert_eq!(arguments("k exec -t x sh -c exit"), ["x", "sh", "-c", "exit"]);
        assert_eq!(arguments("k exec x -- id -u"), ["x", "--", "id", "-u"]);
        assert_eq!(arguments("k exec x ls --tty -d"), ["x", "ls", "--tty", "-d"]);
    }

    #[test]
    fn wrong_numbers_of_arguments_are_refused_in_runcs_words() {
        let refusal = |result| match result {
            Err(Failure::Usage(text, _)) => text,
            _ => panic!("accepted"),
        };
        let names = |names: &[&str]| names.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(refusal(count("run", &[], 1, 1)), "kata-runtime: \"run\" requires exactly 1 argument(s)");
        assert_eq!(refusal(count("kill", &[], 1, 2)), "kata-runtime: \"kill\" requires a minimum of 1 argument(s)");
        let three = names(&["a", "b", "c"]);
        assert_eq!(refusal(count("kill", &three, 1, 2)), "kata-runtime: \"kill\" requires a maximum of 2 argument(s)");
        assert!(count("ps", &three, 1, usize::MAX).is_ok());
    }
}
