//! Arbitrary bytes as the header of a frame of a diff.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    splitter::fuzzing::diff_frame(bytes);
});
