//! `halsup stats`: what workers use and what their limits did to them.

use clap::Args;

use super::context::Context;
use super::error::Error;
use super::human;
use super::table::table;
use crate::protocol::control::{Request, StatsReply, StatsRequest, Target, WorkerStats};

/// Show what workers use; - where the host cannot tell.
#[derive(Debug, Args)]
pub(super) struct Stats {
    /// all, a pool such as web, or a worker such as web.3.
    #[arg(value_name = "TARGET", value_parser = super::target)]
    pub(super) target: Option<Target>,
}

impl Stats {
    pub(super) fn run(self, context: &Context) -> Result<(), Error> {
        let mut all = StatsReply::default();
        let request = Request::Stats(StatsRequest { target: self.target });
        context.client()?.call_more(&request, |reply: StatsReply| {
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
