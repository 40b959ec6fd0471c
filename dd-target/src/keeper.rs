//! The thread that looks after a store while its writer has it open: removes the points that the user's rules do not keep,
//! collects garbage, scrubs.
//!
//! Rule: it takes no more of the disk than its rate, and nobody waits for it: a chore ends early when its process ends, or
//! when the store has to be opened again. What one chore meets keeps none of the others from being done; a scrub goes on
//! where it was, a slice at a time.

use std::time::Duration;

use block::{Clock, Name};
use store::{Policy, ScrubOptions, ScrubPosition, Store, StoreError};
use tracing::{info, warn};

use crate::chore::{Chore, Context, Done, Pace, perform, whole_seconds};
use crate::problem::chain;

/// How a target is looked after.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeepOptions {
    /// Which points of the group are kept; nobody removes any if there are no rules.
    pub rules: Policy,
    /// How long removed points can be brought back.
    pub delay: Duration,
    /// How often points are removed and garbage is collected; never if there is none.
    pub every: Option<Duration>,
    /// How long an object that nothing needs is kept.
    pub quarantine: Duration,
    /// How often everything is read and checked; never if there is none.
    pub scrub_every: Option<Duration>,
    /// Bytes per second that this may read and write.
    pub rate: u64,
}

impl Default for KeepOptions {
    fn default() -> Self {
        Self {
            rules: Policy::default(),
            delay: Duration::from_hours(24),
            every: Some(Duration::from_hours(1)),
            quarantine: Duration::from_hours(24),
            scrub_every: Some(Duration::from_hours(7 * 24)),
            rate: 32 << 20,
        }
    }
}

/// What keeps a store from being looked after.
#[derive(Debug, thiserror::Error)]
pub enum KeepError {
    /// Whoever writes to it has it not open.
    #[error("it is not open at this moment")]
    NotOpen,
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A store that its writer has open.
pub struct Used<'a> {
    /// The store.
    pub store: Store,
    /// Whether its writer has given it up meanwhile.
    pub is_over: Box<dyn Fn() -> bool + Send + Sync + 'a>,
}

/// A store that is looked after, and who has it.
pub trait Kept: Sync {
    /// Time.
    fn clock(&self) -> &dyn Clock;
    /// How it is looked after.
    fn options(&self) -> &KeepOptions;
    /// Whose points the rules are for.
    fn group(&self) -> Option<&Name>;
    /// How a person calls it.
    fn name(&self) -> &str;
    /// Waits so long, or until the end comes; `false` if it has come.
    fn rest(&self, time: Duration) -> bool;
    /// Whether the end has come.
    fn is_ending(&self) -> bool;
    /// The store; `None` if it is not open.
    fn use_store(&self) -> Option<Used<'_>>;
}

/// What could not be done is tried again after this.
const AGAIN: Duration = Duration::from_mins(1);
/// A scrub lets others have their turn after this.
const SLICE: Duration = Duration::from_mins(5);
/// How often it is looked whether a scrub is due.
const LOOK: Duration = Duration::from_mins(1);

/// How far a scrub has come.
#[derive(Clone, Default)]
struct Reached {
    after: Option<ScrubPosition>,
    before: [u64; 3],
}

/// Looks after a store until the end.
pub fn keep(kept: &dyn Kept) {
    let (options, now) = (kept.options(), || kept.clock().monotonic());
    let began = now();
    let mut tidy_at = options.every.map(|every| began + every);
    let mut look_at = options.scrub_every.map(|every| began + every.min(LOOK));
    let mut scrub: Option<Reached> = None;
    loop {
        let Some(next) = tidy_at.into_iter().chain(look_at).min() else {
            return;
        };
        if !kept.rest(next.saturating_sub(now())) {
            return;
        }
        let time = now();
        if let (Some(every), Some(due)) = (options.every, tidy_at)
            && due <= time
        {
            tidy_at = Some(now() + tidy(kept, every));
        }
        if let (Some(every), Some(due)) = (options.scrub_every, look_at)
            && due <= time
        {
            look_at = Some(now() + look(kept, &mut scrub, every));
        }
    }
}

/// Removes points and collects garbage. Returns when it is to be done again.
fn tidy(kept: &dyn Kept, every: Duration) -> Duration {
    let failed = [apply(kept), collect(kept)].into_iter();
    let failed = failed.filter_map(Result::err);
    match failed.inspect(|error| complain(kept, error)).count() {
        0 => every,
        _ => every.min(AGAIN),
    }
}

/// Scrubs on, where that is due. Returns when to look again.
fn look(kept: &dyn Kept, scrub: &mut Option<Reached>, every: Duration) -> Duration {
    if scrub.is_none() && is_scrub_due(kept, every) {
        *scrub = Some(Reached::default());
    }
    let Some(reached) = scrub.clone() else {
        return every.min(LOOK);
    };
    match slice(kept, reached) {
        Ok(Slice::Ended) => {
            *scrub = None;
            every.min(LOOK)
        }
        Ok(Slice::Reached(more)) => {
            *scrub = Some(more);
            Duration::ZERO
        }
        // It goes on where it was.
        Ok(Slice::NotOpen) => AGAIN,
        Err(error) => {
            complain(kept, &error);
            AGAIN
        }
    }
}

/// How a part of a scrub ended.
enum Slice {
    Ended,
    Reached(Reached),
    NotOpen,
}

/// Whoever writes meets it too, and shows it.
fn complain(kept: &dyn Kept, error: &KeepError) {
    warn!(
        name = kept.name(),
        error = chain(error),
        "the target could not be looked after"
    );
}

fn apply(kept: &dyn Kept) -> Result<(), KeepError> {
    let options = kept.options();
    if options.rules.is_empty() {
        return Ok(());
    }
    let apply = Chore::Apply {
        group: kept.group().map(Name::to_string),
        rules: options.rules,
        delay_s: whole_seconds(options.delay),
    };
    if let Done::Points { points } = do_chore(kept, &apply)?
        && !points.is_empty()
    {
        info!(
            name = kept.name(),
            count = points.len(),
            "points that no rule keeps were removed"
        );
    }
    Ok(())
}

fn collect(kept: &dyn Kept) -> Result<(), KeepError> {
    let options = kept.options();
    let collect = Chore::Collect {
        dry_run: false,
        quarantine_s: whole_seconds(options.quarantine),
        compact_below: 0.7,
        rate: Some(options.rate),
    };
    if let Done::Collected(figures) = do_chore(kept, &collect)?
        && figures.report.freed_bytes + figures.report.removed_bytes > 0
    {
        info!(
            name = kept.name(),
            freed_bytes = figures.report.freed_bytes,
            removed_bytes = figures.report.removed_bytes,
            "garbage was collected"
        );
    }
    Ok(())
}

/// A part of a scrub.
fn slice(kept: &dyn Kept, reached: Reached) -> Result<Slice, KeepError> {
    let Some(used) = kept.use_store() else {
        return Ok(Slice::NotOpen);
    };
    let end = kept.clock().monotonic() + SLICE;
    let stop = || kept.clock().monotonic() >= end || kept.is_ending() || (used.is_over)();
    let context = Context {
        clock: kept.clock(),
        progress: &|_, _| (),
        stop: &stop,
        threads: 1,
    };
    let pace = Pace::new(Some(kept.options().rate), &context);
    let report = used.store.scrub(&ScrubOptions {
        after: reached.after,
        before: reached.before,
        pace: &|bytes| pace.keep(bytes),
        stop: &stop,
        ..ScrubOptions::default()
    })?;
    for lost in &report.lost {
        warn!(
            name = kept.name(),
            object = lost.object,
            what = lost.what,
            "the target has lost an object; `standin store scrub` says what that costs"
        );
    }
    let found = [
        report.objects,
        report.healed.len() as u64,
        report.lost.len() as u64,
    ];
    let sums = [0, 1, 2].map(|i| reached.before[i] + found[i]);
    if report.reached.is_none() {
        let [objects, healed, lost] = sums;
        info!(
            name = kept.name(),
            objects, healed, lost, "the target was scrubbed"
        );
        return Ok(Slice::Ended);
    }
    Ok(Slice::Reached(Reached {
        after: report.reached,
        before: sums,
    }))
}

/// Does a chore on the store that its writer has open.
///
/// # Errors
/// `NotOpen`, and whatever the chore meets.
pub fn do_chore(kept: &dyn Kept, chore: &Chore) -> Result<Done, KeepError> {
    let used = kept.use_store().ok_or(KeepError::NotOpen)?;
    let stop = || kept.is_ending() || (used.is_over)();
    let context = Context {
        clock: kept.clock(),
        progress: &|_, _| (),
        stop: &stop,
        threads: 1,
    };
    Ok(perform(&used.store, chore, &context)?)
}

fn is_scrub_due(kept: &dyn Kept, every: Duration) -> bool {
    let Some(Used { store, .. }) = kept.use_store() else {
        return false;
    };
    // A new store has its first when it is as old as that.
    let last = store.last_scrub().map(|scrub| scrub.ended_at);
    let since = last.or_else(|| store.began_at());
    since.is_none_or(|since| store.now().since(since) >= every)
}
