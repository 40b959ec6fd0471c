//! Arbitrary bytes as the record of a lineage, and as the labels of a cut.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    splitter::fuzzing::lineage_record(bytes);
    splitter::fuzzing::cut_note(bytes);
});
