//! Repairing a target: a plan, and the same done.

use std::sync::Arc;
use std::time::Duration;

use block::Clock;
use dd_target::Progress;
use serde::Serialize;
use store::{HealedObject, LostObject, PointId, RepairOptions, RepairPlan, RepairStep};

use crate::world::World;
use crate::{Error, Result, Target};

/// What a repair would do, or did.
#[derive(Clone, Debug, Serialize)]
pub struct RepairFigures {
    /// Whether it was done, or only planned.
    pub applied: bool,
    /// Whether there is anything to do.
    pub changes: bool,
    /// Step by step.
    pub steps: Vec<StepFigures>,
    /// What stays lost.
    pub lost: Vec<LostObject>,
}

/// A step of a repair.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "do", rename_all = "kebab-case")]
pub enum StepFigures {
    /// An object is healed from its armor.
    Heal(HealedObject),
    /// There is nothing to do: a checkpoint stands for what is lost.
    Leave {
        /// What is lost.
        object: String,
        /// The number of the checkpoint.
        covered_by: u64,
    },
    /// The catalog goes on from what is left of it.
    BeginAnew {
        /// With this commit, and the checkpoint of that number.
        number: u64,
        /// What is lost of it.
        lost: Vec<LostObject>,
        /// Points that it may have listed.
        may_have_listed: Vec<String>,
    },
    /// A disk of a point is copied again from the replica.
    CopyAgain {
        /// GROUP@NUMBER.
        point: String,
        /// The disk.
        disk: String,
        /// Bytes of it that cannot be read now.
        lost_bytes: u64,
    },
    /// A damaged object that nothing needs goes to the quarantine.
    LetGo {
        /// The object.
        object: String,
    },
    /// Another copy is used.
    UseCopy {
        /// Of which container or tree object.
        what: String,
        /// The object that was said to hold it.
        lost: String,
        /// The object that holds the copy.
        instead: String,
    },
}

impl RepairFigures {
    /// The failure of a repair that leaves something lost.
    ///
    /// # Errors
    /// That one.
    pub fn verdict(&self) -> Result<()> {
        match self.lost.len() {
            0 => Ok(()),
            objects => Err(Error::StaysLost { objects }),
        }
    }
}

/// Plans a repair of a target, and does it if `apply` says so. `replica`: another target with the same points.
///
/// # Errors
/// If there is no store, or the place cannot be read; `Retry` if somebody writes to it. What stays lost is in the answer.
pub fn repair(
    target: &Target,
    replica: Option<&Target>,
    apply: bool,
    world: &World,
    progress: Progress<'_>,
) -> Result<RepairFigures> {
    if replica.is_some_and(|replica| replica.to_string() == target.to_string()) {
        return Err(Error::usage(
            "a target is no replica of itself",
            "name the target to which its points were replicated",
        ));
    }
    let replica = replica.map(|replica| replica.reader(&world.clock));
    let replica = replica.transpose()?;
    let options = RepairOptions {
        threads: std::thread::available_parallelism().map_or(1, usize::from),
        progress,
        replica: replica.as_ref(),
    };
    let plan = target.plan_repair(&world.clock, &options)?;
    let applied = apply && plan.changes_something();
    if applied {
        target.repair(&world.clock, &plan, &options)?;
    }
    Ok(figures(applied, plan))
}

fn figures(applied: bool, plan: RepairPlan) -> RepairFigures {
    RepairFigures {
        applied,
        changes: plan.changes_something(),
        steps: plan.steps.into_iter().map(step).collect(),
        lost: plan.lost,
    }
}

fn step(step: RepairStep) -> StepFigures {
    match step {
        RepairStep::Heal(healed) => StepFigures::Heal(healed),
        RepairStep::Leave { object, covered_by } => StepFigures::Leave { object, covered_by },
        RepairStep::BeginAnew {
            number,
            lost,
            may_have_listed,
        } => StepFigures::BeginAnew {
            number,
            lost,
            may_have_listed: may_have_listed.iter().map(PointId::to_string).collect(),
        },
        RepairStep::CopyAgain {
            point,
            disk,
            lost_bytes,
        } => StepFigures::CopyAgain {
            point: point.to_string(),
            disk: disk.to_string(),
            lost_bytes,
        },
        RepairStep::LetGo { object } => StepFigures::LetGo { object },
        RepairStep::UseCopy {
            what,
            lost,
            instead,
        } => StepFigures::UseCopy {
            what,
            lost,
            instead,
        },
    }
}

/// What the index of a target is.
#[derive(Clone, Debug, Serialize)]
pub struct IndexFigures {
    /// Containers whose manifests were read.
    pub containers: u64,
    /// Chunks in them.
    pub chunks: u64,
    /// Entries of the index.
    pub entries: u64,
    /// One of so many chunks has an entry.
    pub one_in: u64,
    /// Containers that cannot be read: nothing is built on them.
    pub damaged: Vec<String>,
    /// How long it took.
    pub seconds: f64,
}

/// Builds the index of a target anew, as its writer does whenever it opens it, and says what it is.
///
/// # Errors
/// As for a chore: `Retry` if somebody writes to it.
pub fn rebuild_index(target: &Target, clock: &Arc<dyn Clock>) -> Result<IndexFigures> {
    let begun = clock.monotonic();
    let store = target.writer_of_existing(clock)?;
    let took: Duration = clock.monotonic().saturating_sub(begun);
    let index = store.index();
    let index = index.map_err(target.failed("look at the index"))?;
    Ok(IndexFigures {
        containers: index.containers,
        chunks: index.chunks,
        entries: index.entries,
        one_in: 1 << index.sampling.min(63),
        damaged: index.damaged,
        seconds: took.as_secs_f64(),
    })
}
