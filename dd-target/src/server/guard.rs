//! Who calls, and whether that may be: before a byte of the body is read, and before anything else is.
//!
//! ```text
//! credential --> token --> role for this call? --> this vault? --> room for another request? --> body --> handler
//!     | 401                     | 403                  | 403               | 429                 | 413, 408
//! ```
//!
//! Rule: every refusal of the first four is in the audit log before it is answered.

use std::collections::HashMap;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;

use axum::body::{Body, Bytes, HttpBody, to_bytes};
use axum::extract::rejection::RawPathParamsRejection;
use axum::extract::{RawPathParams, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use block::Name;
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::api::{Role, Token};
use crate::server::audit::{Entry, Event};
use crate::server::budget::Taken;
use crate::server::limits::{BODY_MAX, REFUSED_BYTES_MAX, REFUSED_MAX, REQUESTS_PER_TOKEN};
use crate::server::refusal::{Answer, Refusal};
use crate::server::roles::{Needs, Route};
use crate::server::sending::{Sending, until_sent};
use crate::server::threads::{Thread, Way};
use crate::server::tokens::{Credential, Unknown};
use crate::server::{Shared, blocking};

/// The other end of a connection.
#[derive(Clone, Debug)]
pub(crate) struct Peer {
    pub(crate) address: SocketAddr,
    /// The common name of the certificate that it has shown.
    pub(crate) certificate: Option<String>,
    /// Its answers.
    pub(crate) sending: Arc<Sending>,
}

/// Who calls.
#[derive(Clone)]
pub(crate) struct Caller {
    pub(crate) token: Arc<Token>,
    pub(crate) peer: SocketAddr,
}

impl Caller {
    pub(crate) fn has(&self, role: Role) -> bool {
        self.token.roles.contains(&role)
    }

    /// Whether its token is for this vault.
    pub(crate) fn may_see(&self, vault: &str) -> bool {
        let vaults = &self.token.vaults;
        vaults.is_empty() || vaults.iter().any(|name| name == vault)
    }

    /// Whether its token is for this group.
    pub(crate) fn may_ship(&self, group: &Name) -> bool {
        let groups = &self.token.groups;
        groups.is_empty() || groups.iter().any(|name| name == group.as_str())
    }

    /// A line of the log about it.
    pub(crate) fn entry(&self, event: Event, vault: Option<&Name>, what: String) -> Entry {
        Entry {
            event,
            token: Some(self.token.id.clone()),
            peer: Some(self.peer.to_string()),
            vault: vault.map(Name::to_string),
            what,
            why: None,
        }
    }
}

/// How many requests each token has under way.
#[derive(Default)]
pub(crate) struct UnderWay(Mutex<HashMap<String, Arc<Semaphore>>>);

impl UnderWay {
    fn begin(&self, token: &str) -> Option<OwnedSemaphorePermit> {
        let mut all = self.0.lock();
        // Those of tokens that have nothing under way are made anew.
        all.retain(|_, room| room.available_permits() < REQUESTS_PER_TOKEN);
        let room = all.entry(token.to_owned());
        let room = room.or_insert_with(|| Arc::new(Semaphore::new(REQUESTS_PER_TOKEN)));
        Arc::clone(room).try_acquire_owned().ok()
    }
}

/// Lets a request through, or says why not.
pub(crate) async fn guard(
    State((shared, route)): State<(Shared, &'static Route)>,
    params: Result<RawPathParams, RawPathParamsRejection>,
    mut request: Request,
    next: Next,
) -> Response {
    let vault = params.map(|params| {
        let vault = params.iter().find(|(name, _)| *name == "vault");
        vault.map(|(_, vault)| vault.to_owned())
    });
    let peer = request.extensions().get::<Peer>();
    let sending = peer.map(|peer| Arc::clone(&peer.sending));
    let (answer, under_way) = match pass(&shared, route, vault, &mut request).await {
        Ok(held) => {
            let under_way = held.under_way.clone();
            (
                HELD.scope(Arc::new(held), next.run(request)).await,
                under_way,
            )
        }
        Err(refusal) => {
            pass_over(request.into_body()).await;
            (refusal.into_response(), None)
        }
    };
    match sending {
        Some(sending) => until_sent(answer, under_way, &sending).await,
        None => answer,
    }
}

async fn pass(
    shared: &Shared,
    route: &'static Route,
    vault: Result<Option<String>, RawPathParamsRejection>,
    request: &mut Request,
) -> Answer<Held> {
    let (mut under_way, mut way, mut body) = (None, None, None);
    if let Needs::One(roles) = route.needs {
        // A path that is no text names nothing; who asks for it is not told before it is known who that is.
        let (vault, no_text) = match vault {
            Ok(vault) => (vault, None),
            Err(rejection) => (None, Some(Refusal::invalid(rejection.body_text()))),
        };
        let asked = Asked::of(request, vault.clone())?;
        let caller = admit(shared, roles, asked).await?;
        no_text.map_or(Ok(()), Err)?;
        let crowded = "this token has too many requests under way";
        let room = shared.under_way.begin(&caller.token.id);
        let room = room.ok_or_else(|| Refusal::new(StatusCode::TOO_MANY_REQUESTS, crowded))?;
        under_way = Some(Arc::new(room));
        let bytes = body_bytes(route, request)?;
        body = match bytes {
            0 => None,
            _ => Some(shared.bodies.take(&caller.token.id, bytes).await),
        };
        way = Some(Way {
            threads: Arc::clone(&shared.threads),
            token: caller.token.id.clone(),
            vault,
        });
        request.extensions_mut().insert(caller);
    }
    read_body(route, request.body_mut()).await?;
    Ok(Held {
        under_way,
        way,
        _body: body,
    })
}

tokio::task_local! {
    /// Of the request under way: whoever works for it on another thread holds it, too. That work goes on where the client
    /// has gone.
    static HELD: Arc<Held>;
}

/// Work that counts for the request under way until it has ended.
pub(crate) fn held<T>(work: impl FnOnce() -> T) -> impl FnOnce() -> T {
    let held = HELD.try_with(Arc::clone).ok();
    move || {
        let done = work();
        drop(held);
        done
    }
}

/// Waits for a thread of those that the request under way can have, if it is known whose it is.
pub(crate) async fn thread() -> Option<Thread> {
    let way = HELD.try_with(|held| held.way.clone()).ok()??;
    Some(way.thread().await)
}

/// What a request has of what is limited, until its work has ended; that it is under way, until its answer is sent, too.
struct Held {
    under_way: Option<Arc<OwnedSemaphorePermit>>,
    /// To its threads.
    way: Option<Way>,
    _body: Option<Taken>,
}

/// What is asked for, and what is shown for it.
struct Asked {
    peer: Peer,
    what: String,
    vault: Option<String>,
    shown: Option<Credential>,
}

impl Asked {
    fn of(request: &Request, vault: Option<String>) -> Answer<Self> {
        let peer = request.extensions().get::<Peer>().cloned();
        let peer = peer.ok_or_else(|| Refusal::invalid("the connection has no address"))?;
        Ok(Self {
            what: format!("{} {}", request.method(), request.uri().path()),
            shown: credential(request.headers(), &peer),
            vault,
            peer,
        })
    }

    /// The line of a refusal.
    fn refused(&self, token: Option<&Token>, why: &str) -> Entry {
        Entry {
            event: Event::Refused,
            token: token.map(|token| token.id.clone()),
            peer: Some(self.peer.address.to_string()),
            vault: self.vault.clone(),
            what: self.what.clone(),
            why: Some(why.to_owned()),
        }
    }
}

/// Finds out who calls.
async fn admit(shared: &Shared, roles: &'static [Role], asked: Asked) -> Answer<Caller> {
    let shared = Arc::clone(shared);
    blocking(move || {
        let refused = |token: Option<&Token>, why| shared.refused(asked.refused(token, why));
        let Some(shown) = &asked.shown else {
            refused(None, "no credential")?;
            return Err(unauthorized("no token was shown"));
        };
        let known = shared.tokens.authenticate(shown, shared.clock.wall())?;
        let token = match known {
            Ok(token) => token,
            Err(Unknown::Wrong) => {
                refused(None, "unknown credential")?;
                return Err(unauthorized("the token is not one of this server's"));
            }
            Err(Unknown::Expired(token)) => {
                refused(Some(&token), "it has expired")?;
                return Err(unauthorized("the token has expired"));
            }
            Err(Unknown::Revoked(token)) => {
                refused(Some(&token), "it was revoked")?;
                return Err(unauthorized("the token was revoked"));
            }
        };
        let caller = Caller {
            token: Arc::new(token),
            peer: asked.peer.address,
        };
        if !roles.iter().any(|role| caller.has(*role)) {
            refused(Some(&caller.token), "it lacks the role")?;
            let roles: Vec<_> = roles.iter().map(Role::to_string).collect();
            let sentence = format!("this takes a token with the role {}", roles.join(" or "));
            return Err(Refusal::new(StatusCode::FORBIDDEN, sentence));
        }
        let vault = asked.vault.as_deref();
        if vault.is_some_and(|vault| !caller.may_see(vault)) {
            refused(Some(&caller.token), "it is not for this vault")?;
            let sentence = "the token is not for this vault";
            return Err(Refusal::new(StatusCode::FORBIDDEN, sentence));
        }
        Ok(caller)
    })
    .await
}

fn unauthorized(sentence: &str) -> Refusal {
    Refusal::new(StatusCode::UNAUTHORIZED, sentence)
        .hint("`standin token create` on the server's machine makes a token")
}

/// A token in the head counts before the connection's certificate.
fn credential(headers: &HeaderMap, peer: &Peer) -> Option<Credential> {
    let shown = headers.get(header::AUTHORIZATION);
    match shown.map(|shown| shown.to_str().unwrap_or_default()) {
        Some(shown) => {
            let text = shown.strip_prefix("Bearer ").unwrap_or_default();
            Some(Credential::Text(text.trim().to_owned()))
        }
        None => peer.certificate.clone().map(Credential::Certificate),
    }
}

/// How long a body can be: as it is said to be, or as it may be.
fn body_bytes(route: &Route, request: &Request) -> Answer<usize> {
    if route.body_max == 0 {
        return Ok(0);
    }
    let said = request.body().size_hint().upper();
    let said = said.map(|bytes| usize::try_from(bytes).unwrap_or(usize::MAX));
    match said.unwrap_or(route.body_max) {
        bytes if bytes > route.body_max => Err(too_long(route)),
        bytes => Ok(bytes),
    }
}

/// Brings the body into memory; no longer than the call takes, and in time.
async fn read_body(route: &Route, body: &mut Body) -> Answer<()> {
    let unread = std::mem::replace(body, Body::empty());
    if route.body_max == 0 {
        return Ok(());
    }
    let read = tokio::time::timeout(BODY_MAX, to_bytes(unread, route.body_max)).await;
    let late = |_| Refusal::new(StatusCode::REQUEST_TIMEOUT, "the body took too long");
    let bytes = read.map_err(late)?.map_err(|_| too_long(route))?;
    *body = Body::from(bytes);
    Ok(())
}

/// Takes what comes with a request that is refused, and keeps none of it. Over HTTP/1.1 a connection is closed where a body is left
/// unread, and a client that is still sending it never sees the answer.
async fn pass_over(mut body: Body) {
    let mut left = REFUSED_BYTES_MAX;
    let take = async {
        while let Some(Ok(frame)) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
            let bytes = frame.data_ref().map_or(0, Bytes::len);
            left = match left.checked_sub(bytes) {
                Some(left) => left,
                None => return,
            };
        }
    };
    // Whoever takes longer, or sends more, is left.
    let _ = tokio::time::timeout(REFUSED_MAX, take).await;
}

fn too_long(route: &Route) -> Refusal {
    let max = route.body_max;
    let sentence = format!("the body broke off, or is longer than {max} bytes");
    Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, sentence)
}
