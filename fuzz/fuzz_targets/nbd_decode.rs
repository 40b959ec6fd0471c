//! Options and requests of an NBD client, as bytes.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| export::fuzzing::decode(data));
