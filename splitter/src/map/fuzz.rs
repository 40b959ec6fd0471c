//! Arbitrary bytes as a dirty map: walking it must end, and stay on the disk.

use std::sync::atomic::Ordering;

use super::*;

pub(crate) fn fuzz(size: u64, bytes: &[u8]) {
    const SIZE_MAX: u64 = 1 << 32;
    let size = size % SIZE_MAX + 1;
    let world = sim::SimWorld::new(0);
    let file = world.dir().create("map").expect("an empty world");
    let identity = MapIdentity {
        size,
        generation: Generation(1),
        lineage: Lineage([0; 16]),
    };
    drop(DirtyMap::create(Arc::clone(&file), identity, Generation::NONE).expect("no faults"));
    let words = file.map(Shape::of(size).file_len()).expect("no faults");
    // All but what says which map it is.
    for (word, chunk) in words.words()[word::CHECK + 1..]
        .iter()
        .zip(bytes.chunks_exact(8))
    {
        word.store(
            u64::from_le_bytes(chunk.try_into().expect("eight")),
            Ordering::Relaxed,
        );
    }
    let Ok(map) = DirtyMap::open(file, identity) else {
        return;
    };
    map.take_over().expect("no faults");
    assert!(!map.lacks_staged());
    let end = GranuleRange::of_size(size).end;
    let mut at = 0;
    while let Some(run) = map.next_run(at, u64::MAX - at) {
        assert!(run.granules.start >= at && run.granules.end > run.granules.start);
        assert!(run.granules.end <= end, "{run:?} passes the end {end}");
        at = run.granules.end;
    }
}
