//! What a group is doing, put together for whoever asks.

use block::BlockDevice;

use crate::Target;
use crate::api::{DiskStatus, GroupStatus, LadderStatus, Priority, Rung, SeedStatus, State};
use crate::engine::gaps::gap_of_stopped;
use crate::engine::{Engine, Stop};
use crate::places::GroupPlace;
use crate::trouble::Step;
use crate::world::World;
use dd_target::Rate;

/// Cuts that may wait for the target before the state says so: one that was just made is not late.
const SEALED_USUAL: usize = 2;

/// Of a running group.
pub(crate) fn of_running(engine: &Engine, productions: &[String]) -> GroupStatus {
    let figures = engine.group.figures();
    let now = engine.now();
    let (rung, ladder) = engine.ladder.status();
    let gap = engine.open_gap();
    let stale = figures.disks.iter().find_map(|disk| disk.trouble.clone());
    let mut shared = engine.shared.lock();
    match stale {
        Some(trouble) => {
            shared.troubles.note(Step::Copy, trouble, now);
        }
        None => shared.troubles.clear(Step::Copy),
    }
    let state = match () {
        () if shared.stop != Stop::No => State::Stopping,
        () if shared.fenced => State::Fenced,
        () if rung >= Rung::MapOnly => State::Degraded,
        () if shared.troubles.has(Step::Copy) || shared.troubles.has(Step::Cut) => State::Degraded,
        () if !shared.target_seen => State::Starting,
        () if !shared.seeded && shared.troubles.has(Step::OpenTarget) => State::Lagging,
        () if !shared.seeded => State::Seeding,
        () if shared.troubles.hold_up_points() || figures.sealed_count > SEALED_USUAL => {
            State::Lagging
        }
        // The copy is complete; it is a point with the first cut.
        () if shared.first_point_due => State::Seeding,
        () => State::Protected,
    };
    let wall = engine.world.clock.wall();
    let disks = figures
        .disks
        .iter()
        .zip(productions)
        .zip(engine.group.disks());
    GroupStatus {
        name: engine.name.to_string(),
        state,
        rung,
        ladder,
        point: shared.newest.as_ref().map(|point| point.id.clone()),
        point_age_s: shared
            .newest
            .as_ref()
            .map(|point| wall.since(point.at).as_secs_f64()),
        gap,
        dirty_bytes: figures.dirty_bytes,
        diff_bytes: figures.diff_bytes,
        sealed: figures.sealed_count as u64,
        generation: figures.open_generation.0,
        lineage: figures.lineage.to_string(),
        reread_bytes: engine.reread_bytes(),
        seed: engine.seed.status(),
        target: engine.target.to_string(),
        every: engine.every.to_string(),
        pid: Some(std::process::id()),
        trouble: shared.troubles.first(now),
        ship_priority: engine.crew.priority(),
        ship_bytes_per_s: engine.ship_rate.map(Rate::bytes_per_s),
        audit: engine.audit_status(),
        cuts: shared.cuts,
        ticks_skipped: shared.ticks_skipped,
        cut_lateness_us: shared.lateness.spread(),
        cut_pause_us: shared.pauses.spread(),
        last_cut: shared.last_cut.clone(),
        last_ship: shared.last_ship.clone(),
        disks: disks
            .map(|((figures, production), disk)| DiskStatus {
                name: figures.name.to_string(),
                size: disk.size(),
                dirty_bytes: figures.dirty_bytes,
                stale_bytes: figures.stale_bytes,
                production: production.clone(),
            })
            .collect(),
        exports: engine.exports.get().cloned().unwrap_or_default(),
    }
}

/// Of a group that no process protects: what its record and its target say.
pub(crate) fn of_stopped(place: &GroupPlace, world: &World) -> GroupStatus {
    let record = place.record();
    let target = record.as_ref().map(|record| record.target.clone());
    let store = target
        .as_ref()
        .and_then(|url| url.parse::<Target>().ok()?.reader(&world.clock).ok());
    let newest = store.and_then(|store| store.newest(place.group()));
    let wall = world.clock.wall();
    let disk = |disk: &crate::places::RecordedDisk| DiskStatus {
        name: disk.name.clone(),
        size: 0,
        dirty_bytes: 0,
        stale_bytes: 0,
        production: disk.path.display().to_string(),
    };
    GroupStatus {
        name: place.group().to_string(),
        state: State::Stopped,
        rung: Rung::default(),
        ladder: LadderStatus::default(),
        point: newest.as_ref().map(|point| point.id.to_string()),
        point_age_s: newest
            .as_ref()
            .map(|point| wall.since(point.at).as_secs_f64()),
        gap: newest.as_ref().and_then(|point| {
            let every = record.as_ref().map_or("", |record| &record.every);
            gap_of_stopped(point.at, every, wall)
        }),
        dirty_bytes: 0,
        diff_bytes: 0,
        sealed: 0,
        generation: 0,
        lineage: String::new(),
        reread_bytes: 0,
        seed: SeedStatus::default(),
        target: target.unwrap_or_default(),
        every: record.as_ref().map(|r| r.every.clone()).unwrap_or_default(),
        pid: None,
        trouble: None,
        ship_priority: Priority::Normal,
        ship_bytes_per_s: None,
        audit: None,
        cuts: 0,
        ticks_skipped: 0,
        cut_lateness_us: None,
        cut_pause_us: None,
        last_cut: None,
        last_ship: None,
        disks: record.iter().flat_map(|r| &r.disks).map(disk).collect(),
        exports: Vec::new(),
    }
}
