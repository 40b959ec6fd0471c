//! Arbitrary bytes as a node of a tree, and as a reference to an image.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| store::fuzzing::tree_node(bytes));
