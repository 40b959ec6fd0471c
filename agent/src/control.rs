//! The control API of a running protection: HTTP on a Unix socket that only its owner can reach.
//!
//! | request | answer |
//! |---|---|
//! | `GET /v1/status` | [`Status`] |
//! | `POST /v1/groups/{name}/cut` with [`CutRequest`] | [`CutReply`](crate::api::CutReply) |
//! | `POST /v1/target` with [`Chore`] | [`Done`](dd_target::Done): done on the target that this protection writes to |
//! | anything that fails | [`Problem`](crate::Problem), with a status to match |
//!
//! Rule: a request that waits does so on its own thread, and ends when the protection does.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use block::Name;
use tokio::runtime;
use tokio::sync::oneshot;
use tracing::warn;

use crate::api::{CutRequest, Status};
use crate::engine::{Engine, Stop};
use crate::places::ShortPath;
use crate::{Error, Kind, Result, status};
use dd_target::Chore;

/// How long the end waits for answers that are on their way.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// How long a status waits for the first look at the target.
const FIRST_LOOK: Duration = Duration::from_secs(3);

/// The API, being served.
pub(crate) struct Control {
    thread: JoinHandle<()>,
    stop: oneshot::Sender<()>,
    socket: PathBuf,
}

struct Inner {
    engine: Arc<Engine>,
    productions: Vec<String>,
}

type Shared = State<Arc<Inner>>;

impl Control {
    pub(crate) fn start(engine: &Arc<Engine>, productions: Vec<String>) -> Result<Self> {
        let socket = engine.place.control_socket();
        let failed = |e| Error::file("listen at the control socket", &socket)(e);
        let listener = bind(&socket).map_err(failed)?;
        let runtime = runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(failed)?;
        let inner = Arc::new(Inner {
            engine: Arc::clone(engine),
            productions,
        });
        let router = Router::new()
            .route("/v1/status", get(get_status))
            .route("/v1/groups/{name}/cut", post(post_cut))
            .route("/v1/target", post(post_target))
            .with_state(inner);
        let (stop, stopped) = oneshot::channel();
        let body = move || {
            let served = runtime.block_on(serve(listener, router, stopped));
            if let Err(error) = served {
                warn!(%error, "the control API has ended");
            }
            runtime.shutdown_timeout(LAST_WORDS);
        };
        let thread = Builder::new()
            .name("control".into())
            .spawn(body)
            .map_err(failed)?;
        Ok(Self {
            thread,
            stop,
            socket,
        })
    }

    /// Answers what is on its way, and ends.
    pub(crate) fn stop(self) {
        // The thread may have ended by itself.
        let _ = self.stop.send(());
        if self.thread.join().is_err() {
            warn!("the control API ended in a panic; this is a bug");
        }
        // The group's lock is ours still, so this is our socket.
        let _ = fs::remove_file(&self.socket);
    }
}

/// The group's lock is held: a socket that is there already is a dead process's.
fn bind(socket: &std::path::Path) -> io::Result<UnixListener> {
    match fs::remove_file(socket) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(ShortPath::of(socket)?.path())?;
    fs::set_permissions(socket, fs::Permissions::from_mode(0o600))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

async fn serve(
    listener: UnixListener,
    router: Router,
    stopped: oneshot::Receiver<()>,
) -> io::Result<()> {
    let listener = tokio::net::UnixListener::from_std(listener)?;
    let (ending, ended) = oneshot::channel();
    let stop = async move {
        // Told to stop, or the owner is gone.
        let _ = stopped.await;
        let _ = ending.send(());
    };
    let serving = axum::serve(listener, router).with_graceful_shutdown(stop);
    let too_late = async {
        let _ = ended.await;
        tokio::time::sleep(LAST_WORDS).await;
    };
    tokio::select! {
        served = async { serving.await } => served,
        () = too_late => Ok(()),
    }
}

async fn get_status(State(inner): Shared) -> Response {
    blocking(move || {
        let engine = &inner.engine;
        drop(engine.wait(Some(FIRST_LOOK), Stop::No, |shared| shared.target_seen));
        let group = status::of_running(engine, &inner.productions);
        Ok(Status {
            groups: vec![group],
        })
    })
    .await
}

async fn post_cut(
    State(inner): Shared,
    Path(name): Path<String>,
    Json(request): Json<CutRequest>,
) -> Response {
    blocking(move || {
        if name.parse::<Name>().as_ref() != Ok(&inner.engine.name) {
            return Err(Error::usage(
                format!(
                    "group {name} is not protected here, but {} is",
                    inner.engine.name
                ),
                "every group has a socket of its own",
            ));
        }
        inner.engine.cut_for(&request)
    })
    .await
}

async fn post_target(State(inner): Shared, Json(chore): Json<Chore>) -> Response {
    blocking(move || inner.engine.chore(&chore)).await
}

async fn blocking<T>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Response
where
    T: serde::Serialize + Send + 'static,
{
    match tokio::task::spawn_blocking(work).await {
        Ok(Ok(reply)) => Json(reply).into_response(),
        Ok(Err(error)) => (status_code(error.kind()), Json(error.problem())).into_response(),
        // A panic of ours, or the end of the runtime.
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

fn status_code(kind: Kind) -> StatusCode {
    match kind {
        Kind::Usage => StatusCode::BAD_REQUEST,
        Kind::Retry => StatusCode::SERVICE_UNAVAILABLE,
        Kind::Fenced => StatusCode::CONFLICT,
        Kind::Failed | Kind::Damaged => StatusCode::INTERNAL_SERVER_ERROR,
    }
}
