//! From nothing to a container: the daemon's half of a launch.

use std::{
    os::{fd::OwnedFd, unix::fs::DirBuilderExt},
    path::Path,
    process::ExitStatus,
    rc::Rc,
    time::{Duration, SystemTime},
};

use agent_api::{CreateContainer, Hello, HelloReply, PROTOCOL_VERSION, Reply, Request, SHARED_FS_TAG};
use config::Config;
use devices::{share::SharedDir, virtiofs};
use hypervisor::{Arch, GuestImage, Qemu, QemuConfig, SharedFs, Vm, VmConfig};
use tokio::{net::UnixListener, sync::watch};

use super::{
    machine::{Machine, out_of_turn},
    relay,
};
use crate::{
    Error, Result,
    client::StdioEnds,
    launch::{Boot, Files},
    store::{ProcessRef, StateDir, Status},
    sys,
    timeline::Timeline,
};

/// How long the agent may take to create a container once it answers.
const CREATE_DEADLINE: Duration = Duration::from_secs(45);
/// First user id of virtual machine monitors: an otherwise unused range. The daemon's process id is added, so that no two
/// live sandboxes share one.
const FIRST_VMM_UID: u32 = 0x6b00_0000;

/// A sandbox that answers.
pub(super) struct Booted {
    pub(super) machine: Rc<Machine>,
    pub(super) listener: UnixListener,
    pub(super) guest_pid: u32,
}

/// Starts the machine and creates the container in it.
pub(super) async fn boot(boot: Boot, dir: StateDir, mut descriptors: Vec<OwnedFd>) -> Result<Booted> {
    let mut timeline = Timeline::new(boot.begun_ns);
    timeline.mark("daemon-started");
    if descriptors.len() != boot.shares.len() + boot.stdio.count() {
        return Err(Error::State("the caller sent another number of descriptors than it said".into()));
    }
    let stdio = StdioEnds::from_descriptors(boot.stdio, descriptors.split_off(boot.shares.len())).unwrap_or_default();
    let mut state = boot.state.clone();
    state.daemon = ProcessRef::of(std::process::id());
    state.creator = None;
    dir.save(&state)?;
    let listener = UnixListener::bind(socket_path(&dir)?.path())
        .map_err(|e| Error::io(format!("listen on {}", dir.file("sock").display()), e))?;

    devices::share::enter_private_namespace()?;
    let shared = SharedDir::create(&dir.file("shared"))?;
    for (share, tree) in boot.shares.iter().zip(descriptors) {
        shared.attach(Path::new(&share.name), tree, share.read_only)?;
    }
    timeline.mark("files-shared");

    let (virtiofs, vhost_socket) =
        virtiofs::spawn(&virtiofs_config(&boot, shared.path()), Path::new("/proc/self/exe"))?;
    state.virtiofs = ProcessRef::of(virtiofs.pid());
    timeline.mark("virtio-fs-started");
    let driver = qemu(&boot.config, &boot.files, boot.kvm);
    let mut vm = hypervisor::Hypervisor::start(&driver, vm_config(&boot, &dir, vhost_socket)).await?;
    state.vmm = ProcessRef::of(vm.pid());
    dir.save(&state)?;

    let channel = vm.take_channel().ok_or_else(|| Error::State("the virtual machine has no channel".into()))?;
    let (opener, _acceptor, channel) = proxy::connect(channel, proxy::Side::Host, proxy::Limits::host());
    let (died, death) = watch::channel(None);
    let (kill, killed) = watch::channel(false);
    let machine = Machine::new(dir.clone(), state, opener, death, kill);
    let vm: Rc<dyn Vm> = vm.into();
    tokio::task::spawn_local(watch_for_death(machine.clone(), vm.clone(), virtiofs, channel, died, killed));

    let created = talk(&machine, boot, stdio, &mut timeline).await;
    for stage in vm.stages() {
        timeline.mark_at("vmm", &format!("qemu-{}", stage.name), stage.at_ns);
    }
    // From here on the machine is the watcher's alone.
    drop(vm);
    match created {
        Ok(guest_pid) => {
            timeline.save(&dir)?;
            Ok(Booted { machine, listener, guest_pid })
        }
        Err(error) => {
            machine.end().await;
            Err(error)
        }
    }
}

/// The first conversation with the agent: a greeting, written before the guest is up and answered when it is, then one flight
/// that creates the container and opens its stdio.
async fn talk(machine: &Rc<Machine>, boot: Boot, stdio: StdioEnds, timeline: &mut Timeline) -> Result<u32> {
    let boot_deadline = boot.config.agent.dial_timeout;
    let hello = Request::Hello(hello()?);
    let (reply, _) = machine.call_within("boot the guest", &hello, boot_deadline).await?;
    let here = sys::monotonic_ns();
    let Reply::Hello(reply) = reply else { return Err(out_of_turn("boot the guest", &reply)) };
    check_version(&reply)?;
    timeline.mark_guest(&reply.stages, reply.now_ns, here);
    timeline.mark_at("host", "agent-answered", here);
    machine.update(|state| state.guest_kernel = Some(reply.kernel_release.clone()))?;

    let stdio = relay::connect(machine.opener(), stdio, || machine.token())?;
    let create = CreateContainer {
        id: machine.id(),
        spec: boot.spec,
        stdio,
        seccomp: boot.seccomp,
        start: boot.start,
        storages: Vec::new(),
        disks: Vec::new(),
    };
    let step = if boot.start { "run the container" } else { "create the container" };
    let request = Request::CreateContainer(Box::new(create));
    let pid = machine.start_process(step, None, &request, CREATE_DEADLINE).await?;
    // Before anything else is awaited, so that a process that ends at once is not called running after it was called stopped.
    machine.update(|state| state.status = if boot.start { Status::Running } else { Status::Created })?;
    timeline.mark(if boot.start { "container-started" } else { "container-created" });
    Ok(pid)
}

fn hello() -> Result<Hello> {
    let mut entropy = vec![0; 64];
    rustix::rand::getrandom(&mut entropy, rustix::rand::GetRandomFlags::empty())
        .map_err(|e| Error::io("read random bytes for the guest", e))?;
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Ok(Hello { protocol: PROTOCOL_VERSION, wall_clock_ns: now.as_nanos() as u64, entropy })
}

fn check_version(reply: &HelloReply) -> Result<()> {
    if reply.protocol == PROTOCOL_VERSION {
        return Ok(());
    }
    Err(Error::Sandbox {
        kind: Some(agent_api::FaultKind::Protocol),
        message: format!(
            "the agent in the guest image (version {}) speaks protocol {}, this program speaks {PROTOCOL_VERSION}; build the guest image anew",
            reply.agent_version, reply.protocol
        ),
    })
}

/// The daemon's own socket, through the directory's descriptor: its path may be longer than a socket's may be.
struct SocketPath {
    _directory: OwnedFd,
    path: std::path::PathBuf,
}

impl SocketPath {
    fn path(&self) -> &Path {
        &self.path
    }
}

fn socket_path(dir: &StateDir) -> Result<SocketPath> {
    use std::os::fd::AsRawFd;
    let directory = rustix::fs::open(
        dir.path(),
        rustix::fs::OFlags::PATH | rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::CLOEXEC,
        rustix::fs::Mode::empty(),
    )
    .map_err(|e| Error::io(format!("open {}", dir.path().display()), e))?;
    let path = format!("/proc/self/fd/{}/sock", directory.as_raw_fd()).into();
    Ok(SocketPath { _directory: directory, path })
}

fn virtiofs_config(boot: &Boot, shared: &Path) -> virtiofs::Config {
    virtiofs::Config {
        cache: match boot.config.qemu.virtio_fs_cache {
            config::VirtioFsCache::Never => virtiofs::Cache::Never,
            config::VirtioFsCache::Metadata => virtiofs::Cache::Metadata,
            config::VirtioFsCache::Auto => virtiofs::Cache::Auto,
            config::VirtioFsCache::Always => virtiofs::Cache::Always,
        },
        ..virtiofs::Config::new(shared)
    }
}

fn qemu(config: &Config, files: &Files, kvm: bool) -> Qemu {
    Qemu::new(QemuConfig {
        path: files.vmm.clone(),
        machine_type: config.qemu.machine_type.clone(),
        accelerator: if kvm { hypervisor::Accelerator::Kvm } else { hypervisor::Accelerator::Tcg },
    })
}

/// Who the virtual machine monitor of this daemon is.
fn vmm_uid() -> Option<u32> {
    rustix::process::geteuid().is_root().then(|| FIRST_VMM_UID + std::process::id())
}

fn image(files: &Files) -> GuestImage {
    match files.image.clone() {
        config::GuestImage::Initrd(path) => GuestImage::Initrd(path),
        config::GuestImage::Disk { path, verity } => GuestImage::Disk { path, verity },
    }
}

/// Refuses files that cannot be booted, before anything is started.
pub(crate) fn check(config: &Config, files: &Files, kvm: bool) -> Result<()> {
    Ok(hypervisor::Hypervisor::check(&qemu(config, files, kvm), &files.kernel, &image(files), vmm_uid())?)
}

fn vm_config(boot: &Boot, dir: &StateDir, vhost_socket: OwnedFd) -> VmConfig {
    let mut kernel_params = boot.config.qemu.kernel_params.clone();
    if boot.config.agent.enable_debug {
        kernel_params.push_str(" agent.log=debug");
    }
    VmConfig {
        kernel: boot.files.kernel.clone(),
        image: image(&boot.files),
        kernel_params,
        vcpus: boot.demand.vcpus,
        memory_mib: boot.demand.memory_mib.into(),
        shared_fs: Some(SharedFs { tag: SHARED_FS_TAG.into(), socket: vhost_socket }),
        debug: boot.config.qemu.enable_debug,
        run_dir: dir.file("run"),
        uid: vmm_uid(),
    }
}

/// Where what is true for the whole host until it boots again is remembered.
const CACHE_DIR: &str = "/run/kata-containers";

/// Decides between KVM and emulation, before anything is started.
pub(crate) fn choose_accelerator(config: &Config, guest: Arch, warn: &mut dyn FnMut(&str)) -> Result<bool> {
    let wanted = match config.qemu.accelerator {
        config::Accelerator::Auto => hypervisor::Accelerator::Auto,
        config::Accelerator::Kvm => hypervisor::Accelerator::Kvm,
        config::Accelerator::Tcg => hypervisor::Accelerator::Tcg,
    };
    // Without the directory each start probes anew, which is all that it costs.
    let _ = std::fs::DirBuilder::new().mode(0o700).recursive(true).create(CACHE_DIR);
    let choice = hypervisor::choose_accelerator(wanted, guest, Path::new(CACHE_DIR))?;
    if let Some(warning) = choice.warning {
        warn(&warning);
    }
    Ok(choice.kvm)
}

/// How long the cause of a broken channel may take to show.
const CAUSE_DEADLINE: Duration = Duration::from_secs(2);

/// Says once, to everybody, who died; ends what is left.
async fn watch_for_death(
    machine: Rc<Machine>,
    vm: Rc<dyn Vm>,
    mut virtiofs: virtiofs::Server,
    channel: proxy::Driver,
    died: watch::Sender<Option<Rc<str>>>,
    mut killed: watch::Receiver<bool>,
) {
    let cause = tokio::select! {
        biased;
        _ = killed.wait_for(|killed| *killed) => None,
        cause = first_death(vm.as_ref(), &mut virtiofs) => Some(cause),
        end = channel => {
            // A broken channel is a symptom; the process that died shows as soon as it is reaped.
            let cause = tokio::time::timeout(CAUSE_DEADLINE, first_death(vm.as_ref(), &mut virtiofs)).await;
            Some(cause.unwrap_or_else(|_| match end {
                Ok(()) => "the agent in the guest closed the channel".to_string(),
                Err(error) => format!("the channel into the guest broke: {error}"),
            }))
        }
    };
    vm.kill().await;
    if let Err(error) = virtiofs.kill() {
        eprintln!("{}", crate::error::chain(&error));
    }
    if let Some(cause) = &cause {
        let mut text = cause.clone();
        let console = vm.console_tail();
        if !console.is_empty() {
            text.push_str("; last lines of the guest's console:\n  ");
            text.push_str(&console.join("\n  "));
        }
        machine.update_or_log(|state| {
            state.status = Status::Stopped;
            state.pid = 0;
            state.failure.get_or_insert(text.clone());
        });
        died.send_replace(Some(text.into()));
    } else {
        died.send_replace(Some("the sandbox was deleted".into()));
    }
}

/// Who died first, of QEMU and the virtio-fs server.
async fn first_death(vm: &dyn Vm, virtiofs: &mut virtiofs::Server) -> String {
    let pid = virtiofs.pid();
    tokio::select! {
        biased;
        reason = vm.wait() => return reason.to_string(),
        status = server_ended(virtiofs) => {
            if !status.success() {
                let mut text = format!("the virtio-fs server (pid {pid}) died ({status})");
                for line in virtiofs.stderr_tail() {
                    text.push_str("\n  ");
                    text.push_str(&line);
                }
                return text;
            }
        }
    }
    // It ends in peace when QEMU hangs up, so QEMU is what died.
    vm.wait().await.to_string()
}

async fn server_ended(server: &mut virtiofs::Server) -> ExitStatus {
    loop {
        if let Some(handle) = sys::open_process(server.pid()).and_then(|handle| sys::watch(handle).ok()) {
            let _ = handle.readable().await;
        }
        if let Ok(Some(status)) = server.try_wait() {
            return status;
        }
        // Only reached if the kernel has no descriptors for us: better late than busy.
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// Writes down why a sandbox is not.
pub(super) fn record_failure(dir: &StateDir, error: &Error) {
    let Ok(mut state) = dir.load() else { return };
    state.status = Status::Stopped;
    state.failure = Some(error.chain());
    if let Err(error) = dir.save(&state) {
        eprintln!("{}", error.chain());
    }
}
