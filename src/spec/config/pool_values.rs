//! How values of a pool's keys are read that are more than one word or number.
//!
//! Called by the rows of `pool_keys` alone.

use super::error::Faults;
use super::keys::Bounds;
use super::node::Node;
use super::paths;
use super::pool::{PoolDraft, command, variable};
use super::pool_keys::TEXT_BYTES_MAX;
use crate::spec::Limit;
use crate::spec::signal::parse_signal;

pub(super) const fn asked<T: Copy>(value: Option<T>) -> Option<Limit<T>> {
    match value {
        Some(value) => Some(Limit { value, asked: true }),
        None => None,
    }
}

pub(super) fn not_for_services(pool: &PoolDraft, node: &Node<'_>) -> Result<(), Faults> {
    if pool.spec.service {
        return Err(node.place.fault("a service has exactly one worker", "[pool.NAME] for more").into());
    }
    Ok(())
}

/// Reads every item of a list and reports all that are wrong.
pub(super) fn each<'a, T, E: Into<Faults>>(
    node: &Node<'a>,
    bounds: Bounds,
    read: impl Fn(&Node<'a>) -> Result<T, E>,
) -> Result<Vec<T>, Faults> {
    let (mut values, mut faults) = (Vec::new(), Faults::default());
    for item in node.items(bounds)? {
        values.extend(faults.note(read(&item)));
    }
    faults.or(values)
}

pub(super) fn read_command(pool: &mut PoolDraft, node: &Node<'_>) -> Result<(), Faults> {
    if let Ok(text) = node.text() {
        let words: Vec<&str> = text.split_whitespace().take(16).collect();
        return Err(node.fault(format!("a list of program and arguments, such as {words:?}")).into());
    }
    pool.spec.command = command(&node.items(Bounds::Length(TEXT_BYTES_MAX))?, &node.place)?;
    Ok(())
}

pub(super) fn read_env(pool: &mut PoolDraft, node: &Node<'_>) -> Result<(), Faults> {
    let mut faults = Faults::default();
    for (name, value) in node.entries(Bounds::Length(TEXT_BYTES_MAX))? {
        if let Some(text) = faults.note(variable(name, &value)) {
            pool.spec.env.insert(name.to_owned(), text);
        }
    }
    faults.or(())
}

pub(super) fn read_link(pool: &mut PoolDraft, node: &Node<'_>) -> Result<(), Faults> {
    pool.spec.link = each(node, Bounds::Length(paths::PATH_BYTES_MAX), paths::pattern)?;
    Ok(())
}

pub(super) fn read_stop_signal(pool: &mut PoolDraft, node: &Node<'_>) -> Result<(), Faults> {
    // A bare integer is read by the grammar that texts are read by.
    let written = node.count().map(|number| number.to_string()).or_else(|_| node.text().map(str::to_owned));
    let parsed = parse_signal(&written.unwrap_or_default());
    pool.spec.policy.stop.signal = parsed.map_err(|error| node.fault(error.expected))?;
    Ok(())
}
