//! What one caller can take of a server is bounded, whatever it does not read or send.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::Arc;

use axum::body::Bytes;
use axum::http::{Request, Response};
use common::Bench;
use dd_target::api::Role;
use h2::RecvStream;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

mod common;

const PATH: &str = "/v1/vaults/v/objects/format";
const RANGE: &str = "bytes=0-9";

/// A client that takes no byte of its answers.
async fn ask_and_take_nothing(
    bench: &Bench,
    token: &str,
    count: usize,
) -> Vec<Response<RecvStream>> {
    let mut roots = RootCertStore::empty();
    let own = CertificateDer::from_pem_file(bench.path("state/server.pem")).unwrap();
    roots.add(own).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider);
    let config = config.with_safe_default_protocol_versions().unwrap();
    let mut config = config.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let address = bench.server.as_ref().unwrap().address();
    let socket = TcpStream::connect(address).await.unwrap();
    let connector = TlsConnector::from(Arc::new(config));
    let tls = connector
        .connect(address.ip().into(), socket)
        .await
        .unwrap();
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
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let answers = runtime.block_on(ask_and_take_nothing(&bench, &token, 32));
    assert!(answers.iter().all(|answer| answer.status() == 206));
    assert_eq!((read(&token), read(&other)), (429, 206));
    drop(answers);
    drop(runtime);
    // The server learns of the end by itself.
    assert!((0..1_000).any(|_| read(&token) == 206));
}
