//! What the guest's kernel and agent hold in a small guest, and how large the files are that it boots from.

use std::{path::PathBuf, time::Duration};

use e2e::{Bundle, Runtime};

use crate::{memory, progress};

/// What to boot.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// Guest kernel; the staged one unless told otherwise.
    #[arg(long)]
    kernel: Option<PathBuf>,
    /// Guest image; the staged one unless told otherwise.
    #[arg(long)]
    initrd: Option<PathBuf>,
    /// Memory of the guest, MiB.
    #[arg(long, default_value_t = 128)]
    memory: u32,
}

/// Boots a guest that idles, asks its kernel and the host, and prints.
///
/// # Errors
/// What could not be done, as a sentence.
pub fn run(options: &Options) -> Result<(), String> {
    let share = e2e::stage().join("share/kata-containers");
    let kernel = options.kernel.clone().unwrap_or_else(|| share.join("vmlinux.container"));
    let initrd = options.initrd.clone().unwrap_or_else(|| share.join("kata-containers-initrd.img"));
    let settings =
        format!("[hypervisor.qemu]\nkernel = {kernel:?}\ninitrd = {initrd:?}\ndefault_memory = {}\n", options.memory);

    progress("booting a guest that idles");
    let runtime = Runtime::kata_with(&settings);
    let bundle = Bundle::new(["sleep", "1000"]);
    runtime.ok(["run", "--detach", "--bundle", bundle.arg(), "idle"]);
    // The file server gives back the guest's pages after a second without requests.
    std::thread::sleep(Duration::from_secs(3));
    let meminfo = runtime.ok(["exec", "idle", "cat", "/proc/meminfo"]).text();
    let host = runtime.state_file("idle")["vmm"]["pid"].as_u64().map_or(0, memory::guest);
    runtime.ok(["delete", "--force", "idle"]);

    let given = u64::from(options.memory) * 1024;
    let field = |name: &str| {
        let line = meminfo.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim_start_matches(':').split_ascii_whitespace().next()?.parse::<u64>().ok()
    };
    let of = |name: &str| field(name).ok_or_else(|| format!("the guest's /proc/meminfo has no {name}: {meminfo}"));
    println!("memory of a guest of {} MiB that runs one sleep(1), KiB", options.memory);
    row("given to the guest", given);
    row("reserved by its kernel (not in MemTotal)", given.saturating_sub(of("MemTotal")?));
    row("used: given - MemAvailable", given.saturating_sub(of("MemAvailable")?));
    row("used: given - MemFree", given.saturating_sub(of("MemFree")?));
    for name in ["Cached", "Slab", "KernelStack", "PageTables", "Percpu", "AnonPages"] {
        row(&format!("of it {name}"), of(name)?);
    }
    row("touched, as the host sees it", host);
    println!("files, KiB");
    let compressed = kernel.with_file_name("vmlinuz.container");
    for path in [kernel, compressed, initrd] {
        if path.exists() {
            row(&path.display().to_string(), memory::size(&path));
        }
    }
    Ok(())
}

fn row(name: &str, kib: u64) {
    println!("  {name:<60} {kib:>9}");
}
