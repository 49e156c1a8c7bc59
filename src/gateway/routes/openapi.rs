//! `GET /openapi.json`: what there is to ask, for programs. Written by hand, and held against the table of routes.

use axum::http::header;
use axum::response::{IntoResponse as _, Response};

const DOCUMENT: &str = include_str!("openapi.json");

/// `GET /openapi.json`. It tells nothing of this daemon, and so it is told to everybody.
pub(crate) async fn document() -> Response {
    ([(header::CONTENT_TYPE, "application/json")], DOCUMENT).into_response()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::Value;

    use super::*;

    fn document() -> Value {
        serde_json::from_str(DOCUMENT).unwrap()
    }

    #[test]
    fn it_tells_of_every_route_and_of_no_other() {
        let document = document();
        let told: BTreeSet<String> = document["paths"]
            .as_object()
            .unwrap()
            .iter()
            .flat_map(|(path, methods)| {
                methods
                    .as_object()
                    .unwrap()
                    .keys()
                    .filter(|key| *key != "parameters")
                    .map(move |method| format!("{method} {path}"))
            })
            .collect();
        let routed: BTreeSet<String> =
            super::super::table().iter().map(|(method, path, _)| format!("{method} {path}")).collect();
        assert_eq!(told, routed);
    }

    #[test]
    fn what_it_refers_to_is_there_and_what_changes_something_says_what_it_needs() {
        let document = document();
        assert_eq!(document["openapi"], "3.1.0");
        let mut left = vec![&document];
        while let Some(value) = left.pop() {
            if let Some(reference) = value.get("$ref").and_then(Value::as_str) {
                assert!(document.pointer(reference.trim_start_matches('#')).is_some(), "{reference}");
            }
            left.extend(value.as_object().into_iter().flat_map(serde_json::Map::values));
            left.extend(value.as_array().into_iter().flatten());
        }
        for (path, methods) in document["paths"].as_object().unwrap() {
            for (method, operation) in methods.as_object().unwrap().iter().filter(|(key, _)| *key != "parameters") {
                assert!(operation["summary"].is_string() && operation["operationId"].is_string(), "{method} {path}");
                assert!(operation["responses"].as_object().is_some_and(|all| !all.is_empty()), "{method} {path}");
                if method == "post" {
                    assert!(operation["security"][0]["token"].is_array(), "{method} {path}");
                    assert!(operation["responses"]["401"].is_object(), "{method} {path}");
                }
                for name in path.split('{').skip(1).filter_map(|rest| rest.split('}').next()) {
                    let parameters = operation["parameters"].as_array().unwrap();
                    let known = parameters.iter().any(|one| one["name"] == name && one["required"] == true);
                    assert!(known, "{name} of {path}");
                }
            }
        }
    }
}
