//! The `kind` of a frame: found first, then taken out of the way of the fields that depend on it.
//!
//! One object is read twice at most and never kept: most senders put `kind` first, where it is found by looking. A `kind`
//! that comes twice, in whatever way it is written, is refused with the fields.

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;

use serde::Serialize;
use serde::de::value::{CowStrDeserializer, MapAccessDeserializer};
use serde::de::{Deserialize, DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::super::json::{self, JsonError, Key};
use super::frame::Fields;
use super::{ChannelError, FRAME_BYTES_MAX, shape};

const KIND: &str = "kind";

/// A message whose kind is known.
pub(super) struct Frame<'m> {
    pub(super) kind: Cow<'m, str>,
    text: &'m str,
}

impl<'m> Frame<'m> {
    /// Finds out what `message` is.
    ///
    /// # Errors
    /// [`ChannelError`] if it is too long, not JSON, or without a kind.
    pub(super) fn read(message: &'m [u8]) -> Result<Self, ChannelError> {
        if message.len() > FRAME_BYTES_MAX {
            return Err(ChannelError::TooLong);
        }
        let text = json::text(message).map_err(ChannelError::Json)?;
        if let Some(kind) = kind_in_front(text) {
            return Ok(Self { kind: kind.into(), text });
        }
        let kind = json::parse(text, FindKind).map_err(of_object)?;
        Ok(Self { kind: kind.ok_or_else(|| shape("expected a `kind`"))?, text })
    }

    /// Its fields.
    ///
    /// # Errors
    /// [`ChannelError`] if they are not those of `F`, or out of range.
    pub(super) fn fields<F: Fields>(&self) -> Result<F, ChannelError> {
        let fields = json::parse(self.text, WithoutKind(PhantomData::<F>)).map_err(of_fields)?;
        fields.check()?;
        Ok(fields)
    }

    /// Holds a frame that nobody reads to what holds for every frame.
    ///
    /// # Errors
    /// [`ChannelError`] if it is not JSON, or has a key twice.
    pub(super) fn pass_over(&self) -> Result<(), ChannelError> {
        json::parse_object(self.text.as_bytes()).map(drop).map_err(ChannelError::Json)
    }
}

/// The message of a frame.
///
/// # Errors
/// [`ChannelError`] if a field is out of range, or the message would be too long.
pub(super) fn encode<F: Fields>(kind: &str, fields: &F) -> Result<Vec<u8>, ChannelError> {
    #[derive(Serialize)]
    struct Tagged<'f, F> {
        kind: &'f str,
        #[serde(flatten)]
        fields: &'f F,
    }
    fields.check()?;
    let message = serde_json::to_vec(&Tagged { kind, fields }).map_err(|cause| shape(&cause.to_string()))?;
    if message.len() > FRAME_BYTES_MAX { Err(ChannelError::TooLong) } else { Ok(message) }
}

/// The kind of an object that is written as this program writes it.
fn kind_in_front(text: &str) -> Option<&str> {
    let (kind, _) = text.strip_prefix("{\"kind\":\"")?.split_once('"')?;
    kind.bytes().all(|byte| byte.is_ascii_lowercase()).then_some(kind)
}

/// All that [`FindKind`] refuses of its own is what is no object.
fn of_object(error: JsonError) -> ChannelError {
    ChannelError::Json(if of_data(&error) { JsonError::NotAnObject } else { error })
}

/// Text that is JSON but not the frame is a matter of its shape.
fn of_fields(error: JsonError) -> ChannelError {
    if of_data(&error) { shape(&error.to_string()) } else { ChannelError::Json(error) }
}

/// Whether it is about what was said, not about how.
fn of_data(error: &JsonError) -> bool {
    matches!(error, JsonError::Syntax(cause) if cause.is_data())
}

/// Reads an object for its first `kind` that is a string.
struct FindKind;

impl<'de> DeserializeSeed<'de> for FindKind {
    type Value = Option<Cow<'de, str>>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for FindKind {
    type Value = Option<Cow<'de, str>>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Self::Value, A::Error> {
        let mut kind = None;
        while let Some(Key(key)) = entries.next_key()? {
            let value = entries.next_value::<&RawValue>()?;
            if key == KIND && kind.is_none() {
                kind = serde_json::from_str(value.get()).ok().map(|Key(kind)| kind);
            }
        }
        Ok(kind)
    }
}

/// Reads the fields of a frame from an object that also has its `kind`.
struct WithoutKind<F>(PhantomData<F>);

impl<'de, F: Deserialize<'de>> DeserializeSeed<'de> for WithoutKind<F> {
    type Value = F;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<F, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de, F: Deserialize<'de>> Visitor<'de> for WithoutKind<F> {
    type Value = F;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, entries: A) -> Result<F, A::Error> {
        F::deserialize(MapAccessDeserializer::new(Others { entries, seen: false }))
    }
}

/// The entries of an object, all but its `kind`.
struct Others<A> {
    entries: A,
    /// Whether `kind` was there already.
    seen: bool,
}

impl<'de, A: MapAccess<'de>> MapAccess<'de> for Others<A> {
    type Error = A::Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, A::Error> {
        while let Some(Key(key)) = self.entries.next_key()? {
            if key != KIND {
                return seed.deserialize(CowStrDeserializer::new(key)).map(Some);
            }
            if std::mem::replace(&mut self.seen, true) {
                return Err(A::Error::duplicate_field(KIND));
            }
            self.entries.next_value::<IgnoredAny>()?;
        }
        Ok(None)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, A::Error> {
        self.entries.next_value_seed(seed)
    }
}
