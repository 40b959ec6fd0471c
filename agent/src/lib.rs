//! Joins splitter, store and export: protection of a group, ship, restore, serve, control API.
//!
//! ```text
//!  Protection ---- export::Server ---- splitter::Group ---- production
//!      |                                   | cut (cutter, control API)
//!      +-- stage two: seed, ship <---------+ sealed generations
//!              |
//!              +--> store::Store (target) <-- points: verify, diff, restore, serve
//! ```
//!
//! Rule: nothing here is on the path of a guest's write. What is policy (when to cut, when to retry,
//! what to give up) is here; what is mechanism is in the crates that are joined.

pub mod api;
mod audit;
mod base;
mod check;
pub mod client;
mod control;
mod crew;
mod cutter;
mod diff_place;
mod engine;
mod error;
mod frame_writer;
mod gap_file;
mod gaps;
mod hook_process;
mod hooks;
mod import;
mod keeping;
mod keys;
mod ladder;
mod limits;
mod made_here;
mod memory;
mod open_target;
mod output;
mod partial_dir;
mod places;
mod points;
mod pressure;
mod protect;
mod pulse;
mod read_ahead;
mod recent;
mod repair;
mod replicate;
mod restore;
mod schedule;
mod secret_file;
mod seed;
mod serve;
mod ship;
mod stage_two;
mod status;
mod target;
mod target_writer;
mod tender;
mod trouble;
mod upkeep;
mod watch;
mod world;
mod writeback;

/// Parsers of files that a crash or a stranger may have damaged, for fuzzing.
#[cfg(feature = "fuzzing")]
pub mod fuzzing {
    /// Reads arbitrary bytes as a gap ledger; what it says goes through the file again unharmed.
    pub fn gap_ledger(bytes: &[u8]) {
        crate::gap_file::fuzz(bytes);
    }
}

pub use check::{
    CatalogFigures, CheckFigures, CheckedPointFigures, HalfFigures, LostEntryFigures, LostRanges,
    PileFigures, check,
};
pub use dd_target::{
    Chore, Done, GcFigures, Hit, InvalidRate, KeepOptions, Kind, Problem, Progress,
    ProtectionFigures, Rate, RateLimit, ScrubFigures, chain, whole_seconds,
};
pub use error::{Error, Result};
pub use hook_process::Failure as HookFailure;
pub use hooks::{HookCommand, HookOptions, HookTimeout, InvalidCommand, InvalidTimeout};
pub use import::{ImageSource, ImportOptions, Imported, import};
pub use keys::{
    NewKey, RecoveryKey, add_key, create_encrypted_vault, init_encrypted, keys_like, list_keys,
    new_keys, remove_key,
};
pub use limits::{
    ByteLimit, InvalidByteLimit, InvalidLatency, LatencyChoice, LatencyLimit, Limits,
};
pub use places::{GroupPlace, Record, RecordedDisk, StateRoot};
pub use points::{Points, Verified, VerifiedDisk, find_disk};
pub use protect::{Abandon, ProtectOptions, Protection, disk_name};
pub use repair::{IndexFigures, RepairFigures, StepFigures, rebuild_index, repair};
pub use replicate::{ReplicateOptions, ReplicatedPoints, points_to_replicate, replicate};
pub use restore::{Format, RestoreOptions, Restored, restore};
pub use schedule::{Every, InvalidEvery, parse_duration};
pub use secret_file::{SecretError, SecretFile};
pub use serve::{ServeOptions, Served};
pub use target::Target;
pub use upkeep::{Judged, init, preview, upkeep};
pub use world::World;
