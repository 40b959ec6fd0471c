//! Replicate: the points of a target become points of another one.
//!
//! Rule: neither is opened with a key: what is encrypted travels as it is.

use std::sync::Arc;
use std::time::Duration;

use block::{Clock, Name};
use dd_target::Progress;
use store::PointId;

use crate::{Result, Target};

/// What to copy, and where to.
#[derive(Clone, Debug)]
pub struct ReplicateOptions {
    /// Where the points are.
    pub from: Target,
    /// Where they are to be, too. A store is made there if there is none; encrypted if the other one is, with the same keys.
    pub to: Target,
    /// Only those of this group.
    pub group: Option<Name>,
}

/// What was copied.
#[derive(Clone, Debug)]
pub struct ReplicatedPoints {
    /// In the order of their making.
    pub points: Vec<PointId>,
    /// Bytes that had to travel.
    pub copied_bytes: u64,
    /// Bytes by which the other target has grown.
    pub stored_bytes: u64,
    /// How long it took.
    pub took: Duration,
}

/// The points that would be copied: those that come after what the other target has, or had, of their groups.
///
/// # Errors
/// If one of the targets cannot be read.
pub fn points_to_replicate(
    options: &ReplicateOptions,
    clock: &Arc<dyn Clock>,
) -> Result<Vec<PointId>> {
    let from = options.from.reader(clock)?;
    let points = match options.to.reader_if_there(clock)? {
        Some(to) => {
            let checked = to.check_key_of(&from);
            checked.map_err(options.to.failed("copy points to the target"))?;
            to.points_to_copy(&from, options.group.as_ref())
        }
        None => {
            let mut points = from.points();
            let group = options.group.as_ref();
            points.retain(|point| group.is_none_or(|group| point.group() == group));
            points
        }
    };
    Ok(points.iter().map(|point| point.id.clone()).collect())
}

/// Copies points, oldest first. What was copied before a failure stays; the next time goes on after it. `progress` is told
/// bytes of disks looked at, and bytes of all disks of the point under way.
///
/// # Errors
/// `Retry` if another process writes to the target; if they are encrypted with different keys; if a point is damaged.
pub fn replicate(
    options: &ReplicateOptions,
    clock: &Arc<dyn Clock>,
    progress: Progress<'_>,
) -> Result<ReplicatedPoints> {
    let began = clock.monotonic();
    let from = options.from.reader(clock)?;
    let to = options.to.replica(&options.from, clock)?;
    let checked = to.check_key_of(&from);
    checked.map_err(options.to.failed("copy points to the target"))?;
    let before = to.figures().stored_bytes;
    let mut done = ReplicatedPoints {
        points: Vec::new(),
        copied_bytes: 0,
        stored_bytes: 0,
        took: Duration::ZERO,
    };
    for point in to.points_to_copy(&from, options.group.as_ref()) {
        let copied = to.copy_point(&from, &point.id, &progress);
        let copied = copied.map_err(options.to.failed("copy a point to the target"))?;
        done.points.push(copied.point.id.clone());
        done.copied_bytes += copied.copied_bytes;
    }
    done.stored_bytes = to.figures().stored_bytes.saturating_sub(before);
    done.took = clock.monotonic().saturating_sub(began);
    Ok(done)
}
