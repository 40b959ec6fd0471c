//! Entry points for the fuzz targets: foreign bytes against the parsers, and against a whole
//! connection.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread;

use block::MemoryDevice;

use crate::nbd::option::{InfoRequest, MetaRequest, OptionHead};
use crate::nbd::proto::{IHAVEOPT, Mode, opt};
use crate::nbd::request::{Header, StatusFilter, Terms};
use crate::{Export, Exports, Limits, ServerOptions};

/// Every decoder of client bytes. None may panic.
pub fn decode(bytes: &[u8]) {
    let _ = OptionHead::decode(bytes);
    let _ = InfoRequest::decode(bytes);
    let _ = MetaRequest::decode(bytes);
    for mode in [Mode::Simple, Mode::Structured, Mode::Extended] {
        let Some(header) = Header::decode(mode, bytes) else {
            continue;
        };
        for writable in [false, true] {
            let terms = Terms {
                mode,
                size: 1 << 30,
                writable,
                contexts: 2,
            };
            let _ = terms.judge(header);
        }
    }
    let _ = StatusFilter::decode(0, 1 << 30, bytes);
}

/// A server's bytes against our client: the greeting, or what follows it.
pub fn server_bytes(bytes: &[u8], greeted: bool) {
    crate::nbd::client::listen_to(bytes, greeted);
}

/// What the client sends before the fuzzer's bytes: nothing, or a handshake up to transmission.
#[derive(Clone, Copy, Debug)]
pub enum Opening {
    /// Not even its flags.
    Nothing,
    /// Flags; the bytes are options.
    Flags,
    /// Simple replies; the bytes are requests.
    Simple,
    /// Structured replies and a meta context; the bytes are requests.
    Structured,
    /// Extended headers and a meta context; the bytes are requests.
    Extended,
}

impl Opening {
    fn bytes(self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut option = |code: u32, data: &[u8]| {
            bytes.extend(IHAVEOPT.to_be_bytes());
            bytes.extend(code.to_be_bytes());
            bytes.extend(u32::try_from(data.len()).expect("short").to_be_bytes());
            bytes.extend(data);
        };
        match self {
            Self::Nothing | Self::Flags | Self::Simple => {}
            Self::Structured => option(opt::STRUCTURED_REPLY, &[]),
            Self::Extended => option(opt::EXTENDED_HEADERS, &[]),
        }
        if matches!(self, Self::Structured | Self::Extended) {
            option(
                opt::SET_META_CONTEXT,
                b"\0\0\0\0\0\0\0\x01\0\0\0\x0fbase:allocation",
            );
        }
        match self {
            Self::Nothing => return bytes,
            Self::Flags => {}
            Self::Simple | Self::Structured | Self::Extended => {
                option(opt::GO, &[0; 6]);
            }
        }
        [3_u32.to_be_bytes().as_slice(), &bytes].concat()
    }
}

/// Serves one connection whose client sends an opening and then `bytes`, reads what comes back and
/// hangs up. Returns once the server has let go of it.
pub fn connection(opening: Opening, bytes: &[u8]) {
    let exports = Exports::new();
    let export = Export {
        name: "disk".to_owned(),
        description: String::new(),
        device: Arc::new(MemoryDevice::new(1 << 20)),
        bitmaps: Vec::new(),
        multi_conn: true,
    };
    exports.add(export).expect("the first");
    exports.set_default(Some("disk".to_owned()));
    let bytes = [&opening.bytes(), bytes].concat();
    let (ours, theirs) = UnixStream::pair().expect("descriptors are left");
    // One thread: the same bytes take the same path, and nothing outlives the call.
    let options = ServerOptions {
        limits: Limits {
            in_flight_max: 1,
            ..Limits::default()
        },
        ..ServerOptions::default()
    };
    let server = thread::spawn(move || crate::server::serve_one(theirs, exports, options));
    let mut reader = ours.try_clone().expect("descriptors are left");
    let drained = thread::spawn(move || {
        let mut sink = [0; 4096];
        while reader.read(&mut sink).is_ok_and(|n| n > 0) {}
    });
    // The server may have hung up before the end, which is its right.
    let _ = (&ours).write_all(&bytes);
    let _ = ours.shutdown(Shutdown::Write);
    server.join().expect("the server does not panic");
    drop(ours);
    drained.join().expect("reading does not panic");
}
