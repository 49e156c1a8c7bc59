//! A worker's environment, built from empty.

use std::time::Duration;

use super::pool::Pool;
use crate::protocol::init::PROGRAM_PID;
use crate::spec::{HeartbeatSource, Listen, Placeholders, Ready, expand};

const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// The worker's directory as seen from inside.
pub(super) const WORK_DIR: &str = "/run/worker/work";
/// First descriptor that the program gets beside the standard ones.
const FIRST_FD: usize = 3;

/// Whether the pool's workers have a notify socket.
pub(super) fn has_notify(pool: &Pool) -> bool {
    pool.spec.ready == Ready::Notify || heartbeat_source(pool) == Some(HeartbeatSource::Notify)
}

/// Whether the pool's workers have a channel.
pub(super) fn has_channel(pool: &Pool) -> bool {
    let beats = heartbeat_source(pool) == Some(HeartbeatSource::Channel);
    pool.spec.ready == Ready::Channel || beats || (pool.spec.policy.dispatch.is_some() && pool.spec.serve.is_none())
}

fn heartbeat_source(pool: &Pool) -> Option<HeartbeatSource> {
    pool.spec.policy.heartbeat.map(|heartbeat| heartbeat.source)
}

/// Command and environment of the worker in `slot`, as the init takes them.
pub(super) fn of_worker(pool: &Pool, slot: u32, instance: &str, told: Told) -> (Vec<String>, Vec<String>) {
    let name = pool.worker_name(slot);
    let port = told.port;
    let places = Placeholders { port, slot, worker: &name, instance, dir: WORK_DIR };
    let argv = pool.spec.command.iter().map(|word| expand(word, &places)).collect();
    let mut env = vec![
        format!("HOME={WORK_DIR}"),
        "USER=worker".to_owned(),
        "LOGNAME=worker".to_owned(),
        "LANG=C.UTF-8".to_owned(),
        format!("HALSUP_INSTANCE={instance}"),
        format!("HALSUP_POOL={}", pool.spec.name),
        format!("HALSUP_SLOT={slot}"),
        format!("HALSUP_WORKER={name}"),
    ];
    if let Some(port) = port {
        env.push(format!("PORT={port}"));
    }
    if let (Some(first), Some(last)) = (told.port, told.last_port) {
        env.push(format!("HALSUP_PORT_FIRST={first}"));
        env.push(format!("HALSUP_PORT_LAST={last}"));
    }
    if has_notify(pool) {
        env.push("NOTIFY_SOCKET=/run/worker/notify/socket".to_owned());
    }
    if let Some(interval) = watchdog(pool) {
        env.push(format!("WATCHDOG_USEC={}", interval.as_micros()));
    }
    if pool.spec.terminal {
        env.push("TERM=xterm-256color".to_owned());
    }
    if !pool.spec.listen.is_empty() {
        let names: Vec<&str> = pool.spec.listen.iter().map(listen_name).collect();
        env.push(format!("LISTEN_FDS={}", pool.spec.listen.len()));
        env.push(format!("LISTEN_PID={PROGRAM_PID}"));
        env.push(format!("LISTEN_FDNAMES={}", names.join(":")));
    }
    if has_channel(pool) {
        env.push(format!("HALSUP_CHANNEL_FD={}", FIRST_FD + pool.spec.listen.len()));
    }
    if let Some(dispatch) = pool.spec.policy.dispatch {
        env.push(format!("HALSUP_CAPACITY={}", dispatch.capacity));
        env.push(format!("HALSUP_ZERO_COPY_BYTES={}", pool.spec.zero_copy_bytes));
    }
    // What the operator wrote comes last and replaces what stands above, never what the protocols need: `spec` refuses those.
    if !pool.spec.env.contains_key("PATH") {
        env.push(format!("PATH={PATH}"));
    }
    env.retain(|variable| variable.split_once('=').is_none_or(|(key, _)| !pool.spec.env.contains_key(key)));
    env.extend(pool.spec.env.iter().map(|(key, value)| format!("{key}={}", expand(value, &places))));
    (argv, env)
}

/// The ports that a worker is told, which stay its own as long as it lives.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Told {
    /// The one, or the first.
    pub(super) port: Option<u16>,
    /// The last, where there are several.
    pub(super) last_port: Option<u16>,
}

/// The port that the worker in `slot` is told where that says it.
pub(super) fn port(pool: &Pool, slot: u32) -> Option<u16> {
    let slot = u16::try_from(slot).ok()?;
    pool.spec.base_port?.checked_add(slot)
}

/// The longest time between two `WATCHDOG=1`.
fn watchdog(pool: &Pool) -> Option<Duration> {
    pool.spec.policy.heartbeat.filter(|heartbeat| heartbeat.source == HeartbeatSource::Notify).map(|h| h.interval)
}

fn listen_name(listen: &Listen) -> &'static str {
    match listen {
        Listen::Tcp(_) => "tcp",
        Listen::Unix(_) => "unix",
    }
}
