//! The lab's machine: QEMU emulating a processor that has virtualisation, booted once and restored from then on.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, SystemTime},
};

use tempfile::TempDir;
use tokio::{
    net::{UnixListener, UnixStream},
    process::{Child, Command},
    time::timeout,
};

use crate::{Result, port::Port, qmp::Qmp, qmp::quoted, say};

const QEMU: &str = "qemu-system-x86_64";
const VCPUS: u32 = 2;
const MEMORY_MIB: u32 = 4096;
/// The machine's own kernel needs no protection against its own users. If it panics, the machine ends.
const COMMAND_LINE: &str = "root=/dev/vda rw console=ttyS0 quiet mitigations=off nokaslr nowatchdog panic=-1";
/// A boot takes two minutes on a machine that does nothing else.
const BOOT: Duration = Duration::from_secs(1200);
/// Longest a small command may be silent.
pub const SHORT: Duration = Duration::from_secs(300);

/// What `scripts/lab.sh` made, and the snapshot beside it.
pub struct System {
    directory: PathBuf,
    snapshot: PathBuf,
}

/// A machine that runs. Dropping it ends it.
pub struct Machine {
    /// Commands.
    pub port: Port,
    qmp: Qmp,
    _qemu: Child,
}

impl System {
    /// Makes what is missing of it.
    pub async fn prepare(top: &Path) -> Result<Self> {
        let mut script = Command::new(top.join("scripts/lab.sh"));
        let made = script.stderr(Stdio::inherit()).kill_on_drop(true).output().await;
        let made = made.map_err(|e| format!("start scripts/lab.sh: {e}"))?;
        if !made.status.success() {
            return Err(format!("scripts/lab.sh failed ({}); its reason is above", made.status));
        }
        let directory = PathBuf::from(String::from_utf8_lossy(&made.stdout).trim());
        let system = Self { snapshot: directory.join("booted"), directory };
        system.boot_once().await?;
        Ok(system)
    }

    /// What the machine is: a snapshot of another one cannot be restored.
    async fn description() -> Result<String> {
        let version = Command::new(QEMU).arg("--version").output().await;
        let version = version.map_err(|e| format!("start {QEMU}: {e}; run `scripts/setup.sh run`"))?;
        let version = String::from_utf8_lossy(&version.stdout).lines().next().unwrap_or_default().to_owned();
        Ok(format!("3 {version} {VCPUS} {MEMORY_MIB} {COMMAND_LINE}\n"))
    }

    async fn boot_once(&self) -> Result<()> {
        let lock = self.directory.join("lock");
        let lock = File::create(&lock).map_err(|e| format!("create {}: {e}", lock.display()))?;
        let locked = tokio::task::spawn_blocking(move || {
            rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).map(|()| lock)
        });
        let waited = timeout(BOOT, locked).await;
        let _lock = match waited {
            Ok(Ok(Ok(lock))) => lock,
            _ => return Err(format!("another run holds the lock of {}", self.directory.display())),
        };
        let description = Self::description().await?;
        let noted = self.snapshot.join("of");
        if fs::read_to_string(&noted).is_ok_and(|noted| noted == description) {
            return Ok(());
        }
        say("the lab's machine boots: once, in some minutes");
        let io = |e: std::io::Error| format!("write the snapshot below {}: {e}", self.directory.display());
        let work = tempfile::Builder::new().prefix("booting.").tempdir_in(&self.directory).map_err(io)?;
        let (disk, state) = (work.path().join("disk.qcow2"), work.path().join("state"));
        overlay(&self.directory.join("disk.raw"), "raw", &disk).await?;
        let console = work.path().join("console.log");
        let mut machine = self.start(work.path(), &disk, &console, None).await?;
        let booted = async {
            machine.port.ready(BOOT).await?;
            machine.port.ok("systemctl is-system-running --wait || systemctl --failed | grep .", SHORT).await?;
            machine.port.ok("sync; fstrim / || :", SHORT).await
        };
        booted.await.map_err(|problem| format!("{problem}\n{}", tail(&console)))?;
        say("the lab's machine: taking a snapshot");
        machine.qmp.save(&state).await?;
        let _ = fs::remove_dir_all(&self.snapshot);
        fs::write(work.path().join("of"), description).map_err(io)?;
        fs::rename(work.keep(), &self.snapshot).map_err(io)
    }

    /// Restores a machine. Its console is written to `console`, its disk is forgotten with it.
    pub async fn restore(&self, console: &Path) -> Result<Machine> {
        let work = TempDir::new().map_err(|e| format!("make a directory: {e}"))?;
        let disk = work.path().join("disk.qcow2");
        overlay(&self.snapshot.join("disk.qcow2"), "qcow2", &disk).await?;
        let mut machine = self.start(work.path(), &disk, console, Some(&self.snapshot.join("state"))).await?;
        machine.qmp.resume().await?;
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |now| now.as_secs());
        machine.port.ok(&format!("date --set @{now}"), SHORT).await?;
        // QEMU has everything open that lies in the directory.
        Ok(machine)
    }

    async fn start(&self, work: &Path, disk: &Path, console: &Path, state: Option<&Path>) -> Result<Machine> {
        let listen = |name: &str| {
            let path = work.join(name);
            let listener = UnixListener::bind(&path).map_err(|e| format!("listen on {}: {e}", path.display()))?;
            Ok::<_, String>((listener, path))
        };
        let ((qmp, qmp_path), (port, port_path)) = (listen("qmp")?, listen("port")?);
        // Whatever ends this program ends QEMU.
        let mut command = Command::new("setpriv");
        command.args([
            "--pdeathsig",
            "KILL",
            QEMU,
            "-nodefaults",
            "-no-user-config",
            "-display",
            "none",
            "-name",
            "lab",
        ]);
        command.args(["-M", "q35", "-accel", "tcg,tb-size=1024", "-cpu", "EPYC,+svm", "-no-reboot"]);
        command.arg("-smp").arg(VCPUS.to_string()).arg("-m").arg(MEMORY_MIB.to_string());
        command.arg("-kernel").arg(self.directory.join("vmlinuz")).arg("-initrd").arg(self.directory.join("initrd"));
        command.args(["-append", COMMAND_LINE]);
        let path = |path: &Path| path.display().to_string().replace(',', ",,");
        // Nothing of it is to outlive the run: no write has to reach the disk.
        command
            .arg("-drive")
            .arg(format!("if=none,id=disk,format=qcow2,cache=unsafe,discard=unmap,file={}", path(disk)));
        command.args([
            "-device",
            "virtio-blk-pci,drive=disk",
            "-device",
            "virtio-rng-pci",
            "-device",
            "virtio-serial-pci",
        ]);
        command.args(["-device", "pcie-root-port,id=free,chassis=1"]);
        command.arg("-chardev").arg(format!("socket,id=port,path={}", path(&port_path)));
        command.args(["-device", "virtserialport,chardev=port,name=lab"]);
        command.arg("-qmp").arg(format!("unix:{}", path(&qmp_path)));
        command.arg("-serial").arg(format!("file:{}", path(console)));
        if let Some(state) = state {
            command.arg("-incoming").arg(format!("exec:cat {}", quoted(state)?));
        }
        let messages = console.with_extension("qemu.log");
        let log = File::create(&messages).map_err(|e| format!("create {}: {e}", messages.display()))?;
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).kill_on_drop(true);
        let mut qemu = command.spawn().map_err(|e| format!("start {QEMU}: {e}"))?;
        let connected = async {
            let port = Port::new(accept(&port).await?);
            Ok::<_, String>((port, Qmp::greet(accept(&qmp).await?).await?))
        };
        tokio::select! {
            connected = connected => {
                let (port, qmp) = connected.map_err(|problem| format!("{problem}\n{}", tail(&messages)))?;
                Ok(Machine { port, qmp, _qemu: qemu })
            }
            _ = qemu.wait() => Err(format!("{QEMU} ended at once: {}", tail(&messages))),
        }
    }
}

impl Machine {
    /// Gives the machine a disk, mounted on `/payload`.
    pub async fn plug(&mut self, image: &Path) -> Result<()> {
        self.qmp.plug(image).await?;
        let disk = "/dev/disk/by-id/virtio-payload";
        let line = format!("udevadm wait --timeout=240 {disk} && mkdir -p /payload && mount {disk} /payload");
        self.port.ok(&line, SHORT).await.map(drop)
    }
}

async fn accept(listener: &UnixListener) -> Result<UnixStream> {
    let connection = timeout(Duration::from_secs(60), listener.accept()).await;
    let connection = connection.map_err(|_| format!("{QEMU} does not connect within 60 s"))?;
    connection.map(|(stream, _)| stream).map_err(|e| format!("accept {QEMU}'s connection: {e}"))
}

async fn overlay(below: &Path, format: &str, path: &Path) -> Result<()> {
    let mut command = Command::new("qemu-img");
    command.args(["create", "-q", "-f", "qcow2", "-F", format, "-b"]).arg(below).arg(path);
    crate::succeed(&mut command).await
}

/// The last lines of a log.
pub fn tail(path: &Path) -> String {
    let text = fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(20)..].join("\n")
}
