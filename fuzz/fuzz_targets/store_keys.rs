//! Arbitrary bytes as the keys of an encrypted store, and as the text of a key.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| store::fuzzing::keys(bytes));
