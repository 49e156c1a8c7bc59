//! Values as Elixir writes them, in the types that TOML has: an atom is a text with or without its colon, a tuple a list.

use std::time::Duration;

use super::super::error::{Fault, Faults};
use super::super::keys::Bounds;
use super::super::node::{Node, Raw};
use super::super::pool::variable;
use super::super::pool_keys::TEXT_BYTES_MAX;

/// A mistake that Snakepit has a name for, and what the value must be.
pub(super) fn named(node: &Node<'_>, identifier: &str, must_be: &str) -> Fault {
    let mut fault = node.fault("");
    fault.what = format!("{identifier}: {}; must be {must_be}", fault.what);
    fault
}

/// The text of an atom.
pub(super) fn atom<'a>(node: &Node<'a>) -> Result<&'a str, Fault> {
    node.text().map(|text| text.strip_prefix(':').unwrap_or(text))
}

/// One of a few atoms, in capitals or not.
pub(super) fn one_of<T: Copy>(node: &Node<'_>, atoms: &[(&str, T)]) -> Option<T> {
    let text = atom(node).ok()?.to_ascii_lowercase();
    atoms.iter().find(|(name, _)| *name == text).map(|(_, value)| *value)
}

/// Whether this is `:infinity`.
pub(super) fn is_infinity(node: &Node<'_>) -> bool {
    atom(node).is_ok_and(|text| text == "infinity")
}

/// `:infinity`, a duration, or a tuple such as `{30, :minutes}`.
pub(super) fn lifetime(node: &Node<'_>) -> Result<Option<Duration>, Fault> {
    let wrong = || named(node, "invalid_worker_ttl", ":infinity or {value, :seconds | :minutes | :hours}");
    if is_infinity(node) {
        return Ok(None);
    }
    let Ok(items) = node.items(Bounds::None) else {
        // A whole number alone does not say what it counts.
        let text = Node { unit: None, ..node.clone() };
        return text.duration().map(Some).ok().ok_or_else(wrong);
    };
    let [value, unit] = items.as_slice() else { return Err(wrong()) };
    let units = [("seconds", 1), ("minutes", 60), ("hours", 3600), ("days", 86_400)];
    let seconds = one_of(unit, &units).zip(value.count().ok()).and_then(|(unit, value)| value.checked_mul(unit));
    let ttl = seconds.filter(|seconds| *seconds > 0).map(Duration::from_secs);
    let Bounds::Time(_, most) = node.bounds else { return ttl.map(Some).ok_or_else(wrong) };
    ttl.filter(|ttl| *ttl <= most).map(Some).ok_or_else(wrong)
}

/// A list of texts.
pub(super) fn texts(node: &Node<'_>) -> Result<Vec<String>, Faults> {
    let (mut texts, mut faults) = (Vec::new(), Faults::default());
    for item in node.items(Bounds::Length(TEXT_BYTES_MAX))? {
        texts.extend(faults.note(item.text().map(str::to_owned)));
    }
    faults.or(texts)
}

/// Variables: a table, or a list of pairs.
pub(super) fn variables(node: &Node<'_>) -> Result<Vec<(String, String)>, Faults> {
    let (mut variables, mut faults) = (Vec::new(), Faults::default());
    let mut add = |name: &str, value: &Node<'_>| {
        // Nothing in it is replaced there, so braces are braces.
        let literal = value.text().map(escaped);
        let checked = literal.and_then(|text| {
            let node = Node::outside(&text, value.place.clone(), Bounds::Length(2 * TEXT_BYTES_MAX));
            variable(name, &node)
        });
        variables.extend(faults.note(checked).map(|text| (name.to_owned(), text)));
    };
    if let Raw::Toml(value) = node.raw
        && value.is_table()
    {
        for (name, value) in node.entries(Bounds::Length(TEXT_BYTES_MAX))? {
            add(name, &value);
        }
        return faults.or(variables);
    }
    let pairs = || node.fault("a table of variables, or a list of pairs such as [\"NAME\", \"value\"]");
    for item in node.items(Bounds::Length(TEXT_BYTES_MAX)).ok().ok_or_else(pairs)? {
        let pair = item.items(Bounds::Length(TEXT_BYTES_MAX)).ok().ok_or_else(pairs)?;
        let [name, value] = pair.as_slice() else { return Err(pairs().into()) };
        add(name.text()?, value);
    }
    faults.or(variables)
}

/// A text in which braces are no placeholders.
pub(super) fn escaped(text: &str) -> String {
    text.replace('{', "{{").replace('}', "}}")
}
