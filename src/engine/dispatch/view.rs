//! What is told of a pool's requests.

use super::request::Stage;
use super::{BreakerState, RequestId};
use crate::engine::orders::count;
use crate::engine::{Engine, Time};
use crate::spec::{Generation, PoolId};

/// A pool's requests, as they are now and over its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DispatchView {
    /// Requests that were asked for.
    pub requests: u64,
    /// Requests that wait now.
    pub queued: u32,
    /// Requests that have ever waited.
    pub queued_total: u64,
    /// Requests in workers now, those included that nobody waits for any more.
    pub in_flight: u32,
    /// Requests that a worker has answered.
    pub answered: u64,
    /// Requests that ended otherwise, those that nobody waited for not included.
    pub errors: u64,
    /// Of the errors: those that waited as long as they may.
    pub queue_timeouts: u64,
    /// Requests that were refused because as many waited as may.
    pub saturated: u64,
    /// Attempts beyond the first.
    pub retries: u64,
    /// Requests that nobody waited for any more.
    pub abandoned: u64,
    /// Requests that were stopped as poison.
    pub quarantined: u64,
    /// Workers that were replaced as planned.
    pub recycled: u64,
    /// Workers that could be given requests, busy ones included.
    pub workers: u32,
    /// Workers that are free.
    pub available: u32,
    /// Workers that have a request in flight.
    pub busy: u32,
    /// The pool's breaker.
    pub breaker: BreakerState,
}

/// The requests of one worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeskView {
    /// Its place.
    pub slot: u32,
    /// The spawn that is there.
    pub generation: Option<Generation>,
    /// Requests in flight.
    pub in_flight: u32,
    /// Requests that it was ever given.
    pub total: u64,
    /// Of them, those that failed.
    pub failed: u64,
    /// Requests that its present spawn was given.
    pub served: u64,
    /// Failures in a row.
    pub failures: u32,
    /// Its breaker.
    pub breaker: BreakerState,
    /// Until when its breaker lets nothing through.
    pub open_until: Option<Time>,
    /// Whether it is being replaced.
    pub retiring: bool,
}

impl Engine {
    /// The requests of a pool; `None` if it has none to dispatch.
    #[must_use]
    pub fn dispatch(&self, id: PoolId) -> Option<DispatchView> {
        let pool = self.pools.get(&id)?;
        let policy = pool.policy.dispatch?;
        let (dispatcher, counters) = (&pool.dispatcher, &pool.dispatcher.counters);
        let desks = || dispatcher.desks.values();
        Some(DispatchView {
            requests: counters.requests,
            queued: count(dispatcher.queued()),
            queued_total: counters.queued,
            in_flight: count(desks().map(|desk| desk.in_flight.len()).sum()),
            answered: counters.answered,
            errors: counters.errors,
            queue_timeouts: counters.queue_timeouts,
            saturated: counters.saturated,
            retries: counters.retries,
            abandoned: counters.abandoned,
            quarantined: counters.quarantined,
            recycled: counters.recycled,
            workers: count(desks().filter(|desk| desk.is_there()).count()),
            available: count(desks().filter(|desk| desk.is_free(&policy)).count()),
            busy: count(desks().filter(|desk| !desk.in_flight.is_empty()).count()),
            breaker: dispatcher.breaker.state(),
        })
    }

    /// The requests of each worker of a pool, by place.
    pub fn desks(&self, id: PoolId) -> impl Iterator<Item = DeskView> {
        let pool = self.pools.get(&id).filter(|pool| pool.policy.dispatch.is_some());
        let desks = pool.into_iter().flat_map(|pool| pool.dispatcher.desks.iter());
        desks.map(|(&slot, desk)| DeskView {
            slot,
            generation: desk.generation,
            in_flight: count(desk.in_flight.len()),
            total: desk.total,
            failed: desk.failed,
            served: desk.served,
            failures: desk.breaker.failures(),
            breaker: desk.breaker.state(),
            open_until: desk.breaker.open_until(),
            retiring: desk.retiring,
        })
    }

    /// Whether a worker has this request.
    #[must_use]
    pub fn is_in_flight(&self, id: RequestId) -> bool {
        self.requests.get(id).is_some_and(|request| matches!(request.stage, Stage::InFlight(..)))
    }

    /// How many requests are not concluded.
    #[must_use]
    pub fn open_requests(&self) -> usize {
        self.requests.len()
    }
}
