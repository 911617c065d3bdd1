//! An expression of `when`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| pagemill_pipeline::fuzzing::expression(bytes));
