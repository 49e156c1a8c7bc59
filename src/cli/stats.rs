//! `halsup stats`: what workers use and what their limits did to them.

use clap::Args;

use super::context::Context;
use super::error::Error;
use super::human;
use super::session::Named;
use super::table::table;
use crate::protocol::control::{Request, StatsReply, StatsRequest, WorkerStats};

/// Show what workers use; - where the host cannot tell.
#[derive(Debug, Args)]
pub(super) struct Stats {
    /// all, a pool such as web, a worker such as web.3, or a session.
    #[arg(value_name = "TARGET", value_parser = super::target)]
    pub(super) target: Option<Named>,
}

impl Stats {
    pub(super) fn run(self, context: &Context) -> Result<(), Error> {
        let mut all = StatsReply::default();
        let mut client = context.client()?;
        let target = self.target.map(|named| named.meant(&mut client)).transpose()?;
        let request = Request::Stats(StatsRequest { target });
        client.call_more(&request, |reply: StatsReply| {
            all.workers.extend(reply.workers);
            Ok(())
        })?;
        context.output.answer(&all, |all| render(&all.workers))
    }
}

/// The workers as a table.
pub(super) fn render(workers: &[WorkerStats]) -> String {
    let header = ["NAME", "STATE", "MEMORY", "PEAK", "LIMIT", "CPU", "THROTTLED", "PIDS", "OOM", "PIDS HITS"];
    table(
        header,
        workers.iter().map(|worker| {
            let count = |count: Option<u64>| human::or_dash(count, |count| count.to_string());
            let pids = worker.pids_max.map_or_else(String::new, |max| format!("/{max}"));
            [
                worker.name.clone(),
                worker.state.to_string(),
                human::or_dash(worker.memory_current_bytes, human::bytes),
                human::or_dash(worker.memory_peak_bytes, human::bytes),
                human::or_dash(worker.memory_max_bytes, human::bytes),
                human::or_dash(worker.cpu_usec, human::usec),
                human::or_dash(worker.throttled_usec, human::usec),
                format!("{}{pids}", count(worker.pids)),
                count(worker.oom_kills),
                count(worker.pids_limit_hits),
            ]
        }),
    )
}
