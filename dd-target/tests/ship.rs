//! The write plane, over a real socket: what is shipped reads back, and what must not be is refused.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use block::{BlockDevice, GranuleRange, index};
use common::Bench;
use common::shipping::{SIZE, commit, commit_to, content, restored, ship, vault};
use dd_target::api::Role;
use dd_target::client::{Objects, RemoteImage, RemoteSeed, Vault, VaultUrl};
use dd_target::server::AuditEvent;
use store::{Around, Base, ChunkCodec, Secret, Store};

mod common;

fn events(bench: &Bench, event: AuditEvent) -> usize {
    let page = bench.remote(&bench.token(&[Role::Admin])).audit(0).unwrap();
    assert!(page.whole);
    page.lines.iter().filter(|line| line.event == event).count()
}

#[test]
fn what_is_shipped_reads_back_and_changes_cost_what_changed() {
    let bench = Bench::new();
    let vault = vault(&bench);
    let first = content(1);
    let image = ship(&vault, Base::Empty { size: SIZE }, &first).unwrap();
    let point = commit(&vault, image, 1, 10).unwrap();
    assert_eq!(point.labels["k"], "v");
    assert!(restored(&bench) == first);

    let mut second = first;
    second[5 * 4096..6 * 4096].fill(9);
    second[8 * 4096..80 * 4096].fill(0);
    let mut writer = vault
        .image_writer(Base::Image(point.disks[0].image.clone()))
        .unwrap();
    writer.put(5, &second[5 * 4096..6 * 4096]).unwrap();
    writer.zero(GranuleRange { start: 8, end: 80 }).unwrap();
    let image = writer.finish().unwrap();
    let changed = commit(&vault, image, 2, 20).unwrap();
    assert!(
        changed.stored_new_bytes < 64 << 10,
        "{}",
        changed.stored_new_bytes
    );
    assert!(restored(&bench) == second);

    let group = "g".parse().unwrap();
    let told = vault.points(&group, None).unwrap();
    assert_eq!(told, [changed, point]);
    assert_eq!(vault.points(&group, Some(&[4; 16])).unwrap(), []);
}

#[test]
fn a_point_that_is_asked_for_twice_is_listed_once() {
    let bench = Bench::new();
    let vault = vault(&bench);
    let image = ship(&vault, Base::Empty { size: SIZE }, &content(2)).unwrap();
    let once = commit(&vault, image.clone(), 1, 10).unwrap();
    let twice = commit(&vault, image, 1, 10).unwrap();
    assert_eq!(once, twice);
    assert_eq!(vault.points(&"g".parse().unwrap(), None).unwrap().len(), 1);
}

#[test]
fn a_seed_goes_on_from_where_it_was_saved() {
    let bench = Bench::new();
    let vault = vault(&bench);
    let (group, disk) = ("g".parse().unwrap(), "disk".parse().unwrap());
    let image = ship(&vault, Base::Empty { size: SIZE }, &content(3)[..1 << 20]).unwrap();
    let save = |image: &RemoteImage| {
        let seed = RemoteSeed {
            group: &group,
            lineage: [5; 16],
            generation: 4,
            disks: vec![(&disk, 256, image)],
        };
        vault.save_seed(&seed)
    };
    save(&image).unwrap();
    // Its draft is gone by now; the vault has the image.
    save(&image).unwrap();
    let seed = vault.seed(&group).unwrap().unwrap();
    assert_eq!((seed.generation, seed.disks[0].cursor_granule), (4, 256));
    assert_eq!(seed.disks[0].image, *image.image());
    assert!(
        vault
            .image_writer(Base::Image(seed.disks[0].image.clone()))
            .is_ok()
    );
    assert!(vault.seed(&"h".parse().unwrap()).unwrap().is_none());
}

/// A token to ship saved first copies of groups that nobody has heard of: nobody saw them, no rule removed them, and they kept
/// their space for ever.
#[test]
fn the_first_copy_of_a_group_that_nobody_knows_is_seen_and_given_up() {
    let bench = Bench::new();
    let vault = vault(&bench);
    let (group, disk) = ("made-up".parse().unwrap(), "disk".parse().unwrap());
    let image = ship(&vault, Base::Empty { size: SIZE }, &content(3)[..1 << 20]).unwrap();
    let seed = RemoteSeed {
        group: &group,
        lineage: [5; 16],
        generation: 4,
        disks: vec![(&disk, 256, &image)],
    };
    vault.save_seed(&seed).unwrap();
    let keeper = bench.token(&[Role::Retention]);
    let seeds = || {
        let figures = bench.remote(&keeper).vault(&"v".parse().unwrap()).unwrap();
        let seeds = figures.seeds.into_iter();
        seeds
            .map(|seed| (seed.group, seed.disks, seed.copied_bytes))
            .collect::<Vec<_>>()
    };
    assert_eq!(seeds(), [("made-up".to_owned(), 1, 1 << 20)]);
    let give_up = || {
        let chore = r#"{"do":"drop-seed","group":"made-up"}"#;
        bench.post("/v1/vaults/v/chores", &keeper, chore).0
    };
    assert_eq!(give_up(), 200);
    assert_eq!(seeds(), []);
    assert_eq!(give_up(), 404);
    // Who was at it finds that it is gone, and begins again.
    assert!(vault.save_seed(&seed).is_err());
    assert!(vault.seed(&group).unwrap().is_none());
}

#[test]
fn poisoned_chunks_are_refused_and_written_down() {
    let bench = Bench::new();
    let token = bench.token(&[Role::Ship]);
    let json = |request: reqwest::RequestBuilder| {
        request
            .header("content-type", "application/json")
            .body(format!("{{\"empty\":{SIZE}}}"))
    };
    let (_, begun) = bench.ask_with("POST", "/v1/vaults/v/drafts", Some(&token), json);
    let begun: serde_json::Value = serde_json::from_str(&begun).unwrap();
    let path = format!(
        "/v1/vaults/v/drafts/{}/regions",
        begun["draft"].as_str().unwrap()
    );

    let codec = ChunkCodec::plain();
    let (said, sent) = (vec![1_u8; 4096], vec![2_u8; 4096]);
    let region = codec.pack(sent);
    let mut body = vec![region.encoding(), 1, 0, 0];
    let len = u32::try_from(region.stored().len()).unwrap();
    body.extend(len.to_le_bytes());
    body.extend(0_u64.to_le_bytes());
    body.extend(codec.fingerprints(&said)[0].as_bytes());
    body.extend(region.stored());
    let (status, answer) = bench.ask_with("POST", &path, Some(&token), |r| r.body(body.clone()));
    assert_eq!(status, 422, "{answer}");
    assert_eq!(events(&bench, AuditEvent::Poisoned), 1);
    // Nor is it taken without its entries, or with a length that lies.
    for wrong in [
        &body[..body.len() - 1],
        &body[..20],
        &[9, 1, 0, 0, 0, 0, 0, 0],
    ] {
        let wrong = wrong.to_vec();
        let (status, answer) = bench.ask_with("POST", &path, Some(&token), |r| r.body(wrong));
        assert_eq!(status, 400, "{answer}");
    }
    // Another token's draft is none of anybody's business.
    let other = bench.token(&[Role::Ship]);
    assert_eq!(
        bench
            .ask_with("POST", &path, Some(&other), |r| r.body(body))
            .0,
        404
    );
}

#[test]
fn nobody_backdates_or_ships_to_the_groups_of_others() {
    let bench = Bench::new();
    let access = bench.access(&bench.token_for(&[Role::Ship], |new| new.groups = vec!["g".into()]));
    let vault = Vault::open(&bench.vault("v"), &access).unwrap();
    let image = ship(&vault, Base::Empty { size: SIZE }, &content(4)).unwrap();
    let now = bench.clock.wall().0;
    commit(&vault, image, 1, now).unwrap();
    let again = || ship(&vault, Base::Empty { size: SIZE }, &content(4)).unwrap();
    for (group, at, word) in [
        ("g", now - 660_000_000_000, "older"),
        ("g", now + 3_600_000_000_000, "ahead"),
        ("h", now, "not for this group"),
    ] {
        let error = commit_to(&vault, group, again(), 2, at).unwrap_err();
        assert!(error.to_string().contains(word), "{error}");
    }
    assert!(vault.points(&"h".parse().unwrap(), None).is_err());
    assert_eq!(events(&bench, AuditEvent::Refused), 4);
}

/// A machine's clock was set back by a second between two cuts: the second one was refused for good, and all after it waited.
#[test]
fn a_clock_that_was_set_back_a_little_keeps_no_point_out() {
    let bench = Bench::new();
    let vault = vault(&bench);
    let image = |number| ship(&vault, Base::Empty { size: SIZE }, &content(number)).unwrap();
    let now = bench.clock.wall().0;
    commit(&vault, image(4), 1, now).unwrap();
    let second = commit(&vault, image(5), 2, now - 1_000_000_000).unwrap();
    assert_eq!(second.at.0, now, "points of a group go forward in time");
}

/// Two machines imported into one group at once, and gave their points the same number: the second was told that its own was
/// listed, and it was the first one's.
#[test]
fn of_two_points_with_one_number_one_is_listed_and_one_refused() {
    let bench = Bench::new();
    let vault = vault(&bench);
    let image = |number| ship(&vault, Base::Empty { size: SIZE }, &content(number)).unwrap();
    let now = bench.clock.wall().0;
    commit(&vault, image(4), 1, now).unwrap();
    let refused = commit(&vault, image(5), 1, now).unwrap_err();
    assert!(refused.to_string().contains("another point"), "{refused}");
    assert!(restored(&bench) == content(4));
}

/// The server keeps what it cannot read: chunks are encrypted by who ships, and who restores has the key.
#[test]
fn an_encrypted_vault_is_shipped_to_and_restored_from_with_its_key_alone() {
    let bench = Bench::new();
    let key = Secret::Key([7; 32].into());
    let around = Around::new(Arc::clone(&bench.clock));
    bench.make_encrypted_vault("sealed", &key);
    let url = bench.vault("sealed");
    let opened = Around {
        secret: Some(Arc::new(key)),
        ..around.clone()
    };

    let access = bench.access(&bench.token(&[Role::Ship]));
    let objects = Objects::open(&url, &access).unwrap();
    assert!(Store::codec_at(&objects, &around).is_err());
    let codec = Store::codec_at(&objects, &opened).unwrap();
    let plain = Vault::open(&url, &access).unwrap();
    assert!(ship(&plain, Base::Empty { size: SIZE }, &content(4)).is_err());
    let vault = plain.with_codec(codec);
    let image = ship(&vault, Base::Empty { size: SIZE }, &content(4)).unwrap();
    commit(&vault, image, 1, bench.clock.wall().0).unwrap();
    // The token that ships reads nothing all the same.
    assert!(Store::open_reader(&objects, opened.clone()).is_err());

    let access = bench.access(&bench.token(&[Role::Restore]));
    let objects = Objects::open(&url, &access).unwrap();
    let read = |around| {
        let store = Store::open_reader(&objects, around).unwrap();
        let point = store.points().pop().unwrap();
        let mut read = vec![0; index(SIZE)];
        let image = store.image(&point.disks[0].image).unwrap();
        image.read_at(&mut read, 0).map(|()| read)
    };
    assert!(read(opened).unwrap() == content(4));
    assert!(read(around).is_err());
}

#[test]
fn a_granule_is_written_once() {
    let bench = Bench::new();
    let vault = vault(&bench);
    let mut writer = vault.image_writer(Base::Empty { size: SIZE }).unwrap();
    writer.put(10, &[1; 8192]).unwrap();
    writer.put(12, &[1; 4096]).unwrap();
    assert!(writer.put(11, &[2; 4096]).is_err());
    assert!(writer.zero(GranuleRange { start: 0, end: 11 }).is_err());
    assert!(writer.zero(GranuleRange { start: 0, end: 10 }).is_ok());
}

#[test]
fn a_server_that_died_loses_no_point_and_an_image_in_the_making_is_begun_again() {
    let mut bench = Bench::new();
    let ours = vault(&bench);
    let image = ship(&ours, Base::Empty { size: SIZE }, &content(5)).unwrap();
    commit(&ours, image, 1, 10).unwrap();
    let mut writer = ours.image_writer(Base::Empty { size: SIZE }).unwrap();
    writer.put(0, &content(6)[..8 << 20]).unwrap();
    bench.stop();
    bench.start();
    let lost = writer.finish().unwrap_err();
    assert!(
        lost.is_missing() || lost.to_string().contains("begin"),
        "{lost}"
    );
    let image = ship(&ours, Base::Empty { size: SIZE }, &content(6)).unwrap();
    commit(&ours, image, 2, 20).unwrap();
    assert!(restored(&bench) == content(6));
}

/// Lets connections through, and breaks each after so many bytes from the client, `breaks` times in all.
fn breaking_proxy(to: String, bytes: usize, breaks: usize) -> (u16, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let left = Arc::new(AtomicUsize::new(breaks));
    let counted = Arc::clone(&left);
    std::thread::spawn(move || {
        for client in listener.incoming() {
            let (client, server) = (client.unwrap(), TcpStream::connect(&to).unwrap());
            let (mut down_from, mut down_to) =
                (server.try_clone().unwrap(), client.try_clone().unwrap());
            std::thread::spawn(move || std::io::copy(&mut down_from, &mut down_to));
            let left = Arc::clone(&counted);
            std::thread::spawn(move || up(client, server, bytes, &left));
        }
    });
    (port, left)
}

fn up(mut client: TcpStream, mut server: TcpStream, bytes: usize, left: &AtomicUsize) {
    let (mut buf, mut seen) = (vec![0; 16 << 10], 0);
    while let Ok(n @ 1..) = client.read(&mut buf) {
        seen += n;
        let due = seen > bytes && left.load(Ordering::SeqCst) > 0;
        if due {
            left.fetch_sub(1, Ordering::SeqCst);
            break;
        }
        if server.write_all(&buf[..n]).is_err() {
            break;
        }
    }
    let _ = client.shutdown(Shutdown::Both);
    let _ = server.shutdown(Shutdown::Both);
}

#[test]
fn an_image_survives_connections_that_break() {
    let bench = Bench::new();
    let to = bench.url().to_string().replace("https://", "");
    let (port, left) = breaking_proxy(to, 60 << 10, 3);
    let access = bench.access(&bench.token(&[Role::Ship]));
    let url: VaultUrl = format!("https://127.0.0.1:{port}/v").parse().unwrap();
    let vault = Vault::open(&url, &access).unwrap();
    let image = ship(&vault, Base::Empty { size: SIZE }, &content(7)).unwrap();
    commit(&vault, image, 1, 10).unwrap();
    assert_eq!(left.load(Ordering::SeqCst), 0, "no connection was broken");
    assert!(restored(&bench) == content(7));
}
