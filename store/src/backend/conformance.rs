//! The conformance suite of backends: what every place that keeps a store's objects must do.

#![expect(clippy::unwrap_used, reason = "it fails by panicking")]

use std::io::ErrorKind;

use crate::backend::Backend;

/// Everything that holds for any backend, on an empty one.
///
/// # Panics
/// If it does not hold.
pub fn conforms(place: &dyn Backend) {
    created_once_and_whole(place);
    read_within_bounds(place);
    replaced_and_removed(place);
    listed_by_folder(place);
    read_as_a_whole(place);
    one_of_many_creates_a_name(place);
}

fn read(place: &dyn Backend, name: &str, offset: u64, len: usize) -> std::io::Result<Vec<u8>> {
    let mut buf = vec![0; len];
    place.read(name, offset, &mut buf)?;
    Ok(buf)
}

fn kind<T>(result: std::io::Result<T>) -> ErrorKind {
    result.err().expect("it fails").kind()
}

fn created_once_and_whole(place: &dyn Backend) {
    for name in ["format", "lease/epoch-1", "containers/000000/1.con"] {
        assert_eq!(kind(place.len(name)), ErrorKind::NotFound);
        place.create(name, b"first", 1).unwrap();
        assert_eq!(
            kind(place.create(name, b"second", 2)),
            ErrorKind::AlreadyExists
        );
        assert_eq!(read(place, name, 0, 5).unwrap(), b"first");
        assert_eq!(place.len(name).unwrap(), 5);
    }
    place.create("empty", b"", 1).unwrap();
    assert_eq!(place.len("empty").unwrap(), 0);
    assert_eq!(read(place, "empty", 0, 0).unwrap(), b"");
}

fn read_within_bounds(place: &dyn Backend) {
    let bytes: Vec<u8> = (0..5_000_000_u32).map(|i| (i % 251) as u8).collect();
    place.create("bounds/large", &bytes, 1).unwrap();
    assert_eq!(place.len("bounds/large").unwrap(), 5_000_000);
    for (offset, len) in [
        (0, 1),
        (1, 4096),
        (4_999_999, 1),
        (100, 4_000_000),
        (0, 5_000_000),
    ] {
        let from = usize::try_from(offset).unwrap();
        let found = read(place, "bounds/large", offset, len).unwrap();
        assert!(found == bytes[from..from + len], "{offset} {len}");
    }
    for (offset, len) in [
        (4_999_999, 2),
        (5_000_000, 1),
        (6_000_000, 1),
        (0, 5_000_001),
    ] {
        let found = read(place, "bounds/large", offset, len);
        assert_eq!(kind(found), ErrorKind::UnexpectedEof, "{offset} {len}");
    }
    assert_eq!(kind(read(place, "bounds/none", 0, 1)), ErrorKind::NotFound);
}

fn replaced_and_removed(place: &dyn Backend) {
    place.create("change/a", b"old", 1).unwrap();
    assert_eq!(read(place, "change/a", 0, 3).unwrap(), b"old");
    place.replace("change/a", b"newer", 1).unwrap();
    assert_eq!(read(place, "change/a", 0, 5).unwrap(), b"newer");
    place.sync("change").unwrap();
    place.remove("change/a").unwrap();
    assert_eq!(kind(place.len("change/a")), ErrorKind::NotFound);
    assert_eq!(kind(read(place, "change/a", 0, 1)), ErrorKind::NotFound);
    // S3 does not say that there was nothing.
    let again = place.remove("change/a");
    assert!(again.is_ok() || kind(again) == ErrorKind::NotFound);
    place.create("change/a", b"again", 2).unwrap();
    assert_eq!(read(place, "change/a", 0, 5).unwrap(), b"again");
}

fn listed_by_folder(place: &dyn Backend) {
    assert!(place.list("nothing/here").unwrap().is_empty());
    for i in 0..1200 {
        let name = format!("many/000000/{i:04}");
        place.create(&name, &[1], 1).unwrap();
    }
    place.create("many/000001/other", b"12345", 1).unwrap();
    place.recover("many/000000").unwrap();
    let mut found = place.list("many/000000").unwrap();
    found.sort();
    let all: Vec<_> = (0..1200).map(|i| (format!("{i:04}"), 1)).collect();
    assert_eq!(found, all);
    assert_eq!(place.list("many/000001").unwrap(), [("other".into(), 5)]);
    assert!(place.list("many").unwrap().is_empty(), "no folders in it");
    let mut between = place.list_between("many/000000", "0007", "001").unwrap();
    between.sort();
    assert_eq!(between, ["0008", "0009"]);
    let none = place.list_between("nothing/here", "a", "z").unwrap();
    assert!(none.is_empty());
}

fn read_as_a_whole(place: &dyn Backend) {
    place.create("whole/a", &[7; 70_000], 1).unwrap();
    assert_eq!(place.read_whole("whole/a", 70_000).unwrap(), [7; 70_000]);
    let longer = place.read_whole("whole/a", 69_999);
    assert_eq!(kind(longer), ErrorKind::InvalidData);
    let none = place.read_whole("whole/none", 1);
    assert_eq!(kind(none), ErrorKind::NotFound);
    place.create("whole/empty", b"", 1).unwrap();
    assert!(place.read_whole("whole/empty", 1).unwrap().is_empty());
}

/// Two writers that fight for a commit's number: whatever they write, one of them has it.
fn one_of_many_creates_a_name(place: &dyn Backend) {
    for round in 0..20 {
        let name = format!("fight/{round}");
        let winners: Vec<u8> = std::thread::scope(|scope| {
            let fight = |i: u8| {
                let created = place.create(&name, &[i; 100], u64::from(i));
                match created {
                    Ok(()) => Some(i),
                    Err(e) => {
                        assert_eq!(e.kind(), ErrorKind::AlreadyExists, "{e}");
                        None
                    }
                }
            };
            let threads: Vec<_> = (1..5).map(|i| scope.spawn(move || fight(i))).collect();
            let ended = threads.into_iter().map(|thread| thread.join().unwrap());
            ended.flatten().collect()
        });
        let [winner] = winners[..] else {
            panic!("round {round}: {winners:?}");
        };
        assert_eq!(read(place, &name, 0, 100).unwrap(), [winner; 100]);
    }
}
