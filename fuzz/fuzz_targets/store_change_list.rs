//! Arbitrary bytes as a change list, which survives its own encoding.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| store::fuzzing::change_list(bytes));
