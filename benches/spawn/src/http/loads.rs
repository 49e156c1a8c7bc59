//! Requests while nothing else happens: such as take no time, and such as keep all servers busy.

use super::wrk::{Tally, Wrk};
use super::{CALLERS, JOB_MS, SERVERS, Scene};
use crate::report::{Verdict, quantile_at_most};
use crate::rows::Rows;
use crate::{Options, Result};

/// How long each row is measured, in seconds.
const SECONDS: u32 = 10;
/// So many slices of rows are measured in turn.
const SLICES: u32 = 5;
/// How often rows of jobs are measured in turn, each for all its time: what is under way at its end is not counted, which of
/// slices would be a part that is seen.
const ROUNDS: u32 = 3;

/// Somebody who is asked.
struct Asked {
    name: &'static str,
    url: String,
    connections: usize,
    tally: Tally,
}

fn asked(name: &'static str, url: String, connections: usize) -> Asked {
    Asked { name, url, connections, tally: Tally::default() }
}

pub fn run(scene: &Scene<'_>, options: &Options, rows: &Rows) -> Result<()> {
    let seconds = options.seconds.unwrap_or(SECONDS);
    let slices = SLICES.min(seconds);
    let direct = |ms: u64| format!("http://127.0.0.1:{}/{ms}", scene.first);
    let mut all = vec![
        asked("one server, directly", direct(0), CALLERS),
        asked("halsup's gateway", scene.through_gateway(0), CALLERS),
    ];
    all.extend(scene.proxy.as_ref().map(|proxy| asked("haproxy", proxy.through(0), CALLERS)));
    measure(scene, &mut all, slices, seconds / slices)?;
    rows.head(&format!("{SERVERS} servers, answers at once, {CALLERS} connections"));
    for one in &all {
        tell(rows, one, &[]);
    }
    let mut all = vec![
        // As many callers as there are servers: nobody waits.
        asked("one server, directly, 5 connections", direct(JOB_MS), usize::from(SERVERS)),
        asked("halsup's gateway", scene.through_gateway(JOB_MS), CALLERS),
    ];
    all.extend(scene.proxy.as_ref().map(|proxy| asked("haproxy", proxy.through(JOB_MS), CALLERS)));
    measure(scene, &mut all, ROUNDS, seconds)?;
    rows.head(&format!("{SERVERS} servers, jobs of {JOB_MS} ms, {CALLERS} connections"));
    let ideal = f64::from(SERVERS) * 1000.0 / JOB_MS as f64;
    for one in &all {
        let share = one.tally.row.per_second() / ideal * 100.0;
        let targets = [
            Verdict { target: format!("≥ 99 % of {ideal} per s"), met: Some(share >= 99.0) },
            quantile_at_most(&one.tally.row.samples, 99, 260_000.0),
        ];
        tell(rows, one, if one.name == "halsup's gateway" { &targets } else { &[] });
    }
    Ok(())
}

fn measure(scene: &Scene<'_>, all: &mut [Asked], turns: u32, seconds: u32) -> Result<()> {
    for _ in 0..turns {
        for one in &mut *all {
            Wrk::start(scene.place, &one.url, one.connections, seconds)?.end(&mut one.tally)?;
        }
    }
    Ok(())
}

fn tell(rows: &Rows, one: &Asked, verdicts: &[Verdict]) {
    let Tally { row, refused, broken } = &one.tally;
    let failed = [("no_2xx", *refused as f64), ("socket_errors", *broken as f64)];
    rows.row(one.name, row, verdicts, if refused + broken > 0 { &failed } else { &[] });
}
