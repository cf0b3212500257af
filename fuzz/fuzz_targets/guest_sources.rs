#![no_main]

const TARGET: fuzzing::Target = fuzz::target(env!("CARGO_BIN_NAME"));

libfuzzer_sys::fuzz_target!(|data: &[u8]| (TARGET.run)(data));
