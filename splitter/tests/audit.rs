//! What the splitter says of granules that nobody wrote, and when it says nothing.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use block::{BlockDevice, Fua, GranuleRange};
use common::Bench;
use common::checked::lay_over;
use splitter::{CutNote, Generation, Group, Lineage};

const SIZE: u64 = 40 * 4096 + 512;
const ALL: GranuleRange = GranuleRange { start: 0, end: 41 };

fn write(bench: &Bench, granule: u64) {
    let disk = &bench.group().disks()[0];
    disk.write_at(&[7; 100], granule * 4096 + 50, Fua::No)
        .unwrap();
}

fn cut(bench: &Bench) -> (Lineage, Generation) {
    let cut = bench.group().cut(CutNote::default()).unwrap();
    (bench.group().lineage(), cut.generation)
}

/// Granules that were touched; `None` if nothing is said.
fn touched(group: &Group, cut: (Lineage, Generation)) -> Option<Vec<u64>> {
    let untouched = group.untouched_since(cut, 0, ALL)?;
    let is_untouched = |g: &u64| untouched.iter().any(|r| (r.start..r.end).contains(g));
    Some((ALL.start..ALL.end).filter(|g| !is_untouched(g)).collect())
}

#[test]
fn what_was_written_since_a_cut_is_touched_in_whichever_generation_it_is() {
    let bench = Bench::new(1, &[SIZE]);
    let first = cut(&bench);
    assert_eq!(touched(bench.group(), first), Some(vec![]));
    write(&bench, 3);
    assert_eq!(touched(bench.group(), first), Some(vec![3]));
    let second = cut(&bench);
    write(&bench, 40);
    assert_eq!(touched(bench.group(), first), Some(vec![3, 40]));
    assert_eq!(touched(bench.group(), second), Some(vec![40]));
    let part = GranuleRange { start: 4, end: 39 };
    assert_eq!(
        bench.group().untouched_since(second, 0, part),
        Some(vec![part])
    );
}

#[test]
fn nothing_is_said_of_a_cut_whose_writes_since_are_released() {
    let bench = Bench::new(2, &[SIZE]);
    let first = cut(&bench);
    write(&bench, 3);
    let second = cut(&bench);
    let sealed = bench.group().sealed();
    bench.group().release(&sealed[0]).unwrap();
    assert_eq!(touched(bench.group(), first), Some(vec![3]));
    bench.group().release(&sealed[1]).unwrap();
    assert_eq!(touched(bench.group(), first), None);
    assert_eq!(touched(bench.group(), second), Some(vec![]));
}

#[test]
fn nothing_is_said_of_another_history_or_of_a_cut_to_come() {
    let bench = Bench::new(3, &[SIZE]);
    let (lineage, generation) = cut(&bench);
    assert_eq!(touched(bench.group(), (lineage, generation.next())), None);
    bench.group().restart_tracking("a test").unwrap();
    // Numbers begin again: these are other cuts.
    cut(&bench);
    cut(&bench);
    assert_eq!(touched(bench.group(), (lineage, generation)), None);
}

#[test]
fn merged_and_folded_generations_lose_no_write() {
    let bench = Bench::new(4, &[SIZE]);
    let first = cut(&bench);
    write(&bench, 3);
    cut(&bench);
    write(&bench, 5);
    cut(&bench);
    assert!(bench.group().coalesce().unwrap().is_some());
    assert_eq!(touched(bench.group(), first), Some(vec![3, 5]));
    let sealed = bench.group().sealed();
    bench.group().fold_from(&sealed[0]).unwrap();
    let said = touched(bench.group(), first);
    assert!(said.is_none_or(|touched| touched == [3, 5]));
}

#[test]
fn what_is_distrusted_is_in_the_next_cut_as_production_has_it() {
    let bench = Bench::new(5, &[SIZE]);
    let mut images = bench.production();
    let first = cut(&bench);
    let production = &images[0][6 * 4096..8 * 4096].to_vec();
    // As if the newest point had it otherwise.
    images[0][6 * 4096..8 * 4096].fill(0xEE);
    let granules = GranuleRange { start: 6, end: 8 };
    bench.group().distrust(0, granules);
    assert_eq!(touched(bench.group(), first), Some(vec![6, 7]));
    cut(&bench);
    for sealed in bench.group().sealed() {
        images = lay_over(&images, &sealed);
    }
    assert_eq!(&images[0][6 * 4096..8 * 4096], production);
}
