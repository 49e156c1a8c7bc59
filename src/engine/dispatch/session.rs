//! Sessions of requests: which worker each belongs to, and when it is over.
//!
//! A session ends exactly `ttl` after its last request was submitted or concluded, never while one of its requests is open. It
//! belongs to one spawn of a worker: what that worker keeps of it is gone with the spawn. Never looks at names.

use std::collections::BTreeSet;
use std::ops::Bound;
use std::time::Duration;

use super::request::Home;
use super::{RequestEffect, RequestId, Requests, SessionId};
use crate::engine::orders::count;
use crate::engine::timers::Key;
use crate::engine::{Answer, CallId, Effect, Engine, Time};
use crate::spec::{CallSessionPolicy, Generation, PoolId, WorkerId};

/// One session.
#[derive(Debug)]
pub(super) struct CallSession {
    pub(super) pool: PoolId,
    ttl: Duration,
    expires: Time,
    pub(super) home: Option<Home>,
    /// Its requests that are not concluded. Those of an earlier session of this number are not among them.
    open: BTreeSet<RequestId>,
    armed: Option<Time>,
}

/// A session as it is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CallSessionView {
    /// Which.
    pub id: SessionId,
    /// Of which pool.
    pub pool: PoolId,
    /// It is over when it was idle for this long.
    pub ttl: Duration,
    /// When that is; `None` while it has requests.
    pub expires: Option<Time>,
    /// The spawn that it belongs to.
    pub home: Option<(WorkerId, Generation)>,
    /// Its requests that are not concluded.
    pub open: u32,
}

impl Requests {
    pub(super) fn home(&self, session: Option<SessionId>) -> Option<Home> {
        self.sessions.get(&session?)?.home
    }

    pub(super) fn set_home(&mut self, session: Option<SessionId>, home: Home) {
        if let Some(session) = session.and_then(|session| self.sessions.get_mut(&session)) {
            session.home = Some(home);
        }
    }

    fn sessions_of(&self, pool: PoolId) -> u32 {
        self.session_counts.get(&pool).copied().unwrap_or(0)
    }
}

impl Engine {
    /// Sees to it that a session exists; whether it does.
    fn have_session(
        &mut self,
        id: SessionId,
        pool: PoolId,
        policy: CallSessionPolicy,
        ttl: Duration,
        now: Time,
    ) -> bool {
        if self.requests.sessions.contains_key(&id) {
            return true;
        }
        if self.requests.sessions_of(pool) >= policy.max {
            return false;
        }
        let session =
            CallSession { pool, ttl, expires: now.after(ttl), home: None, open: BTreeSet::new(), armed: None };
        self.requests.sessions.insert(id, session);
        *self.requests.session_counts.entry(pool).or_default() += 1;
        self.arm_session(id);
        true
    }

    fn arm_session(&mut self, id: SessionId) {
        if let Some(session) = self.requests.sessions.get_mut(&id) {
            let due = session.open.is_empty().then_some(session.expires);
            self.timers.arm(Key::Session(id), &mut session.armed, due);
        }
    }

    /// A request of a session begins; whether the session has room for it.
    pub(super) fn enter_session(
        &mut self,
        id: Option<SessionId>,
        request: RequestId,
        pool: PoolId,
        policy: CallSessionPolicy,
        now: Time,
    ) -> bool {
        let Some(id) = id else { return true };
        if !self.have_session(id, pool, policy, policy.ttl, now) {
            return false;
        }
        if let Some(session) = self.requests.sessions.get_mut(&id) {
            session.open.insert(request);
            session.expires = now.after(session.ttl);
        }
        self.arm_session(id);
        true
    }

    /// A request of a session is concluded.
    pub(super) fn leave_session(&mut self, id: Option<SessionId>, request: RequestId, now: Time) {
        let Some(id) = id else { return };
        if let Some(session) = self.requests.sessions.get_mut(&id)
            && session.open.remove(&request)
        {
            session.expires = now.after(session.ttl);
        }
        self.arm_session(id);
    }

    pub(super) fn session_requested(
        &mut self,
        call: CallId,
        id: SessionId,
        pool: PoolId,
        ttl: Option<Duration>,
        now: Time,
    ) {
        if self.refused(call) {
            return;
        }
        let policy = self.pools.get(&pool).filter(|pool| !pool.removed).and_then(|pool| pool.policy.dispatch);
        let answer = match policy {
            None => Answer::NotFound,
            Some(policy) if self.have_session(id, pool, policy.sessions, ttl.unwrap_or(policy.sessions.ttl), now) => {
                Answer::Done { achieved: 1, wanted: 1 }
            }
            Some(policy) => Answer::Full { max: policy.sessions.max },
        };
        self.effects.push_back(Effect::Answer(call, answer));
    }

    /// Requests of it that are open go on, to any worker that they may have.
    pub(super) fn session_closed(&mut self, call: CallId, id: SessionId) {
        let closed = u32::from(self.end_session(id));
        let answer = if closed == 1 { Answer::Done { achieved: 1, wanted: 1 } } else { Answer::NotFound };
        self.effects.push_back(Effect::Answer(call, answer));
    }

    fn end_session(&mut self, id: SessionId) -> bool {
        let Some(mut session) = self.requests.sessions.remove(&id) else { return false };
        self.timers.arm(Key::Session(id), &mut session.armed, None);
        if let Some(count) = self.requests.session_counts.get_mut(&session.pool) {
            *count = count.saturating_sub(1);
        }
        self.effects.push_back(Effect::Request(RequestEffect::SessionEnded(id)));
        true
    }

    pub(in crate::engine) fn session_is_due(&mut self, id: SessionId) {
        if let Some(session) = self.requests.sessions.get_mut(&id) {
            session.armed = None;
            self.end_session(id);
        }
    }

    /// A pool is forgotten, and its sessions with it.
    pub(super) fn end_sessions_of(&mut self, pool: PoolId) {
        let of_pool = self.requests.sessions.iter().filter(|(_, session)| session.pool == pool);
        for id in of_pool.map(|(id, _)| *id).collect::<Vec<_>>() {
            self.end_session(id);
        }
    }

    /// Sessions behind `after`, of one pool or of all, in the order in which they began.
    pub fn call_sessions(
        &self,
        pool: Option<PoolId>,
        after: Option<SessionId>,
    ) -> impl Iterator<Item = CallSessionView> {
        let behind = self.requests.sessions.range((after.map_or(Bound::Unbounded, Bound::Excluded), Bound::Unbounded));
        let wanted = behind.filter(move |(_, session)| pool.is_none_or(|pool| pool == session.pool));
        wanted.map(|(id, session)| CallSessionView {
            id: *id,
            pool: session.pool,
            ttl: session.ttl,
            expires: session.open.is_empty().then_some(session.expires),
            home: session.home.map(|home| (home.worker, home.generation)),
            open: count(session.open.len()),
        })
    }

    /// Whether there is this session.
    #[must_use]
    pub fn has_session(&self, id: SessionId) -> bool {
        self.requests.sessions.contains_key(&id)
    }

    /// How many sessions a pool has.
    #[must_use]
    pub fn session_count(&self, pool: PoolId) -> u32 {
        self.requests.sessions_of(pool)
    }
}
