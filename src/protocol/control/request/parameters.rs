//! A call's parameters into a typed struct, with the name of the one that is wrong.
//!
//! `InvalidParameter` carries a name, which serde's own errors do not; so the fields are handed over one by one here.

use std::fmt;

use serde::Serialize;
use serde::de::{self, DeserializeOwned, DeserializeSeed, IntoDeserializer, MapAccess};
use serde_json::{Map, Value};

use super::super::super::service::ServiceError;

/// Decodes `fields`; anything missing, unknown or of the wrong type is an invalid parameter by its name.
pub(super) fn decode<T: DeserializeOwned>(fields: Map<String, Value>) -> Result<T, ServiceError> {
    let mut current = String::new();
    let entries = Entries { rest: fields.into_iter(), value: Value::Null, current: &mut current };
    T::deserialize(de::value::MapAccessDeserializer::new(entries)).map_err(|error| {
        let parameter = error.missing.map_or_else(|| current.chars().take(120).collect(), str::to_string);
        ServiceError::InvalidParameter { parameter }
    })
}

/// The reverse of [`decode`].
pub(super) fn encode<T: Serialize>(parameters: &T) -> Map<String, Value> {
    match serde_json::to_value(parameters) {
        Ok(Value::Object(map)) => map,
        Ok(Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_)) | Err(_) => Map::new(),
    }
}

/// Which field is missing; every other error is about the field that was read last.
#[derive(Debug)]
struct FieldError {
    missing: Option<&'static str>,
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("parameter is not valid")
    }
}

impl std::error::Error for FieldError {}

impl de::Error for FieldError {
    fn custom<T: fmt::Display>(_: T) -> Self {
        Self { missing: None }
    }

    fn missing_field(field: &'static str) -> Self {
        Self { missing: Some(field) }
    }
}

struct Entries<'a> {
    rest: serde_json::map::IntoIter,
    value: Value,
    current: &'a mut String,
}

impl<'de> MapAccess<'de> for Entries<'_> {
    type Error = FieldError;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, FieldError> {
        let Some((key, value)) = self.rest.next() else {
            return Ok(None);
        };
        self.value = value;
        self.current.clone_from(&key);
        seed.deserialize(key.into_deserializer()).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, FieldError> {
        seed.deserialize(self.value.take()).map_err(de::Error::custom)
    }
}
