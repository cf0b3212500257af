//! What `kata-bench engines` runs inside containers. It needs nothing of the image it is run in, and nothing but the standard library.
//!
//! Each line that it prints is one measurement: what it was, how many nanoseconds it took, how many units were done in them; tabs between.

mod files;
mod network;

use std::{io, path::Path, process::ExitCode, time::Duration};

const USAGE: &str = "usage: kata-probe files DIRECTORY | serve ADDRESS:PORT | network ADDRESS:PORT";

/// Prints one measurement.
fn tell(what: &str, took: Duration, units: u64) {
    println!("{what}\t{}\t{units}", took.as_nanos());
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let done = match arguments[..] {
        ["files", directory] => files::measure(Path::new(directory)),
        ["serve", address] => network::serve(address),
        ["network", address] => network::measure(address),
        _ => Err(io::Error::other(USAGE)),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            eprintln!("kata-probe: {problem}");
            ExitCode::FAILURE
        }
    }
}
