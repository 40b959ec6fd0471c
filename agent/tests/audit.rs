//! The audit finds what was changed behind the splitter, and nothing else; the next point is exact.

#[allow(dead_code, reason = "other tests need more of it")]
mod common;

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;

use agent::Protection;
use agent::api::AuditStatus;
use common::{Bench, MIB};

fn audit(protection: &Protection) -> AuditStatus {
    protection.status().audit.expect("it is on")
}

/// Waits for two more passes: the first of them may have begun before.
fn pass(bench: &Bench, protection: &Protection) -> AuditStatus {
    let seen = audit(protection).passes;
    bench.wait(|| Some(audit(protection)).filter(|audit| audit.passes >= seen + 2))
}

#[test]
fn a_block_changed_behind_the_splitter_is_found_once_and_read_into_the_next_point() {
    let bench = Bench::new(8 * MIB);
    let protection = bench.start();
    bench.write(5 * MIB, 0x5a, 70_000);
    let point = bench.cut();
    bench.check(&point);
    let clean = pass(&bench, &protection);
    assert_eq!((clean.misses, clean.last_miss), (0, None));
    assert!(clean.bytes_checked >= 16 * MIB as u64);

    let behind = OpenOptions::new().write(true).open(bench.path("disk.raw"));
    let behind = behind.expect("opens");
    behind
        .write_all_at(b"flipped", 3 * MIB as u64 + 100)
        .expect("written");
    // A hole is looked at, too.
    behind
        .write_all_at(&[1; 5000], 7 * MIB as u64)
        .expect("written");

    let found = bench.wait(|| Some(audit(&protection)).filter(|audit| audit.misses >= 3));
    let miss = found.last_miss.expect("there are some");
    assert_eq!(
        (miss.disk.as_str(), miss.point.as_str()),
        ("disk", point.as_str())
    );
    bench.check(&bench.cut());
    let after = pass(&bench, &protection);
    assert_eq!((after.misses, after.trouble), (3, None));
    protection.stop().expect("stops");
}

#[test]
fn writes_cuts_and_restarts_are_no_findings() {
    let bench = Bench::new(4 * MIB);
    for round in 0_u8..3 {
        let protection = bench.start();
        for i in 0..25_u8 {
            let at = usize::from(i) * 37 * 4096 + usize::from(round) * 512;
            bench.write(at % (3 * MIB), i ^ round, 4096 * 3 + 512);
            let wait = i % 5 == 0;
            bench.try_cut(wait).map(drop).unwrap_or_else(|error| {
                assert!(!wait, "{error}");
            });
        }
        bench.check(&bench.cut());
        let audit = pass(&bench, &protection);
        assert_eq!((audit.misses, audit.trouble), (0, None));
        match round {
            // As after a kill.
            1 => drop(protection),
            _ => drop(protection.stop().expect("stops")),
        }
    }
}
