//! Clients that wait for pools to be there: each is told of every step, and of the end, when an event says that there may be one.
//!
//! Nothing here looks at a clock: how long somebody waits is for the waiting to say.

use super::super::events::Cursor;
use super::super::pool::Pool;
use super::super::state::Daemon;
use super::client::{Client, Task};
use super::dispatch::Outcome;
use crate::engine::{State, Target as EngineTarget};
use crate::protocol::control::{Error, PoolProgress, WaitPoolReply, WaitPoolRequest};
use crate::protocol::varlink::Reply;
use crate::spec::PoolId;

/// What a client waits for.
#[derive(Debug)]
pub(in crate::daemon) struct Awaited {
    /// One pool, or every one.
    pool: Option<PoolId>,
    complete: bool,
    /// Whether it is told of each step.
    more: bool,
    /// Up to which event it has been looked at; `None` before it was.
    seen: Option<Cursor>,
    /// What it was last told.
    told: Vec<PoolProgress>,
}

impl Awaited {
    /// Whether enough workers of a pool are ready.
    fn has_enough(&self, progress: &PoolProgress) -> bool {
        progress.ready >= if self.complete { progress.wanted } else { progress.wanted.min(1) }
    }
}

impl Daemon {
    /// Has a client wait.
    pub(super) fn wait_pool(&self, more: bool, request: &WaitPoolRequest) -> Outcome {
        let pool = match request.pool.as_ref().map(|name| self.resolve_pool(name)).transpose() {
            Ok(pool) => pool,
            Err(error) => return error.into(),
        };
        let complete = request.complete == Some(true);
        Outcome::Wait(Task::Await(Box::new(Awaited { pool, complete, more, seen: None, told: Vec::new() })))
    }

    /// Whether a client that waits has to be looked at.
    pub(super) fn may_be_there(&self, awaited: &Awaited) -> bool {
        awaited.seen.is_none_or(|seen| self.events.has_news(seen))
    }

    /// Tells a client that waits how far it is; what it waits for then.
    pub(super) fn look_at_wait(&self, client: &mut Client, mut awaited: Box<Awaited>) -> Task {
        awaited.seen = Some(self.events.before_last(0));
        if awaited.pool.is_some_and(|pool| !self.pools.contains_key(&pool)) {
            client.say(&Error::NotFound { what: "the pool that was waited for".into() }.to_reply(), self.now);
            return Task::Idle;
        }
        let of_it = self.pools.values().filter(|pool| awaited.pool.is_none_or(|wanted| wanted == pool.id));
        let pools: Vec<(PoolId, PoolProgress)> = of_it.map(|pool| (pool.id, self.progress_of(pool))).collect();
        let missing = || pools.iter().filter(|(_, progress)| !awaited.has_enough(progress));
        let reached = missing().next().is_none();
        // Where one cannot be there any more there is nothing to wait for.
        let hopeless = missing().find(|(_, progress)| progress.starting == 0).map(|(pool, _)| *pool);
        let failures = hopeless.map_or_else(Vec::new, |pool| self.unready(pool));
        let progress: Vec<PoolProgress> = pools.into_iter().map(|(_, progress)| progress).collect();
        if reached || hopeless.is_some() {
            client.say(&Reply::last(&WaitPoolReply { reached, pools: progress, failures }), self.now);
            return Task::Idle;
        }
        if awaited.more && awaited.told != progress {
            awaited.told.clone_from(&progress);
            client.say(&Reply::piece(&WaitPoolReply { reached, pools: progress, failures }), self.now);
        }
        Task::Await(awaited)
    }

    fn progress_of(&self, pool: &Pool) -> PoolProgress {
        let (mut ready, mut starting) = (0, 0);
        for view in self.views(EngineTarget::Pool(pool.id)) {
            match view.state {
                // Who is claimed is not there for the next one.
                State::Healthy if !view.leased => ready += 1,
                State::Healthy | State::Crashed | State::Stopped | State::Stuck => {}
                State::Initializing | State::Restarting | State::Draining | State::Unhealthy => starting += 1,
            }
        }
        let wanted = self.engine.pool_size(pool.id).map_or(0, |(wanted, ..)| wanted);
        PoolProgress { pool: pool.spec.name.to_string(), wanted, ready, starting }
    }
}
