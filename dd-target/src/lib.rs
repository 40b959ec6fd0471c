//! What is done on a store beside writing points, and how that is told; for whoever has the store open.
//!
//! Rule: what a chore does is here once, whoever asks for it.

mod chore;
mod keeper;
mod problem;
mod rate;

pub use chore::{
    Chore, Context, Done, GcFigures, Hit, Pace, Progress, ProtectionFigures, ScrubFigures, perform,
    protection_of, whole_seconds,
};
pub use keeper::{KeepError, KeepOptions, Kept, Used, do_chore, keep};
pub use problem::{Kind, Problem, chain};
pub use rate::{Bucket, InvalidRate, Rate, RateLimit};
