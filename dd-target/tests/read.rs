//! The read plane: a vault's objects as a store's, over a real socket.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::Arc;

use block::{Dir, OsDir, UnixNanos};
use common::Bench;
use dd_target::api::Role;
use dd_target::client::Objects;
use store::{Around, Base, Consistency, Directory, PointDraft, Store};

mod common;

/// A store with one point of 8 MiB that no two chunks of are the same.
fn make_store(bench: &Bench) {
    let dir = OsDir::create_all(bench.path("place/vaults/v")).unwrap();
    let place = Directory::backend(&(Arc::new(dir) as Arc<dyn Dir>));
    Store::create(&place).unwrap();
    let store = Store::open_writer(&place, Around::new(Arc::clone(&bench.clock))).unwrap();
    let mut writer = store.image_writer(Base::Empty { size: 8 << 20 }).unwrap();
    writer.put(0, &content()).unwrap();
    let disks = vec![("disk".parse().unwrap(), writer.finish().unwrap())];
    store
        .commit_point(PointDraft {
            group: "g".parse().unwrap(),
            disks,
            at: UnixNanos(1),
            lineage: [1; 16],
            generation: 1,
            labels: Default::default(),
            consistency: Consistency::Crash,
        })
        .unwrap();
}

fn content() -> Vec<u8> {
    let mut state = 88_172_645_463_325_252_u64;
    let words = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    });
    words.take(1 << 20).flat_map(u64::to_le_bytes).collect()
}

fn served() -> Bench {
    let mut bench = Bench::stopped();
    make_store(&bench);
    bench.start();
    // It lies there already, and is taken as it is.
    bench.make_vault("v", None);
    bench
}

#[test]
fn a_store_reads_through_its_server_as_it_does_in_its_directory() {
    let bench = served();
    let access = bench.access(&bench.token(&[Role::Restore]));
    let objects = Objects::open(&bench.vault("v"), &access).unwrap();
    let store = Store::open_reader(&objects, Around::new(Arc::clone(&bench.clock))).unwrap();
    let point = store.points().pop().unwrap();
    let image = &point.disks[0].image;
    assert!(store.verify_image(image, &|_, _| ()).unwrap().is_whole());
    let mut read = vec![0; 8 << 20];
    block::BlockDevice::read_at(&store.image(image).unwrap(), &mut read, 0).unwrap();
    assert!(read == content());
}

#[test]
fn objects_have_the_lengths_and_bytes_that_they_have_where_they_lie() {
    let bench = served();
    let access = bench.access(&bench.token(&[Role::Restore]));
    let objects = Objects::open(&bench.vault("v"), &access).unwrap();
    let listed = objects.list("containers/000000").unwrap();
    assert!(!listed.is_empty());
    for (plain, len) in listed {
        let name = format!("containers/000000/{plain}");
        let there = std::fs::read(bench.path(&format!("place/vaults/v/{name}"))).unwrap();
        assert_eq!(
            (objects.len(&name).unwrap(), there.len() as u64),
            (len, len)
        );
        assert!(objects.read_whole(&name, u64::MAX).unwrap() == there);
        let mut some = vec![0; 5_000];
        objects.read(&name, 100_000, &mut some).unwrap();
        assert_eq!(some, there[100_000..105_000]);
        let past = objects.read(&name, len - 1, &mut some).unwrap_err();
        assert_eq!(past.kind(), std::io::ErrorKind::UnexpectedEof);
        let error = objects.read_whole(&name, 1_000).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::InvalidData);
    }
    let missing = objects
        .len("containers/000000/00000000ffff.con")
        .unwrap_err();
    assert_eq!(missing.kind(), std::io::ErrorKind::NotFound);
    for hidden in ["lease/epoch-0000000000000001", "headroom"] {
        assert!(objects.len(hidden).is_err(), "{hidden}");
    }
    let error = objects.create("containers/000000/x", b"x", 1).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::PermissionDenied);
}

#[test]
fn who_looks_after_points_sees_them_and_not_what_is_in_them() {
    let bench = served();
    let access = bench.access(&bench.token(&[Role::Retention]));
    let objects = Objects::open(&bench.vault("v"), &access).unwrap();
    let store = Store::open_reader(&objects, Around::new(Arc::clone(&bench.clock))).unwrap();
    assert_eq!(store.points().len(), 1);
    let name = "containers/000000/000000000001.con";
    let error = objects.len(name).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::PermissionDenied);
    // Nor does the server's word for a length give it away.
    assert_eq!(
        bench
            .ask(
                "HEAD",
                &format!("/v1/vaults/v/objects/{name}"),
                Some(&bench.token(&[Role::Retention]))
            )
            .0,
        403
    );
}

#[test]
fn only_ranges_that_one_answer_can_hold_are_sent() {
    let bench = served();
    let token = bench.token(&[Role::Restore]);
    let path = "/v1/vaults/v/objects/format";
    for (range, status) in [
        ("bytes=0-9", 206),
        ("bytes=0-4000000", 206),
        ("bytes=100000-100001", 416),
        ("bytes=0-99999999", 400),
        ("bytes=9-0", 400),
        ("bytes=0-", 400),
        ("bytes=-5", 206),
        ("bytes=-4000000", 206),
        ("bytes=-0", 400),
        ("bytes=-99999999", 400),
        ("bytes=--5", 400),
        ("bytes=0-18446744073709551615", 400),
        ("lines=0-1", 400),
    ] {
        let asked = bench.ask_with("GET", path, Some(&token), |r| r.header("range", range));
        assert_eq!(asked.0, status, "{range}: {}", asked.1);
    }
    assert_eq!(bench.ask("GET", path, Some(&token)).0, 400);
}

/// A token that could only read made a directory of every folder that it named, and kept the server from opening files.
#[test]
fn a_folder_that_is_asked_for_is_not_made() {
    let bench = served();
    let token = bench.token(&[Role::Restore]);
    for number in 0..3 {
        let folder = format!("trees/00f{number:03x}");
        let path = format!("/v1/vaults/v/list?folder={folder}");
        let (status, body) = bench.ask("GET", &path, Some(&token));
        assert_eq!((status, &*body), (200, r#"{"objects":[]}"#));
        let path = format!("/v1/vaults/v/objects/{folder}/x");
        let asked = bench.ask_with("GET", &path, Some(&token), |r| {
            r.header("range", "bytes=0-9")
        });
        assert_eq!(asked.0, 404, "{}", asked.1);
        assert!(!bench.path(&format!("place/vaults/v/{folder}")).exists());
    }
}

/// Most systems start a process with 1,024 open files: a server of a few vaults has more.
#[test]
fn a_server_asks_for_as_many_open_files_as_it_may() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

    let limit = getrlimit(Resource::Nofile);
    let few = Rlimit {
        current: Some(512),
        ..limit
    };
    setrlimit(Resource::Nofile, few).unwrap();
    let _bench = Bench::new();
    assert_eq!(getrlimit(Resource::Nofile).current, limit.maximum);
}
