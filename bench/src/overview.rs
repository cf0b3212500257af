//! What runc and this runtime need for a start, an exec and a delete, in one run and alternating; where the time of a start
//! goes; and what an idle sandbox holds.

use std::{
    fs,
    io::Read,
    path::PathBuf,
    process::Stdio,
    time::{Duration, Instant},
};

use e2e::{Bundle, Runtime};
use sandbox::timeline::Timeline;

use crate::{
    baseline, memory, progress,
    report::{Report, median},
};

/// Measures it all and prints it.
pub fn run(runs: usize) {
    let mut report = Report::default();
    starts(runs, &mut report);
    inside(runs, &mut report);
    sizes(&mut report);
    report.print();
}

/// From the start of `run` until the first byte of the container's output.
fn first_output(runtime: &Runtime, bundle: &Bundle) -> Duration {
    let begun = Instant::now();
    let mut child = runtime
        .command(["run", "--bundle", bundle.arg(), "start"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut byte = [0];
    child.stdout.take().unwrap().read_exact(&mut byte).expect("the container writes");
    let took = begun.elapsed();
    child.wait().unwrap();
    took
}

fn starts(runs: usize, report: &mut Report) {
    let bundle = Bundle::new(["echo", "here"]);
    let (kata, runc) = (Runtime::kata(), Runtime::runc());
    let mut config = config::Config::default();
    let share = e2e::stage().join("share/kata-containers");
    let kernel = share.join("vmlinux.container");
    config.qemu.kernel = Some(kernel.clone());
    config.qemu.initrd = Some(share.join("kata-containers-initrd.img"));
    let memory = u64::from(config.qemu.default_memory);
    let (mut ours, mut theirs, mut bare) = (Vec::new(), Vec::new(), Vec::new());
    for run in 1..=runs {
        progress(&format!("start {run} of {runs}"));
        bare.push(baseline::boot(&config, &kernel, memory).expect("the bare kernel boots"));
        ours.push(first_output(&kata, &bundle));
        theirs.push(first_output(&runc, &bundle));
    }
    let (ours, theirs, bare) = (median(&mut ours), median(&mut theirs), median(&mut bare));
    report.head("median of milliseconds", "kata", "runc");
    report.compare("start to first output", ours, theirs);
    report.head("", "kata", "bare");
    report.compare("start / bare kernel, empty init", ours, bare);
}

fn timed(mut action: impl FnMut(), runs: usize) -> Duration {
    let mut times: Vec<Duration> = (0..runs)
        .map(|_| {
            let begun = Instant::now();
            action();
            begun.elapsed()
        })
        .collect();
    median(&mut times)
}

fn inside(runs: usize, report: &mut Report) {
    let bundle = Bundle::new(["sleep", "1000"]);
    let (kata, runc) = (Runtime::kata(), Runtime::runc());
    for runtime in [&kata, &runc] {
        runtime.ok(["run", "--detach", "--bundle", bundle.arg(), "idle"]);
    }
    progress("exec");
    let execs = |runtime: &Runtime| timed(|| drop(runtime.ok(["exec", "idle", "true"])), runs * 3);
    // The first fills the guest's page cache.
    execs(&kata);
    execs(&runc);
    let (ours, theirs) = (execs(&kata), execs(&runc));
    report.compare("exec of true", ours, theirs);

    phases(&kata, report);
    idle(&kata, report);

    progress("delete");
    let delete = |runtime: &Runtime| {
        let mut times: Vec<Duration> = (0..runs)
            .map(|_| {
                runtime.ok(["run", "--detach", "--bundle", bundle.arg(), "delete"]);
                let begun = Instant::now();
                runtime.ok(["delete", "--force", "delete"]);
                begun.elapsed()
            })
            .collect();
        median(&mut times)
    };
    let (ours, theirs) = (delete(&kata), delete(&runc));
    report.compare("delete --force", ours, theirs);
    for runtime in [&kata, &runc] {
        runtime.ok(["delete", "--force", "idle"]);
    }
}

/// Where the time of a start goes, from the idle sandbox's own timeline.
fn phases(kata: &Runtime, report: &mut Report) {
    let timeline = Timeline::load(&kata.root().join("idle")).expect("a sandbox has a timeline");
    report.phases("one start", &timeline);
    let picture = PathBuf::from("target/timeline.svg");
    fs::write(&picture, timeline.svg()).expect("target/ can be written to");
    report.line(format!("  drawn in {}", picture.display()));
}

/// Memory of every process of an idle sandbox.
fn idle(kata: &Runtime, report: &mut Report) {
    std::thread::sleep(Duration::from_secs(2));
    let state = kata.state_file("idle");
    report.line("");
    report.line("memory of an idle sandbox, KiB: PSS, private");
    let mut host = 0;
    let processes = [
        ("sandbox daemon", &state["daemon"]["pid"]),
        ("virtio-fs server", &state["virtiofs"]["pid"]),
        ("kata-shim", &state["pid"]),
        ("QEMU", &state["vmm"]["pid"]),
    ];
    for (name, pid) in processes {
        let Some(pid) = pid.as_u64() else { continue };
        let held = memory::of(pid);
        report.line(format!("  {name:<32} {:>9} {:>9}", held.pss, held.private));
        if name == "QEMU" {
            report.line(format!("  {:<32} {host:>9}", "all but QEMU"));
            report.line(format!("  {:<32} {:>9}", "guest memory touched", memory::guest(pid)));
        }
        host += held.pss;
    }
}

fn sizes(report: &mut Report) {
    report.line("");
    report.line("sizes, KiB");
    let stage = e2e::stage();
    for name in [
        "bin/kata-runtime",
        "share/kata-containers/vmlinux.container",
        "share/kata-containers/kata-containers-initrd.img",
    ] {
        report.line(format!("  {name:<52} {:>9}", memory::size(&stage.join(name))));
    }
    let target =
        stage.parent().map(|dir| dir.join(format!("{}-unknown-linux-gnu/release/kata-agent", std::env::consts::ARCH)));
    if let Some(agent) = target.filter(|path| path.exists()) {
        report.line(format!("  {:<52} {:>9}", "kata-agent, stripped", memory::size(&agent)));
    }
}
