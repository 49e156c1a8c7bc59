//! What is answered where something is refused or fails: one JSON object, whatever it is, that says what to do.

use axum::Json;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use halsup::protocol::control::{CallFailure, Error};
use halsup::protocol::service::ServiceError;
use serde_json::json;

use crate::link::LinkError;

/// A refusal.
#[derive(Debug)]
pub(crate) struct Refusal {
    status: StatusCode,
    error: &'static str,
    message: String,
    /// Whether the message is also told as `details`, for clients that look there for what is wrong with what they sent.
    has_details: bool,
}

impl Refusal {
    pub(crate) fn new(status: StatusCode, error: &'static str, message: impl Into<String>) -> Self {
        Self { status, error, message: message.into(), has_details: false }
    }

    /// The same, telling what is wrong also as `details`.
    pub(crate) fn with_details(mut self) -> Self {
        self.has_details = true;
        self
    }

    /// Its status.
    pub(crate) const fn status(&self) -> StatusCode {
        self.status
    }

    /// No token was shown, or none that is one.
    pub(crate) fn unauthorized() -> Self {
        let message = "show a token: Authorization: Bearer halsup_… (make one by: halsup token create NAME)";
        Self::new(StatusCode::UNAUTHORIZED, "Unauthorized", message)
    }

    /// Whether it is refused because the daemon cannot be reached.
    pub(crate) fn is_unavailable(&self) -> bool {
        self.status == StatusCode::SERVICE_UNAVAILABLE
    }

    /// What is here is asked by another method; which, the field `Allow` says.
    pub(crate) fn wrong_method() -> Self {
        let message = "this is asked by another method: see Allow";
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "Method not allowed", message)
    }

    pub(crate) fn not_found() -> Self {
        Self::new(StatusCode::NOT_FOUND, "Not found", "there is nothing of this name here")
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let mut told = json!({ "error": self.error, "message": self.message });
        if let Some(fields) = told.as_object_mut().filter(|_| self.has_details) {
            fields.insert("details".to_owned(), json!(self.message));
        }
        let mut response = (self.status, Json(told)).into_response();
        let headers = response.headers_mut();
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, header::HeaderValue::from_static("Bearer"));
        }
        if self.status == StatusCode::SERVICE_UNAVAILABLE || self.status == StatusCode::TOO_MANY_REQUESTS {
            headers.insert(header::RETRY_AFTER, header::HeaderValue::from_static("1"));
        }
        response
    }
}

/// The longest sentence of somebody else's that is passed on, in bytes.
const SENTENCE_BYTES_MAX: usize = 4 * 1024;

/// A refusal that did not come from here, as it would have: what takes requests apart says in plain text what is wrong with
/// one. Everything else is as it was.
pub(crate) async fn in_own_words(response: Response) -> Response {
    let status = response.status();
    let kind = response.headers().get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let is_own = kind.starts_with("application/json");
    if is_own || !(status.is_client_error() || status.is_server_error()) {
        return response;
    }
    let (parts, body) = response.into_parts();
    let said = axum::body::to_bytes(body, SENTENCE_BYTES_MAX).await.unwrap_or_default();
    let said = String::from_utf8_lossy(&said);
    let sentence = said.lines().next().filter(|line| !line.is_empty());
    let words = status.canonical_reason().unwrap_or("Refused");
    let message = sentence.unwrap_or("the request cannot be taken as it is");
    let mut answer = Refusal::new(status, words, message).into_response();
    for (name, value) in &parts.headers {
        if name != header::CONTENT_TYPE && name != header::CONTENT_LENGTH {
            answer.headers_mut().append(name, value.clone());
        }
    }
    answer
}

impl From<LinkError> for Refusal {
    fn from(error: LinkError) -> Self {
        let unavailable = |message: String| Self::new(StatusCode::SERVICE_UNAVAILABLE, "Service unavailable", message);
        match error {
            LinkError::Unreachable(_) | LinkError::Silent | LinkError::Busy => unavailable(error.to_string()),
            LinkError::NoToken => Self::unauthorized(),
            LinkError::Garbled => Self::new(StatusCode::BAD_GATEWAY, "Bad gateway", error.to_string()),
            LinkError::Failed(CallFailure::Control(refused)) => {
                let message = refused.to_string();
                match refused {
                    Error::NotFound { .. } => Self::new(StatusCode::NOT_FOUND, "Not found", message),
                    Error::Exists { .. } | Error::Refused { .. } => Self::new(StatusCode::CONFLICT, "Refused", message),
                    Error::Saturated {} | Error::ShuttingDown {} => unavailable(message),
                    Error::Failed { .. } | Error::RequestFailed(_) => {
                        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "Internal server error", message)
                    }
                }
            }
            LinkError::Failed(CallFailure::Service(ServiceError::PermissionDenied {})) => {
                Self::new(StatusCode::FORBIDDEN, "Forbidden", "this token does not allow that")
            }
            LinkError::Failed(failure) => Self::new(StatusCode::BAD_REQUEST, "Bad request", failure.to_string()),
        }
    }
}
