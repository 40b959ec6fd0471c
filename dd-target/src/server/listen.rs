//! Connections: TLS, then HTTP/2, or HTTP/1.1 for tools that know no other.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::{Extension, Router};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use hyper_util::service::TowerToHyperService;
use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tracing::{debug, warn};

use crate::server::Shared;
use crate::server::certificate::common_name;
use crate::server::guard::Peer;
use crate::server::limits::{
    CONNECTIONS_MAX, DRAIN_MAX, HANDSHAKE_MAX, HEAD_MAX, JSON_BYTES_MAX, SILENCE_MAX, STALL_MAX,
    STREAMS_MAX, WINDOWS,
};
use crate::wire::FRAME_BYTES;

/// After an accept that failed: there may be no descriptor left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Longest head of a request.
const HEAD_BYTES_MAX: u32 = 64 << 10;

/// Serves until the end begins, and lets what runs end.
pub(crate) async fn accept(
    shared: Shared,
    listener: TcpListener,
    tls: Arc<ServerConfig>,
    router: Router,
) {
    let (tls, graceful) = (TlsAcceptor::from(tls), GracefulShutdown::new());
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let accepted = tokio::select! {
            () = shared.ending.begins() => break,
            accepted = next(&room, &listener) => accepted,
        };
        let Some((socket, address, permit)) = accepted else {
            continue;
        };
        let (tls, router, watcher) = (tls.clone(), router.clone(), graceful.watcher());
        tokio::spawn(async move {
            let _permit = permit;
            if let Some((stream, peer)) = handshake(&tls, socket, address).await {
                serve(stream, peer, router, watcher).await;
            }
        });
    }
    drop(listener);
    if tokio::time::timeout(DRAIN_MAX, graceful.shutdown())
        .await
        .is_err()
    {
        warn!("requests that did not end in time are broken off");
    }
}

/// The next connection, once there is room for it.
async fn next(
    room: &Arc<Semaphore>,
    listener: &TcpListener,
) -> Option<(TcpStream, SocketAddr, tokio::sync::OwnedSemaphorePermit)> {
    let permit = Arc::clone(room).acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((socket, address)) => Some((socket, address, permit)),
        Err(error) => {
            warn!(%error, "a connection could not be taken");
            tokio::time::sleep(ACCEPT_PAUSE).await;
            None
        }
    }
}

type TlsStream = tokio_rustls::server::TlsStream<TcpStream>;

async fn handshake(
    tls: &TlsAcceptor,
    socket: TcpStream,
    address: SocketAddr,
) -> Option<(TlsStream, Peer)> {
    // Small answers must not wait for more.
    let _ = socket.set_nodelay(true);
    let stream = match tokio::time::timeout(HANDSHAKE_MAX, tls.accept(socket)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            debug!(%address, %error, "a TLS handshake failed");
            return None;
        }
        Err(_) => {
            debug!(%address, "a TLS handshake took too long");
            return None;
        }
    };
    let shown = stream.get_ref().1.peer_certificates();
    let certificate = shown.and_then(|all| common_name(all.first()?));
    let peer = Peer {
        address,
        certificate,
        sending: Arc::default(),
    };
    Some((stream, peer))
}

async fn serve(stream: TlsStream, peer: Peer, router: Router, watcher: Watcher) {
    let (address, sending) = (peer.address, Arc::clone(&peer.sending));
    // What was agreed on is not waited for: a peer that says nothing would hold its place.
    let builder = auto::Builder::new(TokioExecutor::new());
    let mut builder = match stream.get_ref().1.alpn_protocol() {
        Some(b"h2") => builder.http2_only(),
        _ => builder.http1_only(),
    };
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_MAX);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(SILENCE_MAX)
        .keep_alive_timeout(SILENCE_MAX)
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(HEAD_BYTES_MAX)
        .initial_stream_window_size(WINDOWS.0)
        .initial_connection_window_size(WINDOWS.1)
        .max_frame_size(FRAME_BYTES)
        .max_send_buf_size(JSON_BYTES_MAX);
    let service = TowerToHyperService::new(router.layer(Extension(peer)));
    let connection = builder
        .serve_connection(TokioIo::new(stream), service)
        .into_owned();
    tokio::select! {
        served = watcher.watch(connection) => match served {
            Ok(()) => {}
            Err(error) => debug!(%address, %error, "a connection broke"),
        },
        () = sending.stalls(STALL_MAX) => debug!(%address, "a peer takes no answers"),
    }
}
