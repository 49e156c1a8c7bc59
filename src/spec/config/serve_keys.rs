//! The keys of `[pool.NAME]` that say how its workers serve HTTP. What they mean together is decided in `pool`.

use std::time::Duration;

use super::keys::{Bounds, Key};
use super::pool::PoolDraft;
use crate::spec::ServeHttp;

const DAY: Duration = Duration::from_secs(86_400);

pub(super) const SERVE: Key<PoolDraft> = Key {
    name: "serve",
    aliases: &[],
    variable: "",
    kind: "word",
    default: "",
    bounds: Bounds::Prose("http"),
    what: "`http`: its workers serve HTTP on their port, one request at a time unless `dispatch` says otherwise, and the gateway answers `/w/NAME/…` with them. Needs `base_port`; they are ready when their port answers (`tcp`), unless `ready` is written.",
    set: |pool, node| {
        let serve = node.word(&[("http", ServeHttp::default())])?;
        pool.serve = Some(serve);
        Ok(())
    },
};

pub(super) const OPEN: Key<PoolDraft> = Key {
    name: "open",
    aliases: &[],
    variable: "",
    kind: "boolean",
    default: "",
    bounds: Bounds::None,
    what: "With `serve`: whether requests are let through to its workers without a token; they are not where nothing is written.",
    set: |pool, node| {
        pool.open = Some(node.boolean()?);
        Ok(())
    },
};

pub(super) const REQUEST_MAX: Key<PoolDraft> = Key {
    name: "request_max",
    aliases: &[],
    variable: "",
    kind: "size",
    default: "",
    bounds: Bounds::Bytes(0, 1 << 40),
    what: "With `serve`: the longest body of a request, 64 MiB where nothing is written; a longer one is refused, 413.",
    set: |pool, node| {
        pool.request_max = Some(node.bytes()?);
        Ok(())
    },
};

pub(super) const ANSWER_MAX: Key<PoolDraft> = Key {
    name: "answer_max",
    aliases: &[],
    variable: "",
    kind: "size",
    default: "",
    bounds: Bounds::Bytes(0, 1 << 50),
    what: "With `serve`: the longest body of an answer; a longer one is broken off. `\"max\"`, or nothing, is no limit.",
    set: |pool, node| {
        pool.answer_max = node.bytes_or_unlimited()?;
        Ok(())
    },
};

pub(super) const UPGRADE_MAX: Key<PoolDraft> = Key {
    name: "upgrade_max",
    aliases: &[],
    variable: "",
    kind: "duration",
    default: "",
    bounds: Bounds::Time(Duration::ZERO, DAY),
    what: "With `serve`: how long a connection may last that has changed its protocol (`Upgrade`: WebSocket and others), an hour where nothing is written; its worker is held all the while. `\"0s\"`: none may, 403.",
    set: |pool, node| {
        pool.upgrade_max = Some(node.duration()?);
        Ok(())
    },
};

pub(super) const UPGRADE_IDLE: Key<PoolDraft> = Key {
    name: "upgrade_idle",
    aliases: &[],
    variable: "",
    kind: "duration",
    default: "",
    bounds: Bounds::Time(Duration::from_millis(100), DAY),
    what: "With `serve`: such a connection is over after this long without a byte in either direction, a minute where nothing is written.",
    set: |pool, node| {
        pool.upgrade_idle = Some(node.duration()?);
        Ok(())
    },
};

pub(super) const HTTP_LISTEN: Key<PoolDraft> = Key {
    name: "http_listen",
    aliases: &[],
    variable: "",
    kind: "list of addresses",
    default: "",
    bounds: Bounds::Items(4),
    what: "With `serve`: addresses on which the gateway answers with this pool alone, at `/` instead of `/w/NAME/`, by the same rules. Bound by the daemon and kept, like `listen` of `[gateway]`, which there has to be.",
    set: |pool, node| {
        pool.http_listen = super::gateway::addresses(node)?;
        Ok(())
    },
};
