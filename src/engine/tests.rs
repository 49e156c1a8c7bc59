//! The engine through its door: short stories that a reader can follow; `tests/simulation` has the long ones.

use std::time::Duration;

use super::*;
use crate::spec::{Heartbeat, HeartbeatSource, Restart, Size, Startup, Stop};

const POOL: PoolId = PoolId(1);
const TERM: i32 = 15;

fn second(seconds: u64) -> Time {
    Time(seconds * 1_000_000_000)
}

fn web(slot: u32) -> WorkerId {
    WorkerId { pool: POOL, slot }
}

fn policy(min: u32, max: u32) -> PoolPolicy {
    PoolPolicy {
        size: Size { min, max },
        startup: Startup {
            batch_size: 100,
            batch_delay: Duration::ZERO,
            ready_timeout: Duration::from_secs(30),
            waits_for_ready: true,
        },
        restart: Restart {
            enabled: true,
            delay: Duration::from_secs(1),
            delay_max: Duration::from_secs(60),
            jitter_percent: 0,
            stable_after: Duration::from_secs(600),
            max_restarts: 5,
            window: Duration::from_secs(60),
        },
        heartbeat: None,
        stop: Stop { signal: TERM, grace: Duration::from_secs(10), kill_timeout: Duration::from_secs(5) },
        freeze_after: None,
        claims: None,
        dispatch: None,
    }
}

/// Carries an engine through a turn.
struct Turn {
    engine: Engine,
}

impl Turn {
    fn new(policy: PoolPolicy) -> (Self, Vec<Effect>) {
        let mut turn = Self { engine: Engine::new(1) };
        let effects = turn.at(0, [Input::PoolDefined(POOL, Box::new(policy))]);
        (turn, effects)
    }

    fn at(&mut self, seconds: u64, inputs: impl IntoIterator<Item = Input>) -> Vec<Effect> {
        for input in inputs {
            self.engine.handle(input, second(seconds));
        }
        self.engine.handle_timeout(second(seconds));
        std::iter::from_fn(|| self.engine.poll_effect()).collect()
    }

    fn bring_up(&mut self, seconds: u64, slot: u32, generation: u64) {
        let (worker, generation) = (web(slot), Generation(generation));
        self.at(seconds, [Input::Spawned(worker, generation), Input::BecameReady(worker, generation)]);
        assert_eq!(self.engine.worker(worker).unwrap().state, State::Healthy);
    }

    fn end(&mut self, seconds: u64, slot: u32, generation: u64, ended: Ended) -> Vec<Effect> {
        let (worker, generation) = (web(slot), Generation(generation));
        self.at(seconds, [Input::Exited(worker, generation, ended), Input::Emptied(worker, generation)])
    }
}

#[test]
fn a_killed_worker_is_certified_and_replaced_in_the_same_turn() {
    let (mut turn, effects) = Turn::new(policy(1, 1));
    assert_eq!(effects, [Effect::StateChanged(web(0), State::Initializing), Effect::Spawn(web(0), Generation(1))]);
    turn.bring_up(0, 0, 1);
    let effects = turn.end(7, 0, 1, Ended::Signalled(9));
    assert_eq!(
        effects,
        [
            Effect::Certify(web(0), Generation(1), Cause::Itself(Ended::Signalled(9))),
            Effect::StateChanged(web(0), State::Restarting),
            Effect::StateChanged(web(0), State::Initializing),
            Effect::Spawn(web(0), Generation(2)),
        ]
    );
    assert_eq!(turn.end(8, 0, 1, Ended::Exited(0)), [], "an old generation is late news");
}

#[test]
fn a_stop_is_a_signal_then_a_kill_then_stuck_and_empties_late() {
    let (mut turn, _) = Turn::new(policy(1, 1));
    turn.bring_up(0, 0, 1);
    let generation = Generation(1);
    let stop = Input::StopRequested(CallId(1), Target::Worker(web(0)));
    assert_eq!(
        turn.at(10, [stop]),
        [Effect::Signal(web(0), generation, TERM), Effect::StateChanged(web(0), State::Draining)]
    );
    assert_eq!(turn.engine.next_deadline(), Some(second(20)));
    assert_eq!(turn.at(20, []), [Effect::Kill(web(0), generation)]);
    assert_eq!(turn.engine.next_deadline(), Some(second(25)));
    assert_eq!(
        turn.at(25, []),
        [
            Effect::StateChanged(web(0), State::Stuck),
            Effect::Answer(CallId(1), Answer::Done { achieved: 0, wanted: 1 }),
        ]
    );
    assert_eq!(
        turn.end(90, 0, 1, Ended::Signalled(9)),
        [Effect::Certify(web(0), generation, Cause::Requested), Effect::StateChanged(web(0), State::Stopped),]
    );
    assert_eq!(turn.engine.next_deadline(), None);
}

#[test]
fn scaling_down_gives_up_the_highest_places_and_is_answered_when_they_are_empty() {
    let (mut turn, _) = Turn::new(policy(3, 5));
    for slot in 0..3 {
        turn.bring_up(0, slot, u64::from(slot) + 1);
    }
    let refused = turn.at(1, [Input::ScaleRequested(CallId(1), POOL, 6)]);
    assert_eq!(refused, [Effect::Answer(CallId(1), Answer::OutOfRange { min: 3, max: 5 })]);
    let mut smaller = policy(1, 5);
    smaller.stop.grace = Duration::ZERO;
    turn.at(2, [Input::PoolDefined(POOL, Box::new(smaller))]);
    let effects = turn.at(3, [Input::ScaleRequested(CallId(2), POOL, 2)]);
    assert!(effects.contains(&Effect::Kill(web(2), Generation(3))), "{effects:?}");
    let effects = turn.end(4, 2, 3, Ended::Signalled(9));
    assert_eq!(
        effects,
        [
            Effect::Certify(web(2), Generation(3), Cause::Requested),
            Effect::Forget(web(2)),
            Effect::Answer(CallId(2), Answer::Done { achieved: 2, wanted: 2 }),
        ]
    );
    assert_eq!(turn.engine.workers().count(), 2);
}

#[test]
fn shutdown_finishes_once_and_refuses_what_comes_later() {
    let (mut turn, _) = Turn::new(policy(2, 2));
    turn.bring_up(0, 0, 1);
    let effects = turn.at(1, [Input::ShutdownRequested(Duration::from_secs(3))]);
    assert!(effects.contains(&Effect::Signal(web(0), Generation(1), TERM)));
    turn.end(2, 0, 1, Ended::Exited(0));
    let effects = turn.at(2, [Input::StartRequested(CallId(1), Target::All)]);
    assert_eq!(effects, [Effect::Answer(CallId(1), Answer::ShuttingDown)]);
    let effects = turn.at(4, []);
    assert_eq!(effects, [Effect::Kill(web(1), Generation(2))], "a spawn in flight is cut short at the deadline");
    let effects = turn.at(5, [Input::SpawnFailed(web(1), Generation(2))]);
    assert_eq!(
        effects,
        [
            Effect::Certify(web(1), Generation(2), Cause::Shutdown),
            Effect::StateChanged(web(1), State::Stopped),
            Effect::Finished,
        ]
    );
    assert_eq!(turn.at(6, [Input::ShutdownRequested(Duration::ZERO)]), []);
}

#[test]
fn a_hung_worker_is_killed_at_its_last_miss() {
    let mut policy = policy(1, 1);
    policy.heartbeat = Some(Heartbeat {
        source: HeartbeatSource::Channel,
        interval: Duration::from_secs(2),
        timeout: Duration::from_secs(1),
        max_missed: 2,
        initial_delay: Duration::from_secs(3),
        dependent: true,
    });
    let (mut turn, _) = Turn::new(policy);
    turn.bring_up(0, 0, 1);
    assert_eq!(turn.at(3, []), [Effect::Ping(web(0), Generation(1))]);
    assert_eq!(turn.at(4, []), [Effect::StateChanged(web(0), State::Unhealthy)]);
    assert_eq!(turn.at(5, []), [Effect::Ping(web(0), Generation(1))]);
    assert_eq!(turn.at(6, []), [Effect::Kill(web(0), Generation(1)), Effect::StateChanged(web(0), State::Draining)]);
    assert!(turn.end(6, 0, 1, Ended::Signalled(9)).contains(&Effect::Certify(web(0), Generation(1), Cause::Heartbeat)));
}

#[test]
fn ten_thousand_workers_start_and_stop_in_one_turn_each() {
    let (mut turn, _) = Turn::new(policy(10_000, 10_000));
    let mut large = policy(10_000, 10_000);
    large.startup.batch_size = 10_000;
    let started = turn.at(0, [Input::PoolDefined(POOL, Box::new(large))]);
    assert_eq!(started.len(), 9_900);
    let news = turn.engine.workers().filter_map(|view| Some((view.worker, view.generation?))).collect::<Vec<_>>();
    turn.at(0, news.iter().flat_map(|&(w, g)| [Input::Spawned(w, g), Input::BecameReady(w, g)]));
    turn.at(1, [Input::StopRequested(CallId(1), Target::All)]);
    let ended = Ended::Exited(0);
    let effects = turn.at(2, news.iter().flat_map(|&(w, g)| [Input::Exited(w, g, ended), Input::Emptied(w, g)]));
    let answer = Effect::Answer(CallId(1), Answer::Done { achieved: 10_000, wanted: 10_000 });
    assert_eq!(effects.last(), Some(&answer));
}
