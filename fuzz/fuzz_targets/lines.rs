//! Lines of standard input.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| pagemill_stages::fuzzing::lines(bytes));
