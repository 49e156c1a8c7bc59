//! Which worker gets which request, and what becomes of those that none has answered.
//!
//! A request is accepted, waits in the queue of its pool, is given to a worker as an *attempt*, and is concluded: exactly once,
//! as `answered`, `never-started` or `in-doubt`. One that may have run is not given to a second worker unless it is marked as
//! idempotent. An attempt outlives its request where the worker goes on with it: its place in the worker stays taken until
//! the worker has said that it is over, or has ended.
//!
//! Owns requests, the desks of workers (`desk.rs`), breakers, sessions of requests, budgets and the list of poison. Never
//! looks at what a request says: the daemon keeps its bytes. Called by the engine after each step of a worker, so that
//! a desk always follows its worker.

mod attempt;
mod breaker;
mod budget;
mod desk;
mod follow;
mod pump;
mod quarantine;
mod recycle;
mod request;
mod session;
mod submit;
#[cfg(test)]
mod tests;
mod view;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

pub use breaker::{BreakerRecord, BreakerState};
pub(super) use desk::Dispatcher;
pub use session::CallSessionView;
pub use view::{DeskView, DispatchView};

use self::budget::Budgets;
use self::quarantine::Quarantine;
use self::request::Request;
use self::session::CallSession;
use super::{CallId, Target, Time};
use crate::spec::{Affinity, Generation, PoolId, WorkerId};

/// The number of a request, in the order in which requests were accepted; the daemon's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u64);

/// One try of a request in one worker. Never given out twice, also not by two daemons of one boot: what a worker says of an
/// attempt that is not the present one is late news.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AttemptId(pub u64);

/// A session of requests; the daemon's number for its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(pub u64);

/// What has to be known of a request to dispatch it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Demand {
    /// It has its answer after this long; `None` is as the pool has it.
    pub timeout: Option<Duration>,
    /// It waits for its first worker this long; `None` is as the pool has it.
    pub queue_timeout: Option<Duration>,
    /// Whether it may run twice.
    pub idempotent: bool,
    /// The session that it belongs to.
    pub session: Option<SessionId>,
    /// What it means by the session's worker; `None` is as the pool has it.
    pub affinity: Option<Affinity>,
    /// The same for requests that say the same.
    pub fingerprint: u64,
    /// Places that have failed with it before it was submitted: chosen only where no other is free.
    pub avoided: [Option<u32>; AVOIDED_MAX],
}

/// How many places a request can ask to avoid.
pub const AVOIDED_MAX: usize = 4;

/// What an answer says of the worker that gave it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Quality {
    /// It works: a result.
    Sound,
    /// It works, and this is the application's own error.
    Refusal,
    /// It does not: a 5xx, or an answer that breaks the protocol.
    Broken,
}

/// A fact about requests, or an order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RequestInput {
    /// A request for a pool. [`RequestEffect::Conclude`] follows, exactly one.
    Submitted(RequestId, PoolId, Demand),
    /// Nobody wants its answer any more.
    Abandoned(RequestId),
    /// A worker has answered an attempt.
    Answered(AttemptId, WorkerId, Generation, Quality),
    /// An attempt could not be handed over: the worker has not seen any of it.
    Undelivered(AttemptId, WorkerId, Generation),
    /// A worker has let go of an attempt without a word that could be its answer. It says nothing of how well it works.
    Released(AttemptId, WorkerId, Generation),
    /// A worker that was taken over has nothing in flight any more that an earlier daemon has given it.
    Unoccupied(WorkerId, Generation),
    /// A worker uses so much memory, in bytes.
    MemoryMeasured(WorkerId, Generation, u64),
    /// A session of a pool is wanted, ended after it was idle for this long (`None` is as the pool has it). Answered.
    SessionRequested(CallId, SessionId, PoolId, Option<Duration>),
    /// A session is over. Answered.
    SessionClosed(CallId, SessionId),
    /// Breakers are to be closed and what was stopped as poison is to be forgiven. Answered with how many were not closed.
    BreakersReset(CallId, Target),
}

/// Why a request was concluded without an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// There is no such pool, or it is being removed.
    PoolNotFound,
    /// Requests are not given to workers of this pool.
    NotDispatched,
    /// As many requests wait as may.
    PoolSaturated,
    /// It waited as long as it may.
    QueueTimeout,
    /// It had a worker and no answer by its deadline.
    WorkerTimeout,
    /// Its worker ended.
    WorkerExit,
    /// It could not be handed to a worker, as often as that is tried.
    Undelivered,
    /// A worker answered that something is broken, and it is not tried again.
    WorkerBroken,
    /// Its session's worker is not free, and it does not wait.
    WorkerBusy,
    /// Its session's worker is gone.
    SessionWorkerUnavailable,
    /// There are as many sessions as may be.
    SessionQuotaExceeded,
    /// No worker is ready, and none is on its way.
    NoWorkers,
    /// The pool's breaker is open.
    CircuitOpen,
    /// Requests that say the same have killed workers.
    Quarantined,
    /// Nobody waits for it any more.
    Abandoned,
    /// The daemon is shutting down.
    ShuttingDown,
}

/// What became of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Conclusion {
    /// This attempt was answered.
    Answered(AttemptId),
    /// No worker has seen it.
    NeverStarted(Reason),
    /// A worker may have run it, whole or in part.
    InDoubt(Reason),
}

/// An attempt to be handed to its worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Delivery {
    /// Which.
    pub attempt: AttemptId,
    /// To whom.
    pub worker: WorkerId,
    /// To which spawn of it.
    pub generation: Generation,
    /// The how-manieth it is of its request, from 1.
    pub number: u32,
    /// When its answer is too late.
    pub deadline: Time,
}

/// Why a worker is replaced as planned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Due {
    /// It is as old as it may become.
    Ttl,
    /// It was given as many requests as it may be.
    Requests,
    /// It uses more memory than it may, in bytes.
    Memory(u64),
}

/// Something to be done or told about requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RequestEffect {
    /// It waits for a worker.
    Queued(RequestId),
    /// Hand it to a worker; answered by `Answered`, `Undelivered`, or the worker's end.
    Deliver(RequestId, Delivery),
    /// It will be tried once more, after this long.
    Retrying(RequestId, Duration),
    /// Tell the worker that an answer is wanted no more.
    Cancel(AttemptId, WorkerId, Generation),
    /// Answer whoever asked. Exactly one for each request.
    Conclude(RequestId, Conclusion),
    /// The breaker of a worker, or of a pool (`None`), is now so.
    BreakerChanged(PoolId, Option<u32>, BreakerState),
    /// A session is over, because it was idle or its pool is gone.
    SessionEnded(SessionId),
    /// A worker is chosen last for a while, because it has crashed.
    Tainted(WorkerId),
    /// A worker will be replaced.
    RecycleDue(WorkerId, Generation, Due),
    /// Requests wait because the budget of their pool is used up.
    BudgetReached(PoolId),
    /// Ask how much memory a worker uses; answered by `MemoryMeasured`.
    MeasureMemory(WorkerId, Generation),
}

/// What the engine keeps of requests, beside the desks that each pool has.
#[derive(Debug, Default)]
pub(super) struct Requests {
    open: BTreeMap<RequestId, Request>,
    sessions: BTreeMap<SessionId, CallSession>,
    /// How many each pool has.
    session_counts: BTreeMap<PoolId, u32>,
    budgets: Budgets,
    quarantine: Quarantine,
    last_attempt: u64,
    /// Pools in which a request may find a worker by now.
    pub(super) calling: BTreeSet<PoolId>,
}
