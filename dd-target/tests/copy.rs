//! Points of a store that are copied to a vault: whole, under their numbers, without a key, and only what is lacking.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use block::{BlockDevice, Dir, OsDir, UnixNanos, index};
use common::Bench;
use dd_target::api::Role;
use dd_target::client::{Objects, RemoteError, RemotePoint, Vault};
use store::{
    Around, Backend, Base, Consistency, Directory, NewKeys, PointDraft, PointId, PointRecord,
    Replicated, Secret, Store,
};

mod common;

/// The last granule is short.
const SIZE: u64 = (8 << 20) + 512;
const GROUP: &str = "g";

fn place(path: &Path) -> Arc<dyn Backend> {
    Directory::backend(&(Arc::new(OsDir::create_all(path).unwrap()) as Arc<dyn Dir>))
}

fn around(bench: &Bench, secret: Option<Secret>) -> Around {
    Around {
        secret: secret.map(Arc::new),
        ..Around::new(Arc::clone(&bench.clock))
    }
}

/// Content in which granules repeat, a quarter is zeroes, and the short one is like another.
fn content(seed: u64) -> Vec<u8> {
    let mut out = vec![0; index(SIZE.next_multiple_of(4096))];
    for (granule, chunk) in (0..).zip(out.chunks_exact_mut(4096)) {
        let word: u64 = match granule % 4 {
            0 => 0,
            1 => granule / 40 + 1,
            _ => seed * 1_000_003 + granule,
        };
        chunk.copy_from_slice(&word.to_le_bytes().repeat(512));
    }
    let last = out.len() - 4096;
    out[last..].fill(0);
    out[last..last + 512].fill(0xee);
    out[4096..8192].fill(0);
    out[4096..4096 + 512].fill(0xee);
    out
}

fn add(store: &Store, generation: u64, content: &[u8]) -> Arc<PointRecord> {
    let mut writer = store.image_writer(Base::Empty { size: SIZE }).unwrap();
    writer.put(0, content).unwrap();
    let draft = PointDraft {
        group: GROUP.parse().unwrap(),
        disks: vec![("disk".parse().unwrap(), writer.finish().unwrap())],
        at: UnixNanos(generation),
        lineage: [3; 16],
        generation,
        labels: BTreeMap::from([("k".to_owned(), generation.to_string())]),
        consistency: Consistency::Application,
    };
    store.commit_point(draft).unwrap()
}

fn vault(bench: &Bench, name: &str) -> Vault {
    let access = bench.access(&bench.token(&[Role::Ship]));
    Vault::open(&bench.vault(name), &access).unwrap()
}

/// A call as it is, for what no client says.
fn post(bench: &Bench, token: &str, path: &str, body: &serde_json::Value) -> (u16, String) {
    bench.ask_with("POST", &format!("/v1/vaults/v/{path}"), Some(token), |r| {
        r.json(body)
    })
}

/// An empty draft.
fn draft(bench: &Bench, token: &str) -> String {
    let (_, draft) = post(
        bench,
        token,
        "drafts",
        &serde_json::json!({ "empty": 4096 }),
    );
    let draft: serde_json::Value = serde_json::from_str(&draft).unwrap();
    draft["draft"].as_str().unwrap().to_owned()
}

fn copy_all(vault: &Vault, from: &Store) -> Vec<Replicated> {
    let points = vault.points_to_copy(from, None).unwrap();
    let copy = |point: &Arc<PointRecord>| vault.copy_point(from, point, &|_, _| ()).unwrap();
    points.iter().map(copy).collect()
}

/// What a point reads as, by a token that may.
fn read(bench: &Bench, vault: &str, secret: Option<Secret>, sequence: u64) -> Vec<u8> {
    let access = bench.access(&bench.token(&[Role::Restore]));
    let objects = Objects::open(&bench.vault(vault), &access).unwrap();
    let store = Store::open_reader(&objects, around(bench, secret)).unwrap();
    let points = store.points();
    let point = points.iter().find(|p| p.id.sequence == sequence).unwrap();
    let mut read = vec![0; index(SIZE)];
    let image = store.image(&point.disks[0].image).unwrap();
    image.read_at(&mut read, 0).unwrap();
    read.resize(index(SIZE.next_multiple_of(4096)), 0);
    read
}

#[test]
fn a_vault_gets_what_it_lacks_under_the_same_numbers() {
    let bench = Bench::new();
    let there = place(&bench.path("there"));
    Store::create(&there).unwrap();
    let from = Store::open_writer(&there, around(&bench, None)).unwrap();
    let first = content(1);
    add(&from, 1, &first);
    let vault = vault(&bench, "v");
    let whole = copy_all(&vault, &from);
    assert_eq!(whole.len(), 1);
    // The second point is gone before it is copied; its number stays free.
    let mut third = first.clone();
    third[40 * 4096..90 * 4096].fill(5);
    third[100 * 4096..120 * 4096].fill(0);
    let removed = PointId {
        group: GROUP.parse().unwrap(),
        sequence: 2,
    };
    add(&from, 2, &content(2));
    from.remove_points(&[removed], std::time::Duration::ZERO)
        .unwrap();
    let theirs = add(&from, 3, &third);
    let copied = copy_all(&vault, &from);
    assert_eq!(copied.len(), 1);
    let ours = &copied[0].point;
    assert_eq!(
        (&ours.id, ours.at, ours.generation, &ours.labels),
        (&theirs.id, theirs.at, 3, &theirs.labels)
    );
    assert!(
        copied[0].copied_bytes * 10 < whole[0].copied_bytes,
        "{copied:?}"
    );
    assert!(read(&bench, "v", None, 1) == first);
    assert!(read(&bench, "v", None, 3) == third);
    assert!(copy_all(&vault, &from).is_empty());
}

#[test]
fn an_encrypted_store_is_copied_by_whoever_has_no_key() {
    let bench = Bench::new();
    let key = Secret::Key([7; 32].into());
    let there = place(&bench.path("there"));
    let secrets = [(key.clone(), "key".into())];
    Store::create_encrypted(&there, &secrets, &around(&bench, None)).unwrap();
    let theirs = NewKeys::of(&*there).unwrap().unwrap();
    bench.make_vault_with("sealed", &theirs);
    let with_key = Store::open_writer(&there, around(&bench, Some(key.clone()))).unwrap();
    add(&with_key, 1, &content(1));
    add(&with_key, 2, &content(2));
    drop(with_key);

    let from = Store::open_reader(&there, around(&bench, None)).unwrap();
    let access = bench.access(&bench.token(&[Role::Ship]));
    let objects = Objects::open(&bench.vault("sealed"), &access).unwrap();
    from.check_key_at(&objects).unwrap();
    assert_eq!(copy_all(&vault(&bench, "sealed"), &from).len(), 2);
    for generation in [1, 2] {
        assert!(read(&bench, "sealed", Some(key.clone()), generation) == content(generation));
    }
    // A vault that is not encrypted takes none of it.
    let plain = Objects::open(&bench.vault("v"), &access).unwrap();
    assert!(from.check_key_at(&plain).is_err());
    let point = &from.points()[0];
    assert!(
        vault(&bench, "v")
            .copy_point(&from, point, &|_, _| ())
            .is_err()
    );
}

/// A point in the vault that has the number and the cut of one of the store, and other content: what is laid over it would not be
/// the point that is copied.
#[test]
fn what_only_calls_itself_the_same_is_not_built_upon() {
    let bench = Bench::new();
    let there = place(&bench.path("there"));
    Store::create(&there).unwrap();
    let from = Store::open_writer(&there, around(&bench, None)).unwrap();
    let mut first = content(1);
    add(&from, 1, &first);
    let vault = vault(&bench, "v");
    let mut writer = vault.image_writer(Base::Empty { size: SIZE }).unwrap();
    writer.put(0, &content(9)).unwrap();
    let forged = vault.commit_point(&RemotePoint {
        group: &GROUP.parse().unwrap(),
        disks: &[("disk".parse().unwrap(), writer.finish().unwrap())],
        at: UnixNanos(1),
        lineage: [3; 16],
        generation: 1,
        labels: &BTreeMap::new(),
        consistency: Consistency::Crash,
    });
    assert_eq!(forged.unwrap().id.sequence, 1);
    first[4096 * 7..4096 * 8].fill(3);
    add(&from, 2, &first);
    assert_eq!(copy_all(&vault, &from).len(), 1);
    assert!(read(&bench, "v", None, 2) == first);
}

/// A thief of the token lists a point under a number of one that is still to come: that one was never copied, and nobody was told.
#[test]
fn numbers_that_others_took_are_told() {
    let bench = Bench::new();
    let there = place(&bench.path("there"));
    Store::create(&there).unwrap();
    let from = Store::open_writer(&there, around(&bench, None)).unwrap();
    add(&from, 1, &content(1));
    let vault = vault(&bench, "v");
    assert_eq!(copy_all(&vault, &from).len(), 1);
    let theirs = |generation| {
        let writer = vault.image_writer(Base::Empty { size: SIZE }).unwrap();
        let listed = vault.commit_point(&RemotePoint {
            group: &GROUP.parse().unwrap(),
            disks: &[("disk".parse().unwrap(), writer.finish().unwrap())],
            at: UnixNanos(generation),
            lineage: [4; 16],
            generation,
            labels: &BTreeMap::new(),
            consistency: Consistency::Crash,
        });
        listed.unwrap()
    };
    theirs(8);
    let refused = |why: &str| {
        let points = vault.points_to_copy(&from, None);
        assert!(
            matches!(points, Err(RemoteError::ForeignPoint { .. })),
            "{why}: {points:?}"
        );
    };
    refused("a number that was not given here");
    add(&from, 2, &content(2));
    refused("another point has the number");
}

/// Whoever names an image learns no more of it than whether it is what he says.
#[test]
fn an_image_that_is_not_what_it_should_be_is_not_completed() {
    let bench = Bench::new();
    let token = bench.token(&[Role::Ship]);
    let post = |path: &str, body| post(&bench, &token, path, &body);
    let path = format!("drafts/{}/finish?root=", draft(&bench, &token));
    let (status, said) = post(&(path + &"00".repeat(32)), serde_json::json!(null));
    assert_eq!(status, 422, "{said}");
    let page = bench.remote(&bench.token(&[Role::Admin])).audit(0).unwrap();
    let whys = page.lines.iter().filter_map(|line| line.why.as_ref());
    assert!(
        whys.into_iter().any(|why| why.contains("content")),
        "{page:?}"
    );
}

/// Numbers are never given twice, so whoever took the last one would end the group.
#[test]
fn a_number_is_the_next_or_a_little_later() {
    let bench = Bench::new();
    let token = bench.token(&[Role::Ship]);
    let post = |path: &str, body| post(&bench, &token, path, &body);
    let commit = |generation: u64, sequence: u64| {
        let id = draft(&bench, &token);
        post(&format!("drafts/{id}/finish"), serde_json::json!(null));
        post(
            "points",
            serde_json::json!({
                "group": "g", "lineage": "03".repeat(16), "generation": generation, "at_unix_ns": 5,
                "labels": {}, "application": false, "disks": [["disk", id]], "sequence": sequence,
            }),
        )
        .0
    };
    assert_eq!(commit(1, 5), 200);
    assert_eq!(commit(2, 5), 409);
    assert_eq!(commit(2, 4), 409);
    assert_eq!(commit(2, u64::MAX), 409);
    assert_eq!(commit(2, 6 + (1 << 20)), 409);
    assert_eq!(commit(2, 6), 200);
}

/// Both ends of the error are told apart: what cannot be read, and what cannot be written.
#[test]
fn a_server_that_is_gone_is_the_servers_failure() {
    let mut bench = Bench::new();
    let there = place(&bench.path("there"));
    Store::create(&there).unwrap();
    let from = Store::open_writer(&there, around(&bench, None)).unwrap();
    let point = add(&from, 1, &content(1));
    let vault = vault(&bench, "v");
    bench.stop();
    let failed = vault.copy_point(&from, &point, &|_, _| ());
    assert!(
        matches!(
            failed,
            Err(dd_target::client::CopyError::To(
                RemoteError::Unreachable { .. }
            ))
        ),
        "{failed:?}"
    );
}
