//! What the fuzzer works with, and what it once found, through the same readers, each file in turn.

#![allow(clippy::unwrap_used)]

use std::{
    fs,
    path::{Path, PathBuf},
};

use fuzzing::TARGETS;

/// All of the corpora, bytes.
const MOST: u64 = 300 << 10;

fn corpus() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus")
}

fn inputs(name: &str) -> Vec<PathBuf> {
    let directory = corpus().join(name);
    let listed = fs::read_dir(&directory).unwrap_or_else(|error| panic!("{}: {error}", directory.display()));
    let mut inputs: Vec<_> = listed.map(|entry| entry.unwrap().path()).collect();
    inputs.sort();
    inputs
}

#[test]
fn no_input_of_the_corpora_breaks_its_reader() {
    for target in TARGETS {
        let inputs = inputs(target.name);
        assert!(!inputs.is_empty(), "{} has no corpus", target.name);
        for input in inputs {
            let bytes = fs::read(&input).unwrap();
            let run = std::panic::catch_unwind(|| (target.run)(&bytes));
            assert!(run.is_ok(), "{} breaks {}", input.display(), target.name);
        }
        (target.run)(&[]);
    }
}

#[test]
fn each_target_has_its_program_and_each_corpus_its_target() {
    let programs = fs::read_to_string(corpus().join("../Cargo.toml")).unwrap();
    for target in TARGETS {
        assert!(programs.contains(&format!("name = \"{}\"", target.name)), "fuzz/Cargo.toml lacks {}", target.name);
    }
    let mut size = 0;
    for directory in fs::read_dir(corpus()).unwrap() {
        let name = directory.unwrap().file_name().into_string().unwrap();
        assert!(fuzzing::target(&name).is_some(), "fuzz/corpus/{name} is of no target");
        size += inputs(&name).iter().map(|input| fs::metadata(input).unwrap().len()).sum::<u64>();
    }
    assert!(size < MOST, "the corpora take {size} bytes; keep the smallest inputs");
}
