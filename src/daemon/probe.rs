//! Probes: questions to a worker's port, for readiness and heartbeats, without waiting for the answer.
//!
//! Begun by the effects of the engine and by [`Timer::ReadyProbe`]; what comes of them are inputs of the engine. A
//! question's place has a number, so that a timeout of an earlier one meets nobody. `probe_socket` speaks.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use mio::{Interest, Token};

use super::clock;
use super::live::Phase;
use super::probe_socket::{Question, Verdict};
use super::sources::Source;
use super::state::Daemon;
use super::timers::Timer;
use crate::engine::{Input, State};
use crate::spec::{Generation, Probe, Ready, WorkerId};

/// How long one question about readiness may take.
const READY_ATTEMPT: Duration = Duration::from_secs(1);
/// Pause after the first failure; doubles with each further one.
const READY_DELAY_MIN: Duration = Duration::from_millis(2);
/// The pause never exceeds this.
const READY_DELAY_MAX: Duration = Duration::from_millis(100);
/// Unanswered heartbeats of one worker. Where more are due, those under way stand for them: one answer clears all.
const HEARTBEATS_MAX: usize = 4;

/// Probes under way.
#[derive(Debug, Default)]
pub(super) struct Probes {
    places: BTreeMap<u32, Underway>,
    /// The same places by worker.
    of_worker: BTreeSet<(WorkerId, u32)>,
    next_place: u32,
    next_number: u64,
    /// How often a worker that is not ready yet has failed to answer.
    failures: BTreeMap<WorkerId, (Generation, u32)>,
}

/// What a probe is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// Success makes the worker ready; failure asks again a little later.
    Readiness,
    /// Success is a beat, failure a miss.
    Heartbeat,
}

#[derive(Debug)]
struct Underway {
    number: u64,
    worker: WorkerId,
    generation: Generation,
    purpose: Purpose,
    question: Question,
    token: Token,
    /// Whether its verdict is told already, and only the rest of the answer is read.
    told: bool,
}

impl Probes {
    /// Whether one more question may be asked.
    fn has_room(&self, worker: WorkerId, purpose: Purpose) -> bool {
        let asked = |(_, one): &(u32, &Underway)| one.purpose == purpose && !one.told;
        let max = match purpose {
            Purpose::Readiness => 1,
            Purpose::Heartbeat => HEARTBEATS_MAX,
        };
        self.of(worker).filter(asked).count() < max
    }

    fn of(&self, worker: WorkerId) -> impl Iterator<Item = (u32, &Underway)> {
        let places = self.of_worker.range((worker, 0)..=(worker, u32::MAX));
        places.filter_map(|&(_, place)| Some((place, self.places.get(&place)?)))
    }

    fn insert(&mut self, place: u32, one: Underway) {
        self.of_worker.insert((one.worker, place));
        self.places.insert(place, one);
    }

    fn remove(&mut self, place: u32) -> Option<Underway> {
        let one = self.places.remove(&place)?;
        self.of_worker.remove(&(one.worker, place));
        Some(one)
    }

    fn free_place(&mut self) -> u32 {
        loop {
            let place = self.next_place;
            self.next_place = self.next_place.wrapping_add(1);
            if !self.places.contains_key(&place) {
                return place;
            }
        }
    }

    /// Counts a failure and says when to ask again.
    fn failed(&mut self, worker: WorkerId, generation: Generation) -> Duration {
        let entry = self.failures.entry(worker).or_insert((generation, 0));
        if entry.0 != generation {
            *entry = (generation, 0);
        }
        let delay = READY_DELAY_MIN.saturating_mul(1 << entry.1.min(16));
        entry.1 = entry.1.saturating_add(1);
        delay.min(READY_DELAY_MAX)
    }
}

impl Daemon {
    /// Begins a probe of a worker's port.
    pub(super) fn begin_probe(&mut self, worker: WorkerId, generation: Generation, probe: &Probe, purpose: Purpose) {
        let Some(live) = self.live_mut(worker, generation).filter(|live| live.phase == Phase::Running) else { return };
        let port = live.told.port;
        self.end_told_probes(worker);
        if !self.probes.has_room(worker, purpose) {
            return;
        }
        let Some(port) = port else {
            tracing::warn!(target: "heartbeat", worker = self.worker_name(worker), "has a probe and no port");
            return;
        };
        match Question::begin(port, probe) {
            Ok(question) => self.ask(worker, generation, purpose, question),
            Err(error) => {
                let worker_name = self.worker_name(worker);
                tracing::warn!(target: "heartbeat", worker = worker_name, %error, "cannot ask a worker's port");
                self.not_asked(worker, generation, purpose);
            }
        }
    }

    /// It is time to ask a worker once more whether it is ready.
    pub(super) fn on_ready_probe_timer(&mut self, worker: WorkerId, generation: Generation) {
        let waits =
            |view: &crate::engine::WorkerView| view.generation == Some(generation) && view.state == State::Initializing;
        if !self.engine.worker(worker).as_ref().is_some_and(waits) {
            return;
        }
        let Some(pool) = self.pools.get(&worker.pool) else { return };
        if let Ready::Probe(probe) = &pool.spec.ready {
            let probe = probe.clone();
            self.begin_probe(worker, generation, &probe, Purpose::Readiness);
        }
    }

    /// A probe's socket has news.
    pub(super) fn on_probe(&mut self, place: u32) {
        let Some(one) = self.probes.places.get_mut(&place) else { return };
        let verdict = one.question.advance();
        let news = verdict != Verdict::Pending && !std::mem::replace(&mut one.told, verdict != Verdict::Pending);
        let (worker, generation, purpose, over) = (one.worker, one.generation, one.purpose, one.question.is_over());
        if over {
            self.close_probe(place);
        }
        if news {
            self.tell(worker, generation, purpose, verdict);
        }
    }

    /// A probe has had its time.
    pub(super) fn on_probe_timeout(&mut self, place: u32, number: u64) {
        let Some(one) = self.probes.places.get(&place).filter(|one| one.number == number) else { return };
        let (worker, generation, purpose, told) = (one.worker, one.generation, one.purpose, one.told);
        self.close_probe(place);
        if !told {
            match purpose {
                Purpose::Readiness => self.tell(worker, generation, purpose, Verdict::Failed),
                // The engine has counted this one by its own deadline: told again, it would be two misses.
                Purpose::Heartbeat => {}
            }
        }
    }

    /// Ends the probes of a worker that has ended.
    pub(super) fn end_probes(&mut self, worker: WorkerId) {
        self.probes.failures.remove(&worker);
        self.close_probes(worker, |_| true);
    }

    /// A new question does not wait for the rest of answers that are known.
    fn end_told_probes(&mut self, worker: WorkerId) {
        self.close_probes(worker, |one| one.told);
    }

    fn close_probes(&mut self, worker: WorkerId, which: impl Fn(&Underway) -> bool) {
        let chosen = self.probes.of(worker).filter(|(_, one)| which(one)).map(|(place, _)| place);
        for place in chosen.collect::<Vec<_>>() {
            self.close_probe(place);
        }
    }

    fn close_probe(&mut self, place: u32) {
        if let Some(one) = self.probes.remove(place) {
            self.sources.remove(one.token, one.question.fd());
        }
    }

    fn ask(&mut self, worker: WorkerId, generation: Generation, purpose: Purpose, mut question: Question) {
        // On one host most is known at once: a port that refuses, a connection that is the answer.
        let verdict = question.advance();
        let told = verdict != Verdict::Pending;
        if !question.is_over() {
            let place = self.probes.free_place();
            let both = Interest::READABLE | Interest::WRITABLE;
            match self.sources.add(question.fd(), Source::Probe(place), both) {
                Ok(token) => {
                    let number = self.probes.next_number;
                    self.probes.next_number = number.wrapping_add(1);
                    let at = clock::after(self.now, self.time_for(worker, purpose));
                    self.timers.set(at, Timer::ProbeTimeout(place, number));
                    let one = Underway { number, worker, generation, purpose, question, token, told };
                    self.probes.insert(place, one);
                }
                Err(error) => {
                    let worker_name = self.worker_name(worker);
                    tracing::warn!(target: "heartbeat", worker = worker_name, %error, "watch a probe");
                    if !told {
                        self.not_asked(worker, generation, purpose);
                    }
                }
            }
        }
        if told {
            self.tell(worker, generation, purpose, verdict);
        }
    }

    fn time_for(&self, worker: WorkerId, purpose: Purpose) -> Duration {
        let heartbeat = self.pools.get(&worker.pool).and_then(|pool| pool.spec.policy.heartbeat);
        match (purpose, heartbeat) {
            (Purpose::Heartbeat, Some(heartbeat)) => heartbeat.timeout,
            (Purpose::Heartbeat, None) | (Purpose::Readiness, _) => READY_ATTEMPT,
        }
    }

    /// The daemon itself lacks something: for a heartbeat this is no failure of the worker, whose own deadline still runs.
    fn not_asked(&mut self, worker: WorkerId, generation: Generation, purpose: Purpose) {
        match purpose {
            Purpose::Readiness => self.tell(worker, generation, purpose, Verdict::Failed),
            Purpose::Heartbeat => {}
        }
    }

    fn tell(&mut self, worker: WorkerId, generation: Generation, purpose: Purpose, verdict: Verdict) {
        match (purpose, verdict) {
            (_, Verdict::Pending) => {}
            (Purpose::Readiness, Verdict::Passed) => {
                self.probes.failures.remove(&worker);
                self.inputs.push(Input::BecameReady(worker, generation));
            }
            (Purpose::Readiness, Verdict::Failed) => {
                let delay = self.probes.failed(worker, generation);
                self.timers.set(clock::after(self.now, delay), Timer::ReadyProbe(worker, generation));
            }
            (Purpose::Heartbeat, Verdict::Passed) => self.inputs.push(Input::Beat(worker, generation)),
            (Purpose::Heartbeat, Verdict::Failed) => self.inputs.push(Input::PingFailed(worker, generation)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::PoolId;

    #[test]
    fn pauses_grow_to_their_limit_and_begin_anew_with_a_generation() {
        let mut probes = Probes::default();
        let worker = WorkerId { pool: PoolId(1), slot: 0 };
        let mut pauses =
            |generation| (0..9).map(|_| probes.failed(worker, Generation(generation)).as_millis()).collect::<Vec<_>>();
        assert_eq!(pauses(1), [2, 4, 8, 16, 32, 64, 100, 100, 100]);
        assert_eq!(pauses(2)[..2], [2, 4]);
    }

    /// A question that nobody answers: the port is open, and nobody accepts there.
    fn underway(worker: WorkerId, purpose: Purpose, told: bool) -> Underway {
        let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let question = Question::begin(listener.local_addr().unwrap().port(), &Probe::Tcp).unwrap();
        Underway { number: 0, worker, generation: Generation(1), purpose, question, token: Token(0), told }
    }

    #[test]
    fn each_worker_has_room_for_one_readiness_and_four_heartbeats() {
        let mut probes = Probes { next_place: u32::MAX, ..Probes::default() };
        let worker = |slot| WorkerId { pool: PoolId(1), slot };
        for (purpose, max) in [(Purpose::Readiness, 1), (Purpose::Heartbeat, 4)] {
            for _ in 0..max {
                assert!(probes.has_room(worker(1), purpose));
                let place = probes.free_place();
                probes.insert(place, underway(worker(1), purpose, false));
            }
            assert!(!probes.has_room(worker(1), purpose));
            assert!(probes.has_room(worker(0), purpose) && probes.has_room(worker(2), purpose));
        }
        assert_eq!(probes.places.len(), 5, "no place was given out twice");
        probes.next_place = 0;
        assert_eq!(probes.free_place(), 4, "places in use are passed over");
        assert!(probes.remove(0).is_some());
        assert!(probes.has_room(worker(1), Purpose::Heartbeat));
        probes.insert(0, underway(worker(1), Purpose::Heartbeat, true));
        assert!(probes.has_room(worker(1), Purpose::Heartbeat), "what is told leaves room");
        for place in [0, 1, 2, 3, u32::MAX] {
            assert!(probes.remove(place).is_some());
        }
        assert!(probes.of_worker.is_empty());
    }
}
