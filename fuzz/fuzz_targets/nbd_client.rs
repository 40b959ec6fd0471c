//! What an NBD server says to our client: from its greeting on, or after it.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (bool, &[u8])| export::fuzzing::server_bytes(input.1, input.0));
