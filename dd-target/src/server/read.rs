//! The read plane: objects of a vault as they lie. Nothing is decoded here; whoever restores checks what it gets.
//!
//! Rule: only the folders of a store are there, and of those not the leases of its writers.

use std::time::Duration;

use axum::Extension;
use axum::Json;
use axum::body::Bytes;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use block::{Name, index};
use serde::Deserialize;
use tracing::warn;

use crate::api::{ObjectList, Role};
use crate::part::Part;
use crate::server::admin::asked;
use crate::server::audit::Event;
use crate::server::budget::Taken;
use crate::server::guard::Caller;
use crate::server::refusal::{Answer, Refusal};
use crate::server::vaults::Vault;
use crate::server::{Inner, Shared, blocking};
use crate::wire::{CATALOG, KEYS, RANGE_MAX, is_folder, is_object};

/// How long a reader of a vault is not noted again.
const READ_NOTED_FOR: Duration = Duration::from_hours(1);
/// After a line that could not be written.
const READ_TRIED_AGAIN: Duration = Duration::from_mins(1);

#[derive(Deserialize)]
pub(crate) struct Listed {
    folder: String,
}

/// Of a path, what all of them have.
#[derive(Deserialize)]
pub(crate) struct Where {
    vault: String,
}

pub(crate) async fn list(
    State(shared): State<Shared>,
    Extension(caller): Extension<Caller>,
    Path(vault): Path<String>,
    query: Result<Query<Listed>, QueryRejection>,
) -> Answer<Json<ObjectList>> {
    let Listed { folder } = asked(query)?;
    if !is_folder(&folder) {
        return Err(Refusal::missing("there is no such folder in a store"));
    }
    list_folder(shared, caller, vault, folder).await
}

pub(crate) async fn list_keys(
    State(shared): State<Shared>,
    Extension(caller): Extension<Caller>,
    Path(vault): Path<String>,
) -> Answer<Json<ObjectList>> {
    list_folder(shared, caller, vault, KEYS.to_owned()).await
}

async fn list_folder(
    shared: Shared,
    caller: Caller,
    vault: String,
    folder: String,
) -> Answer<Json<ObjectList>> {
    blocking(move || {
        let vault = shared.vaults.find(&vault)?;
        shared.note_reader(&caller, &vault);
        let place = vault.objects()?;
        let objects = place.list(&folder)?;
        if folder == CATALOG {
            // Who sees a commit's name may rely on it.
            place.sync(&folder)?;
        }
        Ok(Json(ObjectList { objects }))
    })
    .await
}

pub(crate) async fn object(
    State(shared): State<Shared>,
    Extension(caller): Extension<Caller>,
    Path(Where { vault }): Path<Where>,
    uri: Uri,
    method: Method,
    headers: HeaderMap,
) -> Answer<Response> {
    // The calls differ in who may; names of objects need no escapes.
    let below = format!("/v1/vaults/{vault}/objects/");
    let name = uri.path().strip_prefix(&below).unwrap_or_default();
    if !is_object(name) {
        return Err(Refusal::missing("there is no such object in a store"));
    }
    let name = name.to_owned();
    let asked = match method {
        Method::HEAD => None,
        _ => Some(part(&headers)?),
    };
    let bytes = asked.as_ref().map_or(0, |asked| index(asked.bytes_max()));
    let room = shared.answers.take(&caller.token.id, bytes).await;
    blocking(move || {
        let vault = shared.vaults.find(&vault)?;
        shared.note_reader(&caller, &vault);
        let place = vault.objects()?;
        let len = place.len(&name)?;
        let Some(asked) = asked else {
            return Ok([(header::CONTENT_LENGTH, len)].into_response());
        };
        let range = asked.of(len);
        if range.is_empty() {
            let sentence = format!("the object has {len} bytes");
            return Err(Refusal::new(StatusCode::RANGE_NOT_SATISFIABLE, sentence));
        }
        let mut bytes = vec![0; index(range.end - range.start)];
        place.read(&name, range.start, &mut bytes)?;
        shared.figures.read(bytes.len() as u64);
        let range = format!("bytes {}-{}/{len}", range.start, range.end - 1);
        let head = [
            (header::CONTENT_TYPE, "application/octet-stream".to_owned()),
            (header::CONTENT_RANGE, range),
        ];
        let body = Bytes::from_owner(Read { bytes, _room: room });
        Ok((StatusCode::PARTIAL_CONTENT, head, body).into_response())
    })
    .await
}

/// Bytes of an object, and the room that they take until they are sent.
struct Read {
    bytes: Vec<u8>,
    _room: Taken,
}

impl AsRef<[u8]> for Read {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// `bytes=FIRST-LAST`, or `bytes=-COUNT`, no longer than one answer may be.
fn part(headers: &HeaderMap) -> Answer<Part> {
    let sentence = || {
        format!(
            "ask for a range (Range: bytes=FIRST-LAST, or bytes=-COUNT) of at most {RANGE_MAX} bytes"
        )
    };
    let text = headers
        .get(header::RANGE)
        .and_then(|text| text.to_str().ok());
    let part = text.and_then(Part::parse);
    let part = part.filter(|part| (1..=RANGE_MAX).contains(&part.bytes_max()));
    part.ok_or_else(|| Refusal::invalid(sentence()))
}

impl Inner {
    /// Notes that somebody reads a vault, once an hour for each. A log that cannot be written keeps nobody from restoring; it is
    /// tried again.
    fn note_reader(&self, caller: &Caller, vault: &Vault) {
        if !caller.has(Role::Restore) {
            return;
        }
        let now = self.clock.monotonic();
        let key = (caller.token.id.clone(), vault.name.clone());
        if !self.is_read_due(&key, now) {
            return;
        }
        let what = "reads of the vault begin".to_owned();
        match self
            .audit
            .write(caller.entry(Event::Read, Some(&vault.name), what))
        {
            Ok(()) => drop(self.reads.lock().insert(key, now + READ_NOTED_FOR)),
            Err(error) => warn!(%error, "the audit log cannot be written"),
        }
    }

    /// Whether a line is to be written; whoever is told so tries it, and nobody else for a while.
    fn is_read_due(&self, key: &(String, Name), now: Duration) -> bool {
        let mut reads = self.reads.lock();
        reads.retain(|_, until| now < *until);
        match reads.contains_key(key) {
            true => false,
            false => reads.insert(key.clone(), now + READ_TRIED_AGAIN).is_none(),
        }
    }
}
