use std::sync::atomic::Ordering;

use super::*;

fn read_all(dir: &dyn Dir, name: &str) -> Option<Vec<u8>> {
    let file = dir.open(name).ok()?;
    let mut bytes = vec![0; usize::try_from(file.len().unwrap()).unwrap()];
    file.read_exact_at(&mut bytes, 0).unwrap();
    Some(bytes)
}

#[test]
fn a_kill_keeps_what_completed_and_a_power_cut_what_was_synced() {
    let world = SimWorld::new(1);
    let dir = world.dir();
    let file = dir.create("a").unwrap();
    file.write_all_at(b"synced", 0).unwrap();
    file.sync_data().unwrap();
    dir.sync().unwrap();
    file.write_all_at(b"SYNCED", 0).unwrap();

    let killed = world.kill();
    assert_eq!(read_all(&*killed.dir(), "a").unwrap(), b"SYNCED");
    assert!(file.write_all_at(b"x", 0).is_err(), "the old world is over");

    let mut seen = BTreeSet::new();
    for _ in 0..64 {
        seen.insert(read_all(&*killed.cut_power().dir(), "a").unwrap());
    }
    assert!(seen.contains(b"synced".as_slice()) && seen.contains(b"SYNCED".as_slice()));
}

#[test]
fn a_name_without_a_sync_of_its_directory_may_vanish() {
    let world = SimWorld::new(2);
    let file = world.dir().create("a").unwrap();
    file.write_all_at(b"x", 0).unwrap();
    file.sync_data().unwrap();
    let kept = (0..64)
        .filter(|_| world.cut_power().dir().open("a").is_ok())
        .count();
    assert!((1..64).contains(&kept), "{kept}");
}

#[test]
fn stores_after_the_crash_do_not_reach_the_survivors() {
    let world = SimWorld::new(3);
    let dir = world.dir();
    let file = dir.create("m").unwrap();
    file.set_len(4096).unwrap();
    let map = file.map(4096).unwrap();
    map.words()[0].store(7, Ordering::SeqCst);
    world.crash_after(1);
    assert!(file.set_len(8192).is_err());
    map.words()[0].store(9, Ordering::SeqCst);
    let after = world.kill();
    let words = after.dir().open("m").unwrap().map(4096).unwrap();
    assert_eq!(words.words()[0].load(Ordering::SeqCst), 7);
}

#[test]
fn a_fault_is_seen_and_passes() {
    let world = SimWorld::new(4);
    let file = world.dir().create("diff").unwrap();
    world.set_fault(Some(Arc::new(|n| {
        n.starts_with("d").then_some(io::ErrorKind::StorageFull)
    })));
    assert_eq!(
        file.write_all_at(b"x", 0).unwrap_err().kind(),
        io::ErrorKind::StorageFull
    );
    world.set_fault(None);
    file.write_all_at(b"x", 0).unwrap();
}
