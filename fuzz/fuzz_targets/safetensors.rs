//! A model file.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| pagemill_models::fuzzing::safetensors(bytes));
