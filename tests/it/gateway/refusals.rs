//! Refusals: each is JSON with a sentence, whoever makes it.

use super::Served;
use crate::http::{ask, get};
use crate::needs::needs;

#[test]
fn every_refusal_is_json_with_a_sentence() {
    needs!(Root, CgroupTree);
    let served = Served::start("[pool.web]\ncommand = ['sleep', 'infinity']\n");
    let bearer = format!("Bearer {}", served.token("acts", &["--scope", "admin"]));
    let json = "application/json";
    let long = format!("{{\"path\": \"{}\"}}", "x".repeat(300 * 1024));
    for (status, method, path, body) in [
        (400, "POST", "/api/ticket", "{"),
        (400, "POST", "/api/ticket", "\u{1}"),
        (422, "POST", "/api/ticket", "{}"),
        (422, "POST", "/api/ticket", "{\"path\": 1}"),
        (422, "POST", "/api/ticket", "{\"path\": \"/events\", \"more\": 1}"),
        (413, "POST", "/api/ticket", &long),
        (413, "POST", "/drain", &long),
        (400, "POST", "/drain", "{\"drian\": true}"),
        (400, "GET", "/events?nothing=1", ""),
        (400, "GET", "/api/logs/web.0?lines=many", ""),
        (400, "GET", "/api/logs/%ff", ""),
        (404, "GET", "/nothing", ""),
        (404, "POST", "/nothing", ""),
        (405, "POST", "/livez", ""),
        (405, "DELETE", "/health", ""),
        (405, "GET", "/drain", ""),
        (405, "PUT", "/tasks/x", ""),
    ] {
        let mut fields = vec![("Authorization", bearer.as_str())];
        if !body.is_empty() {
            fields.push(("Content-Type", json));
        }
        let got = ask(served.port, method, path, &fields, body);
        let shown = format!("{method} {path}: {} {}", got.status, String::from_utf8_lossy(&got.body));
        assert_eq!(got.status, status, "{shown}");
        assert_eq!(got.field("content-type"), Some(json), "{shown}");
        let told = got.json();
        assert!(told["error"].as_str().is_some_and(|error| !error.is_empty()), "{shown}");
        let message = told["message"].as_str().unwrap_or_default();
        assert!(message.len() > 15 && !message.contains('\n'), "{shown}");
        assert_eq!(got.field("allow").is_some(), status == 405, "{shown}");
        assert_eq!(got.field("x-content-type-options"), Some("nosniff"), "{shown}");
    }
    // Without a body where there is to be one, and without a token where nothing is told without.
    let none = ask(served.port, "POST", "/api/ticket", &[("Authorization", &bearer)], "");
    assert!(matches!(none.status, 400 | 415), "{}", none.status);
    assert!(none.json()["message"].as_str().is_some_and(|message| message.len() > 15));
    assert_eq!(get(served.port, "/drain").json()["error"], "Method not allowed");
}
