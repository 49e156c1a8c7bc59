//! Strict JSON: what a peer may send before any type is read from it.
//!
//! Decides three things that `serde_json` leaves open: nesting deeper than [`DEPTH_MAX`] is refused by a scan that keeps no
//! stack, before anything recursive sees the text; a key that comes twice in one object is an error; bytes that are not
//! UTF-8 are an error. `varlink` and `channel` parse through here and nowhere else; `verbatim` keeps the last two rules for
//! values that are only passed on.

use std::borrow::Cow;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

/// Objects and arrays may be nested this deep, the outermost counted as one.
pub const DEPTH_MAX: usize = 16;

/// Text was not JSON as this program accepts it.
#[derive(Debug, thiserror::Error)]
pub enum JsonError {
    /// Nested deeper than [`DEPTH_MAX`].
    #[error("JSON is nested deeper than {DEPTH_MAX} levels at byte {at}")]
    TooDeep {
        /// Offset of the bracket that went too far, from 0.
        at: usize,
    },
    /// Not UTF-8.
    #[error("JSON is not UTF-8")]
    NotUtf8(#[source] std::str::Utf8Error),
    /// Not JSON, a number out of range, or a key that comes twice.
    #[error("JSON is not valid: {0}")]
    Syntax(serde_json::Error),
    /// JSON, but not an object.
    #[error("expected a JSON object")]
    NotAnObject,
}

/// Parses one JSON object, strictly.
///
/// # Errors
/// [`JsonError`] says which rule was broken.
pub fn parse_object(bytes: &[u8]) -> Result<Map<String, Value>, JsonError> {
    match parse(text(bytes)?, StrictSeed)? {
        Value::Object(map) => Ok(map),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => {
            Err(JsonError::NotAnObject)
        }
    }
}

/// The text in which a type may be looked for: UTF-8, and not nested too deep. Keys that come twice are the type's business.
///
/// # Errors
/// [`JsonError`] says which rule was broken.
pub(super) fn text(bytes: &[u8]) -> Result<&str, JsonError> {
    check_depth(bytes)?;
    std::str::from_utf8(bytes).map_err(JsonError::NotUtf8)
}

/// Parses all of `text`, which [`text`] gave, into what `seed` makes of it.
///
/// # Errors
/// [`JsonError::Syntax`] if it is not JSON, or not what `seed` takes.
pub(super) fn parse<'de, S: DeserializeSeed<'de>>(text: &'de str, seed: S) -> Result<S::Value, JsonError> {
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let value = seed.deserialize(&mut deserializer).map_err(JsonError::Syntax)?;
    deserializer.end().map_err(JsonError::Syntax)?;
    Ok(value)
}

/// The error about a key that comes twice in one object.
pub(super) fn comes_twice<E: serde::de::Error>(key: &str) -> E {
    let shown: String = key.chars().take(80).collect();
    E::custom(format_args!("key {shown:?} comes twice"))
}

/// A key of an object, borrowed from the text where it is written without escapes.
#[derive(serde::Deserialize)]
pub(super) struct Key<'k>(#[serde(borrow)] pub(super) Cow<'k, str>);

/// Counts brackets outside strings; whether they match is the parser's business.
fn check_depth(bytes: &[u8]) -> Result<(), JsonError> {
    let mut depth = 0_usize;
    let mut in_string = false;
    let mut escaped = false;
    for (at, byte) in bytes.iter().copied().enumerate() {
        if in_string {
            match byte {
                _ if escaped => escaped = false,
                b'\\' => escaped = true,
                b'"' => in_string = false,
                _ => {}
            }
            continue;
        }
        match byte {
            b'"' => in_string = true,
            b'{' | b'[' => {
                depth += 1;
                if depth > DEPTH_MAX {
                    return Err(JsonError::TooDeep { at });
                }
            }
            b'}' | b']' => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    Ok(())
}

/// Makes a value in which no object has a key twice.
struct StrictSeed;

impl<'de> DeserializeSeed<'de> for StrictSeed {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for StrictSeed {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut array = Vec::new();
        while let Some(item) = items.next_element_seed(Self)? {
            array.push(item);
        }
        Ok(Value::Array(array))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(key) = entries.next_key::<String>()? {
            if map.contains_key(&key) {
                return Err(comes_twice(&key));
            }
            map.insert(key, entries.next_value_seed(Self)?);
        }
        Ok(Value::Object(map))
    }
}

#[cfg(test)]
mod tests {
    use super::super::seeded::Seeded;
    use super::*;

    #[test]
    fn each_rule_has_its_error() {
        let nested = |levels: usize| format!("{}1{}", "{\"a\":".repeat(levels), "}".repeat(levels));
        assert!(parse_object(nested(DEPTH_MAX).as_bytes()).is_ok());
        for (text, expected) in [
            (nested(DEPTH_MAX + 1), "nested deeper than 16 levels at byte 80"),
            (r#"{"a":1,"a":2}"#.into(), "key \"a\" comes twice"),
            (r#"{"a":1,"\u0061":2}"#.into(), "key \"a\" comes twice"),
            (r#"{"x":[{"b":1,"b":1}]}"#.into(), "key \"b\" comes twice"),
            ("[]".into(), "expected a JSON object"),
            ("null".into(), "expected a JSON object"),
            ("".into(), "EOF"),
            ("{} {}".into(), "trailing"),
            (r#"{"a":1e999}"#.into(), "out of range"),
            (r#"{"a":NaN}"#.into(), "expected value"),
        ] {
            let error = parse_object(text.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
        assert!(matches!(parse_object(b"{\"a\":\"\xff\"}"), Err(JsonError::NotUtf8(_))));
    }

    #[test]
    fn brackets_inside_strings_are_text() {
        let text = format!(r#"{{"a":"\"{}\\"}}"#, "[".repeat(100));
        assert!(parse_object(text.as_bytes()).is_ok());
    }

    #[test]
    fn two_hundred_thousand_levels_are_refused_without_a_stack() {
        // A stack of 64 KiB would not survive one frame per level.
        let deep = "[".repeat(200_000);
        let refused = std::thread::Builder::new()
            .stack_size(64 * 1024)
            .spawn(move || matches!(parse_object(deep.as_bytes()), Err(JsonError::TooDeep { at: 16 })))
            .unwrap();
        assert!(refused.join().unwrap());
    }

    #[test]
    fn no_bytes_make_it_panic() {
        let pieces: &[&[u8]] = &[b"{", b"}", b"[", b"]", b"\"", b"\\", b":", b",", b"1", b"\"a\"", b"null", b"\\u12"];
        for seed in 0..2_000 {
            let mut seeded = Seeded::new(seed);
            let bytes = seeded.bytes(200, pieces);
            if let Ok(map) = parse_object(&bytes) {
                let again = serde_json::to_vec(&map).unwrap();
                assert_eq!(parse_object(&again).unwrap(), map);
            }
        }
    }
}
