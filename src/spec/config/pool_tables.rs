//! The tables within a pool: `restart`, `heartbeat` and `log`.
//!
//! Owns their keys and what a heartbeat becomes when only part of it was written.

use std::time::Duration;

use super::error::{Faults, Place};
use super::keys::{Bounds, Key, walk};
use super::node::{Node, Raw};
use crate::spec::{Heartbeat, HeartbeatSource, LogSpec, Probe, Ready, Restart};

const HOUR: Duration = Duration::from_secs(3600);

/// The keys of `[pool.NAME.restart]`.
pub(super) const RESTART_KEYS: &[Key<Restart>] = &[
    Key {
        name: "enabled",
        aliases: &[],
        variable: "",
        kind: "boolean",
        default: "true",
        bounds: Bounds::None,
        what: "Whether an ended worker is started again. `restart = false` says the same in short.",
        set: |restart, node| {
            restart.enabled = node.boolean()?;
            Ok(())
        },
    },
    Key {
        name: "delay",
        aliases: &["delay_ms"],
        variable: "",
        kind: "duration",
        default: "\"500ms\"",
        bounds: Bounds::Time(Duration::ZERO, HOUR),
        what: "Pause before the second restart in a row; the first is immediate. Doubles with each further one.",
        set: |restart, node| {
            restart.delay = node.duration()?;
            Ok(())
        },
    },
    Key {
        name: "delay_max",
        aliases: &["delay_max_ms"],
        variable: "",
        kind: "duration",
        default: "\"30s\"",
        bounds: Bounds::Time(Duration::ZERO, HOUR),
        what: "The pause never exceeds this. At least `delay`.",
        set: |restart, node| {
            restart.delay_max = node.duration()?;
            Ok(())
        },
    },
    Key {
        name: "jitter_percent",
        aliases: &[],
        variable: "",
        kind: "integer",
        default: "20",
        bounds: Bounds::Count(0, 100),
        what: "Share of the pause that is added by chance, so that workers that died together do not start together.",
        set: |restart, node| {
            restart.jitter_percent = node.count_u32()?;
            Ok(())
        },
    },
    Key {
        name: "stable_after",
        aliases: &["stable_after_ms"],
        variable: "",
        kind: "duration",
        default: "\"10s\"",
        bounds: Bounds::Time(Duration::ZERO, HOUR),
        what: "A worker that was ready for this long begins again with the first pause.",
        set: |restart, node| {
            restart.stable_after = node.duration()?;
            Ok(())
        },
    },
    Key {
        name: "max_restarts",
        aliases: &[],
        variable: "",
        kind: "integer",
        default: "5",
        bounds: Bounds::Count(0, 10_000),
        what: "Crash barrier: more than this many restarts within `window` remove the worker until `halsup reset`.",
        set: |restart, node| {
            restart.max_restarts = node.count_u32()?;
            Ok(())
        },
    },
    Key {
        name: "window",
        aliases: &["window_ms", "window_seconds"],
        variable: "",
        kind: "duration",
        default: "\"60s\"",
        bounds: Bounds::Time(Duration::from_millis(1), Duration::from_secs(86_400)),
        what: "The window of the crash barrier.",
        set: |restart, node| {
            restart.window = node.duration()?;
            Ok(())
        },
    },
];

/// Reads `restart`: true, false or a table.
pub(super) fn restart(target: &mut Restart, node: &Node<'_>) -> Result<(), Faults> {
    if !matches!(node.raw, Raw::Toml(value) if value.is_table()) {
        target.enabled = node.boolean().ok().ok_or_else(|| node.fault("true, false or a table"))?;
        return Ok(());
    }
    let (written, mut faults) = walk(RESTART_KEYS, target, node.table()?, &node.place);
    if faults.is_empty() && target.delay > target.delay_max {
        let place = written.get("delay_max").or_else(|| written.get("delay")).unwrap_or(&node.place);
        faults.push(place.fault("delay is more than delay_max", ""));
    }
    faults.or(())
}

/// The keys of `[pool.NAME.log]`.
pub(super) const LOG_KEYS: &[Key<LogSpec>] = &[
    Key {
        name: "max_size",
        aliases: &[],
        variable: "",
        kind: "size",
        default: "\"10m\"",
        bounds: Bounds::Bytes(64 << 10, 1 << 40),
        what: "A log file is rotated when it would grow beyond this.",
        set: |log, node| {
            log.max_bytes = node.bytes()?;
            Ok(())
        },
    },
    Key {
        name: "keep",
        aliases: &[],
        variable: "",
        kind: "integer",
        default: "3",
        bounds: Bounds::Count(0, 100),
        what: "How many rotated files are kept.",
        set: |log, node| {
            log.keep = node.count_u32()?;
            Ok(())
        },
    },
    Key {
        name: "json",
        aliases: &[],
        variable: "",
        kind: "boolean",
        default: "false",
        bounds: Bounds::None,
        what: "Each line as a JSON object with time and stream, instead of plain.",
        set: |log, node| {
            log.json = node.boolean()?;
            Ok(())
        },
    },
];

/// Reads `log`.
pub(super) fn log(target: &mut LogSpec, node: &Node<'_>) -> Result<(), Faults> {
    let (_, faults) = walk(LOG_KEYS, target, node.table()?, &node.place);
    faults.or(())
}

/// Where beats come from, as written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Source {
    None,
    Channel,
    Notify,
    Probe(Probe),
}

/// Heartbeats while they are read.
#[derive(Debug, Clone)]
pub(super) struct HeartbeatDraft {
    /// Whether anything was written about them.
    written: bool,
    enabled: bool,
    source: Option<(Source, Place)>,
    /// All but the source.
    beat: Heartbeat,
}

impl Default for HeartbeatDraft {
    fn default() -> Self {
        let beat = Heartbeat {
            source: HeartbeatSource::Channel,
            interval: Duration::from_secs(2),
            timeout: Duration::from_secs(10),
            max_missed: 3,
            initial_delay: Duration::ZERO,
            dependent: true,
        };
        Self { written: false, enabled: true, source: None, beat }
    }
}

impl HeartbeatDraft {
    /// Beats from where `ready` asks, this often, where nothing was written about them.
    pub(super) const fn preset(&mut self, interval: Duration, timeout: Duration) {
        self.written = true;
        self.beat.interval = interval;
        self.beat.timeout = timeout;
    }

    /// Beats come from `source`, unless it was written where they do.
    pub(super) fn come_from(&mut self, source: Source, place: &Place) {
        self.written = true;
        self.source.get_or_insert((source, place.clone()));
    }

    /// Whether they are on, and how they are.
    pub(super) const fn said(&self) -> (bool, Heartbeat) {
        (self.enabled, self.beat)
    }

    /// Decides the source, where it was not written, by how the worker becomes ready. Unwritten heartbeats are on for
    /// channel workers, whose library answers pings, and off for all others, who would have to do something for them.
    pub(super) fn finish(&self, ready: &Ready, place: &Place) -> Result<(Option<Heartbeat>, Option<Probe>), Faults> {
        if !self.enabled {
            return Ok((None, None));
        }
        let source = match (&self.source, ready) {
            (Some((Source::Channel, place)), Ready::Notify) => {
                return Err(place
                    .fault("the worker speaks sd_notify, by ready", "notify, http:/path, tcp, grpc or none")
                    .into());
            }
            (Some((Source::Notify, place)), Ready::Channel) => {
                return Err(place
                    .fault("the worker speaks on the channel, by ready", "channel, http:/path, tcp, grpc or none")
                    .into());
            }
            (Some((source, _)), _) => source.clone(),
            (None, Ready::Channel) => Source::Channel,
            (None, _) if !self.written => Source::None,
            (None, Ready::Notify) => Source::Notify,
            (None, Ready::Probe(probe)) => Source::Probe(probe.clone()),
            (None, Ready::PortFile(_)) => Source::Probe(Probe::Tcp),
            (None, Ready::Exec | Ready::File(_)) => {
                return Err(place
                    .key("source")
                    .fault("missing", "channel, notify, http:/path, tcp, grpc or none")
                    .into());
            }
        };
        let beat = |source| Some(Heartbeat { source, ..self.beat });
        Ok(match source {
            Source::None => (None, None),
            Source::Channel => (beat(HeartbeatSource::Channel), None),
            Source::Notify => (beat(HeartbeatSource::Notify), None),
            Source::Probe(probe) => (beat(HeartbeatSource::Probe), Some(probe)),
        })
    }
}

/// The keys of `[pool.NAME.heartbeat]`.
pub(super) const HEARTBEAT_KEYS: &[Key<HeartbeatDraft>] = &[
    Key {
        name: "source",
        aliases: &[],
        variable: "",
        kind: "word",
        default: "",
        bounds: Bounds::Prose("channel, notify, http:/path, tcp, grpc, none"),
        what: "Where beats come from. `channel`: the daemon pings. `notify`: the worker sends `WATCHDOG=1`. `http:/path`, `tcp`, `grpc`: the daemon asks the worker's port. Left out: the same as `ready`.",
        set: |heartbeat, node| {
            let source = match node.text()? {
                "none" => Source::None,
                "channel" => Source::Channel,
                "notify" => Source::Notify,
                text => Source::Probe(super::paths::probe(text).ok_or_else(|| {
                    let near = super::keys::nearest(text, ["none", "channel", "notify", "tcp", "grpc"]);
                    node.fault("channel, notify, http:/path, tcp, grpc or none").suggest(near)
                })?),
            };
            heartbeat.source = Some((source, node.place.clone()));
            Ok(())
        },
    },
    Key {
        name: "enabled",
        aliases: &[],
        variable: "",
        kind: "boolean",
        default: "true",
        bounds: Bounds::None,
        what: "`heartbeat = false` says the same in short.",
        set: |heartbeat, node| {
            heartbeat.enabled = node.boolean()?;
            Ok(())
        },
    },
    Key {
        name: "interval",
        aliases: &["ping_interval_ms", "interval_ms"],
        variable: "",
        kind: "duration",
        default: "\"2s\"",
        bounds: Bounds::Time(Duration::from_millis(10), HOUR),
        what: "Time between two pings, or the longest time between two beats of a worker that sends by itself.",
        set: |heartbeat, node| {
            heartbeat.beat.interval = node.duration()?;
            Ok(())
        },
    },
    Key {
        name: "timeout",
        aliases: &["timeout_ms"],
        variable: "",
        kind: "duration",
        default: "\"10s\"",
        bounds: Bounds::Time(Duration::from_millis(10), HOUR),
        what: "A ping that is unanswered for this long is one miss.",
        set: |heartbeat, node| {
            heartbeat.beat.timeout = node.duration()?;
            Ok(())
        },
    },
    Key {
        name: "max_missed",
        aliases: &["max_missed_heartbeats"],
        variable: "",
        kind: "integer",
        default: "3",
        bounds: Bounds::Count(1, 1000),
        what: "This many misses in a row kill the worker.",
        set: |heartbeat, node| {
            heartbeat.beat.max_missed = node.count_u32()?;
            Ok(())
        },
    },
    Key {
        name: "initial_delay",
        aliases: &["initial_delay_ms"],
        variable: "",
        kind: "duration",
        default: "\"0s\"",
        bounds: Bounds::Time(Duration::ZERO, HOUR),
        what: "After the worker is ready, nothing is expected for this long.",
        set: |heartbeat, node| {
            heartbeat.beat.initial_delay = node.duration()?;
            Ok(())
        },
    },
    Key {
        name: "dependent",
        aliases: &[],
        variable: "",
        kind: "boolean",
        default: "true",
        bounds: Bounds::None,
        what: "Whether misses kill, and the worker ends with its monitor. `false`: they are only counted and reported.",
        set: |heartbeat, node| {
            heartbeat.beat.dependent = node.boolean()?;
            Ok(())
        },
    },
];

/// Reads `heartbeat`: true, false or a table.
pub(super) fn heartbeat(target: &mut HeartbeatDraft, node: &Node<'_>) -> Result<(), Faults> {
    target.written = true;
    if !matches!(node.raw, Raw::Toml(value) if value.is_table()) {
        target.enabled = node.boolean().ok().ok_or_else(|| node.fault("true, false or a table"))?;
        return Ok(());
    }
    let (_, faults) = walk(HEARTBEAT_KEYS, target, node.table()?, &node.place);
    faults.or(())
}
