//! One value as it was written, in the file, the environment or on the command line, and reading it as what it should be.
//!
//! Owns what "wrong type" and "out of range" say. Knows no keys: the range comes with the value, from the key's own row in
//! the table of keys, so that what is checked is what the reference prints.

use std::time::Duration;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::error::{Fault, Place};
use super::keys::Bounds;
use crate::spec::scalar::{self, ScalarError};

/// How a value was written.
#[derive(Debug, Clone, Copy)]
pub(super) enum Raw<'a> {
    /// In the file, with TOML's own types.
    Toml(&'a DeValue<'a>),
    /// In the environment or on the command line: everything is text there, and read by the same grammar.
    Text(&'a str),
}

/// A value, where it stands and what it may be.
#[derive(Debug, Clone)]
pub(super) struct Node<'a> {
    pub(super) raw: Raw<'a>,
    pub(super) place: Place,
    pub(super) bounds: Bounds,
    /// The unit of a bare integer for a duration, by the key's ending.
    pub(super) unit: Option<Duration>,
}

impl<'a> Node<'a> {
    /// A text that was not written in a file.
    pub(super) const fn outside(text: &'a str, place: Place, bounds: Bounds) -> Self {
        Self { raw: Raw::Text(text), place, bounds, unit: None }
    }

    /// Something is wrong with this value; it is shown.
    pub(super) fn fault(&self, expected: impl Into<String>) -> Fault {
        self.place.fault(format!("found {}", self.shown()), expected)
    }

    fn shown(&self) -> String {
        let quoted = |text: &str| {
            let cut: String = text.chars().take(60).collect();
            if cut.len() < text.len() { format!("{cut:?} and more") } else { format!("{cut:?}") }
        };
        match self.raw {
            Raw::Text(text) => quoted(text),
            Raw::Toml(DeValue::String(text)) => format!("the string {}", quoted(text)),
            Raw::Toml(DeValue::Integer(number)) => format!("the integer {}", cut(&number.to_string()).escape_debug()),
            Raw::Toml(DeValue::Float(number)) => format!("the number {}", cut(number.as_str()).escape_debug()),
            Raw::Toml(DeValue::Boolean(value)) => value.to_string(),
            Raw::Toml(DeValue::Datetime(_)) => "a date".to_owned(),
            Raw::Toml(DeValue::Array(_)) => "a list".to_owned(),
            Raw::Toml(DeValue::Table(_)) => "a table".to_owned(),
        }
    }

    /// Text of at most the key's length (1,024 bytes if it has none), without NUL.
    pub(super) fn text(&self) -> Result<&'a str, Fault> {
        let text = match self.raw {
            Raw::Text(text) => text,
            Raw::Toml(value) => value.as_str().ok_or_else(|| self.fault("a string"))?,
        };
        let limit = if let Bounds::Length(limit) = self.bounds { limit } else { 1024 };
        if text.len() > limit {
            return Err(self.place.fault(format!("text of {} bytes", text.len()), format!("at most {limit} bytes")));
        }
        if text.contains('\0') {
            return Err(self.fault("text without NUL"));
        }
        Ok(text)
    }

    /// A text that `parse` reads.
    pub(super) fn scalar<T>(&self, parse: impl FnOnce(&str) -> Result<T, ScalarError>) -> Result<T, Fault> {
        parse(self.text()?).map_err(|error| self.fault(error.expected))
    }

    /// One of a few words.
    pub(super) fn word<T: Copy>(&self, words: &[(&str, T)]) -> Result<T, Fault> {
        let text = self.text()?;
        words.iter().find(|(word, _)| *word == text).map(|(_, value)| *value).ok_or_else(|| {
            let names: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
            self.fault(names.join(", ")).suggest(super::keys::nearest(text, names))
        })
    }

    pub(super) fn boolean(&self) -> Result<bool, Fault> {
        match self.raw {
            Raw::Toml(DeValue::Boolean(value)) => Ok(*value),
            Raw::Text("true") => Ok(true),
            Raw::Text("false") => Ok(false),
            Raw::Text(_) | Raw::Toml(_) => Err(self.fault("true or false")),
        }
    }

    /// The digits of a value that is a whole number.
    fn integer(&self) -> Option<u64> {
        match self.raw {
            Raw::Text(text) => scalar::parse_digits(text),
            Raw::Toml(value) => {
                let number = value.as_integer()?;
                u64::from_str_radix(number.as_str(), number.radix()).ok()
            }
        }
    }

    /// A whole number within the key's bounds.
    pub(super) fn count(&self) -> Result<u64, Fault> {
        let in_bounds =
            |number: &u64| !matches!(self.bounds, Bounds::Count(least, most) if !(least..=most).contains(number));
        self.integer().filter(in_bounds).ok_or_else(|| match self.bounds.range() {
            Some(range) => self.fault(format!("a whole number, {range}")),
            None => self.fault("a whole number"),
        })
    }

    /// [`Self::count`] for a field of 32 bits.
    pub(super) fn count_u32(&self) -> Result<u32, Fault> {
        u32::try_from(self.count()?).ok().ok_or_else(|| self.fault("a smaller number"))
    }

    /// A whole number, or `None` by the word `max` or `unlimited`.
    pub(super) fn count_or_unlimited(&self) -> Result<Option<u64>, Fault> {
        if self.is_unlimited() { Ok(None) } else { self.count().map(Some) }
    }

    pub(super) fn is_unlimited(&self) -> bool {
        match self.raw {
            Raw::Text(text) => scalar::is_unlimited(text),
            Raw::Toml(value) => value.as_str().is_some_and(scalar::is_unlimited),
        }
    }

    /// A size in bytes within the key's bounds: an integer or a text with unit.
    pub(super) fn bytes(&self) -> Result<u64, Fault> {
        let read = match self.raw {
            Raw::Toml(DeValue::Integer(_)) => self.integer(),
            Raw::Toml(DeValue::String(text)) => scalar::parse_bytes(text).ok(),
            Raw::Text(text) => scalar::parse_bytes(text).ok(),
            Raw::Toml(_) => None,
        };
        let in_bounds =
            |bytes: &u64| !matches!(self.bounds, Bounds::Bytes(least, most) if !(least..=most).contains(bytes));
        read.filter(in_bounds).ok_or_else(|| match self.bounds.range() {
            Some(range) => self.fault(format!("a size such as \"4g\" or \"512M\", {range}")),
            None => self.fault("a size such as \"4g\" or \"512M\""),
        })
    }

    /// A size, or `None` by the word `max` or `unlimited`.
    pub(super) fn bytes_or_unlimited(&self) -> Result<Option<u64>, Fault> {
        if self.is_unlimited() { Ok(None) } else { self.bytes().map(Some) }
    }

    /// Thousandths of a processor from an integer, a number or a text, or `None` by the word `max` or `unlimited`.
    pub(super) fn cpus_or_unlimited(&self) -> Result<Option<u64>, Fault> {
        if self.is_unlimited() {
            return Ok(None);
        }
        let written = match self.raw {
            Raw::Text(text) => text.to_owned(),
            Raw::Toml(DeValue::String(text)) => text.to_string(),
            Raw::Toml(DeValue::Integer(number)) => number.to_string(),
            Raw::Toml(DeValue::Float(number)) => number.as_str().to_owned(),
            Raw::Toml(_) => String::new(),
        };
        scalar::parse_cpus(&written).map(Some).map_err(|error| self.fault(error.expected))
    }

    /// A duration within the key's bounds: a text with unit, or a bare integer if the key's name says the unit.
    pub(super) fn duration(&self) -> Result<Duration, Fault> {
        let expected = match self.bounds.range() {
            Some(range) => format!("a duration such as \"30s\" or \"500ms\", {range}"),
            None => "a duration such as \"30s\" or \"500ms\"".to_owned(),
        };
        let read = match self.unit {
            Some(unit) => {
                let number =
                    self.integer().ok_or_else(|| self.fault("a whole number of the unit in the key's name"))?;
                u32::try_from(number).ok().and_then(|number| unit.checked_mul(number))
            }
            None => match self.raw {
                Raw::Text(text) => scalar::parse_duration(text).ok(),
                Raw::Toml(DeValue::String(text)) => scalar::parse_duration(text).ok(),
                Raw::Toml(_) => None,
            },
        };
        let in_bounds =
            |read: &Duration| !matches!(self.bounds, Bounds::Time(least, most) if !(least..=most).contains(read));
        read.filter(in_bounds).ok_or_else(|| {
            // A bare number is what people write who come from programs that count in seconds.
            let seconds = self.integer().map(|number| format!("{number}s"));
            self.fault(expected).suggest(seconds.filter(|_| self.unit.is_none()))
        })
    }

    /// The items of a list, no more than the key allows; each has the bounds of one text.
    pub(super) fn items(&self, each: Bounds) -> Result<Vec<Self>, Fault> {
        let Raw::Toml(DeValue::Array(array)) = self.raw else {
            return Err(self.fault("a list"));
        };
        if let Bounds::Items(most) = self.bounds
            && array.len() > most
        {
            return Err(self.place.fault(format!("found {} items", array.len()), format!("at most {most}")));
        }
        let item = |(index, value): (usize, &'a Spanned<DeValue<'a>>)| Self {
            raw: Raw::Toml(value.get_ref()),
            place: self.place.item(index).at(value.span().start),
            bounds: each,
            unit: None,
        };
        Ok(array.iter().enumerate().map(item).collect())
    }

    /// The value as a table.
    pub(super) fn table(&self) -> Result<&'a DeTable<'a>, Fault> {
        match self.raw {
            Raw::Toml(DeValue::Table(table)) => Ok(table),
            Raw::Text(_) | Raw::Toml(_) => Err(self.fault("a table")),
        }
    }

    /// The entries of a table with free keys, in the order of the file.
    pub(super) fn entries(&self, each: Bounds) -> Result<Vec<(&'a str, Self)>, Fault> {
        let table = self.table()?;
        if let Bounds::Items(most) = self.bounds
            && table.len() > most
        {
            return Err(self.place.fault(format!("found {} entries", table.len()), format!("at most {most}")));
        }
        Ok(entries(table, &self.place, each))
    }
}

/// The entries of a table as nodes, in the order of the file.
pub(super) fn entries<'a>(table: &'a DeTable<'a>, place: &Place, each: Bounds) -> Vec<(&'a str, Node<'a>)> {
    let mut entries: Vec<_> = table.iter().collect();
    entries.sort_by_key(|(key, _)| key.span().start);
    let node = |(key, value): (&'a Spanned<_>, &'a Spanned<DeValue<'a>>)| {
        let name: &'a toml::de::DeString<'a> = key.get_ref();
        let place = place.key(name).at(key.span().start);
        (&**name, Node { raw: Raw::Toml(value.get_ref()), place, bounds: each, unit: None })
    };
    entries.into_iter().map(node).collect()
}

/// The beginning of a text, as much as a sentence can hold.
pub(super) fn cut(text: &str) -> String {
    text.chars().take(60).collect()
}
