//! Every call there is, and the role it takes: the one table that the server is built from.
//!
//! Rule: what is not in the table does not exist, and nothing is in it without saying who may.

use axum::extract::DefaultBodyLimit;
use axum::http::StatusCode;
use axum::routing::{MethodRouter, delete, get, post, put};
use axum::{Router, middleware};

use crate::api::{self, Role};
use crate::chore::Chore;
use crate::server::audit::AuditPage;
use crate::server::limits::JSON_BYTES_MAX;
use crate::server::openapi::{Content, Parameter, json};
use crate::server::refusal::Refusal;
use crate::server::{Shared, admin, guard, health, openapi, read, write};
use crate::wire::{ASK_BYTES_MAX, REGIONS_BYTES_MAX};

/// Who may call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Needs {
    /// Everybody.
    Nothing,
    /// Whoever has one of these roles.
    One(&'static [Role]),
}

/// A call.
#[derive(Clone, Copy)]
pub(crate) struct Route {
    pub(crate) method: &'static str,
    pub(crate) path: &'static str,
    pub(crate) needs: Needs,
    /// Longest body of a request, in bytes.
    pub(crate) body_max: usize,
    /// What is asked for beside the path.
    pub(crate) asks: &'static [Parameter],
    /// What it takes, and what it gives.
    pub(crate) takes: Content,
    pub(crate) gives: Content,
    /// What it does, for who reads `/v1/openapi.json`.
    pub(crate) does: &'static str,
    handler: fn() -> MethodRouter<Shared>,
}

const NOBODY: Needs = Needs::Nothing;
const ADMIN: Needs = Needs::One(&[Role::Admin]);
const RESTORE: Needs = Needs::One(&[Role::Restore]);
/// What it takes to encrypt for a vault, or to decrypt: which store it is, and its key, wrapped.
const KEYS: Needs = Needs::One(&Role::ALL);
/// What the points are, and nothing of what is in them.
const SEE: Needs = Needs::One(&[Role::Restore, Role::Retention]);
const SHIP: Needs = Needs::One(&[Role::Ship]);
const LOOK_AFTER: Needs = Needs::One(&[Role::Retention, Role::Admin]);

macro_rules! route {
    ($method:literal $path:literal, $needs:expr, $body_max:expr, $verb:ident($handler:path), $asks:expr, $takes:expr => $gives:expr, $does:literal) => {
        Route {
            method: $method,
            path: $path,
            needs: $needs,
            body_max: $body_max,
            asks: $asks,
            takes: $takes,
            gives: $gives,
            does: $does,
            handler: || $verb($handler),
        }
    };
}

const RANGE: &[Parameter] = &[Parameter {
    name: "Range",
    lies_in: "header",
    required: true,
    kind: "string",
}];

const fn query(name: &'static str, required: bool, kind: &'static str) -> Parameter {
    Parameter {
        name,
        lies_in: "query",
        required,
        kind,
    }
}

/// Drafts of one ship live as long as somebody is at work on one of them.
const OF_SHIP: &[Parameter] = &[
    query("ship", false, "string"),
    query("number", false, "integer"),
];

/// The table.
pub(crate) const ROUTES: &[Route] = &[
    route!("GET" "/healthz", NOBODY, 0, get(health::alive), &[], Content::Nothing => Content::Text, "Whether the server lives"),
    route!("GET" "/readyz", NOBODY, 0, get(health::ready), &[], Content::Nothing => Content::Text, "Whether it takes work; 503 while it ends"),
    route!("GET" "/metrics", ADMIN, 0, get(health::metrics), &[], Content::Nothing => Content::Text, "What the server counts, for Prometheus"),
    route!("GET" "/v1/openapi.json", NOBODY, 0, get(openapi::document), &[], Content::Nothing => json::<serde_json::Value>(), "This document"),
    route!("GET" "/v1/vaults", LOOK_AFTER, 0, get(admin::vaults), &[], Content::Nothing => json::<api::VaultList>(), "The vaults that the caller may see"),
    route!("POST" "/v1/vaults", ADMIN, JSON_BYTES_MAX, post(admin::create_vault), &[], json::<api::NewVault>() => json::<api::CreatedVault>(), "Make a vault"),
    route!("GET" "/v1/vaults/{vault}", LOOK_AFTER, 0, get(admin::vault), &[], Content::Nothing => json::<api::VaultFigures>(), "A vault: figures, quota, groups"),
    route!("PUT" "/v1/vaults/{vault}/quota", ADMIN, JSON_BYTES_MAX, put(admin::set_quota), &[], json::<api::NewQuota>() => json::<api::Vault>(), "Give a vault another quota"),
    route!("POST" "/v1/vaults/{vault}/chores", LOOK_AFTER, JSON_BYTES_MAX, post(admin::chore), &[], json::<Chore>() => json::<serde_json::Value>(), "Look after a vault: collect and scrub take admin, all else takes retention"),
    route!("GET" "/v1/tokens", ADMIN, 0, get(admin::tokens), &[], Content::Nothing => json::<api::TokenList>(), "All tokens, without their secrets"),
    route!("POST" "/v1/tokens", ADMIN, JSON_BYTES_MAX, post(admin::create_token), &[], json::<api::NewToken>() => json::<api::CreatedToken>(), "Make a token; its text is told once"),
    route!("DELETE" "/v1/tokens/{token}", ADMIN, 0, delete(admin::revoke_token), &[], Content::Nothing => json::<api::RevokedToken>(), "Take a token back"),
    route!("GET" "/v1/audit", ADMIN, 0, get(admin::audit), &[query("after", false, "integer")], Content::Nothing => json::<AuditPage>(), "Lines of the audit log after number ?after="),
    route!("GET" "/v1/vaults/{vault}/list", SEE, 0, get(read::list), &[query("folder", true, "string")], Content::Nothing => json::<api::ObjectList>(), "Names and lengths of the objects in ?folder="),
    route!("GET" "/v1/vaults/{vault}/keys", KEYS, 0, get(read::list_keys), &[], Content::Nothing => json::<api::ObjectList>(), "Names and lengths of the objects that hold the vault's key, wrapped"),
    route!("POST" "/v1/vaults/{vault}/keys", ADMIN, JSON_BYTES_MAX, post(admin::add_way), &[], json::<api::NewWay>() => json::<api::Told>(), "One way more to open an encrypted vault; those that there are stay"),
    route!("GET" "/v1/vaults/{vault}/objects/keys/{name}", KEYS, 0, get(read::object), RANGE, Content::Nothing => Content::Bytes, "An object that holds the vault's key, wrapped"),
    route!("GET" "/v1/vaults/{vault}/objects/format", KEYS, 0, get(read::object), RANGE, Content::Nothing => Content::Bytes, "What makes the vault a store"),
    route!("GET" "/v1/vaults/{vault}/objects/catalog/{name}", SEE, 0, get(read::object), RANGE, Content::Nothing => Content::Bytes, "A part of the catalog: which points there are"),
    route!("GET" "/v1/vaults/{vault}/objects/{*name}", RESTORE, 0, get(read::object), RANGE, Content::Nothing => Content::Bytes, "A range of a stored object"),
    route!("POST" "/v1/vaults/{vault}/drafts", SHIP, JSON_BYTES_MAX, post(write::begin), OF_SHIP, json::<api::DraftBase>() => json::<api::DraftId>(), "Begin an image, empty or on one that the vault holds; once for each ?number= of a ?ship="),
    route!("DELETE" "/v1/vaults/{vault}/drafts/{draft}", SHIP, 0, delete(write::give_up), &[], Content::Nothing => json::<api::Told>(), "Give an image up"),
    route!("POST" "/v1/vaults/{vault}/drafts/{draft}/ask", SHIP, ASK_BYTES_MAX, post(write::ask), &[], Content::Bytes => Content::Bytes, "Lay known chunks into the image; answers which are lacking"),
    route!("POST" "/v1/vaults/{vault}/drafts/{draft}/regions", SHIP, REGIONS_BYTES_MAX, post(write::regions), &[], Content::Bytes => json::<api::Told>(), "Store chunks that were lacking"),
    route!("POST" "/v1/vaults/{vault}/drafts/{draft}/zero", SHIP, JSON_BYTES_MAX, post(write::zero), &[], json::<api::ZeroRanges>() => json::<api::Told>(), "Make ranges of the image zero"),
    route!("POST" "/v1/vaults/{vault}/drafts/{draft}/finish", SHIP, 0, post(write::finish), &[query("root", false, "string")], Content::Nothing => json::<api::FinishedDraft>(), "Complete the image; with ?root= refused if its content comes to something else"),
    route!("POST" "/v1/vaults/{vault}/points", SHIP, JSON_BYTES_MAX, post(write::commit), &[], json::<api::NewPoint>() => json::<api::Point>(), "List a point of complete images; once, however often it is asked for"),
    route!("GET" "/v1/vaults/{vault}/groups/{group}/points", SHIP, 0, get(write::points), &[query("lineage", false, "string")], Content::Nothing => json::<api::PointList>(), "A group's points, newest first; of one ?lineage="),
    route!("GET" "/v1/vaults/{vault}/seeds/{group}", SHIP, 0, get(write::seed), &[], Content::Nothing => json::<api::SeedFound>(), "How far a group's first copy is"),
    route!("PUT" "/v1/vaults/{vault}/seeds/{group}", SHIP, JSON_BYTES_MAX, put(write::save_seed), &[], json::<api::Seed>() => json::<api::Told>(), "Save how far it is"),
];

/// The calls, each behind its guard.
pub(crate) fn router(shared: &Shared) -> Router {
    let guarded = |router: Router<Shared>, route: &'static Route| {
        let guard = middleware::from_fn_with_state((shared.clone(), route), guard::guard);
        router.route(route.path, (route.handler)().route_layer(guard))
    };
    let all = ROUTES.iter().fold(Router::new(), guarded);
    // The guard has read each body, as long as its call takes.
    let all = all
        .layer(DefaultBodyLimit::disable())
        .fallback(async || Refusal::missing("there is no such call"))
        .method_not_allowed_fallback(async || {
            let sentence = "there is no such call of that method";
            Refusal::new(StatusCode::METHOD_NOT_ALLOWED, sentence)
        });
    all.with_state(shared.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_call_is_listed_once_and_says_what_it_does() {
        let calls: Vec<_> = ROUTES
            .iter()
            .map(|route| (route.method, route.path))
            .collect();
        for (number, call) in calls.iter().enumerate() {
            assert!(!calls[..number].contains(call), "{call:?}");
        }
        assert!(ROUTES.iter().all(|route| !route.does.is_empty()));
    }
}
