//! Runs tests with KVM on any machine: in one that QEMU emulates with AMD's virtualisation, a Debian with systemd, unified control groups and
//! containerd, into which the product is installed from its packages. docs/lab.md tells more.
//!
//! That machine is booted once and restored from then on. What a run brings comes on a disk that is plugged in afterwards;
//! commands and their output go over a virtio-serial port. There is no network.
#![allow(missing_docs)]

mod machine;
mod payload;
mod port;
mod qmp;
mod suites;
mod tally;

use std::{
    env, fs,
    io::Write,
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant},
};

use clap::{Parser, Subcommand};
use machine::{Machine, System};
use payload::{Places, Programs};
use suites::{Choice, Flavour, Suite};
use tally::{Reader, Tally};
use tokio::{process::Command, signal::unix};

/// What went wrong, in words for whoever started this.
type Result<T> = std::result::Result<T, String>;

/// Longest a suite may say nothing: a test says its name only when it is over.
const SILENCE: Duration = Duration::from_secs(3600);

/// Runs tests with KVM, in an emulated machine that has it.
#[derive(Debug, Parser)]
#[command(name = "kata-lab", args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    what: Option<What>,
    /// Flavours (vhost, plain) and suites to run; other words are parts of tests' names. All tests unless given.
    words: Vec<String>,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Runs a command as root in a fresh machine, and ends that.
    Exec {
        /// A directory that the machine has as /payload.
        #[arg(long)]
        payload: Option<PathBuf>,
        /// The flavour of the machine.
        #[arg(long, default_value = "vhost")]
        flavour: String,
        /// A line for a shell.
        command: String,
    },
    /// Measures in a fresh machine what `make bench` measures.
    Bench {
        /// What kata-bench is told.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
}

/// Tells of a step.
pub fn say(what: &str) {
    // Standard output is for what the machine says.
    eprintln!("==> {what}");
}

/// Runs a command that must succeed.
pub async fn succeed(command: &mut Command) -> Result<()> {
    let status = command.kill_on_drop(true).status().await;
    let name = command.as_std().get_program().to_string_lossy().into_owned();
    match status {
        Err(e) => Err(format!("start {name}: {e}")),
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("{name} failed ({status}); its reason is above")),
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    let work = async {
        match cli.what {
            None => run(&cli.words).await,
            Some(What::Exec { payload, flavour, command }) => exec(payload.as_deref(), &flavour, &command).await,
            Some(What::Bench { arguments }) => bench(&arguments).await,
        }
    };
    // Dropping the work ends what it started and removes what it made.
    let done = tokio::select! {
        done = work => done,
        signal = interrupted() => Err(signal.map_or_else(|e| format!("wait for signals: {e}"), |()| "interrupted".into())),
    };
    done.unwrap_or_else(|problem| {
        eprintln!("error: {problem}");
        ExitCode::FAILURE
    })
}

async fn interrupted() -> std::io::Result<()> {
    let mut terminate = unix::signal(unix::SignalKind::terminate())?;
    let mut hang_up = unix::signal(unix::SignalKind::hangup())?;
    tokio::select! {
        done = tokio::signal::ctrl_c() => done,
        _ = terminate.recv() => Ok(()),
        _ = hang_up.recv() => Ok(()),
    }
}

fn places() -> Result<Places> {
    let top = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let top = fs::canonicalize(&top).map_err(|e| format!("find {}: {e}", top.display()))?;
    let home = || {
        let own = env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
        own.or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cache"))).map(|cache| cache.join("kata"))
    };
    let cache =
        env::var_os("KATA_CACHE").map(PathBuf::from).or_else(home).ok_or("neither KATA_CACHE nor HOME is set")?;
    let output = env::var_os("CARGO_TARGET_DIR").map_or_else(|| top.join("target"), PathBuf::from).join("lab");
    Ok(Places { top, cache, output })
}

/// Restores a machine of a flavour. What it writes to its console goes into the directory.
async fn machine(system: &System, flavour: Flavour, logs: &Path) -> Result<Machine> {
    let begun = Instant::now();
    let mut machine = system.restore(&logs.join("console.log")).await?;
    machine.port.ok(flavour.set_up(), machine::SHORT).await?;
    say(&format!("{}: a machine, restored in {:.1} s", flavour.name(), begun.elapsed().as_secs_f64()));
    Ok(machine)
}

async fn exec(payload: Option<&Path>, flavour: &str, command: &str) -> Result<ExitCode> {
    let flavour = Flavour::ALL.into_iter().find(|known| known.name() == flavour);
    let flavour = flavour.ok_or("--flavour: vhost or plain is expected")?;
    let places = places()?;
    let system = System::prepare(&places.top).await?;
    let work = tempfile::tempdir().map_err(|e| format!("make a directory: {e}"))?;
    let mut machine = machine(&system, flavour, work.path()).await?;
    if let Some(tree) = payload {
        let image = work.path().join("payload");
        payload::make_disk(tree, &image).await?;
        machine.plug(&image).await?;
        // QEMU has it open.
        let _ = fs::remove_file(&image);
    }
    let status = machine.port.run(command, SILENCE, &mut show).await.map_err(with_console(work.path()))?;
    Ok(ExitCode::from(u8::try_from(status).unwrap_or(1)))
}

/// Adds to a problem the last lines of the machine's console, which goes with the directory.
fn with_console(logs: &Path) -> impl FnOnce(String) -> String {
    move |problem| format!("{problem}\n{}", machine::tail(&logs.join("console.log")))
}

async fn bench(arguments: &[String]) -> Result<ExitCode> {
    let places = places()?;
    let system = System::prepare(&places.top).await?;
    let logs = tempfile::tempdir().map_err(|e| format!("make a directory: {e}"))?;
    let mut machine = equipped(&system, &places, Flavour::Vhost, Programs::Bench, logs.path()).await?;
    let line = format!("{PLACE} tests/kata-bench{}", words(arguments));
    let status = machine.port.run(&line, SILENCE, &mut show).await.map_err(with_console(logs.path()))?;
    Ok(ExitCode::from(u8::try_from(status).unwrap_or(1)))
}

fn show(bytes: &[u8]) {
    let mut out = std::io::stdout().lock();
    // Where nobody listens any more the tests go on nevertheless.
    let _ = out.write_all(bytes).and_then(|()| out.flush());
}

async fn run(words: &[String]) -> Result<ExitCode> {
    let choice = Choice::of(words);
    let chosen: Vec<(Flavour, Vec<&Suite>)> = Flavour::ALL
        .into_iter()
        .map(|flavour| (flavour, choice.suites(flavour)))
        .filter(|(_, suites)| !suites.is_empty())
        .collect();
    let places = places()?;
    fs::create_dir_all(&places.output).map_err(|e| format!("create {}: {e}", places.output.display()))?;
    let system = System::prepare(&places.top).await?;
    let mut all = Tally::default();
    for (flavour, suites) in chosen {
        let logs = tempfile::Builder::new().prefix(&format!("{}.", flavour.name())).tempdir_in(&places.output);
        let logs = logs.map_err(|e| format!("make a directory in {}: {e}", places.output.display()))?;
        let tally = run_on(&system, &places, flavour, &suites, &choice.tests, logs.path()).await;
        if !matches!(tally, Ok(Tally { failed: 0, .. })) {
            eprintln!("{}: the logs are in {}", flavour.name(), logs.keep().display());
        }
        let tally = tally.map_err(|problem| format!("{}: {problem}", flavour.name()))?;
        all += tally;
    }
    if all == Tally::default() {
        return Err(format!("no test has {:?} in its name", choice.tests.join(" ")));
    }
    println!("{} passed, {} failed", all.passed, all.failed);
    Ok(if all.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// A machine with the product and what is run there.
async fn equipped(
    system: &System,
    places: &Places,
    flavour: Flavour,
    programs: Programs<'_>,
    logs: &Path,
) -> Result<Machine> {
    fs::create_dir_all(&places.output).map_err(|e| format!("create {}: {e}", places.output.display()))?;
    let (work, image) = payload::disk(places, programs).await?;
    let mut machine = machine(system, flavour, logs).await?;
    machine.plug(&image).await?;
    // QEMU has it open.
    drop(work);
    say("installing the product from its packages");
    machine.port.ok("dpkg --install /payload/deb/*.deb 2>&1", machine::SHORT).await?;
    Ok(machine)
}

/// Has the kernel keep the last exits of guests before one faults three times over, of which its VMM only sees that it restarts, and the places
/// of all such faults: a restart that the guest wanted has another place than an accident.
const WATCH: &str = "cd /sys/kernel/tracing && echo 512 >buffer_size_kb && mkdir instances/faults && \
                     echo 'snapshot if exit_reason == 0x7f' >events/kvm/kvm_exit/trigger && \
                     for event in kvm_exit kvm_inj_exception kvm_inj_virq; do echo 1 >events/kvm/$event/enable; done && \
                     cd instances/faults/events/kvm/kvm_exit && echo 'exit_reason == 0x7f' >filter && echo 1 >enable";
/// Tells of what [`WATCH`] has kept.
const WATCHED: &str = "cd /sys/kernel/tracing && cat instances/faults/trace snapshot";

/// A machine with suites, which keeps what happens to guests.
async fn watched(
    system: &System,
    places: &Places,
    flavour: Flavour,
    suites: &[&Suite],
    logs: &Path,
) -> Result<Machine> {
    let mut machine = equipped(system, places, flavour, Programs::Suites(suites), logs).await?;
    machine.port.ok(WATCH, machine::SHORT).await?;
    Ok(machine)
}

/// Runs suites on a machine; if that ends, the others on another one.
async fn run_on(
    system: &System,
    places: &Places,
    flavour: Flavour,
    suites: &[&Suite],
    tests: &[String],
    logs: &Path,
) -> Result<Tally> {
    let mut machine = watched(system, places, flavour, suites, logs).await?;
    let log = logs.join("tests.log");
    let mut log = fs::File::create(&log).map_err(|e| format!("create {}: {e}", log.display()))?;
    let mut all = Tally::default();
    for (at, suite) in suites.iter().enumerate() {
        say(&format!("{}: {} ({})", flavour.name(), suite.name, suite.package));
        let mut reader = Reader::default();
        let mut sink = |bytes: &[u8]| {
            show(bytes);
            let _ = log.write_all(bytes);
            reader.feed(bytes);
        };
        let status = machine.port.run(&line(suite, tests), SILENCE, &mut sink).await;
        let tally = reader.end(*status.as_ref().unwrap_or(&1));
        if let Err(problem) = status {
            // What is lost is this suite, not those after it.
            let console = logs.join(format!("{}.console.log", suite.program()));
            fs::rename(logs.join("console.log"), &console).map_err(|e| format!("name {}: {e}", console.display()))?;
            eprintln!("{}: {}: {problem}\n{}", flavour.name(), suite.name, machine::tail(&console));
            if at + 1 < suites.len() {
                machine = watched(system, places, flavour, &suites[at + 1..], logs).await?;
            }
        } else if tally.failed != 0 {
            let name = logs.join(format!("{}.kvm.log", suite.program()));
            let mut kept = fs::File::create(&name).map_err(|e| format!("create {}: {e}", name.display()))?;
            machine.port.run(WATCHED, machine::SHORT, &mut |bytes| drop(kept.write_all(bytes))).await?;
        }
        all += tally;
    }
    Ok(all)
}

/// Where what is brought along finds the rest of it.
const PLACE: &str = "cd /payload && KATA_STAGE=/usr KATA_CACHE=/payload/cache KATA_ROOTFS=/payload/rootfs \
                     KATA_CONF_FILE=/payload/lab.toml KATA_WATCHER=/payload/tests/watcher";

/// Words for a shell.
fn words(texts: &[impl AsRef<str>]) -> String {
    texts.iter().map(|text| format!(" '{}'", text.as_ref().replace('\'', r"'\''"))).collect()
}

/// The command that runs a suite.
fn line(suite: &Suite, tests: &[String]) -> String {
    let chosen = if tests.is_empty() { words(suite.tests) } else { words(tests) };
    let skipped: String = suite.skipped.iter().map(|text| format!(" --skip{}", words(&[text]))).collect();
    format!("{PLACE} tests/{} --test-threads 1{chosen}{skipped}", suite.program())
}
