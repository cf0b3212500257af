//! The bare kernel: the same machine, kernel and command line, and an init that does nothing.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::Path,
    time::{Duration, Instant},
};

use hypervisor::{GuestImage, Hypervisor, Qemu, QemuConfig, VmConfig};

/// What the init writes to its console.
const GREETING: &[u8] = b"BARE-INIT-UP\r\n";
/// Long enough for the machine of docs/lab.md.
const DEADLINE: Duration = Duration::from_secs(400);

/// An ELF program of one segment for x86_64 that writes the greeting to standard output and pauses for ever.
fn init() -> Vec<u8> {
    const BASE: u64 = 0x40_0000;
    const HEADERS: u64 = 64 + 56;
    let mut code = vec![
        0xb8,
        1,
        0,
        0,
        0, // mov eax, 1 (write)
        0xbf,
        1,
        0,
        0,
        0, // mov edi, 1
        0x48,
        0x8d,
        0x35,
        0x10,
        0,
        0,
        0, // lea rsi, [rip + 16]: behind the code
        0xba,
        GREETING.len() as u8,
        0,
        0,
        0, // mov edx, length
        0x0f,
        0x05, // syscall
        0xb8,
        34,
        0,
        0,
        0, // mov eax, 34 (pause)
        0x0f,
        0x05, // syscall
        0xeb,
        0xf7, // jmp to the pause
    ];
    code.extend(GREETING);
    let size = HEADERS + code.len() as u64;
    let mut elf = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    elf.extend([2, 0, 62, 0, 1, 0, 0, 0]);
    elf.extend((BASE + HEADERS).to_le_bytes());
    elf.extend(64u64.to_le_bytes());
    elf.extend(0u64.to_le_bytes());
    elf.extend([0, 0, 0, 0, 64, 0, 56, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
    elf.extend([1, 0, 0, 0, 5, 0, 0, 0]);
    for word in [0, BASE, BASE, size, size, 0x1000] {
        elf.extend(word.to_le_bytes());
    }
    elf.extend(code);
    elf
}

/// Boots the bare kernel once: from the start of QEMU until its init has written to the console.
pub fn boot(config: &config::Config, kernel: &Path, memory_mib: u64) -> Result<Duration, String> {
    if std::env::consts::ARCH != "x86_64" {
        return Err("the empty init exists for x86_64 only".into());
    }
    let dir = tempfile::tempdir().map_err(|e| e.to_string())?;
    let program = dir.path().join("init");
    fs::write(&program, init()).map_err(|e| e.to_string())?;
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).map_err(|e| e.to_string())?;
    let initrd = dir.path().join("initrd");
    let contents = osbuilder::Contents { agent: &program, modules_directory: None, modules: &[] };
    osbuilder::initrd(&contents, &initrd).map_err(|e| e.to_string())?;
    let arch = hypervisor::Arch::of_kernel(kernel).map_err(|e| e.to_string())?;
    let choice =
        hypervisor::choose_accelerator(hypervisor::Accelerator::Auto, arch, dir.path()).map_err(|e| e.to_string())?;
    let path = config.qemu.locate_program(arch.qemu_program(), arch.qemu_package(), choice.kvm);
    let path = path.map_err(|e| e.to_string())?;
    let accelerator = if choice.kvm { hypervisor::Accelerator::Kvm } else { hypervisor::Accelerator::Tcg };
    let qemu = Qemu::new(QemuConfig { path, machine_type: None, accelerator });
    let machine = VmConfig {
        kernel: kernel.into(),
        image: GuestImage::Initrd(initrd),
        kernel_params: String::new(),
        vcpus: 1,
        max_vcpus: 1,
        memory_mib,
        max_memory_mib: memory_mib,
        disks: Vec::new(),
        nics: Vec::new(),
        hotplug_slots: 0,
        shared_fs: None,
        debug: false,
        run_dir: dir.path().into(),
        uid: None,
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|e| e.to_string())?;
    runtime.block_on(async {
        let begun = Instant::now();
        let vm = qemu.start(machine).await.map_err(|e| e.to_string())?;
        let greeting = String::from_utf8_lossy(GREETING).trim().to_owned();
        while !vm.console_tail().iter().any(|line| line.contains(&greeting)) {
            if begun.elapsed() > DEADLINE {
                return Err(format!("the bare kernel did not reach its init: {:?}", vm.console_tail()));
            }
            tokio::time::sleep(Duration::from_micros(500)).await;
        }
        let took = begun.elapsed();
        vm.kill().await;
        Ok(took)
    })
}
