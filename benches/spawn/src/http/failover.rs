//! One request after the other, and what it takes longer when its server is killed: just before, and while it has it.
//!
//! The servers take turns, so it is known who is next. That a request was tried twice shows that its server was still given it.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpStream};

use super::{POOL, SERVERS, Scene, kill};
use crate::place::{now, wait_until};
use crate::report::{Samples, at_most, quantile_at_most};
use crate::rows::{Row, Rows};
use crate::{Options, Result};

/// Between two requests.
const PACE_NS: u64 = 20_000_000;
/// How long a job takes whose server is killed, and when that is.
const LONG_MS: u64 = 20;
const KILLED_AFTER_NS: u64 = 10_000_000;

/// A connection to the gateway.
struct Caller {
    stream: TcpStream,
}

/// Who has answered, and how often it was tried.
struct Answer {
    slot: u16,
    attempts: u16,
}

impl Caller {
    fn ask(&mut self, ms: u64) -> Result<()> {
        Ok(self.stream.write_all(format!("GET /w/{POOL}/{ms} HTTP/1.1\r\nHost: localhost\r\n\r\n").as_bytes())?)
    }

    fn answer(&mut self) -> Result<Answer> {
        let mut text = String::new();
        let mut bytes = [0; 4096];
        // All answers have this body.
        while !text.ends_with("\r\n\r\nok\n") {
            let length = self.stream.read(&mut bytes)?;
            text.push_str(std::str::from_utf8(&bytes[..length])?);
            if length == 0 || (text.contains("\r\n\r\n") && !text.starts_with("HTTP/1.1 200 ")) {
                return Err(format!("a request has failed: {text}").into());
            }
        }
        let field = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name));
            line.ok_or_else(|| format!("no {name} in {text}"))
        };
        let worker = field("x-halsup-worker: ")?;
        let slot = worker.rsplit('.').next().unwrap_or_default().parse()?;
        Ok(Answer { slot, attempts: field("x-halsup-attempts: ")?.parse()? })
    }
}

/// What was measured of one kind of requests.
#[derive(Default)]
struct Case {
    plain: Samples,
    /// From the kill, or from the request behind it, to the answer.
    killed: Samples,
    /// How many of those were tried twice.
    twice: u32,
}

pub fn run(scene: &mut Scene<'_>, options: &Options, rows: &Rows) -> Result<()> {
    let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, scene.gateway))?;
    stream.set_nodelay(true)?;
    let mut caller = Caller { stream };
    caller.ask(0)?;
    let mut last = caller.answer()?.slot;
    let mut foreseen = 0;
    let (mut before, mut within) = (Case::default(), Case::default());
    for _ in 0..options.runs {
        for (case, ms) in [(&mut before, 0), (&mut within, LONG_MS)] {
            scene.wait_ready()?;
            wait_until(now() + PACE_NS);
            let asked = now();
            caller.ask(ms)?;
            let answer = caller.answer()?;
            case.plain.add(now() - asked);
            foreseen += u32::from(answer.slot == (last + 1) % SERVERS);
            last = answer.slot;
            wait_until(now() + PACE_NS);
            let victim = scene.server((last + 1) % SERVERS)?.ok_or("a server is not ready that was")?;
            if ms == 0 {
                kill(&victim)?;
            }
            let mut begun = now();
            caller.ask(ms)?;
            if ms > 0 {
                wait_until(begun + KILLED_AFTER_NS);
                begun = now();
                kill(&victim)?;
            }
            let answer = caller.answer()?;
            case.killed.add(now() - begun);
            case.twice += u32::from(answer.attempts > 1);
            last = answer.slot;
        }
    }
    rows.head(&format!("one request after the other, {} of each", options.runs));
    let foreseen = f64::from(foreseen) * 50.0 / f64::from(options.runs);
    rows.row("a request", &row(before.plain.clone()), &[], &[("percent_whose_server_was_foreseen", foreseen)]);
    let share = |case: &Case| [("percent_tried_twice", f64::from(case.twice) * 100.0 / f64::from(options.runs))];
    told(rows, "    more, where its server was killed just before", &before, &share(&before));
    rows.row(&format!("a request of {LONG_MS} ms"), &row(within.plain.clone()), &[], &[]);
    told(rows, "    more, from the kill of the server that has it", &within, &share(&within));
    Ok(())
}

fn told(rows: &Rows, name: &str, case: &Case, more: &[(&str, f64)]) {
    let beyond = case.killed.beyond(case.plain.median().unwrap_or(0.0));
    let targets = [at_most(&beyond, 5000.0), quantile_at_most(&beyond, 99, 5000.0)];
    rows.row(name, &row(beyond), &targets, more);
}

fn row(samples: Samples) -> Row {
    Row { samples, ..Row::default() }
}
