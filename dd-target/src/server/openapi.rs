//! The calls as OpenAPI has them, made of the one table.

use axum::Json;
use axum::extract::State;
use serde_json::{Map, Value, json};

use crate::server::Shared;
use crate::server::roles::{Needs, Route};

pub(crate) async fn document(State(shared): State<Shared>) -> Json<Value> {
    Json(shared.openapi.clone())
}

/// The document.
pub(crate) fn of(routes: &[Route]) -> Value {
    let mut paths = Map::new();
    for route in routes {
        let path = paths
            .entry(route.path.replace("{*", "{"))
            .or_insert_with(|| json!({}));
        path[route.method.to_ascii_lowercase()] = operation(route);
    }
    json!({
        "openapi": "3.1.0",
        "info": { "title": "Standin target", "version": "1" },
        "paths": paths,
        "components": {
            "securitySchemes": { "token": { "type": "http", "scheme": "bearer", "bearerFormat": "standin-ID-SECRET" } },
            "schemas": { "Problem": {
                "type": "object",
                "required": ["error", "kind"],
                "properties": {
                    "error": { "type": "string" },
                    "kind": { "enum": ["failed", "usage", "fenced", "retry", "damaged"] },
                    "hint": { "type": ["string", "null"] },
                },
            } },
        },
    })
}

fn operation(route: &Route) -> Value {
    let names = route.path.split('/').filter_map(|part| {
        let name = part.strip_prefix('{')?.strip_suffix('}')?;
        Some(name.trim_start_matches('*'))
    });
    let parameter = |name| json!({ "name": name, "in": "path", "required": true, "schema": { "type": "string" } });
    let problem = json!({ "$ref": "#/components/schemas/Problem" });
    let mut operation = json!({
        "summary": route.does,
        "parameters": names.map(parameter).collect::<Vec<_>>(),
        "responses": {
            "2XX": { "description": "done" },
            "default": { "description": "refused, or failed", "content": { "application/json": { "schema": problem } } },
        },
    });
    if let Needs::One(roles) = route.needs {
        let roles: Vec<_> = roles.iter().map(ToString::to_string).collect();
        operation["description"] = format!("Takes the role {}.", roles.join(" or ")).into();
        operation["security"] = json!([{ "token": [] }]);
    }
    operation
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::roles::ROUTES;

    #[test]
    fn every_call_of_the_table_is_in_the_document_with_its_role() {
        let document = of(ROUTES);
        for route in ROUTES {
            let path = &document["paths"][route.path.replace("{*", "{")];
            let operation = &path[route.method.to_ascii_lowercase()];
            assert_eq!(operation["summary"], route.does);
            let open = route.needs == Needs::Nothing;
            assert_eq!(operation["security"].is_null(), open, "{}", route.path);
        }
    }
}
