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
    /// Ask systemd for a scope for the container's processes on the host; refused where no systemd runs. Its limits are in its guest
    #[arg(long)]
    pub systemd_cgroup: bool,
    /// The same in crun's words: cgroupfs, systemd or disabled
    #[arg(long, value_name = "MANAGER", value_parser = ["cgroupfs", "systemd", "disabled"])]
    pub cgroup_manager: Option<String>,
    /// Accepted for callers that pass it: true, false or auto; no cgroup of the host is touched
    #[arg(long, value_name = "VALUE", default_value = "auto")]
    pub rootless: String,
    /// Print where the configuration is looked for
    #[arg(long)]
    pub show_default_config_paths: bool,
    /// Print the version
    #[arg(long, short)]
    pub version: bool,
    /// What to do.
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// Arguments beside options. Their number is checked by us, in runc's words.
#[derive(Debug, Default, Args)]
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

/// Whatever a command that is always refused was given.
#[derive(Debug, Args)]
pub struct Anything {
    /// Any options, and the name of the container
    #[arg(value_name = "ARGUMENT", num_args = 0.., trailing_var_arg = true, allow_hyphen_values = true)]
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
    /// Print what a container uses, and when it runs out of memory, until it stops
    #[command(override_usage = "kata-runtime events [OPTIONS] CONTAINER-ID")]
    Events(EventsArgs),
    /// Change a container's limits
    #[command(override_usage = "kata-runtime update [OPTIONS] CONTAINER-ID")]
    Update(Box<UpdateArgs>),
    /// Refused: a virtual machine's processes cannot be saved from outside
    #[command(override_usage = "kata-runtime checkpoint CONTAINER-ID")]
    Checkpoint(Anything),
    /// Refused, as checkpoint
    #[command(override_usage = "kata-runtime restore CONTAINER-ID")]
    Restore(Anything),
    /// Write a config.json to start from
    Spec(SpecArgs),
    /// Print what this runtime can do, as JSON
    Features(Nothing),
    /// Try what this host can do, and name the remedy for what it cannot
    #[command(visible_alias = "kata-check", override_usage = "kata-runtime check [OPTIONS] [all | list | NAME...]")]
    Check(CheckArgs),
    /// Print what is installed, and which values are in force
    #[command(visible_alias = "kata-env")]
    Env(EnvArgs),
    /// Remove what is left over of sandboxes whose processes are gone
    Gc(GcArgs),
    /// Say what is the matter with this host: check, gc --dry-run and, if asked, the boot of a guest
    Doctor(DoctorArgs),
    /// Look into the configuration
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Print where the time of a sandbox's start went
    #[command(override_usage = "kata-runtime timeline [OPTIONS] SANDBOX-ID")]
    Timeline(TimelineArgs),
    /// Run a program in a guest, outside of its containers, if the configuration allows that
    #[command(override_usage = "kata-runtime console [OPTIONS] SANDBOX-ID [COMMAND [ARGUMENT]...]")]
    Console(ConsoleArgs),
    /// Print the version
    Version(Nothing),
}

/// Options of `create`, and of `run`.
#[derive(Debug, Args)]
pub struct CreateArgs {
    /// The bundle's directory [default: the current one]
    #[arg(long, short, value_name = "DIR")]
    pub bundle: Option<PathBuf>,
    /// The bundle's configuration, from the bundle's directory [default: config.json]
    #[arg(long, short = 'f', value_name = "FILE")]
    pub config: Option<PathBuf>,
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
    /// Take the name for an extended regular expression, and signal every container whose name has a match
    #[arg(long, short)]
    pub regex: bool,
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
    /// Take the name for an extended regular expression, and delete every container whose name has a match
    #[arg(long, short)]
    pub regex: bool,
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
    /// If the container is frozen, wait until it is thawed
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

/// Options of `events`.
#[derive(Debug, Args)]
pub struct EventsArgs {
    /// How often to print what it uses, such as 500ms, 5s or 1m30s
    #[arg(long, value_name = "TIME", default_value = "5s", allow_negative_numbers = true)]
    pub interval: String,
    /// Print what it uses once, and nothing else
    #[arg(long)]
    pub stats: bool,
    /// Which container.
    #[command(flatten)]
    pub ids: Ids,
}

/// Options of `update`. What is absent or 0 stays as it is.
#[derive(Debug, Default, Args)]
pub struct UpdateArgs {
    /// Read the limits from this file, linux.resources of an OCI configuration; - is standard input. Other options are ignored
    #[arg(long, short, value_name = "FILE")]
    pub resources: Option<String>,
    /// Weight among others when disks are busy, 10 to 1000
    #[arg(long, value_name = "WEIGHT")]
    pub blkio_weight: Option<u16>,
    /// Length of a period of the processor's scheduler, microseconds
    #[arg(long, value_name = "TIME")]
    pub cpu_period: Option<String>,
    /// Processor time in each period, microseconds; -1 is no limit
    #[arg(long, value_name = "TIME", allow_negative_numbers = true)]
    pub cpu_quota: Option<String>,
    /// Weight among others when processors are busy, 2 to 262144
    #[arg(long, value_name = "SHARES")]
    pub cpu_share: Option<String>,
    /// Refused unless 0: the guest's cgroups have no realtime limits
    #[arg(long, value_name = "TIME")]
    pub cpu_rt_period: Option<String>,
    /// Refused unless 0: the guest's cgroups have no realtime limits
    #[arg(long, value_name = "TIME", allow_negative_numbers = true)]
    pub cpu_rt_runtime: Option<String>,
    /// The guest's processors that it may use, such as 0-1,3
    #[arg(long, value_name = "LIST")]
    pub cpuset_cpus: Option<String>,
    /// The guest's memory nodes that it may use
    #[arg(long, value_name = "LIST")]
    pub cpuset_mems: Option<String>,
    /// Accepted for callers that pass it, with a warning: kernels limit this no more
    #[arg(long, value_name = "BYTES", hide = true, allow_negative_numbers = true)]
    pub kernel_memory: Option<String>,
    /// Accepted for callers that pass it, with a warning: kernels limit this no more
    #[arg(long, value_name = "BYTES", hide = true, allow_negative_numbers = true)]
    pub kernel_memory_tcp: Option<String>,
    /// Memory, in bytes or such as 512m; -1 is no limit
    #[arg(long, value_name = "BYTES", allow_negative_numbers = true)]
    pub memory: Option<String>,
    /// Memory that is left to it when others need some
    #[arg(long, value_name = "BYTES", allow_negative_numbers = true)]
    pub memory_reservation: Option<String>,
    /// Memory and swap in sum; -1 is no limit
    #[arg(long, value_name = "BYTES", allow_negative_numbers = true)]
    pub memory_swap: Option<String>,
    /// Processes; -1 is no limit
    #[arg(long, value_name = "NUMBER", allow_negative_numbers = true)]
    pub pids_limit: Option<i64>,
    /// Refused: a guest does not see the host's caches
    #[arg(long, value_name = "SCHEMA")]
    pub l3_cache_schema: Option<String>,
    /// Refused: a guest does not see the host's memory bandwidth
    #[arg(long, value_name = "SCHEMA")]
    pub mem_bw_schema: Option<String>,
    /// Which container.
    #[command(flatten)]
    pub ids: Ids,
}

/// Options of `check`.
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// Print the result as JSON
    #[arg(long)]
    pub json: bool,
    /// Fail also for what makes containers slower, or poorer
    #[arg(long, short)]
    pub strict: bool,
    /// Accepted for callers that pass it; the network is never asked
    #[arg(long, short)]
    pub no_network_checks: bool,
    /// Accepted for callers that pass it; every check is printed in any case
    #[arg(long, short)]
    pub verbose: bool,
    /// Nothing or all for every check, list for their names, or names
    #[arg(value_name = "NAME", num_args = 0..)]
    pub arguments: Vec<String>,
}

/// Options of `env`.
#[derive(Debug, Args)]
pub struct EnvArgs {
    /// Print it as JSON instead of TOML
    #[arg(long)]
    pub json: bool,
    /// Nothing else.
    #[command(flatten)]
    pub nothing: Nothing,
}

/// Options of `gc`.
#[derive(Debug, Args)]
pub struct GcArgs {
    /// Only say what would be removed
    #[arg(long)]
    pub dry_run: bool,
    /// Print it as JSON
    #[arg(long)]
    pub json: bool,
    /// Nothing else.
    #[command(flatten)]
    pub nothing: Nothing,
}

/// Options of `doctor`.
#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// Boot a guest, without a container, and end it
    #[arg(long)]
    pub boot: bool,
    /// Nothing else.
    #[command(flatten)]
    pub nothing: Nothing,
}

/// What `config` can do.
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Print the value in force of each key, where it comes from, and what it means
    Explain(ExplainArgs),
}

/// Options of `config explain`.
#[derive(Debug, Args)]
pub struct ExplainArgs {
    /// Print it as JSON
    #[arg(long)]
    pub json: bool,
    /// Only this key, with or without its table
    #[arg(value_name = "KEY")]
    pub key: Option<String>,
}

/// Options of `timeline`.
#[derive(Debug, Args)]
pub struct TimelineArgs {
    /// Print it as JSON
    #[arg(long)]
    pub json: bool,
    /// Draw it into this file
    #[arg(long, value_name = "FILE")]
    pub svg: Option<PathBuf>,
    /// Which sandbox: of kata-runtime's, or of a shim's.
    #[command(flatten)]
    pub ids: Ids,
}

/// Options of `console`.
#[derive(Debug, Args)]
pub struct ConsoleArgs {
    /// Give it a terminal
    #[arg(long, short)]
    pub tty: bool,
    /// Name of the sandbox, and the command with its arguments [default: a shell]
    #[arg(value_name = "ARGUMENT", num_args = 0.., trailing_var_arg = true, allow_hyphen_values = true)]
    pub arguments: Vec<String>,
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
