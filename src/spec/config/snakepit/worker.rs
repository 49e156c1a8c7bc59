//! What a pool of Snakepit's becomes here: its command line, its environment, its policies.
//!
//! Without `command` a worker is a gRPC server that knows nothing of halsup: it is started with the flags and variables that
//! Snakepit starts it with, and is ready when it has written its port into `SNAKEPIT_READY_FILE`. Requests go to that port, and
//! not through halsup. With `command` it is a worker of the channel, and requests are dispatched to it.

use std::collections::BTreeMap;
use std::time::Duration;

use super::super::dispatch::DispatchDraft;
use super::super::error::{Faults, Place};
use super::super::pool::PoolDraft;
use super::super::pool_tables::Source;
use super::values::escaped;
use super::{Draft, ListenerMode, Profile, Strategy};
use crate::spec::{BudgetKind, Probe, Ready, RecyclePolicy};

/// The file in a worker's directory that says its port.
const READY_FILE: &str = "snakepit_ready";
/// Where the Python side of Snakepit is looked for.
const SCRIPTS: &str = "/opt/snakepit/priv/python";
/// Numeric libraries of a worker that has one request at a time use one thread.
const ONE_THREAD: [&str; 5] =
    ["OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS", "NUMEXPR_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"];
/// A threshold that no result is longer than.
const NEVER_BYTES: u64 = 1 << 40;

/// Says in a pool's draft what Snakepit's keys mean. `budget` is how many requests the pools of its profile share.
pub(super) fn become_pool(draft: Draft, pool: &mut PoolDraft, budget: u32) {
    let place = pool.place.clone();
    pool.size = Some(draft.workers());
    let startup = &mut pool.spec.policy.startup;
    (startup.batch_size, startup.batch_delay) = (draft.batch_size, draft.batch_delay);
    startup.ready_timeout = draft.startup_timeout;
    pool.spec.policy.stop.grace = draft.grace;
    if draft.barrier.enabled {
        let restart = &mut pool.spec.policy.restart;
        (restart.max_restarts, restart.window) = (draft.barrier.max_restarts, draft.barrier.window);
    }
    let env = environment(&draft);
    let channel = pool.written.contains_key("command");
    let (ready, source, arguments) = if channel {
        pool.dispatch = Some(dispatch(&draft, budget, &place));
        (Ready::Channel, Source::Channel, draft.args.iter().map(|word| escaped(word)).collect())
    } else {
        pool.spec.command.clear();
        pool.written.insert("command", place.clone());
        (Ready::PortFile(READY_FILE.into()), Source::Probe(Probe::Grpc), server(&draft))
    };
    pool.spec.command.extend(arguments);
    pool.spec.ready = ready;
    if !channel {
        give(pool, of_a_server(&draft));
    }
    give(pool, env);
    pool.heartbeat = draft.heartbeat;
    pool.heartbeat.come_from(source, &place);
}

/// Sets variables that are not set yet.
fn give(pool: &mut PoolDraft, variables: BTreeMap<String, String>) {
    for (name, value) in variables {
        pool.spec.env.entry(name).or_insert(value);
    }
}

/// What is set unless the operator has set it.
fn environment(draft: &Draft) -> BTreeMap<String, String> {
    let mut env = draft.env.clone();
    if draft.profile == Profile::Process {
        for name in ONE_THREAD {
            env.entry(name.to_owned()).or_insert_with(|| "1".to_owned());
        }
        env.entry("GRPC_POLL_STRATEGY".to_owned()).or_insert_with(|| "poll".to_owned());
    }
    env
}

/// What only a server of Snakepit's is told.
fn of_a_server(draft: &Draft) -> BTreeMap<String, String> {
    let said = [
        ("SNAKEPIT_READY_FILE", format!("{{dir}}/{READY_FILE}")),
        ("SNAKEPIT_PROCESS_GROUP", "1".to_owned()),
        ("SNAKEPIT_PYTHON", escaped(python(draft))),
        ("SNAKEPIT_HEARTBEAT_CONFIG", escaped(&heartbeats(draft))),
    ];
    let unsaid = said.into_iter().filter(|(name, _)| !draft.env.contains_key(*name));
    unsaid.map(|(name, value)| (name.to_owned(), value)).collect()
}

/// The heartbeats that the worker itself sends to the Elixir side: none where nobody is there to answer, because a worker that
/// has no answer ends itself.
fn heartbeats(draft: &Draft) -> String {
    let (enabled, beat) = draft.heartbeat.said();
    let enabled = enabled && draft.listener.mode.is_some_and(|mode| mode != ListenerMode::Internal);
    format!(
        "{{\"enabled\":{enabled},\"ping_interval_ms\":{},\"timeout_ms\":{},\"max_missed_heartbeats\":{},\"initial_delay_ms\":{},\"dependent\":{}}}",
        beat.interval.as_millis(),
        beat.timeout.as_millis(),
        beat.max_missed,
        beat.initial_delay.as_millis(),
        beat.dependent
    )
}

fn python(draft: &Draft) -> &str {
    draft.python.as_deref().unwrap_or("python3")
}

/// The command line of a server, as Snakepit has it: a flag that the operator has written is not written again.
fn server(draft: &Draft) -> Vec<String> {
    let script = match (&draft.script, draft.profile) {
        (Some(script), _) => script.clone(),
        (None, Profile::Process) => format!("{SCRIPTS}/grpc_server.py"),
        (None, Profile::Thread) => format!("{SCRIPTS}/grpc_server_threaded.py"),
    };
    let mut command = vec![escaped(python(draft)), escaped(&script)];
    command.extend(draft.args.iter().map(|word| escaped(word)));
    let written = |flag: &str| {
        draft
            .args
            .iter()
            .any(|word| word.strip_prefix(flag).is_some_and(|rest| rest.is_empty() || rest.starts_with('=')))
    };
    let mut flags: Vec<(&str, Option<String>)> = Vec::new();
    if let Some(adapter) = &draft.adapter {
        flags.push(("--adapter", Some(escaped(adapter))));
    }
    if draft.profile == Profile::Thread {
        flags.push(("--max-workers", Some(draft.threads.to_string())));
        if draft.thread_checks {
            flags.push(("--thread-safety-check", None));
        }
    }
    let or = |said: &Option<String>, placeholder: &str| said.as_deref().map_or_else(|| placeholder.to_owned(), escaped);
    flags.push(("--port", Some("0".to_owned())));
    flags.push(("--elixir-address", Some(escaped(&address(draft)))));
    flags.push(("--snakepit-run-id", Some("{instance}".to_owned())));
    flags.push(("--snakepit-instance-name", Some(or(&draft.instance_name, "{instance}"))));
    flags.push(("--snakepit-instance-token", Some(or(&draft.instance_token, "{worker}"))));
    for (flag, value) in flags {
        if !written(flag) {
            command.push(flag.to_owned());
            command.extend(value);
        }
    }
    command
}

/// Where the Elixir side is.
fn address(draft: &Draft) -> String {
    let listener = &draft.listener;
    let port = match listener.mode {
        Some(ListenerMode::ExternalPool) => listener.base_port,
        Some(ListenerMode::External | ListenerMode::Internal) | None => listener.port,
    };
    format!("{}:{}", listener.host.as_deref().unwrap_or("localhost"), port.unwrap_or(50_051))
}

/// What a listener lacks.
pub(super) fn check_listener(draft: &Draft, place: &Place) -> Faults {
    let (listener, mut faults) = (&draft.listener, Faults::default());
    let whole = draft.written.get("grpc_listener");
    let here = whole.or_else(|| draft.written.get("grpc_port")).unwrap_or(place);
    let mut lacks = |what: &str, expected: &str| {
        faults.push(here.fault(format!("invalid_grpc_listener_config: {what}"), expected));
    };
    match listener.mode {
        None | Some(ListenerMode::Internal) => {}
        // By its older name it has a host without being told.
        Some(ListenerMode::External | ListenerMode::ExternalPool) if whole.is_some() && listener.host.is_none() => {
            lacks("missing_host", "host");
        }
        Some(ListenerMode::External) if listener.port.is_none() => lacks("missing_port", "port"),
        Some(ListenerMode::ExternalPool) if listener.base_port.is_none() => lacks("missing_base_port", "base_port"),
        Some(ListenerMode::External | ListenerMode::ExternalPool) => {}
    }
    let ports = listener.base_port.map_or(0, u32::from) + listener.pool_size.unwrap_or(32);
    if listener.mode == Some(ListenerMode::ExternalPool) && ports > 65_536 {
        lacks("invalid_pool_size", "ports up to 65535");
    }
    if draft.written.contains_key("venv") && draft.python.is_none() {
        let here = draft.written.get("venv").unwrap_or(place);
        faults.push(here.fault("python_executable is missing", "that of the virtual environment"));
    }
    faults
}

/// How requests are given to its workers.
fn dispatch(draft: &Draft, budget: u32, place: &Place) -> DispatchDraft {
    let mut dispatch = DispatchDraft::default();
    let policy = &mut dispatch.policy;
    policy.capacity = draft.per_worker();
    policy.queue_max = draft.queue_max;
    policy.queue_timeout =
        draft.queue_timeout.or(draft.timeouts.map(|(_, queue)| queue)).unwrap_or(policy.queue_timeout);
    policy.timeout = draft.timeout.or(draft.timeouts.map(|(timeout, _)| timeout)).unwrap_or(policy.timeout);
    policy.attempts_max = draft.attempts.unwrap_or(policy.attempts_max);
    let barrier = draft.barrier.enabled.then_some(&draft.barrier);
    policy.backoff = draft.backoff.or(barrier.and_then(|barrier| barrier.backoff)).unwrap_or(policy.backoff);
    policy.taint = barrier.map_or(Duration::ZERO, |barrier| barrier.taint);
    if draft.breaker_enabled {
        policy.pool_breaker = draft.breaker;
    }
    policy.recycle = RecyclePolicy { ttl: draft.ttl, requests: draft.max_requests, memory_bytes: draft.max_memory };
    policy.sessions.ttl = draft.session_ttl;
    policy.sessions.max = draft.sessions;
    policy.sessions.affinity = draft.affinity;
    match (draft.zero_copy, draft.zero_copy_bytes) {
        (true, Some(bytes)) => dispatch.zero_copy_bytes = bytes,
        (true, None) => {}
        (false, _) => dispatch.zero_copy_bytes = NEVER_BYTES,
    }
    let name = match draft.profile {
        Profile::Process => "snakepit-process",
        Profile::Thread => "snakepit-thread",
    };
    match draft.strategy {
        Strategy::Pool => {}
        Strategy::Profile => dispatch.share(name, budget, BudgetKind::Shared, place),
        Strategy::Hybrid => dispatch.share(name, budget, BudgetKind::Hybrid, place),
    }
    dispatch
}

/// The filter that log levels of Snakepit amount to.
pub(super) fn log_filter(draft: &Draft) -> Option<String> {
    if draft.log_level.is_none() && draft.log_categories.is_empty() {
        return None;
    }
    let all = draft.log_level.unwrap_or("info").to_owned();
    // Of two that are one here, the one that says more.
    let order = ["off", "error", "warn", "info", "debug"];
    let mut levels = BTreeMap::new();
    for (category, level) in &draft.log_categories {
        let place = order.iter().position(|known| known == level);
        let most = levels.entry(category).or_insert(place);
        *most = place.max(*most);
    }
    let named = levels.into_iter().filter_map(|(category, place)| Some(format!("{category}={}", order.get(place?)?)));
    Some(std::iter::once(all).chain(named).collect::<Vec<_>>().join(","))
}

/// What a category of Snakepit's log is here.
pub(super) fn category(name: &str) -> Option<&'static str> {
    Some(match name {
        "pool" => "pool",
        "worker" => "worker",
        "heartbeat" => "heartbeat",
        "grpc" | "bridge" | "session" | "telemetry" => "dispatch",
        "startup" => "spawn",
        "shutdown" => "control",
        _ => return None,
    })
}
