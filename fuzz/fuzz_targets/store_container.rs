//! Arbitrary bytes as a container: header, footer, manifest and regions.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| store::fuzzing::container(bytes));
