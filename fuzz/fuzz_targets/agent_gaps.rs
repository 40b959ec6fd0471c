//! Arbitrary bytes as a gap ledger.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| agent::fuzzing::gap_ledger(bytes));
