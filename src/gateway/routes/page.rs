//! The dashboard's files, as they were built in. They hold nothing of this daemon's, and so everybody may have them: what
//! the page shows it asks for.

use axum::body::Body;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Redirect, Response};
use sha2::{Digest as _, Sha256};

/// Asked for again each time, and sent only if it is another.
const CACHE: HeaderValue = HeaderValue::from_static("no-cache");
const SCRIPT: &str = "text/javascript; charset=utf-8";

/// `GET /`.
pub(crate) async fn root() -> Redirect {
    Redirect::temporary("/pool")
}

/// `GET /pool`.
pub(crate) async fn index(headers: HeaderMap) -> Response {
    file(&headers, "text/html; charset=utf-8", include_str!("../page/index.html"))
}

/// `GET /pool/style.css`.
pub(crate) async fn style(headers: HeaderMap) -> Response {
    file(&headers, "text/css; charset=utf-8", include_str!("../page/style.css"))
}

/// `GET /pool/icon.svg`.
pub(crate) async fn icon(headers: HeaderMap) -> Response {
    file(&headers, "image/svg+xml", include_str!("../page/icon.svg"))
}

/// `GET /pool/app.js`.
pub(crate) async fn app(headers: HeaderMap) -> Response {
    file(&headers, SCRIPT, include_str!("../page/app.js"))
}

/// `GET /pool/card.js`.
pub(crate) async fn card(headers: HeaderMap) -> Response {
    file(&headers, SCRIPT, include_str!("../page/card.js"))
}

/// `GET /pool/dom.js`.
pub(crate) async fn dom(headers: HeaderMap) -> Response {
    file(&headers, SCRIPT, include_str!("../page/dom.js"))
}

/// `GET /pool/stream.js`.
pub(crate) async fn stream(headers: HeaderMap) -> Response {
    file(&headers, SCRIPT, include_str!("../page/stream.js"))
}

fn file(headers: &HeaderMap, kind: &'static str, text: &'static str) -> Response {
    let digest: String = Sha256::digest(text.as_bytes()).iter().take(16).map(|byte| format!("{byte:02x}")).collect();
    let tag = format!("\"{digest}\"");
    let known = headers.get(header::IF_NONE_MATCH).and_then(|known| known.to_str().ok()).unwrap_or_default();
    let is_known = known.split(',').any(|known| known.trim().trim_start_matches("W/") == tag);
    let mut response = if is_known {
        (StatusCode::NOT_MODIFIED, Body::empty()).into_response()
    } else {
        ([(header::CONTENT_TYPE, kind)], text).into_response()
    };
    response.headers_mut().insert(header::CACHE_CONTROL, CACHE);
    if let Ok(tag) = HeaderValue::from_str(&tag) {
        response.headers_mut().insert(header::ETAG, tag);
    }
    response
}

#[cfg(test)]
mod tests {
    /// What puts text where it is read as markup or as a program.
    const SINKS: [&str; 12] = [
        "innerHTML",
        "outerHTML",
        "insertAdjacentHTML",
        "document.write",
        "eval(",
        "new Function",
        "DOMParser",
        "srcdoc",
        "createContextualFragment",
        "setHTML",
        "javascript:",
        "setTimeout(\"",
    ];

    #[test]
    fn nothing_of_the_page_is_read_as_markup_or_comes_from_elsewhere() {
        let index = include_str!("../page/index.html");
        let files = [
            index,
            include_str!("../page/style.css"),
            include_str!("../page/app.js"),
            include_str!("../page/card.js"),
            include_str!("../page/dom.js"),
            include_str!("../page/stream.js"),
        ];
        for file in files {
            for sink in SINKS {
                assert!(!file.contains(sink), "{sink}");
            }
            for address in
                file.match_indices("://").map(|(at, _)| &file[at.saturating_sub(5)..(at + 20).min(file.len())])
            {
                assert!(address.contains("http://www.w3.org/"), "{address}");
            }
        }
        for inline in ["style=", "<style", "onclick", "onload", "<script>"] {
            assert!(!index.contains(inline), "{inline}");
        }
        assert_eq!(index.matches("<script").count(), 1);
    }
}
