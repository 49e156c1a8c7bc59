//! Requests while a server is killed every second, one after the other, and started again by halsup.
//!
//! All of them are `GET`s, which may run twice: none is to fail.

use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::wrk::{Tally, Wrk};
use super::{CALLERS, JOB_MS, SERVERS, Scene, kill};
use crate::place::{now, readable};
use crate::report::Verdict;
use crate::rows::Rows;
use crate::{Options, Result};

/// How long each row is measured, in seconds.
const SECONDS: u32 = 60;
/// So many slices of rows are measured in turn.
const SLICES: u32 = 5;
const BETWEEN_NS: u64 = 1_000_000_000;

/// Somebody who is asked meanwhile.
struct Asked {
    name: &'static str,
    url: String,
    killed: u16,
    tally: Tally,
}

pub fn run(scene: &mut Scene<'_>, options: &Options, rows: &Rows) -> Result<()> {
    let seconds = options.seconds.unwrap_or(SECONDS);
    let slices = SLICES.min(seconds);
    for ms in [JOB_MS, 0] {
        let asked = |name, url| Asked { name, url, killed: 0, tally: Tally::default() };
        let mut all = vec![asked("halsup's gateway", scene.through_gateway(ms))];
        if let Some(proxy) = &scene.proxy {
            all.push(asked("haproxy: retries 3, redispatch", proxy.through(ms)));
            all.push(asked("haproxy: the same, retry-on all-retryable-errors", proxy.through_eager(ms)));
        }
        for _ in 0..slices {
            for one in &mut all {
                scene.wait_ready()?;
                let wrk = Wrk::start(scene.place, &one.url, CALLERS, seconds / slices)?;
                kill_meanwhile(scene, &wrk, &mut one.killed)?;
                wrk.end(&mut one.tally)?;
            }
        }
        rows.head(&format!("jobs of {ms} ms, {CALLERS} connections, a kill every second"));
        for one in &all {
            let Tally { row, refused, broken } = &one.tally;
            let more =
                [("kills", f64::from(one.killed)), ("no_2xx", *refused as f64), ("socket_errors", *broken as f64)];
            let met = Some(refused + broken == 0);
            let target = [Verdict { target: "no request fails".to_owned(), met }];
            rows.row(one.name, row, if one.name == "halsup's gateway" { &target } else { &[] }, &more);
        }
    }
    Ok(())
}

/// Kills one server after the other, until wrk has ended.
fn kill_meanwhile(scene: &mut Scene<'_>, wrk: &Wrk, killed: &mut u16) -> Result<()> {
    let asks = pidfd_open(Pid::from_child(&wrk.child), PidfdFlags::empty())?;
    let mut next = now() + BETWEEN_NS / 2;
    while !readable(&asks, Duration::from_nanos(next.saturating_sub(now()))) {
        next += BETWEEN_NS;
        if let Some(process) = scene.server(*killed % SERVERS)? {
            kill(&process)?;
            *killed += 1;
        }
    }
    Ok(())
}
