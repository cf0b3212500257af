//! Disks, interfaces, processors and memory that a guest has from its start, gets and loses.

use std::os::fd::{AsFd, AsRawFd};

use hypervisor::{Disk, Link, Nic};
use tempfile::NamedTempFile;

use super::{tap::Tap, *};

const MIB: u64 = 1 << 20;

/// A machine whose guest answers questions.
struct Guest {
    vm: Box<dyn Vm>,
    channel: UnixStream,
}

impl Guest {
    async fn start(config: VmConfig) -> Self {
        Self::start_with(&qemu(), config).await
    }

    async fn start_with(driver: &Qemu, config: VmConfig) -> Self {
        let mut vm = driver.start(config).await.unwrap();
        let channel = vm.take_channel().unwrap();
        let mut guest = Self { vm, channel };
        assert_eq!(guest.line().await, "hello");
        guest
    }

    async fn line(&mut self) -> String {
        let mut line = Vec::new();
        let read = async {
            while line.last() != Some(&b'\n') {
                line.push(self.channel.read_u8().await?);
            }
            std::io::Result::Ok(())
        };
        if !matches!(timeout(BOOT, read).await, Ok(Ok(()))) {
            let end = timeout(SOON, self.vm.wait()).await;
            panic!("no answer; console: {:?}; QEMU: {end:?}", self.vm.console_tail());
        }
        String::from_utf8(line).unwrap().trim_end().into()
    }

    async fn ask(&mut self, question: &str) -> String {
        self.channel.write_all(format!("{question}\n").as_bytes()).await.unwrap();
        self.line().await
    }

    /// Asks until the answer is this: the guest's kernel looks for devices in its own time.
    async fn until(&mut self, question: &str, expected: &str) {
        let begun = Instant::now();
        loop {
            let answer = self.ask(question).await;
            if answer == expected {
                return;
            }
            assert!(
                begun.elapsed() < BOOT,
                "{question}: {answer:?} instead of {expected:?}; {:?}",
                self.vm.console_tail()
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Files that QEMU has open with this path.
    fn opened(&self, path: &Path) -> usize {
        let fds = fs::read_dir(format!("/proc/{}/fd", self.vm.pid())).unwrap().flatten();
        fds.filter(|fd| fs::read_link(fd.path()).is_ok_and(|target| target == path)).count()
    }

    fn descriptors(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.vm.pid())).unwrap().count()
    }
}

fn driver(machine: &str) -> Qemu {
    Qemu::new(QemuConfig { path: qemu_path(), machine_type: Some(machine.into()), accelerator: Accelerator::Tcg })
}

fn file(mib: u64, text: &str) -> NamedTempFile {
    let file = NamedTempFile::new().unwrap();
    std::io::Write::write_all(&mut file.as_file(), text.as_bytes()).unwrap();
    file.as_file().set_len(mib * MIB).unwrap();
    file
}

fn disk(serial: &str, path: &Path, read_only: bool) -> Disk {
    let file = fs::File::options().read(true).write(!read_only).open(path).unwrap();
    Disk { serial: serial.into(), file: file.into(), read_only }
}

fn nic(id: &str, taps: Vec<OwnedFd>, last: u8) -> Nic {
    Nic {
        id: id.into(),
        link: Link::Tap { queues: taps, vhost: Vec::new() },
        mac: [2, 0, 0, 0, 0, last],
        mtu: Some(1400),
    }
}

fn first_bytes(path: &Path) -> Vec<u8> {
    fs::read(path).unwrap()[..5].to_vec()
}

#[tokio::test(flavor = "current_thread")]
async fn a_guest_has_disks_and_interfaces_from_its_start() {
    let Some(lab) = Lab::enter().await else { return };
    let (data, layer) = (file(8, "mine"), file(4, "a layer"));
    for (machine, hotplug_slots) in [("q35", 0), ("q35", 4), ("microvm", 0)] {
        let driver = driver(machine);
        let Some(mut tap) = Tap::new(2) else { return };
        let config = VmConfig {
            disks: vec![disk("data", data.path(), false), disk("layer", layer.path(), true)],
            nics: vec![nic("eth0", std::mem::take(&mut tap.queues), 1)],
            hotplug_slots,
            vcpus: 2,
            max_vcpus: 2,
            ..lab.config("serve")
        };
        let mut guest = Guest::start_with(&driver, config).await;
        guest.until("disks", "data/16384/0 layer/8192/1").await;
        guest.until("nics", "02:00:00:00:00:01/1400/2").await;
        assert_eq!(guest.ask("read layer").await, "a layer.........");
        assert_ne!(guest.ask("write layer x").await, "written");
        assert_eq!(guest.ask(&format!("write data {machine}")).await, "written");
        assert_eq!(first_bytes(data.path())[..3], machine.as_bytes()[..3]);
        let before = tap.received();
        assert_eq!(guest.ask("up 02:00:00:00:00:01").await, "up");
        let begun = Instant::now();
        while tap.received() == before {
            assert!(begun.elapsed() < BOOT, "{machine}: no packet");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        if hotplug_slots > 0 {
            guest.vm.remove_disk("layer").await.unwrap();
            guest.until("disks", "data/16384/0").await;
            assert_eq!((guest.opened(layer.path()), guest.opened(data.path()) > 0), (0, true));
            guest.vm.remove_nic("eth0").await.unwrap();
            guest.until("nics", "").await;
        } else {
            let error = guest.vm.remove_disk("data").await.unwrap_err();
            assert!(matches!(error, Error::Builtin { .. }), "{error}");
            let error = guest.vm.add_disk(disk("more", data.path(), true)).await.unwrap_err();
            assert!(matches!(error, Error::Fixed { .. }), "{error}");
        }
        guest.vm.kill().await;
    }
}

#[tokio::test(flavor = "current_thread")]
async fn disks_come_and_go() {
    let Some(lab) = Lab::enter().await else { return };
    let (one, two) = (file(8, "one"), file(4, "two"));
    let mut guest = Guest::start(VmConfig { hotplug_slots: 3, ..lab.config("serve") }).await;
    assert_eq!(guest.ask("disks").await, "");
    let before = guest.descriptors();
    for round in 0..2 {
        let begun = Instant::now();
        guest.vm.add_disk(disk("one", one.path(), false)).await.unwrap();
        let added = begun.elapsed();
        guest.until("disks", "one/16384/0").await;
        let seen = begun.elapsed();
        guest.vm.add_disk(disk("two", two.path(), true)).await.unwrap();
        guest.until("disks", "one/16384/0 two/8192/1").await;
        assert_eq!(guest.ask("write one first").await, "written");
        assert_eq!(first_bytes(one.path()), b"first");
        assert_eq!(guest.ask("read two").await, "two.............");
        let again = guest.vm.add_disk(disk("one", two.path(), true)).await.unwrap_err();
        assert!(matches!(again, Error::Present { .. }), "{again}");
        let begun = Instant::now();
        guest.vm.remove_disk("one").await.unwrap();
        let removed = begun.elapsed();
        guest.until("disks", "two/8192/1").await;
        guest.vm.remove_disk("two").await.unwrap();
        assert_eq!(guest.opened(one.path()) + guest.opened(two.path()), 0);
        assert!(matches!(guest.vm.remove_disk("one").await.unwrap_err(), Error::Unknown { .. }));
        eprintln!(
            "round {round}: add_disk took {added:?}, the guest saw it after {seen:?}; remove_disk took {removed:?}"
        );
    }
    assert!(guest.descriptors() <= before + 1, "descriptors are left in QEMU");

    // One that is locked by somebody else is refused, and leaves nothing.
    let locker = fs::File::options().read(true).write(true).open(one.path()).unwrap();
    let mut lock: libc::flock = unsafe_zeroed();
    lock.l_type = libc::F_WRLCK as _;
    // SAFETY: F_OFD_SETLK reads a flock.
    assert_eq!(unsafe { libc::fcntl(locker.as_raw_fd(), libc::F_OFD_SETLK, &raw const lock) }, 0);
    let error = guest.vm.add_disk(disk("one", one.path(), false)).await.unwrap_err();
    let text = format!("{error}: {}", std::error::Error::source(&error).unwrap());
    assert!(text.contains("cannot add disk \"one\": could not") && text.contains("lock"), "{text}");
    drop(locker);
    assert_eq!(guest.opened(one.path()), 0);
    guest.vm.add_disk(disk("one", one.path(), false)).await.unwrap();
    guest.vm.add_disk(disk("two", two.path(), true)).await.unwrap();
    let three = file(1, "three");
    guest.vm.add_disk(disk("three", three.path(), true)).await.unwrap();
    let full = guest.vm.add_disk(disk("four", three.path(), true)).await.unwrap_err();
    assert!(matches!(full, Error::Full { places: 3, .. }), "{full}");

    let pid = guest.vm.pid();
    guest.vm.kill().await;
    assert!(is_gone(pid));
    assert!(matches!(guest.vm.remove_disk("one").await.unwrap_err(), Error::Ended(_)));
}

fn unsafe_zeroed() -> libc::flock {
    // SAFETY: a flock is numbers only.
    unsafe { std::mem::zeroed() }
}

#[tokio::test(flavor = "current_thread")]
async fn a_block_device_is_a_disk() {
    let Some(lab) = Lab::enter().await else { return };
    let backing = file(8, "through a loop");
    let losetup = |arguments: &[&str]| {
        let output = Command::new("losetup").args(arguments).output().ok()?;
        output.status.success().then(|| String::from_utf8(output.stdout).unwrap().trim().to_owned())
    };
    let Some(device) = losetup(&["--find", "--show", backing.path().to_str().unwrap()]) else {
        eprintln!("skipped: needs a loop device");
        return;
    };
    let mut guest = Guest::start(VmConfig { hotplug_slots: 1, ..lab.config("serve") }).await;
    guest.vm.add_disk(disk("loop", Path::new(&device), false)).await.unwrap();
    guest.until("disks", "loop/16384/0").await;
    assert_eq!(guest.ask("read loop").await, "through a loop..");
    assert_eq!(guest.ask("write loop guest").await, "written");
    guest.vm.remove_disk("loop").await.unwrap();
    guest.vm.kill().await;
    losetup(&["--detach", &device]).unwrap();
    assert_eq!(first_bytes(backing.path()), b"guest");
}

#[tokio::test(flavor = "current_thread")]
async fn interfaces_come_and_go() {
    let Some(lab) = Lab::enter().await else { return };
    let (Some(one), Some(two)) = (Tap::new(1), Tap::new(2)) else { return };
    let mut guest = Guest::start(VmConfig { hotplug_slots: 2, vcpus: 2, max_vcpus: 2, ..lab.config("serve") }).await;
    let before = guest.descriptors();
    for (tap, queues, mac) in
        [(&one, 1, "02:00:00:00:00:01"), (&two, 2, "02:00:00:00:00:02"), (&one, 1, "02:00:00:00:00:03")]
    {
        let last = mac.as_bytes()[16] - b'0';
        let fds = tap.queues.iter().map(|fd| fd.as_fd().try_clone_to_owned().unwrap()).collect();
        guest.vm.add_nic(nic("net", fds, last)).await.unwrap();
        guest.until("nics", &format!("{mac}/1400/{queues}")).await;
        let sent = tap.received();
        assert_eq!(guest.ask(&format!("up {mac}")).await, "up");
        let begun = Instant::now();
        while tap.received() == sent {
            assert!(begun.elapsed() < BOOT, "no packet from {mac}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        guest.vm.remove_nic("net").await.unwrap();
        guest.until("nics", "").await;
    }
    assert!(guest.descriptors() <= before + 1, "descriptors are left in QEMU");
    // What is no tap is refused, and nothing is left of it.
    let null = || fs::File::options().read(true).write(true).open("/dev/null").unwrap().into();
    let error = guest.vm.add_nic(nic("net", vec![null(), null()], 9)).await.unwrap_err();
    assert!(
        error.to_string().starts_with("cannot add network interface \"net\": could not set up its queues"),
        "{error}"
    );
    assert!(guest.descriptors() <= before + 1, "descriptors are left in QEMU");
    guest.vm.kill().await;
}

#[tokio::test(flavor = "current_thread")]
async fn processors_are_added() {
    let Some(lab) = Lab::enter().await else { return };
    for machine in ["q35", "microvm"] {
        let driver = driver(machine);
        let mut guest = Guest::start_with(&driver, VmConfig { max_vcpus: 4, ..lab.config("serve") }).await;
        assert!(guest.ask("cpus 1").await.starts_with("0 "));
        assert_eq!(guest.vm.set_vcpus(1).await.unwrap(), 1);
        assert_eq!(guest.vm.set_vcpus(3).await.unwrap(), 3);
        assert_eq!((guest.vm.vcpus(), guest.vm.set_vcpus(2).await.unwrap()), (3, 3));
        let begun = Instant::now();
        loop {
            let answer = guest.ask("cpus 3").await;
            eprintln!("{machine}: processors, and 20 naps of 5 ms on each, ms: {answer}");
            if answer.starts_with("0-2 ") {
                break;
            }
            assert!(begun.elapsed() < BOOT, "{answer}; {:?}", guest.vm.console_tail());
        }
        let error = guest.vm.set_vcpus(5).await.unwrap_err().to_string();
        assert_eq!(error, "vcpus is \"5\", but the machine was started for at most 4 (max_vcpus)");
        guest.vm.kill().await;
    }
}

#[tokio::test(flavor = "current_thread")]
async fn memory_comes_and_goes() {
    let Some(lab) = Lab::enter().await else { return };
    let mut guest = Guest::start(VmConfig { max_memory_mib: 1024, ..lab.config("serve") }).await;
    let total = async |guest: &mut Guest| guest.ask("memory").await.parse::<u64>().unwrap() / 1024;
    let small = total(&mut guest).await;
    let begun = Instant::now();
    assert_eq!(guest.vm.set_memory(768).await.unwrap(), 768);
    let grown = begun.elapsed();
    // The guest has it; its kernel takes it into service a little later.
    let mut large = small;
    while large < small + 480 {
        assert!(begun.elapsed() < BOOT, "{small} MiB, and with 512 more {large}");
        large = total(&mut guest).await;
    }
    assert_eq!(guest.vm.set_memory(1023).await.unwrap(), 1024, "in steps of 2 MiB");
    let begun = Instant::now();
    assert_eq!(guest.vm.set_memory(256).await.unwrap(), 256);
    eprintln!("512 MiB more took {grown:?}, 768 less {:?}", begun.elapsed());
    assert_eq!((guest.vm.memory_mib(), total(&mut guest).await.abs_diff(small) < 32), (256, true));
    for mib in [255, 1025] {
        let error = guest.vm.set_memory(mib).await.unwrap_err().to_string();
        assert!(error.contains("started with 256 MiB and for at most 1024 (max_memory_mib)"), "{error}");
    }
    guest.vm.kill().await;
}

#[tokio::test(flavor = "current_thread")]
async fn a_guest_that_keeps_its_device_is_told_of() {
    let Some(lab) = Lab::enter().await else { return };
    let data = file(1, "x");
    let guest = Guest::start(VmConfig { hotplug_slots: 1, ..lab.config("serve") }).await;
    guest.vm.add_disk(disk("data", data.path(), true)).await.unwrap();
    guest.vm.pause().await.unwrap();
    let error = guest.vm.remove_disk("data").await.unwrap_err();
    assert!(matches!(error, Error::Held { .. }), "{error}");
    guest.vm.resume().await.unwrap();
    // Whoever does not wait for the end does not spoil it.
    assert!(timeout(Duration::from_micros(10), guest.vm.remove_disk("data")).await.is_err());
    let begun = Instant::now();
    while guest.opened(data.path()) > 0 {
        assert!(begun.elapsed() < BOOT, "it was not removed");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    guest.vm.add_disk(disk("data", data.path(), true)).await.unwrap();
    guest.vm.kill().await;
}
