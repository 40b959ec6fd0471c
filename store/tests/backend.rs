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
