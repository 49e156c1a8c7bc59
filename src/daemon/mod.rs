//! Who drives: one `mio` loop that turns readiness into inputs of the engine, and its effects into system calls.
//!
//! [`run`] is all that the command line knows of it. The order in which the files are best read: `launch` (from nothing to
//! the first turn), `event_loop` (one turn), `birth`, `reports`, `exit` (a worker's life), `perform` (effects), `control`
//! (what others ask).

mod adopt;
mod audit;
mod bind;
mod birth;
mod chores;
mod clock;
mod control;
mod doctor;
mod ends;
mod environment;
mod event_loop;
mod events;
mod exit;
mod fd_store;
mod foresight;
mod freezer;
mod gateway;
mod hold;
mod holds;
mod images;
mod jobs;
mod kept;
mod launch;
mod limit_watch;
mod live;
mod log;
mod log_sink;
mod manager;
mod message;
mod own_files;
mod passed;
pub mod past;
mod perform;
mod persist;
mod pool;
mod probe;
mod probe_socket;
mod pulls;
mod ready_file;
mod recover;
pub mod recovery;
mod reload;
mod reports;
mod requests;
mod session;
mod session_files;
mod signals;
mod sources;
mod state;
mod tasks;
mod telemetry;
mod terminal;
mod timers;
mod tokens;
mod upgrade;
mod volumes;
mod watchdog;

use std::io;
use std::path::PathBuf;

pub use chores::help;
pub use control::ControlError;
pub use log::LogError;
pub use pool::PoolError;
pub use upgrade::Handover;

use crate::host::cgroup::CgroupError;
use crate::host::container;
use crate::host::image_store::StoreError;
use crate::host::init_image::ImageError;
use crate::host::ledger::LedgerError;
use crate::host::logfile::LogFileError;
use crate::host::mounts::MountError;
use crate::host::state_file::StateFileError;
use crate::host::volume::VolumeError;
use crate::protocol::control::{Check, StatusReply, WorkerInfo};
use crate::spec::{Config, PoolName};

/// What the command line decides about a daemon beside its configuration.
#[derive(Debug, Default)]
pub struct RunOptions {
    /// Where the configuration was read from, for `Reload` and `Status`; `None` came from the command line.
    pub config_path: Option<PathBuf>,
    /// The configuration where there is no file yet.
    pub without_file: Option<&'static str>,
    /// Called once, when every first worker is ready or cannot be.
    pub when_ready: Option<fn(&StatusReply, &[WorkerInfo])>,
    /// What another build of this program has handed over, which this process was before.
    pub handover: Option<Handover>,
}

/// Why a daemon could not start or go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Not root.
    #[error("the daemon has to run as root: namespaces, cgroups and identities of workers need it (try sudo)")]
    NotRoot,
    /// In a container that may not do what workers are made with.
    #[error("{missing} in this container: {}", container::FIX)]
    Container {
        /// What it was not given.
        missing: container::Missing,
    },
    /// Another daemon has the state directory.
    #[error("another halsup daemon{} runs with directory {path}", .pid.map(|p| format!(" (pid {p})")).unwrap_or_default())]
    Running {
        /// The state directory.
        path: String,
        /// The other daemon, if it could be read.
        pid: Option<u32>,
    },
    /// Another daemon writes its sessions to the same place.
    #[error(
        "another halsup daemon writes its sessions into {path}: give this one another place by `home` or HAL9000_HOME"
    )]
    SameHome {
        /// The place.
        path: String,
    },
    /// Another daemon of the same instance, with other directories.
    #[error(
        "another halsup daemon of instance {instance:?} runs on this host: give this one another name by `instance`"
    )]
    SameInstance {
        /// The instance.
        instance: String,
    },
    /// A directory of the daemon.
    #[error("{operation} {path}")]
    Directory {
        /// What was being done.
        operation: &'static str,
        /// To what.
        path: String,
        /// The kernel's reason.
        source: io::Error,
    },
    /// A directory of the daemon could be changed by others.
    #[error(
        "use {path}: it has to belong to root and be writable by nobody else (or have the sticky bit, above halsup's own)"
    )]
    NotOurs {
        /// The directory.
        path: String,
    },
    /// Cgroups.
    #[error("prepare cgroups")]
    Cgroup(#[from] CgroupError),
    /// Processes of an earlier daemon that do not end.
    #[error(
        "end what an earlier daemon left in cgroup {cgroup}: {processes} processes are still there after {seconds} s"
    )]
    Leftover {
        /// Where they are.
        cgroup: String,
        /// How many.
        processes: usize,
        /// How long it was waited.
        seconds: u64,
    },
    /// Where inits write down how their workers ended.
    #[error("prepare the exit ledger")]
    Ledger(#[from] LedgerError),
    /// The images.
    #[error("prepare the store of images")]
    Images(#[from] StoreError),
    /// What outlives the daemon.
    #[error("read the state of an earlier daemon")]
    State(#[from] StateFileError),
    /// Volumes.
    #[error("open volumes")]
    Volumes(#[from] VolumeError),
    /// What all workers have of `/dev`.
    #[error("make a /dev/null for workers")]
    Null(#[from] MountError),
    /// The init's program.
    #[error("prepare the workers' init")]
    Init(#[from] ImageError),
    /// The audit log.
    #[error("begin the audit log")]
    Audit(#[from] LogFileError),
    /// The log.
    #[error("begin the log")]
    Log(#[from] LogError),
    /// The control socket.
    #[error("open the control socket")]
    Control(#[from] ControlError),
    /// A pool.
    #[error("prepare pool {name}")]
    Pool {
        /// Which.
        name: PoolName,
        /// Why.
        source: PoolError,
    },
    /// A step of the start that has no file of its own.
    #[error("{operation}")]
    Start {
        /// What was being done.
        operation: &'static str,
        /// The kernel's reason.
        source: io::Error,
    },
    /// The loop could not wait for events.
    #[error("wait for events")]
    Poll {
        /// The kernel's reason.
        source: io::Error,
    },
    /// At the end something could not be ended.
    #[error("{count} workers could not be ended: {names}")]
    Stuck {
        /// How many.
        count: usize,
        /// Which.
        names: String,
    },
}

/// Runs the daemon until it is shut down.
///
/// # Errors
/// [`Error`]: what kept it from starting, or what it could not end.
pub fn run(config: Config, options: RunOptions) -> Result<(), Error> {
    let ran = launch::run(config, options);
    if let Err(error) = &ran {
        // As long as the program before this one can be gone back to, that is better than to end.
        Handover::fall_back(&birth::chain(error));
    }
    ran
}

/// Holds the cgroup that systemd delegated to this process's unit for the workers of daemons in another unit, until it is
/// killed.
///
/// # Errors
/// [`Error::Cgroup`]: it was not delegated, or cannot be prepared.
pub fn hold_cgroup() -> Result<(), Error> {
    hold::hold()
}

/// What the host has of what halsup needs, and what can be seen of a daemon that does not run.
#[must_use]
pub fn doctor(config: &Config) -> Vec<Check> {
    doctor::without_daemon(config)
}
