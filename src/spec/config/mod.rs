//! The configuration: one TOML file, the environment, the command line; all read by the same rows of keys.
//!
//! Decides what an operator may write and what it means; finds every mistake at once and says each in one sentence with
//! its line. Never touches files: `daemon` and `cli` bring the text, at most [`CONFIG_BYTES_MAX`] of it.
//!
//! Precedence: for the daemon's settings environment over file over default; for a pool's limits file over environment
//! over default, because a file speaks of one pool and a variable of all; for a pool from the command line option over
//! environment over default.

mod atomforge;
mod check;
mod chromadb;
mod claims;
mod command;
mod daemon;
mod dispatch;
mod error;
mod gateway;
mod keys;
mod node;
mod paths;
mod pool;
mod pool_keys;
mod pool_tables;
mod pool_values;
mod reference;
mod rlimits;
mod serve_keys;
mod snakepit;
mod tasks;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use toml::de::DeTable;

pub use check::check_pools;
pub use chromadb::CHROMADB_PROGRAM;
pub use command::{PoolOverrides, pool_from_command};
pub use daemon::LOG_CATEGORIES;
pub use error::{CONFIG_ERRORS_MAX, ConfigError, ConfigErrors};
pub use paths::parse_bind;
pub use reference::reference;

use super::{Config, PoolName};
use daemon::DaemonDraft;
use error::{Faults, Place};
use keys::Bounds;
use node::Node;
use pool::Checked;

/// The longest configuration, in bytes.
pub const CONFIG_BYTES_MAX: usize = 1 << 20;

/// The tables at the top of the file.
const SECTIONS: [&str; 6] = ["daemon", "gateway", "pool", "service", "snakepit", "tasks"];

/// Reads a configuration and checks it whole. An empty text is a daemon without pools.
///
/// # Errors
/// All that is wrong, up to [`CONFIG_ERRORS_MAX`] errors; for a text that is no TOML, only where it is not.
pub fn parse_config(text: &str, environment: &BTreeMap<String, String>) -> Result<Config, ConfigErrors> {
    read(text, environment).map_err(|faults| faults.into_errors(text))
}

fn read(text: &str, environment: &BTreeMap<String, String>) -> Result<Config, Faults> {
    let whole_file = Place::outside("");
    if text.len() > CONFIG_BYTES_MAX {
        let what = format!("the file has {} bytes", text.len());
        return Err(whole_file.fault(what, format!("at most {CONFIG_BYTES_MAX}")).into());
    }
    let (document, syntax) = DeTable::parse_recoverable(text);
    // Half of a file means nothing: a key that was not understood may have been any key.
    let mut faults = no_toml(text, &syntax, &whole_file);
    if !faults.is_empty() {
        return Err(faults);
    }
    let mut daemon = DaemonDraft::default();
    let mut pools = Vec::new();
    // A variable that is wrong is said once, not for every pool, and also where there is no pool.
    let nothing = BTreeMap::new();
    let variables = if faults.note(pool::try_variables(environment)).is_some() { environment } else { &nothing };
    let (mut snakepit_node, mut gateway_node, mut tasks) = (None, None, None);
    let front = gateway::named_pool(document.get_ref());
    for (name, node) in node::entries(document.get_ref(), &whole_file, Bounds::None) {
        match name {
            "daemon" => {
                faults.note(daemon::read(&mut daemon, &node));
            }
            "pool" | "service" => faults.append(read_pools(&mut pools, name == "service", &node, variables, front)),
            "snakepit" => snakepit_node = Some(node),
            "gateway" => gateway_node = Some(node),
            "tasks" => tasks = faults.note(tasks::read(&node, environment)),
            _ => {
                let near = keys::nearest(name.strip_suffix('s').unwrap_or(name), SECTIONS);
                faults.push(node.place.fault("unknown key", "").suggest(near));
            }
        }
    }
    if let Some(node) = snakepit_node {
        // After `[daemon]`, whose word on what is logged is the last.
        faults.append(snakepit::read(&mut pools, &mut daemon, &node, variables));
    }
    if gateway_node.is_none() {
        faults.append(gateway::missing(&pools));
    }
    // Also after the pools, of which it may name one.
    let gateway = gateway_node.and_then(|node| faults.note(gateway::read(&node, &mut pools, environment)));
    faults.append(daemon.override_by(environment));
    let role_pools = std::mem::take(&mut daemon.role_pools);
    let daemon = daemon.finish();
    faults.append(check::all(&daemon, &pools));
    faults.append(dispatch::check_budgets(pools.iter().filter_map(Checked::budget)));
    // A pool that is wrong itself is not missing.
    if faults.is_empty() {
        faults.append(check::roles(&role_pools, &pools));
    }
    let tasks = tasks.filter(|_| faults.is_empty()).and_then(|tasks| faults.note(tasks.finish(&pools)));
    pools.sort_by_key(|pool| pool.place().offset);
    faults.or(Config { daemon, gateway, pools: pools.into_iter().map(|pool| pool.spec).collect(), tasks })
}

/// Where the text is no TOML: the first place in each line, because others in it mostly follow from that.
fn no_toml(text: &str, errors: &[toml::de::Error], whole_file: &Place) -> Faults {
    let mut faults = Faults::default();
    let mut line_end = 0;
    let mut errors: Vec<_> = errors.iter().map(|error| (error.span().unwrap_or_default(), error.message())).collect();
    errors.sort_by_key(|(span, _)| span.start);
    for (span, message) in errors {
        if span.start < line_end {
            continue;
        }
        let rest = text.get(span.start..).unwrap_or_default();
        line_end = span.start + rest.find('\n').map_or(rest.len(), |at| at + 1).max(1);
        let found = text.get(span.clone()).unwrap_or_default();
        let (what, expected) = message.split_once(", expected ").unwrap_or((message, ""));
        let shown = if found.trim().is_empty() { String::new() } else { format!(", at {:?}", node::cut(found)) };
        faults.push(whole_file.clone().at(span.start).fault(format!("{what}{shown}"), expected));
    }
    faults
}

/// Reads `[pool]` or `[service]`: a table of tables by name. Pools that are right go into `pools`.
fn read_pools(
    pools: &mut Vec<Checked>,
    service: bool,
    node: &Node<'_>,
    environment: &BTreeMap<String, String>,
    front: Option<&str>,
) -> Faults {
    let mut faults = Faults::default();
    let Some(entries) = faults.note(node.entries(Bounds::None)) else { return faults };
    for (name, node) in entries {
        if faults.is_full() {
            break;
        }
        let name = PoolName::parse(name).map_err(|error| node.place.fault("not a name", error.expected));
        if let Some(name) = faults.note(name) {
            let front = front == Some(name.as_str());
            pools.extend(faults.note(pool::read(name, service, &node, environment, front)));
        }
    }
    faults
}
