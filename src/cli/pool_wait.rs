//! `halsup pool wait`: comes back when a pool is there, or cannot be.

use std::io::IsTerminal as _;
use std::time::Duration;

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};

use super::client::Client;
use super::context::Context;
use super::error::Error;
use super::output;
use crate::protocol::control::{Failure, PoolProgress, Request, WaitPoolReply, WaitPoolRequest};
use crate::protocol::escape;
use crate::spec::{PoolName, parse_duration};

/// Wait until a worker of a pool is ready, or of every pool. Fails at once where none is on its way any more (exit 1); with
/// `--timeout`, when that is over (exit 4).
#[derive(Debug, Args)]
pub(super) struct Wait {
    /// Only this pool.
    #[arg(value_name = "POOL", value_parser = super::pool_name)]
    pool: Option<PoolName>,
    /// Until one worker of each is ready, which is meant where nothing is said.
    #[arg(long, conflicts_with = "complete")]
    ready: bool,
    /// Until all workers are ready that there are to be.
    #[arg(long)]
    complete: bool,
    /// Wait no longer than this, as in `30s` [default: as long as workers are on their way].
    #[arg(long, value_name = "TIME", value_parser = duration)]
    timeout: Option<Duration>,
}

fn duration(text: &str) -> Result<Duration, String> {
    parse_duration(text).map_err(|error| error.to_string())
}

impl Wait {
    pub(super) fn run(self, context: &Context, mut client: Client) -> Result<(), Error> {
        let whose = self.pool.as_ref().map_or_else(|| "the pools".to_owned(), ToString::to_string);
        let complete = (self.complete && !self.ready).then_some(true);
        let request = Request::WaitPool(WaitPoolRequest { pool: self.pool, complete });
        let mut last = WaitPoolReply::default();
        let progress = Progress::new(context);
        let waited = client.await_more(&request, self.timeout, |reply: WaitPoolReply| {
            last = reply;
            progress.tell(&last.pools);
            Ok(())
        });
        progress.end();
        match (waited, self.timeout) {
            (Err(Error::Silent { .. }), Some(after)) => {
                context.output.answer(&last, |_| String::new())?;
                let what = if complete.is_some() { "not complete" } else { "not ready" };
                Err(Error::NotInTime { what: format!("{whose}: {what}"), after, progress: sentence(&last.pools) })
            }
            (Err(error), _) => Err(error),
            (Ok(()), _) if last.reached => {
                context.output.answer(&last, |last| last.pools.iter().map(|pool| line(pool) + "\n").collect())
            }
            (Ok(()), _) => {
                context.output.answer(&last, |_| String::new())?;
                let (achieved, wanted) = sums(&last.pools);
                let failures: Vec<Failure> = last.failures;
                Err(Error::Incomplete { what: format!("wait for {whose}"), achieved, wanted, failures })
            }
        }
    }
}

/// What people who wait see: a bar on a terminal, a line for each step in a log.
struct Progress {
    bar: Option<ProgressBar>,
    quiet: bool,
}

impl Progress {
    fn new(context: &Context) -> Self {
        let quiet = context.output.is_json();
        let bar = (!quiet && std::io::stderr().is_terminal()).then(|| {
            let bar = ProgressBar::new(0);
            match ProgressStyle::with_template("{bar:30} {pos}/{len} {msg}") {
                Ok(style) => bar.with_style(style),
                Err(_unreadable) => bar,
            }
        });
        Self { bar, quiet }
    }

    fn tell(&self, pools: &[PoolProgress]) {
        let (ready, wanted) = sums(pools);
        match &self.bar {
            Some(bar) => {
                bar.set_length(u64::from(wanted));
                bar.set_position(u64::from(ready));
                bar.set_message(sentence(pools));
            }
            None if self.quiet => {}
            None => output::complain_text(&format!("[pool] {}", sentence(pools))),
        }
    }

    fn end(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// How many workers are ready, and are to be.
fn sums(pools: &[PoolProgress]) -> (u32, u32) {
    let sum = |(ready, wanted): (u32, u32), pool: &PoolProgress| {
        (ready.saturating_add(pool.ready), wanted.saturating_add(pool.wanted))
    };
    pools.iter().fold((0, 0), sum)
}

fn line(pool: &PoolProgress) -> String {
    format!("{}: {} of {} ready", escape::text(&pool.pool), pool.ready, pool.wanted)
}

fn sentence(pools: &[PoolProgress]) -> String {
    if pools.is_empty() {
        return "there are no pools".to_owned();
    }
    pools.iter().map(line).collect::<Vec<_>>().join(", ")
}
