//! Stage two's engine: chunks, containers, image trees, catalog; no network.
//!
//! ```text
//!  ImageWriter --chunk--> [index: have it?] --no--> [packer] --regions--> container objects
//!      |                        | yes                                          |
//!      +-- place of every chunk-+----> change list, or a tree at a checkpoint --> tree objects
//!                                                                              |
//!  Store::commit_point ---------------------------------------------------> catalog commit: listed
//!  Image (BlockDevice), restore, verify, diff <-- places <-- tree + change lists
//! ```
//!
//! Rule: every object is created once and never changed, in the order container, tree, commit; so
//! a crash at any moment leaves only objects that nothing refers to. `docs/formats/` draws the bytes.

mod armor;
mod backend;
mod bundle;
mod cache;
mod catalog;
mod check;
mod codec;
mod container;
mod copies;
mod diff;
mod error;
mod explain;
mod fingerprint;
mod fold;
mod format;
mod gc;
mod headroom;
mod image;
mod image_writer;
mod index;
mod inventory;
mod keeping;
mod keys;
mod landing;
mod lease;
mod locations;
mod objects;
mod opened;
mod packer;
mod pins;
mod place;
mod pool;
mod protection;
mod recopy;
mod records;
mod recover;
mod region;
mod relocation;
mod repair;
mod replacement;
mod replicate;
mod restore;
mod retention;
mod runs;
mod scrub;
mod seal;
mod shelf;
mod side_by_side;
mod store;
mod sweep;
mod tree;
mod verify;

#[cfg(feature = "fuzzing")]
pub mod fuzzing;

pub use backend::{Backend, Directory, is_damage};
#[cfg(feature = "bucket")]
pub use backend::{Blocks, Bucket, InvalidBucket, Ranges, TAIL};
#[cfg(feature = "conformance")]
pub use backend::{Watch, Watched, conformance};
pub use check::{CatalogCheck, CheckOptions, CheckReport, CheckedPoint, Half, LostEntry, Pile};
pub use error::{ErrorKind, Result, StoreError};
pub use explain::{ExplainedChunk, ExplainedPoint, ExplainedStore};
pub use fingerprint::Fingerprint;
pub use gc::{GcOptions, GcReport};
pub use image::Image;
pub use image_writer::{Base, CheckedRegion, FinishedImage, ImageWriter, RegionCheck};
pub use keys::{InvalidSecret, KeySlot, Keys, NewKeys, Secret, WrappedKey};
pub use landing::Landing;
pub use pool::OnWorker;
pub use protection::Protection;
pub use records::{
    Consistency, InvalidPoint, PointDisk, PointDraft, PointId, PointRecord, PointRef, SeedDisk,
    SeedDiskRecord, SeedDraft, SeedRecord,
};
pub use region::{ChunkCodec, PackedRegion};
pub use repair::{RepairOptions, RepairPlan, RepairStep};
pub use replicate::Replicated;
pub use restore::RestoreSink;
pub use retention::{Keep, Policy, Verdict};
pub use scrub::{
    HealedObject, Hit, LastScrub, LostObject, ScrubOptions, ScrubPosition, ScrubReport,
};
pub use store::{Around, Images, IndexFigures, Store, StoreFigures};
pub use tree::ImageRef;
pub use verify::{Damage, VerifyReport};
