//! The rules, on stories of a few writes.

use super::*;

fn image(held: &[Option<WriteId>]) -> Vec<u8> {
    let sectors = held.iter().enumerate();
    sectors
        .flat_map(|(sector, id)| id.map_or([0; SECTOR], |id| stamp(id, sector)))
        .collect()
}

/// A on sectors 0-1, acknowledged; then B on 1-2, acknowledged; then a zeroing of 3 in flight.
fn story() -> Ledger {
    let ledger = Ledger::new(4, Origin::Stamps);
    let (a, _) = ledger.issue_write(0, 2);
    ledger.ack(a);
    let (b, _) = ledger.issue_write(1, 2);
    ledger.ack(b);
    ledger.issue_zero(3, 1);
    ledger
}

fn check(held: [Option<WriteId>; 4], window: Window) -> bool {
    story().check(&*image(&held), None, window).is_ok()
}

#[test]
fn every_prefix_of_the_acknowledged_writes_is_one_instant() {
    assert!(check([Some(0), Some(0), Some(0), Some(0)], Window::ANY));
    assert!(check([Some(1), Some(1), Some(0), Some(0)], Window::ANY));
    assert!(check([Some(1), Some(2), Some(2), Some(0)], Window::ANY));
    assert!(check([Some(1), Some(2), Some(2), None], Window::ANY));
}

#[test]
fn a_point_with_b_but_without_a_is_wrong() {
    assert!(!check([Some(0), Some(2), Some(2), Some(0)], Window::ANY));
}

#[test]
fn a_torn_write_is_wrong() {
    assert!(!check([Some(1), Some(0), Some(0), Some(0)], Window::ANY));
    assert!(!check([Some(1), Some(1), Some(2), Some(0)], Window::ANY));
}

#[test]
fn a_cut_asked_after_an_acknowledgement_holds_the_write() {
    let ledger = story();
    let now = ledger.tick();
    let late = Window {
        asked: now,
        answered: now,
    };
    assert!(!check([Some(1), Some(1), Some(0), Some(0)], late));
    assert!(check([Some(1), Some(2), Some(2), Some(0)], late));
}

#[test]
fn a_write_issued_after_the_cut_was_answered_is_not_in_it() {
    assert!(!check(
        [Some(1), Some(2), Some(2), Some(0)],
        Window {
            asked: 0,
            answered: 3
        }
    ));
}

#[test]
fn disks_of_a_group_are_of_one_instant() -> Result<()> {
    let (one, other) = {
        let one = Ledger::new(1, Origin::Stamps);
        let other = one.beside(1, Origin::Stamps);
        (one, other)
    };
    let (a, _) = one.issue_write(0, 1);
    one.ack(a);
    let (b, _) = other.issue_write(0, 1);
    other.ack(b);
    let survey = |ledger: &Ledger, id| ledger.survey(&stamp(id, 0)[..], None, Window::ANY);
    let horizon = survey(&other, b)?.horizon;
    // By itself the disk may be of before A; beside one that holds B it may not.
    let without = survey(&one, 0)?;
    assert!(without.judge(without.horizon).is_ok());
    assert!(without.judge(horizon).is_err());
    assert!(survey(&one, a)?.judge(horizon).is_ok());
    Ok(())
}

#[test]
fn a_read_gives_zeroes_or_what_was_sent_there() {
    let ledger = story();
    let now = ledger.tick();
    assert!(ledger.check_read(0, &stamp(1, 0), now).is_ok());
    assert!(ledger.check_read(0, &[0; SECTOR], now).is_ok());
    assert!(ledger.check_read(0, &stamp(2, 0), now).is_err());
    assert!(ledger.check_read(1, &stamp(1, 0), now).is_err());
    assert!(ledger.check_read(0, &[7; SECTOR], now).is_err());
}

/// An hour of the soak ended with a sector whose first words were of a write that was under way, and the rest
/// of the one before.
#[test]
fn a_read_beside_a_write_may_be_torn_and_no_other() {
    let ledger = story();
    let (id, _) = ledger.issue_write(0, 1);
    let mut torn = stamp(1, 0);
    torn[..24].copy_from_slice(&stamp(id, 0)[..24]);
    let before = ledger.tick();
    assert!(ledger.check_read(0, &torn, before).is_ok());
    ledger.ack(id);
    assert!(ledger.check_read(0, &torn, before).is_ok());
    assert!(ledger.check_read(0, &torn, ledger.tick()).is_err());
    // Of one more write, or of none.
    let (other, _) = ledger.issue_write(0, 1);
    ledger.lose(other);
    let now = ledger.tick();
    let (beside, _) = ledger.issue_write(0, 1);
    torn[24..48].copy_from_slice(&stamp(beside, 0)[24..48]);
    assert!(ledger.check_read(0, &torn, now).is_err());
    assert!(ledger.check_read(0, &torn, before).is_ok());
    torn[200] ^= 1;
    assert!(ledger.check_read(0, &torn, before).is_err());
}

#[test]
fn bytes_that_nobody_wrote_are_wrong() {
    assert!(!check([Some(7), Some(0), Some(0), Some(0)], Window::ANY));
    assert!(!check([None, Some(0), Some(0), Some(0)], Window::ANY));
    let mut image = image(&[Some(0); 4]);
    image[700] ^= 1;
    assert!(story().check(&*image, None, Window::ANY).is_err());
}

#[test]
fn a_disk_may_start_with_any_content() {
    let ledger = Ledger::new(3, Origin::File);
    let mut original = [[7; SECTOR], [0; SECTOR], [9; SECTOR]];
    let (a, _) = ledger.issue_write(0, 1);
    ledger.ack(a);
    let check = |sectors: [[u8; SECTOR]; 3], original: [[u8; SECTOR]; 3], window| {
        let mut original = original.as_flattened();
        ledger
            .check(sectors.as_flattened(), Some(&mut original), window)
            .is_ok()
    };
    let now = ledger.tick();
    let late = Window {
        asked: now,
        answered: now,
    };
    assert!(check(original, original, Window::ANY));
    assert!(!check(original, original, late));
    let mut written = original;
    written[0] = stamp(a, 0);
    assert!(check(written, original, late));
    written[2] = [0; SECTOR];
    assert!(!check(written, original, late));
    original[1] = [1; SECTOR];
    assert!(!check(written, original, late));
}
