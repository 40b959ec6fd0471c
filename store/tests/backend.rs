//! Every place that keeps a store's objects does what `store::conformance` asks for.

use std::io::ErrorKind;
use std::sync::Arc;

use block::{Dir, OsDir};
use sim::SimWorld;
use store::conformance::conforms;
use store::{Backend, Directory};

#[test]
fn a_directory_conforms() {
    let tmp = tempfile::tempdir().unwrap();
    let dir: Arc<dyn Dir> = Arc::new(OsDir::open(tmp.path()).unwrap());
    conforms(&Directory::new(dir));
}

#[test]
fn a_simulated_directory_conforms() {
    conforms(&Directory::new(SimWorld::new(1).dir()));
}

#[test]
#[cfg(feature = "bucket")]
fn a_bucket_conforms() {
    let memory = Arc::new(object_store::memory::InMemory::new());
    let bucket = store::Bucket::new(memory.clone(), "a/b".into(), "memory".into()).unwrap();
    conforms(&bucket);
    let elsewhere = store::Bucket::new(memory, "a".into(), "memory".into()).unwrap();
    assert!(
        elsewhere.list("").unwrap().is_empty(),
        "below another prefix"
    );
}

#[test]
fn a_lock_keeps_a_second_one_out_until_it_is_dropped() {
    let tmp = tempfile::tempdir().unwrap();
    let open = || Directory::new(Arc::new(OsDir::open(tmp.path()).unwrap()));
    let (a, b) = (open(), open());
    let lock = a.lock().unwrap().expect("directories have locks");
    assert_eq!(b.lock().err().unwrap().kind(), ErrorKind::WouldBlock);
    drop(lock);
    b.lock().unwrap();
}

/// A token that could only read made directories: a folder that was asked for was made, synced and kept open for ever, until the
/// server had no file left to open.
#[test]
fn who_reads_makes_no_folder_and_keeps_few_open() {
    let tmp = tempfile::tempdir().unwrap();
    let place = Directory::new(Arc::new(OsDir::open(tmp.path()).unwrap()));
    assert!(place.list("containers/0000ff").unwrap().is_empty());
    assert!(place.half_created("containers/0000ff").unwrap().is_empty());
    let between = place.list_between("containers/0000ff", "a", "z").unwrap();
    assert!(between.is_empty());
    let name = "containers/0000ff/x";
    let missing = [
        place.len(name).unwrap_err(),
        place.read(name, 0, &mut [0]).unwrap_err(),
        place.remove(name).unwrap_err(),
        place.sync("containers/0000ff").unwrap_err(),
    ];
    assert!(missing.iter().all(|e| e.kind() == ErrorKind::NotFound));
    assert_eq!(std::fs::read_dir(tmp.path()).unwrap().count(), 0);

    for number in 0..200 {
        let folder = format!("containers/{number:06x}");
        std::fs::create_dir_all(tmp.path().join(&folder)).unwrap();
        assert!(place.list(&folder).unwrap().is_empty());
    }
    assert!(open_below(tmp.path()) < 50);
}

/// How many files and directories below `path` the process has open.
fn open_below(path: &std::path::Path) -> usize {
    let all = std::fs::read_dir("/proc/self/fd").expect("Linux tells");
    let targets = all.filter_map(|open| std::fs::read_link(open.ok()?.path()).ok());
    targets.filter(|target| target.starts_with(path)).count()
}

/// A server had read the keys of a store once, and told them on after its owner had taken them away, beside it.
#[test]
fn keys_that_another_process_removed_are_gone() {
    let tmp = tempfile::tempdir().unwrap();
    let open = || Directory::new(Arc::new(OsDir::open(tmp.path()).unwrap()));
    let (server, owner) = (open(), open());
    owner.create("keys/a", b"bytes", 1).unwrap();
    server.read("keys/a", 0, &mut [0; 5]).unwrap();
    owner.remove("keys/a").unwrap();
    let asked = [
        server.len("keys/a").map(drop),
        server.read("keys/a", 0, &mut [0; 5]),
    ];
    for asked in asked {
        assert_eq!(asked.unwrap_err().kind(), ErrorKind::NotFound);
    }
}
