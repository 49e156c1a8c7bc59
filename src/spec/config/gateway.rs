//! `[gateway]`: its keys, and the service that it becomes.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use toml::de::DeTable;

use super::error::{Fault, Faults, Place};
use super::keys::{Bounds, Key, apply, walk};
use super::node::Node;
use super::pool::Checked;
use crate::spec::{GatewaySpec, PoolName};

/// Where it listens when nothing is written.
const PORT_DEFAULT: u16 = 8000;
/// All addresses that the gateway listens on.
const LISTENERS_MAX: usize = 24;
/// A name of a host, in bytes.
const HOST_BYTES_MAX: usize = 253;
/// What `/hello` says, in bytes.
const WORKER_BYTES_MAX: usize = 256;
const MIB: u64 = 1 << 20;

/// `[gateway]` while it is read.
#[derive(Debug)]
pub(super) struct GatewayDraft {
    spec: GatewaySpec,
    open_status: Option<bool>,
    pool: Option<(PoolName, Place)>,
}

impl GatewayDraft {
    fn new() -> Self {
        let listen = vec![SocketAddr::from((Ipv4Addr::LOCALHOST, PORT_DEFAULT))];
        let worker = ("worker-1".to_owned(), "ClaudeWorker-1".to_owned());
        let spec = GatewaySpec {
            listen,
            doors: Vec::new(),
            hosts: Vec::new(),
            open_status: true,
            pool: None,
            worker,
            memory_bytes: 128 * MIB,
        };
        Self { spec, open_status: None, pool: None }
    }
}

/// The keys of `[gateway]`.
pub(super) const KEYS: &[Key<GatewayDraft>] = &[
    Key {
        name: "listen",
        aliases: &[],
        variable: "",
        kind: "list of addresses",
        default: "[\"127.0.0.1:8000\"]",
        bounds: Bounds::Items(8),
        what: "Where it answers HTTP. The daemon binds these and keeps them: nobody else can have them, also while the gateway is restarted. Beyond loopback only when written so.",
        set: |gateway, node| {
            gateway.spec.listen = addresses(node)?;
            Ok(())
        },
    },
    Key {
        name: "hosts",
        aliases: &[],
        variable: "",
        kind: "list of names",
        default: "[]",
        bounds: Bounds::Items(32),
        what: "Names that the `Host` of a request may have, beside `localhost`, `127.0.0.1`, `[::1]` and the addresses that `listen` names. A request with another one is refused, so that no web page can reach it by a name of its own.",
        set: |gateway, node| {
            let mut faults = Faults::default();
            let items = node.items(Bounds::Length(HOST_BYTES_MAX))?;
            gateway.spec.hosts = items.iter().filter_map(|item| faults.note(host(item))).collect();
            faults.or(())
        },
    },
    Key {
        name: "open_status",
        aliases: &[],
        variable: "",
        kind: "boolean",
        default: "",
        bounds: Bounds::None,
        what: "Whether status is told without a token: by default where it listens on loopback alone. What changes something, and what workers write, always needs one.",
        set: |gateway, node| {
            gateway.open_status = Some(node.boolean()?);
            Ok(())
        },
    },
    Key {
        name: "pool",
        aliases: &[],
        variable: "",
        kind: "name",
        default: "",
        bounds: Bounds::None,
        what: "The pool that `/health`, `/health/pool` and `/pool/reset-circuit-breakers` speak of. Needless where there is one pool.",
        set: |gateway, node| {
            let name = PoolName::parse(node.text()?).map_err(|error| node.fault(error.expected))?;
            gateway.spec.pool = Some(name.clone());
            gateway.pool = Some((name, node.place.clone()));
            Ok(())
        },
    },
    Key {
        name: "worker_id",
        aliases: &[],
        variable: "WORKER_ID",
        kind: "text",
        default: "\"worker-1\"",
        bounds: Bounds::Length(WORKER_BYTES_MAX),
        what: "What `/hello` says that it is called. The variable overrides it.",
        set: |gateway, node| {
            gateway.spec.worker.0 = worker(node)?;
            Ok(())
        },
    },
    Key {
        name: "worker_name",
        aliases: &[],
        variable: "WORKER_NAME",
        kind: "text",
        default: "\"ClaudeWorker-1\"",
        bounds: Bounds::Length(WORKER_BYTES_MAX),
        what: "The same for people. The variable overrides it.",
        set: |gateway, node| {
            gateway.spec.worker.1 = worker(node)?;
            Ok(())
        },
    },
    Key {
        name: "memory",
        aliases: &[],
        variable: "",
        kind: "size",
        default: "\"128M\"",
        bounds: Bounds::Bytes(16 * MIB, 16 << 30),
        what: "Its memory limit.",
        set: |gateway, node| {
            gateway.spec.memory_bytes = node.bytes()?;
            Ok(())
        },
    },
];

/// A list of addresses, at least one.
pub(super) fn addresses(node: &Node<'_>) -> Result<Vec<SocketAddr>, Faults> {
    let mut faults = Faults::default();
    let items = node.items(Bounds::None)?;
    let found = items.iter().filter_map(|item| faults.note(address(item))).collect();
    if items.is_empty() {
        faults.push(node.fault("at least one address"));
    }
    faults.or(found)
}

fn address(node: &Node<'_>) -> Result<SocketAddr, Fault> {
    let expected = "an address with a port, such as \"127.0.0.1:8000\"";
    let address: SocketAddr = node.text()?.parse().ok().ok_or_else(|| node.fault(expected))?;
    if address.port() == 0 { Err(node.fault("a port from 1 to 65535")) } else { Ok(address) }
}

/// What a worker is called: anything that people can read, and that is no option of a program.
fn worker(node: &Node<'_>) -> Result<String, Fault> {
    let text = node.text()?;
    if text.is_empty() || text.starts_with('-') || text.chars().any(char::is_control) {
        return Err(node.fault("a name without control characters, not '-' first"));
    }
    Ok(text.to_owned())
}

/// A name as it stands in `Host`, without a port.
fn host(node: &Node<'_>) -> Result<String, Fault> {
    let text = node.text()?;
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let literal = text.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>().is_ok();
    if literal || text.split('.').all(is_label) {
        return Ok(text.to_ascii_lowercase());
    }
    Err(node.fault("a name such as halsup.example.org, without a port"))
}

/// The pool that `[gateway]` names, as it is written, before anything is read.
pub(super) fn named_pool<'a>(document: &'a DeTable<'_>) -> Option<&'a str> {
    document.get("gateway")?.get_ref().as_table()?.get("pool")?.get_ref().as_str()
}

/// Without `[gateway]` nobody answers for a pool.
pub(super) fn missing(pools: &[Checked]) -> Faults {
    let mut faults = Faults::default();
    for pool in pools.iter().filter(|pool| !pool.http_listen().is_empty()) {
        let what = "http_listen is written, and there is no gateway to answer there";
        faults.push(pool.place_of("http_listen").fault(what, "[gateway] to be written too"));
    }
    faults
}

/// Reads `[gateway]`: what it is, and the service that it runs as.
pub(super) fn read(
    node: &Node<'_>,
    pools: &mut Vec<Checked>,
    environment: &BTreeMap<String, String>,
) -> Result<GatewaySpec, Faults> {
    let mut draft = GatewayDraft::new();
    let (_, mut faults) = walk(KEYS, &mut draft, node.table()?, &node.place);
    for key in KEYS.iter().filter(|key| !key.variable.is_empty()) {
        if let Some(text) = environment.get(key.variable).filter(|text| !text.is_empty()) {
            faults.note(apply(KEYS, &mut draft, key.name, text, Place::outside(key.variable)));
        }
    }
    if let Some((name, place)) = &draft.pool
        && !pools.iter().any(|pool| pool.spec.name == *name)
    {
        let near = super::keys::nearest(name.as_str(), pools.iter().map(|pool| pool.spec.name.as_str()));
        faults.push(place.fault(format!("no pool or service is named {:?}", name.as_str()), "").suggest(near));
    }
    for pool in pools.iter() {
        let doors = pool.http_listen().iter().map(|address| (*address, pool.spec.name.clone()));
        draft.spec.doors.extend(doors);
        if draft.spec.listen.len() + draft.spec.doors.len() > LISTENERS_MAX {
            let what = "with these there are more addresses than the gateway can listen on";
            faults.push(pool.place_of("http_listen").fault(what, format!("at most {LISTENERS_MAX} in all")));
            break;
        }
    }
    let is_local = draft.spec.listen.iter().all(|address| address.ip().is_loopback());
    draft.spec.open_status = draft.open_status.unwrap_or(is_local);
    if faults.is_empty() {
        pools.extend(GatewaySpec::name().map(|name| Checked::made(draft.spec.service(name), node.place.clone())));
    }
    faults.or(draft.spec)
}
