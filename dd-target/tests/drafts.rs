//! How long drafts live, over a real socket: as long as somebody is at work on their ship, and no longer.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use block::{Clock, Name, UnixNanos};
use common::shipping::noise;
use common::{Bench, Later};
use dd_target::api::Role;
use dd_target::client::{RemoteImage, RemotePoint, Vault};
use store::{Base, ChunkCodec, Consistency};

mod common;

const SIZE: u64 = 1 << 20;
const EMPTY: &str = r#"{"empty":1048576}"#;
const DRAFTS: &str = "/v1/vaults/v/drafts";
/// Drafts that a token has, at most.
const MOST: usize = 512;

fn at(clock: &Arc<Later>) -> Bench {
    Bench::at(Arc::clone(clock) as Arc<dyn Clock>)
}

/// Each is a client of its own, as after a restart.
fn vault(bench: &Bench, token: &str) -> Vault {
    Vault::open(&bench.vault("v"), &bench.access(token)).unwrap()
}

fn ship(vault: &Vault, byte: u8) -> RemoteImage {
    let mut writer = vault.image_writer(Base::Empty { size: SIZE }).unwrap();
    writer.put(0, &[byte; 4096]).unwrap();
    writer.finish().unwrap()
}

/// Begins an image, and is killed.
fn leave_behind(vault: &Vault) {
    std::mem::forget(vault.image_writer(Base::Empty { size: SIZE }).unwrap());
}

fn minutes(minutes: u64) -> Duration {
    Duration::from_mins(minutes)
}

fn drafts(bench: &Bench) -> usize {
    bench.figure("standin_target_drafts")
}

fn until_drafts(bench: &Bench, count: usize) {
    while drafts(bench) != count {
        std::thread::yield_now();
    }
}

/// Nothing took a draft back: whatever a client gave up stayed for a quarter of an hour, with its memory and all that it was
/// built on.
#[test]
fn what_a_client_gives_up_is_gone_at_once() {
    let bench = Bench::new();
    let token = bench.token(&[Role::Ship]);
    let vault = vault(&bench, &token);
    let writer = vault.image_writer(Base::Empty { size: SIZE }).unwrap();
    let image = ship(&vault, 1);
    assert_eq!(drafts(&bench), 2);
    drop(writer);
    until_drafts(&bench, 1);
    drop(image.clone());
    drop(image);
    until_drafts(&bench, 0);
}

/// Every request of a token kept all of its drafts: those of an agent that was killed went only when the next one was idle.
#[test]
fn what_was_left_behind_goes_while_its_token_is_at_work() {
    let clock = Later::new();
    let bench = at(&clock);
    let token = bench.token(&[Role::Ship]);
    leave_behind(&vault(&bench, &token));

    let vault = vault(&bench, &token);
    let mut disks: Vec<(Name, RemoteImage)> = Vec::new();
    for number in 0..4_u8 {
        disks.push((
            format!("disk-{number}").parse().unwrap(),
            ship(&vault, number + 1),
        ));
        clock.pass(minutes(10));
    }
    assert_eq!(drafts(&bench), disks.len());
    // The first one was finished 40 minutes ago, and lives with the others.
    let point = vault.commit_point(&RemotePoint {
        group: &"g".parse().unwrap(),
        disks: &disks,
        at: UnixNanos(10),
        lineage: [3; 16],
        generation: 1,
        labels: &BTreeMap::new(),
        consistency: Consistency::Crash,
    });
    assert_eq!(point.unwrap().disks.len(), disks.len());
    assert_eq!(drafts(&bench), 0);
}

/// A protection behind a line that broke again and again had all drafts that its token may have, and none that it went on with:
/// for a quarter of an hour it could begin no other.
#[test]
fn of_too_many_drafts_one_that_was_left_alone_gives_way() {
    let clock = Later::new();
    let bench = at(&clock);
    let token = bench.token(&[Role::Ship]);
    let dead = vault(&bench, &token);
    (0..MOST).for_each(|_| leave_behind(&dead));
    let (status, answer) = bench.post(DRAFTS, &token, EMPTY);
    assert_eq!(status, 429, "{answer}");
    clock.pass(minutes(6));
    ship(&vault(&bench, &token), 1);
    let other = bench.token(&[Role::Ship]);
    assert_eq!(bench.post(DRAFTS, &other, EMPTY).0, 200);
}

/// The answer to a begin was lost, and it was asked for again: of two drafts one was nobody's.
#[test]
fn a_draft_that_is_begun_twice_is_begun_once() {
    let bench = Bench::new();
    let token = bench.token(&[Role::Ship]);
    let of = |number: u64| format!("{DRAFTS}?ship={}&number={number}", "0a".repeat(16));
    let first = bench.post(&of(1), &token, EMPTY);
    assert_eq!(first.0, 200, "{}", first.1);
    assert_eq!(bench.post(&of(1), &token, EMPTY), first);
    assert_ne!(bench.post(&of(2), &token, EMPTY), first);
    let other = bench.token(&[Role::Ship]);
    assert_ne!(bench.post(&of(1), &other, EMPTY), first);
    assert_eq!(drafts(&bench), 3);
    assert_eq!(bench.post(&of(1), &token, r#"{"empty":4096}"#).0, 400);
    for wrong in ["?ship=0a&number=1", "?number=1", "?ship=0a0a"] {
        let path = format!("{DRAFTS}{wrong}");
        assert_eq!(bench.post(&path, &token, EMPTY).0, 400, "{wrong}");
    }
}

/// A draft whose disk failed stayed open, with all that it held in memory, and could not be told to hold less: a vault on a disk
/// that is full took the memory of all others.
#[test]
fn a_draft_that_failed_holds_nothing_and_goes_on_telling_why() {
    let bench = Bench::new();
    let token = bench.token(&[Role::Ship]);
    let (_, begun) = bench.post(DRAFTS, &token, r#"{"empty":1073741824}"#);
    let begun: serde_json::Value = serde_json::from_str(&begun).unwrap();
    let path = format!("{DRAFTS}/{}/regions", begun["draft"].as_str().unwrap());
    std::fs::remove_dir_all(bench.path("place/vaults/v")).unwrap();
    let mut sent = (0..).map(|number| {
        let body = regions(number);
        bench.ask_with("POST", &path, Some(&token), |request| request.body(body))
    });
    let (status, _) = sent.find(|(status, _)| *status != 200).unwrap();
    assert_eq!(status, 500);
    assert_eq!(bench.figure("standin_target_draft_bytes"), 0);
    let (status, again) = sent.next().unwrap();
    assert_eq!(status, 500, "{again}");
    assert!(again.contains("begin it again"), "{again}");
}

/// Change lists that images are built on were not counted: with 512 drafts on an image that has many changes a token took a GiB
/// beside the 256 MiB that all may have.
#[test]
fn drafts_on_long_change_lists_are_as_many_as_memory_allows() {
    let clock = Later::new();
    let bench = at(&clock);
    let token = bench.token(&[Role::Ship]);
    let runs = 60_000;
    let image = image_of_runs(&bench, &token, runs);
    let begin = format!(r#"{{"image":"{image}"}}"#);
    let begun = |_: &usize| bench.post(DRAFTS, &token, &begin).0 == 200;
    let count = (0..MOST).take_while(begun).count();
    assert!((20..=128).contains(&count), "{count}");
    let held = bench.figure("standin_target_draft_bytes");
    assert!(held >= count * runs * 24, "{held} bytes of {count} drafts");
    assert!(held <= 256 << 20, "{held}");
    let (status, answer) = bench.post(DRAFTS, &token, &begin);
    assert_eq!(status, 503, "{answer}");
    assert_eq!(
        bench.post(DRAFTS, &token, EMPTY).0,
        200,
        "it keeps next to nothing"
    );
    clock.pass(minutes(6));
    assert_eq!(bench.post(DRAFTS, &token, &begin).0, 200);
}

/// The reference of an image that is listed, and has so many changes.
fn image_of_runs(bench: &Bench, token: &str, runs: usize) -> String {
    let (_, begun) = bench.post(DRAFTS, token, r#"{"empty":1073741824}"#);
    let begun: serde_json::Value = serde_json::from_str(&begun).unwrap();
    let id = begun["draft"].as_str().unwrap();
    let send = |call: &str, body: Vec<u8>| {
        let path = format!("{DRAFTS}/{id}/{call}");
        let (status, answer) = bench.ask_with("POST", &path, Some(token), |r| r.body(body));
        assert_eq!(status, 200, "{answer}");
        answer
    };
    let body = regions(1);
    let print = &body[16..48];
    send("regions", body.clone());
    let granules: Vec<u64> = (0..262_144).step_by(2).take(runs).collect();
    for some in granules.chunks(8192) {
        let entry = |granule: &u64| [&granule.to_le_bytes()[..], print].concat();
        send("ask", some.iter().flat_map(entry).collect());
    }
    let finished: serde_json::Value = serde_json::from_str(&send("finish", Vec::new())).unwrap();
    let point = serde_json::json!({
        "group": "g", "lineage": "03".repeat(16), "generation": 1, "at_unix_ns": 1, "labels": {},
        "application": false, "disks": [["d", id]],
    });
    let (status, answer) = bench.post("/v1/vaults/v/points", token, &point.to_string());
    assert_eq!(status, 200, "{answer}");
    finished["image"].as_str().unwrap().to_owned()
}

/// Regions of what does not compress: a body of some two MiB, like no other of another number.
fn regions(number: u64) -> Vec<u8> {
    let codec = ChunkCodec::plain();
    let mut bytes = noise(number);
    let mut body = Vec::new();
    for frame in 0..16_u64 {
        let chunks: Vec<u8> = bytes.by_ref().take(32 * 4096).collect();
        let region = codec.pack(chunks.clone());
        body.extend([region.encoding(), 32, 0, 0]);
        body.extend(u32::try_from(region.stored().len()).unwrap().to_le_bytes());
        for (at, print) in (0..).zip(codec.fingerprints(&chunks)) {
            body.extend((number * 512 + frame * 32 + at).to_le_bytes());
            body.extend(print.as_bytes());
        }
        body.extend(region.stored());
    }
    body
}
