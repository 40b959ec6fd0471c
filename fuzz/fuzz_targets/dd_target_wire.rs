//! Arbitrary bytes as what a shipper sends: entries of an ask, frames of regions.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| dd_target::fuzzing::wire(bytes));
