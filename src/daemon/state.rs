//! All that the daemon holds, in one place; the other files of this room are what it does with it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::RunOptions;
use super::audit::Audit;
use super::control::Control;
use super::events::EventLog;
use super::fd_store::FdStore;
use super::foresight::Foresight;
use super::freezer::Freezer;
use super::holds::Holds;
use super::images::Images;
use super::jobs::Jobs;
use super::kept::Kept;
use super::limit_watch::LimitWatch;
use super::live::{Evidence, Live, Watched};
use super::log::LogHandle;
use super::manager::Manager;
use super::own_files::OwnFiles;
use super::persist::Persist;
use super::pool::Pool;
use super::probe::Probes;
use super::pulls::Pulls;
use super::ready_file::ReadyFiles;
use super::requests::Requests;
use super::session::Sessions;
use super::session_files::SessionFiles;
use super::signals::Signals;
use super::sources::Sources;
use super::tasks::Tasks;
use super::telemetry::Telemetry;
use super::terminal::Terminals;
use super::timers::Timers;
use super::tokens::Tokens;
use super::upgrade::{Handover, Upgrade};
use super::watchdog::Watchdog;
use crate::engine::{Engine, Input, Time};
use crate::host::cgroup::{CgroupRoot, WorkerCgroup};
use crate::host::identity::IdPool;
use crate::host::late_binding::Home;
use crate::host::ledger::Ledger;
use crate::host::logfile::LogFile;
use crate::host::spawn::Stack;
use crate::host::volume::Store;
use crate::protocol::control::{Cause, DaemonState, DeathCertificate, StartFailure};
use crate::spec::{DaemonSpec, GatewaySpec, Generation, PoolId, PoolName, WorkerId};

/// Directories and descriptors that all workers share.
#[derive(Debug)]
pub(super) struct Shared {
    /// The init's program.
    pub(super) init: Rc<OwnedFd>,
    /// `<runtime_dir>/work`, mode 0700.
    pub(super) work_dirs: OwnedFd,
    /// `<runtime_dir>/notify`, mode 0700: a directory for each worker that has a notify socket.
    pub(super) notify_dirs: OwnedFd,
    /// `<state_dir>/overlay`, mode 0700: upper layers of workers whose root is a directory.
    pub(super) overlay_dirs: OwnedFd,
    /// `<state_dir>/volumes`.
    pub(super) volumes: Store,
    /// `<state_dir>/logs/workers`.
    pub(super) log_dir: OwnedFd,
    /// `<state_dir>/tasks`, mode 0700: what tasks have written.
    pub(super) task_dir: OwnedFd,
    /// A `/dev/null` of the workers' own, read-write.
    pub(super) null: OwnedFd,
    /// Private uids: number N is `uid_base + N`.
    pub(super) ids: IdPool,
    /// Ranges for user namespaces.
    pub(super) ranges: IdPool,
    /// Stacks of earlier births.
    pub(super) stacks: Vec<Stack>,
    /// Where inits write down how their workers ended.
    pub(super) ledger: Ledger,
    /// Where this process comes back to from a worker.
    pub(super) home: Home,
    /// This process's own pidfd, for inits to watch.
    pub(super) daemon: OwnedFd,
    /// Of the state and the runtime directory, held for as long as the daemon lives; their release is the kernel's.
    pub(super) locks: [OwnedFd; 2],
}

/// Where a tree is that an ended worker leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Place {
    /// `Shared::work_dirs`.
    Work,
    /// `Shared::notify_dirs`.
    Notify,
    /// `Shared::overlay_dirs`.
    Overlay,
    /// What is unfinished or unwanted in the store of images.
    Image,
}

/// Something that is free for another worker once nothing is left that belongs to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Freed {
    /// A number of `Shared::ids`.
    Id(u32),
    /// A number of `Shared::ranges`.
    Range(u32),
}

/// What an ended worker leaves: trees that are removed piece by piece, a budget a turn, and then its identity and its place
/// in the exit ledger.
#[derive(Debug, Default)]
pub(super) struct Chore {
    /// Whose it was, for a spawn that was given up and will be tried again with the same names.
    pub(super) of: Option<(WorkerId, Generation)>,
    /// The cgroup of such a spawn, in which nothing ever was.
    pub(super) cgroup: Option<WorkerCgroup>,
    /// How often the host had no room to remove it.
    pub(super) tries: u32,
    pub(super) trees: Vec<(Place, String)>,
    /// Digest of the image that was its root, which stays until the worker is gone.
    pub(super) image: Option<String>,
    pub(super) frees: Option<Freed>,
    pub(super) ledger_at: Option<u64>,
}

/// The daemon.
#[derive(Debug)]
pub(super) struct Daemon {
    pub(super) spec: DaemonSpec,
    pub(super) options: RunOptions,
    pub(super) engine: Engine,
    /// The clock, read once a turn.
    pub(super) now: Time,
    pub(super) started: Time,
    pub(super) started_wall: SystemTime,
    pub(super) state: DaemonState,
    pub(super) cgroups: Option<CgroupRoot>,
    pub(super) shared: Shared,
    pub(super) pools: BTreeMap<PoolId, Pool>,
    pub(super) names: BTreeMap<PoolName, PoolId>,
    pub(super) next_pool: u32,
    /// Pools that are wanted no more and still have workers.
    pub(super) leaving: BTreeSet<PoolId>,
    pub(super) live: BTreeMap<WorkerId, Live>,
    /// Spawns that the host had no room for and that are tried again, with what was in the way.
    pub(super) postponed: BTreeMap<WorkerId, (Generation, StartFailure)>,
    /// What is known of ended generations that have no certificate yet.
    pub(super) evidence: BTreeMap<(WorkerId, Generation), Evidence>,
    /// Who asked last for something to happen to a worker.
    pub(super) asked_by: BTreeMap<WorkerId, String>,
    pub(super) last_exit: BTreeMap<WorkerId, Cause>,
    /// The watch on the daemon's own files.
    pub(super) own_files: OwnFiles,
    /// What outlives this process.
    pub(super) persist: Persist,
    /// Certificates that are written down and not told yet.
    pub(super) written: BTreeMap<(WorkerId, Generation), DeathCertificate>,
    /// Who has which worker.
    pub(super) sessions: Sessions,
    /// Tokens of people who come by HTTP.
    pub(super) tokens: Tokens,
    /// Where the gateway connects, while there is to be one.
    pub(super) gateway: Option<Watched>,
    /// What it is to be.
    pub(super) gateway_spec: Option<GatewaySpec>,
    /// Where the gateway is drained, the pools that are paused for that: it is kept for the next one.
    pub(super) drained: Option<Vec<String>>,
    /// Sessions that have ended and are kept, by name.
    pub(super) kept: BTreeMap<String, Kept>,
    /// What tells scripts of that.
    pub(super) session_files: SessionFiles,
    /// Latest certificates, bounded, oldest first.
    pub(super) certificates: VecDeque<DeathCertificate>,
    /// The logs of live generations.
    pub(super) logs: BTreeMap<WorkerId, LogFile>,
    /// The terminals of workers.
    pub(super) terminals: Terminals,
    pub(super) sources: Sources,
    pub(super) timers: Timers,
    pub(super) probes: Probes,
    pub(super) ready_files: ReadyFiles,
    pub(super) limit_watch: LimitWatch,
    /// Facts for the engine, handed over once a turn.
    pub(super) inputs: Vec<Input>,
    pub(super) chores: VecDeque<Chore>,
    /// What there is for the next claims.
    pub(super) foresight: Foresight,
    /// Those that the host had no room for a moment ago.
    pub(super) late_chores: VecDeque<Chore>,
    pub(super) images: Images,
    /// Requests under way.
    pub(super) requests: Requests,
    pub(super) tasks: Tasks,
    pub(super) pulls: Pulls,
    pub(super) events: EventLog,
    pub(super) telemetry: Telemetry,
    pub(super) control: Control,
    pub(super) log: LogHandle,
    /// The text of the configuration in force, for `GetConfig`; empty if there is no file.
    pub(super) config_text: String,
    pub(super) config_path: Option<PathBuf>,
    pub(super) signals: Signals,
    /// The service manager that started the daemon, if one did.
    pub(super) manager: Manager,
    /// What it keeps for the next daemon.
    pub(super) fd_store: FdStore,
    pub(super) watchdog: Watchdog,
    /// Who did what.
    pub(super) audit: Audit,
    /// Workers that stand still for somebody.
    pub(super) holds: Holds,
    /// Workers that stand still while nobody needs them.
    pub(super) freezer: Freezer,
    /// Helpers under way.
    pub(super) jobs: Jobs,
    /// When the holder of a port was last searched for.
    pub(super) holder_search: Option<Time>,
    /// Whether orphans are given to this process.
    pub(super) reaps: bool,
    /// Whether there may be children of the program that this process was before: workers that ended while it became this one.
    pub(super) strays: bool,
    /// The lock of the cgroup.
    pub(super) cgroup_lock: Option<OwnedFd>,
    /// An upgrade under way.
    pub(super) upgrade: Option<Upgrade>,
    /// What the program before this one has handed over, until the first turn is over.
    pub(super) handover: Option<Handover>,
    /// Who waits to hear how that went.
    pub(super) asked_for_upgrade: Option<(u32, u64)>,
    /// Whether the loop is to end: the engine has finished.
    pub(super) finished: bool,
    /// Whether the workers are to go on without this daemon.
    pub(super) leaves: bool,
}

impl Daemon {
    /// The name that people use: `web.3`, or a service's own.
    pub(super) fn worker_name(&self, worker: WorkerId) -> String {
        match self.pools.get(&worker.pool) {
            Some(pool) => pool.worker_name(worker.slot),
            // Only a pool that was just forgotten has workers without it.
            None => format!("?.{}", worker.slot),
        }
    }

    /// The live generation `generation` of a worker; anything else is late news.
    pub(super) fn live_mut(&mut self, worker: WorkerId, generation: Generation) -> Option<&mut Live> {
        self.live.get_mut(&worker).filter(|live| live.generation == generation)
    }
}
