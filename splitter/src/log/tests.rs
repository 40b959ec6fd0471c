use std::io::ErrorKind;

use sim::SimWorld;

use super::*;
use crate::map::MapIdentity;
use crate::runs::GranuleState;
use crate::slots::Slots;

const GRANULES: u64 = 1 << 20;
const WHOSE: (Lineage, Generation) = (Lineage([3; 16]), Generation(5));

struct Bench {
    world: SimWorld,
    log: DiffLog,
}

impl Bench {
    fn new() -> Self {
        let world = SimWorld::new(1);
        let file = |name| world.dir().create(name).unwrap();
        let identity = MapIdentity {
            size: GRANULES * GRANULE,
            generation: WHOSE.1,
            lineage: WHOSE.0,
        };
        let map = DirtyMap::create(file("a.map"), identity, Generation(4)).unwrap();
        let log = Self::log(Arc::new(map), file("a.diff"));
        Self { world, log }
    }

    fn log(map: Arc<DirtyMap>, file: Arc<dyn File>) -> DiffLog {
        DiffLog::new(map, file, (WHOSE.0, WHOSE.1, &"a".parse().unwrap()))
    }

    /// As a guest's write does.
    fn write(&self, start: u64, count: u64, byte: u8) -> Result<(), AppendError> {
        self.write_as(start, count, byte, WithoutFrame::Write)
    }

    fn write_as(
        &self,
        start: u64,
        count: u64,
        byte: u8,
        without: WithoutFrame,
    ) -> Result<(), AppendError> {
        let granules = GranuleRange {
            start,
            end: start + count,
        };
        self.log.map.mark(granules)?;
        let bytes = vec![byte; index(count * GRANULE)];
        self.log
            .append(granules, &[&bytes], For::Guest(&|| without))
    }

    fn read(&self, granule: u64) -> io::Result<u8> {
        let identity = FrameIdentity::new(WHOSE.0, WHOSE.1, &"a".parse().unwrap());
        let slots = Slots::new(
            Arc::clone(&self.log.map),
            Arc::clone(&self.log.file),
            identity,
        );
        let mut bytes = vec![0; index(GRANULE)];
        let one = GranuleRange {
            start: granule,
            end: granule + 1,
        };
        slots.read(one, &mut bytes)?;
        assert!(bytes.iter().all(|byte| *byte == bytes[0]));
        Ok(bytes[0])
    }

    fn fail_diffs(&self) {
        let fails = |name: &str| name.ends_with(".diff").then_some(ErrorKind::StorageFull);
        self.world.set_fault(Some(Arc::new(fails)));
    }

    fn state(&self, granule: u64) -> GranuleState {
        self.log.map.state(granule)
    }
}

#[test]
fn of_all_that_was_written_the_newest_counts_whatever_frame_it_is_in() {
    let bench = Bench::new();
    bench.write(7, 1, 1).unwrap();
    // Runs that go into the same frame and into the next ones, then single granules of other lanes.
    bench.write(0, 20, 2).unwrap();
    bench.write(0, 64, 3).unwrap();
    for granule in [7, 64, 128, 192, 9] {
        bench.write(granule, 1, 4).unwrap();
    }
    bench.write(0, 64, 5).unwrap();
    bench.write(9, 1, 6).unwrap();
    bench.log.end().unwrap();
    let found: Vec<_> = [0, 7, 9, 63, 64, 128, 192]
        .map(|granule| bench.read(granule).unwrap())
        .into();
    assert_eq!(found, [5, 5, 6, 5, 4, 4, 4]);
    assert_eq!(bench.read(65).unwrap_err().kind(), ErrorKind::InvalidData);
}

/// A run that was written again was written over the frame of the time before. Where the device then lost the
/// later bytes, the earlier ones were there, with checksums that matched: a wrong point.
#[test]
fn what_was_lost_is_not_replaced_by_what_was_there_before() {
    let bench = Bench::new();
    bench.write(0, 64, 1).unwrap();
    bench.log.write_all_staged().unwrap();
    bench.log.file.sync_data().unwrap();
    bench.write(0, 64, 2).unwrap();
    bench.log.end().unwrap();
    assert_eq!(bench.log.map.frames(), 0..2);
    // What the device did not take.
    bench.log.file.set_len(STRIDE).unwrap();
    assert_eq!(bench.read(5).unwrap_err().kind(), ErrorKind::InvalidData);
}

/// A journal that a guest writes round and round would have filled the diff device.
#[test]
fn a_log_that_is_mostly_old_is_noticed_and_begun_anew() {
    let bench = Bench::new();
    let mut writes = 0;
    while !bench.log.is_mostly_old() {
        bench.write(writes % 100, 1, 1).unwrap();
        writes += 1;
        assert!(writes < 20_000, "64 MiB of old granules");
    }
    bench.log.begin_anew();
    assert!(!bench.log.is_mostly_old());
    assert_eq!(bench.log.map.stale_count(), 100);
    assert!(bench.log.map.frames().is_empty());
    while bench.log.tended.lock().freed < bench.log.map.frames().start {
        bench.log.tend().unwrap();
    }
    assert_eq!(bench.log.file.allocated().unwrap(), 0);
    bench.write(3, 1, 9).unwrap();
    bench.log.write_all_staged().unwrap();
    assert_eq!(bench.read(3).unwrap(), 9);
}

#[test]
fn what_could_not_be_written_is_stale_and_its_place_holds_nothing() {
    let bench = Bench::new();
    bench.write(1, 1, 1).unwrap();
    bench.fail_diffs();
    assert_eq!(bench.state(1), GranuleState::Data);
    bench.log.write_all_staged().unwrap_err();
    assert_eq!(bench.state(1), GranuleState::Stale);
    // Nor is it written now: its place is still to hold nothing.
    bench.log.write_all_staged().unwrap_err();
    bench.world.set_fault(None);
    bench.write(2, 1, 3).unwrap();
    bench.log.write_all_staged().unwrap();
    bench.log.end().unwrap_err();
    assert_eq!(bench.log.map.frames(), 0..2);
    assert_eq!(bench.read(2).unwrap(), 3);
    assert!(!bench.log.map.lacks_staged());
}

/// Where the device fails nobody waits for a frame: there will be none.
#[test]
fn whoever_finds_all_frames_failed_is_told_why() {
    let bench = Bench::new();
    bench.fail_diffs();
    let mut writes = 0..GRANULES;
    let error = loop {
        let granule = writes.next().expect("there is an end to frames");
        if let Err(error) = bench.write_as(granule, 1, 1, WithoutFrame::Wait) {
            break error;
        }
        if bench.log.has_full() {
            bench.log.write_full().unwrap().unwrap_err();
        }
    };
    assert!(
        matches!(&error, AppendError::Io(e) if e.kind() == ErrorKind::StorageFull),
        "{error:?}"
    );
    bench.world.set_fault(None);
    bench.log.write_full().unwrap().unwrap();
    bench.write_as(0, 1, 2, WithoutFrame::Wait).unwrap();
    bench.log.write_all_staged().unwrap();
    assert_eq!(bench.read(0).unwrap(), 2);
}

/// A guest does not write frames, and a heal does not take from those who wait: each goes on.
#[test]
fn a_heal_has_a_frame_where_guests_have_none() {
    let bench = Bench::new();
    assert_eq!(bench.log.make_room().unwrap(), STAGED_MAX as u64);
    let without = (0..)
        .map(|n| bench.write_as(n, 1, 1, WithoutFrame::GiveUp))
        .find_map(Result::err);
    assert!(matches!(without, Some(AppendError::NoFrame)));
    assert_eq!(bench.log.file.len().unwrap(), 0);
    let one = GranuleRange { start: 9, end: 10 };
    bench.log.map.mark(one).unwrap();
    let bytes = vec![7; index(GRANULE)];
    bench.log.append(one, &[&bytes], For::Heal).unwrap();
    assert_eq!(bench.log.make_room().unwrap(), STAGED_MAX as u64 - 1);
    bench.log.write_all_staged().unwrap();
    assert_eq!(bench.read(9).unwrap(), 7);
}

#[test]
fn a_heal_that_finds_no_frame_writes_one_and_keeps_it() {
    let bench = Bench::new();
    while bench.write_as(1, 1, 1, WithoutFrame::GiveUp).is_ok() {}
    assert_eq!(bench.log.make_room().unwrap(), STAGED_MAX as u64);
    assert!(bench.log.file.len().unwrap() > 0);
    bench.write_as(2, 1, 1, WithoutFrame::GiveUp).unwrap_err();
    bench.log.end_heal();
    bench.write_as(2, 1, 1, WithoutFrame::GiveUp).unwrap();
}

#[test]
fn what_was_staged_is_stale_after_a_kill() {
    let Bench { world, log } = Bench::new();
    let bench = Bench { world, log };
    bench.write(0, 64, 1).unwrap();
    bench.log.write_all_staged().unwrap();
    bench.write(70, 3, 1).unwrap();
    assert!(bench.log.map.lacks_staged());
    bench.log.map.take_over().unwrap();
    assert_eq!(bench.log.map.stale_count(), 3);
    assert_eq!(bench.state(72), GranuleState::Stale);
    // The next process leaves the place that the frame would have had empty.
    let next = Bench {
        log: Bench::log(Arc::clone(&bench.log.map), Arc::clone(&bench.log.file)),
        world: bench.world.clone(),
    };
    assert_eq!(next.read(63).unwrap(), 1);
    next.write(70, 1, 2).unwrap();
    next.log.write_all_staged().unwrap();
    assert_eq!(next.log.map.frames(), 0..3);
    assert_eq!(next.read(70).unwrap(), 2);
}

/// Frames that wait are memory: whoever fills more of them than there may be writes one.
#[test]
fn full_frames_wait_until_memory_for_them_ends() {
    let bench = Bench::new();
    let granules = |frames: usize| (0..(frames * STAGED_MAX) as u64).map(|n| n * NEIGHBOURS * 4);
    for granule in granules(SLOTS - 1) {
        bench.write(granule, 1, 1).unwrap();
    }
    assert_eq!(bench.log.file.len().unwrap(), 0);
    assert!(bench.log.has_full());
    for granule in granules(SLOTS + 3) {
        bench.write(granule, 1, 2).unwrap();
    }
    assert!(bench.log.file.len().unwrap() > 0);
    bench.log.write_full().unwrap().unwrap();
    bench.log.end().unwrap();
    assert!(bench.log.write_full().is_none());
    assert!(granules(SLOTS + 3).all(|granule| bench.read(granule).unwrap() == 2));
}

#[test]
fn frames_that_wait_or_are_written_by_another_do_not_count_once_the_log_is_begun_anew() {
    let bench = Bench::new();
    for granule in 0..3 * STAGED_MAX as u64 {
        bench.write(granule * 256, 1, 1).unwrap();
    }
    let writing = bench.log.buffers.take_full().unwrap();
    bench.log.begin_anew();
    assert!(!bench.log.has_full());
    bench.write(0, 1, 2).unwrap();
    let frame = bench.log.write_begun(writing, Cache::Past).unwrap();
    bench.log.buffers.put_free(frame);
    bench.log.write_all_staged().unwrap();
    assert_eq!(bench.read(0).unwrap(), 2);
    assert_eq!(bench.state(256), GranuleState::Stale);
    assert_eq!(bench.log.map.frames(), 3..4);
}

/// It was copied once more by the time the write of the frame before failed.
#[test]
fn a_frame_that_fails_once_the_log_is_begun_anew_takes_nothing_that_counts_with_it() {
    let bench = Bench::new();
    for n in 0..STAGED_MAX as u64 {
        bench.write(n % NEIGHBOURS, 1, 1).unwrap();
    }
    let writing = bench.log.buffers.take_full().unwrap();
    bench.log.begin_anew();
    bench.write(0, 2, 2).unwrap();
    bench.fail_diffs();
    assert!(bench.log.write_begun(writing, Cache::Past).is_err());
    bench.world.set_fault(None);
    assert_eq!(bench.state(0), GranuleState::Stale);
    bench.write(0, 1, 3).unwrap();
    bench.log.write_all_staged().unwrap();
    assert_eq!(bench.read(0).unwrap(), 3);
    assert_eq!(bench.log.map.stale_count(), NEIGHBOURS - 1);
    assert_eq!(bench.log.map.frames().start, 1);
}

/// What a frame that fails after all is well again had, is stale: a cut that did not ask would take it for copied.
#[test]
fn a_frame_that_fails_after_the_guests_went_on_is_noticed_by_the_end() {
    let bench = Bench::new();
    for n in 0..STAGED_MAX as u64 {
        bench.write(n % NEIGHBOURS, 1, 1).unwrap();
    }
    bench.fail_diffs();
    bench.log.write_full().unwrap().unwrap_err();
    bench.world.set_fault(None);
    assert_eq!(bench.state(0), GranuleState::Stale);
    bench.log.end().unwrap_err();
}

/// A thread that panicked with a frame would have left every later cut waiting for it; and a cut must not
/// believe what the frame had.
#[test]
fn a_frame_that_its_writer_dropped_fails_the_cut_and_hangs_none() {
    let bench = Bench::new();
    for n in 0..STAGED_MAX as u64 {
        bench.write(n % NEIGHBOURS, 1, 1).unwrap();
    }
    drop(bench.log.buffers.take_full().unwrap());
    bench.write(500, 1, 1).unwrap();
    bench.log.write_all_staged().unwrap();
    assert!(bench.log.map.lacks_staged());
    bench.log.end().unwrap_err();
}
