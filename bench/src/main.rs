//! What this runtime costs. `kata-bench --help` lists what can be measured.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod baseline;
mod boot;
mod cycles;
mod engines;
mod guest;
mod memory;
mod overview;
mod qemu;
mod report;

use clap::{Parser, Subcommand};

/// Measures what this runtime costs.
#[derive(Debug, Parser)]
#[command(name = "kata-bench", args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    what: Option<What>,
    /// Starts to take the median of.
    #[arg(default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
}

#[derive(Debug, Subcommand)]
enum What {
    /// A start, an exec, a delete and an idle sandbox beside runc. What is measured unless told otherwise.
    Overview {
        /// Starts to take the median of.
        #[arg(default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..))]
        runs: u32,
    },
    /// Containers and pods of containerd, files and network in them, beside runc.
    Engines(engines::Options),
    /// Sandboxes and containers over and over, and many at once: whether something is left or grows.
    Cycles(cycles::Options),
    /// The guest's instructions from the first one until the agent answers, and which code they are in.
    Boot(boot::Options),
    /// Memory of an idle guest of 128 MiB, and the sizes of the files it boots from.
    Guest(guest::Options),
    /// The trimmed QEMU beside the distribution's.
    Qemu {
        /// Starts to take the median of.
        #[arg(default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..))]
        runs: u32,
    },
}

fn main() {
    let cli = Cli::parse();
    let done = match cli.what.unwrap_or(What::Overview { runs: cli.runs }) {
        What::Overview { runs } => {
            overview::run(runs as usize);
            Ok(())
        }
        What::Engines(options) => engines::run(&options),
        What::Cycles(options) => cycles::run(&options),
        What::Boot(options) => boot::run(&options),
        What::Guest(options) => guest::run(&options),
        What::Qemu { runs } => qemu::run(runs as usize),
    };
    if let Err(problem) = done {
        eprintln!("kata-bench: {problem}");
        std::process::exit(1);
    }
}

fn progress(text: &str) {
    eprintln!("==> {text}");
}
