//! `[snakepit]`: what Snakepit is configured by, under its own names, and the pools that it means.
//!
//! Both of its shapes: one pool, `default`, by keys of `[snakepit]` and `[snakepit.pool_config]`; or many, `[[snakepit.pools]]`.
//! What `[snakepit]` says holds for all pools, what a pool says for it alone. Keys of `[pool.NAME]` about where and within
//! which limits a worker runs may stand in either. Mistakes that Snakepit has a name for begin with that name. `keys` are the
//! rows, `values` reads what Elixir writes in types that TOML lacks, `worker` says what becomes of it.

mod kept;
mod keys;
mod tables;
mod values;
mod worker;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

pub(super) use self::kept::KEPT_KEYS;
pub(super) use self::keys::{SHARED_KEYS, WHOLE_KEYS};
pub(super) use self::tables::{BARRIER_KEYS, LISTENER_KEYS, RUNTIME_KEYS, ZERO_COPY_KEYS};

use super::daemon::DaemonDraft;
use super::error::{Faults, Place};
use super::keys::{Bounds, Key, Written, nearest};
use super::node::{Node, Raw, entries};
use super::pool::{Checked, PoolDraft};
use super::pool_keys::KEYS as POOL_KEYS;
use super::pool_tables::HeartbeatDraft;
use crate::spec::{Affinity, BreakerPolicy, PoolName};

/// Keys of `[pool.NAME]` that may stand beside Snakepit's: where a worker runs, and within which limits. All others are said
/// by Snakepit's own.
pub(super) const BESIDE: [&str; 25] = [
    "command",
    "env",
    "base_port",
    "ports",
    "root",
    "image",
    "net",
    "identity",
    "link",
    "bind",
    "volumes",
    "memory",
    "memory_high",
    "swap",
    "oom_group",
    "cpus",
    "cpu_weight",
    "pids",
    "cpuset",
    "rlimits",
    "seccomp",
    "stop_signal",
    "kill_timeout",
    "log",
    "on_supervisor_death",
];

/// How many requests a worker has at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Profile {
    Process,
    Thread,
}

/// What pools have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Strategy {
    Pool,
    Profile,
    Hybrid,
}

/// The crash barrier as it was written.
#[derive(Debug, Clone)]
pub(super) struct Barrier {
    enabled: bool,
    max_restarts: u32,
    window: Duration,
    taint: Duration,
    backoff: Option<Duration>,
}

/// Where workers find the Elixir side of their bridge.
#[derive(Debug, Clone, Default)]
pub(super) struct Listener {
    mode: Option<ListenerMode>,
    host: Option<String>,
    port: Option<u16>,
    base_port: Option<u16>,
    pool_size: Option<u32>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ListenerMode {
    Internal,
    External,
    ExternalPool,
}

/// All that is said of one pool, or of all of them.
#[derive(Debug, Clone)]
pub(super) struct Draft {
    enabled: bool,
    name: Option<String>,
    profile: Profile,
    size: Option<u32>,
    max_workers: u32,
    strategy: Strategy,
    affinity: Affinity,
    args: Vec<String>,
    env: BTreeMap<String, String>,
    adapter: Option<String>,
    python: Option<String>,
    script: Option<String>,
    threads: u32,
    thread_checks: bool,
    batch_size: u32,
    batch_delay: Duration,
    startup_timeout: Duration,
    timeout: Option<Duration>,
    queue_timeout: Option<Duration>,
    /// What the timeout profile says: for an answer, and for a worker.
    timeouts: Option<(Duration, Duration)>,
    queue_max: u32,
    grace: Duration,
    ttl: Option<Duration>,
    max_requests: Option<u64>,
    max_memory: Option<u64>,
    heartbeat: HeartbeatDraft,
    barrier: Barrier,
    breaker: BreakerPolicy,
    breaker_enabled: bool,
    attempts: Option<u32>,
    backoff: Option<Duration>,
    session_ttl: Duration,
    sessions: u32,
    zero_copy: bool,
    zero_copy_bytes: Option<u64>,
    listener: Listener,
    instance_name: Option<String>,
    instance_token: Option<String>,
    log_level: Option<&'static str>,
    log_categories: Vec<(&'static str, &'static str)>,
    /// Which keys were written.
    written: Written,
}

impl Default for Draft {
    fn default() -> Self {
        Self {
            enabled: false,
            name: None,
            profile: Profile::Process,
            size: None,
            max_workers: 150,
            strategy: Strategy::Pool,
            affinity: Affinity::Hint,
            args: Vec::new(),
            env: BTreeMap::new(),
            adapter: None,
            python: None,
            script: None,
            threads: 10,
            thread_checks: false,
            batch_size: 8,
            batch_delay: Duration::from_millis(750),
            startup_timeout: Duration::from_secs(10),
            timeout: None,
            queue_timeout: None,
            timeouts: None,
            queue_max: 1000,
            grace: Duration::from_secs(6),
            ttl: None,
            max_requests: None,
            max_memory: None,
            heartbeat: HeartbeatDraft::default(),
            barrier: Barrier {
                enabled: false,
                max_restarts: 5,
                window: Duration::from_secs(60),
                taint: Duration::from_secs(60),
                backoff: None,
            },
            breaker: BreakerPolicy { failures: 5, open_for: Duration::from_secs(30) },
            breaker_enabled: false,
            attempts: None,
            backoff: None,
            session_ttl: Duration::from_secs(3600),
            sessions: 10_000,
            zero_copy: true,
            zero_copy_bytes: None,
            listener: Listener::default(),
            instance_name: None,
            instance_token: None,
            log_level: None,
            log_categories: Vec::new(),
            written: Written::new(),
        }
    }
}

impl Draft {
    /// Requests that its workers have at once, all together.
    fn capacity(&self) -> u32 {
        self.workers().saturating_mul(self.per_worker())
    }

    /// Requests that one worker has at once.
    const fn per_worker(&self) -> u32 {
        match self.profile {
            Profile::Process => 1,
            Profile::Thread => self.threads,
        }
    }

    fn workers(&self) -> u32 {
        self.size.unwrap_or(SIZE_DEFAULT).min(self.max_workers)
    }
}

/// How many workers a pool has that says nothing of it. There it is twice the processors of the host, which nobody knows who
/// only reads.
const SIZE_DEFAULT: u32 = 4;

/// A key of a table, by whose row it is read.
type Entry<'a> = (&'a str, Node<'a>);

/// Reads `[snakepit]`: pools that are right go into `pools`.
pub(super) fn read(
    pools: &mut Vec<Checked>,
    daemon: &mut DaemonDraft,
    node: &Node<'_>,
    environment: &BTreeMap<String, String>,
) -> Faults {
    let mut faults = Faults::default();
    let Some(table) = faults.note(node.table()) else { return faults };
    let all = entries(table, &node.place, Bounds::None);
    let find = |name: &str| all.iter().find(|(key, _)| *key == name).map(|(_, node)| node.clone());
    let (listed, legacy) = (find("pools"), find("pool_config"));
    let said: Vec<Entry<'_>> =
        all.iter().filter(|(key, _)| *key != "pools" && *key != "pool_config").cloned().collect();
    let (shared, beside) = sort(said, Scope::Whole, &mut faults);
    let mut whole = Draft::default();
    faults.append(set(&mut whole, &shared));
    let size = whole.size;
    let mut beside_all = beside;
    if let Some(legacy) = legacy
        && let Some(legacy) = faults.note(legacy.entries(Bounds::None))
    {
        let (shared, beside) = sort(legacy, Scope::Pool, &mut faults);
        faults.append(set(&mut whole, &shared));
        beside_all.extend(beside);
        whole.size = size.or(whole.size);
    }
    faults.append(keys::override_by(&mut whole, environment));
    faults.append(worker::check_listener(&whole, &node.place));
    let log = worker::log_filter(&whole);
    if faults.is_empty()
        && let Some(filter) = log
    {
        daemon.log_level_unless_said(filter);
    }
    // What is wrong for all pools is said once.
    let trial = PoolName::parse("trial").ok().map(|name| PoolDraft::new(name, node.place.clone()));
    if let Some(mut trial) = trial {
        faults.append(put(&mut trial, &beside_all));
    }
    if faults.is_empty() {
        faults.append(match listed {
            None => one(pools, whole, &beside_all, &node.place, environment),
            Some(listed) => many(pools, &whole, &beside_all, &listed, environment),
        });
    }
    faults
}

/// A pool while all of them are read.
#[derive(Debug)]
struct Reading {
    draft: Draft,
    pool: PoolDraft,
}

/// The shape with one pool.
fn one(
    pools: &mut Vec<Checked>,
    whole: Draft,
    beside: &[Entry<'_>],
    place: &Place,
    environment: &BTreeMap<String, String>,
) -> Faults {
    let mut faults = Faults::default();
    let name = PoolName::parse("default").map_err(|error| place.fault("not a name", error.expected));
    let Some(name) = faults.note(name) else { return faults };
    let mut pool = PoolDraft::new(name, place.clone());
    faults.append(put(&mut pool, beside));
    faults.append(finish(pools, vec![Reading { draft: whole, pool }], environment));
    faults
}

/// The shape with many pools.
fn many(
    pools: &mut Vec<Checked>,
    whole: &Draft,
    beside: &[Entry<'_>],
    listed: &Node<'_>,
    environment: &BTreeMap<String, String>,
) -> Faults {
    let mut faults = Faults::default();
    let items =
        listed.items(Bounds::None).ok().ok_or_else(|| values::named(listed, "invalid_pools_config", "a list of pools"));
    let Some(items) = faults.note(items) else { return faults };
    let (mut readings, mut names) = (Vec::new(), BTreeSet::new());
    for item in items {
        if faults.is_full() {
            break;
        }
        let said =
            item.entries(Bounds::None).ok().ok_or_else(|| values::named(&item, "invalid_pool_config", "a table"));
        let Some(said) = faults.note(said) else { continue };
        let mut draft = whole.clone();
        let (shared, own) = sort(said, Scope::Pool, &mut faults);
        faults.append(set(&mut draft, &shared));
        let Some(written) = &draft.name else {
            faults.push(item.place.fault("missing_required_fields: name", "the name of the pool"));
            continue;
        };
        let place = draft.written.get("name").unwrap_or(&item.place);
        let name = PoolName::parse(&written.replace('_', "-"))
            .map_err(|error| place.fault(format!("not a name, where every _ is a -: {written:?}"), error.expected));
        let Some(name) = faults.note(name) else { continue };
        if !names.insert(name.clone()) {
            faults.push(place.fault(format!("duplicate_pool_names: {name}"), "another name"));
        }
        let mut pool = PoolDraft::new(name, item.place.clone());
        faults.append(put(&mut pool, beside));
        faults.append(put(&mut pool, &own));
        readings.push(Reading { draft, pool });
    }
    if faults.is_empty() {
        faults.append(finish(pools, readings, environment));
    }
    faults
}

/// Makes pools of what was read.
fn finish(pools: &mut Vec<Checked>, readings: Vec<Reading>, environment: &BTreeMap<String, String>) -> Faults {
    let mut faults = Faults::default();
    let mut budgets = BTreeMap::new();
    for Reading { draft, .. } in &readings {
        let most: &mut u32 = budgets.entry(draft.profile).or_default();
        *most = draft.capacity().max(*most);
    }
    for Reading { draft, mut pool } in readings {
        let budget = budgets.get(&draft.profile).copied().unwrap_or(1);
        let enabled = draft.enabled;
        worker::become_pool(draft, &mut pool, budget);
        faults.append(pool.fill_from(environment));
        if let Some(checked) = faults.note(pool.finish())
            && enabled
        {
            pools.push(checked);
        }
    }
    faults
}

/// Where an entry stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scope {
    /// In `[snakepit]`.
    Whole,
    /// In a pool.
    Pool,
}

/// Splits entries into Snakepit's own and those of `[pool.NAME]`; what is neither is a mistake.
fn sort<'a>(said: Vec<Entry<'a>>, scope: Scope, faults: &mut Faults) -> (Vec<Entry<'a>>, Vec<Entry<'a>>) {
    let own = |name: &str| {
        let whole = scope == Scope::Whole;
        SHARED_KEYS.iter().any(|key| key.is_named(name))
            || (whole && WHOLE_KEYS.iter().chain(KEPT_KEYS).any(|key| key.is_named(name)))
    };
    let (mut snakepit, mut beside) = (Vec::new(), Vec::new());
    for (name, node) in said {
        if own(name) {
            snakepit.push((name, node));
        } else if beside_key(name).is_some() {
            beside.push((name, node));
        } else {
            let shared = SHARED_KEYS.iter().map(|key| key.name).chain(BESIDE);
            let whole = WHOLE_KEYS.iter().chain(KEPT_KEYS).map(|key| key.name).chain(["pools", "pool_config"]);
            let known: Vec<&str> = match scope {
                Scope::Whole => shared.chain(whole).collect(),
                Scope::Pool => shared.collect(),
            };
            faults.push(node.place.fault("unknown key", "").suggest(nearest(name, known)));
        }
    }
    (snakepit, beside)
}

fn beside_key(name: &str) -> Option<&'static Key<PoolDraft>> {
    POOL_KEYS.iter().find(|key| key.is_named(name) && BESIDE.contains(&key.name))
}

/// Reads Snakepit's own keys.
fn set(draft: &mut Draft, said: &[Entry<'_>]) -> Faults {
    let mut faults = Faults::default();
    for (name, node) in said {
        let key = SHARED_KEYS.iter().chain(WHOLE_KEYS).chain(KEPT_KEYS).find(|key| key.is_named(name));
        if let Some(key) = key {
            draft.written.insert(key.name, node.place.clone());
            faults.note((key.set)(draft, &bounded(node, key.bounds)));
        }
    }
    faults
}

/// Reads keys of `[pool.NAME]`; of two, the later one holds.
fn put(pool: &mut PoolDraft, said: &[Entry<'_>]) -> Faults {
    let mut faults = Faults::default();
    for (name, node) in said {
        if let Some(key) = beside_key(name) {
            pool.written.insert(key.name, node.place.clone());
            faults.note((key.set)(pool, &bounded(node, key.bounds)));
        }
    }
    faults
}

/// A value with the bounds of its key. What is a whole number without a unit, Snakepit means in milliseconds.
fn bounded<'a>(node: &Node<'a>, bounds: Bounds) -> Node<'a> {
    let plain = matches!(bounds, Bounds::Time(..)) && matches!(node.raw, Raw::Toml(value) if value.is_integer());
    Node { bounds, unit: plain.then_some(Duration::from_millis(1)), ..node.clone() }
}
