//! The thread that looks after the target while this protection writes to it: removes the points that the user's
//! rules do not keep, collects garbage, scrubs.
//!
//! Rule: it takes no more of the disk than its rate, and nobody waits for it: a chore ends early when the
//! protection ends, or when stage two has to open the target again. What one chore meets keeps none of the others
//! from being done; a scrub goes on where it was, a slice at a time.

use std::time::Duration;

use store::{Policy, ScrubOptions, ScrubPosition};
use tracing::{info, warn};

use crate::engine::{Engine, Stop};
use crate::upkeep::{Chore, Context, Done, Pace, perform, whole_seconds};
use crate::{Error, Result};

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

/// What could not be done is tried again after this.
const AGAIN: Duration = Duration::from_mins(1);
/// A scrub lets others have their turn after this.
const SLICE: Duration = Duration::from_mins(5);
/// How often it is looked whether a scrub is due.
const LOOK: Duration = Duration::from_mins(1);

/// How far a scrub has come.
#[derive(Default)]
struct Progress {
    after: Option<ScrubPosition>,
    before: [u64; 3],
}

/// Looks after the target until the exports close.
pub(crate) fn run(engine: &Engine) {
    let keep = engine.keep;
    let began = engine.now();
    let mut tidy_at = keep.every.map(|every| began + every);
    let mut look_at = keep.scrub_every.map(|every| began + every.min(LOOK));
    let mut scrub: Option<Progress> = None;
    loop {
        let Some(next) = tidy_at.into_iter().chain(look_at).min() else {
            return;
        };
        let wait = next.saturating_sub(engine.now());
        if engine.wait(Some(wait), Stop::No, |_| false).stop != Stop::No {
            return;
        }
        let now = engine.now();
        if let (Some(every), Some(due)) = (keep.every, tidy_at)
            && due <= now
        {
            let done = [apply(engine), collect(engine)];
            let failed = done.into_iter().filter_map(Result::err);
            let failures = failed.inspect(|error| complain(engine, error)).count();
            let pause = if failures == 0 {
                every
            } else {
                every.min(AGAIN)
            };
            tidy_at = Some(engine.now() + pause);
        }
        if let (Some(every), Some(due)) = (keep.scrub_every, look_at)
            && due <= now
        {
            if scrub.is_none() && engine.is_scrub_due() {
                scrub = Some(Progress::default());
            }
            let pause = match scrub.take() {
                None => every.min(LOOK),
                Some(progress) => match slice(engine, progress) {
                    Ok(None) => every.min(LOOK),
                    Ok(more) => {
                        scrub = more;
                        Duration::ZERO
                    }
                    Err(error) => {
                        complain(engine, &error);
                        AGAIN
                    }
                },
            };
            look_at = Some(engine.now() + pause);
        }
    }
}

/// Whoever ships meets it too, and shows it.
fn complain(engine: &Engine, error: &Error) {
    warn!(group = %engine.name, error = crate::chain(error), "the target could not be looked after");
}

fn apply(engine: &Engine) -> Result<()> {
    let keep = engine.keep;
    if keep.rules.is_empty() {
        return Ok(());
    }
    let apply = Chore::Apply {
        group: Some(engine.name.to_string()),
        rules: keep.rules,
        delay_s: whole_seconds(keep.delay),
    };
    if let Done::Points { points } = engine.do_chore(&apply)?
        && !points.is_empty()
    {
        info!(group = %engine.name, count = points.len(), "points that no rule keeps were removed");
    }
    Ok(())
}

fn collect(engine: &Engine) -> Result<()> {
    let keep = engine.keep;
    let collect = Chore::Collect {
        dry_run: false,
        quarantine_s: whole_seconds(keep.quarantine),
        compact_below: 0.7,
        rate: Some(keep.rate),
    };
    if let Done::Collected(figures) = engine.do_chore(&collect)?
        && figures.report.freed_bytes + figures.report.removed_bytes > 0
    {
        info!(group = %engine.name, freed_bytes = figures.report.freed_bytes, removed_bytes = figures.report.removed_bytes, "garbage was collected");
    }
    Ok(())
}

/// A part of a scrub. Returns how far it has come; `None` once it has ended.
fn slice(engine: &Engine, progress: Progress) -> Result<Option<Progress>> {
    let Some(used) = engine.open_target.use_it() else {
        // It goes on when the target is open again.
        return Ok(Some(progress));
    };
    let end = engine.now() + SLICE;
    let stop = || engine.now() >= end || engine.stop() != Stop::No || used.is_over();
    let context = Context {
        clock: &*engine.world.clock,
        progress: &|_, _| (),
        stop: &stop,
        threads: 1,
    };
    let pace = Pace::new(Some(engine.keep.rate), &context);
    let scrubbed = used.store.scrub(&ScrubOptions {
        after: progress.after,
        before: progress.before,
        pace: &|bytes| pace.keep(bytes),
        stop: &stop,
        ..ScrubOptions::default()
    });
    let report = scrubbed.map_err(engine.target.failed("scrub the target"))?;
    for lost in &report.lost {
        warn!(group = %engine.name, object = lost.object, what = lost.what, "the target has lost an object; `standin store scrub` says what that costs");
    }
    let found = [
        report.objects,
        report.healed.len() as u64,
        report.lost.len() as u64,
    ];
    let sums = [0, 1, 2].map(|i| progress.before[i] + found[i]);
    if report.reached.is_none() {
        let [objects, healed, lost] = sums;
        info!(group = %engine.name, objects, healed, lost, "the target was scrubbed");
        return Ok(None);
    }
    Ok(Some(Progress {
        after: report.reached,
        before: sums,
    }))
}

impl Engine {
    /// Does a chore on the target that stage two has open.
    pub(crate) fn do_chore(&self, chore: &Chore) -> Result<Done> {
        let Some(used) = self.open_target.use_it() else {
            let target = self.target.to_string();
            return Err(Error::NotOpen { target });
        };
        let stop = || self.stop() != Stop::No || used.is_over();
        let context = Context {
            clock: &*self.world.clock,
            progress: &|_, _| (),
            stop: &stop,
            threads: 1,
        };
        perform(&used.store, chore, &context).map_err(self.target.failed("look after the store"))
    }

    fn is_scrub_due(&self) -> bool {
        let (Some(every), Some(used)) = (self.keep.scrub_every, self.open_target.use_it()) else {
            return false;
        };
        let last = used.store.last_scrub().map(|scrub| scrub.ended_at);
        // A new store has its first when it is as old as that.
        let since = last.or_else(|| used.store.began_at());
        since.is_none_or(|since| used.store.now().since(since) >= every)
    }
}
