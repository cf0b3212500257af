//! Tests of [`super`].

use std::os::fd::OwnedFd;

use super::*;
use crate::{Arch, GuestImage, SharedFs};

const FDS: Descriptors = Descriptors {
    qmp: 10,
    console: 11,
    channel: 12,
    kernel: 13,
    image: 14,
    shared_fs: Some(15),
    disks: Vec::new(),
    nics: Vec::new(),
};

fn qemu(accelerator: Accelerator) -> QemuConfig {
    QemuConfig { path: "/nowhere/bin/qemu".into(), machine_type: None, accelerator }
}

pub(in super::super) fn vm(shared: bool) -> VmConfig {
    let socket = OwnedFd::from(std::os::unix::net::UnixStream::pair().unwrap().0);
    VmConfig {
        kernel: "/k".into(),
        image: GuestImage::Initrd("/i".into()),
        kernel_params: " agent.log=debug ".into(),
        vcpus: 1,
        max_vcpus: 1,
        memory_mib: 512,
        max_memory_mib: 512,
        disks: Vec::new(),
        nics: Vec::new(),
        hotplug_slots: 0,
        shared_fs: shared.then(|| SharedFs { tag: "share".into(), socket }),
        debug: false,
        run_dir: "/r".into(),
        uid: None,
    }
}

fn q35() -> &'static Model {
    Model::find(Arch::X86_64, None).unwrap()
}

fn arguments(qemu: &QemuConfig, model: &'static Model, vm: &VmConfig, fds: &Descriptors) -> Vec<String> {
    super::arguments(qemu, &Inventory::new(model, qemu.accelerator, vm).unwrap(), vm, None, fds).unwrap()
}

/// The value of the one argument `name`, or of the one whose value starts with `prefix`.
fn value<'a>(args: &'a [String], name: &str, prefix: &str) -> Option<&'a str> {
    let mut found = args.windows(2).filter(|w| w[0] == name && w[1].starts_with(prefix)).map(|w| w[1].as_str());
    let first = found.next();
    assert_eq!(found.next(), None, "{name} {prefix} twice");
    first
}

#[test]
fn descriptors_are_where_they_belong() {
    let args = arguments(&qemu(Accelerator::Tcg), q35(), &vm(true), &FDS);
    assert_eq!(value(&args, "-kernel", "").unwrap(), "/proc/self/fd/13");
    assert_eq!(value(&args, "-initrd", "").unwrap(), "/proc/self/fd/14");
    for (id, fd) in [("qmp", 10), ("console", 11), ("channel", 12), ("fs", 15)] {
        let chardev = value(&args, "-chardev", &format!("socket,id={id},")).unwrap();
        assert_eq!(chardev, format!("socket,id={id},fd={fd}"));
    }
    assert!(value(&args, "-device", "virtserialport").unwrap().ends_with("name=io.katacontainers.channel"));
    assert!(
        !args.concat().contains("/k,") && !args.iter().any(|a| a == "/k"),
        "the kernel's path is not QEMU's business"
    );
}

#[test]
fn memory_is_shared_only_with_a_file_server() {
    let args = arguments(&qemu(Accelerator::Tcg), q35(), &vm(true), &FDS);
    assert_eq!(value(&args, "-object", "").unwrap(), "memory-backend-memfd,id=memory,size=512M,share=on");
    assert!(value(&args, "-machine", "q35,").unwrap().contains(",memory-backend=memory"));
    assert!(value(&args, "-device", "vhost-user-fs-pci").unwrap().contains("tag=share,"));
    let args = arguments(&qemu(Accelerator::Tcg), q35(), &vm(false), &FDS);
    assert_eq!(value(&args, "-object", ""), None);
    assert_eq!(value(&args, "-device", "vhost-user-fs-pci"), None);
    assert!(!args.concat().contains("memory-backend"));
}

#[test]
fn accelerators_differ() {
    let line = |accelerator, vcpus| {
        let args = arguments(&qemu(accelerator), q35(), &VmConfig { vcpus, max_vcpus: vcpus, ..vm(false) }, &FDS);
        (args.join(" "), value(&args, "-append", "").unwrap().to_owned())
    };
    let (args, append) = line(Accelerator::Tcg, 1);
    assert!(args.contains("-accel tcg") && args.contains("hpet=on") && append.contains("nolapic_timer"), "{args}");
    assert!(!args.contains("kvm"), "{args}");
    let (args, append) = line(Accelerator::Tcg, 2);
    assert!(args.contains("hpet=off") && args.contains("-smp 2") && !append.contains("nolapic_timer"), "{args}");
    let (args, append) = line(Accelerator::Kvm, 1);
    assert!(args.contains("-accel kvm") && args.contains("-cpu host") && args.contains("hpet=off"), "{args}");
    assert!(!args.contains("tcg") && !append.contains("nolapic_timer"), "{args}");
}

#[test]
fn machines_have_their_own_devices() {
    let line = |arch, machine_type: Option<&str>| {
        let qemu = QemuConfig { machine_type: machine_type.map(Into::into), ..qemu(Accelerator::Tcg) };
        arguments(&qemu, Model::find(arch, machine_type).unwrap(), &vm(true), &FDS).join(" ")
    };
    let q35 = line(Arch::X86_64, Some("pc-q35-7.2"));
    assert!(q35.contains("-machine pc-q35-7.2,dump-guest-core=off,mem-merge=off,sata=off,"), "{q35}");
    assert!(q35.contains("-device virtio-serial-pci,disable-legacy=on,id=serial") && !q35.contains("-global"), "{q35}");
    assert!(q35.contains("-device vhost-user-fs-pci,chardev"), "{q35}");
    let microvm = line(Arch::X86_64, Some("microvm"));
    assert!(microvm.contains("-machine microvm,") && !microvm.contains("pci"), "{microvm}");
    assert!(microvm.contains("-global virtio-mmio.force-legacy=false"), "{microvm}");
    assert!(microvm.contains("-device virtio-serial-device,id=serial"), "{microvm}");
    assert!(microvm.contains("-device vhost-user-fs-device,chardev=fs"), "{microvm}");
    let virt = line(Arch::Aarch64, None);
    assert!(virt.contains("-machine virt,") && virt.contains("gic-version=3,memory-backend=memory"), "{virt}");
    assert!(virt.contains("-cpu max,pauth-impdef=on") && virt.contains("-device vhost-user-fs-pci"), "{virt}");
}

#[test]
fn the_firmware_is_used_if_it_is_there() {
    let prefix = std::env::temp_dir().join(format!("hypervisor-args-{}", std::process::id()));
    let program = prefix.join("bin/qemu");
    assert_eq!(firmware(&program), None);
    std::fs::create_dir_all(prefix.join("share/qemu")).unwrap();
    std::fs::write(prefix.join(FIRMWARE), "rom").unwrap();
    assert_eq!(firmware(&program), Some(prefix.join(FIRMWARE)));
    std::fs::remove_dir_all(prefix).unwrap();
}

#[test]
fn nothing_is_there_for_what_never_comes() {
    let args = arguments(&qemu(Accelerator::Tcg), q35(), &vm(true), &FDS).concat();
    for word in ["pci-bridge", "root-port", "maxmem", "maxcpus", "virtio-mem", "add-fd", "netdev"] {
        assert!(!args.contains(word), "{word}");
    }
}

#[test]
fn what_may_come_has_its_place() {
    let may_grow = |shared| VmConfig { max_vcpus: 4, max_memory_mib: 1000, hotplug_slots: 9, ..vm(shared) };
    let args = arguments(&qemu(Accelerator::Kvm), q35(), &may_grow(true), &FDS);
    assert_eq!(value(&args, "-smp", "").unwrap(), "1,maxcpus=4");
    assert_eq!(value(&args, "-m", "").unwrap(), "512M,maxmem=1024M");
    assert_eq!(value(&args, "-device", "pci-bridge").unwrap(), "pci-bridge,id=places,chassis_nr=1,shpc=off");
    let serial = "virtio-serial-pci,disable-legacy=on,bus=places,addr=1f,id=serial,max_ports=2";
    assert_eq!(value(&args, "-device", "virtio-serial").unwrap(), serial);
    let memory = "memory-backend-memfd,share=on,id=memory1,size=512M,reserve=off";
    assert_eq!(value(&args, "-object", "memory-backend-memfd,share").unwrap(), memory);
    let args = arguments(&qemu(Accelerator::Tcg), q35(), &may_grow(false), &FDS);
    assert_eq!(value(&args, "-smp", "").unwrap(), "4", "Linux would not accept what TCG plugs");
    assert_eq!(value(&args, "-object", "").unwrap(), "memory-backend-ram,id=memory1,size=512M,reserve=off");

    let virt = Model::find(Arch::Aarch64, None).unwrap();
    let args = arguments(&qemu(Accelerator::Tcg), virt, &may_grow(false), &FDS);
    let port = |id: &str| value(&args, "-device", &format!("pcie-root-port,id={id},")).unwrap().to_owned();
    assert_eq!(port("place0"), "pcie-root-port,id=place0,chassis=1,bus=pcie.0,addr=10.0,multifunction=on");
    assert_eq!(port("place7"), "pcie-root-port,id=place7,chassis=8,bus=pcie.0,addr=10.7");
    assert_eq!(port("place8"), "pcie-root-port,id=place8,chassis=9,bus=pcie.0,addr=11.0,multifunction=on");
    assert!(!value(&args, "-device", "virtio-serial").unwrap().contains("bus="));
}

#[test]
fn devices_from_the_start_have_their_descriptors() {
    let file = tempfile::tempfile().unwrap();
    let disk = crate::Disk { serial: "data".into(), file: file.into(), read_only: false };
    let null = || std::fs::File::open("/dev/null").unwrap().into();
    let link = crate::Link::Tap { queues: vec![null(), null()], vhost: vec![] };
    let nic = crate::Nic { id: "e".into(), link, mac: [2; 6], mtu: None };
    let vm = VmConfig { disks: vec![disk], nics: vec![nic], ..vm(false) };
    let fds = Descriptors { disks: vec![20], nics: vec![[vec![21, 22], vec![]]], ..FDS };
    let args = arguments(&qemu(Accelerator::Tcg), q35(), &vm, &fds);
    assert_eq!(value(&args, "-add-fd", "").unwrap(), "fd=20,set=1");
    assert!(value(&args, "-blockdev", "").unwrap().contains("\"filename\":\"/dev/fdset/1\""));
    assert!(value(&args, "-netdev", "").unwrap().contains("\"fds\":\"21:22\""));
    assert_eq!(args.iter().filter(|arg| arg.starts_with('{')).count(), 4);
}
