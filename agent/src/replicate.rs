//! Replicate: the points of a target become points of another one.
//!
//! Rule: neither is opened with a key: what is encrypted travels as it is.

use std::sync::Arc;
use std::time::Duration;

use block::{Clock, Name};
use dd_target::Progress;
use dd_target::client::{Access, CopyError, RemoteError, Vault};
use store::{PointId, PointRecord, Replicated, Store};

use crate::{Error, Result, Target};

/// What to copy, and where to.
#[derive(Clone, Debug)]
pub struct ReplicateOptions {
    /// Where the points are.
    pub from: Target,
    /// Where they are to be, too. A store is made there if there is none, but for a vault; encrypted if the other one is, with the
    /// same keys.
    pub to: Target,
    /// Only those of this group.
    pub group: Option<Name>,
    /// Also those that the other target has lost: of commits that a repair of it went on without.
    pub lost: bool,
}

/// What was copied.
#[derive(Clone, Debug)]
pub struct ReplicatedPoints {
    /// In the order of their making.
    pub points: Vec<PointId>,
    /// Points that a vault refused, each with its reason: the others were copied all the same.
    pub left_out: Vec<(PointId, String)>,
    /// Bytes that had to travel.
    pub copied_bytes: u64,
    /// Bytes by which the other target has grown.
    pub stored_bytes: u64,
    /// How long it took.
    pub took: Duration,
}

impl ReplicatedPoints {
    /// Whether all were copied.
    ///
    /// # Errors
    /// If some were left out.
    pub fn verdict(&self) -> Result<()> {
        match self.left_out.first() {
            None => Ok(()),
            Some((first, why)) => Err(Error::LeftOut {
                points: self.left_out.len(),
                first: first.to_string(),
                why: why.clone(),
            }),
        }
    }
}

/// The points that would be copied: those that come after what the other target has, or had, of their groups.
///
/// # Errors
/// If one of the targets cannot be read.
pub fn points_to_replicate(
    options: &ReplicateOptions,
    clock: &Arc<dyn Clock>,
) -> Result<Vec<PointId>> {
    check(options)?;
    let from = options.from.reader(clock)?;
    if options.to.vault().is_some() {
        let points = Replica::open(options, &from, clock)?.points_to_copy(options, &from)?;
        return Ok(points.iter().map(|point| point.id.clone()).collect());
    }
    let points = match options.to.reader_if_there(clock)? {
        Some(to) => {
            let checked = to.check_key_of(&from);
            checked.map_err(options.to.failed("copy points to the target"))?;
            wanted(&to, options, &from)?
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
    check(options)?;
    let began = clock.monotonic();
    let from = options.from.reader(clock)?;
    let to = Replica::open(options, &from, clock)?;
    let before = to.stored_bytes();
    let mut done = ReplicatedPoints {
        points: Vec::new(),
        left_out: Vec::new(),
        copied_bytes: 0,
        stored_bytes: 0,
        took: Duration::ZERO,
    };
    for point in to.points_to_copy(options, &from)? {
        let copied = match to.copy(options, &from, &point, progress) {
            // What is wrong with one point must not keep all later ones, and other groups, out.
            Err(error) if is_about_the_point(&error) => {
                done.left_out.push((point.id.clone(), error.chain()));
                continue;
            }
            copied => copied?,
        };
        done.points.push(copied.point.id.clone());
        done.copied_bytes += copied.copied_bytes;
        done.stored_bytes += copied.point.stored_new_bytes;
    }
    if let (Some(before), Some(after)) = (before, to.stored_bytes()) {
        done.stored_bytes = after.saturating_sub(before);
    }
    done.took = clock.monotonic().saturating_sub(began);
    Ok(done)
}

fn check(options: &ReplicateOptions) -> Result<()> {
    match options.lost && options.to.vault().is_some() {
        false => Ok(()),
        true => Err(Error::usage(
            format!(
                "what `{}` has lost is known only where its store is",
                options.to
            ),
            "run it on the server's machine, with the store's directory or bucket in the vault's place",
        )),
    }
}

/// The points that a store is to have.
fn wanted(to: &Store, options: &ReplicateOptions, from: &Store) -> Result<Vec<Arc<PointRecord>>> {
    let group = options.group.as_ref();
    let lost = match options.lost {
        true => to.lost_points_in(from, group),
        false => Ok(Vec::new()),
    };
    let mut points = lost.map_err(options.to.failed("see what the target has lost"))?;
    points.extend(to.points_to_copy(from, group));
    Ok(points)
}

/// Whether a server said no to this point: its time, its group, its cut or its number.
fn is_about_the_point(error: &Error) -> bool {
    match error {
        Error::Vault { source, .. } => matches!(
            source,
            RemoteError::Refused {
                status: 403 | 409,
                ..
            }
        ),
        _ => false,
    }
}

/// Where points are copied to.
enum Replica {
    Store(Store),
    Vault(Vault),
}

impl Replica {
    fn open(options: &ReplicateOptions, from: &Store, clock: &Arc<dyn Clock>) -> Result<Self> {
        let to = &options.to;
        let (replica, checked) = match to.vault() {
            None => {
                let store = to.replica(&options.from, clock)?;
                let checked = store.check_key_of(from);
                (Self::Store(store), checked)
            }
            Some(url) => {
                let vault = Vault::open(url, &Access::of_this_process());
                let vault = vault.map_err(to.refused("open the vault"))?;
                (Self::Vault(vault), from.check_key_at(&to.backend()?))
            }
        };
        checked.map_err(to.failed("copy points to the target"))?;
        Ok(replica)
    }

    fn points_to_copy(
        &self,
        options: &ReplicateOptions,
        from: &Store,
    ) -> Result<Vec<Arc<PointRecord>>> {
        let group = options.group.as_ref();
        match self {
            Self::Store(store) => wanted(store, options, from),
            Self::Vault(vault) => {
                let points = vault.points_to_copy(from, group);
                points.map_err(options.to.refused("see what the target has"))
            }
        }
    }

    fn copy(
        &self,
        options: &ReplicateOptions,
        from: &Store,
        point: &PointRecord,
        progress: Progress<'_>,
    ) -> Result<Replicated> {
        const DOING: &str = "copy a point to the target";
        match self {
            Self::Store(store) => {
                let copied = store.copy_point(from, &point.id, &progress);
                copied.map_err(options.to.failed(DOING))
            }
            Self::Vault(vault) => {
                let copied = vault.copy_point(from, point, &progress);
                copied.map_err(|error| match error {
                    CopyError::From(error) => options.from.failed("read a point")(error),
                    CopyError::To(error) => options.to.refused(DOING)(error),
                })
            }
        }
    }

    /// Bytes that it takes; nobody but its server knows of a vault, which others fill, too.
    fn stored_bytes(&self) -> Option<u64> {
        match self {
            Self::Store(store) => Some(store.figures().stored_bytes),
            Self::Vault(_) => None,
        }
    }
}
