//! Guests whose copies are brought to the diff device by a thread of its own.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::sync::Arc;
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use block::{BlockDevice, Fua};
use common::Bench;
use splitter::TrackedDisk;

const GRANULES: u64 = 64;
const WRITES: u64 = 3 * GRANULES;
/// Five frames, each a sixteenth of the disk.
const COPIES_MAX: usize = 20;
/// What a write that waits for nothing takes, and far more.
const PATIENCE: Duration = Duration::from_millis(500);
/// Until a test fails rather than hangs.
const LIMIT: Duration = Duration::from_secs(30);

/// A guest, and how many of its writes were answered before it had to wait.
struct Waiting {
    guest: JoinHandle<()>,
    answered: mpsc::Receiver<()>,
    before: usize,
}

impl Waiting {
    fn begin(disk: &Arc<TrackedDisk>) -> Self {
        let disk = Arc::clone(disk);
        let (answer, answered) = mpsc::channel();
        let guest = thread::spawn(move || {
            for n in 0..WRITES {
                write(&*disk, n);
                answer.send(()).unwrap();
            }
        });
        let before = std::iter::from_fn(|| answered.recv_timeout(PATIENCE).ok()).count();
        Self {
            guest,
            answered,
            before,
        }
    }

    fn end(self) {
        let rest = std::iter::from_fn(|| self.answered.recv_timeout(LIMIT).ok()).count();
        assert_eq!((self.before + rest) as u64, WRITES);
        self.guest.join().unwrap();
    }
}

fn write(disk: &dyn BlockDevice, n: u64) {
    let byte = u8::try_from(n).unwrap();
    let offset = n % GRANULES * 4096;
    disk.write_at(&[byte; 4096], offset, Fua::No).unwrap();
}

fn diff_bytes(bench: &Bench) -> u64 {
    bench.group().space().unwrap().unwrap().diff_bytes
}

/// A guest who found no room in memory wrote to the diff file itself, and waited there for as long as the writer, who
/// held the file, waited for the device: five seconds a write. Here the writer never comes back.
#[test]
fn a_guest_waits_for_a_hung_writer_until_copies_are_paused_and_no_longer() {
    let mut bench = Bench::new(1, &[GRANULES * 4096; 2]);
    let base = bench.production();
    let [disk, other] = [0, 1].map(|at| Arc::clone(&bench.group().disks()[at]));
    let writer = bench.group().frame_writer();
    let waiting = Waiting::begin(&disk);
    assert_eq!((waiting.before, diff_bytes(&bench)), (COPIES_MAX, 0));
    write(&*other, 7);
    bench.group().pause_copies();
    waiting.end();
    assert_eq!(diff_bytes(&bench), 0);
    drop(writer);
    bench.group().resume_copies();
    bench.check_next(&base, "after the device answers again");
}

/// Whoever gave up the lineage waited for the gate, which the guest held who waited for a frame: all guests of the
/// disk waited for the diff device then.
#[test]
fn a_guest_that_waits_for_a_hung_writer_does_not_keep_tracking_from_beginning_anew() {
    let (done, is_done) = mpsc::channel();
    // Its own thread: what hangs there fails here.
    thread::spawn(move || {
        let bench = Bench::new(2, &[GRANULES * 4096]);
        let disk = Arc::clone(&bench.group().disks()[0]);
        let _writer = bench.group().frame_writer();
        let waiting = Waiting::begin(&disk);
        assert_eq!(waiting.before, COPIES_MAX);
        bench.group().restart_tracking("the test says so").unwrap();
        // In the new lineage it finds frames, and once more none.
        bench.group().pause_copies();
        waiting.end();
        done.send(()).unwrap();
    });
    is_done.recv_timeout(LIMIT).unwrap();
}
