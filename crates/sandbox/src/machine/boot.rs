//! From nothing to a machine whose agent answers.

use std::{
    path::Path,
    process::ExitStatus,
    rc::Rc,
    time::{Duration, SystemTime},
};

use agent_api::{Hello, HelloReply, PROTOCOL_VERSION, Reply, Request, SHARED_FS_TAG};
use devices::virtiofs;
use hypervisor::{Disk, Hypervisor, Nic, SharedFs, Vm, VmConfig};
use tokio::sync::watch;

use super::{Machine, Observer, liveness, out_of_turn};
use crate::{
    Error, Result,
    identity::vmm_uid,
    journal::Journal,
    plan::Plan,
    pod::Demand,
    steps,
    store::ProcessRef,
    sys,
    timeline::{self, Timeline},
};

/// What is to be booted.
pub(crate) struct Order<'a> {
    pub(crate) plan: &'a Plan,
    pub(crate) demand: Demand,
    /// The directory that the guest sees, mounted already.
    pub(crate) shared: &'a Path,
    /// Where the machine's processes are written down as soon as they exist.
    pub(crate) journal: &'a Journal,
    pub(crate) observer: Rc<dyn Observer>,
    pub(crate) nics: Vec<Nic>,
    pub(crate) disks: Vec<Disk>,
}

/// Starts the machine and greets the agent in it.
pub(crate) async fn boot(order: Order<'_>, timeline: &mut Timeline) -> Result<Rc<Machine>> {
    let Order { plan, demand, shared, journal, observer, nics, disks } = order;
    let (virtiofs, vhost_socket) = virtiofs::spawn(&virtiofs_config(plan, shared), Path::new("/proc/self/exe"))?;
    journal.update(|state| state.virtiofs = ProcessRef::of(virtiofs.pid()))?;
    timeline.mark("virtio-fs-started");
    let config = VmConfig {
        kernel: plan.kernel.clone(),
        image: plan.guest_image(),
        kernel_params: plan.kernel_params(),
        vcpus: demand.vcpus,
        max_vcpus: demand.max_vcpus,
        memory_mib: demand.memory_mib.into(),
        max_memory_mib: demand.max_memory_mib.into(),
        disks,
        nics,
        hotplug_slots: demand.slots,
        shared_fs: Some(SharedFs { tag: SHARED_FS_TAG.into(), socket: vhost_socket }),
        debug: plan.config.qemu.enable_debug,
        run_dir: journal.dir().file("run"),
        uid: vmm_uid(),
    };
    let mut vm = plan.driver().start(config).await?;
    journal.update(|state| state.vmm = ProcessRef::of(vm.pid()))?;

    let channel = vm.take_channel().ok_or_else(|| Error::State("the virtual machine has no channel".into()))?;
    let (opener, _acceptor, channel) = proxy::connect(channel, proxy::Side::Host, proxy::Limits::host());
    let (died, death) = watch::channel(None);
    let (kill, killed) = watch::channel(false);
    let vm: Rc<dyn Vm> = vm.into();
    let machine = Machine::new(vm.clone(), opener, observer, death, kill);
    let patience = plan.config.agent.liveness_timeout;
    tokio::task::spawn_local(watch_for_death(machine.clone(), vm.clone(), virtiofs, channel, died, killed, patience));

    let greeted = greet(&machine, plan.config.agent.dial_timeout, timeline).await;
    for stage in vm.stages() {
        timeline.mark_at("vmm", &format!("qemu-{}", stage.name), stage.at_ns);
    }
    if greeted.is_err() {
        timeline.console = vm.console_tail();
    }
    match greeted.and_then(|release| journal.update(|state| state.guest_kernel = Some(release))) {
        Ok(()) => Ok(machine),
        Err(error) => {
            machine.end().await;
            Err(error)
        }
    }
}

/// What the guest's console shows, to be added to the reason of its end.
fn last_lines(vm: &dyn Vm) -> String {
    let console = vm.console_tail();
    if console.is_empty() {
        return String::new();
    }
    format!("; last lines of the guest's console:\n  {}", console.join("\n  "))
}

/// The first conversation with the agent: a greeting, written before the guest is up and answered when it is. Gives the guest's kernel.
async fn greet(machine: &Rc<Machine>, deadline: Duration, timeline: &mut Timeline) -> Result<String> {
    let hello = Request::Hello(hello()?);
    let (reply, _) = machine.call_within("boot the guest", &hello, deadline).await?;
    let here = timeline::now_ns();
    let Reply::Hello(reply) = reply else { return Err(out_of_turn("boot the guest", &reply)) };
    check_version(&reply)?;
    timeline.mark_guest(&reply.stages, reply.now_ns, here);
    timeline.mark_at("host", "agent-answered", here);
    steps::passed("agent-answered");
    Ok(hypervisor::printable(&reply.kernel_release, NAME_LIMIT))
}

/// Longest name that the guest may give itself, bytes: that of a kernel has 64.
const NAME_LIMIT: usize = 128;

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
            hypervisor::printable(&reply.agent_version, NAME_LIMIT),
            reply.protocol
        ),
    })
}

fn virtiofs_config(plan: &Plan, shared: &Path) -> virtiofs::Config {
    virtiofs::Config {
        cache: match plan.config.qemu.virtio_fs_cache {
            config::VirtioFsCache::Never => virtiofs::Cache::Never,
            config::VirtioFsCache::Metadata => virtiofs::Cache::Metadata,
            config::VirtioFsCache::Auto => virtiofs::Cache::Auto,
            config::VirtioFsCache::Always => virtiofs::Cache::Always,
        },
        ..virtiofs::Config::new(shared)
    }
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
    patience: Duration,
) {
    let server = virtiofs.pid();
    let cause = tokio::select! {
        biased;
        _ = killed.wait_for(|killed| *killed) => None,
        cause = first_death(vm.as_ref(), &mut virtiofs) => Some(cause),
        cause = liveness::lost(machine.opener(), [("QEMU", vm.pid()), ("the virtio-fs server", server)], patience) => Some(cause),
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
        let text = format!("{cause}{}", last_lines(vm.as_ref()));
        machine.observer().died(&text);
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
