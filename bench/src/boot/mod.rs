//! How many instructions the guest executes from its first one, which is the firmware's, until the agent answers.
//!
//! The product itself is started, by `kata-runtime run`, with a program of ours in QEMU's place that adds two things to its
//! arguments: `-icount`, by which a guest's clock goes by the instructions it has executed, so that two runs do the same; and
//! the counting plugin (`bench/icount`). The plugin ends QEMU when the agent's first write reaches the channel's driver in the guest's
//! kernel ([`MARK`]): that write is the answer to the host's greeting. So the count includes firmware, kernel and agent, and
//! nothing of the container.

mod counts;
mod plugin;
mod report;
mod symbols;

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use counts::Counts;
use e2e::{Bundle, Runtime};
use symbols::Symbols;

use crate::progress;

/// The kernel's function for a write(2) on a port of virtio-serial. At its first call the agent's answer is ready.
const MARK: &str = "port_fops_write";

/// What to boot.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// Machine type: q35 or microvm.
    #[arg(long)]
    machine: Option<String>,
    /// Guest kernel; the staged one unless told otherwise.
    #[arg(long)]
    kernel: Option<PathBuf>,
    /// The kernel's System.map; the file beside the kernel, or else that of the built kernel in the cache.
    #[arg(long)]
    system_map: Option<PathBuf>,
    /// Guest image; the staged one unless told otherwise.
    #[arg(long)]
    initrd: Option<PathBuf>,
    /// Memory of the guest, MiB.
    #[arg(long, default_value_t = 2048)]
    memory: u32,
    /// Virtual CPUs.
    #[arg(long, default_value_t = 1)]
    vcpus: u32,
    /// Added to the kernel's command line.
    #[arg(long, default_value = "")]
    kernel_params: String,
    /// Keep the plugin's counts, by address, in this file.
    #[arg(long)]
    counts: Option<PathBuf>,
    /// Rows of each table.
    #[arg(long, default_value_t = 20)]
    top: usize,
}

/// Boots once, counts and prints.
///
/// # Errors
/// What could not be done, as a sentence.
pub fn run(options: &Options) -> Result<(), String> {
    let share = e2e::stage().join("share/kata-containers");
    let kernel = options.kernel.clone().unwrap_or_else(|| share.join("vmlinux.container"));
    let initrd = options.initrd.clone().unwrap_or_else(|| share.join("kata-containers-initrd.img"));
    let map = options.system_map.clone().map_or_else(|| find_map(&kernel), Ok)?;
    let symbols = Symbols::load(&map)?;
    symbols.check_kernel(&kernel).map_err(|problem| {
        format!("{problem}; give the kernel's own System.map (--system-map), which its build leaves: {}", map.display())
    })?;
    let stop = symbols
        .address(MARK)
        .ok_or_else(|| format!("{} has no {MARK}: virtio_console must be built into the kernel", map.display()))?;

    let dir = tempfile::tempdir().map_err(|e| format!("make a temporary directory: {e}"))?;
    let file = boot(options, &kernel, &initrd, stop, dir.path())?;
    if let Some(copy) = &options.counts {
        fs::copy(&file, copy).map_err(|e| format!("write {}: {e}", copy.display()))?;
    }
    let counts = Counts::load(&file)?;
    report::print(&counts, &symbols, options.top);
    Ok(())
}

/// Boots until the plugin has written its file, whose path it returns.
fn boot(options: &Options, kernel: &Path, initrd: &Path, stop: u64, dir: &Path) -> Result<PathBuf, String> {
    let failed = |what: &'static str| move |e: std::io::Error| format!("{what}: {e}");
    // QEMU runs as a user of its own.
    fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).map_err(failed("open the temporary directory"))?;
    let file = dir.join("counts");
    fs::write(&file, "").map_err(failed("make the file for the counts"))?;
    fs::set_permissions(&file, fs::Permissions::from_mode(0o666)).map_err(failed("open the file for the counts"))?;

    let arch = hypervisor::Arch::of_kernel(kernel).map_err(|e| e.to_string())?;
    let qemu = config::Config::default().qemu.locate_program(arch.qemu_program(), arch.qemu_package());
    let qemu = qemu.map_err(|e| e.to_string())?;
    progress("compiling the plugin");
    let plugin = plugin::build(&qemu, dir)?;
    let program = wrap(&qemu, &plugin, &file, stop, dir).map_err(failed("write the program in QEMU's place"))?;
    let mut settings = format!(
        "[hypervisor.qemu]\npath = {program:?}\nkernel = {kernel:?}\ninitrd = {initrd:?}\naccelerator = \"tcg\"\n\
         kernel_params = {:?}\ndefault_memory = {}\ndefault_vcpus = {}\n",
        options.kernel_params, options.memory, options.vcpus
    );
    if let Some(machine) = &options.machine {
        settings.push_str(&format!("machine_type = {machine:?}\n"));
    }

    progress("booting and counting");
    let bundle = Bundle::new(["true"]);
    let runtime = Runtime::kata_with(&settings);
    // It fails: the machine ends in the middle of its start.
    let output = runtime.run(["run", "--bundle", bundle.arg(), "boot"]);
    match fs::metadata(&file) {
        Ok(metadata) if metadata.len() > 0 => Ok(file),
        _ => Err(format!("the guest ended before the agent answered: {}", output.stderr)),
    }
}

/// A program that is QEMU with the plugin. QEMU's data files are looked for beside it.
fn wrap(qemu: &Path, plugin: &Path, counts: &Path, stop: u64, dir: &Path) -> std::io::Result<PathBuf> {
    let (bin, share) = (dir.join("bin"), dir.join("share"));
    fs::create_dir(&bin)?;
    fs::create_dir(&share)?;
    if let Some(prefix) = qemu.parent().and_then(Path::parent) {
        std::os::unix::fs::symlink(prefix.join("share/qemu"), share.join("qemu"))?;
    }
    let program = bin.join("qemu");
    let script = format!(
        "#!/bin/sh\nexec '{}' -icount shift=0,sleep=off -plugin '{},counts={},stop={stop:x}' \"$@\"\n",
        qemu.display(),
        plugin.display(),
        counts.display()
    );
    fs::write(&program, script)?;
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
    Ok(program)
}

fn find_map(kernel: &Path) -> Result<PathBuf, String> {
    let beside = kernel.with_file_name("System.map");
    let built = e2e::cache().join("guest-kernel").join(std::env::consts::ARCH).join("System.map");
    [&beside, &built].into_iter().find(|path| path.exists()).cloned().ok_or_else(|| {
        format!(
            "neither {} nor {} exists; build the kernel (make kernel) or name its System.map (--system-map)",
            beside.display(),
            built.display()
        )
    })
}
