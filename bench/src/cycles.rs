//! Over and over, and many at once: nothing may be left, and what a neighbour holds that lives all the time may not grow.

use std::{
    fs,
    process::Command,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};

use e2e::{Background, Bundle, Runtime, Snapshot};

use crate::{memory, progress};

/// How often, and how many at a time.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// Sandboxes that are created, started and deleted.
    #[arg(long, default_value_t = 1000)]
    cycles: usize,
    /// How many of them are under way at a time.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..))]
    workers: u16,
    /// Sandboxes that are started at once and live together.
    #[arg(long, default_value_t = 50)]
    at_once: usize,
    /// Containers that come and go in one machine, each with an exec.
    #[arg(long, default_value_t = 1000)]
    containers: usize,
}

/// Memory that may come and go without being growth, KiB: arenas of the allocator, page tables. Of what was held before it is a twentieth:
/// an emulating QEMU keeps translated code, and begins anew now and then.
const SLACK: u64 = 512;
/// After how many hundredths of the cycles there is a line each.
const LINES: [usize; 5] = [0, 10, 40, 70, 100];
const IDLE: [&str; 2] = ["sleep", "100000"];
/// How long one of many that start at once may take.
const PATIENCE: Duration = Duration::from_secs(600);
const NEIGHBOUR: &str = "neighbour";
/// The neighbour's processes, as its state file and the table name them.
const PROCESSES: [(&str, &str); 3] = [("daemon", "daemon"), ("virtiofs", "virtio-fs"), ("vmm", "QEMU")];

/// Runs it all and prints a table of each.
///
/// # Errors
/// What failed, is left or has grown, as sentences.
pub fn run(options: &Options) -> Result<(), String> {
    let bench = Bench::new();
    let before = bench.snapshot();
    let mut problems = Vec::new();
    if options.cycles > 0 {
        let bundles = bench.bundles(options.workers.into());
        let cycle = |worker: usize, id: &str| {
            bench.runtime.ok(["create", "--bundle", bundles[worker].arg(), id]);
            bench.runtime.ok(["start", id]);
            bench.runtime.ok(["delete", "--force", id]);
        };
        let what = format!("sandboxes, {} at a time", options.workers);
        problems.extend(bench.repeat(&what, options.cycles, options.workers, cycle)?);
        problems.extend(bench.left(&before, &what));
    }
    if options.at_once > 0 {
        bench.at_once(options.at_once)?;
        problems.extend(bench.left(&before, "sandboxes at once"));
    }
    if options.containers > 0 {
        let beside = bench.beside();
        let cycle = |_, id: &str| {
            bench.runtime.ok(["run", "--detach", "--bundle", beside.arg(), id]);
            bench.runtime.ok(["exec", id, "true"]);
            bench.runtime.ok(["delete", "--force", id]);
        };
        let what = "containers of the neighbour's machine, each with an exec";
        problems.extend(bench.repeat(what, options.containers, 1, cycle)?);
        problems.extend(bench.left(&before, what));
    }
    if problems.is_empty() {
        println!("\nnothing is left, and nothing has grown");
        return Ok(());
    }
    Err(problems.join("\n"))
}

/// A runtime with a neighbour that lives all the time.
struct Bench {
    runtime: Runtime,
    prefix: String,
}

/// What there is after some cycles. Memory is in KiB.
#[derive(Debug, Clone, Copy)]
struct Sample {
    done: usize,
    /// Of the neighbour's processes what no other has and no file holds; so without its guest's memory.
    private: [u64; 3],
    descriptors: [usize; 3],
    /// What its guest has ever touched.
    guest: u64,
    /// What the host's kernel allocates in small pieces. Whatever else runs here is in it.
    slab: u64,
}

impl Bench {
    fn new() -> Self {
        // Where guests are emulated, many at once take their time.
        let runtime = Runtime::kata_with(&format!("[agent.kata]\ndial_timeout = {}\n", PATIENCE.as_secs()));
        let bundle = Bundle::new(IDLE);
        runtime.ok(["run", "--detach", "--bundle", bundle.arg(), NEIGHBOUR]);
        Self { runtime, prefix: format!("cycle-{}", std::process::id()) }
    }

    /// So many bundles, each with a cgroup of its own.
    fn bundles(&self, count: usize) -> Vec<Bundle> {
        let mut bundles: Vec<Bundle> = (0..count).map(|_| Bundle::new(IDLE)).collect();
        for (number, bundle) in bundles.iter_mut().enumerate() {
            bundle.cgroup(&format!("/{}-{number}", self.prefix));
        }
        bundles
    }

    fn snapshot(&self) -> [Snapshot; 2] {
        let root = self.runtime.root();
        [&self.prefix, &root.display().to_string()].map(|mine| Snapshot::take(mine, &root))
    }

    fn left(&self, before: &[Snapshot; 2], what: &str) -> Option<String> {
        let after = self.snapshot();
        (after != *before).then(|| format!("{what}: the host holds {after:?} instead of {before:?}"))
    }

    fn sample(&self, done: usize) -> Sample {
        // The file server gives back the guest's pages after a second without requests.
        thread::sleep(Duration::from_secs(2));
        let state = self.runtime.state_file(NEIGHBOUR);
        let pids = PROCESSES.map(|(key, _)| state[key]["pid"].as_u64().unwrap_or_default());
        Sample {
            done,
            private: pids.map(memory::anonymous),
            descriptors: pids.map(|pid| fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count)),
            guest: memory::guest(pids[2]),
            slab: memory::slab(),
        }
    }

    /// Does something so many times, each time with another name, prints what there was meanwhile, and gives what has grown.
    fn repeat(
        &self,
        what: &str,
        count: usize,
        workers: u16,
        cycle: impl Fn(usize, &str) + Sync,
    ) -> Result<Vec<String>, String> {
        let next = AtomicUsize::new(0);
        let mut samples = Vec::new();
        for hundredths in LINES {
            let end = count * hundredths / 100;
            progress(&format!("{what}: to {end} of {count}"));
            let fine = thread::scope(|scope| {
                let (next, cycle) = (&next, &cycle);
                let work = |worker| {
                    move || {
                        while let Ok(number) =
                            next.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| (n < end).then_some(n + 1))
                        {
                            cycle(worker, &format!("{}-{number}", self.prefix));
                        }
                    }
                };
                let threads: Vec<_> = (0..usize::from(workers)).map(|worker| scope.spawn(work(worker))).collect();
                threads.into_iter().map(thread::ScopedJoinHandle::join).filter(Result::is_err).count() == 0
            });
            if !fine {
                return Err(format!("{what}: one of them failed; see above"));
            }
            samples.push(self.sample(end));
        }
        Ok(tell(what, &samples))
    }

    /// Starts so many sandboxes at once, has each answer when all are up, and deletes them at once.
    fn at_once(&self, count: usize) -> Result<(), String> {
        println!("\n{count} sandboxes at once");
        let bundles = self.bundles(count);
        let all = |what: &str, args: &(dyn Fn(&Bundle, &str) -> Vec<String> + Sync)| {
            progress(&format!("{count} sandboxes at once: {what}"));
            let begun = Instant::now();
            let failed: Vec<String> = thread::scope(|scope| {
                let start = |(number, bundle)| {
                    let command = self.runtime.command(args(bundle, &format!("{}-{number}", self.prefix)));
                    scope.spawn(move || finished(command))
                };
                let threads: Vec<_> = bundles.iter().enumerate().map(start).collect();
                threads.into_iter().filter_map(|thread| thread.join().unwrap_or(Some("it panicked".into()))).collect()
            });
            println!("  {what:<10} {:>8} ms", begun.elapsed().as_millis());
            let Some(first) = failed.first() else { return Ok(()) };
            Err(format!("{what} failed for {} of {count}, the first: {first}", failed.len()))
        };
        let owned = |args: &[&str]| args.iter().map(|arg| (*arg).to_owned()).collect();
        all("run", &|bundle, id| owned(&["run", "--detach", "--bundle", bundle.arg(), id]))?;
        all("exec", &|_, id| owned(&["exec", id, "true"]))?;
        all("delete", &|_, id| owned(&["delete", "--force", id]))
    }

    /// A bundle whose container goes into the neighbour's machine.
    fn beside(&self) -> Bundle {
        let pid = self.runtime.state_of(NEIGHBOUR)["pid"].clone();
        let mut bundle = Bundle::new(IDLE);
        bundle.join("network", &format!("/proc/{pid}/ns/net"));
        bundle
    }
}

/// Why a command failed, if it did.
fn finished(mut command: Command) -> Option<String> {
    match Background::start(&mut command).finish_or_kill(PATIENCE) {
        Some(output) if output.code == 0 => None,
        Some(output) => Some(e2e::message(&output.stderr)),
        None => Some(format!("{command:?} does not end")),
    }
}

/// Prints a table, and gives what has grown.
fn tell(what: &str, samples: &[Sample]) -> Vec<String> {
    println!("\n{what}; the neighbour's private memory, its guest's, and the host kernel's, KiB; descriptors");
    let names = PROCESSES.map(|(_, name)| name);
    let columns = ["guest", "slab"].into_iter().chain(names).map(|name| format!("{name:>10}"));
    let heads: String = names.map(|name| format!("{name:>10}")).into_iter().chain(columns).collect();
    println!("{:>8}{heads}", "done");
    for sample in samples {
        let cells = sample.private.into_iter().chain([sample.guest, sample.slab]);
        let descriptors = sample.descriptors.map(|count| count as u64);
        let cells: String = cells.chain(descriptors).map(|cell| format!("{cell:>10}")).collect();
        println!("{:>8}{cells}", sample.done);
    }
    growth(what, samples)
}

/// What is more at the end than it was at most until the middle, when caches are filled.
fn growth(what: &str, samples: &[Sample]) -> Vec<String> {
    let Some((last, before)) = samples.split_last() else { return Vec::new() };
    let before = &before[..samples.len() / 2 + 1];
    let mut found = Vec::new();
    for (index, (_, name)) in PROCESSES.iter().enumerate() {
        let (from, to) = (before.iter().map(|sample| sample.private[index]).max().unwrap_or(0), last.private[index]);
        if to > from + from / 20 + SLACK {
            found.push(format!("{what}: {name}'s private memory has grown from {from} to {to} KiB"));
        }
        let most = before.iter().map(|sample| sample.descriptors[index]).max();
        let (from, to) = (most.unwrap_or(0), last.descriptors[index]);
        if to > from {
            found.push(format!("{what}: {name}'s open descriptors have grown from {from} to {to}"));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn growth_is_what_comes_after_the_middle_and_stays() {
        let sample = |private, descriptors| Sample { done: 0, private, descriptors, guest: 0, slab: 0 };
        let level = sample([1000; 3], [20; 3]);
        let grows = |last| growth("cycles", &[sample([1; 3], [1; 3]), level, level, level, last]);
        assert!(grows(sample([1050 + SLACK; 3], [20, 19, 20])).is_empty());
        let found = grows(sample([1000, 1051 + SLACK, 1000], [20, 20, 21]));
        assert!(found.len() == 2 && found[0].contains("virtio-fs") && found[1].contains("QEMU"), "{found:?}");
    }
}
