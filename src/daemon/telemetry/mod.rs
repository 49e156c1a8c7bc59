//! Telemetry: everything that happens to pools, workers and requests under stable names, for whoever follows it.
//!
//! Reads what the engine is told and what it decides, once a turn, and only while somebody follows: without a follower nothing
//! is looked at, and nothing is kept. What is told goes through a ring of its own, so that a flood of requests pushes no event
//! of the daemon out of the other one; a follower that is too slow misses some, and is told how many. Names, measurements and
//! metadata are in `docs/telemetry.md`. Decides nothing.

mod requests;
mod workers;

use std::collections::BTreeMap;
use std::rc::Rc;

use serde_json::{Map, Value};

use super::clock;
use super::events::{Cursor, EventLog};
use super::state::Daemon;
use crate::engine::{Effect, Input, Time};
use crate::protocol::control::{Event, EventKind, EventsReply};
use crate::spec::{Generation, PoolId, WorkerId};

/// Whoever follows has one; the telemetry sees by it whether anybody does.
#[derive(Debug, Clone, Default)]
pub(super) struct Ticket(Rc<()>);

/// What is told, and what has to be remembered for it.
#[derive(Debug, Default)]
pub(super) struct Telemetry {
    log: EventLog,
    ticket: Ticket,
    /// Whether something was remembered that nobody asks for any more.
    used: bool,
    memory: Memory,
}

/// What was seen since somebody follows. Bounded by the workers and pools that there are.
#[derive(Debug, Default)]
struct Memory {
    /// When a worker's start was begun.
    spawning: BTreeMap<WorkerId, Time>,
    /// When a worker was last pinged.
    pinged: BTreeMap<WorkerId, Time>,
    /// Heartbeats that a worker was seen to have missed.
    missed: BTreeMap<WorkerId, u32>,
    /// Workers that are asked to end, and when that began.
    ending: BTreeMap<WorkerId, Time>,
    /// When a pool began, and how many workers it is to have.
    pools: BTreeMap<PoolId, (Time, u32)>,
    /// Since when everything ends.
    shutdown: Option<Time>,
}

/// One thing that is told.
#[derive(Debug)]
struct Fact {
    name: String,
    pool: Option<PoolId>,
    worker: Option<WorkerId>,
    generation: Option<Generation>,
    measurements: Map<String, Value>,
    metadata: Map<String, Value>,
}

impl Fact {
    fn new(name: impl Into<String>) -> Self {
        let name = name.into();
        let (measurements, metadata) = (Map::new(), Map::new());
        Self { name, pool: None, worker: None, generation: None, measurements, metadata }
    }

    fn of_pool(name: impl Into<String>, pool: PoolId) -> Self {
        Self { pool: Some(pool), ..Self::new(name) }
    }

    fn of_worker(name: impl Into<String>, worker: WorkerId) -> Self {
        Self { pool: Some(worker.pool), worker: Some(worker), ..Self::new(name) }
    }

    fn of_generation(name: impl Into<String>, worker: WorkerId, generation: Generation) -> Self {
        Self { generation: Some(generation), ..Self::of_worker(name, worker) }
    }

    /// A number.
    fn count(mut self, name: &str, number: impl Into<Value>) -> Self {
        self.measurements.insert(name.to_owned(), number.into());
        self
    }

    /// What it is about.
    fn with(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.metadata.insert(name.to_owned(), value.into());
        self
    }
}

impl Telemetry {
    /// Whether anybody follows.
    pub(super) fn is_on(&self) -> bool {
        Rc::strong_count(&self.ticket.0) > 1
    }

    /// Somebody follows from now on, as long as the ticket is kept.
    pub(super) fn follow(&self) -> (Cursor, Ticket) {
        (self.log.before_last(0), self.ticket.clone())
    }

    /// Whether there is something behind `cursor`.
    pub(super) const fn has_news(&self, cursor: Cursor) -> bool {
        self.log.has_news(cursor)
    }

    /// What is behind `cursor`, at most `max`; moves the cursor.
    pub(super) fn read(&self, cursor: &mut Cursor, max: usize) -> EventsReply {
        self.log.read(cursor, max)
    }
}

impl Daemon {
    /// Tells what the engine is about to hear. To be called in front of it.
    pub(super) fn tell_input(&mut self, input: &Input) {
        if !self.telemetry.is_on() {
            return self.forget_telemetry();
        }
        self.telemetry.used = true;
        if let Input::Request(input) = input {
            self.tell_request_input(*input);
        } else {
            self.tell_worker_input(input);
        }
    }

    /// Tells what the engine has decided. To be called before that is carried out.
    pub(super) fn tell_effect(&mut self, effect: &Effect) {
        if !self.telemetry.is_on() {
            return;
        }
        self.telemetry.used = true;
        if let Effect::Request(effect) = effect {
            self.tell_request_effect(*effect);
        } else {
            self.tell_worker_effect(effect);
        }
    }

    /// Lets go of what the last follower has left.
    fn forget_telemetry(&mut self) {
        if std::mem::take(&mut self.telemetry.used) {
            self.telemetry.memory = Memory::default();
            self.telemetry.log.clear();
        }
    }

    fn emit(&mut self, fact: Fact) {
        let name = format!("halsup.{}", fact.name);
        let Fact { name: _, pool, worker, generation, mut measurements, metadata } = fact;
        measurements.entry("system_time").or_insert_with(|| clock::unix_usec().into());
        let pool = pool.and_then(|pool| self.pools.get(&pool)).map(|pool| pool.spec.name.to_string());
        let worker = worker.map(|worker| self.worker_name(worker));
        let time = clock::rfc3339(clock::wall());
        self.telemetry.log.add(|sequence| Event {
            sequence,
            time,
            kind: EventKind::Telemetry,
            pool,
            worker,
            generation: generation.map(|generation| generation.0),
            state: None,
            cause: None,
            asked_by: None,
            text: name.clone(),
            name: Some(name),
            measurements: Some(measurements),
            metadata: Some(metadata),
        });
    }

    fn msec_since(&self, then: Time) -> u64 {
        u64::try_from(clock::since(then, self.now).as_millis()).unwrap_or(u64::MAX)
    }

    fn usec_since(&self, then: Time) -> u64 {
        u64::try_from(clock::since(then, self.now).as_micros()).unwrap_or(u64::MAX)
    }
}
