//! `halsup queue` and `halsup breaker`: how requests fare, and the way back from failures.

use std::time::Duration;

use clap::{Args, Subcommand};

use super::context::Context;
use super::error::Error;
use super::human;
use super::table::table;
use crate::protocol::control::{
    BreakerPosition, PoolRequestStats, PoolStatsReply, PoolStatsRequest, Request, RequestInfo, RequestStatusReply,
    RequestStatusRequest, ResetBreakersReply, ResetBreakersRequest, Target,
};
use crate::spec::PoolName;

/// List the requests of pools: how many wait, are under way and have failed. With `--request`, what became of one.
#[derive(Debug, Args)]
pub(super) struct Queue {
    /// Only this pool.
    #[arg(value_name = "POOL", value_parser = super::pool_name)]
    pool: Option<PoolName>,
    /// Show how far this request is, or what became of it: its number, or its `--correlation`.
    #[arg(long, value_name = "ID")]
    request: Option<String>,
}

impl Queue {
    pub(super) fn run(self, context: &Context) -> Result<(), Error> {
        if let Some(request) = self.request {
            return show_request(context, RequestStatusRequest { pool: self.pool, request });
        }
        let reply: PoolStatsReply =
            context.client()?.call(&Request::PoolStats(PoolStatsRequest { pool: self.pool }))?;
        context.output.answer(&reply, |reply| {
            let header = [
                "POOL",
                "REQUESTS",
                "QUEUED",
                "IN FLIGHT",
                "ANSWERED",
                "ERRORS",
                "QUEUE TIMEOUTS",
                "SATURATED",
                "WORKERS",
                "AVAILABLE",
                "BUSY",
                "BREAKER",
            ];
            let row = |pool: &PoolRequestStats| {
                [
                    pool.pool.clone(),
                    pool.requests.to_string(),
                    pool.queued.to_string(),
                    pool.in_flight.to_string(),
                    pool.answered.to_string(),
                    pool.errors.to_string(),
                    pool.queue_timeouts.to_string(),
                    pool.pool_saturated.to_string(),
                    pool.workers.to_string(),
                    pool.available.to_string(),
                    pool.busy.to_string(),
                    pool.breaker.to_string(),
                ]
            };
            table(header, reply.pools.iter().map(row))
        })
    }
}

fn show_request(context: &Context, request: RequestStatusRequest) -> Result<(), Error> {
    let reply: RequestStatusReply = context.client()?.call(&Request::RequestStatus(request))?;
    context.output.answer(&reply, |reply| {
        let header = ["REQUEST", "CORRELATION", "POOL", "STATE", "REASON", "WORKER", "ATTEMPTS", "AGE", "ENDED"];
        let row = |request: &RequestInfo| {
            [
                request.request.clone(),
                // Where nobody gave one it is the number once more.
                human::or_dash(Some(&request.correlation).filter(|own| **own != request.request), Clone::clone),
                request.pool.clone(),
                request.state.to_string(),
                human::or_dash(request.reason.as_ref(), Clone::clone),
                human::or_dash(request.worker.as_ref(), Clone::clone),
                request.attempts.to_string(),
                human::age(request.age_ms / 1000),
                human::or_dash(request.ended_ms, |ms| format!("{} ago", human::age(ms / 1000))),
            ]
        };
        table(header, reply.requests.iter().map(row))
    })
}

/// What can be done about circuit breakers.
#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// List circuit breakers and what has made them so.
    Ls(List),
    /// Close circuit breakers, and let through again what was held because it has killed workers.
    Reset(Reset),
}

/// Parameters of `ls`.
#[derive(Debug, Args)]
pub(super) struct List {
    /// Only this pool.
    #[arg(value_name = "POOL", value_parser = super::pool_name)]
    pool: Option<PoolName>,
}

/// Parameters of `reset`.
#[derive(Debug, Args)]
pub(super) struct Reset {
    /// `all`, a pool, or one worker as `web.3`.
    #[arg(value_name = "TARGET", value_parser = target)]
    target: Target,
}

fn target(text: &str) -> Result<Target, String> {
    text.parse().map_err(|error: crate::protocol::control::TargetError| error.to_string())
}

impl Verb {
    pub(super) fn run(self, context: &Context) -> Result<(), Error> {
        match self {
            Self::Ls(list) => list.run(context),
            Self::Reset(reset) => reset.run(context),
        }
    }
}

impl List {
    fn run(self, context: &Context) -> Result<(), Error> {
        let reply: PoolStatsReply =
            context.client()?.call(&Request::PoolStats(PoolStatsRequest { pool: self.pool }))?;
        context.output.answer(&reply, |reply| {
            let mut rows = Vec::new();
            for pool in &reply.pools {
                let (errors, requests) = (pool.errors.to_string(), pool.requests.to_string());
                rows.push([
                    pool.pool.clone(),
                    pool.breaker.to_string(),
                    String::new(),
                    String::new(),
                    errors,
                    requests,
                ]);
                rows.extend(pool.desks.iter().map(|desk| {
                    let probe = desk.probe_in_ms.filter(|_| desk.breaker == BreakerPosition::Open);
                    let probe = probe.map(|ms| format!("{:.1}s", Duration::from_millis(ms).as_secs_f64()));
                    [
                        desk.worker.clone(),
                        desk.breaker.to_string(),
                        probe.unwrap_or_default(),
                        desk.failures.to_string(),
                        desk.failed.to_string(),
                        desk.requests.to_string(),
                    ]
                }));
            }
            table(["OF", "BREAKER", "PROBE IN", "FAILURES", "FAILED", "REQUESTS"], rows)
        })
    }
}

impl Reset {
    fn run(self, context: &Context) -> Result<(), Error> {
        let request = Request::ResetBreakers(ResetBreakersRequest { target: self.target.clone() });
        let reply: ResetBreakersReply = context.client()?.call(&request)?;
        context.output.answer(&reply, |reply| format!("{}: {} reset", self.target, reply.reset))
    }
}
