//! One round: a fresh daemon, a scenario, a kill at one boundary, perhaps a second during recovery, a start for good, the
//! checker, an orderly end, and the checker once more.

#![expect(clippy::disallowed_methods, reason = "deadlines of tests run on the real clock")]

use std::time::{Duration, Instant};

use serde_json::json;

use crate::checker::line::{self, Call, Line};
use crate::checker::{self, Findings, Instance, Invariant, SETTLE, Violation, cgroups, pause};
use crate::scenarios::{From, Keep, Scenario};
use crate::scene::{Scene, Told};
use crate::site::{Daemon, READY_BUDGET, Site};
use crate::tracer::{Outcome, Traced, kill};
use crate::{inputs, leases, requests, tasks, tokens};

/// What workers are while nothing is done to them.
const RESTING: [&str; 3] = ["healthy", "crashed", "stopped"];
/// After its goal a scenario goes on for this long, for what the daemon still has to put away.
const AFTERMATH: Duration = Duration::from_millis(30);

/// Before it, nothing happens for this long.
const STILLNESS: Duration = Duration::from_millis(4);

/// What came of a round.
#[derive(Debug)]
pub(crate) struct Round {
    /// How the daemon ended that the scenario was played to.
    pub(crate) first: Outcome,
    /// How the one ended that was started after it, if that was to be killed too.
    pub(crate) second: Option<Outcome>,
    /// Whether the scenario came to its goal.
    pub(crate) goal: bool,
    /// How long the last daemon took to be ready, without what it waited for a processor.
    pub(crate) ready: Duration,
    pub(crate) violations: Vec<Violation>,
    /// What the daemons said, where something is wrong.
    pub(crate) log: String,
}

/// Plays `scenario` and kills the daemon at boundary `first`, and the next one at boundary `second` of its start.
pub(crate) fn play(scenario: &Scenario, first: u64, second: Option<u64>) -> Round {
    let site = Site::new(scenario.config);
    let mut found = Findings::default();
    let (outcome, goal, kept, told) = kill_in_scenario(&site, scenario, first, &mut found);
    let second = second.map(|boundary| kill_in_recovery(&site, boundary));
    let daemon = site.start();
    let ready = match daemon.ready() {
        Some(ready) if ready.own <= READY_BUDGET => ready.own,
        late => {
            found.add(Invariant::Latency, format!("after the kill the daemon was ready {late:?}"));
            late.map_or(Duration::ZERO, |late| late.own)
        }
    };
    judge(&site, scenario, &told, 1 + usize::from(second.is_some()), &mut found);
    found.0.extend(checker::standing(SETTLE, || {
        let mut found = Findings(look(&site.instance));
        site.wrong_images().into_iter().for_each(|wrong| found.add(Invariant::Objects, wrong));
        found.0
    }));
    if scenario.keep == Keep::Runs {
        were_kept(&site, &kept, &mut found);
    }
    match daemon.stop() {
        Some(0) => {}
        status => {
            found.add(Invariant::Truth, format!("at the end the daemon stopped with {status:?}"));
            daemon.kill();
        }
    }
    found.0.extend(checker::stopped(&site.instance));
    let log = if found.0.is_empty() { String::new() } else { site.log() };
    site.sweep();
    Round { first: outcome, second, goal, ready, violations: found.0, log }
}

/// Holds the daemon to what callers of the ones before were told, and has it do the same again.
fn judge(site: &Site, scenario: &Scenario, told: &Told, kills: usize, found: &mut Findings) {
    let has = |what: &str| scenario.config.contains(what);
    if has("worker.pl") {
        requests::served_again(site, found);
        requests::judge(site, &told.requests, found);
        inputs::judge(site, found);
    }
    if has("[tasks]") {
        tasks::judge(site, &told.tasks, kills, found);
    }
    if has("[gateway]") {
        tokens::judge(site, &told.tokens, found);
    }
    if has("serve = 'http'") {
        leases::judge(site, &told.leases, found);
    }
}

/// The pids of the pool that no scenario touches.
pub(crate) type Kept = Vec<(u32, u64)>;

fn kill_in_scenario(
    site: &Site,
    scenario: &Scenario,
    boundary: u64,
    found: &mut Findings,
) -> (Outcome, bool, Kept, Told) {
    let (daemon, traced, mut scene) = match scenario.from {
        From::Start => {
            let (daemon, traced) = site.start_traced();
            let scene = Scene::new(site, daemon.pid);
            (daemon, traced, scene)
        }
        From::Order => {
            let daemon = site.start();
            assert!(daemon.ready().is_some(), "{}: the daemon does not start\n{}", scenario.name, site.log());
            let mut scene = Scene::new(site, daemon.pid);
            let prepared =
                scene.connect().and_then(|()| at_rest(&site.instance)).and_then(|()| (scenario.prepare)(&mut scene));
            assert!(prepared.is_some(), "{}: cannot be prepared\n{}", scenario.name, site.log());
            // What came before is put away before boundaries are counted, so that there are the same ones each time.
            pause(STILLNESS);
            let traced = Traced::attach(daemon.pid);
            (daemon, traced, scene)
        }
    };
    let kept = pids_of_keep(&site.instance);
    let (outcome, goal, books) = std::thread::scope(|scope| {
        let driver = scope.spawn(|| drive(&daemon, scenario, &mut scene));
        let outcome = traced.run_until(boundary, &daemon.pidfd);
        let (goal, books) = driver.join().expect("a scenario does not panic");
        (outcome, goal, books)
    });
    line::judge(&books, true, found);
    (outcome, goal, kept, scene.told)
}

/// Plays the scenario and then ends the daemon, if it has not been killed before.
fn drive(daemon: &Daemon, scenario: &Scenario, scene: &mut Scene<'_>) -> (bool, Vec<Call>) {
    let connected = match scenario.from {
        From::Start => daemon.ready().and_then(|_| scene.connect()),
        From::Order => Some(()),
    };
    let goal = connected.and_then(|()| (scenario.act)(scene)).is_some();
    if goal {
        pause(AFTERMATH);
    }
    kill(&daemon.pidfd);
    (goal, scene.books())
}

/// Starts the daemon again and kills it at a boundary of its start, at the latest when all is up.
fn kill_in_recovery(site: &Site, boundary: u64) -> Outcome {
    let (daemon, traced) = site.start_traced();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            if daemon.ready().is_some() {
                pause(AFTERMATH);
            }
            kill(&daemon.pidfd);
        });
        traced.run_until(boundary, &daemon.pidfd)
    })
}

/// The checker, and that everything has come to rest.
pub(crate) fn look(instance: &Instance) -> Vec<Violation> {
    let mut found = Findings(checker::look_at_running(instance));
    for (name, state) in states(instance) {
        if !RESTING.contains(&state.as_str()) {
            found.add(Invariant::Truth, format!("{name} does not come to rest: it is {state}"));
        }
    }
    found.0
}

/// Waits until every worker has become what it is to be.
fn at_rest(instance: &Instance) -> Option<()> {
    let deadline = Instant::now() + SETTLE;
    while states(instance).iter().any(|(_, state)| !RESTING.contains(&state.as_str())) {
        if Instant::now() > deadline {
            return None;
        }
        pause(Duration::from_millis(1));
    }
    Some(())
}

fn states(instance: &Instance) -> Vec<(String, String)> {
    let Ok(mut line) = Line::connect(&instance.control(), READY_BUDGET) else { return Vec::new() };
    let list = line.ask("List", &json!({})).unwrap_or_default();
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    let workers = list["parameters"]["workers"].as_array().cloned().unwrap_or_default();
    workers.iter().map(|worker| (text(&worker["name"]), text(&worker["state"]))).collect()
}

/// The processes of the pool that no scenario touches, each with the time of its start.
pub(crate) fn pids_of_keep(instance: &Instance) -> Kept {
    let Some(base) = cgroups::base(&instance.name) else { return Kept::new() };
    let leaves = cgroups::children(&base.join("pool.keep"));
    let listed = leaves.iter().filter_map(|leaf| std::fs::read_to_string(leaf.join("cgroup.procs")).ok());
    let pids: Vec<u32> =
        listed.flat_map(|text| text.lines().filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>()).collect();
    pids.into_iter().filter_map(|pid| Some((pid, checker::proc::one(pid)?.started))).collect()
}

/// Promise 2: whoever was to be kept runs on.
pub(crate) fn were_kept(site: &Site, kept: &Kept, found: &mut Findings) {
    for (pid, started) in kept {
        if checker::proc::one(*pid).is_none_or(|one| one.started != *started || one.is_zombie()) {
            found.add(Invariant::Truth, format!("process {pid} of the pool keep of {} is lost", site.instance.name));
        }
    }
}
