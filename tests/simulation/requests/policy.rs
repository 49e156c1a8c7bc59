//! Policies as chance has them: small, short, and each rule of dispatch in many of them.

use std::time::Duration;

use halsup::spec::{
    Affinity, BreakerPolicy, Budget, BudgetId, BudgetKind, CallSessionPolicy, ClaimPolicy, DispatchPolicy, PoolPolicy,
    RecyclePolicy, Restart, Select, Size, Startup, Stop,
};

use crate::dice::Dice;

/// The signal that asks a worker to end.
pub(super) const STOP: i32 = 15;

pub(super) fn affinity(dice: &mut Dice) -> Affinity {
    dice.pick(&[Affinity::Hint, Affinity::StrictQueue, Affinity::StrictFailFast])
}

fn breaker(dice: &mut Dice) -> BreakerPolicy {
    BreakerPolicy { failures: dice.pick(&[0, 1, 2, 3, 3]), open_for: dice.millis(1, 1_500) }
}

/// `kind` and `max` of the one budget that pools may share.
pub(super) fn dispatch(dice: &mut Dice, budget: Budget) -> DispatchPolicy {
    let recycles = dice.chance(30);
    DispatchPolicy {
        capacity: dice.pick(&[1, 1, 1, 2, 3, 8]),
        queue_max: dice.pick(&[0, 1, 3, 8, 20]),
        queue_timeout: dice.millis(1, 800),
        timeout: dice.millis(50, 2_500),
        cancel_grace: dice.millis(1, 600),
        select: dice.pick(&[Select::RoundRobin, Select::LeastBusy, Select::Lifo]),
        attempts_max: dice.small(1, 4),
        backoff: dice.millis(1, 120),
        worker_breaker: breaker(dice),
        pool_breaker: if dice.chance(40) {
            breaker(dice)
        } else {
            BreakerPolicy { failures: 0, open_for: Duration::from_millis(1) }
        },
        taint: dice.pick(&[Duration::ZERO, Duration::from_millis(300)]),
        quarantine_kills: dice.pick(&[0, 1, 2, 3]),
        recycle: RecyclePolicy {
            ttl: (recycles && dice.chance(50)).then(|| dice.millis(500, 4_000)),
            requests: (recycles && dice.chance(50)).then(|| 1 + dice.below(12)),
            memory_bytes: (recycles && dice.chance(50)).then_some(1_000),
        },
        sessions: CallSessionPolicy { ttl: dice.millis(1, 1_500), max: dice.small(1, 4), affinity: affinity(dice) },
        budget: dice.chance(35).then_some(budget),
    }
}

pub(super) fn budget(dice: &mut Dice) -> Budget {
    Budget { id: BudgetId(1), max: dice.small(1, 4), kind: dice.pick(&[BudgetKind::Shared, BudgetKind::Hybrid]) }
}

pub(super) fn pool(dice: &mut Dice, budget: Budget, claimable: bool) -> PoolPolicy {
    let min = dice.small(1, 3);
    let mut dispatch = dispatch(dice, budget);
    if claimable {
        dispatch.recycle = RecyclePolicy::default();
    }
    PoolPolicy {
        size: Size { min: min - 1, max: min + dice.small(0, 2) },
        startup: Startup {
            batch_size: dice.small(1, 4),
            batch_delay: Duration::ZERO,
            ready_timeout: Duration::from_secs(5),
            waits_for_ready: false,
        },
        restart: Restart {
            enabled: dice.chance(90),
            delay: Duration::from_millis(20),
            delay_max: Duration::from_millis(200),
            jitter_percent: 20,
            stable_after: Duration::from_secs(1),
            max_restarts: dice.pick(&[3, 10_000, 10_000]),
            window: Duration::from_secs(1),
        },
        heartbeat: None,
        stop: Stop { signal: STOP, grace: Duration::from_millis(400), kill_timeout: Duration::from_secs(60) },
        freeze_after: None,
        claims: claimable.then_some(ClaimPolicy {
            idle_timeout: Duration::from_secs(3),
            check_interval: Duration::from_secs(30),
            sessions_max: 2,
        }),
        dispatch: Some(dispatch),
    }
}
