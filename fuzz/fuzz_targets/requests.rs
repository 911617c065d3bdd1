//! Fuzzes the parser of a worker's requests.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| pagemill_stages::fuzzing::requests(bytes));
