use block::OsRandom;
use sim::SimWorld;

use super::*;
use crate::Directory;

const STORE: [u8; 16] = [7; 16];
const AT: UnixNanos = UnixNanos(5);

fn place() -> Arc<dyn Backend> {
    Directory::backend(&SimWorld::new(1).dir())
}

/// A place with the keys of a store, but no store.
fn begun(secrets: &[(Secret, String)]) -> (Arc<dyn Backend>, Keys) {
    let place = place();
    let key = begin(&*place, STORE, secrets, &OsRandom, AT).expect("begun");
    format::create(
        &*place,
        &Format {
            store: STORE,
            key: Some(key),
        },
    )
    .expect("created");
    let keys = Keys::open(&place).expect("opens");
    (place, keys)
}

fn passphrase(text: &str) -> Secret {
    Secret::passphrase(text.as_bytes()).expect("not empty")
}

fn opens(keys: &Keys, secret: &Secret) -> bool {
    match keys.slots.unlock(keys.key, secret) {
        Ok(_) => true,
        Err(StoreError::WrongKey) => false,
        Err(other) => panic!("{other}"),
    }
}

#[test]
fn every_way_opens_the_store_and_nothing_else_does() {
    let (key, other) = (Secret::new_key(&OsRandom), Secret::new_key(&OsRandom));
    let secrets = [
        (passphrase("horse"), "me".into()),
        (key.clone(), "escrow".into()),
    ];
    let (_, keys) = begun(&secrets);
    let found: Vec<_> = keys
        .slots()
        .into_iter()
        .map(|s| (s.number, s.is_passphrase, s.label))
        .collect();
    assert_eq!(found, [(1, true, "me".into()), (2, false, "escrow".into())]);
    assert!(opens(&keys, &passphrase("horse")) && opens(&keys, &key));
    assert!(!opens(&keys, &passphrase("house")) && !opens(&keys, &other));
}

#[test]
fn a_passphrase_that_was_taken_away_opens_nothing_that_is_still_there() {
    let old = Secret::new_key(&OsRandom);
    let new = Secret::new_key(&OsRandom);
    let (place, mut keys) = begun(&[(old.clone(), "old".into())]);
    let number = keys.add(&old, &new, "new", &OsRandom, AT).expect("added");
    assert_eq!(number, 2);
    // Not the one by which it was opened, and not one that is not there.
    assert!(keys.remove(&old, 1, &OsRandom).is_err());
    assert!(keys.remove(&old, 9, &OsRandom).is_err());
    keys.remove(&new, 1, &OsRandom).expect("removed");
    let keys = Keys::open(&place).expect("opens");
    assert!(opens(&keys, &new) && !opens(&keys, &old));
    assert_eq!(numbers(&*place).expect("listed"), [3]);
}

#[test]
fn of_two_changes_at_once_one_is_told_to_try_again() {
    let key = Secret::new_key(&OsRandom);
    let (place, mut one) = begun(&[(key.clone(), String::new())]);
    let mut two = Keys::open(&place).expect("opens");
    one.add(&key, &passphrase("a"), "a", &OsRandom, AT)
        .expect("added");
    let refused = two
        .add(&key, &passphrase("b"), "b", &OsRandom, AT)
        .expect_err("taken");
    assert_eq!(refused.kind(), crate::ErrorKind::Retry);
    let labels: Vec<_> = Keys::open(&place)
        .expect("opens")
        .slots()
        .into_iter()
        .map(|s| s.label)
        .collect();
    assert_eq!(labels, ["", "a"]);
}

#[test]
fn a_lost_or_damaged_object_is_read_from_its_copy() {
    let key = Secret::new_key(&OsRandom);
    let (place, keys) = begun(&[(key.clone(), String::new())]);
    let number = keys.slots.number;
    place.remove(&name(number)).expect("removed");
    assert!(opens(&Keys::open(&place).expect("opens"), &key));
    place
        .create(&name(number), &[0xff; 300], 9)
        .expect("created");
    assert!(opens(&Keys::open(&place).expect("opens"), &key));
}

#[test]
fn a_slot_of_another_key_or_that_was_changed_does_not_open() {
    let key = Secret::new_key(&OsRandom);
    let (_, keys) = begun(&[(key.clone(), "a label".into())]);
    let slot = &keys.slots.slots[0];
    assert!(slot.unwrap(keys.key, &key).expect("no failure").is_some());
    assert!(slot.unwrap([8; 16], &key).expect("no failure").is_none());
    let mut bytes = Vec::new();
    slot.put(&mut bytes);
    for at in 0..bytes.len() {
        let mut changed = bytes.clone();
        changed[at] ^= 1;
        let Ok(slot) = Slot::decode(&mut Decoder::new(&changed), LABEL_BYTES_MAX) else {
            continue;
        };
        assert!(
            slot.unwrap(keys.key, &key).expect("no failure").is_none(),
            "byte {at}"
        );
    }
}
