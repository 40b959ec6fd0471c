//! The write plane: what a shipper needs to add points, and nothing else.
//!
//! ```text
//! draft --> ask (what is known is laid into the image) --> regions (what was lacking) --> finish --> point
//! ```
//!
//! Rule: a chunk is stored only under the fingerprint that it was found to have. No call here reads what is stored, removes,
//! replaces or backdates anything.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::{Extension, Json};
use block::{GranuleRange, Name};
use serde::Deserialize;
use store::{Base, FinishedImage, PointDraft, PointRecord, SeedDraft, Store, StoreError};

use crate::api::{
    DraftBase, DraftId, FinishedDraft, Point, PointList, Seed, SeedFound, Told, ZeroRanges,
};
use crate::record::{self, NewPoint};
use crate::server::admin::{asked, given};
use crate::server::audit::Event;
use crate::server::draft::{Draft, OfShip};
use crate::server::drafts::full;
use crate::server::guard::Caller;
use crate::server::limits::{
    AHEAD_MAX, BEHIND_MAX, DISK_BYTES_MAX, DISKS_MAX, LABELS_BYTES_MAX, NUMBERS_SKIPPED_MAX,
    POINTS_MAX, ZERO_RANGES_MAX,
};
use crate::server::refusal::{Answer, Refusal};
use crate::server::vaults::Vault;
use crate::server::{Inner, Shared, blocking};
use crate::wire;

const TOLD: Json<Told> = Json(Told { done: true });

pub(crate) async fn begin(
    State(shared): State<Shared>,
    Extension(caller): Extension<Caller>,
    Path(vault): Path<String>,
    query: Result<Query<Ship>, QueryRejection>,
    body: Result<Json<DraftBase>, JsonRejection>,
) -> Answer<Json<DraftId>> {
    let of = asked(query)?.draft()?;
    let base = match given(body)? {
        DraftBase::Empty(size) => Base::Empty { size },
        DraftBase::Image(image) => {
            let image = record::image(&image);
            Base::Image(image.ok_or_else(|| Refusal::invalid("it is no image's reference"))?)
        }
    };
    if base.size() > DISK_BYTES_MAX {
        let sentence = "a disk is larger than 64 TiB, which a server does not take";
        return Err(Refusal::invalid(sentence));
    }
    if shared.is_ending() {
        return Err(Refusal::ending());
    }
    blocking(move || {
        let vault = shared.vaults.find(&vault)?;
        let draft = shared.drafts.begin(&caller, &vault, (base, of))?;
        Ok(Json(DraftId { draft }))
    })
    .await
}

/// Gives a draft up: its client does not go on with it.
pub(crate) async fn give_up(
    State(shared): State<Shared>,
    Extension(caller): Extension<Caller>,
    Path((vault, id)): Path<(String, String)>,
) -> Answer<Json<Told>> {
    blocking(move || {
        shared.drafts.find(&caller, &vault, &id)?;
        shared.drafts.forget(&id);
        Ok(TOLD)
    })
    .await
}

pub(crate) async fn ask(
    State(shared): State<Shared>,
    Extension(caller): Extension<Caller>,
    Path((vault, id)): Path<(String, String)>,
    body: Bytes,
) -> Answer<Vec<u8>> {
    let entries = wire::entries(&body).map_err(|e| Refusal::invalid(e.to_string()))?;
    blocking(move || {
        let draft = shared.drafts.find(&caller, &vault, &id)?;
        check_room(&draft, 0)?;
        let lacking = shared.drafts.write(&draft, |writer| {
            let asked = entries.iter();
            let lacks =
                asked.map(|(granule, print)| writer.put_known(*granule, print).map(|known| !known));
            lacks.collect::<Result<Vec<_>, _>>()
        })?;
        Ok(wire::bitmap(&lacking))
    })
    .await
}

pub(crate) async fn regions(
    State(shared): State<Shared>,
    Extension(caller): Extension<Caller>,
    Path((vault, id)): Path<(String, String)>,
    body: Bytes,
) -> Answer<Json<Told>> {
    let frames = wire::frames(&body).map_err(|e| Refusal::invalid(e.to_string()))?;
    blocking(move || {
        let draft = shared.drafts.find(&caller, &vault, &id)?;
        check_room(&draft, body.len() as u64)?;
        for frame in frames {
            put(&shared, &caller, &draft, frame)?;
        }
        shared.figures.shipped(body.len() as u64);
        Ok(TOLD)
    })
    .await
}

/// Everything that is laid into an image takes space, be it no chunk but where one lies.
fn check_room(draft: &Draft, more: u64) -> Answer<()> {
    let vault = draft.vault();
    match vault.is_full(&vault.store()?, more) {
        true => Err(full(vault)),
        false => Ok(()),
    }
}

/// Stores a region, once all of its chunks were found to be what they are said to be.
fn put(shared: &Inner, caller: &Caller, draft: &Draft, frame: wire::Frame) -> Answer<()> {
    let count = frame.entries.len();
    let place = |granule| (granule != wire::NOWHERE).then_some(granule);
    let entries = frame.entries.into_iter();
    let (granules, prints) = entries.map(|(g, f)| (place(g), f)).unzip();
    let why = match draft.check().check(granules, prints, frame.region) {
        Ok(checked) => {
            return shared
                .drafts
                .write(draft, |writer| writer.put_checked(checked));
        }
        Err(StoreError::Invalid(why)) => why,
        Err(error) => return Err(error.into()),
    };
    shared.figures.poisoned();
    let what = format!("a region of {count} chunks was refused");
    let mut entry = caller.entry(Event::Poisoned, Some(&draft.vault().name), what);
    entry.why = Some(why.to_owned());
    shared.record_some(entry)?;
    let sentence = format!("the region is not what it is said to be: {why}");
    Err(Refusal::new(StatusCode::UNPROCESSABLE_ENTITY, sentence))
}

pub(crate) async fn zero(
    State(shared): State<Shared>,
    Extension(caller): Extension<Caller>,
    Path((vault, id)): Path<(String, String)>,
    body: Result<Json<ZeroRanges>, JsonRejection>,
) -> Answer<Json<Told>> {
    let ranges = given(body)?.ranges;
    if ranges.len() > ZERO_RANGES_MAX || ranges.iter().any(|(start, end)| start >= end) {
        return Err(Refusal::invalid(
            "there are too many ranges, or an empty one",
        ));
    }
    blocking(move || {
        let draft = shared.drafts.find(&caller, &vault, &id)?;
        check_room(&draft, 0)?;
        shared.drafts.write(&draft, |writer| {
            let mut ranges = ranges.iter().map(|(start, end)| GranuleRange {
                start: *start,
                end: *end,
            });
            ranges.try_for_each(|granules| writer.zero(granules))
        })?;
        Ok(TOLD)
    })
    .await
}

pub(crate) async fn finish(
    State(shared): State<Shared>,
    Extension(caller): Extension<Caller>,
    Path((vault, id)): Path<(String, String)>,
    query: Result<Query<Finish>, QueryRejection>,
) -> Answer<Json<FinishedDraft>> {
    let Finish { root } = asked(query)?;
    blocking(move || {
        let draft = shared.drafts.find(&caller, &vault, &id)?;
        check_room(&draft, 0)?;
        let image = draft.finish()?;
        if let Some(root) = root {
            check_root(&shared, &caller, &draft, &image, &root)?;
        }
        Ok(Json(FinishedDraft {
            image: record::image_text(image.image()),
            stored_bytes: image.stored_new_bytes(),
            changed_bytes: image.changed_bytes(),
        }))
    })
    .await
}

pub(crate) async fn commit(
    State(shared): State<Shared>,
    Extension(caller): Extension<Caller>,
    Path(vault): Path<String>,
    body: Result<Json<crate::api::NewPoint>, JsonRejection>,
) -> Answer<Json<Point>> {
    let new = given(body)?;
    check_disks(new.disks.len())?;
    check_labels(&new.labels)?;
    let group = group_of(&new.group)?;
    let new = record::new_point(new).ok_or_else(|| Refusal::invalid("it is no point"))?;
    blocking(move || {
        let vault = shared.vaults.find(&vault)?;
        shared.check_group(&caller, &vault, &group)?;
        // Each may wait for who is at work on its draft, and points of others do not wait with it.
        let disks = shared.disks(&caller, &vault, &new.disks);
        let _one_by_one = vault.committing.lock();
        let listed = shared.list_point(&caller, &vault, (&group, &new), disks)?;
        Ok(Json(record::point(&listed)))
    })
    .await
}

/// Says yes or no, and writes down each no: whoever could ask for roots would learn what is in images that he only names.
fn check_root(
    shared: &Inner,
    caller: &Caller,
    draft: &Draft,
    image: &FinishedImage,
    root: &str,
) -> Answer<()> {
    let vault = draft.vault();
    if vault.store()?.image(image.image())?.root()?.to_string() == *root {
        return Ok(());
    }
    let why = "the image has not the content that it should have";
    let mut entry = caller.entry(Event::Refused, Some(&vault.name), "an image".to_owned());
    entry.why = Some(why.to_owned());
    shared.refused(entry)?;
    Err(Refusal::new(StatusCode::UNPROCESSABLE_ENTITY, why))
}

/// Numbers are never given twice: whoever could take the last one would end the group.
fn check_number(store: &Store, group: &Name, sequence: u64) -> Answer<()> {
    let next = store.next_number(group);
    match (next..next.saturating_add(NUMBERS_SKIPPED_MAX)).contains(&sequence) {
        true => Ok(()),
        false => Err(Refusal::new(
            StatusCode::CONFLICT,
            format!("the next number of group {group} is {next}"),
        )),
    }
}

/// Whether a listed point is what is asked for again, after an answer that was lost: its images are those of the drafts.
/// Where they are gone, it is not older than what is asked for.
fn is_repeated(
    listed: &PointRecord,
    at: block::UnixNanos,
    disks: Option<&[(Name, FinishedImage)]>,
) -> bool {
    match disks {
        Some(disks) => {
            let same = |(name, image): &(Name, FinishedImage)| {
                let disk = listed.disk(name);
                disk.is_some_and(|disk| disk.image == *image.image())
            };
            disks.len() == listed.disks.len() && disks.iter().all(same)
        }
        None => at <= listed.at,
    }
}

/// The point of this cut, if it is listed.
fn listed(
    store: &Store,
    group: &Name,
    lineage: &[u8; 16],
    generation: u64,
) -> Option<Arc<PointRecord>> {
    let points = store.points();
    let mut of_group = points.into_iter().rev().filter(|p| p.id.group == *group);
    of_group.find(|point| point.lineage == *lineage && point.generation == generation)
}

pub(crate) async fn save_seed(
    State(shared): State<Shared>,
    Extension(caller): Extension<Caller>,
    Path((vault, group)): Path<(String, String)>,
    body: Result<Json<Seed>, JsonRejection>,
) -> Answer<Json<Told>> {
    let seed = given(body)?;
    check_disks(seed.disks.len())?;
    let group = group_of(&group)?;
    blocking(move || {
        let vault = shared.vaults.find(&vault)?;
        shared.check_group(&caller, &vault, &group)?;
        let (turn, store) = (vault.turn(), vault.store()?);
        if vault.is_full(&store, 0) {
            return Err(full(&vault));
        }
        let disks = seed.disks.iter().map(|disk| {
            let invalid = || Refusal::invalid("it is no disk of a first copy");
            Ok(store::SeedDisk {
                name: disk.name.parse().map_err(|_| invalid())?,
                cursor_granule: disk.cursor_granule,
                image: shared.seeded(&caller, &vault, &store, disk)?,
            })
        });
        let draft = SeedDraft {
            disks: disks.collect::<Answer<_>>()?,
            lineage: record::lineage(&seed.lineage)
                .ok_or_else(|| Refusal::invalid("it is no lineage"))?,
            generation: seed.generation,
            group,
        };
        let saved = store.save_seed(draft);
        saved.inspect_err(|error| vault.lose(turn, error))?;
        let drafts = seed.disks.iter().filter_map(|disk| disk.draft.as_ref());
        let own = |id: &&String| shared.drafts.find(&caller, vault.name.as_str(), id).is_ok();
        drafts.filter(own).for_each(|id| shared.drafts.forget(id));
        Ok(TOLD)
    })
    .await
}

/// What a draft belongs to.
#[derive(Deserialize)]
pub(crate) struct Ship {
    /// 16 bytes, in hexadecimal digits.
    ship: Option<String>,
    number: Option<u64>,
}

impl Ship {
    fn draft(self) -> Answer<Option<OfShip>> {
        match (self.ship.as_deref().map(record::lineage), self.number) {
            (None, None) => Ok(None),
            (Some(Some(ship)), Some(number)) => Ok(Some(OfShip { ship, number })),
            _ => Err(Refusal::invalid(
                "a draft of a ship has the ship's name, of 32 hexadecimal digits, and a number",
            )),
        }
    }
}

/// What is asked for with a complete image.
#[derive(Deserialize)]
pub(crate) struct Finish {
    /// What the whole content of the image must come to, in hexadecimal digits.
    root: Option<String>,
}

#[derive(Deserialize)]
pub(crate) struct Which {
    lineage: Option<String>,
}

pub(crate) async fn points(
    State(shared): State<Shared>,
    Extension(caller): Extension<Caller>,
    Path((vault, group)): Path<(String, String)>,
    query: Result<Query<Which>, QueryRejection>,
) -> Answer<Json<PointList>> {
    let Which { lineage } = asked(query)?;
    let group = group_of(&group)?;
    blocking(move || {
        let vault = shared.vaults.find(&vault)?;
        shared.check_group(&caller, &vault, &group)?;
        let store = vault.store()?;
        let points = store.points();
        let of_group = points.iter().rev().filter(|point| point.id.group == group);
        let told = of_group.map(|point| record::point(point));
        let wanted = told.filter(|point| lineage.as_ref().is_none_or(|l| *l == point.lineage));
        let points = wanted.take(POINTS_MAX).collect();
        let next_sequence = store.next_number(&group);
        Ok(Json(PointList {
            points,
            next_sequence,
        }))
    })
    .await
}

pub(crate) async fn seed(
    State(shared): State<Shared>,
    Extension(caller): Extension<Caller>,
    Path((vault, group)): Path<(String, String)>,
) -> Answer<Json<SeedFound>> {
    let group = group_of(&group)?;
    blocking(move || {
        let vault = shared.vaults.find(&vault)?;
        shared.check_group(&caller, &vault, &group)?;
        let seed = vault.store()?.seed(&group);
        let seed = seed.map(|seed| record::seed(&seed));
        Ok(Json(SeedFound { seed }))
    })
    .await
}

/// Before any work is done for them.
fn check_disks(count: usize) -> Answer<()> {
    match count <= DISKS_MAX {
        true => Ok(()),
        false => Err(Refusal::invalid(format!(
            "a group has {DISKS_MAX} disks at most"
        ))),
    }
}

/// They are in no quota, and in memory as long as the point is listed.
fn check_labels(labels: &BTreeMap<String, String>) -> Answer<()> {
    let bytes = labels.iter().map(|(key, value)| key.len() + value.len());
    match bytes.sum::<usize>() <= LABELS_BYTES_MAX {
        true => Ok(()),
        false => Err(Refusal::invalid(format!(
            "the labels of a point have {LABELS_BYTES_MAX} bytes together, at most"
        ))),
    }
}

fn group_of(text: &str) -> Answer<Name> {
    text.parse()
        .map_err(|e: block::InvalidName| Refusal::invalid(e.to_string()))
}

impl Inner {
    /// The images of a point's drafts.
    fn disks(
        &self,
        caller: &Caller,
        vault: &Vault,
        drafts: &[(Name, String)],
    ) -> Answer<Vec<(Name, FinishedImage)>> {
        let disk = |(name, id): &(Name, String)| {
            let draft = self.drafts.find(caller, vault.name.as_str(), id)?;
            Ok((name.clone(), draft.image()?))
        };
        drafts.iter().map(disk).collect()
    }

    /// Lists a point, or finds it listed, and forgets its drafts.
    fn list_point(
        &self,
        caller: &Caller,
        vault: &Vault,
        (group, new): (&Name, &NewPoint),
        disks: Answer<Vec<(Name, FinishedImage)>>,
    ) -> Answer<Arc<PointRecord>> {
        let (turn, store) = (vault.turn(), vault.store()?);
        if let Some(point) = listed(&store, group, &new.lineage, new.generation) {
            if !is_repeated(&point, new.at, disks.as_deref().ok()) {
                let sentence = "another point of that cut is listed already";
                return Err(Refusal::new(StatusCode::CONFLICT, sentence));
            }
            if disks.is_ok() {
                self.forget(&new.disks);
            }
            return Ok(point);
        }
        let at = self.check_time(caller, vault, &store, group, new.at)?;
        if vault.is_full(&store, 0) {
            return Err(full(vault));
        }
        let draft = PointDraft {
            group: group.clone(),
            disks: disks?,
            at,
            lineage: new.lineage,
            generation: new.generation,
            labels: new.labels.clone(),
            consistency: new.consistency,
        };
        let point = match new.sequence {
            None => store.commit_point(draft),
            Some(sequence) => {
                check_number(&store, group, sequence)?;
                store.commit_replica(&draft, sequence)
            }
        };
        let point = point.inspect_err(|error| vault.lose(turn, error))?;
        self.forget(&new.disks);
        self.figures.point();
        Ok(point)
    }

    fn forget(&self, drafts: &[(Name, String)]) {
        drafts.iter().for_each(|(_, id)| self.drafts.forget(id));
    }

    /// A token that is bound to groups learns and adds nothing of others.
    fn check_group(&self, caller: &Caller, vault: &Vault, group: &Name) -> Answer<()> {
        match caller.may_ship(group) {
            true => Ok(()),
            false => Err(self.forbid(
                caller,
                vault,
                format!("group {group}"),
                "the token is not for this group",
            )?),
        }
    }

    /// Points of a group go forward in time, and not beyond the server's. When a point is said to have been cut: a clock that
    /// was set back a little between two cuts must not keep the second one out.
    fn check_time(
        &self,
        caller: &Caller,
        vault: &Vault,
        store: &Store,
        group: &Name,
        at: block::UnixNanos,
    ) -> Answer<block::UnixNanos> {
        let newest = store.newest(group).map_or(at, |newest| newest.at);
        let why = match () {
            () if at + BEHIND_MAX < newest => "it would be older than the group's newest point",
            () if at > self.clock.wall() + AHEAD_MAX => "it would be ahead of the server's clock",
            () => return Ok(at.max(newest)),
        };
        Err(self.forbid(
            caller,
            vault,
            format!("a point of group {group} at {}", at.0),
            why,
        )?)
    }

    /// Writes down that somebody was refused.
    fn forbid(&self, caller: &Caller, vault: &Vault, what: String, why: &str) -> Answer<Refusal> {
        let mut entry = caller.entry(Event::Refused, Some(&vault.name), what);
        entry.why = Some(why.to_owned());
        self.refused(entry)?;
        Ok(Refusal::new(StatusCode::FORBIDDEN, why))
    }

    /// The image of a seed's disk: a draft's, or one that the vault holds.
    fn seeded(
        &self,
        caller: &Caller,
        vault: &Vault,
        store: &Store,
        disk: &crate::api::SeedDisk,
    ) -> Answer<FinishedImage> {
        let draft = disk
            .draft
            .as_ref()
            .map(|id| self.drafts.find(caller, vault.name.as_str(), id));
        if let Some(Ok(draft)) = draft {
            return draft.image();
        }
        let image = record::image(&disk.image);
        let image = image.ok_or_else(|| Refusal::invalid("it is no image's reference"))?;
        Ok(store.image_writer(Base::Image(image))?.finish()?)
    }
}
