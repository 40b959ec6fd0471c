//! A protected group in this process: what stage two does when the world is not kind.

mod common;

use std::fs;

use agent::HookOptions;
use agent::api::{Consistency, State};
use common::{Bench, MIB};

#[test]
fn a_write_is_in_the_next_point_and_not_in_the_one_before() {
    let bench = Bench::new(4 * MIB);
    let protection = bench.start();
    let before = bench.cut();
    bench.write(3 * MIB, 7, 8192);
    let after = bench.cut();
    assert!(bench.restored(&before)[3 * MIB..3 * MIB + 8192] == [0; 8192]);
    bench.check(&after);
    let newest = protection.stop().expect("stops").expect("a point");
    bench.check(&newest);
}

/// A database that was frozen stays frozen if nobody thaws it: `after` runs whatever `before` did.
#[test]
fn hooks_run_around_each_cut_and_decide_on_its_consistency() {
    let bench = Bench::new(MIB);
    let (log, veto) = (bench.path("log"), bench.path("veto"));
    let hook = |line: String| Some(format!("sh -c '{line}'").parse().expect("a command"));
    let before = hook(format!(
        "echo before >>{}; test ! -e {}",
        log.display(),
        veto.display()
    ));
    let after = hook(format!("echo after $STANDIN_RESULT >>{}", log.display()));
    let protection = bench.start_with(HookOptions {
        before,
        after,
        ..HookOptions::default()
    });
    let cut = |expected: Consistency| {
        let made = bench.try_cut(true).expect("a cut");
        assert_eq!(made.cut.consistency, expected);
        let said = fs::read_to_string(&log).expect("the hooks ran");
        let last: Vec<_> = said.lines().rev().take(2).map(str::to_owned).collect();
        bench.check(&made.point.expect("it was waited for"));
        last
    };
    assert_eq!(
        cut(Consistency::Application),
        ["after application", "before"]
    );
    fs::write(&veto, "").expect("written");
    assert_eq!(cut(Consistency::Crash), ["after crash", "before"]);
    protection.stop().expect("stops");
}

#[test]
fn a_restart_goes_on_without_copying_again() {
    let bench = Bench::new(4 * MIB);
    bench.protect_once();
    let protection = bench.start();
    bench.write(0, 9, 4096);
    let point = bench.cut();
    assert_eq!(
        protection.status().seed.read_bytes,
        0,
        "nothing is copied anew"
    );
    bench.check(&point);
    protection.stop().expect("stops");
}

/// The disk was protected to another place in between: what was cut there is in no diff any more.
#[test]
fn another_target_in_between_means_a_new_copy_and_an_exact_point() {
    let bench = Bench::new(4 * MIB);
    bench.protect_once();
    let other = bench.start_to("other");
    bench.write(2 * MIB, 3, 4096);
    bench.cut();
    other.stop().expect("stops");
    let back = bench.start();
    bench.write(3 * MIB, 4, 4096);
    let point = bench.cut();
    bench.check(&point);
    assert!(back.status().seed.read_bytes > 0, "it had to be copied");
    back.stop().expect("stops");
}

/// Between a new copy and the first point that builds on it, a group with an old point was called protected.
#[test]
fn a_group_is_protected_when_there_is_a_point_of_its_history_and_not_before() {
    let bench = Bench::new(4 * MIB);
    let once = bench.start();
    bench.cut();
    let old = once.stop().expect("stops").expect("a point");
    let other = bench.start_to("other");
    bench.cut();
    other.stop().expect("stops");
    let back = bench.start();
    let state = |status: &agent::api::GroupStatus| status.state;
    let first = bench.wait(|| Some(back.status()).filter(|now| state(now) == State::Protected));
    assert_ne!(first.point.expect("a point"), old);
    back.stop().expect("stops");
}

/// The target was set back to an older state: points that diffs build on are gone.
#[test]
fn a_target_that_went_back_in_time_means_a_new_copy_and_an_exact_point() {
    let bench = Bench::new(4 * MIB);
    bench.protect_once();
    bench.copy_dir("target", "old");
    let protection = bench.start();
    bench.write(MIB, 5, 4096);
    bench.cut();
    protection.stop().expect("stops");
    fs::remove_dir_all(bench.path("target")).expect("removed");
    fs::rename(bench.path("old"), bench.path("target")).expect("renamed");
    let protection = bench.start();
    let point = bench.cut();
    bench.check(&point);
    protection.stop().expect("stops");
}

#[test]
fn a_target_that_is_away_stops_no_cut_and_is_caught_up_with() {
    let bench = Bench::new(4 * MIB);
    bench.protect_once();
    fs::rename(bench.path("target"), bench.path("away")).expect("renamed");
    fs::write(bench.path("target"), "in the way").expect("written");
    let protection = bench.start();
    bench.write(MIB, 5, 4096);
    bench.try_cut(false).expect("a cut needs no target");
    let trouble = bench.wait(|| protection.status().trouble);
    assert_eq!(trouble.step, "open-target");
    bench.write(MIB, 6, 4096);
    fs::remove_file(bench.path("target")).expect("removed");
    fs::rename(bench.path("away"), bench.path("target")).expect("renamed");
    let point = bench.cut();
    bench.check(&point);
    assert_eq!(protection.status().seed.read_bytes, 0);
    protection.stop().expect("stops");
}

#[test]
fn a_first_start_with_a_target_that_cannot_be_is_refused() {
    let bench = Bench::new(MIB);
    fs::write(bench.path("target"), "not a directory").expect("written");
    let error = bench.try_start().err().expect("refused");
    assert!(error.chain().contains("target"), "{}", error.chain());
}

/// A diff that lost its end cannot become a point; the next one must not miss what it held.
#[test]
fn a_damaged_diff_costs_its_point_and_no_byte() {
    let bench = Bench::new(4 * MIB);
    bench.protect_once();
    // Shipping fails while the diffs are sealed: the target's place for containers is taken.
    let containers = bench.path("target/containers");
    let protection = bench.start();
    bench.cut();
    fs::rename(&containers, bench.path("aside")).expect("renamed");
    bench.write(MIB, 5, 4096);
    bench.try_cut(false).expect("a cut needs no target");
    for file in bench.files("state/g/diffs") {
        if file.extension().is_some_and(|e| e == "diff") {
            fs::OpenOptions::new()
                .write(true)
                .open(file)
                .expect("opens")
                .set_len(10)
                .expect("cut");
        }
    }
    drop(protection);
    fs::rename(bench.path("aside"), &containers).expect("renamed");
    let protection = bench.start();
    let point = bench.cut();
    bench.check(&point);
    protection.stop().expect("stops");
}

#[test]
fn one_group_and_one_disk_are_protected_once() {
    let bench = Bench::new(MIB);
    let protection = bench.start();
    let again = bench.try_start().err().expect("refused").chain();
    assert!(again.contains("already protected"), "{again}");
    let other = bench.try_start_group("h").err().expect("refused").chain();
    assert!(other.contains("in use"), "{other}");
    protection.stop().expect("stops");
}
