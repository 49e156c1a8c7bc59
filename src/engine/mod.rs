//! What to do next: a pure state machine over pools and workers.
//!
//! `handle(input, now)` takes one fact or order, `poll_effect()` gives out what is to be done about it, and
//! `next_deadline()` says when to call `handle_timeout(now)`. No clock, no file, no randomness but a seed it is given, no
//! order that depends on a hash. An effect's outcome comes back as an input of a later turn, never as a return value, and
//! every fact about a worker carries the generation of its spawn: a fact of another generation is late news and changes
//! nothing.
//!
//! The daemon calls, in this order and once a turn: every `handle` (exits before all others), `handle_timeout`,
//! `poll_effect` until it is empty, `next_deadline`.

mod calls;
mod claims;
mod dispatch;
mod heartbeat;
mod idle;
mod machine;
mod orders;
mod pool;
mod record;
mod restart;
mod shutdown;
mod step;
mod tasks;
#[cfg(test)]
mod tests;
mod timers;
mod worker;

use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use dispatch::{
    AVOIDED_MAX, AttemptId, BreakerRecord, BreakerState, CallSessionView, Conclusion, Delivery, Demand, DeskView,
    DispatchView, Due, Quality, Reason, RequestEffect, RequestId, RequestInput, SessionId,
};
pub use idle::Usage;
pub use machine::Engine;
pub use record::{Fate, WorkerRecord};
pub use step::{After, Phase, Verdict};
pub use tasks::{
    TaskDemand, TaskEffect, TaskEnd, TaskExit, TaskFate, TaskId, TaskInput, TaskRecord, TaskRefusal, TaskStage,
    TaskTotals, TasksView,
};

use crate::spec::{ClaimPolicy, Generation, PoolId, PoolPolicy, TaskExecutor, WorkerId};

/// A point on the daemon's monotonic clock, in nanoseconds since an arbitrary start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Time(pub u64);

/// The number of a control call that waits for an answer; the daemon's, passed through unread.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CallId(pub u64);

/// What a worker is doing, everywhere the same words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum State {
    /// Spawned or about to be, not ready yet.
    Initializing,
    /// Ready, beats in time.
    Healthy,
    /// Ready, but beats are missing.
    Unhealthy,
    /// Asked to end, inside its grace.
    Draining,
    /// Ended, waits out its restart delay (or its cgroup is still being emptied before a restart).
    Restarting,
    /// Behind the crash barrier, or restart is off: stays down until started or reset.
    Crashed,
    /// Ended on request; its cgroup is empty.
    Stopped,
    /// Could not be emptied by the deadline; its place is not used again until it is.
    Stuck,
}

/// Whether a ready worker runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sleep {
    /// It does.
    Awake,
    /// It is being frozen.
    Freezing,
    /// It stands still until somebody needs it.
    Frozen,
}

/// How the kernel says a worker's main process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ended {
    /// `exit(code)`.
    Exited(i32),
    /// Killed by this signal.
    Signalled(i32),
    /// Killed by the out-of-memory killer inside its own limit.
    OutOfMemory,
    /// Nobody can know any more.
    Unknown,
}

/// Why a worker ended, for its death certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cause {
    /// By itself, or by somebody outside halsup.
    Itself(Ended),
    /// `max_missed` heartbeats were missed.
    Heartbeat,
    /// Not ready by `ready_timeout`.
    ReadyTimeout,
    /// It never ran: the spawn failed.
    StartFailed,
    /// An operator stopped, killed, restarted or scaled it away.
    Requested,
    /// The daemon shut down.
    Shutdown,
    /// Its holder gave it back, or is gone.
    Released,
    /// It went on with a request whose answer was wanted no more, although it was told.
    Deadline,
    /// It was replaced as planned.
    Recycled,
}

/// What an order is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// Every pool.
    All,
    /// Every worker of a pool.
    Pool(PoolId),
    /// One worker.
    Worker(WorkerId),
}

/// A fact or an order, in the past tense.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// A pool is wanted with this policy: new, or changed by a reload (running workers go on; only what differs changes).
    PoolDefined(PoolId, Box<PoolPolicy>),
    /// As `PoolDefined`, for a pool that an earlier daemon had: with so many places, and in them what that daemon wrote down
    /// and what has become of it. Places without a record are new. Nothing is begun before all of it is known.
    PoolRestored(PoolId, Box<PoolPolicy>, PoolRecord, Vec<(u32, WorkerRecord, Fate)>),
    /// Wait for what is on its way up; changes nothing. Answered when all are ready, or cannot be.
    AwaitRequested(CallId, Target),
    /// A pool is wanted no more: its workers are stopped, then it is forgotten.
    PoolRemoved(PoolId),
    /// Start what is stopped or crashed. Answered when all are ready, or cannot be.
    StartRequested(CallId, Target),
    /// Stop. Answered when all are `stopped` (cgroup empty) or `stuck`.
    StopRequested(CallId, Target),
    /// Stop, then start. Answered when all are ready again, or cannot be.
    RestartRequested(CallId, Target),
    /// Send a signal to the main process, or with `None` empty the cgroup at once; restart policy then applies as to any death.
    KillRequested(CallId, Target, Option<i32>),
    /// Set the wanted number of workers, inside min..=max of the policy. Answered with what was achieved.
    ScaleRequested(CallId, PoolId, u32),
    /// Give this caller a worker of its own. Answered if that cannot be; else [`Effect::Bind`] follows.
    ClaimRequested(CallId, PoolId, Supply),
    /// Take a worker back from its holder. Answered when it is empty, or warm again.
    ReleaseRequested(CallId, WorkerId, Return),
    /// Have a pool go on with these numbers instead of its policy's, until the policy says something else. Answered as a
    /// `Scale` is.
    TuneRequested(CallId, PoolId, Tuning),
    /// Have one more warm worker made. Answered when it is ready, or cannot be.
    WarmRequested(CallId, PoolId),
    /// From now on nothing is added to the pool or given up by itself, or again it is.
    Paused(PoolId, bool),
    /// Clear crash barriers and restart delays and start what they held back. Answered at once with how many were reset.
    ResetRequested(CallId, Target),
    /// End every worker in parallel and then say [`Effect::Finished`]; after this long everything is killed. Sticky; a second one may only shorten.
    ShutdownRequested(Duration),
    /// The program of this spawn runs (its exec succeeded).
    Spawned(WorkerId, Generation),
    /// The spawn failed and nothing of it is left.
    SpawnFailed(WorkerId, Generation),
    /// The worker said that it is ready, or its readiness probe passed.
    BecameReady(WorkerId, Generation),
    /// An answer to a ping, a watchdog message, a passed probe, or any answered request.
    Beat(WorkerId, Generation),
    /// A probe or ping that was asked for failed outright (connection refused, HTTP 500): one miss, without waiting for its
    /// timeout. Not to be reported of a ping whose timeout has passed: that is a miss already.
    PingFailed(WorkerId, Generation),
    /// `EXTEND_TIMEOUT_USEC`: start-up or stop may take at least this long from now, but never more than an hour in all,
    /// however often it is said.
    TimeoutExtended(WorkerId, Generation, Duration),
    /// `WATCHDOG_USEC`: from now on this is the longest time between two beats (at least 10 ms). Only for a worker that
    /// beats by itself; for one that is pinged it changes nothing.
    BeatIntervalSet(WorkerId, Generation, Duration),
    /// `STOPPING=1`: it is ending by itself; beats are no longer expected and the stop grace runs from now.
    StopAnnounced(WorkerId, Generation),
    /// `WATCHDOG=trigger`: the worker says that it is broken; treated as the last missed beat, where heartbeats are watched.
    BreakageAnnounced(WorkerId, Generation),
    /// Somebody has had something to do with it: typed into its terminal, begun or ceased to look at it, started a program in it.
    Used(WorkerId, Generation),
    /// It was measured, as asked for.
    Measured(WorkerId, Generation, Usage),
    /// It stands still, as asked for.
    Froze(WorkerId, Generation),
    /// It does not stand still, and goes on.
    FreezeFailed(WorkerId, Generation),
    /// The worker's processes have ended, with this status of the main process. Its cgroup may still hold something.
    Exited(WorkerId, Generation, Ended),
    /// Its cgroup is empty and removed, with everything else of that generation. Only now may the place be used again.
    Emptied(WorkerId, Generation),
    /// Of requests.
    Request(RequestInput),
    /// Of tasks.
    Task(TaskInput),
}

/// Where a claimed worker may come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Supply {
    /// Only from those that are warm.
    WarmOnly,
    /// From those, or one is started for it.
    WarmOrCold,
}

/// What becomes of a worker that is given back. Its generation is ended in any case: a program shares its user with its init,
/// whose priority, limits and processors it may have changed, so no init serves two holders.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Return {
    /// Its place goes too; the pool makes what it lacks.
    Destroyed,
    /// Its place is one of the pool's again, with a new generation in it, if the pool may have one more.
    Reset,
}

/// Where a claimed worker came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// It was warm.
    Warm,
    /// It was started for the claim.
    Cold,
}

/// What an operator has set of a pool with claims; what is `None` is as its policy says.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tuning {
    /// So many stay warm, and never fewer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min: Option<u32>,
    /// Never more are warm.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max: Option<u32>,
    /// How long warm workers beyond the size stay.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_timeout: Option<Duration>,
    /// Within what time what is missing is made up for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub check_interval: Option<Duration>,
}

/// A pool as it is written down.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PoolRecord {
    /// How many places it is to have.
    pub wanted: u32,
    /// Whether nothing is added or given up by itself.
    pub paused: bool,
    /// Its circuit breaker.
    pub breaker: BreakerRecord,
    /// What an operator has set.
    pub tuning: Tuning,
}

/// Something that is to be written down, so that it outlives the daemon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// A worker is like this now; `None` if its place was given up.
    Worker(WorkerId, Option<Box<WorkerRecord>>),
    /// A pool is like this now; `None` if it is forgotten.
    Pool(PoolId, Option<PoolRecord>),
    /// A task is like this now; `None` if it is known no more.
    Task(TaskId, Option<TaskRecord>),
    /// So many tasks there were, and to what executor somebody has switched from what.
    Tasks(TaskTotals, Option<(TaskExecutor, TaskExecutor)>),
}

/// Something to be done, in the imperative.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Start a worker; answered by `Spawned` or `SpawnFailed`.
    Spawn(WorkerId, Generation),
    /// Send this signal to the main process.
    Signal(WorkerId, Generation, i32),
    /// Empty its cgroup (`cgroup.kill`); `Exited` and `Emptied` follow. May come while a spawn is unanswered, then
    /// `SpawnFailed` may follow instead; and again for a `stuck` worker.
    Kill(WorkerId, Generation),
    /// Ask for a sign of life; answered by `Beat`, by `PingFailed`, or not at all.
    Ping(WorkerId, Generation),
    /// Measure what it has used; answered by `Measured`, or not at all.
    Measure(WorkerId, Generation),
    /// Let it stand still; answered by `Froze` or `FreezeFailed`.
    Freeze(WorkerId, Generation),
    /// Let it go on, before whatever else is to be done to it.
    Thaw(WorkerId, Generation),
    /// This worker is for whoever made that call: bind and start what is to run in it. It is not warm any more, whatever comes
    /// of that. Exactly one for each claim that is not answered otherwise.
    Bind(WorkerId, Generation, CallId, Origin),
    /// The worker is now in this state; for events, listings and state files. Emitted on every change and on nothing else.
    StateChanged(WorkerId, State),
    /// The end of this generation is known: write its death certificate. Exactly one for each generation that was spawned.
    Certify(WorkerId, Generation, Cause),
    /// The place is given up (scaled away, pool removed); forget all about it.
    Forget(WorkerId),
    /// Answer a call. Exactly one for each `CallId`.
    Answer(CallId, Answer),
    /// Of requests.
    Request(RequestEffect),
    /// Of tasks.
    Task(TaskEffect),
    /// Shutdown is over: nothing runs any more (or it is `stuck`). Once.
    Finished,
}

/// The answer to an order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// Done; for a `Scale` or a group this is how many are in the wanted state, and how many were wanted.
    Done {
        /// How many are in the state that was asked for.
        achieved: u32,
        /// How many were to be.
        wanted: u32,
    },
    /// There is no such pool or worker.
    NotFound,
    /// `Scale` outside the policy's min..=max.
    OutOfRange {
        /// Smallest allowed.
        min: u32,
        /// Largest allowed.
        max: u32,
    },
    /// The daemon is shutting down.
    ShuttingDown,
    /// Workers of this pool cannot be claimed.
    NotClaimable,
    /// No worker is warm, and none was to be started.
    NoneWarm,
    /// As many are claimed as may be.
    Full {
        /// How many that is.
        max: u32,
    },
    /// The worker that was started for a claim did not come up.
    ClaimFailed(WorkerId),
    /// It was to be reset, and is destroyed.
    Destroyed(Instead),
}

/// Why a worker that was to be reset is destroyed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Instead {
    /// The pool has as many as it may.
    Full {
        /// How many that is.
        max: u32,
    },
    /// It was ending already, or had not begun.
    Ending,
    /// The pool is to go, or the daemon.
    Leaving,
    /// It could not be emptied.
    Stuck,
}

/// What the engine knows of one worker, for listings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WorkerView {
    /// Which.
    pub worker: WorkerId,
    /// Its latest spawn attempt.
    pub generation: Option<Generation>,
    /// What it is doing.
    pub state: State,
    /// Since when it has been in that state.
    pub since: Time,
    /// Restarts over its whole life.
    pub restarts: u64,
    /// Beats missed in a row.
    pub missed: u32,
    /// When it will be started again, while it waits for that.
    pub restart_at: Option<Time>,
    /// Whether somebody has it to itself.
    pub leased: bool,
    /// Whether it runs.
    pub sleep: Sleep,
}

/// What the engine knows of the claims of a pool, for listings.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ClaimsView {
    /// What is in force; `None` where nothing can be claimed.
    pub policy: Option<ClaimPolicy>,
    /// Ready and nobody's.
    pub warm: u32,
    /// Somebody's.
    pub leased: u32,
    /// Whether nothing is added or given up by itself.
    pub paused: bool,
}
