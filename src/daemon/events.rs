//! The ring of events, for `halsup events` and for whoever follows.
//!
//! Owns the sequence numbers. A reader has a cursor into the ring and takes what is there when it can; one that is too slow
//! misses events and is told how many, and nobody waits for it. Never sends: `control::follow` reads from here.

use std::collections::VecDeque;

use super::clock;
use super::state::Daemon;
use crate::protocol::control::{Cause, Event, EventKind, EventsReply, WorkerState};
use crate::spec::{Generation, PoolName, WorkerId};

/// How many events are kept.
const EVENTS_MAX: usize = 4_096;

/// The latest events, bounded.
#[derive(Debug, Default)]
pub(super) struct EventLog {
    ring: VecDeque<Event>,
    /// How many there have been; the next has this sequence number plus one.
    count: u64,
}

/// What happened; sequence and time are added when it is recorded.
#[derive(Debug, Clone)]
pub(super) struct Happening {
    pub(super) kind: EventKind,
    pub(super) pool: Option<String>,
    pub(super) worker: Option<WorkerId>,
    pub(super) generation: Option<Generation>,
    pub(super) state: Option<WorkerState>,
    pub(super) cause: Option<Cause>,
    pub(super) asked_by: Option<String>,
    pub(super) text: String,
}

impl Happening {
    /// Something of this kind, with these words; the rest is filled in where it applies.
    pub(super) const fn new(kind: EventKind, text: String) -> Self {
        Self { kind, pool: None, worker: None, generation: None, state: None, cause: None, asked_by: None, text }
    }
}

/// Where a reader is: behind the event with this sequence number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Cursor(u64);

/// A reader of all events, or of those of one pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct EventReader {
    cursor: Cursor,
    pool: Option<PoolName>,
}

impl EventLog {
    /// The last `count` events, or the last so many of this pool, and who reads on from there.
    pub(super) fn last(&self, count: usize, pool: Option<PoolName>) -> (EventsReply, EventReader) {
        // Those of one pool may lie anywhere.
        let cursor = self.before_last(if pool.is_some() { self.ring.len() } else { count });
        let mut reader = EventReader { cursor, pool };
        let mut reply = self.read_on(&mut reader, self.ring.len());
        reply.events.drain(..reply.events.len().saturating_sub(count));
        (reply, reader)
    }

    /// Whether there may be something for a reader.
    pub(super) const fn has_news_for(&self, reader: &EventReader) -> bool {
        self.has_news(reader.cursor)
    }

    /// Of the next `max` events those that are for a reader.
    pub(super) fn read_on(&self, reader: &mut EventReader, max: usize) -> EventsReply {
        let mut reply = self.read(&mut reader.cursor, max);
        if let Some(pool) = &reader.pool {
            reply.events.retain(|event| event.pool.as_deref() == Some(pool.as_str()));
        }
        reply
    }

    /// The cursor before the last `count` events that are there.
    pub(super) fn before_last(&self, count: usize) -> Cursor {
        let there = u64::try_from(count.min(self.ring.len())).unwrap_or(0);
        Cursor(self.count.saturating_sub(there))
    }

    /// Whether there is something behind `cursor`.
    pub(super) const fn has_news(&self, cursor: Cursor) -> bool {
        cursor.0 < self.count
    }

    /// The events behind `cursor`, at most `max`, and how many were lost before them; moves the cursor behind them.
    pub(super) fn read(&self, cursor: &mut Cursor, max: usize) -> EventsReply {
        let oldest = self.count.saturating_sub(u64::try_from(self.ring.len()).unwrap_or(0));
        let missed = oldest.saturating_sub(cursor.0);
        let skip = usize::try_from(cursor.0.saturating_sub(oldest)).unwrap_or(usize::MAX);
        let events: Vec<Event> = self.ring.iter().skip(skip).take(max).cloned().collect();
        let read = u64::try_from(events.len()).unwrap_or(0);
        cursor.0 = cursor.0.max(oldest).saturating_add(read);
        EventsReply { events, missed }
    }

    /// Forgets all events, and no sequence number.
    pub(super) fn clear(&mut self) {
        self.ring.clear();
        self.ring.shrink_to_fit();
    }

    pub(super) fn add(&mut self, event: impl FnOnce(u64) -> Event) {
        self.count = self.count.saturating_add(1);
        if self.ring.len() >= EVENTS_MAX {
            self.ring.pop_front();
        }
        self.ring.push_back(event(self.count));
    }
}

impl Daemon {
    /// Records an event; all who follow get it at the end of the turn.
    pub(super) fn record(&mut self, happening: Happening) {
        let Happening { kind, pool, worker, generation, state, cause, asked_by, text } = happening;
        if kind == EventKind::Death
            && let Some(worker) = worker
        {
            self.finish_followed_lines(worker);
        }
        let name = worker.map(|worker| self.worker_name(worker));
        let pool = pool.or_else(|| {
            let worker = worker?;
            self.pools.get(&worker.pool).map(|pool| pool.spec.name.to_string())
        });
        let time = clock::rfc3339(clock::wall());
        self.events.add(|sequence| Event {
            sequence,
            time,
            kind,
            pool,
            worker: name,
            generation: generation.map(|generation| generation.0),
            state,
            cause,
            asked_by,
            text,
            name: None,
            measurements: None,
            metadata: None,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(count: u64) -> EventLog {
        let mut log = EventLog::default();
        for _ in 0..count {
            log.add(|sequence| Event {
                sequence,
                time: String::new(),
                kind: EventKind::State,
                pool: None,
                worker: None,
                generation: None,
                state: None,
                cause: None,
                asked_by: None,
                text: String::new(),
                name: None,
                measurements: None,
                metadata: None,
            });
        }
        log
    }

    fn sequences(reply: &EventsReply) -> Vec<u64> {
        reply.events.iter().map(|event| event.sequence).collect()
    }

    #[test]
    fn a_reader_gets_each_event_once_and_in_order() {
        let mut log = log(5);
        let mut cursor = log.before_last(2);
        assert_eq!(sequences(&log.read(&mut cursor, 10)), [4, 5]);
        assert!(!log.has_news(cursor));
        log.add(|sequence| Event { sequence, ..log_event() });
        assert!(log.has_news(cursor));
        assert_eq!(log.read(&mut cursor, 10).missed, 0);
        let mut all = log.before_last(usize::MAX);
        assert_eq!(sequences(&log.read(&mut all, 4)), [1, 2, 3, 4]);
        assert_eq!(sequences(&log.read(&mut all, 4)), [5, 6]);
        assert_eq!(sequences(&log.read(&mut all, 4)), [0; 0]);
    }

    #[test]
    fn a_reader_of_one_pool_gets_its_events_alone() {
        let mut log = EventLog::default();
        for name in ["web", "api", "web", "api", "api"] {
            log.add(|sequence| Event { sequence, pool: Some(name.to_owned()), ..log_event() });
        }
        log.add(|sequence| Event { sequence, ..log_event() });
        let pool = |name: &str| Some(PoolName::parse(name).unwrap());
        let (reply, mut reader) = log.last(2, pool("web"));
        assert_eq!((sequences(&reply), reply.missed), (vec![1, 3], 0));
        assert_eq!(sequences(&log.last(1, pool("web")).0), [3]);
        assert_eq!(sequences(&log.last(2, None).0), [5, 6]);
        assert!(!log.has_news_for(&reader));
        log.add(|sequence| Event { sequence, pool: Some("api".to_owned()), ..log_event() });
        assert!(log.has_news_for(&reader));
        assert_eq!(sequences(&log.read_on(&mut reader, 10)), [0; 0]);
        assert!(!log.has_news_for(&reader), "and is past those of others");
    }

    fn log_event() -> Event {
        log(1).ring.pop_front().unwrap()
    }

    #[test]
    fn a_slow_reader_is_told_what_it_missed() {
        let kept = u64::try_from(EVENTS_MAX).unwrap();
        let mut log = log(3);
        let mut cursor = log.before_last(1);
        for _ in 0..kept {
            log.add(|sequence| Event { sequence, ..log_event() });
        }
        let reply = log.read(&mut cursor, 2);
        assert_eq!((sequences(&reply), reply.missed), (vec![4, 5], 1));
        assert_eq!(log.read(&mut cursor, 2).missed, 0);
        assert_eq!(log.ring.len(), EVENTS_MAX);
    }
}
