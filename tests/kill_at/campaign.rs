//! Which rounds are played, by how many at a time, and what comes of them all.

#![expect(clippy::disallowed_methods, reason = "rounds are timed by the real clock")]

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::checker::canary::Canary;
use crate::checker::host::Host;
use crate::checker::{self, Findings};
use crate::round::{self, Round};
use crate::scenarios::{self, Scenario};
use crate::tracer::Outcome;
use crate::{say, setting};

/// Rounds at a time; they wait more than they compute.
const JOBS: usize = 3;
/// Boundaries of each scenario that a sample takes.
const SAMPLE: u64 = 6;
/// Every so many boundaries of a full run, a double kill.
const DOUBLES: u64 = 4;
/// How often a scenario is counted first.
const COUNTS: u32 = 3;
/// Violations of one scenario that are told.
const SHOWN: u64 = 5;
/// Lines of the daemons' log that are shown of a round in which something is wrong.
const LOG_LINES: usize = 12;
/// How often a boundary is tried that is not reached each time.
const TRIES: u32 = 8;

/// What came of a scenario.
#[derive(Debug, Default)]
struct Tally {
    boundaries: u64,
    kills: u64,
    doubles: u64,
    violations: u64,
    slowest: Duration,
    /// The most boundaries that the start of a daemon had.
    recovery: u64,
}

/// What the rounds of a scenario share.
struct Shared<'s> {
    scenario: &'s Scenario,
    tally: Mutex<Tally>,
    next: AtomicU64,
}

/// Everything that is wrong with everything, after what `HALSUP_KILL` asks for was played.
pub(crate) fn run() {
    let wanted = setting("HALSUP_KILL").unwrap_or_default();
    if let Some((name, boundaries)) = wanted.split_once(':') {
        return one(name, boundaries);
    }
    let full = wanted == "full";
    let only = setting("HALSUP_KILL_ONLY").unwrap_or_default();
    let canary = Canary::start(Some(&format!("halsup-canary-{}", std::process::id())));
    let host = Host::look(&[]);
    let begun = Instant::now();
    let mut sum = Tally::default();
    say("scenario             boundaries  killed   %  double  violations  slowest start       time");
    let wanted = |scenario: &&Scenario| only.split(',').any(|part| scenario.name.contains(part));
    for scenario in scenarios::all().filter(wanted) {
        let tally = play(scenario, full, sum.recovery.max(500));
        sum.boundaries += tally.boundaries;
        sum.kills += tally.kills;
        sum.doubles += tally.doubles;
        sum.violations += tally.violations;
        sum.slowest = sum.slowest.max(tally.slowest);
        sum.recovery = sum.recovery.max(tally.recovery);
    }
    report("all", &sum, begun);
    let mut found = Findings::default();
    canary.untouched(&mut found);
    host.untouched(&mut found);
    assert!(found.0.is_empty(), "{}", checker::lines(&found.0));
    assert_eq!(sum.violations, 0, "the violations are above");
}

fn report(name: &str, tally: &Tally, begun: Instant) {
    let Tally { boundaries, kills, doubles, violations, slowest, .. } = tally;
    let percent = (kills * 100).checked_div(*boundaries).unwrap_or(0);
    let time = begun.elapsed();
    say(&format!(
        "{name:<20} {boundaries:>10} {kills:>7} {percent:>3} {doubles:>7} {violations:>11} {slowest:>14.1?} {time:>10.1?}"
    ));
}

fn play(scenario: &Scenario, full: bool, recovery: u64) -> Tally {
    let begun = Instant::now();
    let shared = Shared { scenario, tally: Mutex::default(), next: AtomicU64::new(0) };
    lock(&shared).recovery = recovery;
    for _ in 0..if full { COUNTS } else { 1 } {
        let round = round::play(scenario, u64::MAX, None);
        assert!(round.goal, "{} does not come to its goal", scenario.name);
        note(&shared, "", &round);
    }
    let jobs = setting("HALSUP_KILL_JOBS").and_then(|jobs| jobs.parse().ok()).unwrap_or(JOBS);
    std::thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| if full { every(&shared) } else { sample(&shared) });
        }
    });
    let tally = shared.tally.into_inner().expect("nobody panicked");
    report(scenario.name, &tally, begun);
    tally
}

fn lock<'s>(shared: &'s Shared<'_>) -> std::sync::MutexGuard<'s, Tally> {
    shared.tally.lock().expect("nobody panicked")
}

/// Every boundary, until there is no further one.
fn every(shared: &Shared<'_>) {
    loop {
        let boundary = 1 + shared.next.fetch_add(1, Ordering::Relaxed);
        if boundary > lock(shared).boundaries {
            return;
        }
        at(shared, boundary);
        if boundary % DOUBLES == 1 {
            double(shared, boundary);
        }
    }
}

/// Some boundaries, spread over the scenario; one double kill for three of them.
fn sample(shared: &Shared<'_>) {
    loop {
        let number = shared.next.fetch_add(1, Ordering::Relaxed);
        if number >= SAMPLE {
            return;
        }
        let all = lock(shared).boundaries;
        let boundary = 1 + (2 * number + 1) * all / (2 * SAMPLE);
        if number % 3 == 1 { double(shared, boundary) } else { at(shared, boundary) }
    }
}

fn at(shared: &Shared<'_>, boundary: u64) {
    for _ in 0..TRIES {
        let round = round::play(shared.scenario, boundary, None);
        note(shared, &boundary.to_string(), &round);
        if matches!(round.first, Outcome::Killed(_)) {
            return lock(shared).kills += 1;
        }
    }
}

fn double(shared: &Shared<'_>, boundary: u64) {
    let recovery = lock(shared).recovery;
    // Spread over the start without a pattern, and the same in every run.
    let second = 1 + boundary.wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(29) % recovery;
    let round = round::play(shared.scenario, boundary, Some(second));
    note(shared, &format!("{boundary}:{second}"), &round);
    if matches!((&round.first, &round.second), (Outcome::Killed(_), Some(Outcome::Killed(_)))) {
        lock(shared).doubles += 1;
    }
}

/// Adds a round to the tally, and tells of what is wrong.
fn note(shared: &Shared<'_>, boundaries: &str, round: &Round) {
    let mut tally = lock(shared);
    if let Outcome::Ended(count) = round.first {
        tally.boundaries = tally.boundaries.max(count);
    }
    if let Some(Outcome::Ended(count)) = round.second {
        tally.recovery = count;
    }
    tally.slowest = tally.slowest.max(round.ready);
    if !round.violations.is_empty() {
        tally.violations += 1;
        if tally.violations > SHOWN {
            return;
        }
        say(&format!("HALSUP_KILL={}:{boundaries} {:?} {:?}", shared.scenario.name, round.first, round.second));
        say(&checker::lines(&round.violations));
        let last: Vec<&str> = round.log.lines().rev().take(LOG_LINES).collect();
        last.iter().rev().for_each(|line| say(&format!("    {line}")));
    }
}

/// One round, told at length: `NAME:BOUNDARY` or `NAME:BOUNDARY:SECOND`.
fn one(name: &str, boundaries: &str) {
    let scenario =
        scenarios::all().find(|scenario| scenario.name == name).unwrap_or_else(|| panic!("no scenario {name}"));
    let mut numbers = boundaries.split(':').map(|text| text.parse().unwrap_or(u64::MAX));
    let (first, second) = (numbers.next().unwrap_or(u64::MAX), numbers.next());
    let round = round::play(scenario, first, second);
    say(&format!("{:?} {:?} goal {} ready {:?}", round.first, round.second, round.goal, round.ready));
    say(&round.log);
    assert!(round.violations.is_empty(), "{}", checker::lines(&round.violations));
}
