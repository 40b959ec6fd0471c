//! The commands, one file each.

mod check;
mod cut;
mod gaps;
mod import;
mod key;
mod point;
mod protect;
mod repair;
mod replicate;
mod restore;
mod retention;
mod serve;
mod status;
mod store;
mod target;
mod token;
mod vault;

use agent::{Chore, Done, Progress, Result, Target, World};

use crate::args::State;

pub(crate) use check::check;
pub(crate) use cut::cut;
pub(crate) use gaps::{Since, gaps};
pub(crate) use import::import;
pub(crate) use point::{Until, point};
pub(crate) use protect::protect;
pub(crate) use repair::{rebuild_index, repair};
pub(crate) use replicate::replicate;
pub(crate) use restore::restore;
pub(crate) use retention::retention;
pub(crate) use serve::{scratch_dir, serve};
pub(crate) use status::status;
pub(crate) use store::{Span, store};
pub(crate) use target::target;
pub(crate) use token::token;
pub(crate) use vault::vault;

/// The world that commands run in.
fn world() -> Result<World> {
    World::real()
}

/// Does a chore on a target, or has the protection do it that writes there.
fn upkeep(target: &Target, chore: &Chore, state: &State, progress: Progress<'_>) -> Result<Done> {
    agent::upkeep(target, chore, &state.root(), &world()?, progress)
}
