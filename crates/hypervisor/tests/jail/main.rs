//! QEMU's jail, tried from inside. This program is also the one that stands in QEMU's place: the driver starts it as it starts QEMU, and it
//! attempts what QEMU may not. As the control it attempts the same outside, where all of it must succeed.
//!
//! It has a `main` of its own for that, and understands `--list` and a part of the test's name.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod attempts;
mod calls;

use std::{
    collections::BTreeMap,
    fs,
    os::unix::{fs::PermissionsExt, net::UnixListener, process::CommandExt},
    path::Path,
    process::{Command, ExitCode, Stdio},
    time::Duration,
};

use hypervisor::{Accelerator, GuestImage, Hypervisor, Qemu, QemuConfig, VmConfig};

/// What nobody else may be.
const UID: u32 = 0x6b7f_0002;
/// The name under which this program is a process that somebody else may want to harm.
const SIBLING: &str = "sibling";
const TEST: &str = "who_breaks_qemu_can_do_nothing_that_the_control_can";

fn main() -> ExitCode {
    let mut arguments = std::env::args();
    let name = arguments.next().unwrap_or_default();
    let rest: Vec<String> = arguments.collect();
    if name == SIBLING {
        std::thread::sleep(Duration::from_secs(60));
        return ExitCode::SUCCESS;
    }
    // QEMU's first argument; the last word of the kernel's command line says what to try.
    if rest.first().is_some_and(|first| first == "-nodefaults") {
        let append = rest.iter().position(|argument| argument == "-append").and_then(|at| rest.get(at + 1));
        attempts::report(append.and_then(|line| line.rsplit("probe=").next()).unwrap_or_default());
        return ExitCode::SUCCESS;
    }
    if rest.first().is_some_and(|first| first == "probe") {
        attempts::report(&rest[1]);
        return ExitCode::SUCCESS;
    }
    if rest.iter().any(|argument| argument == "--list") {
        println!("{TEST}: test");
        return ExitCode::SUCCESS;
    }
    if rest.iter().any(|argument| !argument.starts_with('-') && !TEST.contains(argument.as_str())) {
        return ExitCode::SUCCESS;
    }
    if !rustix::process::geteuid().is_root() {
        println!("skipped {TEST}: only root can take another user's place");
        return ExitCode::SUCCESS;
    }
    let result = std::panic::catch_unwind(jail);
    println!("test {TEST} ... {}", if result.is_ok() { "ok" } else { "FAILED" });
    println!("\ntest result: {} passed; {} failed", u8::from(result.is_ok()), u8::from(result.is_err()));
    if result.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// A process that is not to be harmed. It dies when this is dropped.
struct Sibling(std::process::Child);

impl Sibling {
    fn new() -> Self {
        let mut command = Command::new("/proc/self/exe");
        // As another sandbox's process: of another user, but one that the control may touch.
        Self(command.arg0(SIBLING).stdin(Stdio::null()).spawn().unwrap())
    }
}

impl Drop for Sibling {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn jail() {
    let lab = tempfile::tempdir().unwrap();
    // Its files are for everybody, as far as modes go: that they are out of reach is the jail's doing.
    fs::set_permissions(lab.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let file = |name: &str, contents: &[u8], mode| {
        let path = lab.path().join(name);
        fs::write(&path, contents).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        path
    };
    let state = file("state.json", b"another sandbox's", 0o644);
    file("writable", b"", 0o666);
    let kernel = file("kernel", &elf(), 0o644);
    let initrd = file("initrd", b"070701", 0o644);
    // A copy that its user may execute, whatever the directories are above this one.
    let program = lab.path().join("qemu-system-x86_64");
    fs::copy("/proc/self/exe", &program).unwrap();
    let _socket = UnixListener::bind(lab.path().join("socket")).unwrap();
    fs::set_permissions(lab.path().join("socket"), fs::Permissions::from_mode(0o600)).unwrap();
    let _abstract =
        UnixListener::bind_addr(&attempts::abstract_name(std::process::id().cast_signed()).unwrap()).unwrap();
    let sibling = Sibling::new();
    let told = format!("{}:{}:{}", lab.path().display(), std::process::id(), sibling.0.id());

    let run_dir = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let said = runtime.block_on(async {
        let qemu = Qemu::new(QemuConfig { path: program.clone(), machine_type: None, accelerator: Accelerator::Tcg });
        let vm = qemu.start(VmConfig {
            kernel,
            image: GuestImage::Initrd(initrd),
            kernel_params: format!("probe={told}"),
            vcpus: 1,
            max_vcpus: 1,
            memory_mib: 64,
            max_memory_mib: 64,
            hotplug_slots: 0,
            disks: Vec::new(),
            nics: Vec::new(),
            shared_fs: None,
            uid: Some(UID),
            run_dir: run_dir.path().to_path_buf(),
            debug: false,
        });
        let vm = vm.await.unwrap();
        tokio::time::timeout(Duration::from_secs(60), vm.wait()).await.expect("the program's end");
        vm.stderr_tail().join("\n")
    });
    let inside = results(&said);
    let control = Command::new("/proc/self/exe").args(["probe", &told]).output().unwrap();
    let outside = results(&String::from_utf8_lossy(&control.stderr));
    assert_eq!(inside.keys().collect::<Vec<_>>(), outside.keys().collect::<Vec<_>>(), "{said}\n{control:?}");
    assert!(inside.len() >= attempts::ALL.len(), "{said}");
    // What this kernel has not cannot be tried.
    let missing =
        [libc::ENOSYS, libc::EOPNOTSUPP].map(|code| format!("refused: {}", std::io::Error::from_raw_os_error(code)));
    let tried: Vec<_> = inside.iter().filter(|(attempt, _)| !missing.contains(&outside[*attempt])).collect();
    for (attempt, result) in &outside {
        if missing.contains(result) {
            println!("skipped: {attempt}: {result}");
        } else {
            assert!(result == "done", "the control failed to {attempt}: {result}");
        }
    }
    for (attempt, result) in tried {
        // What QEMU itself needs must be left to it, or nothing would be proven by what is refused.
        let expected = if attempt.starts_with("may ") { "done" } else { "refused" };
        assert!(result.starts_with(expected), "in QEMU's place, {attempt}: {result}");
    }
    assert_eq!(fs::read(state).unwrap(), b"another sandbox's");
    assert!(Path::new(&format!("/proc/{}", sibling.0.id())).exists());
}

/// Lines of `attempt=result|attempt=result`.
fn results(said: &str) -> BTreeMap<String, String> {
    let line = |line: &str| line.split_once('=').map(|(attempt, result)| (attempt.to_owned(), result.to_owned()));
    said.lines().flat_map(|said| said.split('|')).filter_map(line).collect()
}

/// An ELF file for x86_64 with the note by which QEMU would start it.
fn elf() -> Vec<u8> {
    let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x3e\0\x01\0\0\0".to_vec();
    file.extend([0x10_0000_u64, 64, 0].map(u64::to_le_bytes).concat());
    file.extend([0, 0, 0, 0, 64, 0, 56, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
    file.extend([4_u32, 4].map(u32::to_le_bytes).concat());
    file.extend([120_u64, 0, 0, 20, 20, 4].map(u64::to_le_bytes).concat());
    file.extend([4_u32, 4, 18].map(u32::to_le_bytes).concat());
    file.extend(b"Xen\0\0\0\x10\0");
    file
}
