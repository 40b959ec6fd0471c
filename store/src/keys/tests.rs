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
    let new = NewKeys::make(secrets, &OsRandom, AT).expect("made");
    let key = begin(&*place, STORE, &new, &OsRandom).expect("begun");
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

/// As its owner does it beside the store.
fn add(keys: &mut Keys, with: &Secret, new: &Secret, label: &str) -> Result<u32> {
    let wrapped = keys.wrap(with, new, label, &OsRandom, AT)?;
    keys.append(&wrapped, &OsRandom)
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
    let number = add(&mut keys, &old, &new, "new").expect("added");
    assert_eq!(number, 2);
    // Not the one by which it was opened, and not one that is not there.
    assert!(keys.remove(&old, 1, &OsRandom).is_err());
    assert!(keys.remove(&old, 9, &OsRandom).is_err());
    keys.remove(&new, 1, &OsRandom).expect("removed");
    let keys = Keys::open(&place).expect("opens");
    assert!(opens(&keys, &new) && !opens(&keys, &old));
    assert_eq!(numbers(&*place, STORE).expect("listed"), [3]);
}

#[test]
fn of_two_changes_at_once_one_is_told_to_try_again() {
    let key = Secret::new_key(&OsRandom);
    let (place, mut one) = begun(&[(key.clone(), String::new())]);
    let mut two = Keys::open(&place).expect("opens");
    add(&mut one, &key, &passphrase("a"), "a").expect("added");
    let refused = add(&mut two, &key, &passphrase("b"), "b").expect_err("taken");
    assert_eq!(refused.kind(), crate::ErrorKind::Retry);
    let labels: Vec<_> = Keys::open(&place)
        .expect("opens")
        .slots()
        .into_iter()
        .map(|s| s.label)
        .collect();
    assert_eq!(labels, ["", "a"]);
}

/// Two changes came between the look of a third and its change: the second had removed what the first left, so the third found
/// its number free, said that it was done, and did not count. A way that was "taken away" opened the store as before.
#[test]
fn a_change_that_two_others_overtook_is_told_to_try_again() {
    let (key, leaked) = (Secret::new_key(&OsRandom), Secret::new_key(&OsRandom));
    let (place, _) = begun(&[(key.clone(), "mine".into()), (leaked.clone(), "x".into())]);
    let opened = || Keys::open(&place).expect("opens");
    let (mut adds, mut removes, mut other) = (opened(), opened(), opened());
    let new = Secret::new_key(&OsRandom);
    let wrapped = adds.wrap(&key, &new, "new", &OsRandom, AT).expect("made");
    for label in ["a", "b"] {
        let junk = Secret::new_key(&OsRandom);
        add(&mut other, &key, &junk, label).expect("added");
    }
    for done in [
        adds.append(&wrapped, &OsRandom).map(drop),
        removes.remove(&key, 2, &OsRandom),
    ] {
        let refused = done.expect_err("it does not count");
        assert!(matches!(refused, StoreError::KeysChanged), "{refused}");
    }
    let keys = opened();
    assert_eq!((keys.slots().len(), keys.slots.number), (4, 3));
    assert_eq!(numbers(&*place, STORE).expect("listed"), [3]);
    opened().remove(&key, 2, &OsRandom).expect("removed");
    assert!(!opens(&opened(), &leaked) && !opened().has(&wrapped));
}

#[test]
fn a_lost_or_damaged_object_is_read_from_its_copy() {
    let key = Secret::new_key(&OsRandom);
    let (place, keys) = begun(&[(key.clone(), String::new())]);
    let number = keys.slots.number;
    place.remove(&name(STORE, number)).expect("removed");
    assert!(opens(&Keys::open(&place).expect("opens"), &key));
    place
        .create(&name(STORE, number), &[0xff; 300], 9)
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

/// Two units start at boot with the same new target. One makes the store; the other finds that out when it wants to, with
/// its own keys written already. Had those counted, nobody would have opened the store again.
#[test]
fn of_two_who_make_a_store_at_once_one_makes_it_and_opens_it() {
    let (one, two) = (Secret::new_key(&OsRandom), Secret::new_key(&OsRandom));
    let (place, _) = begun(&[(one.clone(), String::new())]);
    let theirs = NewKeys::make(&[(two.clone(), String::new())], &OsRandom, AT).expect("made");
    begin(&*place, [9; 16], &theirs, &OsRandom).expect("begun");
    let keys = Keys::open(&place).expect("opens");
    assert!(opens(&keys, &one) && !opens(&keys, &two));
}

/// The process that took a passphrase away was killed before it removed the old slots: they opened the store for who kept the
/// passphrase, and no command was left that removed them.
#[test]
fn an_interrupted_change_is_finished_by_the_next_attempt() {
    let (old, new) = (Secret::new_key(&OsRandom), Secret::new_key(&OsRandom));
    let (place, mut keys) = begun(&[(old.clone(), String::new()), (new.clone(), String::new())]);
    let before = keys.slots.clone();
    keys.remove(&new, 1, &OsRandom).expect("removed");
    create(&*place, STORE, &before, &OsRandom).expect("they are back");
    let mut keys = Keys::open(&place).expect("opens");
    assert!(!opens(&keys, &old));
    keys.remove(&new, 1, &OsRandom).expect_err("it is gone");
    assert_eq!(numbers(&*place, STORE).expect("listed"), [2]);
}

#[test]
fn numbers_that_nobody_gave_are_no_keys() {
    let key = Secret::new_key(&OsRandom);
    let (place, keys) = begun(&[(key.clone(), String::new())]);
    for name in [
        "ffffffffffffffff",
        "0000000000000000",
        "1",
        "00000000000000zz",
    ] {
        let name = format!("{FOLDER}/{}{name}", prefix(STORE));
        place.create(&name, &[1; 200], 3).expect("created");
    }
    assert!(opens(&Keys::open(&place).expect("opens"), &key));
    let mut slots = keys.slots;
    let twice = slots.slots[0].clone();
    slots.slots.push(twice);
    let bytes = slots.encode(STORE);
    assert!(Slots::decode(&bytes, STORE, slots.number).is_err());
}

/// Who keeps a store adds a way for somebody who can open it, and needs no secret for that.
#[test]
fn a_way_that_was_made_elsewhere_is_added_beside_the_others() {
    let (old, new) = (Secret::new_key(&OsRandom), passphrase("horse"));
    let (place, keys) = begun(&[(old.clone(), "old".into())]);
    let made = keys.wrap(&old, &new, "new", &OsRandom, AT).expect("made");
    let made = WrappedKey::from_bytes(&made.to_bytes()).expect("it survives the way");
    let mut kept = Keys::open(&place).expect("opens");
    assert_eq!(kept.append(&made, &OsRandom).expect("added"), 2);
    let again = kept.append(&made, &OsRandom).expect_err("it is there");
    assert!(matches!(again, StoreError::KeysChanged), "{again}");
    let keys = Keys::open(&place).expect("opens");
    assert!(opens(&keys, &old) && opens(&keys, &new) && keys.has(&made));
}

#[test]
fn a_store_has_at_most_16_ways_whoever_adds_them() {
    let (key, other) = (Secret::new_key(&OsRandom), Secret::new_key(&OsRandom));
    let (_, mut keys) = begun(&vec![(key.clone(), String::new()); SLOTS_MAX]);
    let made = keys.wrap(&key, &other, "", &OsRandom, AT).expect("made");
    keys.append(&made, &OsRandom).expect_err("one too many");
    assert!(keys.check_room(&key).is_err() && keys.check_room(&other).is_err());
}

#[test]
fn keys_of_a_new_store_survive_the_way_to_who_makes_it() {
    let secrets = ["a", "b"].map(|text| (passphrase(text), text.to_owned()));
    let new = NewKeys::make(&secrets, &OsRandom, AT).expect("made");
    let bytes = new.to_bytes();
    assert_eq!(NewKeys::from_bytes(&bytes).as_ref(), Some(&new));
    for len in 0..bytes.len() {
        assert_eq!(NewKeys::from_bytes(&bytes[..len]), None, "{len} bytes");
    }
    let trailing = [&bytes[..], &[0]].concat();
    assert_eq!(NewKeys::from_bytes(&trailing), None);
    let nothing_opens_it = [&bytes[..16], &[0, 0, 0, 1, 0, 0, 0, 0]].concat();
    assert_eq!(NewKeys::from_bytes(&nothing_opens_it), None);
    NewKeys::make(&[], &OsRandom, AT).expect_err("nothing would open it");
}

/// A replica is opened by what opens the original, by the same numbers.
#[test]
fn keys_of_another_store_are_those_that_count_there() {
    let (old, new) = (Secret::new_key(&OsRandom), Secret::new_key(&OsRandom));
    let (place, mut keys) = begun(&[(old.clone(), String::new())]);
    add(&mut keys, &old, &new, "new").expect("added");
    keys.remove(&new, 1, &OsRandom).expect("removed");
    let like = NewKeys::of(&*place).expect("read").expect("encrypted");
    assert_eq!(
        (like.key, like.slots.number, like.slots.next),
        (keys.key, 1, 3)
    );
    assert_eq!(like.slots.slots, keys.slots.slots);
}
