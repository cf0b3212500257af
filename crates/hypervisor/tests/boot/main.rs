//! Real machines with real QEMU.
//!
//! They boot `KATA_TEST_KERNEL` with the modules of `KATA_TEST_MODULES` (a `lib/modules/VERSION` directory; leave it out for a
//! kernel that has everything built in), or what `make build` left in `KATA_STAGE` and `KATA_CACHE`. Without a kernel the
//! tests that need one are skipped and say so. `KATA_TEST_QEMU` names another QEMU.
#![allow(clippy::unwrap_used, reason = "the helpers of tests fail as tests do")]

mod plugging;
mod tap;

use std::{
    env, fs,
    os::{fd::OwnedFd, unix::fs::PermissionsExt},
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
    time::{Duration, Instant},
};

use hypervisor::{
    Accelerator, CONSOLE_LOG, Error, ExitCause, GuestImage, Hypervisor, Qemu, QemuConfig, SharedFs, Vm, VmConfig,
};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    sync::{Mutex, MutexGuard},
    time::timeout,
};

/// A boot takes 1.5 s when nothing else runs.
const BOOT: Duration = Duration::from_secs(60);
/// How soon a death must be noticed.
const SOON: Duration = Duration::from_secs(2);
/// Nobody's.
const UID: u32 = 0x6b7f_0001;

/// One machine at a time: the tests measure times.
static ONE_AT_A_TIME: Mutex<()> = Mutex::const_new(());

/// A kernel, a RAM disk and a directory for one machine.
struct Lab {
    _turn: MutexGuard<'static, ()>,
    kernel: PathBuf,
    initrd: PathBuf,
    run_dir: TempDir,
}

impl Lab {
    async fn enter() -> Option<Lab> {
        let turn = ONE_AT_A_TIME.lock().await;
        let (kernel, initrd) = boot_files()?;
        Some(Lab { _turn: turn, kernel, initrd, run_dir: tempfile::tempdir().unwrap() })
    }

    fn config(&self, mode: &str) -> VmConfig {
        VmConfig {
            kernel: self.kernel.clone(),
            image: GuestImage::Initrd(self.initrd.clone()),
            kernel_params: format!("GUEST_MODE={mode}"),
            vcpus: 1,
            max_vcpus: 1,
            memory_mib: 256,
            max_memory_mib: 256,
            disks: Vec::new(),
            nics: Vec::new(),
            hotplug_slots: 0,
            shared_fs: None,
            debug: false,
            run_dir: self.run_dir.path().into(),
            uid: rustix::process::geteuid().is_root().then_some(UID),
        }
    }

    async fn start(&self, mode: &str) -> Box<dyn Vm> {
        qemu().start(self.config(mode)).await.unwrap()
    }
}

fn qemu_path() -> PathBuf {
    env::var_os("KATA_TEST_QEMU").unwrap_or_else(|| "/usr/bin/qemu-system-x86_64".into()).into()
}

fn qemu() -> Qemu {
    Qemu::new(QemuConfig { path: qemu_path(), machine_type: None, accelerator: Accelerator::Tcg })
}

/// The kernel and a RAM disk with the test's own first program, made once for all tests.
fn boot_files() -> Option<(PathBuf, PathBuf)> {
    static MADE: OnceLock<Option<(PathBuf, TempDir)>> = OnceLock::new();
    let made = MADE.get_or_init(|| {
        let (kernel, modules) = match find_kernel() {
            Some(found) if qemu_path().is_file() => found,
            _ => {
                eprintln!("skipped: needs QEMU and a guest kernel (make test builds one, or set KATA_TEST_KERNEL)");
                return None;
            }
        };
        let directory = tempfile::tempdir().unwrap();
        let guest = directory.path().join("guest");
        let status = Command::new(env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()))
            .args(["--edition", "2024", "-Ctarget-feature=+crt-static", "-Cpanic=abort", "-Copt-level=s", "-o"])
            .arg(&guest)
            .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/boot/guest.rs"))
            .status()
            .unwrap();
        assert!(status.success(), "the guest's program does not compile");
        let contents = osbuilder::Contents {
            agent: &guest,
            modules_directory: modules.as_deref(),
            modules: &["virtio_pci", "virtio_console", "virtio_blk", "virtio_net", "virtio_mem"].map(Into::into),
        };
        osbuilder::initrd(&contents, &directory.path().join("initrd")).unwrap();
        fs::set_permissions(directory.path().join("initrd"), fs::Permissions::from_mode(0o644)).unwrap();
        Some((kernel, directory))
    });
    made.as_ref().map(|(kernel, directory)| (kernel.clone(), directory.path().join("initrd")))
}

fn find_kernel() -> Option<(PathBuf, Option<PathBuf>)> {
    if let Some(kernel) = env::var_os("KATA_TEST_KERNEL") {
        return Some((kernel.into(), env::var_os("KATA_TEST_MODULES").map(PathBuf::from)));
    }
    let kernel = Path::new(&env::var_os("KATA_STAGE")?).join("share/kata-containers/vmlinux.container");
    let package = Path::new(&env::var_os("KATA_CACHE")?).join("kernel/current");
    kernel.is_file().then(|| (kernel, osbuilder::modules_in_package(&package).ok()))
}

async fn read_exactly(channel: &mut UnixStream, count: usize, within: Duration) -> Option<Vec<u8>> {
    let mut bytes = vec![0; count];
    timeout(within, channel.read_exact(&mut bytes)).await.ok()?.unwrap();
    Some(bytes)
}

async fn end_of(vm: &dyn Vm, within: Duration) -> hypervisor::ExitReason {
    timeout(within, vm.wait()).await.unwrap_or_else(|_| panic!("still there; console: {:?}", vm.console_tail()))
}

fn is_gone(pid: u32) -> bool {
    !Path::new(&format!("/proc/{pid}")).exists()
}

fn open_descriptors() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

#[tokio::test(flavor = "current_thread")]
async fn a_machine_lives_and_answers() {
    let Some(lab) = Lab::enter().await else { return };
    let begun = Instant::now();
    let mut vm = lab.start("echo").await;
    let spawned = begun.elapsed();
    let mut channel = vm.take_channel().unwrap();
    assert!(vm.take_channel().is_none());

    assert_eq!(read_exactly(&mut channel, 6, BOOT).await.expect("the guest does not answer"), b"hello\n");
    eprintln!("start() took {spawned:?}, the guest answered after {:?}", begun.elapsed());
    assert!(spawned < Duration::from_millis(500), "starting must not wait for the guest");

    let pid = vm.pid();
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let expect = |line: &str| assert!(status.lines().any(|l| l == line), "{line:?} is not in\n{status}");
    for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
        expect(&format!("{set}:\t0000000000000000"));
    }
    expect("NoNewPrivs:\t1");
    expect("Seccomp:\t2");
    if rustix::process::geteuid().is_root() {
        expect(&format!("Uid:\t{UID}\t{UID}\t{UID}\t{UID}"));
        expect("Groups:\t ");
        let network = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/net")).unwrap();
        assert_ne!(network(&pid.to_string()), network("self"));
    }

    let sent: Vec<u8> = (0..300_000_u32).map(|n| (n % 251) as u8).collect();
    let (mut reader, mut writer) = channel.split();
    let mut received = vec![0; sent.len()];
    let (written, read) =
        timeout(BOOT, async { tokio::join!(writer.write_all(&sent), reader.read_exact(&mut received)) }).await.unwrap();
    written.unwrap();
    read.unwrap();
    assert!(sent == received, "the channel changed what it carried");

    vm.pause().await.unwrap();
    vm.pause().await.unwrap();
    channel.write_all(b"x").await.unwrap();
    assert_eq!(read_exactly(&mut channel, 1, Duration::from_millis(300)).await, None, "it is paused");
    vm.resume().await.unwrap();
    assert_eq!(read_exactly(&mut channel, 1, BOOT).await.unwrap(), b"x");

    let stages = vm.stages();
    assert_eq!(
        stages.iter().map(|stage| stage.name).collect::<Vec<_>>(),
        ["spawned", "qmp-ready", "running", "channel-opened"]
    );
    assert!(stages.is_sorted_by_key(|stage| stage.at_ns));
    let after = |n: usize| Duration::from_nanos(stages[n].at_ns - stages[0].at_ns);
    eprintln!("QMP was ready {:?} and the guest seen running {:?} after the process was there", after(1), after(2));

    assert!(timeout(Duration::from_millis(50), vm.wait()).await.is_err(), "it has not ended");
    vm.kill().await;
    assert!(is_gone(pid));
    let reason = end_of(vm.as_ref(), SOON).await;
    assert_eq!(reason.cause, ExitCause::Killed);
    assert_eq!(reason.to_string(), format!("QEMU (pid {pid}) was ended on request"));
    assert_eq!(end_of(vm.as_ref(), SOON).await, reason, "asked again");
    vm.kill().await;
    let error = vm.pause().await.unwrap_err();
    assert!(matches!(error, Error::Ended(_)), "{error}");
}

/// Counts descriptors, so it runs again in a process where nothing else does.
#[tokio::test(flavor = "current_thread")]
async fn nothing_is_left_open() {
    const ALONE: &str = "NOTHING_ELSE_RUNS_HERE";
    let Some(lab) = Lab::enter().await else { return };
    if env::var_os(ALONE).is_none() {
        let again = ["--exact", "nothing_is_left_open"];
        let output = Command::new(env::current_exe().unwrap()).args(again).env(ALONE, "1").output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        return;
    }
    drop(UnixStream::pair().unwrap());
    let before = open_descriptors();
    for killed in [true, false] {
        let mut vm = lab.start("sleep").await;
        let channel = vm.take_channel();
        if killed {
            vm.kill().await;
        }
        drop((vm, channel));
        // The tasks that were aborted are dropped when the runtime gets to run.
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert_eq!(open_descriptors(), before, "killed: {killed}");
    }
}

#[tokio::test(flavor = "current_thread")]
async fn several_processors() {
    let Some(lab) = Lab::enter().await else { return };
    let mut vm = qemu().start(VmConfig { vcpus: 2, max_vcpus: 2, ..lab.config("echo") }).await.unwrap();
    let mut channel = vm.take_channel().unwrap();
    assert!(read_exactly(&mut channel, 6, BOOT).await.is_some(), "console: {:?}", vm.console_tail());
}

#[tokio::test(flavor = "current_thread")]
async fn a_panic_is_told_in_the_kernels_words() {
    let Some(lab) = Lab::enter().await else { return };
    let vm = lab.start("panic").await;
    let reason = end_of(vm.as_ref(), BOOT).await;
    let text = reason.to_string();
    assert!(text.contains("Kernel panic - not syncing: Attempted to kill init!"), "{text}");
    assert!(matches!(reason.cause, ExitCause::Panic(_)));
    let console = vm.console_tail();
    let has = |text: &str| console.iter().any(|line| line.contains(text));
    assert!(has("Kernel panic"), "{console:?}");
    assert!(console.iter().all(|line| !line.chars().any(char::is_control)));
}

#[tokio::test(flavor = "current_thread")]
async fn a_guest_may_end_itself() {
    for (mode, cause) in [("power-off", ExitCause::PowerOff), ("restart", ExitCause::Reboot)] {
        let Some(lab) = Lab::enter().await else { return };
        let vm = lab.start(mode).await;
        assert_eq!(end_of(vm.as_ref(), BOOT).await.cause, cause, "{mode}");
    }
}

#[tokio::test(flavor = "current_thread")]
async fn a_killed_qemu_is_noticed() {
    let Some(lab) = Lab::enter().await else { return };
    for delay in [Duration::ZERO, Duration::from_millis(30), Duration::from_millis(700)] {
        let mut vm = lab.start("sleep").await;
        let mut channel = vm.take_channel().unwrap();
        tokio::time::sleep(delay).await;
        let pid = vm.pid();
        kill_process(Pid::from_raw(pid.cast_signed()).unwrap(), Signal::KILL).unwrap();
        let reason = end_of(vm.as_ref(), SOON).await;
        assert_eq!(reason.to_string(), format!("QEMU (pid {pid}) was killed by SIGKILL"));
        assert_eq!(timeout(SOON, channel.read(&mut [0; 1])).await.unwrap().unwrap_or(0), 0, "the channel is closed");
    }
}

#[tokio::test(flavor = "current_thread")]
async fn dropping_a_machine_ends_it() {
    let Some(lab) = Lab::enter().await else { return };
    let vm = lab.start("sleep").await;
    let pid = vm.pid();
    assert!(!is_gone(pid));
    drop(vm);
    assert!(is_gone(pid), "ended and reaped before drop returned");
    // Also with the runtime that looked after it.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let config = lab.config("sleep");
    let pid = std::thread::spawn(move || {
        let vm = runtime.block_on(async { qemu().start(config).await.unwrap() });
        let pid = vm.pid();
        drop(runtime);
        drop(vm);
        pid
    });
    assert!(is_gone(pid.join().unwrap()));
}

#[tokio::test(flavor = "current_thread")]
async fn a_flooding_guest_costs_no_memory() {
    let Some(lab) = Lab::enter().await else { return };
    let config = VmConfig { debug: true, ..lab.config("flood") };
    let vm = qemu().start(config).await.unwrap();
    let log = lab.run_dir.path().join(CONSOLE_LOG);
    let size = || fs::metadata(&log).map_or(0, |metadata| metadata.len());
    let begun = Instant::now();
    while size() < 200_000 && begun.elapsed() < BOOT {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let tail = vm.console_tail();
    assert_eq!(tail[tail.len() - 2], "more and more", "{tail:?}");
    assert!(tail.len() <= hypervisor::TAIL_LINES);
    assert!(fs::read_to_string(&log).unwrap().contains("Linux version"), "the log starts where the kernel starts");
    vm.kill().await;
    assert!(size() <= hypervisor::CONSOLE_LOG_LIMIT);
}

#[tokio::test(flavor = "current_thread")]
async fn what_qemu_refuses_is_told_in_its_words() {
    let Some(lab) = Lab::enter().await else { return };
    let driver = Qemu::new(QemuConfig {
        path: qemu_path(),
        machine_type: Some("pc-q35-99.9".into()),
        accelerator: Accelerator::Tcg,
    });
    let vm = driver.start(lab.config("sleep")).await.unwrap();
    let reason = end_of(vm.as_ref(), BOOT).await;
    assert_eq!(reason.cause, ExitCause::Code(1));
    assert!(reason.to_string().contains("unsupported machine type"), "{reason}");
    assert!(vm.stderr_tail().iter().any(|line| line.contains("unsupported machine type")));
    let error = timeout(SOON, vm.resume()).await.unwrap().unwrap_err();
    assert!(error.to_string().contains("the virtual machine has ended: QEMU (pid"), "{error}");
}

#[tokio::test(flavor = "current_thread")]
async fn the_file_server_is_spoken_to() {
    let Some(lab) = Lab::enter().await else { return };
    let (server, client) = UnixStream::pair().unwrap();
    let socket = OwnedFd::from(client.into_std().unwrap());
    let shared_fs = Some(SharedFs { tag: "kataShared".into(), socket });
    let vm = qemu().start(VmConfig { shared_fs, ..lab.config("sleep") }).await.unwrap();
    let mut server = server;
    // vhost-user: the first request is VHOST_USER_GET_FEATURES (1), version 1.
    let head = read_exactly(&mut server, 12, BOOT).await.expect("QEMU does not speak to the file server");
    assert_eq!(head, [1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
    // A server that dies in the middle of this takes QEMU with it, in words.
    drop(server);
    let reason = end_of(vm.as_ref(), BOOT).await;
    assert!(matches!(reason.cause, ExitCause::Code(1)) && reason.to_string().contains("vhost"), "{reason}");
}

#[tokio::test(flavor = "current_thread")]
async fn missing_files_are_found_before_anything_starts() {
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str, content: &[u8]| {
        let path = directory.path().join(name);
        fs::write(&path, content).unwrap();
        path
    };
    let (initrd, text) = (file("initrd", b"070701"), file("text", b"not a kernel"));
    let mut bzimage = vec![0; 0x400];
    bzimage[0x1fe..0x206].copy_from_slice(b"\x55\xaa\xeb\x66HdrS");
    bzimage[0x236] = 1;
    let kernel = file("kernel", &bzimage);
    let absent = directory.path().join("absent");
    let initrd = GuestImage::Initrd(initrd);
    let [no_initrd, bad_initrd] = [&absent, &text].map(|path| GuestImage::Initrd(path.clone()));
    let program = file("program", b"#!/bin/false\n");
    let driver =
        |path: &Path| Qemu::new(QemuConfig { path: path.into(), machine_type: None, accelerator: Accelerator::Tcg });
    for (path, kernel, initrd, expected) in [
        (&absent, &kernel, &initrd, format!("the QEMU program {} does not exist; install", absent.display())),
        (&program, &kernel, &initrd, format!("the QEMU program {} is not an executable file", program.display())),
    ] {
        let error = driver(path).check(kernel, initrd, None).unwrap_err().to_string();
        assert!(error.starts_with(&expected), "{error}");
    }
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    driver(&program).check(&kernel, &initrd, None).unwrap();
    let other = directory.path().join("qemu-system-aarch64");
    fs::rename(&program, &other).unwrap();
    let error = driver(&other).check(&kernel, &initrd, None).unwrap_err().to_string();
    assert!(error.contains("runs aarch64 guests, but the guest kernel is for x86_64; set path"), "{error}");
    fs::rename(&other, &program).unwrap();
    for (kernel, initrd, expected) in [
        (&absent, &initrd, format!("the guest kernel {} does not exist; set kernel", absent.display())),
        (&text, &initrd, format!("the guest kernel {} is neither an ELF file nor a kernel image", text.display())),
        (&kernel, &no_initrd, format!("the guest image {} does not exist; set image or initrd", absent.display())),
        (&kernel, &bad_initrd, format!("the guest image {} is no initial RAM disk", text.display())),
    ] {
        let error = driver(&program).check(kernel, initrd, None).unwrap_err().to_string();
        assert!(error.starts_with(&expected), "{error}");
        let config = VmConfig {
            kernel: kernel.clone(),
            image: initrd.clone(),
            kernel_params: String::new(),
            vcpus: 1,
            max_vcpus: 1,
            memory_mib: 64,
            max_memory_mib: 64,
            disks: Vec::new(),
            nics: Vec::new(),
            hotplug_slots: 0,
            shared_fs: None,
            debug: false,
            run_dir: directory.path().into(),
            uid: None,
        };
        let again = driver(&program).start(config).await.err().unwrap().to_string();
        assert_eq!(again, error, "start looks at the same");
    }
}
