//! A whole NBD connection: handshake and transmission against a client that sends what it likes.
//! Requests come with the right magic most of the time, so that the fuzzer gets past it.
#![no_main]

use export::fuzzing::{Opening, connection};
use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;

#[derive(Arbitrary, Debug)]
struct Input {
    opening: u8,
    messages: Vec<Message>,
}

#[derive(Arbitrary, Debug)]
enum Message {
    Raw(Vec<u8>),
    Option { code: u8, data: Vec<u8>, lie: Option<u32> },
    Request { flags: u8, kind: u8, at: u32, len: u16, far: Option<(u64, u64)>, payload: Vec<u8> },
}

impl Message {
    fn put(self, extended: bool, out: &mut Vec<u8>) {
        match self {
            Self::Raw(bytes) => out.extend(bytes),
            Self::Option { code, data, lie } => {
                let len = lie.unwrap_or(u32::try_from(data.len()).expect("small"));
                out.extend(b"IHAVEOPT");
                out.extend(u32::from(code % 16).to_be_bytes());
                out.extend(len.to_be_bytes());
                out.extend(data);
            }
            Self::Request { flags, kind, at, len, far, payload } => {
                let (at, len) = far.unwrap_or((u64::from(at % (3 << 19)), u64::from(len)));
                let magic: u32 = if extended { 0x21e4_1c71 } else { 0x2560_9513 };
                out.extend(magic.to_be_bytes());
                out.extend(u16::from(flags).to_be_bytes());
                out.extend(u16::from(kind % 10).to_be_bytes());
                out.extend(7_u64.to_be_bytes());
                out.extend(at.to_be_bytes());
                if extended {
                    out.extend(len.to_be_bytes());
                } else {
                    out.extend(u32::try_from(len & 0xffff_ffff).expect("masked").to_be_bytes());
                }
                out.extend(payload);
            }
        }
    }
}

fuzz_target!(|input: Input| {
    let opening = match input.opening % 5 {
        0 => Opening::Nothing,
        1 => Opening::Flags,
        2 => Opening::Simple,
        3 => Opening::Structured,
        _ => Opening::Extended,
    };
    let extended = matches!(opening, Opening::Extended);
    let mut bytes = Vec::new();
    for message in input.messages {
        message.put(extended, &mut bytes);
    }
    connection(opening, &bytes);
});
