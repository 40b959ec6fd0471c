//! The admin plane: vaults, tokens, chores, the audit log.

use std::sync::Arc;

use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::{Extension, Json};
use serde::Deserialize;
use store::{Store, StoreError};

use crate::api::{
    CreatedToken, CreatedVault, NewQuota, NewToken, NewVault, NewWay, RevokedToken, Role,
    TokenList, Told, Vault, VaultFigures, VaultList,
};
use crate::chore::{Chore, Context, Done, perform};
use crate::record;
use crate::server::audit::{AuditPage, Event};
use crate::server::guard::Caller;
use crate::server::refusal::{Answer, Refusal};
use crate::server::revocation::revoke;
use crate::server::{Shared, blocking, on_a_thread};

/// A body that is no JSON of the right shape is answered as everything else is.
pub(crate) fn given<T>(body: Result<Json<T>, JsonRejection>) -> Answer<T> {
    match body {
        Ok(Json(body)) => Ok(body),
        Err(rejection) => Err(Refusal::invalid(rejection.body_text())),
    }
}

/// The same of a query.
pub(crate) fn asked<T>(query: Result<Query<T>, QueryRejection>) -> Answer<T> {
    match query {
        Ok(Query(query)) => Ok(query),
        Err(rejection) => Err(Refusal::invalid(rejection.body_text())),
    }
}

pub(crate) async fn vaults(
    State(shared): State<Shared>,
    Extension(caller): Extension<Caller>,
) -> Json<VaultList> {
    let all = shared.vaults.all().into_iter();
    let seen = all.filter(|vault| caller.may_see(vault.name.as_str()));
    let vaults = seen.map(|vault| vault.settings()).collect();
    Json(VaultList { vaults })
}

pub(crate) async fn create_vault(
    State(shared): State<Shared>,
    Extension(caller): Extension<Caller>,
    body: Result<Json<NewVault>, JsonRejection>,
) -> Answer<Json<CreatedVault>> {
    let new = given(body)?;
    blocking(move || {
        let mut what = format!("vault {} is to be made", new.name);
        if new.keys.is_some() {
            what.push_str(", encrypted");
        }
        if let Some(quota) = new.quota_bytes {
            what.push_str(&format!(", with a quota of {quota} bytes"));
        }
        shared.record(caller.entry(Event::Vault, None, what))?;
        let vault = shared.vaults.create(&new)?;
        shared.look_after(Arc::clone(&vault));
        let encrypted = vault.is_encrypted()?;
        let vault = vault.settings();
        Ok(Json(CreatedVault { vault, encrypted }))
    })
    .await
}

/// Whoever could take a way of others away could lock them out; so that is done where the store lies.
pub(crate) async fn add_way(
    State(shared): State<Shared>,
    Extension(caller): Extension<Caller>,
    Path(vault): Path<String>,
    body: Result<Json<NewWay>, JsonRejection>,
) -> Answer<Json<Told>> {
    let key = record::wrapped_key(&given(body)?.key);
    let key = key.ok_or_else(|| Refusal::invalid("this is no wrapped key"))?;
    blocking(move || {
        let vault = shared.vaults.find(&vault)?;
        let label = key.describe().label;
        let what = format!("one way more is to open it: {label}");
        shared.record(caller.entry(Event::Vault, Some(&vault.name), what))?;
        vault.add_way(&key)?;
        Ok(Json(Told { done: true }))
    })
    .await
}

pub(crate) async fn set_quota(
    State(shared): State<Shared>,
    Extension(caller): Extension<Caller>,
    Path(vault): Path<String>,
    body: Result<Json<NewQuota>, JsonRejection>,
) -> Answer<Json<Vault>> {
    let quota = given(body)?.quota_bytes;
    blocking(move || {
        let name = shared.vaults.find(&vault)?.name.clone();
        let what = match quota {
            None => "it is to have no quota".to_owned(),
            Some(quota) => format!("it is to have a quota of {quota} bytes"),
        };
        shared.record(caller.entry(Event::Vault, Some(&name), what))?;
        Ok(Json(shared.vaults.set_quota(&vault, quota)?.settings()))
    })
    .await
}

pub(crate) async fn vault(
    State(shared): State<Shared>,
    Path(vault): Path<String>,
) -> Answer<Json<VaultFigures>> {
    blocking(move || Ok(Json(shared.vaults.find(&vault)?.figures()?))).await
}

pub(crate) async fn tokens(State(shared): State<Shared>) -> Answer<Json<TokenList>> {
    blocking(move || {
        let tokens = shared.tokens.list()?;
        Ok(Json(TokenList { tokens }))
    })
    .await
}

pub(crate) async fn create_token(
    State(shared): State<Shared>,
    Extension(caller): Extension<Caller>,
    body: Result<Json<NewToken>, JsonRejection>,
) -> Answer<Json<CreatedToken>> {
    let new = given(body)?;
    blocking(move || {
        let roles: Vec<_> = new.roles.iter().map(Role::to_string).collect();
        let what = format!(
            "a token {} is to be made, with {}",
            new.name,
            roles.join(", ")
        );
        shared.record(caller.entry(Event::Token, None, what))?;
        let made = shared.tokens.create(new, shared.clock.wall())?;
        shared.note(caller.entry(Event::Token, None, format!("{} made", made.token.id)));
        Ok(Json(made))
    })
    .await
}

pub(crate) async fn revoke_token(
    State(shared): State<Shared>,
    Extension(caller): Extension<Caller>,
    Path(token): Path<String>,
) -> Answer<Json<RevokedToken>> {
    blocking(move || {
        let (place, now) = ((&shared.tokens, &shared.audit), shared.clock.wall());
        let entry = |what| caller.entry(Event::Token, None, what);
        Ok(Json(revoke(place, &token, now, entry)?))
    })
    .await
}

/// Which role a chore takes.
fn role_of(chore: &Chore) -> Role {
    match chore {
        Chore::Collect { .. } | Chore::Scrub { .. } => Role::Admin,
        Chore::Remove { .. }
        | Chore::DropSeed { .. }
        | Chore::BringBack { .. }
        | Chore::Hold { .. }
        | Chore::Lock { .. }
        | Chore::Apply { .. } => Role::Retention,
    }
}

pub(crate) async fn chore(
    State(shared): State<Shared>,
    Extension(caller): Extension<Caller>,
    Path(vault): Path<String>,
    body: Result<Json<Chore>, JsonRejection>,
) -> Answer<Json<Done>> {
    let chore = given(body)?;
    // One may take days, and a thread as long: others must find some.
    let room = shared.chores.try_take_one(&vault);
    let crowded = "too many chores are under way, in this vault or in all";
    let room = room.ok_or_else(|| Refusal::new(StatusCode::TOO_MANY_REQUESTS, crowded))?;
    on_a_thread(move || {
        let _room = room;
        let what = serde_json::to_string(&chore).expect("chores are plain data");
        let role = role_of(&chore);
        let vault = shared.vaults.find(&vault)?;
        let mut entry = caller.entry(Event::Chore, Some(&vault.name), what);
        if !caller.has(role) {
            entry.event = Event::Refused;
            entry.why = Some(format!("it lacks the role {role}"));
            shared.refused(entry)?;
            let sentence = format!("this takes a token with the role {role}");
            return Err(Refusal::new(StatusCode::FORBIDDEN, sentence));
        }
        // Written down first: what it destroys may be all that would tell of it.
        shared.record(entry)?;
        let (turn, store) = (vault.turn(), vault.store()?);
        let done = do_chore(&shared, &store, &chore);
        Ok(Json(done.inspect_err(|error| vault.lose(turn, error))?))
    })
    .await
}

fn do_chore(shared: &Shared, store: &Store, chore: &Chore) -> Result<Done, StoreError> {
    let ending = Arc::clone(shared);
    let context = Context {
        clock: &*shared.clock,
        progress: &|_, _| (),
        stop: &move || ending.is_ending(),
        threads: std::thread::available_parallelism().map_or(1, usize::from),
    };
    perform(store, chore, &context)
}

#[derive(Deserialize)]
pub(crate) struct After {
    #[serde(default)]
    after: u64,
}

pub(crate) async fn audit(
    State(shared): State<Shared>,
    query: Result<Query<After>, QueryRejection>,
) -> Answer<Json<AuditPage>> {
    let After { after } = asked(query)?;
    blocking(move || {
        let page = shared.audit.page(after);
        page.map(Json).map_err(|error| Refusal::failed(&error))
    })
    .await
}
