//! Points that are copied to another store: the same content under the same numbers, what both have is not sent, and nobody
//! needs a key.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use block::{Dir, GRANULE, GranuleRange};
use common::{Content, chunk, commit, draft, key, name, read_all, seed_draft, thorough, with};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use sim::SimWorld;
use store::{
    Around, Backend, Base, CheckOptions, Directory, ErrorKind, PointDraft, PointId, RepairOptions,
    Replicated, Secret, Store, StoreError,
};

const GRANULES: u64 = 700;
/// The last granule is short.
const SIZE: u64 = GRANULES * GRANULE - 512;

fn place(dir: &Arc<dyn Dir>) -> Arc<dyn Backend> {
    Directory::backend(dir)
}

/// A store with a secret or without, and an empty replica.
fn pair(secret: Option<&Secret>) -> [Arc<dyn Backend>; 2] {
    let [there, here] = [1, 2].map(|seed| place(&SimWorld::new(seed).dir()));
    match secret {
        None => Store::create(&there).unwrap(),
        Some(key) => {
            let secrets = [(key.clone(), "a".into())];
            Store::create_encrypted(&there, &secrets, &with(None)).unwrap();
        }
    }
    Store::create_replica(&here, &there, &with(None)).unwrap();
    [there, here]
}

fn copy_all(here: &Store, there: &Store) -> Vec<Replicated> {
    let points = here.points_to_copy(there, None);
    let copy = |point: &Arc<store::PointRecord>| here.copy_point(there, &point.id, &|_, _| ());
    points.iter().map(|point| copy(point).unwrap()).collect()
}

fn stored(store: &Store) -> u64 {
    store.figures().container_bytes
}

#[test]
fn what_both_have_is_not_sent() {
    for secret in [None, Some(key(1))] {
        let [there, here] = pair(secret.as_ref());
        let theirs = Store::open_writer(&there, with(secret.clone())).unwrap();
        let mut content = Content::new(SIZE);
        commit(&theirs, &mut content, (0..640).map(|i| (i, i)));
        let ours = Store::open_writer(&here, with(None)).unwrap();
        let whole = copy_all(&ours, &theirs);
        assert_eq!(whole.len(), 1);
        assert!(whole[0].copied_bytes > 0 && stored(&ours) <= stored(&theirs));
        // Eight chunks of one region, and one that lies elsewhere already.
        let new = (96..104).map(|i| (i, 5000 + i)).chain([(650, 3)]);
        commit(&theirs, &mut content, new);
        let second = copy_all(&ours, &theirs);
        let record = &theirs.points()[1];
        assert_eq!(second[0].point.id, record.id);
        assert!(
            second[0].copied_bytes * 20 < whole[0].copied_bytes,
            "{second:?}"
        );
        assert_eq!(second[0].point.labels, record.labels);
        assert_eq!(
            (second[0].point.at, second[0].point.lineage),
            (record.at, record.lineage)
        );
        assert!(copy_all(&ours, &theirs).is_empty());
        drop(ours);
        let ours = Store::open_reader(&here, with(secret)).unwrap();
        let image = &ours.points()[1].disks[0].image;
        assert!(read_all(&ours.image(image).unwrap()) == content.bytes);
        assert!(ours.verify_image(image, &|_, _| ()).unwrap().is_whole());
    }
}

#[test]
fn stores_without_a_common_key_share_nothing() {
    let [there, _] = pair(Some(&key(1)));
    let theirs = Store::open_writer(&there, with(Some(key(1)))).unwrap();
    commit(&theirs, &mut Content::new(SIZE), [(0, 1)]);
    let plain = place(&SimWorld::new(3).dir());
    Store::create(&plain).unwrap();
    let other = place(&SimWorld::new(4).dir());
    Store::create_encrypted(&other, &[(key(1), "the same".into())], &with(None)).unwrap();
    for (place, secret) in [(plain, None), (other, Some(key(1)))] {
        let ours = Store::open_writer(&place, with(secret)).unwrap();
        let id = theirs.points()[0].id.clone();
        let refused = ours.copy_point(&theirs, &id, &|_, _| ()).unwrap_err();
        assert!(matches!(refused, StoreError::OtherKey), "{refused}");
    }
}

#[test]
fn a_number_is_given_once() {
    let [there, here] = pair(None);
    let theirs = Store::open_writer(&there, with(None)).unwrap();
    let mut content = Content::new(SIZE);
    commit(&theirs, &mut content, [(0, 1)]);
    commit(&theirs, &mut content, [(1, 2)]);
    let ours = Store::open_writer(&here, with(None)).unwrap();
    let points = theirs.points();
    ours.copy_point(&theirs, &points[1].id, &|_, _| ()).unwrap();
    // A later one is there: the earlier one would be listed after it.
    let refused = ours
        .copy_point(&theirs, &points[0].id, &|_, _| ())
        .unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Invalid);
    assert!(ours.points_to_copy(&theirs, None).is_empty());
    // Removed here, it stays removed.
    ours.remove_points(&[points[1].id.clone()], Duration::ZERO)
        .unwrap();
    assert!(ours.points_to_copy(&theirs, None).is_empty());
    let lost = ours
        .copy_point(&theirs, &"web@9".parse().unwrap(), &|_, _| ())
        .unwrap_err();
    assert_eq!(lost.kind(), ErrorKind::NotFound);
}

/// Random points of a group of two disks, removals, collections on both sides, and copies now and then: the copies have the
/// content that their points have there.
#[test]
fn histories_of_a_store_and_its_replica() {
    let seed = sim::seed_from_env(11);
    for history in 0..common::count_from_env("STANDIN_HISTORIES", 10) {
        let mut rng = ChaCha8Rng::seed_from_u64(seed.wrapping_add(history));
        let secret = rng.random_bool(0.5).then(|| key(1));
        let [there, here] = pair(secret.as_ref());
        let mut contents: BTreeMap<String, Vec<u8>> = BTreeMap::new();
        let mut now = [Content::new(SIZE), Content::new(SIZE)];
        for _ in 0..rng.random_range(2..6) {
            let list_runs_max = if rng.random_bool(0.3) { 40 } else { 64 << 10 };
            let around = Around {
                list_runs_max,
                ..with(secret.clone())
            };
            let theirs = Store::open_writer(&there, around).unwrap();
            for _ in 0..rng.random_range(1..5) {
                let newest = theirs.newest(&name("web"));
                let disks = [0, 1].map(|disk: usize| {
                    let base = match &newest {
                        Some(point) => Base::Image(point.disks[disk].image.clone()),
                        None => Base::Empty { size: SIZE },
                    };
                    let mut writer = theirs.image_writer(base).unwrap();
                    for _ in 0..rng.random_range(0..150) {
                        let granule = rng.random_range(0..GRANULES);
                        let mut data = chunk(rng.random_range(0..2000));
                        now[disk].put(granule, &mut data);
                        writer.put(granule, &data).unwrap();
                    }
                    let start = rng.random_range(0..GRANULES);
                    let end = GRANULES.min(start + rng.random_range(0..40));
                    now[disk].zero(GranuleRange { start, end });
                    writer.zero(GranuleRange { start, end }).unwrap();
                    let image = writer.finish().unwrap();
                    (name(["a", "b"][disk]), image)
                });
                let draft = PointDraft {
                    disks: disks.into(),
                    ..draft(
                        "web",
                        theirs
                            .image_writer(Base::Empty { size: 512 })
                            .unwrap()
                            .finish()
                            .unwrap(),
                    )
                };
                let point = theirs.commit_point(draft).unwrap();
                let bytes = now.iter().flat_map(|content| content.bytes.clone());
                contents.insert(point.id.to_string(), bytes.collect());
            }
            let secret_here = rng.random_bool(0.5).then(|| secret.clone()).flatten();
            let ours = Store::open_writer(&here, with(secret_here)).unwrap();
            if rng.random_bool(0.7) {
                copy_all(&ours, &theirs);
                assert_eq!(
                    ours.newest(&name("web")).unwrap().id,
                    theirs.newest(&name("web")).unwrap().id
                );
            }
            for store in [&ours, &theirs] {
                let points = store.points();
                for point in &points[..points.len().saturating_sub(1)] {
                    if rng.random_bool(0.3) {
                        store
                            .remove_points(std::slice::from_ref(&point.id), Duration::ZERO)
                            .unwrap();
                    }
                }
                store.collect_garbage(&thorough()).unwrap();
            }
        }
        let ours = Store::open_reader(&here, with(secret)).unwrap();
        for point in ours.points() {
            let read = point.disks.iter().flat_map(|disk| {
                assert!(
                    ours.verify_image(&disk.image, &|_, _| ())
                        .unwrap()
                        .is_whole()
                );
                read_all(&ours.image(&disk.image).unwrap())
            });
            let read: Vec<u8> = read.collect();
            assert!(
                read == contents[&point.id.to_string()],
                "seed {seed}, history {history}, {}",
                point.id
            );
        }
    }
}

/// A kill or a power cut at any operation of a copy: what is listed is whole, and the next copy goes on.
#[test]
fn a_crash_in_the_middle_of_a_copy_costs_time() {
    let secret = key(1);
    let there = place(&SimWorld::new(1).dir());
    Store::create_encrypted(&there, &[(secret.clone(), "a".into())], &with(None)).unwrap();
    let theirs = Store::open_writer(&there, with(Some(secret.clone()))).unwrap();
    let mut content = Content::new(SIZE);
    let mut contents = Vec::new();
    for round in 0..3 {
        commit(
            &theirs,
            &mut content,
            (0..120).map(|i| (i * 5 + round, 1000 * round + i)),
        );
        contents.push(content.bytes.clone());
    }
    for at in 0..common::count_from_env("STANDIN_CRASHES", 70) {
        let world = SimWorld::new(at);
        let here = place(&world.dir());
        Store::create_replica(&here, &there, &with(None)).unwrap();
        world.crash_after(at);
        if let Ok(ours) = Store::open_writer(&here, with(None)) {
            for point in ours.points_to_copy(&theirs, None) {
                if ours.copy_point(&theirs, &point.id, &|_, _| ()).is_err() {
                    break;
                }
            }
        }
        let after = if at % 2 == 0 {
            world.cut_power()
        } else {
            world.kill()
        };
        let here = place(&after.dir());
        let ours = Store::open_writer(&here, with(Some(secret.clone()))).unwrap();
        for turn in 0..2 {
            for (point, wanted) in ours.points().iter().zip(&contents) {
                let read = read_all(&ours.image(&point.disks[0].image).unwrap());
                assert!(read == *wanted, "operation {at}, turn {turn}");
            }
            copy_all(&ours, &theirs);
        }
        assert_eq!(ours.points().len(), 3, "operation {at}");
    }
}

/// The chunk of the last granule, which is short, must be seen, and was to be laid by its name alone where another granule of
/// the same few MiB held the same: the copy ended with "a bug".
#[test]
fn the_granule_in_which_a_disk_ends_may_be_like_another() {
    let [there, here] = pair(None);
    let theirs = Store::open_writer(&there, with(None)).unwrap();
    let mut last = vec![0; 4096];
    last[..4096 - 512].fill(7);
    let mut writer = theirs.image_writer(Base::Empty { size: SIZE }).unwrap();
    writer.put(3, &last).unwrap();
    writer.put(GRANULES - 1, &last).unwrap();
    let image = writer.finish().unwrap();
    theirs.commit_point(draft("g", image)).unwrap();
    let ours = Store::open_writer(&here, with(None)).unwrap();
    let copied = copy_all(&ours, &theirs);
    let image = ours.image(&copied[0].point.disks[0].image).unwrap();
    let read = read_all(&image);
    let end = read.len();
    assert!(read[3 * 4096..][..3584] == last[..3584] && read[end - 3584..] == last[..3584]);
}

/// The store, after these commits were lost and a repair went on without them.
fn repaired_without(there: &Arc<dyn Backend>, lost: &[u64]) -> Store {
    for number in lost {
        let name = format!("catalog/commit-{number:016}");
        there.remove(&name).unwrap();
    }
    let options = RepairOptions::default();
    let planned = Store::plan_repair(there, with(None), &options).unwrap();
    Store::repair(there, with(None), &planned, &options).unwrap();
    Store::open_writer(there, with(None)).unwrap()
}

/// Five points of a store, what they hold, and a replica with all of them.
fn five_points(
    there: &Arc<dyn Backend>,
    here: &Arc<dyn Backend>,
) -> (Store, Store, Vec<(PointId, Vec<u8>)>) {
    let ours = Store::open_writer(there, with(None)).unwrap();
    let mut content = Content::new(SIZE);
    let mut points = Vec::new();
    for turn in 0..5 {
        commit(
            &ours,
            &mut content,
            (0..90).map(|i| (i * 3, turn * 1000 + i)),
        );
        let point = ours.newest(&name("web")).unwrap();
        points.push((point.id.clone(), content.bytes.clone()));
    }
    let replica = Store::open_writer(here, with(None)).unwrap();
    copy_all(&replica, &ours);
    (ours, replica, points)
}

fn lost_in(ours: &Store, replica: &Store) -> Vec<PointId> {
    let lost = ours.lost_points_in(replica, None).unwrap();
    lost.iter().map(|point| point.id.clone()).collect()
}

/// A point whose commit was lost could be read at the replica only: `replicate` back said that nothing was missing.
#[test]
fn a_point_whose_commit_was_lost_comes_back_from_the_replica() {
    let [there, here] = pair(None);
    let (ours, replica, points) = five_points(&there, &here);
    let id = |at: usize| points[at].0.clone();
    ours.remove_points(&[id(3)], Duration::ZERO).unwrap();
    drop(ours);
    let ours = repaired_without(&there, &[2]);
    assert!(ours.points_to_copy(&replica, None).is_empty());
    // What was removed is not lost.
    assert_eq!(lost_in(&ours, &replica), [id(1)]);
    let copy = |at| ours.copy_point(&replica, &id(at), &|_, _| ());
    assert_eq!(copy(3).unwrap_err().kind(), ErrorKind::Invalid);
    copy(1).unwrap();
    assert!(lost_in(&ours, &replica).is_empty());
    assert_eq!(copy(1).unwrap_err().kind(), ErrorKind::Invalid);
    drop(ours);

    let ours = Store::open_writer(&there, with(None)).unwrap();
    let listed: Vec<_> = ours.points().iter().map(|point| point.id.clone()).collect();
    assert_eq!(listed, [id(0), id(1), id(2), id(4)]);
    assert_eq!(ours.newest(&name("web")).unwrap().id, id(4));
    ours.collect_garbage(&thorough()).unwrap();
    for point in ours.points() {
        let image = ours.image(&point.disks[0].image).unwrap();
        let (_, content) = points.iter().find(|(id, _)| *id == point.id).unwrap();
        assert!(read_all(&image) == *content);
    }
    ours.remove_points(&[id(1)], Duration::ZERO).unwrap();
    assert!(lost_in(&ours, &replica).is_empty());
    drop(ours);
    let report = Store::check(&there, with(None), &CheckOptions::default()).unwrap();
    assert!(report.is_whole(), "{report:?}");
}

/// The commit that listed a point was lost, the one that removed it was not: the point was taken for lost, and came back.
#[test]
fn a_point_that_was_removed_after_its_commit_was_lost_stays_removed() {
    let [there, here] = pair(None);
    let (ours, replica, points) = five_points(&there, &here);
    ours.remove_points(&[points[1].0.clone()], Duration::ZERO)
        .unwrap();
    drop(ours);
    let ours = repaired_without(&there, &[2]);
    assert!(lost_in(&ours, &replica).is_empty());
}

/// A removal was lost, so one number more counted as given; the next point then was taken for one that had been lost, and did not end
/// its group's first copy.
#[test]
fn a_point_after_a_lost_commit_ends_the_first_copy_of_its_group() {
    let [there, here] = pair(None);
    let (ours, replica, points) = five_points(&there, &here);
    ours.remove_points(&[points[0].0.clone()], Duration::ZERO)
        .unwrap();
    let seed = |ours: &Store| {
        let mut writer = ours.image_writer(Base::Empty { size: SIZE }).unwrap();
        writer.put(0, &chunk(1)).unwrap();
        ours.save_seed(seed_draft("web", writer.finish().unwrap()))
            .unwrap();
    };
    seed(&ours);
    let mut content = Content::new(SIZE);
    commit(&ours, &mut content, [(1, 1)]);
    assert!(ours.seed(&name("web")).is_none());
    drop(ours);
    // The removal, and nothing else: web@6 is there.
    let ours = repaired_without(&there, &[6]);
    assert!(ours.seed(&name("web")).is_none());
    assert!(lost_in(&ours, &replica).is_empty());
    assert_eq!(ours.newest(&name("web")).unwrap().id.to_string(), "web@6");
}
