//! Arbitrary bytes as an intent log: no panic, and no region past the end of a disk.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| splitter::fuzzing::intent_log(input));
