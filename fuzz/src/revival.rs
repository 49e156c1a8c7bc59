//! What is promised of the engine when it is given the records of a daemon that was: whatever they say, it does not panic, does
//! not turn for ever, uses no generation twice, and comes to an end when it is told to.
//!
//! The world here is a small one: what is spawned runs or fails, what is killed ends or does not, chance decides, and the
//! chance comes from the bytes. What is right for records that a daemon has written is for `tests/simulation` to say.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use halsup::daemon::past::Past;
use halsup::engine::{CallId, Change, Effect, Ended, Engine, Fate, Input, PoolRecord, Target, Time, Usage};
use halsup::spec::{
    ClaimPolicy, DispatchPolicy, Generation, Heartbeat, HeartbeatSource, PoolId, PoolName, PoolPolicy, Restart, Size,
    Startup, Stop, WorkerId,
};

/// Places of a pool that are taken over; more only take longer.
const PLACES_MAX: usize = 64;
/// Turns before the shutdown, and that it may take.
const TURNS: usize = 60;
const SHUTDOWN_TURNS_MAX: usize = 3_000;
/// The shortest pause between two pings: with shorter ones the turns are over before the time is.
const RARELY: Duration = Duration::from_millis(50);
/// Nobody's clock comes this far.
const FOREVER: Time = Time(1 << 62);

/// splitmix64 over what the bytes say.
struct Chance(u64);

impl Chance {
    fn of(data: &[u8]) -> Self {
        let fold = |sum: u64, byte: &u8| (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        Self(data.iter().fold(0xcbf2_9ce4_8422_2325, fold))
    }

    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % end
    }

    fn small(&mut self, end: u32) -> u32 {
        u32::try_from(self.below(u64::from(end))).expect("below a u32")
    }

    fn millis(&mut self, end: u64) -> Duration {
        Duration::from_millis(self.below(end))
    }

    fn policy(&mut self) -> PoolPolicy {
        let min = self.small(4);
        let sources = [HeartbeatSource::Channel, HeartbeatSource::Notify, HeartbeatSource::Probe];
        let heartbeat = Heartbeat {
            source: sources[usize::try_from(self.below(3)).expect("below 3")],
            interval: self.millis(3_000).max(RARELY),
            timeout: self.millis(3_000),
            max_missed: self.small(4),
            initial_delay: self.millis(2_000),
            dependent: self.below(2) == 0,
        };
        PoolPolicy {
            size: Size { min, max: (min + self.small(8)).max(1) },
            startup: Startup {
                batch_size: self.small(4),
                batch_delay: self.millis(500),
                ready_timeout: self.millis(10_000),
                waits_for_ready: self.below(2) == 0,
            },
            restart: Restart {
                enabled: self.below(4) > 0,
                delay: self.millis(2_000),
                delay_max: self.millis(20_000),
                jitter_percent: self.small(101),
                stable_after: self.millis(10_000),
                max_restarts: self.small(6),
                window: self.millis(30_000),
            },
            heartbeat: (self.below(2) == 0).then_some(heartbeat),
            stop: Stop { signal: 15, grace: self.millis(5_000), kill_timeout: self.millis(3_000) },
            claims: (self.below(3) == 0).then(|| ClaimPolicy {
                idle_timeout: self.millis(10_000),
                check_interval: Duration::from_secs(30),
                sessions_max: self.small(8).max(1),
            }),
            freeze_after: (self.below(2) == 0).then(|| self.millis(5_000)),
            dispatch: (self.below(3) == 0).then(DispatchPolicy::default),
        }
    }
}

struct Revival {
    chance: Chance,
    engine: Engine,
    now: Time,
    last: u64,
    certified: BTreeSet<(WorkerId, Generation)>,
    /// What the engine will be told, in this order.
    news: VecDeque<Input>,
    places: usize,
    calls: u64,
    answered: u64,
    finished: bool,
}

/// Gives the engine what was read, and lives with it for a while.
pub(super) fn revive(past: &Past, data: &[u8]) {
    let mut chance = Chance::of(data);
    let now = Time([0, 1_000_000_000, 1 << 55][usize::try_from(chance.below(3)).expect("below 3")]);
    let engine = Engine::with_last_generation(chance.below(u64::MAX), Generation(past.generation));
    let mut revival = Revival {
        chance,
        engine,
        now,
        last: past.generation,
        certified: BTreeSet::new(),
        news: VecDeque::new(),
        places: 0,
        calls: 0,
        answered: 0,
        finished: false,
    };
    revival.restore(past);
    for _ in 0..TURNS {
        revival.turn();
        if revival.chance.below(8) == 0 {
            revival.order();
        }
    }
    // There no time is left in which anything could end.
    if revival.now >= FOREVER {
        return;
    }
    let patience = revival.chance.millis(10_000);
    revival.engine.handle(Input::ShutdownRequested(patience), revival.now);
    for _ in 0..SHUTDOWN_TURNS_MAX {
        if revival.finished {
            break;
        }
        revival.turn();
    }
    assert!(revival.finished, "it was told to end and does not: {:?}", revival.engine.workers().collect::<Vec<_>>());
    assert_eq!(revival.answered, revival.calls, "an order has no answer");
}

impl Revival {
    fn restore(&mut self, past: &Past) {
        let names: BTreeSet<&PoolName> = past.pools.keys().chain(past.workers.keys().map(|(name, _)| name)).collect();
        for (name, id) in names.into_iter().take(4).zip(1..) {
            let id = PoolId(id);
            let workers: BTreeMap<u32, _> = past
                .workers
                .iter()
                .filter(|((pool, _), _)| pool == name)
                .map(|((_, slot), record)| (*slot, record))
                .collect();
            let mut records = Vec::new();
            for (slot, record) in workers.into_iter().take(PLACES_MAX) {
                let fate = match self.chance.below(6) {
                    0 | 1 => Fate::Lives,
                    2 => Fate::Ended(Ended::Exited(0)),
                    3 => Fate::Ended(Ended::OutOfMemory),
                    4 => Fate::Abandoned,
                    _ => Fate::Nothing,
                };
                let worker = WorkerId { pool: id, slot };
                let generation = Generation(record.generation.unwrap_or(0));
                if fate == Fate::Lives {
                    self.begin(worker, generation);
                } else {
                    self.news.push_back(Input::Emptied(worker, generation));
                }
                records.push((slot, record.clone(), fate));
            }
            self.places += records.len() + 16;
            let made_up = PoolRecord {
                wanted: self.chance.small(12),
                paused: self.chance.below(8) == 0,
                ..PoolRecord::default()
            };
            let was = past.pools.get(name).map_or(made_up, |pool| pool.record);
            let policy = Box::new(self.chance.policy());
            self.engine.handle(Input::PoolRestored(id, policy, was, records), self.now);
        }
    }

    /// What a program does after its start.
    fn begin(&mut self, worker: WorkerId, generation: Generation) {
        let ended = [Ended::Exited(1), Ended::Signalled(11), Ended::Unknown]
            [usize::try_from(self.chance.below(3)).expect("below 3")];
        match self.chance.below(8) {
            0 => self.news.push_back(Input::SpawnFailed(worker, generation)),
            1 => {}
            2 => self.end(worker, generation, ended),
            3 => self.news.push_back(Input::StopAnnounced(worker, generation)),
            4 => {
                let interval = self.chance.millis(2_000).max(RARELY);
                self.news.push_back(Input::BeatIntervalSet(worker, generation, interval));
            }
            _ => self.news.extend([Input::Spawned(worker, generation), Input::BecameReady(worker, generation)]),
        }
    }

    fn end(&mut self, worker: WorkerId, generation: Generation, ended: Ended) {
        self.news.extend([Input::Exited(worker, generation, ended), Input::Emptied(worker, generation)]);
    }

    fn order(&mut self) {
        self.calls += 1;
        let call = CallId(self.calls);
        let target = match self.chance.below(3) {
            0 => Target::All,
            1 => Target::Pool(PoolId(1)),
            _ => Target::Worker(WorkerId { pool: PoolId(1), slot: self.chance.small(6) }),
        };
        let order = match self.chance.below(7) {
            0 => Input::StartRequested(call, target),
            1 => Input::StopRequested(call, target),
            2 => Input::RestartRequested(call, target),
            3 => Input::KillRequested(call, target, None),
            4 => Input::ScaleRequested(call, PoolId(1), self.chance.small(12)),
            5 => Input::AwaitRequested(call, target),
            _ => Input::ResetRequested(call, target),
        };
        self.engine.handle(order, self.now);
    }

    fn turn(&mut self) {
        for _ in 0..self.chance.below(4) {
            if let Some(news) = self.news.pop_front() {
                self.engine.handle(news, self.now);
            }
        }
        self.engine.handle_timeout(self.now);
        for change in self.engine.take_changes() {
            if let Change::Worker(_, Some(record)) = change {
                let written = serde_json::to_vec(&record).expect("a record is JSON");
                assert_eq!(
                    serde_json::from_slice(&written).ok(),
                    Some(record),
                    "a record is not read as it is written"
                );
            }
        }
        let mut effects = 0;
        while let Some(effect) = self.engine.poll_effect() {
            effects += 1;
            assert!(effects <= 200 + self.places * 20, "effects without end: {effect:?}");
            self.perform(&effect);
        }
        let next = self.engine.next_deadline();
        assert!(next.is_none_or(|next| next > self.now), "the deadline {next:?} has passed at {:?}", self.now);
        if self.news.is_empty() || self.chance.below(4) == 0 {
            self.now = next.map_or(self.now, |next| next.min(FOREVER));
        }
    }

    fn perform(&mut self, effect: &Effect) {
        match *effect {
            Effect::Spawn(worker, generation) => {
                assert!(generation.0 > self.last, "{generation:?} was given out before");
                self.last = generation.0;
                self.begin(worker, generation);
            }
            Effect::Signal(worker, generation, 15) if self.chance.below(2) == 0 => {
                self.end(worker, generation, Ended::Signalled(15));
            }
            Effect::Kill(worker, generation) if self.chance.below(8) > 0 => {
                self.end(worker, generation, Ended::Signalled(9))
            }
            Effect::Ping(worker, generation) => match self.chance.below(4) {
                0 => self.news.push_back(Input::PingFailed(worker, generation)),
                1 => {}
                _ => self.news.push_back(Input::Beat(worker, generation)),
            },
            Effect::Measure(worker, generation) => {
                let usage = Usage { cpu_usec: self.chance.below(2), in_use: self.chance.below(8) == 0 };
                self.news.push_back(Input::Measured(worker, generation, usage));
            }
            Effect::Freeze(worker, generation) => match self.chance.below(4) {
                0 => self.news.push_back(Input::FreezeFailed(worker, generation)),
                1 => {}
                _ => self.news.push_back(Input::Froze(worker, generation)),
            },
            Effect::Certify(worker, generation, _) => {
                assert!(self.certified.insert((worker, generation)), "{worker:?} {generation:?} is certified twice");
            }
            Effect::Answer(..) => self.answered += 1,
            Effect::Finished => {
                assert!(!self.finished, "finished twice");
                self.finished = true;
            }
            Effect::Signal(..)
            | Effect::Kill(..)
            | Effect::Thaw(..)
            | Effect::StateChanged(..)
            | Effect::Forget(_)
            | Effect::Bind(..)
            | Effect::Request(_)
            | Effect::Task(_) => {}
        }
    }
}
