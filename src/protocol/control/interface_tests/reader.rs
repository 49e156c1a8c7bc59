//! A small reader of the description, and what it says a value must be.

use std::collections::{BTreeMap, BTreeSet};

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::INTERFACE;

/// A type as the description writes it.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Type {
    Bool,
    Int,
    Text,
    /// Any JSON value.
    Any,
    Array(Box<Self>),
    Maybe(Box<Self>),
    Named(String),
    Object(BTreeMap<String, Self>),
    Enum(BTreeSet<String>),
}

#[derive(Debug, Default)]
pub(super) struct Interface {
    pub(super) types: BTreeMap<String, Type>,
    pub(super) methods: BTreeMap<String, (Type, Type)>,
    pub(super) errors: BTreeMap<String, Type>,
}

pub(super) struct Reader<'a> {
    tokens: Vec<&'a str>,
    at: usize,
}

impl<'a> Reader<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        let mut tokens = Vec::new();
        for line in text.lines().map(|line| line.split('#').next().unwrap()) {
            let mut rest = line.trim_start();
            while !rest.is_empty() {
                let length = match rest.as_bytes() {
                    [b'-', b'>', ..] | [b'[', b']', ..] => 2,
                    [b'(' | b')' | b',' | b':' | b'?', ..] => 1,
                    _ => rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_' && c != '.').unwrap_or(rest.len()),
                };
                assert!(length > 0, "{rest}");
                tokens.push(&rest[..length]);
                rest = rest[length..].trim_start();
            }
        }
        Self { tokens, at: 0 }
    }

    fn next(&mut self) -> &'a str {
        self.at += 1;
        self.tokens[self.at - 1]
    }

    fn expect(&mut self, token: &str) {
        assert_eq!(self.next(), token, "at token {}", self.at);
    }

    pub(super) fn interface(mut self) -> Interface {
        let mut interface = Interface::default();
        self.expect("interface");
        self.expect(INTERFACE);
        while self.at < self.tokens.len() {
            let (what, name) = (self.next(), self.next().to_string());
            assert!(name.chars().next().unwrap().is_ascii_uppercase(), "{name}");
            let first = self.parse_type();
            let doubled = match what {
                "type" => interface.types.insert(name, first).is_some(),
                "error" => interface.errors.insert(name, first).is_some(),
                "method" => {
                    self.expect("->");
                    let reply = self.parse_type();
                    interface.methods.insert(name, (first, reply)).is_some()
                }
                _ => panic!("{what}"),
            };
            assert!(!doubled, "a {what} comes twice");
        }
        interface
    }

    fn parse_type(&mut self) -> Type {
        match self.next() {
            "?" => Type::Maybe(Box::new(self.parse_type())),
            "[]" => Type::Array(Box::new(self.parse_type())),
            "bool" => Type::Bool,
            "int" => Type::Int,
            "string" => Type::Text,
            "object" => Type::Any,
            "(" => self.parse_fields(),
            name => Type::Named(name.into()),
        }
    }

    fn parse_fields(&mut self) -> Type {
        let mut fields = BTreeMap::new();
        let mut words = BTreeSet::new();
        loop {
            let name = self.next();
            if name == ")" {
                break;
            }
            // The grammar of Varlink: a letter first, single underscores inside, none at the end.
            assert!(name.as_bytes()[0].is_ascii_alphabetic() && !name.contains("__") && !name.ends_with('_'), "{name}");
            match self.next() {
                ":" => {
                    assert!(fields.insert(name.to_string(), self.parse_type()).is_none(), "{name} comes twice");
                    match self.next() {
                        "," => {}
                        ")" => break,
                        token => panic!("{token}"),
                    }
                }
                separator => {
                    assert!(words.insert(name.to_string()), "{name} comes twice");
                    if separator == ")" {
                        break;
                    }
                }
            }
        }
        assert!(fields.is_empty() || words.is_empty());
        if words.is_empty() { Type::Object(fields) } else { Type::Enum(words) }
    }
}

impl Interface {
    /// Whether `value`, which has every field that its type has, is exactly of this type.
    pub(super) fn check(&self, at: &str, value: &Value, expected: &Type) {
        match (expected, value) {
            (Type::Bool, Value::Bool(_)) | (Type::Text, Value::String(_)) | (Type::Any, _) => {}
            (Type::Int, Value::Number(number)) => assert!(number.is_i64(), "{at}"),
            (Type::Maybe(inner), value) => {
                assert!(!value.is_null(), "{at}: the test's values are full");
                self.check(at, value, inner);
            }
            (Type::Array(inner), Value::Array(items)) => {
                assert!(!items.is_empty(), "{at}: the test's values are full");
                items.iter().for_each(|item| self.check(at, item, inner));
            }
            (Type::Named(name), value) => self.check(&format!("{at}:{name}"), value, &self.types[name]),
            (Type::Enum(words), Value::String(word)) => assert!(words.contains(word), "{at}: {word}"),
            (Type::Object(fields), Value::Object(map)) => {
                assert!(map.keys().eq(fields.keys().collect::<BTreeSet<_>>()), "{at}: {:?} {:?}", map.keys(), fields);
                map.iter().for_each(|(key, value)| self.check(&format!("{at}.{key}"), value, &fields[key]));
            }
            (expected, value) => panic!("{at}: {value} is no {expected:?}"),
        }
    }

    /// Whether exactly the fields that are not `?` are needed to read the type.
    pub(super) fn check_optional<T: DeserializeOwned>(&self, at: &str, value: &Value, expected: &Type) {
        let Type::Object(fields) = expected else { panic!("{at}") };
        for (field, kind) in fields {
            let mut without = value.clone();
            without.as_object_mut().unwrap().remove(field);
            let optional = matches!(kind, Type::Maybe(_));
            assert_eq!(serde_json::from_value::<T>(without).is_ok(), optional, "{at}.{field}");
        }
    }
}
