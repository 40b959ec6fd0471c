//! Arbitrary bytes as a commit and as a checkpoint of the catalog.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| store::fuzzing::catalog(bytes));
