//! Keys of vaults over a real socket: the server keeps what it cannot open, and nobody is locked out through it.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::Arc;

use block::{OsRandom, UnixNanos};
use common::Bench;
use dd_target::api::{NewVault, Role};
use dd_target::client::Objects;
use dd_target::server::AuditEvent;
use store::{Keys, NewKeys, Secret, StoreError, WrappedKey};

mod common;

const AT: UnixNanos = UnixNanos(1);

fn key(byte: u8) -> Secret {
    Secret::Key([byte; 32].into())
}

/// What an admin sees of the vault's keys: it reads nothing else of it.
fn keys(bench: &Bench) -> Keys {
    let access = bench.access(&bench.token(&[Role::Admin]));
    let objects = Objects::open(&bench.vault("sealed"), &access).unwrap();
    assert!(objects.list("catalog").is_err());
    Keys::open(&objects).unwrap()
}

fn made(bench: &Bench, with: u8, new: u8) -> Result<WrappedKey, StoreError> {
    keys(bench).wrap(&key(with), &key(new), "a label", &OsRandom, AT)
}

#[test]
fn one_way_more_is_added_to_those_that_there_are() {
    let bench = Bench::new();
    bench.make_encrypted_vault("sealed", &key(1));
    let admin = bench.remote(&bench.token(&[Role::Admin]));
    let sealed = "sealed".parse().unwrap();
    assert!(admin.vault(&sealed).unwrap().encrypted);
    assert!(made(&bench, 2, 3).is_err(), "it opens nothing");
    let second = made(&bench, 1, 2).unwrap();
    admin.add_way(&sealed, &second).unwrap();
    // Its answer was lost, or it comes from somebody else: it is there already.
    let again = admin.add_way(&sealed, &second).unwrap_err();
    assert!(again.to_string().contains("at the same time"), "{again}");
    // Each opens it for a third one.
    made(&bench, 1, 3).unwrap();
    let third = made(&bench, 2, 3).unwrap();
    admin.add_way(&sealed, &third).unwrap();
    assert_eq!(keys(&bench).slots().len(), 3);

    let page = admin.audit(0).unwrap();
    let of_vaults = page.lines.iter();
    let of_vaults = of_vaults.filter(|line| line.event == AuditEvent::Vault);
    let what: Vec<_> = of_vaults.map(|line| &*line.what).collect();
    assert!(what.contains(&"vault sealed is to be made, encrypted"));
    assert!(what.contains(&"one way more is to open it: a label"));
}

/// Whoever steals the token of an admin must not be able to make a vault useless for who has its key.
#[test]
fn junk_is_no_key_and_takes_no_way_away() {
    let bench = Bench::new();
    bench.make_encrypted_vault("sealed", &key(1));
    let admin = bench.token(&[Role::Admin]);
    let post = |vault: &str, body: &'static str| {
        let path = format!("/v1/vaults/{vault}/keys");
        let (status, body) = bench.ask_with("POST", &path, Some(&admin), |request| {
            let json = request.header("content-type", "application/json");
            json.body(body)
        });
        assert!((400..500).contains(&status), "{status} {body}");
    };
    for body in [r#"{"key":""}"#, r#"{"key":"AAAA"}"#, r#"{"key":"?"}"#, "{}"] {
        post("sealed", body);
    }
    let good = made(&bench, 1, 2).unwrap();
    let plain = bench.remote(&admin).add_way(&"v".parse().unwrap(), &good);
    let plain = plain.unwrap_err();
    assert!(plain.to_string().contains("not encrypted"), "{plain}");
    // Of the right shape, and opened by nobody.
    let mut junk = good.to_bytes();
    *junk.last_mut().unwrap() ^= 1;
    let junk = WrappedKey::from_bytes(&junk).unwrap();
    let sealed = "sealed".parse().unwrap();
    bench.remote(&admin).add_way(&sealed, &junk).unwrap();
    made(&bench, 1, 3).unwrap();
}

#[test]
fn a_vault_is_made_with_given_keys_in_an_empty_place_alone() {
    let bench = Bench::new();
    let admin = bench.remote(&bench.token(&[Role::Admin]));
    let new = |name: &str| NewVault {
        name: name.into(),
        quota_bytes: None,
        keys: None,
    };
    let keys = NewKeys::make(&[(key(1), "key".into())], &OsRandom, AT).unwrap();
    let junk = NewVault {
        keys: Some("AAAA".into()),
        ..new("junk")
    };
    let refused = admin.create_vault(&junk).unwrap_err();
    assert!(refused.to_string().contains("no keys"), "{refused}");

    let lies_there = bench.path("place/vaults/old");
    let place = block::OsDir::create_all(lies_there).unwrap();
    let place = store::Directory::backend(&(Arc::new(place) as Arc<dyn block::Dir>));
    store::Store::create(&place).unwrap();
    let refused = admin.create_encrypted_vault(new("old"), &keys).unwrap_err();
    assert!(
        refused.to_string().contains("lies in the place"),
        "{refused}"
    );
    assert_eq!(admin.vaults().unwrap().len(), 1, "none of these was made");
}
