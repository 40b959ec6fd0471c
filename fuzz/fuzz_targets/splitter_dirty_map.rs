//! Arbitrary words as a dirty map: walking it ends and stays on the disk.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: (u64, Vec<u8>)| splitter::fuzzing::dirty_map(input.0, &input.1));
