//! The outside world, simulated: a clock that moves when told, a disk whose process is killed or
//! whose power is cut at a chosen operation, faults on demand. Everything follows from one seed.
//!
//! A test builds the real code on [`SimWorld::dir`], runs it, ends the world with
//! [`SimWorld::kill`] or [`SimWorld::cut_power`], and builds the code again on what survived:
//!
//! ```text
//! world --dir()--> code under test          world.crash_after(n): operation n tears, then all fail
//!   |
//!   +-- kill()      -> a world with everything that completed
//!   +-- cut_power() -> a world with everything synced, and of the rest any part, in any order
//! ```
//!
//! Rule: no real clock, no real disk, no thread. Handles of an ended world only ever fail.

mod clock;
mod content;
mod device;
mod inode;
mod seed;
mod world;

pub use clock::SimClock;
pub use device::SimDisk;
pub use seed::seed_from_env;
pub use world::{Fault, SimWorld};
