//! The table `rlimits` of a pool: resource limits of each of its processes.

use super::error::Faults;
use super::keys::{Bounds, nearest};
use super::node::Node;
use super::pool::PoolDraft;

/// `RLIMIT_*` by the names that the file uses.
const RLIMITS: [&str; 15] = [
    "as",
    "core",
    "cpu",
    "data",
    "fsize",
    "locks",
    "memlock",
    "msgqueue",
    "nice",
    "nofile",
    "nproc",
    "rss",
    "rtprio",
    "sigpending",
    "stack",
];

/// Reads the table: a size or `unlimited` for each.
pub(super) fn read(pool: &mut PoolDraft, node: &Node<'_>) -> Result<(), Faults> {
    let mut faults = Faults::default();
    for (name, value) in node.entries(Bounds::None)? {
        if faults.is_full() {
            break;
        }
        if !RLIMITS.contains(&name) {
            let near = nearest(name, RLIMITS);
            faults.push(value.place.fault("unknown resource", RLIMITS.join(", ")).suggest(near));
            continue;
        }
        let read = if value.is_unlimited() { Ok(u64::MAX) } else { value.bytes() };
        if let Some(limit) = faults.note(read) {
            pool.spec.rlimits.insert(name.to_owned(), limit);
        }
    }
    faults.or(())
}
