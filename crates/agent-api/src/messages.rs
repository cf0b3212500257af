//! Requests, replies and the types inside them.

use oci_spec::runtime::{LinuxResources, Process, Spec};
use serde::{Deserialize, Serialize};

use crate::{
    network::Network,
    statistics::Statistics,
    storage::{DiskDevice, Entry, Storage},
};

/// A number the host chose for one stdio stream; unique within a sandbox's life.
pub type StreamToken = u64;

/// [`RequestOf`] with the whole OCI specification, as the host speaks it.
pub type Request = RequestOf<Spec, Process, LinuxResources>;
/// [`CreateContainerOf`] with the whole OCI specification.
pub type CreateContainer = CreateContainerOf<Spec>;
/// [`ExecOf`] with the whole OCI specification of a process.
pub type Exec = ExecOf<Process>;

/// What the host asks of the agent: the first frame of every stream.
///
/// The types of a configuration, of a process and of limits are parameters, because the agent reads only those parts of them that concern
/// it, into types of its own: that saves half a megabyte in every guest.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RequestOf<S, P, R> {
    /// First call on the channel. Answered by [`Reply::Hello`].
    Hello(Hello),
    /// This stream becomes the raw bytes of one stdio stream of a process. No reply.
    Attach {
        /// Token named in the [`Stdio`] of the call that starts the process.
        token: StreamToken,
    },
    /// Creates a container and, if asked, starts it. Answered by [`Reply::Created`] and, when the container's first
    /// process has ended, by [`Reply::Exited`] on the same stream.
    CreateContainer(Box<CreateContainerOf<S>>),
    /// Lets a created container's first process run. Answered by [`Reply::Done`] once the user's program was executed.
    StartContainer {
        /// The container.
        container: String,
    },
    /// Starts a further process in a running container. Answered by [`Reply::Created`] once the program was executed and,
    /// when it has ended, by [`Reply::Exited`] on the same stream.
    Exec(Box<ExecOf<P>>),
    /// Sends a signal. Answered by [`Reply::Done`].
    Signal {
        /// The container.
        container: String,
        /// An exec'd process, or the container's first one when absent.
        #[serde(default)]
        exec: Option<String>,
        /// Signal number, 0 to 64.
        signal: i32,
        /// To every process of the container.
        #[serde(default)]
        all: bool,
    },
    /// Sets the window size of a process's terminal. Answered by [`Reply::Done`].
    ResizeTty {
        /// The container.
        container: String,
        /// An exec'd process, or the container's first one when absent.
        #[serde(default)]
        exec: Option<String>,
        /// The size.
        size: WindowSize,
    },
    /// Freezes every process of a container. Answered by [`Reply::Done`] once all are frozen.
    Pause {
        /// The container.
        container: String,
    },
    /// Thaws a container. Answered by [`Reply::Done`].
    Resume {
        /// The container.
        container: String,
    },
    /// Lists a container's processes. Answered by [`Reply::Processes`].
    Processes {
        /// The container.
        container: String,
    },
    /// Kills what is left of a container, unmounts and forgets it. Answered by [`Reply::Done`].
    DeleteContainer {
        /// The container.
        container: String,
    },
    /// Looks again at a name of the shared directory that the host has taken away. The guest's kernel would remember it, and the host
    /// keep open what was there, for as long as the guest has memory for it. Answered by [`Reply::Done`].
    Forget {
        /// The name, directly in that directory.
        name: String,
    },
    /// Makes what the containers of a pod share. Once, before the first of them is created. Answered by [`Reply::Done`].
    ConfigurePod(Pod),
    /// Makes the guest's interfaces, routes and neighbours what is given; what is there and not given is removed. May be
    /// repeated. Waits for interfaces that have not appeared yet. Answered by [`Reply::Done`].
    ConfigureNetwork(Network),
    /// Changes a container's limits; what is absent stays as it is. Answered by [`Reply::Done`].
    UpdateContainer {
        /// The container.
        container: String,
        /// The limits, as `linux.resources` of the OCI configuration.
        resources: R,
    },
    /// Asks what a container uses. Answered by [`Reply::Statistics`].
    Statistics {
        /// The container.
        container: String,
    },
    /// Brings CPUs and memory online that were plugged, and waits until the guest has this many. Answered by [`Reply::Done`].
    Online {
        /// CPUs, those at boot included.
        vcpus: u32,
    },
    /// Replaces what is in a volume of [`StorageSource::Files`](crate::storage::StorageSource::Files) in one step, as the kubelet does: a watcher in a
    /// container sees it, and a reader sees the old or the new files. Answered by [`Reply::Done`].
    UpdateFiles {
        /// [`Storage::name`].
        storage: String,
        /// All that shall be there.
        entries: Vec<Entry>,
    },
    /// Tells what happens in the guest, as long as the stream is open: [`Reply::Event`] each.
    Events,
    /// This stream becomes a TCP connection to a port of the guest's loopback. Answered by [`Reply::Done`] and then its raw bytes.
    Dial {
        /// The port.
        port: u16,
    },
    /// This stream carries what is asked of a resolver that listens on the host, at port 53 of an address that is the guest's own loopback in
    /// the guest. Answered by [`Reply::Done`] once the agent listens there, and then by [`names`](crate::names), as long as the stream is open.
    ServeNames {
        /// The resolver's address, one of 127.0.0.0/8.
        address: std::net::Ipv4Addr,
    },
    /// Asks for figures of the guest and the agent. Answered by [`Reply::Metrics`].
    Metrics,
    /// Asks which TCP ports are listened on in the guest. Answered by [`Reply::Listeners`].
    Listeners,
}

impl<S, P, R> RequestOf<S, P, R> {
    /// What the call is called in logs and metrics.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Hello(_) => "hello",
            Self::Attach { .. } => "attach",
            Self::CreateContainer(_) => "create_container",
            Self::StartContainer { .. } => "start_container",
            Self::Exec(_) => "exec",
            Self::Signal { .. } => "signal",
            Self::ResizeTty { .. } => "resize_tty",
            Self::Pause { .. } => "pause",
            Self::Resume { .. } => "resume",
            Self::Processes { .. } => "processes",
            Self::DeleteContainer { .. } => "delete_container",
            Self::Forget { .. } => "forget",
            Self::ConfigurePod(_) => "configure_pod",
            Self::ConfigureNetwork(_) => "configure_network",
            Self::UpdateContainer { .. } => "update_container",
            Self::Statistics { .. } => "statistics",
            Self::Online { .. } => "online",
            Self::UpdateFiles { .. } => "update_files",
            Self::Events => "events",
            Self::Dial { .. } => "dial",
            Self::ServeNames { .. } => "serve_names",
            Self::Metrics => "metrics",
            Self::Listeners => "listeners",
        }
    }
}

/// What the containers of a pod share.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pod {
    /// Host name; empty leaves it as it is.
    #[serde(default)]
    pub hostname: String,
    /// Domain name; empty leaves it as it is.
    #[serde(default)]
    pub domainname: String,
    /// Kernel parameters of the pod's namespaces, as `linux.sysctl` of the OCI configuration.
    #[serde(default)]
    pub sysctl: std::collections::BTreeMap<String, String>,
    /// Size of the pod's `/dev/shm`, bytes; 0 is 64 MiB.
    #[serde(default)]
    pub shm_size: u64,
}

/// In place of a container's name, in [`RequestOf::Exec`], [`RequestOf::Signal`] and [`RequestOf::ResizeTty`]: outside of containers, which the agent
/// allows only if it was started so. A process without arguments is a shell there.
pub const GUEST: &str = "";

/// In place of a path in `linux.namespaces`: the namespace is the pod's.
pub const POD_NAMESPACE: &str = "pod";

/// What the path of a namespace begins with that is another container's; the container's name follows. There are such
/// of process ids, IPC and host name.
pub const CONTAINER_NAMESPACE: &str = "container:";

/// What the agent answers.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// To [`Request::Hello`].
    Hello(HelloReply),
    /// The process exists; `pid` is its number in the guest's first pid namespace.
    Created {
        /// Process id in the guest.
        pid: u32,
    },
    /// The process has ended.
    Exited(ExitStatus),
    /// The call was carried out.
    Done,
    /// To [`Request::Processes`].
    Processes(Vec<ProcessInfo>),
    /// To [`Request::Statistics`].
    Statistics(Box<Statistics>),
    /// To [`Request::Events`].
    Event(Event),
    /// To [`Request::Metrics`], in the text format of Prometheus.
    Metrics(String),
    /// To [`Request::Listeners`], in order.
    Listeners(Vec<Listener>),
    /// The call failed and changed nothing that lasts.
    Fault(Fault),
}

/// A TCP port that is listened on at each address of the guest, or at each of its loopback.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Listener {
    /// The port.
    pub port: u16,
    /// Only by the guest itself.
    pub loopback: bool,
}

/// Something that happened in the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    /// The kernel killed a process of a container for want of memory.
    OutOfMemory {
        /// The container.
        container: String,
    },
}

/// What the host tells the guest before anything else.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Hello {
    /// [`crate::PROTOCOL_VERSION`] of the host.
    pub protocol: u32,
    /// The host's wall clock, nanoseconds since the epoch.
    pub wall_clock_ns: u64,
    /// Fresh random bytes from the host for the guest's entropy pool (64 of them).
    #[serde(default)]
    pub entropy: Vec<u8>,
}

/// The guest's answer to [`Hello`].
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct HelloReply {
    /// [`crate::PROTOCOL_VERSION`] of the agent.
    pub protocol: u32,
    /// Version of the agent's crate.
    pub agent_version: String,
    /// `uname -r` of the guest.
    pub kernel_release: String,
    /// Stages of the guest's start, in order.
    #[serde(default)]
    pub stages: Vec<Stage>,
    /// The guest's `CLOCK_BOOTTIME` when this reply was made, nanoseconds; the host uses it to place `stages` on its own clock.
    pub now_ns: u64,
}

/// A moment in the guest's start.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Stage {
    /// What had just been finished, e.g. `agent-started`, `modules-loaded`, `channel-open`.
    pub name: String,
    /// `CLOCK_BOOTTIME` at that moment, nanoseconds.
    pub at_ns: u64,
}

/// Everything the agent needs to create a container.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct CreateContainerOf<S> {
    /// Name of the container, checked by the host: `[A-Za-z0-9][A-Za-z0-9_.+-]*`, at most 1024 bytes.
    pub id: String,
    /// The OCI configuration with every host path already replaced by the guest path under which the shared file system
    /// shows it.
    pub spec: S,
    /// The first process's stdio.
    #[serde(default)]
    pub stdio: Stdio,
    /// Seccomp filter of the container, compiled by the host.
    #[serde(default)]
    pub seccomp: Option<SeccompFilter>,
    /// Start the first process at once, sparing the caller a [`Request::StartContainer`].
    #[serde(default)]
    pub start: bool,
    /// File systems to be mounted, in this order, before the container is made. The specification names them by their paths below
    /// [`GUEST_STORAGE_DIR`](crate::GUEST_STORAGE_DIR).
    #[serde(default)]
    pub storages: Vec<Storage>,
    /// Disks that the container shall have as devices.
    #[serde(default)]
    pub disks: Vec<DiskDevice>,
    /// Whether it shall have a node for each device of the guest.
    #[serde(default)]
    pub all_devices: bool,
    /// The state, a JSON object, that `hooks.startContainer` of the configuration get once the process id is added.
    #[serde(default)]
    pub told: Option<String>,
}

/// A further process for a running container.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ExecOf<P> {
    /// The container.
    pub container: String,
    /// Name of the process, unique among the container's live processes.
    pub id: String,
    /// What to run and as whom. `terminal` and `console_size` are honoured.
    pub process: P,
    /// Its stdio.
    #[serde(default)]
    pub stdio: Stdio,
}

/// Which streams a process is connected to. A missing one is `/dev/null`. With a terminal, `stdin` and `stdout` are the two
/// directions of the terminal and `stderr` is not used.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stdio {
    /// Standard input; the host closing its half closes the process's input.
    #[serde(default)]
    pub stdin: Option<StreamToken>,
    /// Standard output; the guest closes its half after the last writer has gone.
    #[serde(default)]
    pub stdout: Option<StreamToken>,
    /// Standard error.
    #[serde(default)]
    pub stderr: Option<StreamToken>,
}

/// A compiled seccomp filter.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SeccompFilter {
    /// Classic BPF instructions (`struct sock_filter`: code, jt, jf, k), at most 4096 (BPF_MAXINSNS).
    pub program: Vec<(u16, u8, u8, u32)>,
    /// Flags for seccomp(2), such as `SECCOMP_FILTER_FLAG_LOG`.
    #[serde(default)]
    pub flags: u64,
}

/// A terminal's size in characters.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WindowSize {
    /// Rows.
    pub rows: u16,
    /// Columns.
    pub cols: u16,
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExitStatus {
    /// By `exit`, with this code (0 to 255).
    Code(u8),
    /// By this signal.
    Signal(u8),
}

impl ExitStatus {
    /// The number a shell shows: the code, or 128 plus the signal's number.
    pub fn shell_code(self) -> i32 {
        match self {
            Self::Code(code) => code.into(),
            Self::Signal(signal) => 128 + i32::from(signal),
        }
    }
}

/// One process of a container, as the guest's `/proc` shows it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ProcessInfo {
    /// Process id in the guest.
    pub pid: u32,
    /// Parent's process id in the guest.
    pub ppid: u32,
    /// User id, as the guest's first user namespace counts.
    pub uid: u32,
    /// User and system time, milliseconds.
    pub cpu_ms: u64,
    /// Start, seconds since the epoch.
    pub start_s: u64,
    /// Name of the controlling terminal, `?` if none.
    pub tty: String,
    /// What it does, by the letter of proc_pid_stat(5), such as `S`.
    #[serde(default)]
    pub state: String,
    /// Command line, or the name in brackets when there is none.
    pub command: String,
}

/// Why a call failed.
#[derive(Debug, Clone, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Fault {
    /// What kind of failure, for programs.
    pub kind: FaultKind,
    /// The step, the object and the reason, for people.
    pub message: String,
}

/// Kinds of failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FaultKind {
    /// The program is not there (a shell's 127).
    CommandNotFound,
    /// The program is there but may not or cannot be run (a shell's 126).
    CommandNotExecutable,
    /// No such container or process.
    NotFound,
    /// The container's state does not allow it.
    InvalidState,
    /// The request asks for something that is wrong or unsupported.
    InvalidArgument,
    /// The other side speaks another version.
    Protocol,
    /// Anything else.
    #[serde(other)]
    Internal,
}
