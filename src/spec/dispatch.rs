//! How requests are given to the workers of a pool: the part of a pool's specification that the engine dispatches by.

use std::time::Duration;

/// Which of several free workers gets a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Select {
    /// The next in turn.
    RoundRobin,
    /// The one with the fewest requests in flight, of these the one that has waited longest.
    LeastBusy,
    /// The one that was busy last: its caches are warm, and the others may be frozen.
    Lifo,
}

/// What a request of a session means by its worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Affinity {
    /// The worker if it is free, else any.
    Hint,
    /// Only that worker: the request waits for it.
    StrictQueue,
    /// Only that worker, and only now.
    StrictFailFast,
}

/// When a worker or a pool is given no more requests because those before have failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BreakerPolicy {
    /// This many failures in a row open it; 0 is never. Only transport failures, crashes and 5xx are failures.
    pub failures: u32,
    /// After this long one request is let through as a probe.
    pub open_for: Duration,
}

/// When a worker is replaced as planned.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RecyclePolicy {
    /// It has been ready for this long.
    pub ttl: Option<Duration>,
    /// It was given this many requests.
    pub requests: Option<u64>,
    /// It uses more memory than this, in bytes.
    pub memory_bytes: Option<u64>,
}

impl RecyclePolicy {
    /// Whether workers are ever recycled.
    #[must_use]
    pub const fn is_on(&self) -> bool {
        self.ttl.is_some() || self.requests.is_some() || self.memory_bytes.is_some()
    }
}

/// Sessions of requests: those with one name go to one worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CallSessionPolicy {
    /// One that has had no request for this long is over.
    pub ttl: Duration,
    /// How many a pool has at most.
    pub max: u32,
    /// What a request of a session means by its worker, unless it says so itself.
    pub affinity: Affinity,
}

/// A number of requests that several pools share.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BudgetId(pub u64);

/// How a budget counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BudgetKind {
    /// No more than the budget is in flight in all its pools together.
    Shared,
    /// The same, but every worker may always have one request in flight.
    Hybrid,
}

/// The budget that a pool shares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    /// Which.
    pub id: BudgetId,
    /// Requests in flight in all its pools together, at least 1.
    pub max: u32,
    /// How it counts.
    pub kind: BudgetKind,
}

/// How requests are given to the workers of a pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DispatchPolicy {
    /// Requests in flight in one worker. 1..=1,024.
    pub capacity: u32,
    /// Requests that wait for a worker. 0..=100,000.
    pub queue_max: u32,
    /// A request that has waited this long for its first worker is refused and never runs.
    pub queue_timeout: Duration,
    /// A request has its answer after this long, whatever it is; unless it says so itself.
    pub timeout: Duration,
    /// A worker that goes on with a request this long after its answer is wanted no more is killed.
    pub cancel_grace: Duration,
    /// Which worker gets a request.
    pub select: Select,
    /// A request is given to a worker at most this often. At least 1.
    pub attempts_max: u32,
    /// The pause before the second attempt where no other worker is free; doubles with each further one.
    pub backoff: Duration,
    /// The circuit breaker of each worker.
    pub worker_breaker: BreakerPolicy,
    /// The circuit breaker of the pool.
    pub pool_breaker: BreakerPolicy,
    /// A worker that has crashed is chosen last for this long.
    pub taint: Duration,
    /// A request that has killed this many workers is let through no more; 0 is never.
    pub quarantine_kills: u32,
    /// When workers are replaced as planned.
    pub recycle: RecyclePolicy,
    /// Sessions of requests.
    pub sessions: CallSessionPolicy,
    /// The budget that it shares with other pools.
    pub budget: Option<Budget>,
}

/// One request at a time in each worker, a thousand that wait five seconds at most, three attempts.
impl Default for DispatchPolicy {
    fn default() -> Self {
        Self {
            capacity: 1,
            queue_max: 1000,
            queue_timeout: Duration::from_secs(5),
            timeout: Duration::from_secs(300),
            cancel_grace: Duration::from_secs(5),
            select: Select::RoundRobin,
            attempts_max: 3,
            backoff: Duration::from_millis(100),
            worker_breaker: BreakerPolicy { failures: 3, open_for: Duration::from_secs(30) },
            pool_breaker: BreakerPolicy { failures: 0, open_for: Duration::from_secs(30) },
            taint: Duration::ZERO,
            quarantine_kills: 3,
            recycle: RecyclePolicy::default(),
            sessions: CallSessionPolicy { ttl: Duration::from_secs(3600), max: 10_000, affinity: Affinity::Hint },
            budget: None,
        }
    }
}
