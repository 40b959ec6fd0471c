//! What one caller can take of a server is bounded: memory, space, threads; whatever it sends, or does not take.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::body::Bytes;
use axum::http::{Request, Response};
use block::index;
use common::Bench;
use common::shipping::{SIZE, commit, content, noise, restored, ship, vault};
use dd_target::api::Role;
use dd_target::client::Vault;
use h2::RecvStream;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};
use store::Base;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::runtime::Runtime;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

mod common;

const PATH: &str = "/v1/vaults/v/objects/format";
const RANGE: &str = "bytes=0-9";

/// A connection to the server, for this protocol.
async fn connect(bench: &Bench, protocol: &[u8]) -> TlsStream<TcpStream> {
    let mut roots = RootCertStore::empty();
    let own = CertificateDer::from_pem_file(bench.path("state/server.pem")).unwrap();
    roots.add(own).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider);
    let config = config.with_safe_default_protocol_versions().unwrap();
    let mut config = config.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![protocol.to_vec()];
    let address = bench.server.as_ref().unwrap().address();
    let socket = TcpStream::connect(address).await.unwrap();
    let connector = TlsConnector::from(Arc::new(config));
    connector
        .connect(address.ip().into(), socket)
        .await
        .unwrap()
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap()
}

/// A client that takes no byte of its answers.
async fn ask_and_take_nothing(
    bench: &Bench,
    token: &str,
    count: usize,
) -> Vec<Response<RecvStream>> {
    let tls = connect(bench, b"h2").await;
    let address = bench.server.as_ref().unwrap().address();
    let mut builder = h2::client::Builder::new();
    let (mut client, connection) = builder
        .initial_window_size(0)
        .handshake::<_, Bytes>(tls)
        .await
        .unwrap();
    tokio::spawn(connection);
    let mut answers = Vec::new();
    for _ in 0..count {
        let request = Request::get(format!("https://{address}{PATH}"))
            .header("authorization", format!("Bearer {token}"))
            .header("range", RANGE);
        client = client.ready().await.unwrap();
        let (answer, _) = client
            .send_request(request.body(()).unwrap(), true)
            .unwrap();
        answers.push(answer.await.unwrap());
    }
    answers
}

/// Requests counted until their answers were made: a peer that took nothing of them had as many as it liked, and their memory.
#[test]
fn a_request_is_under_way_until_its_answer_is_sent() {
    let bench = Bench::new();
    let token = bench.token(&[Role::Restore]);
    let other = bench.token(&[Role::Restore]);
    let read = |token: &String| {
        bench
            .ask_with("GET", PATH, Some(token), |r| r.header("range", RANGE))
            .0
    };
    let runtime = runtime();
    let answers = runtime.block_on(ask_and_take_nothing(&bench, &token, 32));
    assert!(answers.iter().all(|answer| answer.status() == 206));
    assert_eq!((read(&token), read(&other)), (429, 206));
    drop(answers);
    drop(runtime);
    // The server learns of the end by itself.
    assert!((0..1_000).any(|_| read(&token) == 206));
}

/// Over HTTP/1.1 a connection was closed where a body was left unread: whoever was refused while he sent one saw a line that
/// broke, not why.
#[test]
fn who_is_refused_while_he_sends_is_told_so() {
    let bench = Bench::new();
    let answer = async {
        let mut tls = connect(&bench, b"http/1.1").await;
        let body = vec![b' '; 500_000];
        let head = format!(
            "POST /v1/tokens HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        tls.write_all(head.as_bytes()).await?;
        tls.flush().await?;
        // By now it has been refused.
        tokio::time::sleep(std::time::Duration::from_millis(300)).await;
        for piece in body.chunks(10_000) {
            tls.write_all(piece).await?;
        }
        tls.flush().await?;
        let mut status = [0; 12];
        tls.read_exact(&mut status).await?;
        std::io::Result::Ok(status)
    };
    assert_eq!(runtime().block_on(answer).unwrap(), *b"HTTP/1.1 401");
}

/// A point of ten thousand disks was looked up disk by disk, under the lock of all points of its vault, before it was refused.
#[test]
fn a_point_or_seed_of_too_many_disks_is_refused_before_any_work() {
    let bench = Bench::new();
    let token = bench.token(&[Role::Ship]);
    let disks: Vec<_> = (0..10_000).map(|disk| (format!("d{disk}"), "00")).collect();
    let point = serde_json::json!({
        "group": "g", "lineage": "03".repeat(16), "generation": 1, "at_unix_ns": 1, "labels": {},
        "application": false, "disks": disks,
    });
    let disk = |(name, _): &(String, &str)| serde_json::json!({ "name": name, "cursor_granule": 0, "image": "AA==" });
    let seed = serde_json::json!({
        "lineage": "03".repeat(16), "generation": 1, "disks": disks.iter().map(disk).collect::<Vec<_>>(),
    });
    for (method, path, document) in [
        ("POST", "/v1/vaults/v/points", point),
        ("PUT", "/v1/vaults/v/seeds/g", seed),
    ] {
        let (status, answer) = bench.ask_with(method, path, Some(&token), |request| {
            let request = request.header("content-type", "application/json");
            request.body(document.to_string())
        });
        assert_eq!(status, 400, "{answer}");
        assert!(answer.contains("256 disks"), "{answer}");
    }
}

/// Only who brought chunks was asked whether there is room: an image that was begun before its vault was full went on for ever,
/// with zeroes and with chunks that the vault has, and each piece of its tree took space.
#[test]
fn an_image_that_was_begun_before_its_vault_was_full_does_not_go_on() {
    let bench = Bench::new();
    let filling = vault(&bench);
    let image = ship(&filling, Base::Empty { size: SIZE }, &content(1)).unwrap();
    commit(&filling, image, 1, 10).unwrap();
    let token = bench.token(&[Role::Ship]);
    let drafts = "/v1/vaults/v/drafts";
    let (_, begun) = bench.post(drafts, &token, r#"{"empty":1048576}"#);
    let begun: serde_json::Value = serde_json::from_str(&begun).unwrap();
    let draft = format!("{drafts}/{}", begun["draft"].as_str().unwrap());
    let all = |expected: u16| {
        let zeroes = r#"{"ranges":[[0,1]]}"#;
        let (status, answer) = bench.post(&format!("{draft}/zero"), &token, zeroes);
        assert_eq!(status, expected, "{answer}");
        let entry = [&[0; 8][..], &[7; 32]].concat();
        let (status, _) = bench.ask_with("POST", &format!("{draft}/ask"), Some(&token), |r| {
            r.body(entry)
        });
        assert_eq!(status, expected);
        let finish = format!("{draft}/finish");
        assert_eq!(bench.ask("POST", &finish, Some(&token)).0, expected);
    };
    let admin = bench.remote(&bench.token(&[Role::Admin]));
    let quota = |bytes| admin.set_quota(&"v".parse().unwrap(), bytes).unwrap();
    quota(Some(1));
    all(507);
    quota(None);
    all(200);
}

#[test]
fn a_disk_that_no_hypervisor_makes_is_refused() {
    let bench = Bench::new();
    let token = bench.token(&[Role::Ship]);
    let begin = |size: u64| {
        let body = format!("{{\"empty\":{size}}}");
        bench.post("/v1/vaults/v/drafts", &token, &body)
    };
    assert_eq!(begin(64 << 40).0, 200);
    let (status, answer) = begin((64 << 40) + 512);
    assert_eq!(status, 400, "{answer}");
}

/// A point of nothing but labels, half a MiB of them, was listed however full its vault was, and each one made every checkpoint
/// of the catalog as much longer.
#[test]
fn labels_of_a_point_are_few_bytes() {
    let bench = Bench::new();
    let token = bench.token(&[Role::Ship]);
    let point = |bytes: usize| {
        let labels: BTreeMap<_, _> = (0..bytes / 4096)
            .map(|label| (format!("{label:06}"), "x".repeat(4090)))
            .collect();
        let point = serde_json::json!({
            "group": "g", "lineage": "03".repeat(16), "generation": 1, "at_unix_ns": 1, "labels": labels,
            "application": false, "disks": [],
        });
        bench.post("/v1/vaults/v/points", &token, &point.to_string())
    };
    let (status, answer) = point(20 << 10);
    assert_eq!(status, 400, "{answer}");
    assert!(answer.contains("labels"), "{answer}");
    assert!(!point(16 << 10).1.contains("labels"));
}

#[test]
fn a_vault_takes_no_more_than_its_quota() {
    let mut bench = Bench::new();
    bench.make_vault("small", Some(1 << 20));
    let access = bench.access(&bench.token(&[Role::Ship]));
    let vault = Vault::open(&bench.vault("small"), &access).unwrap();
    let noise: Vec<u8> = noise(1).take(8 << 20).collect();
    let error = ship(&vault, Base::Empty { size: SIZE }, &noise).unwrap_err();
    assert!(error.is_full(), "{error}");
    assert!(error.to_string().contains("quota"), "{error}");
    // A larger one helps at once, and stays through a restart.
    let admin = bench.token(&[Role::Admin]);
    let small = "small".parse().unwrap();
    let set = bench
        .remote(&admin)
        .set_quota(&small, Some(64 << 20))
        .unwrap();
    assert_eq!(set.quota_bytes, Some(64 << 20));
    ship(&vault, Base::Empty { size: SIZE }, &noise).unwrap();
    bench.stop();
    bench.start();
    let vaults = bench.remote(&admin).vaults().unwrap();
    let quotas: Vec<_> = vaults.iter().map(|v| (&*v.name, v.quota_bytes)).collect();
    assert_eq!(quotas, [("small", Some(64 << 20)), ("v", None)]);
    let unknown = "nowhere".parse().unwrap();
    assert!(bench.remote(&admin).set_quota(&unknown, None).is_err());
    let log = std::fs::read_to_string(bench.path("state/audit.log")).unwrap();
    for line in ["a quota of 67108864 bytes", "\"what\":\"ended\""] {
        assert!(log.contains(line), "{line} is not in {log}");
    }
}

/// Each draft held the container that it filled, up to 4 MiB or, in a bucket, 16: with a token to ship, which may have 512
/// drafts, anybody could take all of the server's memory.
#[test]
fn drafts_hold_no_more_memory_than_they_may_together() {
    let bench = Bench::new();
    let vault = vault(&bench);
    let held = || bench.figure("standin_target_draft_bytes");
    let mut writers: Vec<_> = (0..150)
        .map(|seed| {
            let mut writer = vault.image_writer(Base::Empty { size: SIZE }).unwrap();
            writer.put(0, &window(seed)).unwrap();
            writer
        })
        .collect();
    // All have arrived once so many bytes are counted; each then has room made for it.
    while bench.figure("standin_target_shipped_bytes_total") < writers.len() * WINDOW {
        std::thread::yield_now();
    }
    assert!((128 << 20..=256 << 20).contains(&held()), "{}", held());
    let last = writers.len() as u64 - 1;
    let (newest, oldest) = (writers.pop().unwrap(), writers.swap_remove(0));
    for (generation, (writer, seed)) in [(newest, last), (oldest, 0)].into_iter().enumerate() {
        let mut writer = writer;
        writer.put(2048, &window(seed + 1000)).unwrap();
        let image = writer.finish().unwrap();
        assert!(held() <= 256 << 20, "{}", held());
        commit(&vault, image, generation as u64, 10).unwrap();
        let mut expected = vec![0; index(SIZE)];
        expected[..WINDOW].copy_from_slice(&window(seed));
        expected[8 << 20..][..WINDOW].copy_from_slice(&window(seed + 1000));
        assert!(restored(&bench) == expected, "{seed}");
    }
}

/// Bytes that a client sends at once.
const WINDOW: usize = 2 << 20;

/// A chore may take days, and a thread of the server as long: two tokens with slow ones took them all. Later it was those of one vault
/// that let nobody do any in another one.
#[test]
fn of_slow_chores_a_few_are_under_way_and_others_are_told_to_come_again() {
    let mut bench = Bench::new();
    let vault = vault(&bench);
    let image = ship(&vault, Base::Empty { size: SIZE }, &content(8)).unwrap();
    commit(&vault, image, 1, 10).unwrap();
    let admin = bench.token(&[Role::Admin]);
    let pem = std::fs::read(bench.path("state/server.pem")).unwrap();
    let roots = reqwest::Certificate::from_pem_bundle(&pem).unwrap();
    let client = reqwest::Client::builder().tls_certs_only(roots).no_proxy();
    let client = client.build().unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (told, answers) = std::sync::mpsc::channel();
    let post = |path: &str, body: &'static str| {
        let url = format!("{}/v1/vaults{path}", bench.url());
        let request = client.post(&url).bearer_auth(&admin).body(body);
        let request = request.header("content-type", "application/json");
        let told = told.clone();
        runtime.spawn(async move {
            let status = request.send().await.map(|answer| answer.status().as_u16());
            let _ = told.send(status);
        });
    };
    // A byte a second: none of them ends by itself.
    for _ in 0..5 {
        post(
            "/v/chores",
            r#"{"do":"scrub","deep":false,"heal":false,"rate":1}"#,
        );
    }
    let limit = std::time::Duration::from_secs(60);
    let answer = || answers.recv_timeout(limit).unwrap().unwrap();
    assert_eq!(answer(), 429);
    // The others are under way, and whoever ships is served, and whoever has a chore for another vault.
    let image = ship(&vault, Base::Empty { size: SIZE }, &content(9)).unwrap();
    commit(&vault, image, 2, 20).unwrap();
    post("", r#"{"name":"another"}"#);
    assert_eq!(answer(), 200);
    post(
        "/another/chores",
        r#"{"do":"scrub","deep":false,"heal":false,"rate":1000000}"#,
    );
    assert_eq!(answer(), 200);
    assert!(answers.try_recv().is_err());
    bench.stop();
}

/// A window of bytes that do not compress.
fn window(number: u64) -> Vec<u8> {
    noise(number).take(WINDOW).collect()
}
