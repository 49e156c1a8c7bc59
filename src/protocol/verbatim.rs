//! JSON values that are only passed on: what a caller says to a worker, and what that answers.
//!
//! Decides that such a value is held to the rules of [`json`] while it is read once, and that its text then goes on as it
//! came: no tree is built of it, and nothing is written anew. `channel` keeps them in its frames, whoever forwards a frame
//! puts them into the next.

use std::fmt;

use serde::de::{Deserialize, DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde::ser::{Serialize, Serializer};
use serde_json::value::RawValue;

use super::json::{self, JsonError, Key};

/// Objects and arrays in such a value may be nested this deep, so that a message that holds it two levels down is within
/// [`json::DEPTH_MAX`].
pub const DEPTH_MAX: usize = json::DEPTH_MAX - 2;

/// One JSON value as it was written, checked: no key comes twice in an object, numbers are in range, the depth is at most
/// [`DEPTH_MAX`].
#[derive(Clone)]
pub struct Verbatim(Box<RawValue>);

impl Verbatim {
    /// Reads one value.
    ///
    /// # Errors
    /// [`JsonError`] says which rule was broken.
    pub fn parse(bytes: &[u8]) -> Result<Self, JsonError> {
        json::parse(json::text(bytes)?, std::marker::PhantomData)
    }

    /// Its text.
    #[must_use]
    pub fn text(&self) -> &str {
        self.0.get()
    }

    /// Whether it is an object.
    #[must_use]
    pub fn is_object(&self) -> bool {
        self.text().starts_with('{')
    }
}

impl fmt::Debug for Verbatim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text())
    }
}

/// Two are equal if they are written alike; `1` and `1.0` are not.
impl PartialEq for Verbatim {
    fn eq(&self, other: &Self) -> bool {
        self.text() == other.text()
    }
}

impl Eq for Verbatim {}

impl Serialize for Verbatim {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Verbatim {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let raw = Box::<RawValue>::deserialize(deserializer)?;
        let check = Check { levels: DEPTH_MAX };
        check.deserialize(&mut serde_json::Deserializer::from_str(raw.get())).map_err(D::Error::custom)?;
        Ok(Self(raw))
    }
}

/// Reads a value and keeps nothing of it.
#[derive(Clone, Copy)]
struct Check {
    /// How many levels it may still go down.
    levels: usize,
}

impl Check {
    fn deeper<E: serde::de::Error>(self) -> Result<Self, E> {
        let levels = self.levels.checked_sub(1);
        let too_deep = || E::custom(format_args!("a value is nested deeper than {DEPTH_MAX} levels"));
        Ok(Self { levels: levels.ok_or_else(too_deep)? })
    }
}

impl<'de> DeserializeSeed<'de> for Check {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Check {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        let inside = self.deeper()?;
        while items.next_element_seed(inside)?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<(), A::Error> {
        let inside = self.deeper()?;
        let mut keys = Vec::new();
        while let Some(Key(key)) = entries.next_key()? {
            keys.push(key);
            entries.next_value_seed(inside)?;
        }
        // In order of the text where many keys are sent to make this slow.
        keys.sort_unstable();
        match keys.windows(2).find_map(|pair| pair.first().filter(|key| pair.last() == Some(key))) {
            Some(twice) => Err(json::comes_twice(twice)),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::seeded::Seeded;
    use super::*;

    #[test]
    fn a_value_is_kept_as_it_was_written() {
        for text in ["null", "1.0", r#""\u0061""#, "[]", r#"{ "b" : [1e2],"a":{"b":null} }"#, "18446744073709551615"] {
            let value = Verbatim::parse(format!(" {text}\n").as_bytes()).unwrap();
            assert_eq!(value.text(), text);
            assert_eq!(serde_json::to_string(&value).unwrap(), text);
            assert_eq!(value.is_object(), text.starts_with('{'));
        }
        assert_ne!(Verbatim::parse(b"1").unwrap(), Verbatim::parse(b"1.0").unwrap());
    }

    #[test]
    fn each_rule_has_its_error() {
        let nested = |levels: usize| format!("{}1{}", "[".repeat(levels), "]".repeat(levels));
        assert!(Verbatim::parse(nested(DEPTH_MAX).as_bytes()).is_ok());
        for (text, expected) in [
            (nested(DEPTH_MAX + 1), "nested deeper than 14 levels"),
            (nested(100_000), "nested deeper than 16 levels"),
            (r#"{"a":1,"b":2,"a":3}"#.into(), "key \"a\" comes twice"),
            (r#"[{"a":1,"\u0061":3}]"#.into(), "key \"a\" comes twice"),
            (r#"{"a":"\ud800"}"#.into(), "hex escape"),
            ("1e999".into(), "out of range"),
            ("1 2".into(), "trailing"),
            ("".into(), "EOF"),
            ("nil".into(), "expected ident"),
        ] {
            let error = Verbatim::parse(text.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(expected), "{expected}: {error}");
        }
        assert!(matches!(Verbatim::parse(b"\"\xff\""), Err(JsonError::NotUtf8(_))));
    }

    /// What is taken here is what a parser that keeps a tree takes.
    #[test]
    fn it_takes_what_the_strict_parser_takes() {
        let pieces: &[&[u8]] =
            &[b"{", b"}", b"[", b"]", b"\"a\":", b"\"b\":", b"\"", b"\\u0061", b",", b"1", b"-", b"e9", b"null", b" "];
        let mut taken = 0;
        for seed in 0..20_000 {
            let inside = Seeded::new(seed).bytes(24, pieces);
            let value = Verbatim::parse(&inside);
            let whole = [b"{\"x\":".as_slice(), &inside, b"}"].concat();
            assert_eq!(value.is_ok(), json::parse_object(&whole).is_ok(), "{}", inside.escape_ascii());
            taken += usize::from(value.is_ok());
        }
        assert!(taken > 100, "only {taken} were values");
    }
}
