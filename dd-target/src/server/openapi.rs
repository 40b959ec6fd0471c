//! The calls as OpenAPI has them, made of the one table.

use axum::body::Bytes;
use axum::extract::State;
use axum::http::header;
use axum::response::IntoResponse;
use schemars::generate::{SchemaGenerator, SchemaSettings};
use schemars::{JsonSchema, Schema};
use serde_json::{Map, Value, json};

use crate::problem::Problem;
use crate::server::Shared;
use crate::server::roles::{Needs, Route};

/// All who ask share its bytes: it is there for strangers.
pub(crate) async fn document(State(shared): State<Shared>) -> impl IntoResponse {
    let head = [(header::CONTENT_TYPE, "application/json")];
    (head, shared.openapi.clone())
}

/// The document as it is sent.
pub(crate) fn text(routes: &[Route]) -> Bytes {
    of(routes).to_string().into()
}

/// What a body holds.
#[derive(Clone, Copy)]
pub(crate) enum Content {
    Nothing,
    Json(fn(&mut SchemaGenerator) -> Schema),
    /// docs/formats/wire.md draws them.
    Bytes,
    Text,
}

/// A document of this type.
pub(crate) const fn json<T: JsonSchema>() -> Content {
    Content::Json(|generator| generator.subschema_for::<T>())
}

/// What is asked for beside the path.
pub(crate) struct Parameter {
    pub(crate) name: &'static str,
    /// `query` or `header`.
    pub(crate) lies_in: &'static str,
    pub(crate) required: bool,
    /// `string` or `integer`.
    pub(crate) kind: &'static str,
}

/// The document.
fn of(routes: &[Route]) -> Value {
    let settings = SchemaSettings::draft2020_12();
    let settings = settings.with(|settings| {
        settings.definitions_path = "/components/schemas".into();
        settings.meta_schema = None;
    });
    let mut generator = settings.into_generator();
    let mut paths = Map::new();
    for route in routes {
        let path = paths
            .entry(route.path.replace("{*", "{"))
            .or_insert_with(|| json!({}));
        path[route.method.to_ascii_lowercase()] = operation(route, &mut generator);
    }
    json!({
        "openapi": "3.1.0",
        "info": { "title": "Standin target", "version": "1" },
        "paths": paths,
        "components": {
            "securitySchemes": { "token": { "type": "http", "scheme": "bearer", "bearerFormat": "standin-ID-SECRET" } },
            "schemas": generator.take_definitions(true),
        },
    })
}

fn operation(route: &Route, generator: &mut SchemaGenerator) -> Value {
    let names = route.path.split('/').filter_map(|part| {
        let name = part.strip_prefix('{')?.strip_suffix('}')?;
        Some(name.trim_start_matches('*'))
    });
    let in_path = |name| json!({ "name": name, "in": "path", "required": true, "schema": { "type": "string" } });
    let beside = |asked: &Parameter| json!({ "name": asked.name, "in": asked.lies_in, "required": asked.required, "schema": { "type": asked.kind } });
    let parameters = names.map(in_path).chain(route.asks.iter().map(beside));
    let parameters: Vec<_> = parameters.collect();
    let done = match media(route.gives, generator) {
        None => json!({ "description": "done" }),
        Some(content) => json!({ "description": "done", "content": content }),
    };
    let problem = media(json::<Problem>(), generator);
    let mut operation = json!({
        "summary": route.does,
        "parameters": parameters,
        "responses": {
            "2XX": done,
            "default": { "description": "refused, or failed", "content": problem },
        },
    });
    if let Some(content) = media(route.takes, generator) {
        operation["requestBody"] = json!({ "required": true, "content": content });
    }
    if let Needs::One(roles) = route.needs {
        let roles: Vec<_> = roles.iter().map(ToString::to_string).collect();
        operation["description"] = format!("Takes the role {}.", roles.join(" or ")).into();
        operation["security"] = json!([{ "token": [] }]);
    }
    operation
}

/// A body, by its media type.
fn media(content: Content, generator: &mut SchemaGenerator) -> Option<Value> {
    let (media, schema) = match content {
        Content::Nothing => return None,
        Content::Json(schema) => ("application/json", schema(generator).to_value()),
        Content::Bytes => (
            "application/octet-stream",
            json!({ "type": "string", "format": "binary" }),
        ),
        Content::Text => ("text/plain", json!({ "type": "string" })),
    };
    Some(json!({ media: { "schema": schema } }))
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
            assert_eq!(operation["requestBody"].is_null(), route.body_max == 0);
        }
    }

    #[test]
    fn whatever_the_document_refers_to_is_in_it() {
        fn references(value: &Value, found: &mut Vec<String>) {
            match value {
                Value::Object(map) => {
                    found.extend(map.get("$ref").and_then(Value::as_str).map(str::to_owned));
                    map.values().for_each(|value| references(value, found));
                }
                Value::Array(all) => all.iter().for_each(|value| references(value, found)),
                _ => {}
            }
        }
        let document = of(ROUTES);
        let mut found = Vec::new();
        references(&document, &mut found);
        assert!(!found.is_empty());
        for reference in found {
            let path = reference.strip_prefix('#').unwrap();
            assert!(document.pointer(path).is_some(), "{reference}");
        }
    }
}
