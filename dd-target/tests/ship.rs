//! The write plane, over a real socket: what is shipped reads back, and what must not be is refused.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use block::{BlockDevice, Dir, GranuleRange, OsDir, UnixNanos, index};
use common::Bench;
use dd_target::api::Role;
use dd_target::client::{
    Objects, RemoteError, RemoteImage, RemotePoint, RemoteSeed, Vault, VaultUrl,
};
use dd_target::server::AuditEvent;
use store::{Around, Base, ChunkCodec, Consistency, Directory, PointRecord, Secret, Store};

mod common;

const SIZE: u64 = 16 << 20;

/// Content of which a half repeats, a quarter is zeroes, and the rest is like nothing else.
fn content(seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let mut out = Vec::new();
    for granule in 0..SIZE / 4096 {
        let word = match granule % 4 {
            0 => 0,
            1 => granule / 64 + 1,
            2 => 7 + seed,
            _ => {
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1);
                state
            }
        };
        out.extend(word.to_le_bytes().repeat(512));
    }
    out
}

fn ship(vault: &Vault, base: Base, content: &[u8]) -> Result<RemoteImage, RemoteError> {
    let mut writer = vault.image_writer(base)?;
    for (at, piece) in (0..).step_by(256).zip(content.chunks(1 << 20)) {
        writer.put(at, piece)?;
    }
    writer.finish()
}

fn commit(
    vault: &Vault,
    image: RemoteImage,
    generation: u64,
    at: u64,
) -> Result<Arc<PointRecord>, RemoteError> {
    commit_to(vault, "g", image, generation, at)
}

fn commit_to(
    vault: &Vault,
    group: &str,
    image: RemoteImage,
    generation: u64,
    at: u64,
) -> Result<Arc<PointRecord>, RemoteError> {
    vault.commit_point(&RemotePoint {
        group: &group.parse().unwrap(),
        disks: &[("disk".parse().unwrap(), image)],
        at: UnixNanos(at),
        lineage: [3; 16],
        generation,
        labels: &BTreeMap::from([("k".to_owned(), "v".to_owned())]),
        consistency: Consistency::Application,
    })
}

fn vault(bench: &Bench) -> Vault {
    let access = bench.access(&bench.token(&[Role::Ship]));
    Vault::open(&bench.vault("v"), &access).unwrap()
}

/// What the newest point reads as, by a token that may.
fn restored(bench: &Bench) -> Vec<u8> {
    let access = bench.access(&bench.token(&[Role::Restore]));
    let objects = Objects::open(&bench.vault("v"), &access).unwrap();
    let store = Store::open_reader(&objects, Around::new(Arc::clone(&bench.clock))).unwrap();
    let point = store.points().pop().unwrap();
    let mut read = vec![0; index(SIZE)];
    store
        .image(&point.disks[0].image)
        .unwrap()
        .read_at(&mut read, 0)
        .unwrap();
    read
}

fn events(bench: &Bench, event: AuditEvent) -> usize {
    let page = bench.remote(&bench.token(&[Role::Admin])).audit(0).unwrap();
    assert!(page.whole);
    page.lines.iter().filter(|line| line.event == event).count()
}

#[test]
fn what_is_shipped_reads_back_and_changes_cost_what_changed() {
    let bench = Bench::new();
    let vault = vault(&bench);
    let first = content(1);
    let image = ship(&vault, Base::Empty { size: SIZE }, &first).unwrap();
    let point = commit(&vault, image, 1, 10).unwrap();
    assert_eq!(point.labels["k"], "v");
    assert!(restored(&bench) == first);

    let mut second = first;
    second[5 * 4096..6 * 4096].fill(9);
    second[8 * 4096..80 * 4096].fill(0);
    let mut writer = vault
        .image_writer(Base::Image(point.disks[0].image.clone()))
        .unwrap();
    writer.put(5, &second[5 * 4096..6 * 4096]).unwrap();
    writer.zero(GranuleRange { start: 8, end: 80 }).unwrap();
    let image = writer.finish().unwrap();
    let changed = commit(&vault, image, 2, 20).unwrap();
    assert!(
        changed.stored_new_bytes < 64 << 10,
        "{}",
        changed.stored_new_bytes
    );
    assert!(restored(&bench) == second);

    let group = "g".parse().unwrap();
    let told = vault.points(&group, None).unwrap();
    assert_eq!(told, [changed, point]);
    assert_eq!(vault.points(&group, Some(&[4; 16])).unwrap(), []);
}

#[test]
fn a_point_that_is_asked_for_twice_is_listed_once() {
    let bench = Bench::new();
    let vault = vault(&bench);
    let image = ship(&vault, Base::Empty { size: SIZE }, &content(2)).unwrap();
    let once = commit(&vault, image.clone(), 1, 10).unwrap();
    let twice = commit(&vault, image, 1, 10).unwrap();
    assert_eq!(once, twice);
    assert_eq!(vault.points(&"g".parse().unwrap(), None).unwrap().len(), 1);
}

#[test]
fn a_seed_goes_on_from_where_it_was_saved() {
    let bench = Bench::new();
    let vault = vault(&bench);
    let (group, disk) = ("g".parse().unwrap(), "disk".parse().unwrap());
    let image = ship(&vault, Base::Empty { size: SIZE }, &content(3)[..1 << 20]).unwrap();
    let save = |image: &RemoteImage| {
        let seed = RemoteSeed {
            group: &group,
            lineage: [5; 16],
            generation: 4,
            disks: vec![(&disk, 256, image)],
        };
        vault.save_seed(&seed)
    };
    save(&image).unwrap();
    // Its draft is gone by now; the vault has the image.
    save(&image).unwrap();
    let seed = vault.seed(&group).unwrap().unwrap();
    assert_eq!((seed.generation, seed.disks[0].cursor_granule), (4, 256));
    assert_eq!(seed.disks[0].image, *image.image());
    assert!(
        vault
            .image_writer(Base::Image(seed.disks[0].image.clone()))
            .is_ok()
    );
    assert!(vault.seed(&"h".parse().unwrap()).unwrap().is_none());
}

/// A token to ship saved first copies of groups that nobody has heard of: nobody saw them, no rule removed them, and they kept
/// their space for ever.
#[test]
fn the_first_copy_of_a_group_that_nobody_knows_is_seen_and_given_up() {
    let bench = Bench::new();
    let vault = vault(&bench);
    let (group, disk) = ("made-up".parse().unwrap(), "disk".parse().unwrap());
    let image = ship(&vault, Base::Empty { size: SIZE }, &content(3)[..1 << 20]).unwrap();
    let seed = RemoteSeed {
        group: &group,
        lineage: [5; 16],
        generation: 4,
        disks: vec![(&disk, 256, &image)],
    };
    vault.save_seed(&seed).unwrap();
    let keeper = bench.token(&[Role::Retention]);
    let seeds = || {
        let figures = bench.remote(&keeper).vault(&"v".parse().unwrap()).unwrap();
        let seeds = figures.seeds.into_iter();
        seeds
            .map(|seed| (seed.group, seed.disks, seed.copied_bytes))
            .collect::<Vec<_>>()
    };
    assert_eq!(seeds(), [("made-up".to_owned(), 1, 1 << 20)]);
    let give_up = || {
        let chore = r#"{"do":"drop-seed","group":"made-up"}"#;
        bench.post("/v1/vaults/v/chores", &keeper, chore).0
    };
    assert_eq!(give_up(), 200);
    assert_eq!(seeds(), []);
    assert_eq!(give_up(), 404);
    // Who was at it finds that it is gone, and begins again.
    assert!(vault.save_seed(&seed).is_err());
    assert!(vault.seed(&group).unwrap().is_none());
}

#[test]
fn poisoned_chunks_are_refused_and_written_down() {
    let bench = Bench::new();
    let token = bench.token(&[Role::Ship]);
    let json = |request: reqwest::RequestBuilder| {
        request
            .header("content-type", "application/json")
            .body(format!("{{\"empty\":{SIZE}}}"))
    };
    let (_, begun) = bench.ask_with("POST", "/v1/vaults/v/drafts", Some(&token), json);
    let begun: serde_json::Value = serde_json::from_str(&begun).unwrap();
    let path = format!(
        "/v1/vaults/v/drafts/{}/regions",
        begun["draft"].as_str().unwrap()
    );

    let codec = ChunkCodec::plain();
    let (said, sent) = (vec![1_u8; 4096], vec![2_u8; 4096]);
    let region = codec.pack(sent);
    let mut body = vec![region.encoding(), 1, 0, 0];
    let len = u32::try_from(region.stored().len()).unwrap();
    body.extend(len.to_le_bytes());
    body.extend(0_u64.to_le_bytes());
    body.extend(codec.fingerprints(&said)[0].as_bytes());
    body.extend(region.stored());
    let (status, answer) = bench.ask_with("POST", &path, Some(&token), |r| r.body(body.clone()));
    assert_eq!(status, 422, "{answer}");
    assert_eq!(events(&bench, AuditEvent::Poisoned), 1);
    // Nor is it taken without its entries, or with a length that lies.
    for wrong in [
        &body[..body.len() - 1],
        &body[..20],
        &[9, 1, 0, 0, 0, 0, 0, 0],
    ] {
        let wrong = wrong.to_vec();
        let (status, answer) = bench.ask_with("POST", &path, Some(&token), |r| r.body(wrong));
        assert_eq!(status, 400, "{answer}");
    }
    // Another token's draft is none of anybody's business.
    let other = bench.token(&[Role::Ship]);
    assert_eq!(
        bench
            .ask_with("POST", &path, Some(&other), |r| r.body(body))
            .0,
        404
    );
}

#[test]
fn nobody_backdates_or_ships_to_the_groups_of_others() {
    let bench = Bench::new();
    let access = bench.access(&bench.token_for(&[Role::Ship], |new| new.groups = vec!["g".into()]));
    let vault = Vault::open(&bench.vault("v"), &access).unwrap();
    let image = ship(&vault, Base::Empty { size: SIZE }, &content(4)).unwrap();
    let now = bench.clock.wall().0;
    commit(&vault, image, 1, now).unwrap();
    let again = || ship(&vault, Base::Empty { size: SIZE }, &content(4)).unwrap();
    for (group, at, word) in [
        ("g", now - 660_000_000_000, "older"),
        ("g", now + 3_600_000_000_000, "ahead"),
        ("h", now, "not for this group"),
    ] {
        let error = commit_to(&vault, group, again(), 2, at).unwrap_err();
        assert!(error.to_string().contains(word), "{error}");
    }
    assert!(vault.points(&"h".parse().unwrap(), None).is_err());
    assert_eq!(events(&bench, AuditEvent::Refused), 4);
}

/// A machine's clock was set back by a second between two cuts: the second one was refused for good, and all after it waited.
#[test]
fn a_clock_that_was_set_back_a_little_keeps_no_point_out() {
    let bench = Bench::new();
    let vault = vault(&bench);
    let image = |number| ship(&vault, Base::Empty { size: SIZE }, &content(number)).unwrap();
    let now = bench.clock.wall().0;
    commit(&vault, image(4), 1, now).unwrap();
    let second = commit(&vault, image(5), 2, now - 1_000_000_000).unwrap();
    assert_eq!(second.at.0, now, "points of a group go forward in time");
}

/// Two machines imported into one group at once, and gave their points the same number: the second was told that its own was
/// listed, and it was the first one's.
#[test]
fn of_two_points_with_one_number_one_is_listed_and_one_refused() {
    let bench = Bench::new();
    let vault = vault(&bench);
    let image = |number| ship(&vault, Base::Empty { size: SIZE }, &content(number)).unwrap();
    let now = bench.clock.wall().0;
    commit(&vault, image(4), 1, now).unwrap();
    let refused = commit(&vault, image(5), 1, now).unwrap_err();
    assert!(refused.to_string().contains("another point"), "{refused}");
    assert!(restored(&bench) == content(4));
}

/// The server keeps what it cannot read: chunks are encrypted by who ships, and who restores has the key.
#[test]
fn an_encrypted_vault_is_shipped_to_and_restored_from_with_its_key_alone() {
    let bench = Bench::new();
    let key = Secret::Key([7; 32].into());
    let place = OsDir::create_all(bench.path("place/vaults/sealed")).unwrap();
    let place = Directory::backend(&(Arc::new(place) as Arc<dyn Dir>));
    let around = Around::new(Arc::clone(&bench.clock));
    Store::create_encrypted(&place, &[(key.clone(), "key".into())], &around).unwrap();
    bench.make_vault("sealed", None);
    let url = bench.vault("sealed");
    let opened = Around {
        secret: Some(Arc::new(key)),
        ..around.clone()
    };

    let access = bench.access(&bench.token(&[Role::Ship]));
    let objects = Objects::open(&url, &access).unwrap();
    assert!(Store::codec_at(&objects, &around).is_err());
    let codec = Store::codec_at(&objects, &opened).unwrap();
    let plain = Vault::open(&url, &access).unwrap();
    assert!(ship(&plain, Base::Empty { size: SIZE }, &content(4)).is_err());
    let vault = plain.with_codec(codec);
    let image = ship(&vault, Base::Empty { size: SIZE }, &content(4)).unwrap();
    commit(&vault, image, 1, bench.clock.wall().0).unwrap();
    // The token that ships reads nothing all the same.
    assert!(Store::open_reader(&objects, opened.clone()).is_err());

    let access = bench.access(&bench.token(&[Role::Restore]));
    let objects = Objects::open(&url, &access).unwrap();
    let read = |around| {
        let store = Store::open_reader(&objects, around).unwrap();
        let point = store.points().pop().unwrap();
        let mut read = vec![0; index(SIZE)];
        let image = store.image(&point.disks[0].image).unwrap();
        image.read_at(&mut read, 0).map(|()| read)
    };
    assert!(read(opened).unwrap() == content(4));
    assert!(read(around).is_err());
}

/// A point of ten thousand disks was looked up disk by disk, under the lock of all points of its vault, before it was refused.
#[test]
fn a_point_or_seed_of_too_many_disks_is_refused_before_any_work() {
    let bench = Bench::new();
    let token = bench.token(&[Role::Ship]);
    let disks: Vec<_> = (0..10_000).map(|disk| (format!("d{disk}"), "00")).collect();
    let point = serde_json::json!({
        "group": "g", "lineage": "03".repeat(16), "generation": 1, "at_unix_ns": 1, "labels": {},
        "application": false, "disks": disks,
    });
    let disk = |(name, _): &(String, &str)| serde_json::json!({ "name": name, "cursor_granule": 0, "image": "AA==" });
    let seed = serde_json::json!({
        "lineage": "03".repeat(16), "generation": 1, "disks": disks.iter().map(disk).collect::<Vec<_>>(),
    });
    for (method, path, document) in [
        ("POST", "/v1/vaults/v/points", point),
        ("PUT", "/v1/vaults/v/seeds/g", seed),
    ] {
        let (status, answer) = bench.ask_with(method, path, Some(&token), |request| {
            let request = request.header("content-type", "application/json");
            request.body(document.to_string())
        });
        assert_eq!(status, 400, "{answer}");
        assert!(answer.contains("256 disks"), "{answer}");
    }
}

/// Only who brought chunks was asked whether there is room: an image that was begun before its vault was full went on for ever,
/// with zeroes and with chunks that the vault has, and each piece of its tree took space.
#[test]
fn an_image_that_was_begun_before_its_vault_was_full_does_not_go_on() {
    let bench = Bench::new();
    let filling = vault(&bench);
    let image = ship(&filling, Base::Empty { size: SIZE }, &content(1)).unwrap();
    commit(&filling, image, 1, 10).unwrap();
    let token = bench.token(&[Role::Ship]);
    let drafts = "/v1/vaults/v/drafts";
    let (_, begun) = bench.post(drafts, &token, r#"{"empty":1048576}"#);
    let begun: serde_json::Value = serde_json::from_str(&begun).unwrap();
    let draft = format!("{drafts}/{}", begun["draft"].as_str().unwrap());
    let all = |expected: u16| {
        let zeroes = r#"{"ranges":[[0,1]]}"#;
        let (status, answer) = bench.post(&format!("{draft}/zero"), &token, zeroes);
        assert_eq!(status, expected, "{answer}");
        let entry = [&[0; 8][..], &[7; 32]].concat();
        let (status, _) = bench.ask_with("POST", &format!("{draft}/ask"), Some(&token), |r| {
            r.body(entry)
        });
        assert_eq!(status, expected);
        let finish = format!("{draft}/finish");
        assert_eq!(bench.ask("POST", &finish, Some(&token)).0, expected);
    };
    let admin = bench.remote(&bench.token(&[Role::Admin]));
    let quota = |bytes| admin.set_quota(&"v".parse().unwrap(), bytes).unwrap();
    quota(Some(1));
    all(507);
    quota(None);
    all(200);
}

#[test]
fn a_disk_that_no_hypervisor_makes_is_refused() {
    let bench = Bench::new();
    let token = bench.token(&[Role::Ship]);
    let begin = |size: u64| {
        let body = format!("{{\"empty\":{size}}}");
        bench.post("/v1/vaults/v/drafts", &token, &body)
    };
    assert_eq!(begin(64 << 40).0, 200);
    let (status, answer) = begin((64 << 40) + 512);
    assert_eq!(status, 400, "{answer}");
}

/// A point of nothing but labels, half a MiB of them, was listed however full its vault was, and each one made every checkpoint
/// of the catalog as much longer.
#[test]
fn labels_of_a_point_are_few_bytes() {
    let bench = Bench::new();
    let token = bench.token(&[Role::Ship]);
    let point = |bytes: usize| {
        let labels: BTreeMap<_, _> = (0..bytes / 4096)
            .map(|label| (format!("{label:06}"), "x".repeat(4090)))
            .collect();
        let point = serde_json::json!({
            "group": "g", "lineage": "03".repeat(16), "generation": 1, "at_unix_ns": 1, "labels": labels,
            "application": false, "disks": [],
        });
        bench.post("/v1/vaults/v/points", &token, &point.to_string())
    };
    let (status, answer) = point(20 << 10);
    assert_eq!(status, 400, "{answer}");
    assert!(answer.contains("labels"), "{answer}");
    assert!(!point(16 << 10).1.contains("labels"));
}

#[test]
fn a_vault_takes_no_more_than_its_quota() {
    let mut bench = Bench::new();
    bench.make_vault("small", Some(1 << 20));
    let access = bench.access(&bench.token(&[Role::Ship]));
    let vault = Vault::open(&bench.vault("small"), &access).unwrap();
    // Eight MiB that nothing compresses.
    let mut state = 1_u64;
    let words = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    });
    let noise: Vec<u8> = words.take(1 << 20).flat_map(u64::to_le_bytes).collect();
    let error = ship(&vault, Base::Empty { size: SIZE }, &noise).unwrap_err();
    assert!(error.is_full(), "{error}");
    assert!(error.to_string().contains("quota"), "{error}");
    // A larger one helps at once, and stays through a restart.
    let admin = bench.token(&[Role::Admin]);
    let small = "small".parse().unwrap();
    let set = bench
        .remote(&admin)
        .set_quota(&small, Some(64 << 20))
        .unwrap();
    assert_eq!(set.quota_bytes, Some(64 << 20));
    ship(&vault, Base::Empty { size: SIZE }, &noise).unwrap();
    bench.stop();
    bench.start();
    let vaults = bench.remote(&admin).vaults().unwrap();
    let quotas: Vec<_> = vaults.iter().map(|v| (&*v.name, v.quota_bytes)).collect();
    assert_eq!(quotas, [("small", Some(64 << 20)), ("v", None)]);
    let unknown = "nowhere".parse().unwrap();
    assert!(bench.remote(&admin).set_quota(&unknown, None).is_err());
    let log = std::fs::read_to_string(bench.path("state/audit.log")).unwrap();
    for line in ["a quota of 67108864 bytes", "\"what\":\"ended\""] {
        assert!(log.contains(line), "{line} is not in {log}");
    }
}

/// Each draft held the container that it filled, up to 4 MiB or, in a bucket, 16: with a token to ship, which may have 512
/// drafts, anybody could take all of the server's memory.
#[test]
fn drafts_hold_no_more_memory_than_they_may_together() {
    let bench = Bench::new();
    let vault = vault(&bench);
    let held = || bench.figure("standin_target_draft_bytes");
    let mut writers: Vec<_> = (0..150)
        .map(|seed| {
            let mut writer = vault.image_writer(Base::Empty { size: SIZE }).unwrap();
            writer.put(0, &noise(seed)).unwrap();
            writer
        })
        .collect();
    // All have arrived once so many bytes are counted; each then has room made for it.
    while bench.figure("standin_target_shipped_bytes_total") < writers.len() * NOISE {
        std::thread::yield_now();
    }
    assert!((128 << 20..=256 << 20).contains(&held()), "{}", held());
    let last = writers.len() as u64 - 1;
    let (newest, oldest) = (writers.pop().unwrap(), writers.swap_remove(0));
    for (generation, (writer, seed)) in [(newest, last), (oldest, 0)].into_iter().enumerate() {
        let mut writer = writer;
        writer.put(2048, &noise(seed + 1000)).unwrap();
        let image = writer.finish().unwrap();
        assert!(held() <= 256 << 20, "{}", held());
        commit(&vault, image, generation as u64, 10).unwrap();
        let mut expected = vec![0; index(SIZE)];
        expected[..NOISE].copy_from_slice(&noise(seed));
        expected[8 << 20..][..NOISE].copy_from_slice(&noise(seed + 1000));
        assert!(restored(&bench) == expected, "{seed}");
    }
}

const NOISE: usize = 2 << 20;

/// Bytes that do not compress: a window's.
fn noise(seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let words = std::iter::repeat_with(|| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (state ^ (state >> 29)).to_le_bytes()
    });
    words.take(NOISE / 8).flatten().collect()
}

/// A chore may take days, and a thread of the server as long: two tokens with slow ones took them all.
#[test]
fn of_slow_chores_a_few_are_under_way_and_others_are_told_to_come_again() {
    let mut bench = Bench::new();
    let vault = vault(&bench);
    let image = ship(&vault, Base::Empty { size: SIZE }, &content(8)).unwrap();
    commit(&vault, image, 1, 10).unwrap();
    let admin = bench.token(&[Role::Admin]);
    let pem = std::fs::read(bench.path("state/server.pem")).unwrap();
    let roots = reqwest::Certificate::from_pem_bundle(&pem).unwrap();
    let client = reqwest::Client::builder().tls_certs_only(roots).no_proxy();
    let client = client.build().unwrap();
    let url = format!("{}/v1/vaults/v/chores", bench.url());
    let runtime = tokio::runtime::Runtime::new().unwrap();
    // A byte a second: none of them ends by itself.
    let scrub = r#"{"do":"scrub","deep":false,"heal":false,"rate":1}"#;
    let (told, answers) = std::sync::mpsc::channel();
    for _ in 0..17 {
        let request = client.post(&url).bearer_auth(&admin).body(scrub);
        let request = request.header("content-type", "application/json");
        let told = told.clone();
        runtime.spawn(async move {
            let status = request.send().await.map(|answer| answer.status().as_u16());
            let _ = told.send(status);
        });
    }
    let limit = std::time::Duration::from_secs(60);
    assert_eq!(answers.recv_timeout(limit).unwrap().unwrap(), 429);
    // The others are under way, and whoever ships is served.
    let image = ship(&vault, Base::Empty { size: SIZE }, &content(9)).unwrap();
    commit(&vault, image, 2, 20).unwrap();
    assert!(answers.try_recv().is_err());
    bench.stop();
}

#[test]
fn a_granule_is_written_once() {
    let bench = Bench::new();
    let vault = vault(&bench);
    let mut writer = vault.image_writer(Base::Empty { size: SIZE }).unwrap();
    writer.put(10, &[1; 8192]).unwrap();
    writer.put(12, &[1; 4096]).unwrap();
    assert!(writer.put(11, &[2; 4096]).is_err());
    assert!(writer.zero(GranuleRange { start: 0, end: 11 }).is_err());
    assert!(writer.zero(GranuleRange { start: 0, end: 10 }).is_ok());
}

#[test]
fn a_server_that_died_loses_no_point_and_an_image_in_the_making_is_begun_again() {
    let mut bench = Bench::new();
    let ours = vault(&bench);
    let image = ship(&ours, Base::Empty { size: SIZE }, &content(5)).unwrap();
    commit(&ours, image, 1, 10).unwrap();
    let mut writer = ours.image_writer(Base::Empty { size: SIZE }).unwrap();
    writer.put(0, &content(6)[..8 << 20]).unwrap();
    bench.stop();
    bench.start();
    let lost = writer.finish().unwrap_err();
    assert!(
        lost.is_missing() || lost.to_string().contains("begin"),
        "{lost}"
    );
    let image = ship(&ours, Base::Empty { size: SIZE }, &content(6)).unwrap();
    commit(&ours, image, 2, 20).unwrap();
    assert!(restored(&bench) == content(6));
}

/// Lets connections through, and breaks each after so many bytes from the client, `breaks` times in all.
fn breaking_proxy(to: String, bytes: usize, breaks: usize) -> (u16, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let left = Arc::new(AtomicUsize::new(breaks));
    let counted = Arc::clone(&left);
    std::thread::spawn(move || {
        for client in listener.incoming() {
            let (client, server) = (client.unwrap(), TcpStream::connect(&to).unwrap());
            let (mut down_from, mut down_to) =
                (server.try_clone().unwrap(), client.try_clone().unwrap());
            std::thread::spawn(move || std::io::copy(&mut down_from, &mut down_to));
            let left = Arc::clone(&counted);
            std::thread::spawn(move || up(client, server, bytes, &left));
        }
    });
    (port, left)
}

fn up(mut client: TcpStream, mut server: TcpStream, bytes: usize, left: &AtomicUsize) {
    let (mut buf, mut seen) = (vec![0; 16 << 10], 0);
    while let Ok(n @ 1..) = client.read(&mut buf) {
        seen += n;
        let due = seen > bytes && left.load(Ordering::SeqCst) > 0;
        if due {
            left.fetch_sub(1, Ordering::SeqCst);
            break;
        }
        if server.write_all(&buf[..n]).is_err() {
            break;
        }
    }
    let _ = client.shutdown(Shutdown::Both);
    let _ = server.shutdown(Shutdown::Both);
}

#[test]
fn an_image_survives_connections_that_break() {
    let bench = Bench::new();
    let to = bench.url().to_string().replace("https://", "");
    let (port, left) = breaking_proxy(to, 60 << 10, 3);
    let access = bench.access(&bench.token(&[Role::Ship]));
    let url: VaultUrl = format!("https://127.0.0.1:{port}/v").parse().unwrap();
    let vault = Vault::open(&url, &access).unwrap();
    let image = ship(&vault, Base::Empty { size: SIZE }, &content(7)).unwrap();
    commit(&vault, image, 1, 10).unwrap();
    assert_eq!(left.load(Ordering::SeqCst), 0, "no connection was broken");
    assert!(restored(&bench) == content(7));
}
