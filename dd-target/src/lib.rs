//! The store as a server, and its client; and what both of them and a protection do on a store beside writing points.
//!
//! ```text
//!  client --TLS, HTTP/2--> server (token, role, vault) --> store of the vault
//!     |                      |
//!     +-- api, wire ---------+        chore, keeper: what is done on a store, whoever has it open
//! ```
//!
//! Rule: the server decides who may; nothing that a client says of itself is believed.

pub mod api;
mod chore;
pub mod client;
mod keeper;
mod part;
mod place;
mod private_file;
mod problem;
mod rate;
mod record;
pub mod server;
mod wire;

/// Parsers of what strangers send, for fuzzing.
#[cfg(feature = "fuzzing")]
pub mod fuzzing {
    /// Reads arbitrary bytes as the bodies of the write plane, and as a header of the read plane.
    pub fn wire(bytes: &[u8]) {
        crate::wire::fuzz(bytes);
        let part = std::str::from_utf8(bytes).map(crate::part::Part::parse);
        if let Ok(Some(part)) = part {
            let told = crate::part::Part::parse(&part.to_string());
            assert_eq!(told, Some(part), "what is told is what was understood");
        }
    }
}

pub use chore::{
    Chore, Context, Done, GcFigures, Hit, Pace, Progress, ProtectionFigures, ScrubFigures, perform,
    protection_of, seeds_of, whole_seconds,
};
pub use keeper::{KeepError, KeepOptions, Kept, Used, do_chore, keep};
pub use place::{InvalidPlace, Place};
pub use private_file::{PrivateFileError, read_private};
pub use problem::{Kind, Problem, chain};
pub use rate::{Bucket, InvalidRate, Rate, RateLimit};
