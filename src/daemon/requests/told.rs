//! What is told of requests and their sessions: the answers of `PoolStats` and `ListSessions`.

use super::super::clock;
use super::super::control::{Asked, Outcome, Pieces, Task};
use super::super::pool::Pool;
use super::super::state::Daemon;
use crate::engine::{BreakerState, CallSessionView, DeskView, SessionId};
use crate::protocol::control::{
    BreakerPosition, CallSessionInfo, DeskStats, ListRequest, ListSessionsReply, PIECE_SESSIONS_MAX, PoolRequestStats,
    PoolStatsReply, PoolStatsRequest,
};
use crate::protocol::varlink::Reply;
use crate::spec::{PoolId, WorkerId};

impl Daemon {
    /// The requests of pools, in numbers.
    pub(in crate::daemon) fn pool_stats(&mut self, request: &PoolStatsRequest) -> Outcome {
        let wanted = match &request.pool {
            None => None,
            Some(name) => match self.resolve_pool(name) {
                Ok(pool) => Some(pool),
                Err(error) => return error.into(),
            },
        };
        let told: Vec<_> = self.pools.keys().copied().filter(|id| wanted.is_none_or(|wanted| wanted == *id)).collect();
        told.into_iter().for_each(|id| self.tell_status(id));
        let pools = self.pools.values().filter(|pool| wanted.is_none_or(|wanted| wanted == pool.id));
        Outcome::Reply(Reply::last(&PoolStatsReply { pools: pools.filter_map(|pool| self.stats_of(pool)).collect() }))
    }

    /// The sessions of requests.
    pub(in crate::daemon) fn list_sessions(&self, asked: Asked, request: &ListRequest) -> Outcome {
        let pool = match request.pool.as_ref().map(|name| self.resolve_pool(name)).transpose() {
            Ok(pool) => pool,
            Err(error) => return error.into(),
        };
        if asked.more {
            return Outcome::Wait(Task::Pieces(Pieces::CallSessions { pool, after: None }));
        }
        let sessions = self.engine.call_sessions(pool, None).map(|view| self.told_session(&view)).collect();
        Outcome::Reply(Reply::last(&ListSessionsReply { sessions }))
    }

    /// The next of them, and behind which the rest comes if there is any.
    pub(in crate::daemon) fn sessions_piece(
        &self,
        pool: Option<PoolId>,
        after: Option<SessionId>,
    ) -> (ListSessionsReply, Option<SessionId>) {
        let mut views: Vec<CallSessionView> =
            self.engine.call_sessions(pool, after).take(PIECE_SESSIONS_MAX + 1).collect();
        let more = views.len() > PIECE_SESSIONS_MAX;
        views.truncate(PIECE_SESSIONS_MAX);
        let after = views.last().map(|view| view.id).filter(|_| more);
        (ListSessionsReply { sessions: views.iter().map(|view| self.told_session(view)).collect() }, after)
    }

    fn told_session(&self, view: &CallSessionView) -> CallSessionInfo {
        let ms = |time: std::time::Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let is_there = |(worker, generation)| self.live.get(&worker).is_some_and(|live| live.generation == generation);
        CallSessionInfo {
            session: self.requests.session_names.get(&view.id).map_or_else(String::new, |(_, name)| name.clone()),
            pool: self.pools.get(&view.pool).map_or_else(String::new, |pool| pool.spec.name.to_string()),
            worker: view.home.map(|(worker, _)| self.worker_name(worker)),
            generation: view.home.map(|(_, generation)| generation.0),
            lost: view.home.is_some_and(|home| !is_there(home)),
            requests: view.open,
            ttl_ms: ms(view.ttl),
            expires_in_ms: view.expires.map(|expires| ms(clock::since(self.now, expires))),
        }
    }

    fn stats_of(&self, pool: &Pool) -> Option<PoolRequestStats> {
        let view = self.engine.dispatch(pool.id)?;
        Some(PoolRequestStats {
            pool: pool.spec.name.to_string(),
            requests: view.requests,
            queued: view.queued,
            errors: view.errors,
            queue_timeouts: view.queue_timeouts,
            pool_saturated: view.saturated,
            workers: view.workers,
            available: view.available,
            busy: view.busy,
            queued_total: view.queued_total,
            in_flight: view.in_flight,
            answered: view.answered,
            retries: view.retries,
            abandoned: view.abandoned,
            quarantined: view.quarantined,
            recycled: view.recycled,
            sessions: self.engine.session_count(pool.id),
            breaker: position(view.breaker),
            desks: self.engine.desks(pool.id).map(|desk| self.desk_stats(pool, &desk)).collect(),
        })
    }

    fn desk_stats(&self, pool: &Pool, desk: &DeskView) -> DeskStats {
        let left = |until| u64::try_from(clock::since(self.now, until).as_millis()).unwrap_or(u64::MAX);
        DeskStats {
            worker: self.worker_name(WorkerId { pool: pool.id, slot: desk.slot }),
            in_flight: desk.in_flight,
            requests: desk.total,
            failed: desk.failed,
            served: desk.served,
            failures: desk.failures,
            breaker: position(desk.breaker),
            probe_in_ms: desk.open_until.map(left),
            retiring: desk.retiring,
        }
    }
}

const fn position(state: BreakerState) -> BreakerPosition {
    match state {
        BreakerState::Closed => BreakerPosition::Closed,
        BreakerState::Open => BreakerPosition::Open,
        BreakerState::HalfOpen => BreakerPosition::HalfOpen,
    }
}
