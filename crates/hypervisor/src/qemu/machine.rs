//! One running QEMU.

use std::{
    fs::File,
    io::Write,
    os::{fd::OwnedFd, unix::process::ExitStatusExt},
    path::PathBuf,
    process::{Child, ExitStatus},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, unix::AsyncFd},
    net::UnixStream,
    sync::watch,
    task::JoinHandle,
    time::timeout,
};

use super::{
    devices::Name,
    hotplug::Hotplug,
    inventory::Inventory,
    process::Process,
    qmp::{self, Qmp},
};
use crate::{BoxFuture, CONSOLE_LOG_LIMIT, Disk, Error, ExitCause, ExitReason, Nic, Result, Stage, Vm, tail::Tail};

/// How long a killed QEMU may take to go.
const KILL_DEADLINE: Duration = Duration::from_secs(10);

/// How long the last words of a QEMU that is gone may take to be read.
const LAST_WORDS_DEADLINE: Duration = Duration::from_secs(1);

/// Read at once from the console or standard error, bytes.
const READ_SIZE: usize = 4096;

/// What Linux says first when it gives up.
const PANIC: &str = "Kernel panic - not syncing";

/// What follows [`PANIC`] when a block that dm-verity read is not what it was when the image was built.
const MISMATCH: &str = "dm-verity device corrupted";

/// What dm-verity says about the block just before.
const MISMATCHED_BLOCK: &str = "device-mapper: verity: ";

/// What follows [`PANIC`] when the kernel finds no root file system.
const NO_ROOT: &str = "VFS: Unable to mount root fs";

/// What follows [`PANIC`] when there is a root file system, but no first program on it.
const NO_INIT: &str = "No working init found";

/// The guest image, for the words about it.
pub(super) struct ImageFacts {
    pub(super) path: PathBuf,
    pub(super) is_disk: bool,
    /// The guest's kernel checks its blocks.
    pub(super) is_verified: bool,
}

/// What is known of a QEMU that was just started.
pub(super) struct Facts {
    pub(super) spawned_ns: u64,
    /// Where the guest's console is kept.
    pub(super) log: Option<File>,
    /// The first line of QEMU's standard error, so to speak.
    pub(super) notice: Option<String>,
    /// What the guest has as its root.
    pub(super) image: ImageFacts,
    pub(super) inventory: Inventory,
    pub(super) vcpus: u32,
}

/// Our ends of QEMU's connections.
pub(super) struct Streams {
    pub(super) qmp: UnixStream,
    pub(super) console: UnixStream,
    pub(super) channel: UnixStream,
    pub(super) stderr: UnixStream,
}

/// What the guest and QEMU wrote.
#[derive(Default)]
struct Tails {
    console: Mutex<Tail>,
    stderr: Mutex<Tail>,
}

fn lock(tail: &Mutex<Tail>) -> MutexGuard<'_, Tail> {
    tail.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A machine, and the tasks that look after it.
pub(super) struct Machine {
    process: Arc<Process>,
    channel: Option<UnixStream>,
    tails: Arc<Tails>,
    qmp: Qmp,
    hotplug: Arc<Hotplug>,
    spawned_ns: u64,
    ended: watch::Receiver<Option<ExitReason>>,
    watcher: JoinHandle<()>,
}

impl Machine {
    /// Takes charge of a QEMU that was just started.
    pub(super) fn new(child: Child, streams: Streams, facts: Facts) -> Result<Self> {
        let Facts { spawned_ns, log, notice, image, inventory, vcpus } = facts;
        let failed = Error::io("watch QEMU's process");
        let process = Arc::new(Process::new(child).map_err(&failed)?);
        let exit = process.watch().map_err(&failed)?;
        let tails = Arc::new(Tails::default());
        if let Some(notice) = notice {
            lock(&tails.stderr).push(format!("{notice}\n").as_bytes());
        }
        let (qmp, work) = Qmp::connect(streams.qmp);
        let hotplug = Arc::new(Hotplug::new(qmp.clone(), inventory, vcpus));
        let (report, ended) = watch::channel(None);
        let watcher = Watcher {
            process: process.clone(),
            exit,
            console: Source { stream: streams.console, open: true },
            stderr: Source { stream: streams.stderr, open: true },
            tails: tails.clone(),
            log: log.map(|file| Log { file, left: CONSOLE_LOG_LIMIT }),
            image,
            qmp: qmp.clone(),
            qmp_work: Some(tokio::spawn(work)),
        };
        let watcher = tokio::spawn(watcher.run(report));
        Ok(Self { process, channel: Some(streams.channel), tails, qmp, hotplug, spawned_ns, ended, watcher })
    }

    /// Gives a command to a machine that has not ended.
    async fn command(&self, command: &'static str) -> Result<()> {
        let result = self.qmp.execute(command).await;
        self.explain(result).await.map(drop)
    }

    /// Changes the machine. Once begun, this is finished, even if nobody waits for it.
    async fn change<T: Send + 'static>(&self, work: impl Future<Output = Result<T>> + Send + 'static) -> Result<T> {
        let done = tokio::spawn(work).await;
        let result = done.unwrap_or_else(|_| Err(Error::Control("the runtime that speaks to it has ended".into())));
        self.explain(result).await
    }

    /// A connection that broke because QEMU is gone is reported by the cause.
    async fn explain<T>(&self, result: Result<T>) -> Result<T> {
        let is_broken = match &result {
            Err(Error::Control(_)) => true,
            Err(Error::Device { source, .. }) => matches!(**source, Error::Control(_)),
            _ => false,
        };
        if is_broken && let Ok(reason) = timeout(LAST_WORDS_DEADLINE, self.wait()).await {
            return Err(Error::Ended(reason));
        }
        result
    }
}

impl Vm for Machine {
    fn take_channel(&mut self) -> Option<UnixStream> {
        self.channel.take()
    }

    fn pid(&self) -> u32 {
        self.process.pid()
    }

    fn console_tail(&self) -> Vec<String> {
        lock(&self.tails.console).lines_from(PANIC)
    }

    fn stderr_tail(&self) -> Vec<String> {
        lock(&self.tails.stderr).lines()
    }

    fn stages(&self) -> Vec<Stage> {
        std::iter::once(Stage { name: "spawned", at_ns: self.spawned_ns }).chain(self.qmp.stages()).collect()
    }

    fn pause(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(self.command("stop"))
    }

    fn resume(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(self.command("cont"))
    }

    fn add_disk(&self, disk: Disk) -> BoxFuture<'_, Result<()>> {
        let hotplug = self.hotplug.clone();
        Box::pin(self.change(async move { hotplug.add_disk(disk).await }))
    }

    fn remove_disk(&self, serial: &str) -> BoxFuture<'_, Result<()>> {
        let (hotplug, name) = (self.hotplug.clone(), Name::disk(serial));
        Box::pin(self.change(async move { hotplug.remove(name).await }))
    }

    fn add_nic(&self, nic: Nic) -> BoxFuture<'_, Result<()>> {
        let hotplug = self.hotplug.clone();
        Box::pin(self.change(async move { hotplug.add_nic(nic).await }))
    }

    fn remove_nic(&self, id: &str) -> BoxFuture<'_, Result<()>> {
        let (hotplug, name) = (self.hotplug.clone(), Name::nic(id));
        Box::pin(self.change(async move { hotplug.remove(name).await }))
    }

    fn set_vcpus(&self, vcpus: u32) -> BoxFuture<'_, Result<u32>> {
        let hotplug = self.hotplug.clone();
        Box::pin(self.change(async move { hotplug.set_vcpus(vcpus).await }))
    }

    fn set_memory(&self, mib: u64) -> BoxFuture<'_, Result<u64>> {
        let hotplug = self.hotplug.clone();
        Box::pin(self.change(async move { hotplug.set_memory(mib).await }))
    }

    fn vcpus(&self) -> u32 {
        self.hotplug.vcpus()
    }

    fn memory_mib(&self) -> u64 {
        self.hotplug.memory_mib()
    }

    fn wait(&self) -> BoxFuture<'_, ExitReason> {
        let mut ended = self.ended.clone();
        Box::pin(async move {
            let reason = ended.wait_for(Option::is_some).await.ok().and_then(|reason| reason.clone());
            // Without a watcher the runtime is being torn down, and the process with it.
            reason.unwrap_or_else(|| ExitReason {
                pid: self.process.pid(),
                cause: ExitCause::Killed,
                stderr: self.stderr_tail(),
            })
        })
    }

    fn kill(&self) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            if self.ended.borrow().is_none() {
                self.process.kill();
                // The kernel has been told; a process that it cannot end now, nobody can.
                let _too_late = timeout(KILL_DEADLINE, self.wait()).await;
            }
        })
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.process.end();
        self.watcher.abort();
    }
}

/// A stream that is read to its end.
struct Source {
    stream: UnixStream,
    open: bool,
}

impl Source {
    /// Reads something; pends for ever once the end was seen. May be abandoned without losing anything.
    async fn read(&mut self, buffer: &mut [u8; READ_SIZE]) -> usize {
        if !self.open {
            return std::future::pending().await;
        }
        let count = self.stream.read(buffer).await.unwrap_or(0);
        self.open = count > 0;
        count
    }
}

/// The console's file for debugging.
struct Log {
    file: File,
    left: u64,
}

impl Log {
    /// Appends, up to the limit. What cannot be written is lost: this is an aid, not a record.
    fn write(&mut self, data: &[u8]) {
        let count = data.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        self.left = match self.file.write_all(&data[..count]) {
            Ok(()) => self.left - count as u64,
            Err(_) => 0,
        };
    }
}

/// The task that reads what the guest and QEMU write, and sees QEMU end.
struct Watcher {
    process: Arc<Process>,
    exit: AsyncFd<OwnedFd>,
    console: Source,
    stderr: Source,
    tails: Arc<Tails>,
    log: Option<Log>,
    image: ImageFacts,
    qmp: Qmp,
    /// Until it has ended.
    qmp_work: Option<JoinHandle<()>>,
}

impl Watcher {
    async fn run(mut self, report: watch::Sender<Option<ExitReason>>) {
        let status = self.until_exit().await;
        self.read_last_words().await;
        let cause = self.cause(status);
        let stderr = lock(&self.tails.stderr).lines();
        report.send_replace(Some(ExitReason { pid: self.process.pid(), cause, stderr }));
    }

    async fn until_exit(&mut self) -> ExitStatus {
        let (mut console, mut stderr) = ([0; READ_SIZE], [0; READ_SIZE]);
        loop {
            tokio::select! {
                count = self.console.read(&mut console) => self.heard(&console[..count]),
                count = self.stderr.read(&mut stderr) => lock(&self.tails.stderr).push(&stderr[..count]),
                _ended = ended(&mut self.qmp_work) => {
                    self.qmp_work = None;
                    // What else it would not do in the way that was asked for, nobody knows.
                    if self.qmp.outdated().is_some() {
                        self.process.kill();
                    }
                }
                ready = self.exit.readable() => {
                    if let Some(status) = self.process.status() {
                        return status;
                    }
                    if let Ok(mut ready) = ready {
                        ready.clear_ready();
                    }
                }
            }
        }
    }

    fn heard(&mut self, data: &[u8]) {
        lock(&self.tails.console).push(data);
        if let Some(log) = &mut self.log {
            log.write(data);
        }
    }

    /// Reads what is left in the sockets of a process that is gone. Nobody else has their other ends.
    async fn read_last_words(&mut self) {
        let all = async {
            let mut buffer = [0; READ_SIZE];
            while self.console.open {
                let count = self.console.read(&mut buffer).await;
                self.heard(&buffer[..count]);
            }
            while self.stderr.open {
                let count = self.stderr.read(&mut buffer).await;
                lock(&self.tails.stderr).push(&buffer[..count]);
            }
            if let Some(work) = &mut self.qmp_work {
                let _ended = work.await;
            }
        };
        // Late words are no words: the reason of the end must not wait for them.
        let _incomplete = timeout(LAST_WORDS_DEADLINE, all).await;
        if let Some(work) = &self.qmp_work {
            work.abort();
        }
    }

    fn cause(&self, status: ExitStatus) -> ExitCause {
        if let Some(version) = self.qmp.outdated() {
            return ExitCause::Outdated { version, oldest: qmp::oldest() };
        }
        if let Some(signal) = status.signal() {
            return if self.process.was_killed(status) { ExitCause::Killed } else { ExitCause::Signal(signal) };
        }
        if let Some(cause) = panic_cause(&lock(&self.tails.console), &self.image) {
            return cause;
        }
        match (status.code(), self.qmp.shutdown().as_deref()) {
            (Some(code), _) if code != 0 => ExitCause::Code(code),
            (_, Some("guest-shutdown")) => ExitCause::PowerOff,
            (_, Some("guest-reset")) => ExitCause::Reboot,
            _ => ExitCause::Quit,
        }
    }
}

/// Waits for a task's end; pends for ever if there is no task. May be abandoned.
async fn ended(task: &mut Option<JoinHandle<()>>) {
    match task {
        Some(task) => {
            let _ended = task.await;
        }
        None => std::future::pending().await,
    }
}

/// What a panic of the guest's kernel means, if there was one.
fn panic_cause(console: &Tail, image: &ImageFacts) -> Option<ExitCause> {
    let line = console.find_last(PANIC)?;
    let path = image.path.clone();
    Some(if image.is_verified && line.contains(MISMATCH) {
        ExitCause::Mismatch { image: path, line: console.find_last(MISMATCHED_BLOCK).unwrap_or(line) }
    } else if image.is_disk && line.contains(NO_ROOT) {
        ExitCause::NoRoot { image: path, line }
    } else if line.contains(NO_INIT) {
        ExitCause::NoInit { image: path, line }
    } else {
        ExitCause::Panic(line)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_that_is_at_fault_is_told_from_other_panics() {
        let image = |is_disk, is_verified| ImageFacts { path: "/i".into(), is_disk, is_verified };
        let (initrd, unchecked, verified) = (image(false, false), image(true, false), image(true, true));
        let mut console = Tail::default();
        assert_eq!(panic_cause(&console, &initrd), None);
        console.push(b"device-mapper: verity: 254:0: data block 7 is corrupted\nKernel panic - not syncing: ");
        console.push(b"dm-verity device corrupted\nCPU: 0\n");
        let line = "device-mapper: verity: 254:0: data block 7 is corrupted".to_owned();
        let mismatch = ExitCause::Mismatch { image: "/i".into(), line };
        assert_eq!(panic_cause(&console, &verified), Some(mismatch));
        // A guest whose image is not checked cannot accuse it.
        for image in [&initrd, &unchecked] {
            assert!(matches!(panic_cause(&console, image), Some(ExitCause::Panic(_))));
        }
        console.push(b"Kernel panic - not syncing: VFS: Unable to mount root fs on unknown-block(0,0)\n");
        assert!(matches!(panic_cause(&console, &verified), Some(ExitCause::NoRoot { .. })));
        assert!(matches!(panic_cause(&console, &initrd), Some(ExitCause::Panic(_))));
        console.push(b"Kernel panic - not syncing: No working init found.  Try\n");
        for image in [&initrd, &verified] {
            assert!(matches!(panic_cause(&console, image), Some(ExitCause::NoInit { .. })));
        }
        console.push(b"Kernel panic - not syncing: another\n");
        assert!(matches!(panic_cause(&console, &verified), Some(ExitCause::Panic(_))));
    }

    #[test]
    fn the_log_has_an_end() {
        let path = std::env::temp_dir().join(format!("hypervisor-log-{}", std::process::id()));
        let mut log = Log { file: File::create(&path).unwrap(), left: 10 };
        for _ in 0..5 {
            log.write(b"abc");
        }
        assert_eq!(std::fs::read(&path).unwrap(), b"abcabcabca");
        std::fs::remove_file(path).unwrap();
    }
}
