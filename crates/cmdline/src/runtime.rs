//! `kata-runtime`'s command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

/// Run containers, each in a virtual machine of its own
#[derive(Debug, Parser)]
#[command(name = "kata-runtime", disable_help_subcommand = false, arg_required_else_help = false)]
#[command(
    after_help = "A bundle is a directory with a config.json and a root file system, as the Open Container Initiative \
                        describes it. `kata-runtime spec` writes a config.json to start from."
)]
pub struct Cli {
    /// Log what is done
    #[arg(long)]
    pub debug: bool,
    /// Write messages to this file instead of standard error
    #[arg(long, value_name = "FILE")]
    pub log: Option<PathBuf>,
    /// Format of messages: text or json
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    pub log_format: String,
    /// Directory for the state of containers [default: /run/kata-runtime, or $XDG_RUNTIME_DIR/kata-runtime for a user who is not root]
    #[arg(long, value_name = "DIR")]
    pub root: Option<PathBuf>,
    /// Read the configuration from this file
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Accepted for callers that pass it; a container's cgroups are in its guest, where no systemd runs
    #[arg(long)]
    pub systemd_cgroup: bool,
    /// Accepted for callers that pass it: true, false or auto; no cgroup of the host is touched
    #[arg(long, value_name = "VALUE", default_value = "auto")]
    pub rootless: String,
    /// Print the version
    #[arg(long, short)]
    pub version: bool,
    /// What to do.
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// Arguments beside options. Their number is checked by us, in runc's words.
#[derive(Debug, Args)]
pub struct Ids {
    /// Name of the container
    #[arg(value_name = "CONTAINER-ID", num_args = 0..)]
    pub arguments: Vec<String>,
}

/// None. Their number is checked by us, in runc's words.
#[derive(Debug, Args)]
pub struct Nothing {
    /// Whatever was given.
    #[arg(hide = true, num_args = 0..)]
    pub arguments: Vec<String>,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Create a container
    #[command(override_usage = "kata-runtime create [OPTIONS] CONTAINER-ID")]
    Create(CreateArgs),
    /// Create and run a container
    #[command(override_usage = "kata-runtime run [OPTIONS] CONTAINER-ID")]
    Run(RunArgs),
    /// Let a created container run
    #[command(override_usage = "kata-runtime start CONTAINER-ID")]
    Start(Ids),
    /// Print the state of a container
    #[command(override_usage = "kata-runtime state CONTAINER-ID")]
    State(Ids),
    /// Send a signal, SIGTERM unless another is named, to a container's first process
    #[command(override_usage = "kata-runtime kill [OPTIONS] CONTAINER-ID [SIGNAL]")]
    Kill(KillArgs),
    /// Delete a container and everything that belongs to it
    #[command(override_usage = "kata-runtime delete [OPTIONS] CONTAINER-ID")]
    Delete(DeleteArgs),
    /// Run another process in a container
    #[command(
        override_usage = "kata-runtime exec [OPTIONS] CONTAINER-ID COMMAND [ARGUMENT]...\n       kata-runtime exec [OPTIONS] --process FILE CONTAINER-ID"
    )]
    Exec(ExecArgs),
    /// List the processes of a container
    #[command(override_usage = "kata-runtime ps [OPTIONS] CONTAINER-ID [-ef | -o COLUMN,...]")]
    Ps(PsArgs),
    /// List the containers
    List(ListArgs),
    /// Freeze the processes of a container
    #[command(override_usage = "kata-runtime pause CONTAINER-ID")]
    Pause(Ids),
    /// Thaw the processes of a container
    #[command(override_usage = "kata-runtime resume CONTAINER-ID")]
    Resume(Ids),
    /// Write a config.json to start from
    Spec(SpecArgs),
    /// Print what this runtime can do, as JSON
    Features(Nothing),
    /// Print the version
    Version(Nothing),
}

/// Options of `create`, and of `run`.
#[derive(Debug, Args)]
pub struct CreateArgs {
    /// The bundle's directory [default: the current one]
    #[arg(long, short, value_name = "DIR")]
    pub bundle: Option<PathBuf>,
    /// Unix socket that receives the master of the container's terminal
    #[arg(long, value_name = "SOCKET")]
    pub console_socket: Option<PathBuf>,
    /// Write there the pid of the host process that stands for the container
    #[arg(long, value_name = "FILE")]
    pub pid_file: Option<PathBuf>,
    /// Accepted for callers that pass it; how the root is entered is the guest's affair
    #[arg(long)]
    pub no_pivot: bool,
    /// Accepted for callers that pass it; keyrings of the host do not reach into a guest
    #[arg(long)]
    pub no_new_keyring: bool,
    /// Number of further descriptors to pass; only 0, for none can be passed into a virtual machine
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub preserve_fds: u32,
    /// Which container.
    #[command(flatten)]
    pub ids: Ids,
}

/// Options of `run`.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// What `create` takes.
    #[command(flatten)]
    pub create: CreateArgs,
    /// Return once the container runs
    #[arg(long, short)]
    pub detach: bool,
    /// Do not delete the container when it has ended
    #[arg(long)]
    pub keep: bool,
    /// Accepted for callers that pass it; nothing is reparented to this command
    #[arg(long)]
    pub no_subreaper: bool,
}

/// Options of `kill`.
#[derive(Debug, Args)]
pub struct KillArgs {
    /// Send it to every process of the container
    #[arg(long, short)]
    pub all: bool,
    /// Name of the container, and the signal's name or number
    #[arg(value_name = "ARGUMENT", num_args = 0..)]
    pub arguments: Vec<String>,
}

/// Options of `delete`.
#[derive(Debug, Args)]
pub struct DeleteArgs {
    /// Kill it first if it still runs
    #[arg(long, short)]
    pub force: bool,
    /// Which container.
    #[command(flatten)]
    pub ids: Ids,
}

/// Options of `exec`.
#[derive(Debug, Args)]
pub struct ExecArgs {
    /// Unix socket that receives the master of the process's terminal
    #[arg(long, value_name = "SOCKET")]
    pub console_socket: Option<PathBuf>,
    /// Working directory in the container
    #[arg(long, value_name = "DIR")]
    pub cwd: Option<String>,
    /// Set an environment variable
    #[arg(long, short, value_name = "NAME=VALUE")]
    pub env: Vec<String>,
    /// Give it a terminal
    #[arg(long, short)]
    pub tty: bool,
    /// User and group, by number
    #[arg(long, short, value_name = "UID[:GID]")]
    pub user: Option<String>,
    /// Further groups, by number
    #[arg(long, short = 'g', value_name = "GID", allow_negative_numbers = true)]
    pub additional_gids: Vec<i64>,
    /// Read the process from this JSON file
    #[arg(long, short, value_name = "FILE")]
    pub process: Option<PathBuf>,
    /// Return once the process runs
    #[arg(long, short)]
    pub detach: bool,
    /// Write there the pid of the host process that stands for the process
    #[arg(long, value_name = "FILE")]
    pub pid_file: Option<PathBuf>,
    /// Refused: the guest's kernel has no SELinux
    #[arg(long, value_name = "LABEL")]
    pub process_label: Option<String>,
    /// Refused: the guest's kernel has no AppArmor
    #[arg(long, value_name = "PROFILE")]
    pub apparmor: Option<String>,
    /// Never let it gain privileges
    #[arg(long)]
    pub no_new_privs: bool,
    /// Add a capability
    #[arg(long, short, value_name = "CAP")]
    pub cap: Vec<String>,
    /// Number of further descriptors to pass; only 0, for none can be passed into a virtual machine
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub preserve_fds: u32,
    /// Refused: the process always joins the container's cgroup
    #[arg(long, value_name = "CGROUP")]
    pub cgroup: Vec<String>,
    /// Accepted for callers that pass it; no process can be started in a frozen container
    #[arg(long)]
    pub ignore_paused: bool,
    /// Name of the container, and the command with its arguments
    #[arg(value_name = "ARGUMENT", num_args = 0.., trailing_var_arg = true, allow_hyphen_values = true)]
    pub arguments: Vec<String>,
}

/// Options of `ps`.
#[derive(Debug, Args)]
pub struct PsArgs {
    /// table or json
    #[arg(long, short, value_name = "FORMAT", default_value = "table")]
    pub format: String,
    /// Name of the container, and `-ef` or `-o COLUMN,...`
    #[arg(value_name = "ARGUMENT", num_args = 0.., trailing_var_arg = true, allow_hyphen_values = true)]
    pub arguments: Vec<String>,
}

/// Options of `list`.
#[derive(Debug, Args)]
pub struct ListArgs {
    /// table or json
    #[arg(long, short, value_name = "FORMAT", default_value = "table")]
    pub format: String,
    /// Print names only
    #[arg(long, short)]
    pub quiet: bool,
    /// Nothing else.
    #[command(flatten)]
    pub nothing: Nothing,
}

/// Options of `spec`.
#[derive(Debug, Args)]
pub struct SpecArgs {
    /// The bundle's directory [default: the current one]
    #[arg(long, short, value_name = "DIR")]
    pub bundle: Option<PathBuf>,
    /// With a user namespace, for a user who is not root
    #[arg(long)]
    pub rootless: bool,
    /// Nothing else.
    #[command(flatten)]
    pub nothing: Nothing,
}
