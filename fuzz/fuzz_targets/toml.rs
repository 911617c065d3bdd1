//! A configuration, and arguments of `--set`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| pagemill_pipeline::fuzzing::toml(bytes));
