//! What every request has to pass before a route sees it: whom it names as its host, where it comes from, what it has shown,
//! what it sends. And what every answer says to browsers.
//!
//! Nothing here trusts an address or a forwarded header: every worker of this host can connect from 127.0.0.1.

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};

use crate::answer::{Refusal, in_own_words};
use crate::routes::Door;
use crate::serve::Shared;
use crate::upgrade;

/// What a request has shown: a token, or nothing.
#[derive(Debug, Clone)]
pub(crate) struct Shown(pub(crate) Option<String>);

/// The longest token that is passed on, in bytes.
const TOKEN_BYTES_MAX: usize = 256;

const ANSWER_HEADERS: [(HeaderName, &str); 6] = [
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::X_FRAME_OPTIONS, "DENY"),
    (header::REFERRER_POLICY, "no-referrer"),
    (header::CACHE_CONTROL, "no-store"),
    (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    (
        header::CONTENT_SECURITY_POLICY,
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'",
    ),
];

/// Lets a request through to its route, or answers it.
pub(crate) async fn guard(State(shared): State<Shared>, mut request: Request, next: Next) -> Response {
    let checked = check(&shared, &request);
    let is_work = is_work(&request);
    let is_held = upgrade::is_held(request.version(), request.headers());
    let mut response = match checked {
        Ok(shown) => {
            request.extensions_mut().insert(shown);
            let response = next.run(request).await;
            if is_work { response } else { in_own_words(response).await }
        }
        Err(refusal) => refusal.into_response(),
    };
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        return response;
    }
    let headers = response.headers_mut();
    if is_held {
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    // A worker's own answers are its own.
    if is_work && headers.contains_key(header::CONTENT_SECURITY_POLICY) {
        headers.entry(header::X_CONTENT_TYPE_OPTIONS).or_insert(HeaderValue::from_static("nosniff"));
        return response;
    }
    for (name, value) in ANSWER_HEADERS {
        headers.entry(name).or_insert(HeaderValue::from_static(value));
    }
    response
}

fn check(shared: &Shared, request: &Request) -> Result<Shown, Refusal> {
    let headers = request.headers();
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    if !shared.is_own_host(host) {
        let message = "this name is none of this gateway's: write it into `hosts` of [gateway]";
        return Err(Refusal::new(StatusCode::MISDIRECTED_REQUEST, "Misdirected request", message));
    }
    let shown = shown(headers)?;
    let asks_for = upgrade::wanted(request.version(), headers)?;
    if asks_for.is_some() && !is_work(request) {
        let message = "only HTTP is spoken here: another protocol can be had of a pool that serves it, below /w/POOL/";
        return Err(Refusal::new(StatusCode::BAD_REQUEST, "Bad request", message));
    }
    // Nobody but its pages keeps a browser from opening such a connection to wherever it likes.
    if asks_for.is_some() {
        check_origin(shared, headers)?;
    }
    if changes(request.method()) {
        check_origin(shared, headers)?;
        // What a worker is sent is for the worker to judge, and who may send it something for the daemon.
        if is_work(request) {
            return Ok(shown);
        }
        if shown.0.is_none() {
            return Err(Refusal::unauthorized());
        }
        check_content(headers)?;
    }
    Ok(shown)
}

/// Whether this is for a worker.
fn is_work(request: &Request) -> bool {
    request.uri().path().starts_with("/w/") || request.extensions().get::<Door>().is_some()
}

/// Whether a request of this method changes something.
fn changes(method: &Method) -> bool {
    !matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS)
}

/// The token that came along: in its own header and nowhere else.
fn shown(headers: &HeaderMap) -> Result<Shown, Refusal> {
    let mut all = headers.get_all(header::AUTHORIZATION).iter();
    let Some(value) = all.next() else { return Ok(Shown(None)) };
    if all.next().is_some() {
        return Err(Refusal::unauthorized());
    }
    let text = value.to_str().ok().and_then(|text| text.split_once(' '));
    let token = text.filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer")).map(|(_, token)| token.trim());
    match token {
        Some(token)
            if (1..=TOKEN_BYTES_MAX).contains(&token.len()) && token.bytes().all(|byte| byte.is_ascii_graphic()) =>
        {
            Ok(Shown(Some(token.to_owned())))
        }
        Some(_) | None => Err(Refusal::unauthorized()),
    }
}

/// A page of somebody else's is not to act for who looks at it, even with a token that it has got hold of.
pub(crate) fn check_origin(shared: &Shared, headers: &HeaderMap) -> Result<(), Refusal> {
    let refused = || Refusal::new(StatusCode::FORBIDDEN, "Forbidden", "a page of another origin cannot act here");
    if let Some(site) = headers.get("sec-fetch-site")
        && !matches!(site.as_bytes(), b"same-origin" | b"none")
    {
        return Err(refused());
    }
    let Some(origin) = headers.get(header::ORIGIN) else { return Ok(()) };
    let origin = origin.to_str().ok().and_then(|origin| origin.split_once("://")).ok_or_else(refused)?;
    if matches!(origin.0, "http" | "https") && shared.is_own_host(origin.1) { Ok(()) } else { Err(refused()) }
}

/// What is sent is JSON and says so: what a form can send is not.
fn check_content(headers: &HeaderMap) -> Result<(), Refusal> {
    let has_body = headers.contains_key(header::TRANSFER_ENCODING)
        || headers.get(header::CONTENT_LENGTH).is_some_and(|length| length.as_bytes() != b"0");
    let kind = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let essence = kind.split(';').next().unwrap_or_default().trim();
    let is_json = essence.eq_ignore_ascii_case("application/json");
    if (has_body || !kind.is_empty()) && !is_json {
        let message = "send JSON: Content-Type: application/json";
        return Err(Refusal::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "Unsupported media type", message));
    }
    if headers.contains_key(header::CONTENT_ENCODING) {
        let message = "send it as it is, without Content-Encoding";
        return Err(Refusal::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "Unsupported media type", message));
    }
    Ok(())
}
