//! Logs of open diffs that are kept short.

mod common;

use common::{Bench, Image};

/// A disk whose guest wrote the same two blocks so many times, and what it was before.
fn written_again(times: u8) -> (Bench, Vec<Image>) {
    let mut bench = Bench::new(1, &[64 * 4096]);
    let base = bench.production();
    for byte in 0..times {
        bench.fill(3..5, byte);
    }
    (bench, base)
}

/// Begun anew between the heal of a cut and the cut, again and again, a log would never be found healed: no cut
/// could be made while a guest writes the same blocks fast.
#[test]
fn a_log_that_is_mostly_old_is_begun_anew_and_not_while_a_cut_needs_it() {
    let (mut bench, base) = written_again(200);
    let kept = bench.group().keep_logs();
    bench.group().tend_logs().unwrap();
    assert_eq!(bench.group().disks()[0].stale_bytes(), 0);
    drop(kept);
    bench.group().tend_logs().unwrap();
    assert_eq!(bench.group().disks()[0].stale_bytes(), 2 * 4096);
    bench.check_next(&base, "after its log was begun anew");
}

/// On a full device nothing else would free what a log holds that nobody needs: no cut could be made any more.
#[test]
fn on_a_full_device_a_log_that_is_a_little_old_is_begun_anew_too() {
    let (mut bench, base) = written_again(30);
    bench.group().tend_logs().unwrap();
    assert_eq!(bench.group().disks()[0].stale_bytes(), 0);
    bench.group().pause_copies();
    bench.group().renew_logs().unwrap();
    assert_eq!(bench.group().disks()[0].stale_bytes(), 2 * 4096);
    bench.group().resume_copies();
    bench.check_next(&base, "after its log was begun anew");
}
