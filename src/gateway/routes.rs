//! The table of routes. What is not in it is nothing, and says so only to who may know.

mod cluster;
mod execute;
mod health;
mod hello;
mod metrics;
mod openapi;
mod orders;
mod page;
mod pooled;
mod sessions;
mod story;
mod streams;
mod tasks;
mod work;

use axum::extract::{DefaultBodyLimit, State};
use axum::response::IntoResponse as _;
use axum::routing::{MethodRouter, any, delete, get, post};
use axum::{Extension, Router, middleware};

pub(crate) use work::{Door, Peer};

use crate::answer::Refusal;
use crate::counts::count;
use crate::guard::{Shown, guard};
use crate::serve::Shared;

/// The longest body where a route says nothing else, in bytes.
const BODY_BYTES_MAX: usize = 256 * 1024;

/// Requests for workers, in the table and in what is counted.
pub(crate) const WORK: &str = "/w/{pool}/{*path}";

/// Method and path of all that is answered, and by what. `openapi.json` tells of each.
fn table() -> Vec<(&'static str, &'static str, MethodRouter<Shared>)> {
    vec![
        ("get", "/livez", get(health::live)),
        ("get", "/readyz", get(health::ready)),
        ("get", "/startupz", get(health::started)),
        ("get", "/health", get(pooled::health)),
        ("get", "/health/pool", get(pooled::pool_health)),
        ("get", "/health/pool/memory", get(pooled::pool_memory)),
        ("post", "/pool/reset-circuit-breakers", post(pooled::reset_breakers)),
        ("get", "/health/live", get(cluster::live)),
        ("get", "/health/ready", get(cluster::ready)),
        ("get", "/hello", get(hello::hello)),
        ("post", "/run", post(tasks::run)),
        ("get", "/tasks", get(tasks::list)),
        ("post", "/tasks", post(tasks::submitted)),
        ("get", "/tasks/{task}", get(tasks::show)),
        ("delete", "/tasks/{task}", delete(tasks::cancel)),
        ("get", "/stream/{task}", get(story::story)),
        ("post", "/execute", post(execute::execute)),
        ("get", "/status", get(cluster::state)),
        ("get", "/capabilities", get(cluster::capabilities)),
        ("get", "/processes", get(cluster::processes)),
        ("post", "/processes/cleanup", post(cluster::cleanup)),
        ("get", "/workers", get(cluster::workers)),
        ("get", "/sessions", get(sessions::list)),
        ("post", "/sessions", post(sessions::open)),
        ("get", "/sessions/{session}", get(sessions::show)),
        ("delete", "/sessions/{session}", delete(sessions::close)),
        ("post", "/sessions/{session}/tasks", post(sessions::task)),
        ("get", "/pty/status", get(tasks::pty)),
        ("post", "/pty/switch", post(tasks::switch)),
        ("get", "/metrics", get(metrics::metrics)),
        ("get", "/openapi.json", get(openapi::document)),
        ("post", "/drain", post(orders::drain)),
        ("get", "/events", get(streams::events)),
        ("get", "/api/watch", get(streams::watch)),
        ("get", "/api/logs/{worker}", get(streams::logs)),
        ("post", "/api/ticket", post(streams::ticket)),
        ("get", "/api/token", get(streams::token)),
        ("post", "/api/reset/{target}", post(orders::reset)),
        ("get", "/", get(page::root)),
        ("get", "/pool", get(page::index)),
        ("get", "/pool/app.js", get(page::app)),
        ("get", "/pool/card.js", get(page::card)),
        ("get", "/pool/dom.js", get(page::dom)),
        ("get", "/pool/stream.js", get(page::stream)),
        ("get", "/pool/style.css", get(page::style)),
        ("get", "/pool/icon.svg", get(page::icon)),
    ]
}

/// All that is answered.
pub(crate) fn router(shared: Shared) -> Router {
    table()
        .into_iter()
        .fold(Router::new(), |router, (_, path, route)| router.route(path, route))
        .route("/w/{pool}", any(work::work))
        .route("/w/{pool}/", any(work::work))
        .route(WORK, any(work::work))
        .fallback(nothing)
        .method_not_allowed_fallback(wrong_method)
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .layer(middleware::from_fn_with_state(shared.clone(), guard))
        .layer(middleware::from_fn_with_state(shared.clone(), count))
        .with_state(shared)
}

/// What is answered where one pool is alone: everything by its workers.
pub(crate) fn door(shared: Shared, door: Door) -> Router {
    Router::new()
        .fallback(work::work)
        .layer(middleware::from_fn_with_state(shared.clone(), guard))
        .layer(middleware::from_fn_with_state(shared.clone(), count))
        .layer(Extension(door))
        .with_state(shared)
}

/// Nothing of this name: said after it is known that the caller may look at all.
async fn nothing(State(shared): State<Shared>, Extension(shown): Extension<Shown>) -> axum::response::Response {
    match shared.link(&shown).await {
        Ok(_) => Refusal::not_found().into_response(),
        Err(refusal) => refusal.into_response(),
    }
}

/// Something else is here: said to who may look.
async fn wrong_method(State(shared): State<Shared>, Extension(shown): Extension<Shown>) -> axum::response::Response {
    match shared.link(&shown).await {
        Ok(_) => Refusal::wrong_method().into_response(),
        Err(refusal) => refusal.into_response(),
    }
}
