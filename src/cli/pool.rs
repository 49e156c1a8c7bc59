//! `halsup pool`: the warm workers of a pool with claims, in the words of the system that had them first.
//!
//! Numbers and names go to stdout, what was done to stderr. Nothing is said to be scaled that is not.

use clap::{Args, Subcommand};

use super::claim_options::claimable_pool;
use super::client::Client;
use super::context::Context;
use super::error::Error;
use super::output;
use super::pool_wait;
use crate::protocol::control::{
    ChangeReply, ClaimsInfo, Empty, ListReply, ListRequest, NoParameters, Occupancy, PATIENCE_SECONDS_MAX,
    PauseRequest, PoolInfo, PoolRequest, Request, SCALE_COUNT_MAX, ScaleRequest, StatusReply, Target, TargetRequest,
    TuneRequest, WorkerInfo, WorkerState,
};
use crate::protocol::escape;
use crate::spec::{PoolName, format_bytes, format_cpus, parse_duration};

/// Which pool, and what it is to be like.
#[derive(Debug, Args)]
pub(super) struct Which {
    /// The pool [default: the one whose workers can be claimed].
    #[arg(long, value_name = "POOL", value_parser = super::pool_name)]
    pool: Option<PoolName>,
}

/// What of a pool is to be otherwise than its configuration says. An option comes before its variable (`MIN_WARM_WORKERS`,
/// `MAX_WARM_WORKERS`, `IDLE_TIMEOUT`, `CHECK_INTERVAL`), and both before what was set at an earlier time.
#[derive(Debug, Args)]
pub(super) struct Tuning {
    /// So many stay warm, and never fewer [env: MIN_WARM_WORKERS].
    #[arg(long, value_name = "N", value_parser = workers_text)]
    min_warm: Option<u32>,
    /// Never more are warm [env: MAX_WARM_WORKERS].
    #[arg(long, value_name = "N", value_parser = workers_text)]
    max_warm: Option<u32>,
    /// Those beyond the wanted number leave after so many seconds, or a time such as 5m [env: IDLE_TIMEOUT].
    #[arg(long, value_name = "N", value_parser = seconds_text)]
    idle_timeout: Option<u64>,
    /// Within so many seconds what is missing is made up for; nothing waits for it [env: CHECK_INTERVAL].
    #[arg(long, value_name = "N", value_parser = seconds_text)]
    check_interval: Option<u64>,
}

/// What an option says, or else its variable; an empty one says nothing.
fn said<T>(option: Option<T>, variable: &str, parse: fn(&str) -> Result<T, String>) -> Result<Option<T>, Error> {
    let text = std::env::var(variable).ok().filter(|text| option.is_none() && !text.is_empty());
    let Some(text) = text else { return Ok(option) };
    parse(&text).map(Some).map_err(|expected| Error::Usage { reason: format!("{variable}={text}: {expected}") })
}

fn workers_text(text: &str) -> Result<u32, String> {
    let expected = || format!("expected a number of workers, 0 to {SCALE_COUNT_MAX}");
    text.parse().ok().filter(|count| *count <= SCALE_COUNT_MAX).ok_or_else(expected)
}

fn seconds_text(text: &str) -> Result<u64, String> {
    let expected = || format!("expected seconds, 1 to {PATIENCE_SECONDS_MAX}, or a time such as 5m");
    let seconds = match text.parse() {
        Ok(seconds) => seconds,
        Err(_no_number) => parse_duration(text).map_err(|_no_time| expected())?.as_secs(),
    };
    (1..=PATIENCE_SECONDS_MAX).contains(&seconds).then_some(seconds).ok_or_else(expected)
}

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Keep as many workers warm as there are to be.
    Start {
        #[command(flatten)]
        which: Which,
        #[command(flatten)]
        tuning: Tuning,
    },
    /// Add and give up none by itself from now on; warm workers stay.
    Stop {
        #[command(flatten)]
        which: Which,
        /// End the warm workers too; they come back with `start`.
        #[arg(long)]
        drain: bool,
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
        // Read by hand: what is missing or no number is said in the words that scripts know.
        #[arg(value_name = "N", allow_negative_numbers = true)]
        count: Option<String>,
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
    Wait(pool_wait::Wait),
    /// List its workers.
    List {
        #[command(flatten)]
        which: Which,
    },
}

impl Verb {
    pub(super) fn run(self, context: &Context) -> Result<(), Error> {
        // A command line that is wrong is wrong whether or not a daemon runs.
        let wanted = if let Self::Scale { count, .. } = &self { scale_target(count.as_deref())? } else { 0 };
        let mut client = context.client()?;
        match self {
            Self::Wait(wait) => wait.run(context, client),
            Self::Start { which, tuning } => start(context, &mut client, &which, &tuning),
            Self::Stop { which, drain } => stop(context, &mut client, &which, drain),
            Self::Status { which } => status(context, &mut client, &which),
            Self::Scale { which, .. } => scale(context, &mut client, &which, wanted),
            Self::Cleanup { which, all } => cleanup(context, &mut client, &which, all),
            Self::Warm { which } => warm(context, &mut client, &which),
            Self::List { which } => list(context, &mut client, &which),
        }
    }
}

/// How many are to be warm.
fn scale_target(text: Option<&str>) -> Result<u32, Error> {
    let Some(text) = text else { return Err(Error::Usage { reason: "Scale target not specified".to_owned() }) };
    workers_text(text).map_err(|expected| {
        let reason = format!("Invalid scale target: {}; {expected}", escape::text(text));
        Error::Usage { reason }
    })
}

fn say(text: &str) {
    output::complain_text(&format!("[pool] {text}"));
}

fn find(client: &mut Client, which: &Which) -> Result<(PoolName, PoolInfo, ClaimsInfo), Error> {
    let (name, info) = claimable_pool(client, which.pool.as_ref())?;
    let claims = info.claims.clone().unwrap_or_default();
    Ok((name, info, claims))
}

fn start(context: &Context, client: &mut Client, which: &Which, tuning: &Tuning) -> Result<(), Error> {
    let (name, info, claims) = find(client, which)?;
    let request = tuning.request(name.clone(), &info)?;
    let daemon: StatusReply = client.call(&Request::Status(NoParameters {}))?;
    let tuned = match request {
        Some(request) => Some(client.call::<ChangeReply>(&Request::Tune(request))?),
        None if claims.paused => {
            let _resumed: Empty = client.call(&Request::Pause(PauseRequest { pool: name.clone(), paused: false }))?;
            None
        }
        None => None,
    };
    // Those that somebody has stopped are there again: what is to be warm is.
    let is_stopped = |worker: &WorkerInfo| {
        worker.session.is_none() && matches!(worker.state, WorkerState::Stopped | WorkerState::Crashed)
    };
    let mut started = None;
    if workers(client, &name)?.iter().any(is_stopped) {
        let target = Target::Pool(name.clone());
        started = Some(client.call::<ChangeReply>(&Request::Start(TargetRequest { target }))?);
    }
    if claims.paused {
        say(&format!("Pool manager started (PID: {})", daemon.pid));
    } else {
        say(&format!("Pool manager already running (PID: {})", daemon.pid));
    }
    status(context, client, which)?;
    let short = tuned.into_iter().chain(started).find(|change| change.achieved != change.wanted);
    match short {
        Some(ChangeReply { achieved, wanted, failures }) => {
            Err(Error::Incomplete { what: format!("start {name}"), achieved, wanted, failures })
        }
        None => Ok(()),
    }
}

impl Tuning {
    /// What is asked of the daemon; `None` where nothing is said.
    ///
    /// # Errors
    /// Numbers that do not go together.
    fn request(&self, pool: PoolName, info: &PoolInfo) -> Result<Option<TuneRequest>, Error> {
        let min = said(self.min_warm, "MIN_WARM_WORKERS", workers_text)?;
        let max = said(self.max_warm, "MAX_WARM_WORKERS", workers_text)?;
        let idle_timeout = said(self.idle_timeout, "IDLE_TIMEOUT", seconds_text)?;
        let check_interval = said(self.check_interval, "CHECK_INTERVAL", seconds_text)?;
        if min.or(max).is_none() && idle_timeout.or(check_interval).is_none() {
            return Ok(None);
        }
        let (least, most) = (min.unwrap_or(info.min), max.unwrap_or(info.max));
        if most == 0 {
            return Err(Error::Usage { reason: "--max-warm: expected at least 1".to_owned() });
        }
        if least > most {
            return Err(Error::Usage { reason: format!("--min-warm {least} is more than --max-warm {most}") });
        }
        let (idle_timeout_seconds, check_interval_seconds) = (idle_timeout, check_interval);
        Ok(Some(TuneRequest { pool, min, max, idle_timeout_seconds, check_interval_seconds }))
    }
}

fn stop(context: &Context, client: &mut Client, which: &Which, drain: bool) -> Result<(), Error> {
    let (name, _, claims) = find(client, which)?;
    if claims.paused {
        say("Pool manager not running");
    } else {
        let _paused: Empty = client.call(&Request::Pause(PauseRequest { pool: name.clone(), paused: true }))?;
        say("Pool manager stopped");
    }
    if drain {
        // One by one: an order to the pool would end sessions too.
        for worker in ready(&workers(client, &name)?).filter(|worker| worker.session.is_none()) {
            let target = super::session::target_of(worker)?;
            let change: ChangeReply = client.call(&Request::Stop(TargetRequest { target }))?;
            let ChangeReply { achieved, wanted, failures } = change;
            if achieved != wanted {
                return Err(Error::Incomplete { what: format!("stop {}", worker.name), achieved, wanted, failures });
            }
        }
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

/// Those that are ready, whoever has them.
fn ready(workers: &[WorkerInfo]) -> impl Iterator<Item = &WorkerInfo> {
    workers.iter().filter(|worker| worker.occupancy.is_some())
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
            format!("Check interval: {}s", claims.check_interval_seconds),
            "Resource Limits:".to_owned(),
            format!("  Memory: {}", limit(claims.memory_bytes.map(format_bytes))),
            format!("  CPUs: {}", limit(claims.cpu_millis.map(format_cpus))),
            format!("  PIDs: {}", limit(claims.pids.map(|pids| pids.to_string()))),
        ];
        let frozen = |worker: &WorkerInfo| if worker.occupancy == Some(Occupancy::Frozen) { ", frozen" } else { "" };
        let line = |worker: &WorkerInfo, what: &str| {
            format!("  - {} ({what}: {}s{})", worker.name, worker.age_seconds, frozen(worker))
        };
        let (warm, busy): (Vec<_>, Vec<_>) = ready(&workers).partition(|worker| worker.session.is_none());
        lines.extend(warm.into_iter().map(|worker| line(worker, "idle")));
        lines.extend(busy.into_iter().map(|worker| line(worker, "age")));
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
        let workers = workers(client, &name)?;
        for worker in ready(&workers).filter(|worker| worker.session.is_none()) {
            let target = super::session::target_of(worker)?;
            let request = Request::Restart(TargetRequest { target });
            let _restarted: ChangeReply = client.call(&request)?;
        }
    }
    let change: ChangeReply = client.call(&Request::Scale(ScaleRequest { pool: name, count: info.wanted }))?;
    context.output.answer(&change, |_| "[pool] Cleanup complete".to_owned())
}

fn warm(context: &Context, client: &mut Client, which: &Which) -> Result<(), Error> {
    let (pool, ..) = find(client, which)?;
    let before: Vec<String> = workers(client, &pool)?.into_iter().map(|worker| worker.name).collect();
    say(&format!("Creating warm worker: {pool}"));
    let change: ChangeReply = client.call(&Request::Warm(PoolRequest { pool: pool.clone() }))?;
    let ChangeReply { achieved, wanted, failures } = change;
    if achieved != wanted {
        return Err(Error::Incomplete { what: format!("warm a worker of {pool}"), achieved, wanted, failures });
    }
    let made = workers(client, &pool)?.into_iter().filter(|worker| !before.contains(&worker.name));
    let made: Vec<WorkerInfo> = made.filter(|worker| worker.occupancy.is_some() && worker.session.is_none()).collect();
    for worker in &made {
        let id = worker.generation.map(|generation| format!(" ({generation:012x})")).unwrap_or_default();
        say(&format!("Created warm worker: {}{id}", escape::text(&worker.name)));
    }
    context.output.answer(&made, |made| made.iter().map(|worker| format!("{}\n", escape::text(&worker.name))).collect())
}

fn list(context: &Context, client: &mut Client, which: &Which) -> Result<(), Error> {
    let (pool, ..) = find(client, which)?;
    let workers = workers(client, &pool)?;
    context.output.answer(&workers, |workers| {
        let line = |worker: &WorkerInfo| {
            let held = worker.session.as_ref().map_or_else(|| "-".to_owned(), |session| session.name.clone());
            let occupancy = match worker.occupancy {
                Some(occupancy) => occupancy.as_str(),
                None => worker.state.as_str(),
            };
            format!("{}  {occupancy}  {}\n", escape::text(&worker.name), escape::text(&held))
        };
        workers.iter().map(line).collect()
    })
}
