//! `halsup status`: the daemon in a line, its pools in a table.

use clap::Args;

use super::context::Context;
use super::error::Error;
use super::human;
use super::table::{pairs, table};
use crate::protocol::control::{
    DaemonState, NoParameters, PROTOCOL, PoolInfo, Request, StateCounts, StatusReply, WorkerState,
};
use crate::protocol::escape;

/// Show the daemon and its pools.
#[derive(Debug, Args)]
pub(super) struct Status {
    /// Fail unless the daemon is running and each pool has a healthy worker; for health checks.
    #[arg(long)]
    ready: bool,
}

impl Status {
    pub(super) fn run(self, context: &Context) -> Result<(), Error> {
        let reply: StatusReply = context.client()?.call(&Request::Status(NoParameters {}))?;
        context.output.answer(&reply, render)?;
        match not_ready(&reply) {
            Some(reason) if self.ready => Err(Error::NotReady { reason }),
            Some(_) | None => Ok(()),
        }
    }
}

/// Why it cannot serve everybody who asks, if so. A pool that is to have no workers has nobody to wait for.
fn not_ready(status: &StatusReply) -> Option<String> {
    match status.state {
        DaemonState::Running => {}
        DaemonState::Starting | DaemonState::Stopping => return Some(format!("the daemon is {}", status.state)),
    }
    let empty = status.pools.iter().filter(|pool| pool.wanted > 0 && pool.counts.healthy == 0);
    let names: Vec<_> = empty.map(|pool| escape::text(&pool.name).into_owned()).collect();
    (!names.is_empty()).then(|| format!("no healthy worker in {}", names.join(", ")))
}

/// The daemon in a few lines, then its pools.
pub(super) fn render(status: &StatusReply) -> String {
    let mut text = format!(
        "halsup {} ({}), {} for {}, pid {}\n",
        escape::text(&status.version),
        escape::text(&status.instance),
        status.state,
        human::age(status.uptime_seconds),
        status.pid
    );
    if !status.limits_enforced {
        text.push_str(&format!("limits are not enforced: {}\n", escape::text(reason(status))));
    }
    if let Some(trouble) = &status.state_trouble {
        text.push_str(&format!("nothing new is started until the state can be written: {}\n", escape::text(trouble)));
    }
    if status.protocol != PROTOCOL {
        text.push_str(&format!("its protocol is {}, that of this program {PROTOCOL}\n", status.protocol));
    }
    text.push_str(&pools(&status.pools));
    text
}

/// The daemon itself, a line for each fact; for `halsup daemon status`.
pub(super) fn render_daemon(status: &StatusReply) -> String {
    let limits =
        if status.limits_enforced { "enforced".to_string() } else { format!("not enforced: {}", reason(status)) };
    pairs([
        ("version", Some(format!("{} (protocol {})", status.version, status.protocol))),
        ("instance", Some(status.instance.clone())),
        ("state", Some(format!("{} since {}", status.state, status.started))),
        ("uptime", Some(human::age(status.uptime_seconds))),
        ("pid", Some(status.pid.to_string())),
        ("config", status.config_path.clone()),
        ("runtime", Some(status.runtime_dir.clone())),
        ("state files", Some(status.state_dir.clone())),
        ("cgroup", status.cgroup.clone()),
        ("controllers", Some(list(&status.controllers.available))),
        ("missing", Some(list(&status.controllers.missing))),
        ("limits", Some(limits)),
        ("trouble", status.state_trouble.as_ref().map(|trouble| format!("the state cannot be written: {trouble}"))),
        ("log", Some(status.log_filter.clone())),
        ("workers", Some(counts(&status.counts))),
    ])
}

fn reason(status: &StatusReply) -> &str {
    status.limits_reason.as_deref().unwrap_or("the daemon does not say why")
}

fn list(words: &[String]) -> String {
    if words.is_empty() { "none".into() } else { words.join(" ") }
}

fn pools(pools: &[PoolInfo]) -> String {
    let header = ["POOL", "WANTED", "HEALTHY", "OTHERS"];
    table(
        header,
        pools.iter().map(|pool| {
            let others = StateCounts { healthy: 0, ..pool.counts };
            let others = if others.total() == 0 { String::new() } else { counts(&others) };
            let frozen = if pool.frozen == 0 { String::new() } else { format!(" ({} frozen)", pool.frozen) };
            [pool.name.clone(), pool.wanted.to_string(), format!("{}{frozen}", pool.counts.healthy), others]
        }),
    )
}

/// `3 healthy, 1 crashed`; states that nobody is in are left out.
fn counts(counts: &StateCounts) -> String {
    let present = WorkerState::ALL.into_iter().filter(|state| counts.of(*state) > 0);
    let parts: Vec<_> = present.map(|state| format!("{} {state}", counts.of(state))).collect();
    if parts.is_empty() { "none".into() } else { parts.join(", ") }
}
