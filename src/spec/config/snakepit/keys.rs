//! The rows of Snakepit's keys.

use std::collections::BTreeMap;
use std::time::Duration;

use super::super::error::{Faults, Place};
use super::super::keys::{Bounds, Key, apply, walk};
use super::super::node::Node;
use super::super::pool::WORKERS_MAX;
use super::super::pool_tables;
use super::tables::{BARRIER_KEYS, LISTENER_KEYS, RUNTIME_KEYS, ZERO_COPY_KEYS, breaker, first_pause, host, port};
use super::values::{atom, is_infinity, lifetime, named, one_of, texts, variables};
use super::{Draft, ListenerMode, Profile, Strategy, worker};
use crate::spec::Affinity;

const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(86_400);
const YEAR: Duration = Duration::from_secs(365 * 86_400);
const SECOND: Duration = Duration::from_secs(1);
const MILLISECOND: Duration = Duration::from_millis(1);

/// A row without a variable.
pub(super) const fn row<T>(
    name: &'static str,
    kind: &'static str,
    default: &'static str,
    bounds: Bounds,
    what: &'static str,
    set: fn(&mut T, &Node<'_>) -> Result<(), Faults>,
) -> Key<T> {
    Key { name, aliases: &[], variable: "", kind, default, bounds, what, set }
}

pub(super) const fn also<T>(mut key: Key<T>, aliases: &'static [&'static str]) -> Key<T> {
    key.aliases = aliases;
    key
}

const fn or_variable<T>(mut key: Key<T>, variable: &'static str) -> Key<T> {
    key.variable = variable;
    key
}

/// Keys that a pool may have, and that hold for all pools where `[snakepit]` has them.
pub(in super::super) const SHARED_KEYS: &[Key<Draft>] = &[
    row(
        "name",
        "name",
        "\"default\"",
        Bounds::Prose("a name, in which _ may stand for -"),
        "The pool's name; required in `pools`. A `_` in it is a `-` here.",
        |draft, node| {
            draft.name = Some(atom(node)?.to_owned());
            Ok(())
        },
    ),
    row(
        "worker_profile",
        "atom",
        "\"process\"",
        Bounds::Prose("process, thread"),
        "`process`: one request in a worker, and numeric libraries are kept to one thread. `thread`: `threads_per_worker` requests in a worker.",
        |draft, node| {
            let profile = one_of(node, &[("process", Profile::Process), ("thread", Profile::Thread)]);
            draft.profile = profile.ok_or_else(|| named(node, "invalid_profile", ":process or :thread"))?;
            Ok(())
        },
    ),
    row(
        "pool_size",
        "integer",
        "4",
        Bounds::Count(1, WORKERS_MAX as u64),
        "How many workers; there it is twice the number of processors.",
        |draft, node| {
            draft.size =
                Some(node.count_u32().ok().ok_or_else(|| named(node, "invalid_pool_size", "positive integer"))?);
            Ok(())
        },
    ),
    also(
        row(
            "max_workers",
            "integer",
            "150",
            Bounds::Count(1, WORKERS_MAX as u64),
            "Never more workers than this, whatever `pool_size` says.",
            |draft, node| {
                draft.max_workers = node.count_u32()?;
                Ok(())
            },
        ),
        &["pool_max_workers"],
    ),
    row(
        "capacity_strategy",
        "atom",
        "\"pool\"",
        Bounds::Prose("pool, profile, hybrid"),
        "`profile`: pools of one profile have together no more requests in flight than the largest of them could have alone. `hybrid`: the same, but each worker may always have one.",
        |draft, node| {
            let strategies = [("pool", Strategy::Pool), ("profile", Strategy::Profile), ("hybrid", Strategy::Hybrid)];
            let strategy = one_of(node, &strategies);
            draft.strategy =
                strategy.ok_or_else(|| named(node, "invalid_capacity_strategy", ":pool, :profile or :hybrid"))?;
            Ok(())
        },
    ),
    row(
        "affinity",
        "atom",
        "\"hint\"",
        Bounds::Prose("hint, strict_queue, strict_fail_fast"),
        "`affinity` of `dispatch`.",
        |draft, node| {
            let modes = [
                ("hint", Affinity::Hint),
                ("strict_queue", Affinity::StrictQueue),
                ("strict_fail_fast", Affinity::StrictFailFast),
            ];
            let mode = one_of(node, &modes);
            draft.affinity =
                mode.ok_or_else(|| named(node, "invalid_affinity", ":hint, :strict_queue or :strict_fail_fast"))?;
            Ok(())
        },
    ),
    row(
        "adapter_module",
        "text",
        "",
        Bounds::Length(256),
        "The Elixir module that talks to a worker. Read and checked; `script` or `command` says what runs.",
        |_, node| {
            node.text()?;
            Ok(())
        },
    ),
    row(
        "adapter_spec",
        "text",
        "",
        Bounds::Length(256),
        "The Python adapter, passed on as `--adapter`.",
        |draft, node| {
            draft.adapter = Some(node.text()?.to_owned());
            Ok(())
        },
    ),
    row(
        "adapter_args",
        "list of strings",
        "[]",
        Bounds::Items(1024),
        "Arguments of the worker, literally.",
        |draft, node| {
            draft.args = texts(node)?;
            Ok(())
        },
    ),
    row(
        "adapter_env",
        "table or list of pairs",
        "[]",
        Bounds::Items(256),
        "Variables of the worker, literally; they come before all that is set here.",
        |draft, node| {
            draft.env.extend(variables(node)?);
            Ok(())
        },
    ),
    row(
        "script",
        "path",
        "",
        Bounds::Length(4095),
        "The Python server. Default: `grpc_server.py`, with threads `grpc_server_threaded.py`, in `/opt/snakepit/priv/python`. Of halsup, not of Snakepit; so is `command`, which is instead of it and for workers that speak on the channel.",
        |draft, node| {
            draft.script = Some(super::super::paths::absolute(node)?.display().to_string());
            Ok(())
        },
    ),
    row(
        "threads_per_worker",
        "integer",
        "10",
        Bounds::Count(1, 1024),
        "Requests in flight in a worker of profile `thread`.",
        |draft, node| {
            draft.threads = node.count_u32()?;
            Ok(())
        },
    ),
    row(
        "thread_safety_checks",
        "boolean",
        "false",
        Bounds::None,
        "Passed on as `--thread-safety-check`.",
        |draft, node| {
            draft.thread_checks = node.boolean()?;
            Ok(())
        },
    ),
    also(
        row(
            "startup_batch_size",
            "integer",
            "8",
            Bounds::Count(1, WORKERS_MAX as u64),
            "At most this many workers begin at once.",
            |draft, node| {
                draft.batch_size = node.count_u32()?;
                Ok(())
            },
        ),
        &["pool_startup_batch_size"],
    ),
    also(
        row(
            "startup_batch_delay_ms",
            "milliseconds",
            "750",
            Bounds::Time(Duration::ZERO, HOUR),
            "Pause between two batches.",
            |draft, node| {
                draft.batch_delay = node.duration()?;
                Ok(())
            },
        ),
        &["pool_startup_batch_delay_ms"],
    ),
    row(
        "pool_startup_timeout",
        "milliseconds",
        "10000",
        Bounds::Time(Duration::from_millis(10), DAY),
        "A worker that is not ready after this long is killed.",
        |draft, node| {
            draft.startup_timeout = node.duration()?;
            Ok(())
        },
    ),
    also(
        row(
            "pool_queue_timeout",
            "milliseconds",
            "5000",
            Bounds::Time(MILLISECOND, DAY),
            "`queue_timeout` of `dispatch`.",
            |draft, node| {
                draft.queue_timeout = Some(node.duration()?);
                Ok(())
            },
        ),
        &["queue_timeout", "checkout_timeout"],
    ),
    also(
        row(
            "pool_max_queue_size",
            "integer",
            "1000",
            Bounds::Count(0, 100_000),
            "`queue_max` of `dispatch`.",
            |draft, node| {
                draft.queue_max = node.count_u32()?;
                Ok(())
            },
        ),
        &["max_queue_size"],
    ),
    also(
        row(
            "default_timeout",
            "milliseconds",
            "300000",
            Bounds::Time(MILLISECOND, DAY),
            "`timeout` of `dispatch`.",
            |draft, node| {
                draft.timeout = Some(if is_infinity(node) { DAY } else { node.duration()? });
                Ok(())
            },
        ),
        &["pool_request_timeout", "default_command_timeout"],
    ),
    row(
        "worker_ttl",
        "infinity or {value, unit}",
        "\"infinity\"",
        Bounds::Time(SECOND, YEAR),
        "`\"infinity\"`, `\"30m\"`, or a pair such as `[30, \"minutes\"]`: `worker_ttl` of `dispatch`.",
        |draft, node| {
            draft.ttl = lifetime(node)?;
            Ok(())
        },
    ),
    row(
        "worker_max_requests",
        "infinity or integer",
        "\"infinity\"",
        Bounds::Count(1, u64::MAX),
        "`worker_max_requests` of `dispatch`.",
        |draft, node| {
            draft.max_requests = if is_infinity(node) {
                None
            } else {
                Some(
                    node.count()
                        .ok()
                        .ok_or_else(|| named(node, "invalid_worker_max_requests", ":infinity or positive integer"))?,
                )
            };
            Ok(())
        },
    ),
    also(
        row(
            "memory_threshold_mb",
            "integer",
            "",
            Bounds::Count(1, 1 << 30),
            "`worker_max_memory` of `dispatch`, of the worker itself.",
            |draft, node| {
                draft.max_memory = Some(node.count()?.saturating_mul(1 << 20));
                Ok(())
            },
        ),
        &["worker_memory_threshold_mb"],
    ),
    row(
        "heartbeat",
        "table",
        "",
        Bounds::None,
        "`enabled`, `ping_interval_ms`, `timeout_ms`, `max_missed_heartbeats`, `initial_delay_ms`, `dependent`, as in `[pool.NAME.heartbeat]`; on by default. What a pool leaves out is as `[snakepit]` has it.",
        |draft, node| pool_tables::heartbeat(&mut draft.heartbeat, node),
    ),
    row("crash_barrier", "table", "", Bounds::None, "Keys below.", |draft, node| {
        let (_, faults) = walk(BARRIER_KEYS, &mut draft.barrier, node.table()?, &node.place);
        faults.or(())
    }),
    row(
        "circuit_breaker",
        "table",
        "",
        Bounds::None,
        "`pool_breaker` of `dispatch`: `enabled`, `failure_threshold` (5), `reset_timeout_ms` (30000), `half_open_max_calls` (1, and no other). It counts failures in a row.",
        breaker,
    ),
];

/// Keys of `[snakepit]` alone.
pub(in super::super) const WHOLE_KEYS: &[Key<Draft>] = &[
    row(
        "pooling_enabled",
        "boolean",
        "false",
        Bounds::None,
        "Whether there are pools at all; without, they are read and checked.",
        |draft, node| {
            draft.enabled = node.boolean()?;
            Ok(())
        },
    ),
    or_variable(
        row(
            "python_executable",
            "path or name",
            "\"python3\"",
            Bounds::Length(4095),
            "The interpreter.",
            |draft, node| {
                draft.python = Some(node.text()?.to_owned());
                Ok(())
            },
        ),
        "SNAKEPIT_PYTHON",
    ),
    row("python_runtime", "table", "", Bounds::None, "How the interpreter is found. Keys below.", |draft, node| {
        let (_, faults) = walk(RUNTIME_KEYS, draft, node.table()?, &node.place);
        faults.or(())
    }),
    also(
        row(
            "graceful_shutdown_timeout_ms",
            "milliseconds",
            "6000",
            Bounds::Time(Duration::ZERO, HOUR),
            "`stop_grace` of the pools.",
            |draft, node| {
                draft.grace = node.duration()?;
                Ok(())
            },
        ),
        &["graceful_shutdown_timeout"],
    ),
    row(
        "timeout_profile",
        "atom",
        "",
        Bounds::Prose("balanced, production, production_strict, development, ml_inference, batch"),
        "What `default_timeout` and `pool_queue_timeout` are where they are not written: 300 s and 10 s, 300 s and 10 s, 60 s and 5 s, 900 s and 60 s, 900 s and 60 s, 3600 s and 300 s.",
        |draft, node| {
            let seconds = |timeout, queue| (Duration::from_secs(timeout), Duration::from_secs(queue));
            let profiles = [
                ("balanced", seconds(300, 10)),
                ("production", seconds(300, 10)),
                ("production_strict", seconds(60, 5)),
                ("development", seconds(900, 60)),
                ("ml_inference", seconds(900, 60)),
                ("batch", seconds(3600, 300)),
            ];
            let names = profiles.map(|(name, _)| name).join(", ");
            draft.timeouts = Some(one_of(node, &profiles).ok_or_else(|| node.fault(names))?);
            Ok(())
        },
    ),
    row("zero_copy", "table", "", Bounds::None, "Keys below.", |draft, node| {
        let (_, faults) = walk(ZERO_COPY_KEYS, draft, node.table()?, &node.place);
        faults.or(())
    }),
    row("retry_max_attempts", "integer", "3", Bounds::Count(1, 100), "`attempts` of `dispatch`.", |draft, node| {
        draft.attempts = Some(node.count_u32()?);
        Ok(())
    }),
    row(
        "retry_base_backoff_ms",
        "milliseconds",
        "100",
        Bounds::Time(Duration::ZERO, HOUR),
        "`backoff` of `dispatch`, which doubles.",
        |draft, node| {
            draft.backoff = Some(node.duration()?);
            Ok(())
        },
    ),
    row(
        "retry_backoff_sequence",
        "list of milliseconds",
        "[100, 200, 400, 800, 1600]",
        Bounds::Items(64),
        "The first of them is the same.",
        |draft, node| {
            draft.backoff = first_pause(node)?;
            Ok(())
        },
    ),
    row(
        "session_default_ttl",
        "seconds",
        "3600",
        Bounds::Time(SECOND, YEAR),
        "`session_ttl` of `dispatch`, in seconds.",
        |draft, node| {
            draft.session_ttl = Node { unit: Some(SECOND), ..node.clone() }.duration()?;
            Ok(())
        },
    ),
    row(
        "session_max_sessions",
        "integer",
        "10000",
        Bounds::Count(1, 1_000_000),
        "`sessions` of `dispatch`.",
        |draft, node| {
            draft.sessions = if is_infinity(node) { 1_000_000 } else { node.count_u32()? };
            Ok(())
        },
    ),
    row(
        "grpc_listener",
        "table",
        "",
        Bounds::None,
        "Where workers find the Elixir side, which they are told as `--elixir-address`. Keys below.",
        |draft, node| {
            let Ok(table) = node.table() else {
                return Err(named(node, "invalid_grpc_listener_config", "a table").into());
            };
            let (_, faults) = walk(LISTENER_KEYS, &mut draft.listener, table, &node.place);
            faults.or(())
        },
    ),
    row(
        "grpc_port",
        "port",
        "50051",
        Bounds::Count(0, 65_535),
        "`grpc_listener = { mode = \"external\", port = … }`; 0 is `mode = \"internal\"`.",
        |draft, node| {
            draft.listener.port = Some(port(node)?).filter(|port| *port != 0);
            draft.listener.mode.get_or_insert(if draft.listener.port.is_some() {
                ListenerMode::External
            } else {
                ListenerMode::Internal
            });
            Ok(())
        },
    ),
    row("grpc_host", "text", "\"localhost\"", Bounds::Length(253), "Its host.", |draft, node| {
        draft.listener.host = Some(host(node)?);
        Ok(())
    }),
    or_variable(
        row(
            "instance_name",
            "text",
            "",
            Bounds::Length(128),
            "Passed on as `--snakepit-instance-name`; else the name of this halsup.",
            |draft, node| {
                draft.instance_name = Some(atom(node)?.to_owned());
                Ok(())
            },
        ),
        "SNAKEPIT_INSTANCE_NAME",
    ),
    or_variable(
        row(
            "instance_token",
            "text",
            "",
            Bounds::Length(128),
            "Passed on as `--snakepit-instance-token`; else the worker's name.",
            |draft, node| {
                draft.instance_token = Some(atom(node)?.to_owned());
                Ok(())
            },
        ),
        "SNAKEPIT_INSTANCE_TOKEN",
    ),
    row(
        "log_level",
        "atom",
        "\"info\"",
        Bounds::Prose("debug, info, warning, error, none"),
        "`daemon.log_level`, where that is not written.",
        |draft, node| {
            draft.log_level = Some(level(node)?);
            Ok(())
        },
    ),
    row(
        "log_categories",
        "table",
        "",
        Bounds::Items(32),
        "The same by category: `pool`, `worker`, `heartbeat`; `grpc`, `bridge`, `session` and `telemetry` are `dispatch` here, `startup` is `spawn`, `shutdown` is `control`.",
        |draft, node| {
            let mut faults = Faults::default();
            for (name, node) in node.entries(Bounds::Length(16))? {
                match worker::category(name) {
                    Some(category) => {
                        draft.log_categories.extend(faults.note(level(&node)).map(|level| (category, level)))
                    }
                    None => faults.push(node.place.fault(
                        "no category",
                        "pool, worker, heartbeat, grpc, bridge, session, telemetry, startup or shutdown",
                    )),
                }
            }
            faults.or(())
        },
    ),
];

/// Lets the environment override what the file said. An empty variable says nothing.
pub(super) fn override_by(draft: &mut Draft, environment: &BTreeMap<String, String>) -> Faults {
    let mut faults = Faults::default();
    for key in WHOLE_KEYS.iter().filter(|key| !key.variable.is_empty()) {
        if let Some(text) = environment.get(key.variable).filter(|text| !text.is_empty()) {
            faults.note(apply(WHOLE_KEYS, draft, key.name, text, Place::outside(key.variable)));
        }
    }
    faults
}

fn level(node: &Node<'_>) -> Result<&'static str, Faults> {
    let levels = [
        ("debug", "debug"),
        ("info", "info"),
        ("warning", "warn"),
        ("warn", "warn"),
        ("error", "error"),
        ("none", "off"),
    ];
    Ok(one_of(node, &levels).ok_or_else(|| node.fault("debug, info, warning, error or none"))?)
}
