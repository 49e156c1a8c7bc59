//! Dispatch through the engine's door: short stories; `tests/simulation` has the long ones.

use std::time::Duration;

use super::*;
use crate::engine::{Answer, Cause, Effect, Ended, Engine, Fate, Input, Phase, PoolRecord, State, WorkerRecord};
use crate::spec::{
    BreakerPolicy, Budget, BudgetId, BudgetKind, DispatchPolicy, PoolPolicy, RecyclePolicy, Select, Size,
};

const POOL: PoolId = PoolId(1);

fn ms(millis: u64) -> Time {
    Time(millis * 1_000_000)
}

fn web(slot: u32) -> WorkerId {
    WorkerId { pool: POOL, slot }
}

fn dispatching(workers: u32, dispatch: DispatchPolicy) -> PoolPolicy {
    let mut policy = PoolPolicy { size: Size { min: workers, max: workers }, ..PoolPolicy::default() };
    policy.restart.delay = Duration::ZERO;
    policy.restart.max_restarts = 1000;
    policy.dispatch = Some(dispatch);
    policy
}

/// A pool in which every spawn runs at once, and what it was told to do.
struct Story {
    engine: Engine,
    now: Time,
    told: Vec<Effect>,
}

impl Story {
    fn new(workers: u32, dispatch: DispatchPolicy) -> Self {
        let mut story = Self { engine: Engine::new(1), now: ms(1), told: Vec::new() };
        story.does(Input::PoolDefined(POOL, Box::new(dispatching(workers, dispatch))));
        story
    }

    /// One input, and all that follows from it at once; spawns run.
    fn does(&mut self, input: Input) -> &mut Self {
        self.engine.handle(input, self.now);
        self.engine.handle_timeout(self.now);
        self.follow();
        self
    }

    fn follow(&mut self) {
        while let Some(effect) = self.engine.poll_effect() {
            if let Effect::Spawn(worker, generation) = effect {
                self.engine.handle(Input::Spawned(worker, generation), self.now);
            }
            self.told.push(effect);
        }
    }

    fn at(&mut self, millis: u64) -> &mut Self {
        self.now = ms(millis);
        self.engine.handle_timeout(self.now);
        self.follow();
        self
    }

    fn submit(&mut self, id: u64, demand: Demand) -> &mut Self {
        self.does(Input::Request(RequestInput::Submitted(RequestId(id), POOL, demand)))
    }

    /// The latest delivery of a request.
    fn delivery(&self, id: u64) -> Option<Delivery> {
        self.told.iter().rev().find_map(|effect| {
            let Effect::Request(RequestEffect::Deliver(RequestId(request), delivery)) = *effect else { return None };
            (request == id).then_some(delivery)
        })
    }

    fn slot_of(&self, id: u64) -> Option<u32> {
        self.delivery(id).map(|delivery| delivery.worker.slot)
    }

    fn answers(&mut self, id: u64, quality: Quality) -> &mut Self {
        let delivery = self.delivery(id).expect("it was delivered");
        let input = RequestInput::Answered(delivery.attempt, delivery.worker, delivery.generation, quality);
        self.does(Input::Request(input))
    }

    fn undelivered(&mut self, id: u64) -> &mut Self {
        let delivery = self.delivery(id).expect("it was delivered");
        let input = RequestInput::Undelivered(delivery.attempt, delivery.worker, delivery.generation);
        self.does(Input::Request(input))
    }

    /// The worker in this place dies and comes back.
    fn dies(&mut self, slot: u32) -> &mut Self {
        let generation = self.engine.worker(web(slot)).and_then(|view| view.generation).expect("it lives");
        self.does(Input::Exited(web(slot), generation, Ended::Signalled(9)));
        self.does(Input::Emptied(web(slot), generation))
    }

    /// How a request was concluded, and that it was so once.
    fn conclusion(&self, id: u64) -> Option<Conclusion> {
        let mut found = self.told.iter().filter_map(|effect| {
            let Effect::Request(RequestEffect::Conclude(RequestId(request), conclusion)) = *effect else { return None };
            (request == id).then_some(conclusion)
        });
        let first = found.next();
        assert_eq!(found.next(), None, "request {id} is concluded once");
        first
    }

    fn was_told(&self, effect: RequestEffect) -> bool {
        self.told.contains(&Effect::Request(effect))
    }
}

fn never(reason: Reason) -> Option<Conclusion> {
    Some(Conclusion::NeverStarted(reason))
}

fn doubt(reason: Reason) -> Option<Conclusion> {
    Some(Conclusion::InDoubt(reason))
}

const PLAIN: Demand = Demand {
    timeout: None,
    queue_timeout: None,
    idempotent: false,
    session: None,
    affinity: None,
    fingerprint: 0,
    avoided: [None; AVOIDED_MAX],
};

fn in_session(session: u64, affinity: Affinity) -> Demand {
    Demand { session: Some(SessionId(session)), affinity: Some(affinity), ..PLAIN }
}

#[test]
fn workers_take_turns_and_who_waits_is_served_in_order() {
    let mut story = Story::new(2, DispatchPolicy::default());
    story.submit(1, PLAIN).submit(2, PLAIN).submit(3, PLAIN).submit(4, PLAIN);
    assert_eq!((story.slot_of(1), story.slot_of(2), story.slot_of(3)), (Some(0), Some(1), None));
    assert!(story.was_told(RequestEffect::Queued(RequestId(3))));
    story.answers(2, Quality::Sound);
    assert_eq!((story.slot_of(3), story.slot_of(4)), (Some(1), None));
    let first = story.delivery(2).map(|delivery| delivery.attempt);
    assert_eq!(story.conclusion(2), first.map(Conclusion::Answered));
    story.answers(1, Quality::Refusal);
    assert_eq!(story.slot_of(4), Some(0));
    let view = story.engine.dispatch(POOL).unwrap();
    assert_eq!((view.requests, view.queued, view.answered, view.errors, view.busy), (4, 0, 2, 1, 2));
}

#[test]
fn a_worker_holds_as_many_as_its_capacity() {
    let mut story = Story::new(1, DispatchPolicy { capacity: 3, ..DispatchPolicy::default() });
    for id in 1..=4 {
        story.submit(id, PLAIN);
    }
    assert_eq!((story.slot_of(3), story.slot_of(4)), (Some(0), None));
    story.answers(2, Quality::Sound);
    assert_eq!(story.slot_of(4), Some(0));
}

#[test]
fn the_least_busy_and_the_last_busy_are_chosen_where_that_is_asked_for() {
    let mut story =
        Story::new(2, DispatchPolicy { capacity: 4, select: Select::LeastBusy, ..DispatchPolicy::default() });
    story.submit(1, PLAIN).submit(2, PLAIN).submit(3, PLAIN);
    assert_ne!(story.slot_of(1), story.slot_of(2));
    let both = story.slot_of(3).unwrap();
    let other = 1 - both;
    story.submit(4, PLAIN);
    assert_eq!(story.slot_of(4), Some(other));
    let mut story = Story::new(3, DispatchPolicy { select: Select::Lifo, ..DispatchPolicy::default() });
    story.submit(1, PLAIN).submit(2, PLAIN).answers(1, Quality::Sound).submit(3, PLAIN);
    assert_eq!(story.slot_of(3), story.slot_of(1));
}

#[test]
fn a_full_queue_refuses_at_once_and_who_waits_too_long_never_runs() {
    let policy =
        DispatchPolicy { queue_max: 1, queue_timeout: Duration::from_millis(100), ..DispatchPolicy::default() };
    let mut story = Story::new(1, policy);
    story.submit(1, PLAIN).submit(2, PLAIN).submit(3, PLAIN);
    assert_eq!(story.conclusion(3), never(Reason::PoolSaturated));
    story.at(100);
    assert_eq!(story.conclusion(2), None);
    story.at(101);
    assert_eq!(story.conclusion(2), never(Reason::QueueTimeout));
    story.answers(1, Quality::Sound);
    assert_eq!(story.delivery(2), None);
    let view = story.engine.dispatch(POOL).unwrap();
    assert_eq!((view.saturated, view.queue_timeouts, view.queued), (1, 1, 0));
}

#[test]
fn a_worker_that_becomes_free_at_the_very_deadline_does_not_get_who_is_too_late() {
    let mut story = Story::new(1, DispatchPolicy::default());
    let brief = Demand { queue_timeout: Some(Duration::from_millis(50)), ..PLAIN };
    story.submit(1, PLAIN).submit(2, brief);
    story.now = ms(51);
    story.answers(1, Quality::Sound);
    assert_eq!((story.delivery(2), story.conclusion(2)), (None, never(Reason::QueueTimeout)));
}

#[test]
fn a_request_whose_worker_dies_is_in_doubt_unless_it_may_run_twice() {
    let mut story = Story::new(2, DispatchPolicy::default());
    story.submit(1, PLAIN).submit(2, Demand { idempotent: true, ..PLAIN });
    story.dies(0);
    assert_eq!(story.conclusion(1), doubt(Reason::WorkerExit));
    story.dies(1);
    assert_eq!(story.conclusion(2), None);
    assert_eq!(story.slot_of(2), Some(0), "another worker is free: no pause");
    story.answers(2, Quality::Sound);
    assert!(matches!(story.conclusion(2), Some(Conclusion::Answered(_))));
}

#[test]
fn what_never_reached_a_worker_goes_to_another_at_once_and_to_the_same_after_a_pause() {
    let mut story = Story::new(2, DispatchPolicy::default());
    story.submit(1, PLAIN).undelivered(1);
    assert_eq!(story.slot_of(1), Some(1));
    story.undelivered(1);
    assert!(story.was_told(RequestEffect::Retrying(RequestId(1), Duration::from_millis(200))));
    story.at(200);
    assert_eq!(story.delivery(1).unwrap().number, 2);
    story.at(201);
    assert_eq!(story.delivery(1).unwrap().number, 3);
    story.undelivered(1);
    assert_eq!(story.conclusion(1), never(Reason::Undelivered));
}

#[test]
fn a_late_answer_of_an_attempt_that_is_over_answers_nothing() {
    let mut story = Story::new(1, DispatchPolicy { backoff: Duration::ZERO, ..DispatchPolicy::default() });
    story.submit(1, PLAIN);
    let first = story.delivery(1).unwrap();
    story.undelivered(1);
    assert_eq!(story.delivery(1).unwrap().number, 2);
    let late = RequestInput::Answered(first.attempt, first.worker, first.generation, Quality::Sound);
    story.does(Input::Request(late));
    assert_eq!(story.conclusion(1), None);
    let forged = RequestInput::Answered(AttemptId(u64::MAX), first.worker, first.generation, Quality::Sound);
    story.does(Input::Request(forged));
    story.answers(1, Quality::Sound).answers(1, Quality::Sound);
    assert!(matches!(story.conclusion(1), Some(Conclusion::Answered(_))));
}

#[test]
fn a_deadline_is_kept_and_a_worker_that_does_not_listen_is_killed() {
    let policy = DispatchPolicy { timeout: Duration::from_secs(1), ..DispatchPolicy::default() };
    let mut story = Story::new(1, policy);
    story.submit(1, PLAIN);
    let delivery = story.delivery(1).unwrap();
    story.at(1000);
    assert_eq!(story.conclusion(1), None);
    story.at(1001);
    assert_eq!(story.conclusion(1), doubt(Reason::WorkerTimeout));
    assert!(story.was_told(RequestEffect::Cancel(delivery.attempt, web(0), delivery.generation)));
    story.submit(2, PLAIN);
    assert_eq!(story.delivery(2), None, "its place is taken until the worker says otherwise");
    story.at(6000);
    assert_eq!(story.engine.worker(web(0)).unwrap().state, State::Healthy);
    story.at(6001);
    assert!(story.told.contains(&Effect::Kill(web(0), delivery.generation)));
    story.dies(0);
    assert!(story.told.contains(&Effect::Certify(web(0), delivery.generation, Cause::Deadline)));
}

#[test]
fn a_worker_that_answers_after_the_deadline_lives_and_is_free() {
    let policy = DispatchPolicy { timeout: Duration::from_secs(1), ..DispatchPolicy::default() };
    let mut story = Story::new(1, policy);
    story.submit(1, PLAIN).at(1001).answers(1, Quality::Refusal).submit(2, PLAIN);
    assert_eq!((story.conclusion(1), story.slot_of(2)), (doubt(Reason::WorkerTimeout), Some(0)));
    story.answers(2, Quality::Sound).at(60_000);
    assert_eq!(story.engine.worker(web(0)).unwrap().restarts, 0);
}

#[test]
fn who_is_gone_is_not_served_and_what_runs_for_him_is_cancelled() {
    let mut story = Story::new(1, DispatchPolicy::default());
    story.submit(1, PLAIN).submit(2, PLAIN);
    story.does(Input::Request(RequestInput::Abandoned(RequestId(2))));
    assert_eq!(story.conclusion(2), never(Reason::Abandoned));
    story.does(Input::Request(RequestInput::Abandoned(RequestId(1))));
    assert_eq!(story.conclusion(1), doubt(Reason::Abandoned));
    let delivery = story.delivery(1).unwrap();
    assert!(story.was_told(RequestEffect::Cancel(delivery.attempt, web(0), delivery.generation)));
    story.answers(1, Quality::Refusal).submit(3, PLAIN);
    assert_eq!((story.slot_of(3), story.delivery(2)), (Some(0), None));
}

#[test]
fn three_crashes_open_a_breaker_one_probe_closes_it_and_refusals_do_not_count() {
    let policy = DispatchPolicy { quarantine_kills: 0, ..DispatchPolicy::default() };
    let mut story = Story::new(1, policy);
    for id in 1..=5 {
        story.submit(id, PLAIN).answers(id, Quality::Refusal);
    }
    for id in 6..=8 {
        story.submit(id, PLAIN).dies(0);
    }
    assert!(story.was_told(RequestEffect::BreakerChanged(POOL, Some(0), BreakerState::Open)));
    let patient = Demand { queue_timeout: Some(Duration::from_secs(60)), ..PLAIN };
    story.submit(9, patient).submit(10, patient);
    assert_eq!(story.delivery(9), None);
    story.at(30_001);
    assert!(story.was_told(RequestEffect::BreakerChanged(POOL, Some(0), BreakerState::HalfOpen)));
    assert_eq!((story.slot_of(9), story.delivery(10)), (Some(0), None), "one probe");
    story.answers(9, Quality::Sound);
    assert!(story.was_told(RequestEffect::BreakerChanged(POOL, Some(0), BreakerState::Closed)));
    assert_eq!(story.slot_of(10), Some(0));
}

#[test]
fn a_pool_whose_breaker_is_open_refuses_until_it_is_reset() {
    let breaker = BreakerPolicy { failures: 2, open_for: Duration::from_secs(30) };
    let policy = DispatchPolicy { pool_breaker: breaker, quarantine_kills: 0, ..DispatchPolicy::default() };
    let mut story = Story::new(2, policy);
    story.submit(1, PLAIN).submit(2, PLAIN).dies(0).dies(1).submit(3, PLAIN);
    assert_eq!(story.conclusion(3), never(Reason::CircuitOpen));
    story.does(Input::Request(RequestInput::BreakersReset(CallId(1), Target::All)));
    assert!(story.told.contains(&Effect::Answer(CallId(1), Answer::Done { achieved: 1, wanted: 1 })));
    story.submit(4, PLAIN);
    assert!(story.slot_of(4).is_some());
}

#[test]
fn a_request_that_kills_workers_is_stopped() {
    let policy = DispatchPolicy {
        worker_breaker: BreakerPolicy { failures: 0, open_for: Duration::ZERO },
        attempts_max: 10,
        ..DispatchPolicy::default()
    };
    let mut story = Story::new(1, policy);
    story.submit(1, Demand { idempotent: true, fingerprint: 7, ..PLAIN });
    for round in 0..3 {
        story.dies(0).at(10_000 * (round + 1));
    }
    assert_eq!(story.conclusion(1), doubt(Reason::Quarantined));
    story.submit(2, Demand { fingerprint: 7, ..PLAIN }).submit(3, Demand { fingerprint: 8, ..PLAIN });
    assert_eq!((story.conclusion(2), story.slot_of(3)), (never(Reason::Quarantined), Some(0)));
}

#[test]
fn a_session_returns_to_its_worker_as_strictly_as_it_is_told() {
    let mut story = Story::new(3, DispatchPolicy::default());
    story.submit(1, in_session(5, Affinity::Hint)).answers(1, Quality::Sound);
    story.submit(2, in_session(5, Affinity::Hint));
    assert_eq!((story.slot_of(1), story.slot_of(2)), (Some(0), Some(0)));
    story.submit(3, in_session(5, Affinity::StrictFailFast)).submit(4, in_session(5, Affinity::StrictQueue));
    assert_eq!((story.conclusion(3), story.delivery(4)), (never(Reason::WorkerBusy), None));
    story.submit(6, in_session(5, Affinity::Hint));
    assert_ne!(story.slot_of(6), Some(0), "a hint is no more than that");
    story.answers(2, Quality::Sound);
    assert_eq!(story.conclusion(4), never(Reason::SessionWorkerUnavailable).filter(|_| false));
}

#[test]
fn a_strict_session_whose_worker_has_died_is_told_so() {
    let mut story = Story::new(2, DispatchPolicy::default());
    story.submit(1, in_session(5, Affinity::StrictQueue)).submit(2, in_session(5, Affinity::StrictQueue)).dies(0);
    assert_eq!(story.conclusion(1), doubt(Reason::WorkerExit));
    assert_eq!(story.conclusion(2), never(Reason::SessionWorkerUnavailable));
    story.submit(3, in_session(5, Affinity::StrictQueue));
    assert_eq!(story.conclusion(3), never(Reason::SessionWorkerUnavailable));
    story.submit(4, in_session(5, Affinity::Hint));
    assert!(story.slot_of(4).is_some());
}

#[test]
fn a_session_ends_to_the_second_and_there_are_no_more_than_may_be() {
    let mut policy = DispatchPolicy::default();
    policy.sessions.max = 1;
    policy.sessions.ttl = Duration::from_secs(10);
    let mut story = Story::new(1, policy);
    story.submit(1, in_session(5, Affinity::Hint)).submit(2, in_session(6, Affinity::Hint));
    assert_eq!(story.conclusion(2), never(Reason::SessionQuotaExceeded));
    story.at(20_000);
    assert!(!story.was_told(RequestEffect::SessionEnded(SessionId(5))), "one of its requests is open");
    story.answers(1, Quality::Sound).at(29_999);
    assert!(!story.was_told(RequestEffect::SessionEnded(SessionId(5))));
    story.at(30_000);
    assert!(story.was_told(RequestEffect::SessionEnded(SessionId(5))));
    assert_eq!(story.engine.session_count(POOL), 0);
}

#[test]
fn a_worker_that_has_served_enough_is_replaced_without_failing_anything() {
    let recycle = RecyclePolicy { requests: Some(2), ..RecyclePolicy::default() };
    let mut story = Story::new(1, DispatchPolicy { recycle, ..DispatchPolicy::default() });
    story.submit(1, PLAIN).answers(1, Quality::Sound).submit(2, PLAIN).submit(3, PLAIN);
    let first = story.delivery(2).unwrap().generation;
    assert!(story.was_told(RequestEffect::RecycleDue(web(0), first, Due::Requests)));
    assert_eq!(story.slot_of(3), Some(1), "the further worker serves");
    assert!(!story.told.contains(&Effect::Signal(web(0), first, 15)), "what is in flight is not ended");
    story.answers(2, Quality::Sound);
    assert!(story.told.contains(&Effect::Signal(web(0), first, 15)));
    story.dies(0);
    assert!(story.told.contains(&Effect::Certify(web(0), first, Cause::Recycled)));
    assert_eq!(story.engine.worker(web(0)).unwrap().state, State::Healthy);
    assert!(story.engine.worker(web(1)).is_some(), "it has a request");
    story.answers(3, Quality::Sound).dies(1);
    assert!(story.engine.worker(web(1)).is_none());
    assert_eq!(story.engine.dispatch(POOL).unwrap().errors, 0);
}

#[test]
fn two_pools_share_a_budget() {
    let budget = Some(Budget { id: BudgetId(1), max: 1, kind: BudgetKind::Shared });
    let policy = DispatchPolicy { budget, ..DispatchPolicy::default() };
    let mut story = Story::new(1, policy);
    story.does(Input::PoolDefined(PoolId(2), Box::new(dispatching(1, policy))));
    story.submit(1, PLAIN);
    story.does(Input::Request(RequestInput::Submitted(RequestId(2), PoolId(2), PLAIN)));
    assert!(story.delivery(2).is_none() && story.was_told(RequestEffect::BudgetReached(PoolId(2))));
    story.answers(1, Quality::Sound);
    assert!(story.delivery(2).is_some());
}

#[test]
fn a_pool_without_workers_says_so_at_once() {
    let mut story = Story::new(1, DispatchPolicy::default());
    story.does(Input::StopRequested(CallId(1), Target::All)).dies(0).submit(1, PLAIN);
    assert_eq!(story.conclusion(1), never(Reason::NoWorkers));
    story.does(Input::Request(RequestInput::Submitted(RequestId(2), PoolId(9), PLAIN)));
    assert_eq!(story.conclusion(2), never(Reason::PoolNotFound));
}

#[test]
fn shutdown_refuses_who_waits_and_lets_who_runs_be_answered() {
    let mut story = Story::new(1, DispatchPolicy::default());
    story.submit(1, PLAIN).submit(2, PLAIN).does(Input::ShutdownRequested(Duration::from_secs(10)));
    assert_eq!(story.conclusion(2), never(Reason::ShuttingDown));
    story.answers(1, Quality::Sound).submit(3, PLAIN);
    assert!(matches!(story.conclusion(1), Some(Conclusion::Answered(_))));
    assert_eq!(story.conclusion(3), never(Reason::ShuttingDown));
}

#[test]
fn a_pool_that_dispatches_no_more_tells_everybody() {
    let mut story = Story::new(1, DispatchPolicy::default());
    story.submit(1, PLAIN).submit(2, PLAIN);
    let policy = PoolPolicy { dispatch: None, ..dispatching(1, DispatchPolicy::default()) };
    story.does(Input::PoolDefined(POOL, Box::new(policy)));
    assert_eq!(
        (story.conclusion(1), story.conclusion(2)),
        (doubt(Reason::NotDispatched), never(Reason::NotDispatched))
    );
    story.dies(0);
    assert_eq!(story.engine.next_deadline(), None, "nothing is left armed");
}

#[test]
fn a_worker_that_was_taken_over_and_never_says_that_it_is_idle_is_replaced() {
    let dispatch = DispatchPolicy {
        timeout: Duration::from_millis(60),
        cancel_grace: Duration::from_millis(40),
        ..DispatchPolicy::default()
    };
    let patient = Demand { timeout: Some(Duration::from_secs(9)), ..Demand::default() };
    for says_so in [true, false] {
        let mut story = Story { engine: Engine::new(1), now: ms(1), told: Vec::new() };
        let record = WorkerRecord::assumed(7, Phase::Running, None, story.now);
        let was = PoolRecord { wanted: 1, ..PoolRecord::default() };
        let policy = Box::new(dispatching(1, dispatch));
        story.does(Input::PoolRestored(POOL, policy, was, vec![(0, record, Fate::Lives)]));
        story.submit(1, patient);
        assert_eq!(story.delivery(1), None, "what it still has in it is not known");
        if says_so {
            story.does(Input::Request(RequestInput::Unoccupied(web(0), Generation(7))));
            assert_eq!(story.slot_of(1), Some(0));
            story.answers(1, Quality::Sound);
        }
        story.at(100);
        assert!(!story.told.contains(&Effect::Kill(web(0), Generation(7))));
        story.at(101);
        assert_eq!(story.told.contains(&Effect::Kill(web(0), Generation(7))), !says_so);
        if !says_so {
            story.dies(0);
            story.at(102);
            assert_eq!(story.delivery(1).map(|delivery| delivery.generation), Some(Generation(8)));
        }
    }
}

#[test]
fn a_worker_that_has_crashed_is_chosen_last_for_a_while() {
    let dispatch = DispatchPolicy { taint: Duration::from_millis(100), ..DispatchPolicy::default() };
    let mut story = Story::new(2, dispatch);
    let turn = |story: &mut Story, id| {
        story.submit(id, Demand::default()).answers(id, Quality::Sound);
        story.slot_of(id)
    };
    assert_eq!((turn(&mut story, 1), turn(&mut story, 2)), (Some(0), Some(1)));
    story.dies(0);
    assert!(story.was_told(RequestEffect::Tainted(web(0))));
    assert_eq!((turn(&mut story, 3), turn(&mut story, 4)), (Some(1), Some(1)));
    // Last is not never.
    story.submit(5, Demand::default()).submit(6, Demand::default());
    assert_eq!((story.slot_of(5), story.slot_of(6)), (Some(1), Some(0)));
    story.answers(5, Quality::Sound).answers(6, Quality::Sound);
    story.at(200);
    assert_eq!((turn(&mut story, 7), turn(&mut story, 8)), (Some(1), Some(0)));
}

#[test]
fn who_was_let_go_has_its_place_free_and_says_nothing_of_its_worker() {
    let dispatch = DispatchPolicy {
        timeout: Duration::from_millis(50),
        cancel_grace: Duration::from_millis(40),
        ..DispatchPolicy::default()
    };
    let mut story = Story::new(1, dispatch);
    story.submit(1, PLAIN).at(51);
    assert_eq!(story.conclusion(1), doubt(Reason::WorkerTimeout));
    story.submit(2, PLAIN);
    assert_eq!(story.delivery(2), None, "its worker still has the first");
    let first = story.delivery(1).unwrap();
    let released = RequestInput::Released(first.attempt, first.worker, first.generation);
    story.does(Input::Request(released));
    assert_eq!(story.slot_of(2), Some(0));
    // Once is enough, and of nobody else's.
    story.does(Input::Request(released)).submit(3, PLAIN);
    assert_eq!(story.delivery(3), None);
    story.at(91);
    assert!(!story.told.contains(&Effect::Kill(web(0), first.generation)));
    let desk = story.engine.desks(POOL).next().unwrap();
    assert_eq!((desk.failures, desk.failed, desk.total, desk.in_flight), (0, 0, 2, 1));
    // One that somebody still waits for is in doubt at once.
    let second = story.delivery(2).unwrap();
    story.does(Input::Request(RequestInput::Released(second.attempt, second.worker, second.generation)));
    assert_eq!(story.conclusion(2), doubt(Reason::WorkerExit));
}

#[test]
fn who_failed_with_it_before_is_avoided_where_another_is_free() {
    let mut story = Story::new(2, DispatchPolicy::default());
    let avoiding = Demand { avoided: [Some(0), None, None, None], ..PLAIN };
    story.submit(1, avoiding).submit(2, avoiding);
    assert_eq!((story.slot_of(1), story.slot_of(2)), (Some(1), Some(0)), "last is not never");
}
