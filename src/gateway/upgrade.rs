//! Whether a request asks for another protocol (RFC 9110, 7.8), and which of those that it names may be passed on.

use axum::http::header::{self, HeaderValue};
use axum::http::{HeaderMap, StatusCode, Version};

use crate::answer::Refusal;

/// The longest list of protocols, in bytes.
const PROTOCOLS_BYTES_MAX: usize = 256;

/// Whether the value of a field `Connection` names `upgrade`. Behind a request that says so stands perhaps no other request.
pub(crate) fn names_upgrade(value: &[u8]) -> bool {
    value.split(|byte| *byte == b',').any(|name| name.trim_ascii().eq_ignore_ascii_case(b"upgrade"))
}

/// Whether a connection is ended by the answer to this request unless that changes its protocol: what was kept of what came
/// behind it has not been looked at.
pub(crate) fn is_held(version: Version, headers: &HeaderMap) -> bool {
    let names = || headers.get_all(header::CONNECTION).iter().any(|value| names_upgrade(value.as_bytes()));
    version == Version::HTTP_11 && names()
}

/// The protocols that a request asks for, as its worker is told them; `None` where it asks for none, or for such as are not
/// passed on and may be passed over.
///
/// # Errors
/// 400 where what it asks for cannot be had this way.
pub(crate) fn wanted(version: Version, headers: &HeaderMap) -> Result<Option<HeaderValue>, Refusal> {
    if !is_held(version, headers) {
        return Ok(None);
    }
    let refused = |message: &str| Err(Refusal::new(StatusCode::BAD_REQUEST, "Bad request", message));
    let mut protocols = Vec::new();
    for value in headers.get_all(header::UPGRADE) {
        let Ok(text) = value.to_str() else { return refused("the protocols in Upgrade are no names") };
        protocols.extend(text.split(',').map(str::trim).filter(|name| !name.is_empty() && !is_http(name)));
    }
    if protocols.is_empty() {
        return Ok(None);
    }
    let has_length = headers.get(header::CONTENT_LENGTH).is_some_and(|length| length.as_bytes() != b"0");
    if has_length || headers.contains_key(header::TRANSFER_ENCODING) {
        return refused("a request that changes the protocol of its connection has no body");
    }
    let protocols = protocols.join(", ");
    match HeaderValue::try_from(&protocols) {
        Ok(value) if protocols.len() <= PROTOCOLS_BYTES_MAX => Ok(Some(value)),
        Ok(_) | Err(_) => refused("the protocols in Upgrade are too many"),
    }
}

/// Whether this is HTTP by another version, or TLS. It could carry requests past everything that is looked at here; whoever
/// offers it is content without.
fn is_http(name: &str) -> bool {
    let name = name.split('/').next().unwrap_or_default();
    ["h2c", "h2", "h3", "http", "tls"].iter().any(|other| name.eq_ignore_ascii_case(other))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(fields: &[(&'static str, &'static str)]) -> Result<Option<String>, StatusCode> {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(*name, HeaderValue::from_static(value));
        }
        let told = wanted(Version::HTTP_11, &headers).map_err(|refusal| refusal.status())?;
        Ok(told.map(|value| value.to_str().unwrap().to_owned()))
    }

    #[test]
    fn what_may_be_asked_for_is_passed_on_and_http_is_passed_over() {
        let own = |name: &str| Ok(Some(name.to_owned()));
        assert_eq!(asked(&[("connection", "Upgrade"), ("upgrade", "websocket")]), own("websocket"));
        assert_eq!(asked(&[("connection", "keep-alive, UPGRADE"), ("upgrade", "tcp , x/1")]), own("tcp, x/1"));
        assert_eq!(asked(&[("connection", "Upgrade"), ("upgrade", "h2c, websocket")]), own("websocket"));
        for none in ["h2c", "HTTP/2.0", "TLS/1.3", "h2", ""] {
            assert_eq!(asked(&[("connection", "Upgrade"), ("upgrade", none)]), Ok(None), "{none}");
        }
        assert_eq!(asked(&[("connection", "close"), ("upgrade", "websocket")]), Ok(None), "it is not the connection's");
        assert_eq!(asked(&[("connection", "upgrade")]), Ok(None));
        assert_eq!(asked(&[("connection", "upgrades"), ("upgrade", "websocket")]), Ok(None));
    }

    #[test]
    fn what_cannot_be_had_is_refused() {
        let with = |name, value| asked(&[("connection", "upgrade"), ("upgrade", "websocket"), (name, value)]);
        assert_eq!(with("content-length", "5"), Err(StatusCode::BAD_REQUEST));
        assert_eq!(with("transfer-encoding", "chunked"), Err(StatusCode::BAD_REQUEST));
        assert_eq!(with("content-length", "0"), Ok(Some("websocket".to_owned())));
    }
}
