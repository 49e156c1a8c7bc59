//! What one pool or service is, whole: the engine's policy, and all that `host` needs to make a worker.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::{GatewaySpec, ImageName, InstanceName, PoolName, PoolPolicy, Ports, TasksSpec, VolumeName};

/// A whole configuration, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The daemon's own settings.
    pub daemon: DaemonSpec,
    /// The gateway, if there is to be one; its service is among the pools.
    pub gateway: Option<GatewaySpec>,
    /// Pools and services in the order of the file; no two with one name.
    pub pools: Vec<PoolSpec>,
    /// What runs for prompts, if anything does.
    pub tasks: Option<TasksSpec>,
}

/// The daemon's own settings, `[daemon]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DaemonSpec {
    /// Which halsup on this host.
    pub instance: InstanceName,
    /// Sockets and work directories; default `/run/halsup`, for another instance `/run/halsup-NAME`.
    pub runtime_dir: PathBuf,
    /// State and logs; default `/var/lib/halsup`, for another instance `/var/lib/halsup-NAME`.
    pub state_dir: PathBuf,
    /// Where `sessions` and `pool` are, the files that tell who has which worker; default: the state directory.
    pub home: PathBuf,
    /// The delegated cgroup that workers' cgroups are made in: absolute in the hierarchy, or beside the daemon's own cgroup.
    /// Default: where the daemon finds itself.
    pub cgroup: Option<PathBuf>,
    /// What a limit that cannot be enforced means.
    pub limits: LimitsMode,
    /// Filter for the daemon's log, such as `info` or `info,heartbeat=debug`.
    pub log_level: String,
    /// How the daemon's log is written.
    pub log_format: LogFormat,
    /// First of the uids given to workers with a `dynamic` identity; default 1,879,048,192.
    pub uid_base: u32,
    /// Who may do what over the control socket, beside root and the daemon's own uid, which may do all.
    pub roles: Vec<RoleGrant>,
    /// One deadline for stopping everything at shutdown.
    pub shutdown_timeout: Duration,
    /// Images that may be roots; empty is all.
    pub image_allow: Vec<ImageName>,
    /// How long reading the archive of one may take.
    pub image_import_timeout: Duration,
    /// What is done at the start about images that pools name and that are not there.
    pub image_pull: ImagePull,
}

/// What is done at a daemon's start about images that are missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImagePull {
    /// They are pulled before the daemon is ready.
    First,
    /// They are pulled in the background.
    Lazily,
    /// Nothing.
    Never,
}

impl DaemonSpec {
    /// Whether an image may be a root.
    ///
    /// # Errors
    /// It is not in the list; the sentence has the list.
    pub fn check_image(&self, image: &ImageName) -> Result<(), String> {
        if self.image_allow.is_empty() || self.image_allow.contains(image) {
            return Ok(());
        }
        let allowed: Vec<&str> = self.image_allow.iter().map(ImageName::as_str).collect();
        let allowed = allowed.join(", ");
        Err(format!("Security violation: image '{image}' not in allowlist; `image_allow` has {allowed}"))
    }
}

/// Whether defaults that cannot be enforced are errors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LimitsMode {
    /// Limits that were written down are enforced or refused; defaults degrade visibly.
    Auto,
    /// Every limit is enforced or the spawn is refused.
    Require,
}

/// How the daemon's log is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// Lines for people.
    Text,
    /// One JSON object a line.
    Json,
}

/// What a caller of the control socket may do; each includes those before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Read status, lists, logs and events.
    Observe,
    /// Also start, stop, restart, kill, scale, reset.
    Operate,
    /// Also reload, shut down, change the daemon itself.
    Admin,
}

/// Who a grant is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Grantee {
    /// One user.
    Uid(u32),
    /// The members of a group, by the caller's effective gid.
    Gid(u32),
}

/// One line of `daemon.roles`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RoleGrant {
    /// Who.
    pub grantee: Grantee,
    /// What they may do.
    pub role: Role,
    /// Only on this pool; `None` is everywhere.
    pub pool: Option<PoolName>,
}

/// One pool, `[pool.NAME]`, or service, `[service.NAME]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolSpec {
    /// Its name.
    pub name: PoolName,
    /// A service is a supervised singleton beside the pools: size 1, no slot in its worker's name.
    pub service: bool,
    /// Program and arguments, at least the program. `{port}`, `{slot}`, `{worker}`, `{instance}` and `{dir}` are replaced in each worker.
    pub command: Vec<String>,
    /// What the engine decides by.
    pub policy: PoolPolicy,
    /// Whether the program has a terminal, instead of pipes for its output.
    pub terminal: bool,
    /// Environment, from empty, beside what halsup sets. Same replacements as `command`.
    pub env: BTreeMap<String, String>,
    /// Worker N is told port `base_port + N`.
    pub base_port: Option<u16>,
    /// Each living worker is told ports of its own out of these. Not with `base_port`.
    pub ports: Option<Ports>,
    /// What `/` is inside.
    pub root: Root,
    /// Which network it is in.
    pub net: Net,
    /// Who it runs as.
    pub identity: Identity,
    /// Files to appear in each worker's directory: absolute paths or glob patterns.
    pub link: Vec<String>,
    /// Host directories that appear inside at the same or another path.
    pub binds: Vec<Bind>,
    /// Named volumes that appear inside, at most [`VOLUMES_MAX`].
    pub volumes: Vec<VolumeMount>,
    /// Resource limits.
    pub limits: Limits,
    /// RLIMIT_* by lower-case name without the prefix (`nofile`), soft = hard.
    pub rlimits: BTreeMap<String, u64>,
    /// System call filter.
    pub seccomp: Seccomp,
    /// How it becomes ready.
    pub ready: Ready,
    /// How its heartbeats are asked for, where `policy.heartbeat.source` is `Probe`.
    pub heartbeat_probe: Option<Probe>,
    /// Sockets bound by the daemon and handed in as `LISTEN_FDS`, once per pool: they survive every restart.
    pub listen: Vec<Listen>,
    /// Its log files.
    pub log: LogSpec,
    /// Where directories must lie that a claim brings into a worker.
    pub projects: Vec<PathBuf>,
    /// Workers are told to answer in memory that is passed on where a result is longer than this, in bytes.
    pub zero_copy_bytes: u64,
    /// Whether its workers serve HTTP on their port, and how they are reached.
    pub serve: Option<ServeHttp>,
    /// What becomes of workers when the daemon dies.
    pub on_supervisor_death: OnSupervisorDeath,
}

/// How workers that serve HTTP are reached through the gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServeHttp {
    /// Whether everybody may send them requests, with a token or without.
    pub open: bool,
    /// The longest body of a request, in bytes.
    pub request_bytes_max: u64,
    /// The longest body of an answer, in bytes.
    pub answer_bytes_max: Option<u64>,
    /// How long a connection may last that has changed its protocol; `None` lets none change it.
    pub upgrade_max: Option<Duration>,
    /// Such a connection is over after this long without a byte, either way.
    pub upgrade_idle: Duration,
}

/// For who has a token; 64 MiB there, anything back; an hour for a connection that has changed its protocol.
impl Default for ServeHttp {
    fn default() -> Self {
        Self {
            open: false,
            request_bytes_max: 64 << 20,
            answer_bytes_max: None,
            upgrade_max: Some(Duration::from_secs(3_600)),
            upgrade_idle: Duration::from_secs(60),
        }
    }
}

/// What `/` is inside a worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Root {
    /// A read-only view of the host with private `/tmp`, `/dev`, `/proc`, `/run`.
    Host,
    /// Nothing but what is bound, read-only, with the same private places.
    Empty,
    /// A writable overlay on this directory.
    Directory(PathBuf),
    /// A writable overlay on the files of an imported image.
    Image(ImageName),
}

impl Root {
    /// Whether each worker has a writable layer of its own on it.
    #[must_use]
    pub const fn has_overlay(&self) -> bool {
        match self {
            Self::Host | Self::Empty => false,
            Self::Directory(_) | Self::Image(_) => true,
        }
    }
}

/// As the configuration writes it.
impl fmt::Display for Root {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host => f.write_str("host"),
            Self::Empty => f.write_str("empty"),
            Self::Directory(path) => path.display().fmt(f),
            Self::Image(name) => write!(f, "image:{name}"),
        }
    }
}

/// As the configuration writes it.
impl fmt::Display for Net {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Parent => f.write_str("parent"),
            Self::Own => f.write_str("own"),
            Self::Path(path) => path.display().fmt(f),
        }
    }
}

/// Which network namespace a worker is in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Net {
    /// The daemon's.
    Parent,
    /// A new one with nothing but loopback.
    Own,
    /// The one at this path, such as `/run/netns/blue`.
    Path(PathBuf),
}

/// Who a worker runs as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Identity {
    /// An unprivileged uid and gid of its own, used by nothing else.
    Dynamic,
    /// Root inside, in a user namespace over 65,536 uids of its own.
    Mapped,
    /// This user of the host, by name or number.
    Host(String),
    /// The host's root, without capabilities.
    UnsafeRoot,
}

/// A host directory or file inside a worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bind {
    /// Absolute path on the host.
    pub source: PathBuf,
    /// Absolute path inside.
    pub target: PathBuf,
    /// Whether it can be written inside.
    pub writable: bool,
}

/// How many volumes a pool may have.
pub const VOLUMES_MAX: usize = 8;

/// A named volume inside a worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeMount {
    /// Which.
    pub name: VolumeName,
    /// Absolute path inside; made where it is missing.
    pub target: PathBuf,
    /// Whether it can be written inside.
    pub writable: bool,
}

/// A limit and whether an operator wrote it down (then it is enforced or the spawn refused) or it is a default.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit<T> {
    /// The value.
    pub value: T,
    /// Whether it was written down.
    pub asked: bool,
}

/// Resource limits of one worker; `None` is no limit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// `memory.max`, in bytes.
    pub memory_bytes: Option<Limit<u64>>,
    /// `memory.high`, in bytes.
    pub memory_high_bytes: Option<Limit<u64>>,
    /// `memory.swap.max`, in bytes.
    pub swap_bytes: Option<Limit<u64>>,
    /// `memory.oom.group`: an out-of-memory kill takes the whole worker.
    pub oom_group: bool,
    /// `cpu.max`, in thousandths of a processor.
    pub cpu_millis: Option<Limit<u64>>,
    /// `cpu.weight`, 1..=10,000.
    pub cpu_weight: Option<Limit<u64>>,
    /// `pids.max`.
    pub pids: Option<Limit<u64>>,
    /// `cpuset.cpus`, such as `0-1,4`.
    pub cpuset: Option<Limit<Cpuset>>,
}

/// A set of processors as the kernel writes it; at most 64 ranges, checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cpuset {
    /// Bit N is processor N; 0..=1023.
    pub bits: [u64; 16],
}

/// Which system calls a worker may make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seccomp {
    /// The built-in allow-list.
    Default,
    /// The gateway's: it serves and does nothing else. No word of the configuration gives it.
    Gateway,
    /// A profile in Docker's JSON format, by path.
    Profile(PathBuf),
    /// No filter. Only by that word.
    Unconfined,
}

/// How a worker becomes ready.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ready {
    /// As soon as its program runs.
    Exec,
    /// `READY=1` by sd_notify.
    Notify,
    /// A `ready` frame on the channel.
    Channel,
    /// A probe succeeds.
    Probe(Probe),
    /// This file, relative to the worker's directory, exists.
    File(PathBuf),
    /// The same, and what it says is the port on which the worker listens.
    PortFile(PathBuf),
}

/// Something to ask a worker from outside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Probe {
    /// `GET path` on its port answers 2xx.
    Http {
        /// Path with leading `/`.
        path: String,
    },
    /// Its port accepts a connection.
    Tcp,
    /// Its port speaks HTTP/2, as every gRPC server's does.
    Grpc,
}

/// A socket that the daemon binds for a pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Listen {
    /// A TCP listener.
    Tcp(SocketAddr),
    /// A unix stream listener at this path.
    Unix(PathBuf),
}

/// A worker's log files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogSpec {
    /// A file is rotated when it would grow beyond this, in bytes.
    pub max_bytes: u64,
    /// How many rotated files are kept, 0..=100.
    pub keep: u32,
    /// As JSON lines instead of plain ones.
    pub json: bool,
}

/// What becomes of a worker when the daemon dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnSupervisorDeath {
    /// It ends after this long, at once if zero, unless a daemon has come back.
    EndAfter(Duration),
    /// It goes on.
    Forever,
}
