//! `halsup ps`: the workers, a line each.

use clap::Args;

use super::client::Client;
use super::context::Context;
use super::error::Error;
use super::human;
use super::table::table;
use crate::protocol::control::{ListReply, ListRequest, Occupancy, Request, WorkerInfo};
use crate::spec::PoolName;

/// List workers.
#[derive(Debug, Args)]
pub(super) struct Ps {
    /// Only those of this pool.
    #[arg(value_name = "POOL", value_parser = super::pool_name)]
    pub(super) pool: Option<PoolName>,
}

impl Ps {
    pub(super) fn run(self, context: &Context) -> Result<(), Error> {
        let reply = list(&mut context.client()?, self.pool)?;
        context.output.answer(&reply, |reply| render(&reply.workers))
    }
}

/// Asks for all workers, or those of a pool.
fn list(client: &mut Client, pool: Option<PoolName>) -> Result<ListReply, Error> {
    let mut all = ListReply::default();
    client.call_more(&Request::List(ListRequest { pool }), |reply: ListReply| {
        all.workers.extend(reply.workers);
        Ok(())
    })?;
    Ok(all)
}

/// The workers as a table.
pub(super) fn render(workers: &[WorkerInfo]) -> String {
    let header = ["NAME", "STATE", "PID", "UID", "PORT", "AGE", "RESTARTS", "LAST EXIT", "STATUS"];
    table(
        header,
        workers.iter().map(|worker| {
            [
                worker.name.clone(),
                state(worker),
                human::or_dash(worker.pid, |pid| pid.to_string()),
                human::or_dash(worker.uid, |uid| uid.to_string()),
                human::or_dash(worker.port, |port| port.to_string()),
                human::age(worker.age_seconds),
                worker.restarts.to_string(),
                human::or_dash(worker.last_exit, |cause| cause.to_string()),
                worker.status_text.clone().unwrap_or_default(),
            ]
        }),
    )
}

/// The state, with what it waits for: `restarting (in 800ms)`, `unhealthy (2 missed)`, `healthy, frozen`.
pub(super) fn state(worker: &WorkerInfo) -> String {
    let mut text = worker.state.to_string();
    if worker.occupancy == Some(Occupancy::Frozen) {
        text.push_str(", frozen");
    }
    if let Some(wait_ms) = worker.restart_in_ms {
        let wait = if wait_ms < 1_000 { format!("{wait_ms}ms") } else { human::age(wait_ms / 1_000) };
        text.push_str(&format!(" (in {wait})"));
    } else if worker.missed_heartbeats > 0 {
        text.push_str(&format!(" ({} missed)", worker.missed_heartbeats));
    }
    text
}
