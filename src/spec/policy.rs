//! The part of a pool's specification that the engine decides by: numbers and durations, nothing of the kernel.

use std::time::Duration;

use super::DispatchPolicy;

/// How many workers a pool keeps. `min == max` is a fixed size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// Never fewer than this many, once started. 0..=`max`.
    pub min: u32,
    /// Never more than this many. 1..=10,000.
    pub max: u32,
}

/// How the first workers of a pool, or many at once, are started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Startup {
    /// At most this many workers of the pool begin at once. 1..=10,000.
    pub batch_size: u32,
    /// Pause between two batches; zero starts the next batch at once.
    pub batch_delay: Duration,
    /// A worker that is not ready after this long is killed, cause `start-failed`.
    pub ready_timeout: Duration,
    /// Whether the worker says when it is ready; without, it is ready as soon as its program runs.
    pub waits_for_ready: bool,
}

/// When an ended worker is started again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Restart {
    /// Whether an ended worker is started again at all.
    pub enabled: bool,
    /// Delay before the second restart in a row (the first is immediate); doubles with each further one.
    pub delay: Duration,
    /// The delay never exceeds this, jitter included.
    pub delay_max: Duration,
    /// Share of the delay that is drawn by chance, 0..=100 percent, added and never beyond `delay_max`.
    pub jitter_percent: u32,
    /// A worker that was ready for this long starts again from the first delay.
    pub stable_after: Duration,
    /// Crash barrier: more than this many restarts within `window` remove the worker until reset.
    pub max_restarts: u32,
    /// The window of the crash barrier.
    pub window: Duration,
}

/// Where a worker's heartbeats come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeartbeatSource {
    /// The daemon pings over the worker's channel, the worker answers.
    Channel,
    /// The worker sends `WATCHDOG=1` by itself; nothing is asked.
    Notify,
    /// The daemon asks by HTTP or TCP; the daemon reports each answer or failure.
    Probe,
}

/// How a worker shows that it is alive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heartbeat {
    /// Where beats come from.
    pub source: HeartbeatSource,
    /// Time between two pings, or the longest time between two beats of a worker that sends by itself.
    pub interval: Duration,
    /// A ping that is unanswered for this long is one miss.
    pub timeout: Duration,
    /// This many misses in a row kill the worker. At least 1.
    pub max_missed: u32,
    /// After readiness, nothing is expected for this long.
    pub initial_delay: Duration,
    /// Whether misses kill (and the worker ends with its monitor); without, they are only counted and reported.
    pub dependent: bool,
}

/// How a worker is ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stop {
    /// The signal that asks the program to end, by number.
    pub signal: i32,
    /// Time between the signal and `cgroup.kill`.
    pub grace: Duration,
    /// Time between `cgroup.kill` and the verdict `stuck`.
    pub kill_timeout: Duration,
}

/// What it means that workers of a pool can be claimed: its size is how many stay warm beside those that are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClaimPolicy {
    /// Warm workers beyond the size leave when nobody has wanted them for this long.
    pub idle_timeout: Duration,
    /// Within this time what is missing is made up for. Nothing waits for it: that begins with the event.
    pub check_interval: Duration,
    /// How many can be claimed at once. 1..=10,000.
    pub sessions_max: u32,
}

/// All that the engine knows of a pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolPolicy {
    /// How many workers.
    pub size: Size,
    /// How they are started.
    pub startup: Startup,
    /// When they are started again.
    pub restart: Restart,
    /// How they show that they are alive; `None` watches the exit alone.
    pub heartbeat: Option<Heartbeat>,
    /// How they are ended.
    pub stop: Stop,
    /// A ready worker that has been idle for this long is frozen until somebody needs it; `None` freezes nobody.
    pub freeze_after: Option<Duration>,
    /// Whether they wait, warm, for somebody to claim them.
    pub claims: Option<ClaimPolicy>,
    /// How requests are given to them, if they are.
    pub dispatch: Option<DispatchPolicy>,
}
