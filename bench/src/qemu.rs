//! What QEMU itself costs: the distribution's beside the trimmed one, in one run and alternating.

use std::{
    collections::BTreeSet,
    fs,
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc,
    time::{Duration, Instant},
};

use e2e::{Bundle, Runtime};

use crate::{memory, progress};

/// How long QEMU may take to say that it is there.
const DEADLINE: Duration = Duration::from_secs(60);

/// One program, and what was measured of it.
struct Candidate {
    name: &'static str,
    program: PathBuf,
    empty: Vec<Duration>,
    machine: Vec<Duration>,
}

/// What a QEMU holds that has a machine but has not yet run an instruction of the guest's; KiB.
struct Held {
    rss: u64,
    pss: u64,
    private: u64,
    /// The program and every library it has mapped, on disk.
    files: u64,
    libraries: usize,
}

/// Measures `runs` starts of each.
pub fn run(runs: usize) -> Result<(), String> {
    let ours = e2e::stage().join(format!("lib/kata-containers/qemu/bin/{}", name()));
    if !ours.exists() {
        return Err(format!("{} does not exist; run `make qemu build` first", ours.display()));
    }
    let mut candidates = [
        candidate("the distribution's", in_path().ok_or("no QEMU of the distribution in PATH")?),
        candidate("trimmed", ours),
    ];
    let kvm_only = e2e::stage().join(format!("lib/kata-containers/qemu-kvm/bin/{}", name()));
    for run in 1..=runs {
        progress(&format!("start {run} of {runs}"));
        for candidate in &mut candidates {
            candidate.empty.push(Started::new(&candidate.program, &["-machine", "none"])?.took);
            candidate.machine.push(Started::new(&candidate.program, &q35(&candidate.program))?.took);
        }
    }
    let mut lines = vec![format!("{:<48} {:>18} {:>10} {:>7}", "", "the distribution's", "trimmed", "ratio")];
    let mut compare = |what: &str, [theirs, ours]: [f64; 2]| {
        lines.push(format!("{what:<48} {theirs:>18.1} {ours:>10.1} {:>7.2}", ours / theirs));
    };
    let milliseconds = |times: &mut [Duration]| {
        times.sort();
        times[times.len() / 2].as_secs_f64() * 1e3
    };
    compare("to QMP's greeting, no machine, ms", candidates.each_mut().map(|c| milliseconds(&mut c.empty)));
    compare(
        "to QMP's greeting, q35 before its first step, ms",
        candidates.each_mut().map(|c| milliseconds(&mut c.machine)),
    );
    let mut held = Vec::new();
    for candidate in &candidates {
        // Beside another one, as on a node: the program's own pages are then shared and not private.
        let neighbour = Started::new(&candidate.program, &q35(&candidate.program))?;
        held.push(Started::new(&candidate.program, &q35(&candidate.program))?.held()?);
        drop(neighbour);
    }
    let pair = |of: fn(&Held) -> u64| [of(&held[0]) as f64, of(&held[1]) as f64];
    compare("RSS of that machine, KiB", pair(|h| h.rss));
    compare("PSS of that machine, KiB", pair(|h| h.pss));
    compare("private memory of that machine, KiB", pair(|h| h.private));
    compare("the program and its libraries on disk, KiB", pair(|h| h.files));
    compare("libraries", pair(|h| h.libraries as u64));
    let idle = [idle(&candidates[0].program)?, idle(&candidates[1].program)?];
    compare("an idle sandbox: private but the guest's, KiB", idle.map(|kib| kib as f64));
    if kvm_only.exists() {
        lines.push(format!("{:<48} {:>29}", "the program without TCG on disk, KiB", memory::size(&kvm_only)));
    }
    for candidate in &candidates {
        lines.push(format!("{}: {}, {}", candidate.name, candidate.program.display(), version(&candidate.program)?));
    }
    println!("\n{}", lines.join("\n"));
    Ok(())
}

fn candidate(name: &'static str, program: PathBuf) -> Candidate {
    Candidate { name, program, empty: Vec::new(), machine: Vec::new() }
}

fn name() -> String {
    format!("qemu-system-{}", std::env::consts::ARCH)
}

fn in_path() -> Option<PathBuf> {
    std::env::split_paths(&std::env::var_os("PATH")?)
        .map(|directory| directory.join(name()))
        .find(|path| path.is_file())
}

fn version(program: &Path) -> Result<String, String> {
    let output = Command::new(program).arg("--version").output().map_err(|e| format!("{}: {e}", program.display()))?;
    Ok(String::from_utf8_lossy(&output.stdout).lines().next().unwrap_or_default().to_owned())
}

/// The machine that the runtime uses, as far as it does not depend on a guest.
fn q35(program: &Path) -> Vec<&'static str> {
    let mut arguments = vec![
        "-machine",
        "q35,sata=off,smbus=off,usb=off,vmport=off,graphics=off,i8042=off,smm=off",
        "-accel",
        "tcg,tb-size=128",
        "-cpu",
        "max",
        "-m",
        "128M",
        "-device",
        "virtio-serial-pci",
        "-sandbox",
        "on",
    ];
    if program.parent().and_then(Path::parent).is_some_and(|prefix| prefix.join("share/qemu/qboot.rom").is_file()) {
        arguments.extend(["-bios", "qboot.rom"]);
    }
    arguments
}

/// A QEMU that has greeted.
struct Started {
    child: Child,
    took: Duration,
}

impl Started {
    fn new(program: &Path, arguments: &[&str]) -> Result<Self, String> {
        let failed = |what: &str| format!("{} {}: {what}", program.display(), arguments.join(" "));
        let begun = Instant::now();
        let mut child = Command::new(program)
            .args(["-nodefaults", "-no-user-config", "-display", "none", "-S", "-qmp", "stdio"])
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| failed(&error.to_string()))?;
        let stdout = child.stdout.take().ok_or_else(|| failed("no output"))?;
        let (told, greeting) = mpsc::channel();
        std::thread::spawn(move || {
            let mut line = String::new();
            let read = BufReader::new(stdout).read_line(&mut line);
            let _nobody_waits = told.send((line, read));
        });
        let heard = greeting.recv_timeout(DEADLINE);
        let started = Self { child, took: begun.elapsed() };
        match heard {
            Ok((line, Ok(_))) if line.contains("QMP") => Ok(started),
            Ok((line, _)) => Err(failed(&format!("it said {line:?} and not QMP's greeting"))),
            Err(_) => Err(failed(&format!("no greeting within {} s", DEADLINE.as_secs()))),
        }
    }

    fn held(mut self) -> Result<Held, String> {
        // Only after this has QEMU's main loop begun, and all that belongs to a start has been touched.
        let stdin = self.child.stdin.as_mut().ok_or("QEMU has no input")?;
        stdin.write_all(b"{\"execute\":\"qmp_capabilities\"}\n").map_err(|e| format!("QEMU takes no command: {e}"))?;
        std::thread::sleep(Duration::from_millis(500));
        let pid = u64::from(self.child.id());
        let maps = fs::read_to_string(format!("/proc/{pid}/maps")).map_err(|e| format!("QEMU is gone: {e}"))?;
        let files: BTreeSet<&str> = maps
            .lines()
            .filter_map(|line| line.split_ascii_whitespace().nth(5))
            .filter(|path| path.starts_with('/'))
            .collect();
        let files: Vec<&Path> = files.into_iter().map(Path::new).filter(|path| path.is_file()).collect();
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let rss =
            status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.split_ascii_whitespace().next()?.parse().ok());
        let memory = memory::of(pid);
        Ok(Held {
            rss: rss.unwrap_or(0),
            pss: memory.pss,
            private: memory.private,
            files: files.iter().map(|path| memory::size(path)).sum(),
            libraries: files.len().saturating_sub(1),
        })
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _gone = self.child.wait();
    }
}

/// Private memory, KiB, of the QEMU of a sandbox that does nothing, without the memory that the guest has touched.
fn idle(program: &Path) -> Result<u64, String> {
    progress(&format!("idle sandbox, {}", program.display()));
    let kata = Runtime::kata_with(&format!("[hypervisor.qemu]\npath = {:?}\n", program.display().to_string()));
    let bundle = Bundle::new(["sleep", "1000"]);
    kata.ok(["run", "--detach", "--bundle", bundle.arg(), "idle"]);
    std::thread::sleep(Duration::from_secs(2));
    let pid = kata.state_file("idle")["vmm"]["pid"].as_u64().ok_or("the sandbox's state names no QEMU")?;
    let (held, guest) = (memory::of(pid), memory::guest(pid));
    kata.ok(["delete", "--force", "idle"]);
    Ok(held.private.saturating_sub(guest))
}
