//! The rows of the tables within `[snakepit]`, and what they read alike.

use std::time::Duration;

use super::super::dispatch::BREAKER_KEYS;
use super::super::error::Faults;
use super::super::keys::{Bounds, Key, walk};
use super::super::node::{Node, Raw};
use super::keys::{also, row};
use super::values::{named, one_of, texts, variables};
use super::{Barrier, Draft, Listener, ListenerMode};
use crate::spec::BreakerPolicy;

const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(86_400);
const MILLISECOND: Duration = Duration::from_millis(1);

/// The keys of `crash_barrier`.
pub(in super::super) const BARRIER_KEYS: &[Key<Barrier>] = &[
    row(
        "enabled",
        "boolean",
        "false",
        Bounds::None,
        "Without, `restart` of a pool is as by default.",
        |barrier, node| {
            barrier.enabled = node.boolean()?;
            Ok(())
        },
    ),
    row(
        "max_restarts",
        "integer",
        "5",
        Bounds::Count(0, 10_000),
        "More than this many restarts within the window remove a worker until `halsup reset`.",
        |barrier, node| {
            barrier.max_restarts = node.count_u32()?;
            Ok(())
        },
    ),
    row("window_seconds", "seconds", "60", Bounds::Time(MILLISECOND, DAY), "The window.", |barrier, node| {
        barrier.window = node.duration()?;
        Ok(())
    }),
    row(
        "taint_duration_ms",
        "milliseconds",
        "60000",
        Bounds::Time(Duration::ZERO, DAY),
        "`taint` of `dispatch`.",
        |barrier, node| {
            barrier.taint = node.duration()?;
            Ok(())
        },
    ),
    also(
        row(
            "backoff_ms",
            "list of milliseconds",
            "[50, 100, 200]",
            Bounds::Items(64),
            "The first of them is `backoff` of `dispatch`, which doubles.",
            |barrier, node| {
                barrier.backoff = first_pause(node)?;
                Ok(())
            },
        ),
        &["retry_backoff_ms"],
    ),
    row(
        "retry",
        "atom",
        "\"idempotent\"",
        Bounds::Prose("idempotent"),
        "Only requests that are marked as idempotent are tried again, here always.",
        |_, node| {
            one_of(node, &[("idempotent", ())]).ok_or_else(|| node.fault("idempotent"))?;
            Ok(())
        },
    ),
    row("mark_on", "list of atoms", "", Bounds::Items(16), "Read and checked; here every crash counts.", |_, node| {
        texts(node)?;
        Ok(())
    }),
];

/// The keys of `zero_copy`.
pub(in super::super) const ZERO_COPY_KEYS: &[Key<Draft>] = &[
    row("enabled", "boolean", "false", Bounds::None, "Without the table it is on, from 1 MiB.", |draft, node| {
        draft.zero_copy = node.boolean()?;
        Ok(())
    }),
    row(
        "threshold_bytes",
        "size",
        "1048576",
        Bounds::Bytes(1, 1 << 40),
        "`zero_copy` of `dispatch`.",
        |draft, node| {
            draft.zero_copy_bytes = Some(node.bytes()?);
            Ok(())
        },
    ),
    row(
        "max_bytes",
        "size",
        "",
        Bounds::Bytes(1, 1 << 50),
        "Read and checked; a payload has at most 64 GiB here.",
        |_, node| {
            node.bytes()?;
            Ok(())
        },
    ),
    row(
        "allow_fallback",
        "boolean",
        "true",
        Bounds::None,
        "Read and checked; what is shorter than a frame always goes in one.",
        |_, node| {
            node.boolean()?;
            Ok(())
        },
    ),
];

/// The keys of `python_runtime`.
pub(in super::super) const RUNTIME_KEYS: &[Key<Draft>] = &[
    row(
        "strategy",
        "atom",
        "\"system\"",
        Bounds::Prose("system, venv"),
        "`venv` needs `python_executable`, because nobody knows here where the project is. No interpreter is installed here, so `managed` is an error.",
        |draft, node| {
            let venv = one_of(node, &[("system", false), ("venv", true)])
                .ok_or_else(|| node.fault("system or venv, beside python_executable"))?;
            if venv {
                draft.written.insert("venv", node.place.clone());
            }
            Ok(())
        },
    ),
    row("managed", "boolean", "false", Bounds::Prose("false"), "See `strategy`.", |_, node| {
        if node.boolean()? { Err(node.fault("false: no interpreter is installed here").into()) } else { Ok(()) }
    }),
    row("version", "text", "", Bounds::Length(32), "Read and checked.", |_, node| {
        node.text()?;
        Ok(())
    }),
    row("extra_env", "table or list of pairs", "", Bounds::Items(256), "Variables of all workers.", |draft, node| {
        for (name, value) in variables(node)? {
            draft.env.entry(name).or_insert(value);
        }
        Ok(())
    }),
];

/// The keys of `grpc_listener`.
pub(in super::super) const LISTENER_KEYS: &[Key<Listener>] = &[
    row(
        "mode",
        "atom",
        "\"internal\"",
        Bounds::Prose("internal, external, external_pool"),
        "`internal`: nobody is there. `external`: `host` and `port`. `external_pool`: `host` and the first of `pool_size` ports from `base_port`.",
        |listener, node| {
            let modes = [
                ("internal", ListenerMode::Internal),
                ("external", ListenerMode::External),
                ("external_pool", ListenerMode::ExternalPool),
                ("external-pool", ListenerMode::ExternalPool),
            ];
            let mode = one_of(node, &modes);
            listener.mode = Some(mode.ok_or_else(|| {
                named(node, "invalid_grpc_listener_config: invalid_mode", ":internal, :external or :external_pool")
            })?);
            Ok(())
        },
    ),
    row("host", "text", "", Bounds::Length(253), "The host.", |listener, node| {
        listener.host = Some(host(node)?);
        Ok(())
    }),
    row("bind_host", "text", "", Bounds::Length(253), "Read and checked; nothing listens there.", |_, node| {
        host(node)?;
        Ok(())
    }),
    row("port", "port", "", Bounds::Count(0, 65_535), "The port.", |listener, node| {
        listener.port = Some(port(node)?).filter(|port| *port != 0);
        Ok(())
    }),
    row("base_port", "port", "", Bounds::Count(0, 65_535), "The first port.", |listener, node| {
        listener.base_port = Some(port(node)?).filter(|port| *port != 0);
        Ok(())
    }),
    row("pool_size", "integer", "32", Bounds::Count(1, 65_535), "How many ports.", |listener, node| {
        let size = node
            .count_u32()
            .ok()
            .ok_or_else(|| named(node, "invalid_grpc_listener_config: invalid_pool_size", "positive integer"))?;
        listener.pool_size = Some(size);
        Ok(())
    }),
];

/// `circuit_breaker`, whose switch the breakers of `dispatch` do not have.
pub(super) fn breaker(draft: &mut Draft, node: &Node<'_>) -> Result<(), Faults> {
    const KEYS: &[Key<(bool, BreakerPolicy)>] = &[
        row("enabled", "", "", Bounds::None, "", |(enabled, _), node| {
            *enabled = node.boolean()?;
            Ok(())
        }),
        row("failure_threshold", "", "", Bounds::Count(1, 1_000_000), "", |(_, breaker), node| {
            breaker.failures = node.count_u32()?;
            Ok(())
        }),
        row("reset_timeout_ms", "", "", BREAKER_KEYS[1].bounds, "", |(_, breaker), node| {
            breaker.open_for = node.duration()?;
            Ok(())
        }),
        row("half_open_max_calls", "", "", Bounds::Count(1, 1), "", |_, node| {
            node.count()?;
            Ok(())
        }),
    ];
    let mut said = (draft.breaker_enabled, draft.breaker);
    let (_, faults) = walk(KEYS, &mut said, node.table()?, &node.place);
    (draft.breaker_enabled, draft.breaker) = said;
    faults.or(())
}

/// The first of a list of pauses, or the only one.
pub(super) fn first_pause(node: &Node<'_>) -> Result<Option<Duration>, Faults> {
    let pause = |node: &Node<'_>| {
        let plain = matches!(node.raw, Raw::Toml(value) if value.is_integer());
        Node { bounds: Bounds::Time(Duration::ZERO, HOUR), unit: plain.then_some(MILLISECOND), ..node.clone() }
            .duration()
    };
    let (mut pauses, mut faults) = (Vec::new(), Faults::default());
    match node.items(Bounds::None) {
        Ok(items) => items.iter().for_each(|item| pauses.extend(faults.note(pause(item)))),
        Err(_) => pauses.extend(faults.note(pause(node))),
    }
    faults.or(pauses.first().copied())
}

pub(super) fn port(node: &Node<'_>) -> Result<u16, Faults> {
    Ok(u16::try_from(node.count()?).ok().ok_or_else(|| node.fault("a port from 0 to 65535"))?)
}

/// What stands before the colon of an address.
pub(super) fn host(node: &Node<'_>) -> Result<String, Faults> {
    let text = node.text()?;
    let plain = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-_:[]".contains(&byte));
    if plain { Ok(text.to_owned()) } else { Err(node.fault("the name or address of a host").into()) }
}
