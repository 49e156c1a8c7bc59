//! Tables of keys: the one source for what is read, what is suggested for a mistyped key and what the reference prints.
//!
//! A key that is not in a table does not exist. Owns the walk over a table of the file by a table of keys; what a key's
//! value becomes is said in its row.

use std::collections::BTreeMap;
use std::time::Duration;

use toml::de::DeTable;

use super::error::{Faults, Place};
use super::node::{Node, entries};
use crate::spec::scalar::{format_bytes, format_duration};

/// What a value may be, checked while reading and printed in the reference.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Bounds {
    /// Checked by the grammar alone.
    None,
    /// A whole number from the first to the second.
    Count(u64, u64),
    /// A size in bytes from the first to the second.
    Bytes(u64, u64),
    /// A duration from the first to the second.
    Time(Duration, Duration),
    /// A list or table of at most this many.
    Items(usize),
    /// A text of at most this many bytes.
    Length(usize),
    /// A range that only the reference needs to know, because the grammar checks it.
    Prose(&'static str),
}

impl Bounds {
    /// The range in words; `None` if there is none to tell.
    pub(super) fn range(self) -> Option<String> {
        match self {
            Self::None => None,
            Self::Count(least, most) => Some(format!("{least} to {most}")),
            Self::Bytes(least, most) => Some(format!("{} to {}", format_bytes(least), format_bytes(most))),
            Self::Time(least, most) => Some(format!("{} to {}", format_duration(least), format_duration(most))),
            Self::Items(most) => Some(format!("at most {most} items")),
            Self::Length(most) => Some(format!("at most {most} bytes")),
            Self::Prose(text) => Some(text.to_owned()),
        }
    }
}

/// One key of a table of the file.
#[derive(Debug)]
pub(super) struct Key<T: 'static> {
    /// Its name.
    pub(super) name: &'static str,
    /// Other names that are accepted. One that ends in `_ms` or `_seconds` takes a bare integer of that unit.
    pub(super) aliases: &'static [&'static str],
    /// The variable that says the same in the environment, or empty.
    pub(super) variable: &'static str,
    /// The type, in the words of the reference.
    pub(super) kind: &'static str,
    /// The default as it would be written in the file; empty if there is none or it depends.
    pub(super) default: &'static str,
    /// What it may be.
    pub(super) bounds: Bounds,
    /// What it does, as Markdown.
    pub(super) what: &'static str,
    /// Reads the value into the target.
    pub(super) set: fn(&mut T, &Node<'_>) -> Result<(), Faults>,
}

impl<T> Key<T> {
    pub(super) fn is_named(&self, name: &str) -> bool {
        self.name == name || self.aliases.contains(&name)
    }
}

/// Which keys were written, and where.
pub(super) type Written = BTreeMap<&'static str, Place>;

/// Reads `table` into `target` by `keys`: every entry, so that all errors are found at once.
pub(super) fn walk<T>(keys: &[Key<T>], target: &mut T, table: &DeTable<'_>, place: &Place) -> (Written, Faults) {
    let (mut written, mut faults) = (Written::new(), Faults::default());
    for (name, mut node) in entries(table, place, Bounds::None) {
        if faults.is_full() {
            break;
        }
        let Some(key) = keys.iter().find(|key| key.is_named(name)) else {
            let known = keys.iter().flat_map(|key| std::iter::once(key.name).chain(key.aliases.iter().copied()));
            faults.push(node.place.fault("unknown key", "").suggest(nearest(name, known)));
            continue;
        };
        if written.contains_key(key.name) {
            faults.push(node.place.fault(format!("written twice: it means the same as {:?}", key.name), ""));
            continue;
        }
        node.bounds = key.bounds;
        node.unit = unit(name);
        written.insert(key.name, node.place.clone());
        faults.note((key.set)(target, &node));
    }
    (written, faults)
}

/// Reads `text`, which was not written in a file, as the value of the key `name`.
pub(super) fn apply<T>(keys: &[Key<T>], target: &mut T, name: &str, text: &str, place: Place) -> Result<(), Faults> {
    match keys.iter().find(|key| key.name == name) {
        Some(key) => (key.set)(target, &Node::outside(text, place, key.bounds)),
        None => Err(place.fault("unknown key", "").into()),
    }
}

fn unit(name: &str) -> Option<Duration> {
    if name.ends_with("_ms") {
        Some(Duration::from_millis(1))
    } else if name.ends_with("_seconds") {
        Some(Duration::from_secs(1))
    } else {
        None
    }
}

/// The known name that was most likely meant, if any is near.
pub(super) fn nearest<'k>(name: &str, known: impl IntoIterator<Item = &'k str>) -> Option<&'k str> {
    // Far beyond any known name: not worth the comparison, whose cost grows with the length.
    if name.len() > 64 {
        return None;
    }
    let name = name.to_ascii_lowercase().replace('-', "_");
    let allowed = (name.len() / 3).clamp(1, 3);
    let mut best: Option<(usize, &str)> = None;
    for candidate in known {
        let plain = candidate.replace('-', "_");
        let contains = name.len() >= 3 && plain.split('_').any(|part| part == name);
        // A name that contains the word as a whole is as good as the worst typing error that counts.
        let distance = strsim::damerau_levenshtein(&name, &plain).min(if contains { allowed } else { usize::MAX });
        if distance <= allowed && best.is_none_or(|(least, _)| distance < least) {
            best = Some((distance, candidate));
        }
    }
    best.map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suggestions() {
        let known =
            ["memory", "memory_high", "cpus", "pids", "base_port", "ready_timeout", "stop_signal", "unsafe-root"];
        for (name, expected) in [
            ("memroy", Some("memory")),
            ("Memory", Some("memory")),
            ("memory-high", Some("memory_high")),
            ("cpu", Some("cpus")),
            ("port", Some("base_port")),
            ("signal", Some("stop_signal")),
            ("unsafe_root", Some("unsafe-root")),
            ("readytimeout", Some("ready_timeout")),
            ("colour", None),
            ("", None),
        ] {
            assert_eq!(nearest(name, known), expected, "{name}");
        }
        let long = "m".repeat(65);
        assert_eq!(nearest(&long, [long.as_str()]), None, "longer than any key: not compared");
    }
}
