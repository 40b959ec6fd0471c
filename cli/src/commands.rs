//! The commands, one file each.

mod cut;
mod gaps;
mod point;
mod protect;
mod restore;
mod serve;
mod status;

use agent::{Result, World};

pub(crate) use cut::cut;
pub(crate) use gaps::{Since, gaps};
pub(crate) use point::point;
pub(crate) use protect::protect;
pub(crate) use restore::restore;
pub(crate) use serve::{scratch_dir, serve};
pub(crate) use status::status;

/// The world that commands run in.
fn world() -> Result<World> {
    World::real()
}
