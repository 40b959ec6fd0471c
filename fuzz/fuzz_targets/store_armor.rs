//! Arbitrary bytes as an armored object, a bundle, and what is left of a tree object.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| store::fuzzing::armor(bytes));
