//! `halsup pool`: the warm workers of a pool with claims, in the words of the system that had them first.
//!
//! Numbers and names go to stdout, what was done to stderr. Nothing is said to be scaled that is not.

use clap::{Args, Subcommand};

use super::claim_options::claimable_pool;
use super::client::Client;
use super::context::Context;
use super::error::Error;
use super::output;
use crate::protocol::control::{
    ChangeReply, ClaimsInfo, Empty, ListReply, ListRequest, NoParameters, Occupancy, PauseRequest, PoolInfo,
    PoolRequest, Request, SCALE_COUNT_MAX, ScaleRequest, StatusReply, WorkerInfo,
};
use crate::protocol::escape;
use crate::spec::{PoolName, format_bytes, format_cpus};

/// Which pool, and what it is to be like.
#[derive(Debug, Args)]
pub(super) struct Which {
    /// The pool [default: the one whose workers can be claimed].
    #[arg(long, value_name = "POOL", value_parser = super::pool_name)]
    pool: Option<PoolName>,
}

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Keep as many workers warm as there are to be.
    Start {
        #[command(flatten)]
        which: Which,
        /// So many.
        #[arg(long, value_name = "N")]
        min_warm: Option<u32>,
    },
    /// Add and give up none by itself from now on; warm workers stay.
    Stop {
        #[command(flatten)]
        which: Which,
    },
    /// Show warm and claimed workers and the limits that they get.
    Status {
        #[command(flatten)]
        which: Which,
    },
    /// Keep so many workers warm; done when they are.
    Scale {
        #[command(flatten)]
        which: Which,
        /// How many.
        #[arg(value_name = "N", value_parser = clap::value_parser!(u32).range(..=i64::from(SCALE_COUNT_MAX)))]
        count: u32,
    },
    /// Give up the warm workers that are more than there are to be.
    Cleanup {
        #[command(flatten)]
        which: Which,
        /// Replace all warm workers by fresh ones.
        #[arg(long)]
        all: bool,
    },
    /// Make one more warm worker; prints its name.
    Warm {
        #[command(flatten)]
        which: Which,
    },
    /// List its workers.
    List {
        #[command(flatten)]
        which: Which,
    },
}

impl Verb {
    pub(super) fn run(self, context: &Context) -> Result<(), Error> {
        let mut client = context.client()?;
        match self {
            Self::Start { which, min_warm } => start(context, &mut client, &which, min_warm),
            Self::Stop { which } => stop(context, &mut client, &which),
            Self::Status { which } => status(context, &mut client, &which),
            Self::Scale { which, count } => scale(context, &mut client, &which, count),
            Self::Cleanup { which, all } => cleanup(context, &mut client, &which, all),
            Self::Warm { which } => warm(context, &mut client, &which),
            Self::List { which } => list(context, &mut client, &which),
        }
    }
}

fn say(text: &str) {
    output::complain_text(&format!("[pool] {text}"));
}

fn find(client: &mut Client, which: &Which) -> Result<(PoolName, PoolInfo, ClaimsInfo), Error> {
    let (name, info) = claimable_pool(client, which.pool.as_ref())?;
    let claims = info.claims.clone().unwrap_or_default();
    Ok((name, info, claims))
}

fn start(context: &Context, client: &mut Client, which: &Which, min_warm: Option<u32>) -> Result<(), Error> {
    let (name, _, claims) = find(client, which)?;
    let daemon: StatusReply = client.call(&Request::Status(NoParameters {}))?;
    if claims.paused {
        let _resumed: Empty = client.call(&Request::Pause(PauseRequest { pool: name.clone(), paused: false }))?;
        say(&format!("Pool manager started (PID: {})", daemon.pid));
    } else {
        say(&format!("Pool manager already running (PID: {})", daemon.pid));
    }
    match min_warm {
        Some(count) => scale(context, client, which, count),
        None => status(context, client, which),
    }
}

fn stop(context: &Context, client: &mut Client, which: &Which) -> Result<(), Error> {
    let (name, _, claims) = find(client, which)?;
    if claims.paused {
        say("Pool manager not running");
    } else {
        let _paused: Empty = client.call(&Request::Pause(PauseRequest { pool: name, paused: true }))?;
        say("Pool manager stopped");
    }
    let (_, info, _) = find(client, which)?;
    if context.output.is_json() { context.output.json_line(&info) } else { Ok(()) }
}

fn workers(client: &mut Client, pool: &PoolName) -> Result<Vec<WorkerInfo>, Error> {
    let mut found = Vec::new();
    client.call_more(&Request::List(ListRequest { pool: Some(pool.clone()) }), |reply: ListReply| {
        found.extend(reply.workers);
        Ok(())
    })?;
    Ok(found)
}

fn status(context: &Context, client: &mut Client, which: &Which) -> Result<(), Error> {
    let (name, info, claims) = find(client, which)?;
    let workers = workers(client, &name)?;
    let daemon: StatusReply = client.call(&Request::Status(NoParameters {}))?;
    context.output.answer(&info, |info| {
        let manager = if claims.paused { "Not running".to_owned() } else { format!("Running (PID: {})", daemon.pid) };
        let limit = |value: Option<String>| value.unwrap_or_else(|| "unlimited".to_owned());
        let mut lines = vec![
            "HAL-9000 Worker Pool Status".to_owned(),
            format!("Pool manager: {manager}"),
            format!("Warm (ready): {}", claims.warm),
            format!("Busy (in use): {}", claims.busy),
            format!("Total: {}", claims.warm + claims.busy),
            format!("Min warm: {}", info.wanted),
            format!("Max warm: {}", info.max),
            format!("Idle timeout: {}s", claims.idle_timeout_seconds),
            "Resource Limits:".to_owned(),
            format!("  Memory: {}", limit(claims.memory_bytes.map(format_bytes))),
            format!("  CPUs: {}", limit(claims.cpu_millis.map(format_cpus))),
            format!("  PIDs: {}", limit(claims.pids.map(|pids| pids.to_string()))),
        ];
        let of = |wanted: Occupancy| workers.iter().filter(move |worker| worker.occupancy == Some(wanted));
        lines.extend(of(Occupancy::Warm).map(|worker| format!("  - {} (idle: {}s)", worker.name, worker.age_seconds)));
        lines.extend(of(Occupancy::Busy).map(|worker| format!("  - {} (age: {}s)", worker.name, worker.age_seconds)));
        lines.iter().map(|line| format!("[pool] {}\n", escape::text(line))).collect()
    })
}

fn scale(context: &Context, client: &mut Client, which: &Which, count: u32) -> Result<(), Error> {
    let (name, info, claims) = find(client, which)?;
    let count = if count > info.max {
        say(&format!("Target {count} exceeds max ({}), capping", info.max));
        info.max
    } else {
        count
    };
    say(&format!("Scaling pool: {} -> {count} warm workers", claims.warm));
    let change: ChangeReply = client.call(&Request::Scale(ScaleRequest { pool: name.clone(), count }))?;
    let ChangeReply { achieved, wanted, failures } = change.clone();
    if achieved != wanted {
        context.output.answer(&change, |_| String::new())?;
        return Err(Error::Incomplete { what: format!("scale {name}"), achieved, wanted, failures });
    }
    context.output.answer(&change, |_| format!("[pool] Pool scaled to {achieved} warm workers"))
}

fn cleanup(context: &Context, client: &mut Client, which: &Which, all: bool) -> Result<(), Error> {
    let (name, info, _) = find(client, which)?;
    say("Force cleanup of all idle workers...");
    if all {
        let warm = workers(client, &name)?.into_iter().filter(|worker| worker.occupancy == Some(Occupancy::Warm));
        for worker in warm {
            let target = super::session::target_of(&worker)?;
            let request = Request::Restart(crate::protocol::control::TargetRequest { target });
            let _restarted: ChangeReply = client.call(&request)?;
        }
    }
    let change: ChangeReply = client.call(&Request::Scale(ScaleRequest { pool: name, count: info.wanted }))?;
    context.output.answer(&change, |_| "[pool] Cleanup complete".to_owned())
}

fn warm(context: &Context, client: &mut Client, which: &Which) -> Result<(), Error> {
    let (pool, ..) = find(client, which)?;
    let before: Vec<String> = workers(client, &pool)?.into_iter().map(|worker| worker.name).collect();
    say(&format!("Creating warm worker in {pool}"));
    let change: ChangeReply = client.call(&Request::Warm(PoolRequest { pool: pool.clone() }))?;
    let ChangeReply { achieved, wanted, failures } = change;
    if achieved != wanted {
        return Err(Error::Incomplete { what: format!("warm a worker of {pool}"), achieved, wanted, failures });
    }
    let made = workers(client, &pool)?.into_iter().filter(|worker| !before.contains(&worker.name));
    let made: Vec<WorkerInfo> = made.filter(|worker| worker.occupancy == Some(Occupancy::Warm)).collect();
    context.output.answer(&made, |made| made.iter().map(|worker| format!("{}\n", escape::text(&worker.name))).collect())
}

fn list(context: &Context, client: &mut Client, which: &Which) -> Result<(), Error> {
    let (pool, ..) = find(client, which)?;
    let workers = workers(client, &pool)?;
    context.output.answer(&workers, |workers| {
        let line = |worker: &WorkerInfo| {
            let held = worker.session.as_ref().map_or_else(|| "-".to_owned(), |session| session.name.clone());
            let occupancy = match worker.occupancy {
                Some(Occupancy::Warm) => "warm",
                Some(Occupancy::Busy) => "busy",
                Some(Occupancy::Frozen) => "frozen",
                None => worker.state.as_str(),
            };
            format!("{}  {occupancy}  {}\n", escape::text(&worker.name), escape::text(&held))
        };
        workers.iter().map(line).collect()
    })
}
