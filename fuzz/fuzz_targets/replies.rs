//! Fuzzes the parser of a worker's replies.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| pagemill_stages::fuzzing::replies(bytes));
