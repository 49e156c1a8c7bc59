//! Many callers at once: jobs that keep all workers busy, and pings that keep the daemon busy.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;

use serde_json::json;

use super::bare::Server;
use super::{CALLERS, JOB_MS, Scene, WORKERS, request, warm};
use crate::place::now;
use crate::report::{Verdict, quantile_at_most};
use crate::rows::{Row, Rows};
use crate::{Options, Result};

/// Requests of each caller.
const EACH: usize = 50;
/// How often the rows of pings are measured in turn.
const ROUNDS: usize = 10;

/// What one caller does once.
type Turn<'t> = Box<dyn FnMut() -> Result<()> + Send + 't>;

/// Has every caller take so many turns, all callers at once.
fn crowd(callers: &mut [Turn<'_>], each: usize, row: &mut Row) -> Result<()> {
    let began = now();
    let taken = std::thread::scope(|scope| {
        let all: Vec<_> = callers
            .iter_mut()
            .map(|turn| {
                scope.spawn(move || {
                    let mut taken = Vec::with_capacity(each);
                    for _ in 0..each {
                        let asked = now();
                        turn().map_err(|error| error.to_string())?;
                        taken.push(now() - asked);
                    }
                    Ok::<_, String>(taken)
                })
            })
            .collect();
        let joined = all.into_iter().map(|caller| caller.join().unwrap_or_else(|_| Err("a caller panicked".into())));
        joined.collect::<std::result::Result<Vec<_>, _>>()
    })?;
    row.wall += now() - began;
    taken.into_iter().flatten().for_each(|sample| row.samples.add(sample));
    Ok(())
}

fn requests<'s>(
    scene: &'s Scene<'_>,
    count: usize,
    pool: &'s str,
    command: &'s str,
    args: u64,
) -> Result<Vec<Turn<'s>>> {
    let turn = |_| {
        let mut caller = scene.caller()?;
        let turn: Turn<'s> = Box::new(move || {
            let (reply, _) = caller.call(request(pool, command, Some(json!(args)))?, None)?;
            if reply.result == Some(json!(args)) { Ok(()) } else { Err(format!("{reply:?}").into()) }
        });
        Ok(turn)
    };
    (0..count).map(turn).collect()
}

fn bare<'s>(server: &Server, count: usize) -> Result<Vec<Turn<'s>>> {
    let turn = |_| {
        let mut stream = UnixStream::connect(&server.path)?;
        let turn: Turn<'s> = Box::new(move || {
            let mut message = [7; 64];
            stream.write_all(&message)?;
            Ok(stream.read_exact(&mut message)?)
        });
        Ok(turn)
    };
    (0..count).map(turn).collect()
}

/// Jobs that take a known time, more of them than workers.
pub fn jobs(scene: &Scene<'_>, options: &Options, rows: &mut Rows) -> Result<()> {
    rows.head(&format!("{WORKERS} workers, jobs of {JOB_MS} ms, {CALLERS} callers"));
    let ideal = WORKERS as f64 * 1000.0 / JOB_MS as f64;
    let each = if options.runs <= 50 { EACH / 5 } else { EACH };
    for (pool, name) in [("jobs", "worker in Rust"), ("python", "worker by the SDK of Python")] {
        if pool == "python" && !scene.has_python {
            continue;
        }
        warm(scene, pool)?;
        let mut row = Row::default();
        crowd(&mut requests(scene, CALLERS, pool, "job", JOB_MS)?, each, &mut row)?;
        let share = row.per_second() / ideal * 100.0;
        let verdicts = [
            Verdict { target: format!("≥ 99 % of {ideal} per s"), met: Some(share >= 99.0) },
            quantile_at_most(&row.samples, 99, 260_000.0),
        ];
        let jobs = row.samples.len() as f64 / WORKERS as f64;
        let between = row.wall as f64 / 1000.0 / jobs - JOB_MS as f64 * 1000.0;
        rows.row(name, &row, &verdicts, &[("percent_of_ideal", share), ("us_between_two_jobs_of_a_worker", between)]);
    }
    Ok(())
}

/// Requests that take no time, beside what is the least that such a conversation can take.
pub fn pings(scene: &Scene<'_>, options: &Options, rows: &mut Rows) -> Result<()> {
    warm(scene, "pings")?;
    let echo = Server::start("echo", scene.socket("echo"), &[])?;
    let behind = (0..WORKERS).map(|number| Server::start("echo", scene.socket(&format!("behind-{number}")), &[]));
    let behind = behind.collect::<Result<Vec<_>>>()?;
    let paths: Vec<_> = behind.iter().map(|server| server.path.clone()).collect();
    let relay = Server::start("relay", scene.socket("relay"), &paths)?;
    let rounds = if options.runs <= 50 { 2 } else { ROUNDS };
    for count in [CALLERS, 1] {
        rows.head(&format!("{count} callers × {EACH} pings, {rounds} rounds in turn"));
        let mut all = [bare(&echo, count)?, bare(&relay, count)?, requests(scene, count, "pings", "ping", 7)?];
        let mut controls: Vec<Turn<'_>> = Vec::new();
        for _ in 0..count {
            let mut caller = scene.caller()?;
            controls.push(Box::new(move || Ok(caller.ping()?)));
        }
        let mut measured: [Row; 4] = Default::default();
        let mut spent = 0;
        for _ in 0..rounds {
            let [of_echo, of_relay, of_requests, of_control] = &mut measured;
            crowd(&mut all[0], EACH, of_echo)?;
            crowd(&mut all[1], EACH, of_relay)?;
            crowd(&mut controls, EACH, of_control)?;
            let before = scene.spent()?;
            crowd(&mut all[2], EACH, of_requests)?;
            spent += scene.spent()? - before;
        }
        let [of_echo, of_relay, of_requests, of_control] = &measured;
        let against = |row: &Row, other: &Row| {
            row.samples.median().zip(other.samples.median()).map_or(0.0, |(one, other)| one / other)
        };
        rows.row("bare socket: caller and echo", of_echo, &[], &[]);
        rows.row("bare sockets: caller, relay, worker and back", of_relay, &[], &[]);
        rows.row(
            "halsup: Ping of the daemon",
            of_control,
            &[],
            &[("times_the_bare_socket", against(of_control, of_echo))],
        );
        let cpu = spent as f64 / 1000.0 / of_requests.samples.len().max(1) as f64;
        let more = [
            ("times_the_bare_socket", against(of_requests, of_echo)),
            ("times_the_bare_relay", against(of_requests, of_relay)),
            ("us_of_processor_in_the_daemon_for_each", cpu),
        ];
        let of_least = against(of_requests, of_echo);
        // There and back there are twice as many messages as in the bare conversation.
        let verdict = Verdict { target: "≤ 2.5 × the bare socket".to_owned(), met: Some(of_least <= 2.5) };
        rows.row(
            "halsup: a request to a worker",
            of_requests,
            if count == 1 { std::slice::from_ref(&verdict) } else { &[] },
            &more,
        );
    }
    Ok(())
}
