//! `/livez`, `/readyz`, `/startupz`: for whoever keeps this running. They tell nothing but yes or no, and so to everybody.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use halsup::protocol::control::{DaemonState, NoParameters, Request, StatusReply};
use serde_json::json;

use crate::answer::Refusal;
use crate::guard::Shown;
use crate::serve::Shared;

/// The gateway answers.
pub(crate) async fn live() -> Response {
    Json(json!({ "status": "ok" })).into_response()
}

/// The daemon answers, and takes work; and so does the gateway.
pub(crate) async fn ready(State(shared): State<Shared>, shown: axum::Extension<Shown>) -> Response {
    if shared.is_draining() {
        let told = json!({ "status": "not ready", "gateway": "draining" });
        return (StatusCode::SERVICE_UNAVAILABLE, Json(told)).into_response();
    }
    tell(&shared, &shown, |state| state == DaemonState::Running).await
}

/// The daemon's first workers are there, or cannot be.
pub(crate) async fn started(State(shared): State<Shared>, shown: axum::Extension<Shown>) -> Response {
    tell(&shared, &shown, |state| state != DaemonState::Starting).await
}

async fn tell(shared: &Shared, shown: &Shown, good: impl Fn(DaemonState) -> bool) -> Response {
    match state(shared, shown).await {
        Ok(state) => {
            let word = serde_json::to_value(state).unwrap_or_default();
            let (code, status) =
                if good(state) { (StatusCode::OK, "ok") } else { (StatusCode::SERVICE_UNAVAILABLE, "not ready") };
            (code, Json(json!({ "status": status, "daemon": word }))).into_response()
        }
        Err(refusal) => refusal.into_response(),
    }
}

async fn state(shared: &Shared, shown: &Shown) -> Result<DaemonState, Refusal> {
    let (mut link, _) = shared.link(shown).await?;
    let status: StatusReply = link.call(&Request::Status(NoParameters {})).await?;
    Ok(status.state)
}
