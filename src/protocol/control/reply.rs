//! The answers to everything but `Status`: what was done, what was written, what happened, what is used.

use serde::{Deserialize, Serialize};

use super::{Cause, DeathCertificate, Inspection, WorkerInfo, WorkerState};

/// An answer without results, as of `Ping`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Empty {}

/// The answer of `List`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListReply {
    /// By pool in the order of the configuration, then by slot.
    pub workers: Vec<WorkerInfo>,
}

/// The answer of `Inspect`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct InspectReply {
    /// By pool in the order of the configuration, then by slot.
    pub workers: Vec<Inspection>,
}

/// Why one worker is not in the state that was ordered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// Which.
    pub worker: String,
    /// The whole chain of causes, as one sentence.
    pub reason: String,
}

/// The answer of `Start`, `Stop`, `Restart`, `Kill`, `Reset` and `Scale`.
///
/// The order was carried out if and only if `achieved` equals `wanted`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangeReply {
    /// How many workers are in the state that was ordered.
    pub achieved: u32,
    /// How many were to be.
    pub wanted: u32,
    /// Why the others are not, as far as it is known.
    pub failures: Vec<Failure>,
}

/// The answer of `Attach` and `Watch`; then [`super::super::attach`] is spoken.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttachReply {
    /// Whose terminal it is.
    pub worker: String,
}

/// A worker that somebody has, or that has a terminal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionInfo {
    /// What it is attached to by.
    pub name: String,
    /// Whose it is.
    pub worker: String,
    /// Its pool.
    pub pool: String,
    /// What the worker is doing.
    pub state: WorkerState,
    /// Whether it stands still until somebody needs it.
    #[serde(default)]
    pub frozen: bool,
    /// When it was started.
    pub started: String,
    /// What `/` is inside, if it is not the host's own.
    pub image: Option<String>,
    /// Who claimed it.
    pub owner: Option<u32>,
    /// The directory that it has, by its path on the host.
    pub project: Option<String>,
    /// Width of the terminal in cells, if it has one.
    pub columns: Option<u16>,
    /// Its height.
    pub rows: Option<u16>,
    /// How many clients see it.
    pub viewers: u32,
    /// Who types.
    pub writer: Option<String>,
    /// When it ended, if it is only kept; RFC 3339.
    #[serde(default)]
    pub ended: Option<String>,
    /// How.
    #[serde(default)]
    pub exit: Option<Cause>,
}

/// The answer of `Sessions`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionsReply {
    /// One for each terminal, in the order of workers.
    pub sessions: Vec<SessionInfo>,
}

/// Where a line of output was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// One line that a worker wrote.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogEntry {
    /// Who wrote it.
    pub worker: String,
    /// Where.
    pub stream: Stream,
    /// When; RFC 3339.
    pub time: String,
    /// Without its line end; not escaped for a terminal.
    pub text: String,
}

/// One answer of `Logs`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogsReply {
    /// In the order in which they were written.
    pub entries: Vec<LogEntry>,
}

/// What an event is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EventKind {
    /// The daemon started, reloaded, changed its log, began to stop.
    Daemon,
    /// A pool was added, changed, removed, scaled.
    Pool,
    /// A worker changed its state.
    State,
    /// A worker died; its certificate can be asked for.
    Death,
    /// A limit struck: out of memory, too many processes; or cannot be held.
    Limit,
    /// Somebody ordered something.
    Order,
    /// A circuit breaker changed, a worker will be replaced, a budget is used up.
    Request,
    /// Anything, for programs, by its name; only told to whoever asks for telemetry.
    Telemetry,
}

impl std::fmt::Display for EventKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Daemon => "daemon",
            Self::Pool => "pool",
            Self::State => "state",
            Self::Death => "death",
            Self::Limit => "limit",
            Self::Order => "order",
            Self::Request => "request",
            Self::Telemetry => "telemetry",
        })
    }
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Counts up by one over the life of a daemon.
    pub sequence: u64,
    /// When; RFC 3339.
    pub time: String,
    /// What it is about.
    pub kind: EventKind,
    /// Which pool.
    pub pool: Option<String>,
    /// Which worker.
    pub worker: Option<String>,
    /// Which spawn attempt.
    pub generation: Option<u64>,
    /// The worker's state from now on.
    pub state: Option<WorkerState>,
    /// Why it died.
    pub cause: Option<Cause>,
    /// Who ordered it: `uid 1000 (pid 4711)`.
    pub asked_by: Option<String>,
    /// The same for people, as half a sentence; not escaped for a terminal.
    pub text: String,
    /// What happened, for programs: `halsup.pool.worker.spawned`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Its numbers, by name; what is not known is null.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub measurements: Option<serde_json::Map<String, serde_json::Value>>,
    /// What it is about, by name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metadata: Option<serde_json::Map<String, serde_json::Value>>,
}

/// One answer of `Events`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventsReply {
    /// Oldest first.
    pub events: Vec<Event>,
    /// How many this reader did not get since the answer before.
    pub missed: u64,
}

/// What one worker uses and what its limits did to it; `None` where the controller is missing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerStats {
    /// `web.3`; for a service its name.
    pub name: String,
    /// What it is doing.
    pub state: WorkerState,
    /// `memory.current`.
    pub memory_current_bytes: Option<u64>,
    /// `memory.peak`.
    pub memory_peak_bytes: Option<u64>,
    /// `memory.max`; `None` is also no limit.
    pub memory_max_bytes: Option<u64>,
    /// `usage_usec` of `cpu.stat`.
    pub cpu_usec: Option<u64>,
    /// `user_usec`.
    pub cpu_user_usec: Option<u64>,
    /// `system_usec`.
    pub cpu_system_usec: Option<u64>,
    /// `throttled_usec`.
    pub throttled_usec: Option<u64>,
    /// `nr_throttled`.
    pub throttled_periods: Option<u64>,
    /// `pids.current`.
    pub pids: Option<u64>,
    /// `pids.max`; `None` is also no limit.
    pub pids_max: Option<u64>,
    /// `oom_kill` of `memory.events`.
    pub oom_kills: Option<u64>,
    /// `max` of `pids.events`.
    pub pids_limit_hits: Option<u64>,
}

/// The answer of `Stats`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatsReply {
    /// By pool in the order of the configuration, then by slot.
    pub workers: Vec<WorkerStats>,
}

/// The answer of `Certificates`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CertificatesReply {
    /// Newest first.
    pub certificates: Vec<DeathCertificate>,
}

/// The answer of `Reload`: names of pools.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReloadReply {
    /// New ones.
    pub added: Vec<String>,
    /// Those that differ.
    pub changed: Vec<String>,
    /// Those that are gone.
    pub removed: Vec<String>,
}

/// The answer of `Upgrade`, given by the new program.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpgradeReply {
    /// The version that was.
    pub from: String,
    /// The version that is.
    pub version: String,
    /// The daemon's pid, which is the same.
    pub pid: u32,
    /// How long nobody was there to answer, in microseconds.
    pub away_usec: u64,
    /// How many workers were taken along.
    pub workers: u32,
}

/// One answer of `Shutdown`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShutdownReply {
    /// Workers that still run.
    pub remaining: u32,
    /// Those that could not be emptied.
    pub stuck: Vec<String>,
}

/// The answer of `SetLog`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetLogReply {
    /// The filter until now.
    pub previous: String,
}

/// One thing that halsup needs from the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// What is needed.
    pub name: String,
    /// Whether it is there.
    pub ok: bool,
    /// What is there.
    pub found: String,
    /// What to do where it is not ok.
    pub fix: Option<String>,
}

/// The answer of `Doctor`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DoctorReply {
    /// In the order in which they matter.
    pub checks: Vec<Check>,
}

/// The answer of `GetConfig`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigReply {
    /// Where it came from, if from a file.
    pub path: Option<String>,
    /// The text, as it was read.
    pub text: String,
}
