//! Random kills of the daemon under a load of orders and crashes: ready again each time, nothing left at the end, and whoever
//! was not to be touched has lived through it all.

#![expect(clippy::disallowed_methods, reason = "the time to a ready daemon is measured by the real clock")]

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::checker::canary::Canary;
use crate::checker::host::Host;
use crate::checker::line::{self, Line};
use crate::checker::{self, Findings, Invariant, SETTLE, pause};
use crate::round::{look, pids_of_keep, were_kept};
use crate::scene::send;
use crate::site::{READY_BUDGET, Site};
use crate::{say, setting};

/// How many kills, unless `HALSUP_KILL_RANDOM` says otherwise.
const KILLS: u64 = 25;
/// A daemon lives no longer than this.
const LIFE_MSEC: u64 = 120;
/// How long the load waits for an answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// A pool of changing size, one whose workers crash all the time, one that has to begin anew each time, one that is ready late.
const POOLS: &str = "[pool.web]\nmin = 1\nmax = 4\ncommand = [{SLEEP}]\n\
    restart = { max_restarts = 10000, delay = '10ms', delay_max = '50ms' }\n\
    [pool.crash]\ncommand = ['sh', '-c', 'sleep 0.05; exit 1']\n\
    restart = { max_restarts = 10000, delay = '10ms', delay_max = '50ms' }\n\
    [pool.brief]\non_supervisor_death = '0s'\ncommand = [{SLEEP}]\n\
    [pool.file]\nready = 'file:up'\ncommand = ['sh', '-c', 'sleep 0.03; touch up; exec sleep infinity']\n";

/// Numbers without a pattern, the same for the same seed.
struct Dice(u64);

impl Dice {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % end
    }
}

pub(crate) fn run() {
    let number = |name: &str| setting(name).and_then(|value| value.parse::<u64>().ok());
    let kills = number("HALSUP_KILL_RANDOM").unwrap_or(KILLS);
    let seed = number("HALSUP_KILL_SEED").unwrap_or(1);
    let canary = Canary::start(Some(&format!("halsup-canary-{}-random", std::process::id())));
    let host = Host::look(&[]);
    let site = Site::new(POOLS);
    let mut found = Findings::default();
    let begun = Instant::now();
    let mut daemon = site.start();
    assert!(daemon.ready().is_some(), "the daemon does not start\n{}", site.log());
    found.0.extend(checker::standing(SETTLE, || checker::look_at_running(&site.instance)));
    let kept = pids_of_keep(&site.instance);
    assert_ne!(kept.len(), 0, "there is a worker to be kept");
    let mut slowest = Duration::ZERO;
    let ended = AtomicBool::new(false);
    let mut dice = Dice(seed);
    let orders = std::thread::scope(|scope| {
        let load = scope.spawn(|| load(&site, &ended, seed));
        for number in 1..=kills {
            pause(Duration::from_millis(dice.below(LIFE_MSEC)));
            daemon.kill();
            daemon = site.start();
            match daemon.ready() {
                Some(ready) if ready.own <= READY_BUDGET => slowest = slowest.max(ready.own),
                late => found.add(Invariant::Latency, format!("after kill {number} the daemon was ready {late:?}")),
            }
        }
        ended.store(true, Ordering::Relaxed);
        let (orders, books) = load.join().expect("the load does not panic");
        found.0.extend(books.0);
        orders
    });
    // The pool that crashes all the time would never come to rest.
    site.configure(&POOLS.replace("exit 1", "exec sleep infinity"));
    let reloaded =
        Line::connect(&site.instance.control(), PATIENCE).ok().and_then(|mut line| line.ask("Reload", &json!({})));
    assert!(reloaded.is_some(), "the daemon does not reload\n{}", site.log());
    found.0.extend(checker::standing(SETTLE, || look(&site.instance)));
    were_kept(&site, &kept, &mut found);
    if daemon.stop() != Some(0) {
        found.add(Invariant::Truth, "the daemon did not stop as it should");
        daemon.kill();
    }
    found.0.extend(checker::stopped(&site.instance));
    canary.untouched(&mut found);
    host.untouched(&mut found);
    let log = site.log();
    site.sweep();
    let time = begun.elapsed();
    say(&format!("random kills: {kills}, orders {orders}, slowest start {slowest:.1?}, time {time:.1?}, seed {seed}"));
    let last: Vec<&str> = log.lines().rev().take(40).collect();
    let last: String = last.iter().rev().map(|line| format!("{line}\n")).collect();
    assert!(found.0.is_empty(), "{}{last}", checker::lines(&found.0));
}

/// Gives orders until `ended`; how many were answered, and what is wrong with the answers.
fn load(site: &Site, ended: &AtomicBool, seed: u64) -> (u64, Findings) {
    let mut found = Findings::default();
    let mut dice = Dice(seed ^ 0x5555);
    let mut answered = 0;
    while !ended.load(Ordering::Relaxed) {
        let Ok(mut line) = Line::connect(&site.instance.control(), PATIENCE) else {
            pause(Duration::from_millis(1));
            continue;
        };
        while order(&mut line, &mut dice).is_some() && !ended.load(Ordering::Relaxed) {
            answered += 1;
        }
        line.surplus();
        line::judge(&line.calls, true, &mut found);
    }
    (answered, found)
}

/// Something that an operator does, or that befalls a worker.
fn order(line: &mut Line, dice: &mut Dice) -> Option<Value> {
    let worker = format!("web.{}", dice.below(4));
    match dice.below(8) {
        0 | 1 => line.ask("Scale", &json!({ "pool": "web", "count": 1 + dice.below(4) })),
        2 => line.ask("Stop", &json!({ "target": worker })),
        3 => line.ask("Start", &json!({ "target": "web" })),
        4 => line.ask("Restart", &json!({ "target": "brief" })),
        5 => line.ask("Kill", &json!({ "target": worker })),
        6 => {
            let list = line.ask("List", &json!({ "pool": "web" }))?;
            let pid = list["parameters"]["workers"][0]["pid"].as_i64().and_then(|pid| i32::try_from(pid).ok());
            pid.and_then(|pid| send(pid, Signal::KILL));
            Some(list)
        }
        _ => line.ask("Ping", &json!({})),
    }
}
