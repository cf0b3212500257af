//! What containerd's users wait for, through runc's runtime and ours: containers of `ctr`, pods of the Container Runtime Interface, and the
//! files and the network of what runs in them. Both are run on one containerd, alternating.

mod inside;
mod pods;

use std::{
    io::Read,
    process::Stdio,
    time::{Duration, Instant},
};

use engines::{Containerd, Handler, Version, containerd::run_arguments, cri::Node};

use crate::{
    progress,
    report::{Report, median},
};

/// What to measure on.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// Samples to take the median of.
    #[arg(default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    /// containerd's version: 1.6, 1.7 or 2.1.
    #[arg(long, default_value = "1.7", value_parser = version)]
    containerd: Version,
    /// Pods that are started at once.
    #[arg(long, default_value_t = 20)]
    burst: usize,
    /// Bursts to take the median of; 0 leaves them out.
    #[arg(long, default_value_t = 1)]
    bursts: u32,
    /// Only what contains one of these words: containers, pods, burst, files, network.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
}

fn version(text: &str) -> Result<Version, String> {
    match text {
        "1.6" => Ok(Version::V1_6),
        "1.7" => Ok(Version::V1_7),
        "2.1" => Ok(Version::V2_1),
        _ => Err("expected 1.6, 1.7 or 2.1".into()),
    }
}

const MILLISECONDS: &str = "median of milliseconds";

/// Ours is the first.
pub(crate) const HANDLERS: [Handler; 2] = [Handler::Kata, Handler::Runc];

/// Samples of one thing.
#[derive(Default)]
pub(crate) struct Samples(pub(crate) [Vec<f64>; 2]);

impl Samples {
    /// Measures both runtimes, one after the other.
    fn take(&mut self, mut measure: impl FnMut(Handler) -> Duration) {
        for (samples, handler) in self.0.iter_mut().zip(HANDLERS) {
            samples.push(measure(handler).as_secs_f64() * 1e3);
        }
    }

    /// Adds the medians to the report.
    pub(crate) fn tell(&mut self, what: &str, report: &mut Report) {
        let [ours, theirs] = &mut self.0;
        report.figures(what, median(ours), median(theirs));
    }
}

/// Measures it all and prints it.
///
/// # Errors
/// What could not be done, as a sentence.
pub fn run(options: &Options) -> Result<(), String> {
    // It would be skipped by the tests; here there is nothing to compare without it.
    let shim = e2e::stage().join("bin/containerd-shim-kata-v2");
    if !shim.exists() {
        return Err(format!("{} does not exist; run `make build` first", shim.display()));
    }
    let wanted = |what: &str| options.only.is_empty() || options.only.iter().any(|only| only == what);
    let probe = if wanted("files") || wanted("network") { Some(inside::probe()?) } else { None };
    // Each part is printed when it is finished: what takes longest comes last, and may fail where others have the machine.
    let mut report = Report::default();
    progress("starting containerd");
    let engine = Containerd::start(options.containerd);
    if wanted("containers") {
        report.head(MILLISECONDS, "kata", "runc");
        containers(&engine, options.runs, &mut report);
        report.print();
    }
    let nodes = HANDLERS.map(|handler| Node::new(&engine, handler));
    if wanted("pods") {
        report.head(MILLISECONDS, "kata", "runc");
        pods::one(&nodes, options.runs, &mut report)?;
        report.print();
    }
    if let Some(probe) = probe {
        report.head("median of microseconds", "kata", "runc");
        let what = inside::What { files: wanted("files"), network: wanted("network") };
        inside::measure(&nodes, &probe, what, options.runs, &mut report)?;
        report.print();
    }
    if wanted("burst") && options.bursts > 0 {
        report.head(MILLISECONDS, "kata", "runc");
        pods::burst(&nodes, options.burst, options.bursts, &mut report)?;
        report.print();
    }
    Ok(())
}

fn containers(engine: &Containerd, runs: u32, report: &mut Report) {
    let (mut starts, mut ends) = (Samples::default(), Samples::default());
    for run in 1..=runs {
        progress(&format!("start {run} of {runs}"));
        let mut whole = Vec::new();
        starts.take(|handler| {
            let begun = Instant::now();
            let first = first_output(engine, handler);
            whole.push(begun.elapsed());
            first
        });
        let mut whole = whole.into_iter();
        ends.take(|_| whole.next().unwrap_or_default());
    }
    starts.tell("ctr run, to first output", report);
    ends.tell("ctr run --rm, to its end", report);

    let name = |handler: Handler| format!("idle-{}", handler.name());
    for handler in HANDLERS {
        let started = engine.run(handler, &["--detach"], &name(handler), &["sleep", "1000"]);
        assert_eq!(started.code, 0, "{}: {}\n{}", handler.name(), started.stderr, engine.log());
    }
    progress("exec");
    let mut execs = Samples::default();
    for run in 0..=runs * 3 {
        let execute = |handler: Handler| {
            let id = format!("exec-{run}");
            let begun = Instant::now();
            engine.ctr_ok(["tasks", "exec", "--exec-id", &id, &name(handler), "true"]);
            begun.elapsed()
        };
        if run == 0 {
            // It fills the guest's page cache.
            HANDLERS.iter().for_each(|handler| _ = execute(*handler));
        } else {
            execs.take(execute);
        }
    }
    execs.tell("ctr tasks exec of true", report);
    HANDLERS.iter().for_each(|handler| engine.remove(&name(*handler)));
}

/// From the start of `ctr run` until the first byte of the container's output; returns when the container is gone.
fn first_output(engine: &Containerd, handler: Handler) -> Duration {
    let id = format!("start-{}", handler.name());
    let begun = Instant::now();
    let mut command = engine.ctr_command(run_arguments(handler, &["--rm"], &id, &["echo", "here"]));
    let mut child = command.stdout(Stdio::piped()).spawn().expect("start ctr");
    let mut byte = [0];
    let read = child.stdout.take().expect("ctr's output is a pipe").read_exact(&mut byte);
    let took = begun.elapsed();
    let status = child.wait().expect("wait for ctr");
    assert!(read.is_ok() && status.success(), "{}: {status}: {}", handler.name(), engine.log());
    took
}
