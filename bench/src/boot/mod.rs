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
use engines::{Containerd, Handler, Version, cri::Node};
use symbols::Symbols;

use crate::progress;

/// The kernel's function for a write(2) on a port of virtio-serial. At its first call the agent's answer is ready.
const MARK: &str = "port_fops_write";

/// What to boot.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// Machine type: q35 or microvm.
    #[arg(long, default_value = "q35")]
    machine: String,
    /// QEMU's program, one with plugins; the one that the runtime would choose from here unless told otherwise.
    #[arg(long)]
    qemu: Option<PathBuf>,
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
    /// Boot the machine of a pod of containerd: with an interface, and with all prepared that may be plugged later.
    #[arg(long)]
    pod: bool,
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
    let mut chosen = config::Config::default().qemu;
    chosen.path = options.qemu.clone();
    let qemu = chosen.locate_program(arch.qemu_program(), arch.qemu_package(), false).map_err(|e| e.to_string())?;
    progress("compiling the plugin");
    let plugin = plugin::build(&qemu, dir)?;
    let program = wrap(&qemu, &plugin, &file, stop, dir).map_err(failed("write the program in QEMU's place"))?;
    let settings = format!(
        "[hypervisor.qemu]\npath = {program:?}\nkernel = {kernel:?}\ninitrd = {initrd:?}\naccelerator = \"tcg\"\n\
         machine_type = {:?}\nkernel_params = {:?}\ndefault_memory = {}\n",
        options.machine, options.kernel_params, options.memory
    );

    progress("booting and counting");
    // It fails either way: the machine ends in the middle of its start.
    let failure = if options.pod { start_pod(&settings, dir)? } else { start_container(&settings) };
    match fs::metadata(&file) {
        Ok(metadata) if metadata.len() > 0 => Ok(file),
        _ => Err(format!("the guest ended before the agent answered: {failure}")),
    }
}

fn start_container(settings: &str) -> String {
    let bundle = Bundle::new(["true"]);
    Runtime::kata_with(settings).run(["run", "--bundle", bundle.arg(), "boot"]).stderr
}

fn start_pod(settings: &str, dir: &Path) -> Result<String, String> {
    let configuration = dir.join("configuration.toml");
    fs::write(&configuration, settings).map_err(|e| format!("write {}: {e}", configuration.display()))?;
    let options = format!(
        "[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.kata.options]\nConfigPath = {configuration:?}\n"
    );
    let engine = Containerd::configured(Version::V1_7, &options);
    let node = Node::new(&engine, Handler::Kata);
    let failure = node.try_pod("boot", &serde_json::json!({})).err();
    Ok(failure.map(|failure| failure.to_string()).unwrap_or_default())
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
