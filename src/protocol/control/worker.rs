//! What is told of the daemon, of pools and of workers: the answers of `Status`, `List` and `Inspect`.

use serde::{Deserialize, Serialize};

use super::{Cause, Claimed, ClaimsInfo, DeathCertificate};

/// What a worker is doing, everywhere the same words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WorkerState {
    /// Spawned or about to be, not ready yet.
    Initializing,
    /// Ready, beats in time.
    Healthy,
    /// Ready, but beats are missing.
    Unhealthy,
    /// Asked to end, inside its grace.
    Draining,
    /// Ended, waits out its restart delay.
    Restarting,
    /// Stays down until started or reset.
    Crashed,
    /// Ended on request; its cgroup is empty.
    Stopped,
    /// Could not be emptied by the deadline.
    Stuck,
}

impl WorkerState {
    /// All of them, in the order in which they are listed.
    pub const ALL: [Self; 8] = [
        Self::Initializing,
        Self::Healthy,
        Self::Unhealthy,
        Self::Draining,
        Self::Restarting,
        Self::Crashed,
        Self::Stopped,
        Self::Stuck,
    ];

    /// The word for it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Initializing => "initializing",
            Self::Healthy => "healthy",
            Self::Unhealthy => "unhealthy",
            Self::Draining => "draining",
            Self::Restarting => "restarting",
            Self::Crashed => "crashed",
            Self::Stopped => "stopped",
            Self::Stuck => "stuck",
        }
    }
}

impl std::fmt::Display for WorkerState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Whether a worker holds work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Occupancy {
    /// Ready for work.
    Warm,
    /// At work.
    Busy,
    /// Ready or at work, and still until somebody needs it.
    Frozen,
}

impl Occupancy {
    /// The word that it is everywhere.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Warm => "warm",
            Self::Busy => "busy",
            Self::Frozen => "frozen",
        }
    }
}

/// What the daemon is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DaemonState {
    /// The first workers are not all ready yet.
    Starting,
    /// At work.
    Running,
    /// Ends its workers, then itself.
    Stopping,
}

impl std::fmt::Display for DaemonState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Stopping => "stopping",
        })
    }
}

/// Workers by state.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateCounts {
    /// Not ready yet.
    pub initializing: u32,
    /// Ready, beats in time.
    pub healthy: u32,
    /// Ready, beats are missing.
    pub unhealthy: u32,
    /// Inside the grace of their stop.
    pub draining: u32,
    /// Waiting for their restart.
    pub restarting: u32,
    /// Down until started or reset.
    pub crashed: u32,
    /// Ended on request.
    pub stopped: u32,
    /// Could not be emptied.
    pub stuck: u32,
}

impl StateCounts {
    /// Counts one more worker in `state`.
    pub const fn add(&mut self, state: WorkerState) {
        *self.of_mut(state) += 1;
    }

    /// How many are in `state`.
    #[must_use]
    pub const fn of(&self, state: WorkerState) -> u32 {
        match state {
            WorkerState::Initializing => self.initializing,
            WorkerState::Healthy => self.healthy,
            WorkerState::Unhealthy => self.unhealthy,
            WorkerState::Draining => self.draining,
            WorkerState::Restarting => self.restarting,
            WorkerState::Crashed => self.crashed,
            WorkerState::Stopped => self.stopped,
            WorkerState::Stuck => self.stuck,
        }
    }

    /// How many there are.
    #[must_use]
    pub fn total(&self) -> u32 {
        WorkerState::ALL.iter().map(|state| self.of(*state)).sum()
    }

    const fn of_mut(&mut self, state: WorkerState) -> &mut u32 {
        match state {
            WorkerState::Initializing => &mut self.initializing,
            WorkerState::Healthy => &mut self.healthy,
            WorkerState::Unhealthy => &mut self.unhealthy,
            WorkerState::Draining => &mut self.draining,
            WorkerState::Restarting => &mut self.restarting,
            WorkerState::Crashed => &mut self.crashed,
            WorkerState::Stopped => &mut self.stopped,
            WorkerState::Stuck => &mut self.stuck,
        }
    }
}

/// One pool or service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolInfo {
    /// Its name.
    pub name: String,
    /// Whether it is a service.
    pub service: bool,
    /// Never fewer workers than this.
    pub min: u32,
    /// Never more than this.
    pub max: u32,
    /// How many it is to have now.
    pub wanted: u32,
    /// What `/` is inside, as the configuration writes it.
    #[serde(default)]
    pub root: String,
    /// The network, as the configuration writes it.
    #[serde(default)]
    pub net: String,
    /// Of a pool whose workers can be claimed; its sizes are those of the warm ones.
    pub claims: Option<ClaimsInfo>,
    /// Its workers by state.
    pub counts: StateCounts,
    /// How many of the ready ones stand still until somebody needs them.
    #[serde(default)]
    pub frozen: u32,
}

/// The cgroup v2 controllers of the daemon's subtree.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Controllers {
    /// Usable ones.
    pub available: Vec<String>,
    /// Those that halsup would use and the host does not give.
    pub missing: Vec<String>,
}

/// The answer of `Status`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatusReply {
    /// The program's version.
    pub version: String,
    /// [`super::PROTOCOL`] of the daemon.
    pub protocol: u32,
    /// Its pid.
    pub pid: u32,
    /// Which halsup on this host.
    pub instance: String,
    /// What it is doing.
    pub state: DaemonState,
    /// When it started; RFC 3339.
    pub started: String,
    /// How long ago that was.
    pub uptime_seconds: u64,
    /// Where its configuration came from, if from a file.
    pub config_path: Option<String>,
    /// Sockets and work directories.
    pub runtime_dir: String,
    /// State and logs.
    pub state_dir: String,
    /// Its cgroup, relative to the root of the hierarchy.
    pub cgroup: Option<String>,
    /// What can be limited.
    pub controllers: Controllers,
    /// Whether every limit of every pool is held by the kernel.
    pub limits_enforced: bool,
    /// Why not.
    pub limits_reason: Option<String>,
    /// Why the state that outlives the daemon cannot be written, if so: then nothing new is started until it can.
    #[serde(default)]
    pub state_trouble: Option<String>,
    /// The filter of its own log.
    pub log_filter: String,
    /// All workers by state.
    pub counts: StateCounts,
    /// Pools and services in the order of the configuration.
    pub pools: Vec<PoolInfo>,
}

/// One worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerInfo {
    /// `web.3`; for a service its name.
    pub name: String,
    /// The pool or service.
    pub pool: String,
    /// The place in it, from 0.
    pub slot: u32,
    /// What it is doing.
    pub state: WorkerState,
    /// Whether it holds work; `None` while it is not ready.
    pub occupancy: Option<Occupancy>,
    /// Its latest spawn attempt.
    pub generation: Option<u64>,
    /// The host's pid of its main program.
    pub pid: Option<u32>,
    /// The host's pid of its PID 1.
    pub init_pid: Option<u32>,
    /// The host's uid that it runs as.
    pub uid: Option<u32>,
    /// Since when it is in that state; RFC 3339.
    pub since: String,
    /// How long ago that was.
    pub age_seconds: u64,
    /// Restarts over its whole life.
    pub restarts: u64,
    /// Beats missed in a row.
    pub missed_heartbeats: u32,
    /// When its latest generation last beat, or answered a check of its health or readiness; RFC 3339. `None`: not yet, or not
    /// to this daemon.
    #[serde(default)]
    pub last_health: Option<String>,
    /// When it is started again, in milliseconds from now, while it waits for that.
    pub restart_in_ms: Option<u64>,
    /// The port that it was told.
    pub port: Option<u16>,
    /// Its cgroup, relative to the root of the hierarchy.
    pub cgroup: Option<String>,
    /// Its work directory on the host.
    pub work_dir: Option<String>,
    /// What it says of itself by `STATUS=`; not escaped for a terminal.
    pub status_text: Option<String>,
    /// Why its last generation ended.
    pub last_exit: Option<Cause>,
    /// Whether all its limits are held by the kernel.
    pub limits_enforced: bool,
    /// Why not.
    pub limits_reason: Option<String>,
    /// Who has it and for what, if it is claimed.
    pub session: Option<Claimed>,
}

/// One resource limit of a worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LimitInfo {
    /// The kernel's name for it, such as `memory.max`.
    pub name: String,
    /// The value, as the kernel writes it.
    pub value: String,
    /// Whether an operator wrote it down.
    pub asked: bool,
    /// Whether the kernel holds it.
    pub enforced: bool,
    /// Why not.
    pub reason: Option<String>,
}

/// All that is known of one worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inspection {
    /// As in a list.
    pub worker: WorkerInfo,
    /// Program and arguments.
    pub command: Vec<String>,
    /// `dynamic`, `mapped`, `host:NAME`, `unsafe-root`.
    pub identity: String,
    /// `host` or a directory.
    pub root: String,
    /// `parent`, `own` or a path.
    pub net: String,
    /// How it becomes ready, as in the configuration.
    pub ready: String,
    /// Where its heartbeats come from, with their interval; `None` without heartbeats.
    pub heartbeat: Option<String>,
    /// Its limits.
    pub limits: Vec<LimitInfo>,
    /// Sockets that it is handed.
    pub listen: Vec<String>,
    /// File of its standard output.
    pub stdout_path: Option<String>,
    /// File of its standard error.
    pub stderr_path: Option<String>,
    /// Its latest certificates, newest first.
    pub certificates: Vec<DeathCertificate>,
}
