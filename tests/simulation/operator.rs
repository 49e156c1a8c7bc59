//! What people do to the engine: policies of every shape, orders at any time, reloads, shutdowns.

use std::time::Duration;

use halsup::engine::{CallId, Input, Target};
use halsup::spec::{Heartbeat, HeartbeatSource, PoolId, PoolPolicy, Restart, Size, Startup, Stop, WorkerId};

use crate::dice::Dice;

/// No pool of a run is larger.
pub(crate) const POOL_SIZE_MAX: u32 = 5;

pub(crate) fn policy(dice: &mut Dice) -> PoolPolicy {
    let min = dice.small(0, 3);
    let max = (min + dice.small(0, POOL_SIZE_MAX - min)).max(1);
    let delay = dice.millis(10, 4000);
    PoolPolicy {
        size: Size { min, max },
        startup: Startup {
            batch_size: dice.small(1, 4),
            batch_delay: Duration::from_millis(dice.pick(&[0, 0, 100, 750, 3000])),
            ready_timeout: dice.millis(500, 20_000),
            waits_for_ready: dice.chance(70),
        },
        restart: Restart {
            enabled: dice.chance(85),
            delay,
            delay_max: delay + dice.millis(0, 20_000),
            jitter_percent: dice.pick(&[0, 10, 50, 100]),
            stable_after: dice.millis(500, 30_000),
            max_restarts: dice.small(0, 8),
            window: dice.millis(1000, 60_000),
        },
        heartbeat: dice.chance(75).then(|| heartbeat(dice)),
        stop: Stop {
            signal: 15,
            grace: Duration::from_millis(dice.pick(&[0, 300, 2000, 10_000])),
            kill_timeout: dice.millis(200, 5000),
        },
        freeze_after: None,
        claims: None,
        dispatch: None,
    }
}

fn heartbeat(dice: &mut Dice) -> Heartbeat {
    Heartbeat {
        source: dice.pick(&[HeartbeatSource::Channel, HeartbeatSource::Notify, HeartbeatSource::Probe]),
        interval: dice.millis(300, 5000),
        timeout: dice.millis(100, 6000),
        max_missed: dice.small(1, 4),
        initial_delay: Duration::from_millis(dice.pick(&[0, 0, 1000, 8000])),
        dependent: dice.chance(75),
    }
}

fn pool(dice: &mut Dice) -> PoolId {
    PoolId(dice.small(1, 3))
}

fn target(dice: &mut Dice) -> Target {
    match dice.below(10) {
        0 => Target::All,
        1..4 => Target::Pool(pool(dice)),
        _ => Target::Worker(WorkerId { pool: pool(dice), slot: dice.small(0, POOL_SIZE_MAX) }),
    }
}

/// One order of an operator, or a reload of a pool.
pub(crate) fn order(dice: &mut Dice, call: CallId, known: Option<&PoolPolicy>) -> Input {
    match dice.below(100) {
        0..16 => Input::StartRequested(call, target(dice)),
        16..30 => Input::StopRequested(call, target(dice)),
        30..46 => Input::RestartRequested(call, target(dice)),
        46..54 => Input::KillRequested(call, target(dice), None),
        54..60 => Input::KillRequested(call, target(dice), Some(10)),
        60..78 => Input::ScaleRequested(call, pool(dice), dice.small(0, POOL_SIZE_MAX)),
        78..86 => Input::ResetRequested(call, target(dice)),
        86..88 => Input::AwaitRequested(call, target(dice)),
        88..90 => Input::PoolRemoved(pool(dice)),
        _ => Input::PoolDefined(PoolId(1), Box::new(reloaded(dice, known))),
    }
}

/// A reload that changes something, or nothing.
pub(crate) fn reloaded(dice: &mut Dice, known: Option<&PoolPolicy>) -> PoolPolicy {
    let other = policy(dice);
    let Some(mut same) = known.cloned() else { return other };
    match dice.below(6) {
        0 => {}
        1 => same.size = other.size,
        2 => same.heartbeat = other.heartbeat,
        3 => same.restart = other.restart,
        4 => same.stop = other.stop,
        _ => same = other,
    }
    same
}
