//! The table `dispatch` of a pool: that its workers are given requests, and how.
//!
//! Owns its keys and those of the tables within it.

use std::collections::BTreeMap;
use std::time::Duration;

use super::error::{Faults, Place};
use super::keys::{Bounds, Key, walk};
use super::node::{Node, Raw};
use crate::spec::{Affinity, BreakerPolicy, Budget, BudgetId, BudgetKind, DispatchPolicy, PoolName, Select};

const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(86_400);
const YEAR: Duration = Duration::from_secs(365 * 86_400);
/// `timeout` where workers serve HTTP.
const HTTP_TIMEOUT: Duration = Duration::from_secs(10);
/// `cancel_grace` where workers serve HTTP.
const HTTP_GRACE: Duration = Duration::from_secs(20);

/// `dispatch` while it is read.
#[derive(Debug)]
pub(super) struct DispatchDraft {
    pub(super) policy: DispatchPolicy,
    /// Results longer than this are to be payloads, in bytes.
    pub(super) zero_copy_bytes: u64,
    /// Whether `timeout` and `cancel_grace` were written.
    says_timeout: bool,
    says_grace: bool,
    /// The budget that it names, and where that was written.
    budget: Option<BudgetDraft>,
}

/// `budget` as it was written.
#[derive(Debug, Clone)]
pub(super) struct BudgetDraft {
    /// Its name, which other pools may say too.
    name: String,
    budget: Budget,
    place: Place,
}

impl Default for DispatchDraft {
    fn default() -> Self {
        Self {
            policy: DispatchPolicy::default(),
            zero_copy_bytes: 1 << 20,
            says_timeout: false,
            says_grace: false,
            budget: None,
        }
    }
}

impl DispatchDraft {
    /// Shares `budget` with all pools that name it.
    pub(super) fn share(&mut self, name: &str, max: u32, kind: BudgetKind, place: &Place) {
        let budget = Budget { id: number(name), max, kind };
        self.budget = Some(BudgetDraft { name: name.to_owned(), budget, place: place.clone() });
    }

    /// Its workers serve HTTP: what is not written is as AtomForge has it, ten seconds for a request, and thirty in all until
    /// a worker that goes on with it is taken for stuck.
    pub(super) fn serves_http(&mut self) {
        if !self.says_timeout {
            self.policy.timeout = HTTP_TIMEOUT;
        }
        if !self.says_grace {
            self.policy.cancel_grace = HTTP_GRACE;
        }
    }

    /// As variables say it.
    pub(super) fn fill(&mut self, attempts: Option<u32>, timeout: Option<Duration>, threshold: Option<u32>) {
        self.policy.attempts_max = attempts.unwrap_or(self.policy.attempts_max);
        self.says_timeout = timeout.is_some();
        self.policy.timeout = timeout.unwrap_or(self.policy.timeout);
        let breaker = &mut self.policy.worker_breaker;
        breaker.failures = threshold.unwrap_or(breaker.failures);
    }

    /// The policy, and the budget that it names.
    pub(super) fn finish(self) -> (DispatchPolicy, Option<BudgetDraft>) {
        let budget = self.budget.as_ref().map(|draft| draft.budget);
        (DispatchPolicy { budget, ..self.policy }, self.budget)
    }
}

/// Whether pools that name one budget say the same of it.
pub(super) fn check_budgets<'a>(drafts: impl Iterator<Item = &'a BudgetDraft>) -> Faults {
    let (mut known, mut faults) = (BTreeMap::new(), Faults::default());
    for draft in drafts {
        let said = (draft.budget.max, draft.budget.kind);
        if *known.entry(&draft.name).or_insert(said) != said {
            let what = format!("budget {:?} is another one in another pool", draft.name);
            faults.push(draft.place.fault(what, "the same `max` and `kind` wherever it is named"));
        }
    }
    faults
}

/// The number of a budget's name, the same in every reading (FNV-1a).
fn number(name: &str) -> BudgetId {
    BudgetId(
        name.bytes()
            .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)),
    )
}

/// The keys of `[pool.NAME.dispatch]`.
pub(super) const DISPATCH_KEYS: &[Key<DispatchDraft>] = &[
    Key {
        name: "capacity",
        aliases: &["threads_per_worker"],
        variable: "",
        kind: "integer",
        default: "1",
        bounds: Bounds::Count(1, 1024),
        what: "Requests in flight in one worker.",
        set: |draft, node| {
            draft.policy.capacity = node.count_u32()?;
            Ok(())
        },
    },
    Key {
        name: "queue_max",
        aliases: &["pool_max_queue_size", "max_queue_size"],
        variable: "",
        kind: "integer",
        default: "1000",
        bounds: Bounds::Count(0, 100_000),
        what: "Requests that wait for a worker; a further one is refused at once, `pool_saturated`.",
        set: |draft, node| {
            draft.policy.queue_max = node.count_u32()?;
            Ok(())
        },
    },
    Key {
        name: "queue_timeout",
        aliases: &["pool_queue_timeout", "queue_timeout_ms"],
        variable: "",
        kind: "duration",
        default: "\"5s\"",
        bounds: Bounds::Time(Duration::from_millis(1), DAY),
        what: "A request that has waited this long for its first worker is refused, `queue_timeout`, and never runs.",
        set: |draft, node| {
            draft.policy.queue_timeout = node.duration()?;
            Ok(())
        },
    },
    Key {
        name: "timeout",
        aliases: &["default_timeout", "timeout_ms", "request_timeout"],
        variable: "",
        kind: "duration",
        default: "\"5m\"",
        bounds: Bounds::Time(Duration::from_millis(1), DAY),
        what: "A request has its answer after this long, whatever it is, unless it says so itself. 10 s where the pool serves HTTP.",
        set: |draft, node| {
            draft.policy.timeout = node.duration()?;
            Ok(())
        },
    },
    Key {
        name: "cancel_grace",
        aliases: &["cancel_grace_ms"],
        variable: "",
        kind: "duration",
        default: "\"5s\"",
        bounds: Bounds::Time(Duration::ZERO, HOUR),
        what: "A worker that goes on with nothing but requests whose answers are wanted no more is killed this long after it was told. 20 s where the pool serves HTTP.",
        set: |draft, node| {
            draft.policy.cancel_grace = node.duration()?;
            Ok(())
        },
    },
    Key {
        name: "select",
        aliases: &[],
        variable: "",
        kind: "word",
        default: "\"round-robin\"",
        bounds: Bounds::Prose("round-robin, least-busy, lifo"),
        what: "Which of several free workers gets a request. `lifo`: the one that was busy last.",
        set: |draft, node| {
            let words =
                [("round-robin", Select::RoundRobin), ("least-busy", Select::LeastBusy), ("lifo", Select::Lifo)];
            draft.policy.select = node.word(&words)?;
            Ok(())
        },
    },
    Key {
        name: "affinity",
        aliases: &[],
        variable: "",
        kind: "word",
        default: "\"hint\"",
        bounds: Bounds::Prose("hint, strict_queue, strict_fail_fast"),
        what: "What a request of a session means by its worker: it if it is free, only it, or only it and only now.",
        set: |draft, node| {
            draft.policy.sessions.affinity = node.word(&[
                ("hint", Affinity::Hint),
                ("strict_queue", Affinity::StrictQueue),
                ("strict_fail_fast", Affinity::StrictFailFast),
            ])?;
            Ok(())
        },
    },
    Key {
        name: "attempts",
        aliases: &["max_retries"],
        variable: "",
        kind: "integer",
        default: "3",
        bounds: Bounds::Count(1, 100),
        what: "A request is given to a worker at most this often. One that may have run is tried again only if it is marked as idempotent.",
        set: |draft, node| {
            draft.policy.attempts_max = node.count_u32()?;
            Ok(())
        },
    },
    Key {
        name: "backoff",
        aliases: &["backoff_ms"],
        variable: "",
        kind: "duration",
        default: "\"100ms\"",
        bounds: Bounds::Time(Duration::ZERO, HOUR),
        what: "Pause before the second attempt, where no worker is free that was not tried; doubles with each further one.",
        set: |draft, node| {
            draft.policy.backoff = node.duration()?;
            Ok(())
        },
    },
    Key {
        name: "worker_breaker",
        aliases: &[],
        variable: "",
        kind: "table",
        default: "{ failures = 3, open_for = \"30s\" }",
        bounds: Bounds::None,
        what: "So many failures in a row (crashes, transport failures, 5xx) and a worker is given nothing for `open_for`, then one probe. `failures = 0` is never.",
        set: |draft, node| breaker(&mut draft.policy.worker_breaker, node),
    },
    Key {
        name: "pool_breaker",
        aliases: &["circuit_breaker"],
        variable: "",
        kind: "table",
        default: "{ failures = 0, open_for = \"30s\" }",
        bounds: Bounds::None,
        what: "The same for the whole pool; while it is open, requests are refused at once, `circuit_open`.",
        set: |draft, node| breaker(&mut draft.policy.pool_breaker, node),
    },
    Key {
        name: "taint",
        aliases: &["taint_ms"],
        variable: "",
        kind: "duration",
        default: "\"0s\"",
        bounds: Bounds::Time(Duration::ZERO, DAY),
        what: "A worker that has crashed is chosen last for this long.",
        set: |draft, node| {
            draft.policy.taint = node.duration()?;
            Ok(())
        },
    },
    Key {
        name: "quarantine",
        aliases: &[],
        variable: "",
        kind: "integer",
        default: "3",
        bounds: Bounds::Count(0, 1000),
        what: "A request that has killed so many workers, by what it says, is let through no more until a reset; 0 is never.",
        set: |draft, node| {
            draft.policy.quarantine_kills = node.count_u32()?;
            Ok(())
        },
    },
    Key {
        name: "worker_ttl",
        aliases: &["worker_ttl_seconds"],
        variable: "",
        kind: "duration",
        default: "",
        bounds: Bounds::Time(Duration::from_millis(100), YEAR),
        what: "A worker that has been ready for this long is replaced: the replacement starts first, then the old one drains.",
        set: |draft, node| {
            draft.policy.recycle.ttl = Some(node.duration()?);
            Ok(())
        },
    },
    Key {
        name: "worker_max_requests",
        aliases: &[],
        variable: "",
        kind: "integer",
        default: "",
        bounds: Bounds::Count(1, u64::MAX),
        what: "The same after it was given so many requests.",
        set: |draft, node| {
            draft.policy.recycle.requests = Some(node.count()?);
            Ok(())
        },
    },
    Key {
        name: "worker_max_memory",
        aliases: &[],
        variable: "",
        kind: "size",
        default: "",
        bounds: Bounds::Bytes(1 << 20, 1 << 50),
        what: "The same when it uses more memory than this; looked at every 10 s. Needs the memory controller.",
        set: |draft, node| {
            draft.policy.recycle.memory_bytes = Some(node.bytes()?);
            Ok(())
        },
    },
    Key {
        name: "session_ttl",
        aliases: &["session_ttl_seconds"],
        variable: "",
        kind: "duration",
        default: "\"1h\"",
        bounds: Bounds::Time(Duration::from_millis(1), YEAR),
        what: "A session that has had no request for this long is over.",
        set: |draft, node| {
            draft.policy.sessions.ttl = node.duration()?;
            Ok(())
        },
    },
    Key {
        name: "sessions",
        aliases: &["max_sessions"],
        variable: "",
        kind: "integer",
        default: "10000",
        bounds: Bounds::Count(1, 1_000_000),
        what: "So many sessions there are at once; a request of a further one is refused, `session_quota_exceeded`.",
        set: |draft, node| {
            draft.policy.sessions.max = node.count_u32()?;
            Ok(())
        },
    },
    Key {
        name: "zero_copy",
        aliases: &["threshold_bytes"],
        variable: "",
        kind: "size",
        default: "\"1m\"",
        bounds: Bounds::Bytes(1, 1 << 40),
        what: "Workers are told to answer in memory that is passed on unread where a result is longer than this.",
        set: |draft, node| {
            draft.zero_copy_bytes = node.bytes()?;
            Ok(())
        },
    },
    Key {
        name: "budget",
        aliases: &[],
        variable: "",
        kind: "table",
        default: "",
        bounds: Bounds::None,
        what: "`{ name = \"gpu\", max = 4 }`: all pools that name it have at most so many requests in flight together. With `kind = \"hybrid\"` every worker may always have one.",
        set: budget,
    },
];

/// The keys of a breaker.
pub(super) const BREAKER_KEYS: &[Key<BreakerPolicy>] = &[
    Key {
        name: "failures",
        aliases: &["failure_threshold", "threshold"],
        variable: "",
        kind: "integer",
        default: "",
        bounds: Bounds::Count(0, 1_000_000),
        what: "Failures in a row that open it; 0 is never.",
        set: |breaker, node| {
            breaker.failures = node.count_u32()?;
            Ok(())
        },
    },
    Key {
        name: "open_for",
        aliases: &["reset_timeout_ms"],
        variable: "",
        kind: "duration",
        default: "\"30s\"",
        bounds: Bounds::Time(Duration::from_millis(1), DAY),
        what: "How long nothing is let through before one probe is.",
        set: |breaker, node| {
            breaker.open_for = node.duration()?;
            Ok(())
        },
    },
];

/// `budget` while it is read.
#[derive(Debug)]
struct BudgetRead {
    name: Option<String>,
    max: Option<u32>,
    kind: BudgetKind,
}

/// The keys of `budget`.
const BUDGET_KEYS: &[Key<BudgetRead>] = &[
    Key {
        name: "name",
        aliases: &["profile"],
        variable: "",
        kind: "name",
        default: "",
        bounds: Bounds::Prose("a name"),
        what: "Which.",
        set: |budget, node| {
            let name = PoolName::parse(node.text()?).map_err(|error| node.fault(error.expected))?;
            budget.name = Some(name.to_string());
            Ok(())
        },
    },
    Key {
        name: "max",
        aliases: &[],
        variable: "",
        kind: "integer",
        default: "",
        bounds: Bounds::Count(1, 1_000_000),
        what: "Requests in flight together.",
        set: |budget, node| {
            budget.max = Some(node.count_u32()?);
            Ok(())
        },
    },
    Key {
        name: "kind",
        aliases: &["capacity_strategy"],
        variable: "",
        kind: "word",
        default: "\"profile\"",
        bounds: Bounds::Prose("profile, hybrid"),
        what: "Whether every worker may always have one.",
        set: |budget, node| {
            budget.kind = node.word(&[("profile", BudgetKind::Shared), ("hybrid", BudgetKind::Hybrid)])?;
            Ok(())
        },
    },
];

fn breaker(target: &mut BreakerPolicy, node: &Node<'_>) -> Result<(), Faults> {
    let (_, faults) = walk(BREAKER_KEYS, target, node.table()?, &node.place);
    faults.or(())
}

fn budget(draft: &mut DispatchDraft, node: &Node<'_>) -> Result<(), Faults> {
    let mut read = BudgetRead { name: None, max: None, kind: BudgetKind::Shared };
    let (_, faults) = walk(BUDGET_KEYS, &mut read, node.table()?, &node.place);
    faults.or(())?;
    let BudgetRead { name: Some(name), max: Some(max), kind } = read else {
        return Err(node.fault("a table with `name` and `max`").into());
    };
    let budget = Budget { id: number(&name), max, kind };
    draft.budget = Some(BudgetDraft { name, budget, place: node.place.clone() });
    Ok(())
}

/// Reads `dispatch`: true, false or a table.
pub(super) fn dispatch(target: &mut Option<DispatchDraft>, node: &Node<'_>) -> Result<(), Faults> {
    if !matches!(node.raw, Raw::Toml(value) if value.is_table()) {
        let wanted = node.boolean().ok().ok_or_else(|| node.fault("true, false or a table"))?;
        *target = wanted.then(DispatchDraft::default);
        return Ok(());
    }
    let mut draft = DispatchDraft::default();
    let (written, faults) = walk(DISPATCH_KEYS, &mut draft, node.table()?, &node.place);
    (draft.says_timeout, draft.says_grace) = (written.contains_key("timeout"), written.contains_key("cancel_grace"));
    *target = Some(draft);
    faults.or(())
}
