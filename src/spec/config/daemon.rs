//! `[daemon]`: its keys, its variables, what it is when nothing is written.
//!
//! Owns the precedence here: environment over file over default, as in the systems that operators come from.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use super::error::{Fault, Faults, Place};
use super::keys::{Bounds, Key, apply, walk};
use super::node::Node;
use super::paths::{PATH_BYTES_MAX, absolute};
use crate::spec::account::ACCOUNT_ID_MAX;
use crate::spec::{
    DaemonSpec, Grantee, IMAGE_NAME_BYTES_MAX, ImageName, ImagePull, InstanceName, LimitsMode, LogFormat, PoolName,
    Role, RoleGrant,
};

/// The first uid for workers: above all that distributions, containers and systemd hand out.
const UID_BASE: u32 = 1_879_048_192;
/// The longest directory of the daemon's: the path of a unix socket in it has at most 107 bytes.
const DIRECTORY_BYTES_MAX: usize = 80;

/// The daemon's settings while they are read.
#[derive(Debug, Default)]
pub(super) struct DaemonDraft {
    instance: Option<InstanceName>,
    runtime_dir: Option<PathBuf>,
    state_dir: Option<PathBuf>,
    home: Option<PathBuf>,
    cgroup: Option<PathBuf>,
    limits: Option<LimitsMode>,
    log_level: Option<String>,
    log_format: Option<LogFormat>,
    uid_base: Option<u32>,
    shutdown_timeout: Option<Duration>,
    roles: Vec<RoleGrant>,
    image_allow: Vec<ImageName>,
    image_import_timeout: Option<Duration>,
    skip_image_pull: Option<bool>,
    lazy_image_pull: Option<bool>,
    /// Pools that roles are limited to, to be looked for once all pools are known.
    pub(super) role_pools: Vec<(PoolName, Place)>,
}

impl DaemonDraft {
    /// Lets the variables of the environment override what the file said. An empty variable says nothing.
    pub(super) fn override_by(&mut self, environment: &BTreeMap<String, String>) -> Faults {
        let mut faults = Faults::default();
        for key in KEYS.iter().filter(|key| !key.variable.is_empty()) {
            if let Some(text) = environment.get(key.variable).filter(|text| !text.is_empty()) {
                faults.note(apply(KEYS, self, key.name, text, Place::outside(key.variable)));
            }
        }
        faults
    }

    /// What is logged, where nobody has said it here.
    pub(super) fn log_level_unless_said(&mut self, filter: String) {
        self.log_level.get_or_insert(filter);
    }

    /// Fills in the defaults.
    pub(super) fn finish(self) -> DaemonSpec {
        let instance = self.instance.unwrap_or_default();
        let directory = |parent: &str| {
            let default = InstanceName::default();
            let suffix = if instance == default { String::new() } else { format!("-{instance}") };
            PathBuf::from(format!("{parent}/halsup{suffix}"))
        };
        let state_dir = self.state_dir.unwrap_or_else(|| directory("/var/lib"));
        DaemonSpec {
            runtime_dir: self.runtime_dir.unwrap_or_else(|| directory("/run")),
            home: self.home.unwrap_or_else(|| state_dir.clone()),
            state_dir,
            cgroup: self.cgroup,
            limits: self.limits.unwrap_or(LimitsMode::Auto),
            log_level: self.log_level.unwrap_or_else(|| "info".to_owned()),
            log_format: self.log_format.unwrap_or(LogFormat::Text),
            uid_base: self.uid_base.unwrap_or(UID_BASE),
            roles: self.roles,
            shutdown_timeout: self.shutdown_timeout.unwrap_or(Duration::from_secs(30)),
            image_allow: self.image_allow,
            image_import_timeout: self.image_import_timeout.unwrap_or(Duration::from_secs(3_600)),
            image_pull: match (self.skip_image_pull, self.lazy_image_pull) {
                (Some(true), _) => ImagePull::Never,
                (_, Some(true)) => ImagePull::Lazily,
                (_, _) => ImagePull::First,
            },
            instance,
        }
    }
}

/// The keys of `[daemon]`.
pub(super) const KEYS: &[Key<DaemonDraft>] = &[
    Key {
        name: "instance",
        aliases: &[],
        variable: "HALSUP_INSTANCE",
        kind: "name",
        default: "\"default\"",
        bounds: Bounds::Prose("1 to 63 of a-z, 0-9 and -"),
        what: "Which halsup on this host. Instances never touch each other.",
        set: |daemon, node| {
            let name = InstanceName::parse(node.text()?).map_err(|error| node.fault(error.expected))?;
            daemon.instance = Some(name);
            Ok(())
        },
    },
    Key {
        name: "runtime_dir",
        aliases: &[],
        variable: "HALSUP_RUNTIME_DIR",
        kind: "path",
        default: "\"/run/halsup\"",
        bounds: Bounds::Length(DIRECTORY_BYTES_MAX),
        what: "Sockets and work directories. `/run/halsup-NAME` for another instance.",
        set: |daemon, node| {
            daemon.runtime_dir = Some(absolute(node)?);
            Ok(())
        },
    },
    Key {
        name: "state_dir",
        aliases: &[],
        variable: "HALSUP_STATE_DIR",
        kind: "path",
        default: "\"/var/lib/halsup\"",
        bounds: Bounds::Length(DIRECTORY_BYTES_MAX),
        what: "State and logs. `/var/lib/halsup-NAME` for another instance.",
        set: |daemon, node| {
            daemon.state_dir = Some(absolute(node)?);
            Ok(())
        },
    },
    Key {
        name: "home",
        aliases: &[],
        variable: "HAL9000_HOME",
        kind: "path",
        default: "",
        bounds: Bounds::Length(DIRECTORY_BYTES_MAX),
        what: "Where `sessions/NAME.json`, `pool/workers/NAME.json` and `pool/pool-manager.pid` are written, which tell who has which worker and are never read. The state directory if it is left out.",
        set: |daemon, node| {
            daemon.home = Some(absolute(node)?);
            Ok(())
        },
    },
    Key {
        name: "cgroup",
        aliases: &[],
        variable: "HALSUP_CGROUP",
        kind: "path",
        default: "",
        bounds: Bounds::Length(PATH_BYTES_MAX),
        what: "Delegated cgroup in which those of workers are made, such as `/system.slice/halsup-workers.service`; a name without a `/` in front is looked for beside the daemon's own cgroup. If it is left out, workers live where the daemon does: below its unit, its container's root, or `/halsup`.",
        set: |daemon, node| {
            daemon.cgroup = Some(cgroup(node)?);
            Ok(())
        },
    },
    Key {
        name: "limits",
        aliases: &[],
        variable: "HALSUP_LIMITS",
        kind: "word",
        default: "\"auto\"",
        bounds: Bounds::Prose("auto, require"),
        what: "What a limit means that this host cannot enforce. `auto`: one that was written down refuses the start, a default is left out and the status says so. `require`: every one refuses the start.",
        set: |daemon, node| {
            daemon.limits = Some(node.word(&[("auto", LimitsMode::Auto), ("require", LimitsMode::Require)])?);
            Ok(())
        },
    },
    Key {
        name: "log_level",
        aliases: &[],
        variable: "HALSUP_LOG_LEVEL",
        kind: "filter",
        default: "\"info\"",
        bounds: Bounds::Length(256),
        what: "What the daemon logs: `off`, `error`, `warn`, `info`, `debug` or `trace`, for all or by category, such as `info,heartbeat=debug`.",
        set: |daemon, node| {
            daemon.log_level = Some(log_filter(node)?);
            Ok(())
        },
    },
    Key {
        name: "log_format",
        aliases: &[],
        variable: "HALSUP_LOG_FORMAT",
        kind: "word",
        default: "\"text\"",
        bounds: Bounds::Prose("text, json"),
        what: "How the daemon's log is written.",
        set: |daemon, node| {
            daemon.log_format = Some(node.word(&[("text", LogFormat::Text), ("json", LogFormat::Json)])?);
            Ok(())
        },
    },
    Key {
        name: "uid_base",
        aliases: &[],
        variable: "",
        kind: "integer",
        default: "1879048192",
        bounds: Bounds::Count(65_536, 2_130_706_432),
        what: "First of the uids that workers with a `dynamic` or `mapped` identity get.",
        set: |daemon, node| {
            daemon.uid_base = Some(node.count_u32()?);
            Ok(())
        },
    },
    Key {
        name: "shutdown_timeout",
        aliases: &["shutdown_timeout_ms"],
        variable: "",
        kind: "duration",
        default: "\"30s\"",
        bounds: Bounds::Time(Duration::from_millis(100), Duration::from_secs(3600)),
        what: "One deadline for stopping everything when the daemon shuts down.",
        set: |daemon, node| {
            daemon.shutdown_timeout = Some(node.duration()?);
            Ok(())
        },
    },
    Key {
        name: "image_allow",
        aliases: &[],
        variable: "",
        kind: "list of strings",
        default: "[]",
        bounds: Bounds::Items(256),
        what: "Names of the images that may be roots of workers; an empty list allows all.",
        set: |daemon, node| {
            let mut faults = Faults::default();
            for item in node.items(Bounds::Length(IMAGE_NAME_BYTES_MAX))? {
                daemon.image_allow.extend(faults.note(super::paths::image(&item)));
            }
            faults.or(())
        },
    },
    Key {
        name: "image_import_timeout",
        aliases: &[],
        variable: "",
        kind: "duration",
        default: "\"1h\"",
        bounds: Bounds::Time(Duration::from_secs(1), Duration::from_secs(86_400)),
        what: "How long reading the archive of an image may take. One that is not read by then is no image.",
        set: |daemon, node| {
            daemon.image_import_timeout = Some(node.duration()?);
            Ok(())
        },
    },
    Key {
        name: "skip_image_pull",
        aliases: &[],
        variable: "SKIP_IMAGE_PULL",
        kind: "boolean",
        default: "false",
        bounds: Bounds::None,
        what: "Whether images that pools name and that are not there are left missing at the start, instead of pulled through skopeo.",
        set: |daemon, node| {
            daemon.skip_image_pull = Some(node.boolean()?);
            Ok(())
        },
    },
    Key {
        name: "lazy_image_pull",
        aliases: &[],
        variable: "LAZY_IMAGE_PULL",
        kind: "boolean",
        default: "false",
        bounds: Bounds::None,
        what: "Whether they are pulled in the background: the daemon is ready before they are there, and their pools start when they are.",
        set: |daemon, node| {
            daemon.lazy_image_pull = Some(node.boolean()?);
            Ok(())
        },
    },
    Key {
        name: "roles",
        aliases: &[],
        variable: "",
        kind: "list of tables",
        default: "[]",
        bounds: Bounds::Items(256),
        what: "Who may do what over the control socket, beside root and the daemon's own user, who may do all. Keys below.",
        set: read_roles,
    },
];

/// A role while it is read.
#[derive(Debug, Default)]
pub(super) struct RoleDraft {
    uid: Option<u32>,
    gid: Option<u32>,
    role: Option<Role>,
    pool: Option<PoolName>,
}

/// The keys of one of `daemon.roles`.
pub(super) const ROLE_KEYS: &[Key<RoleDraft>] = &[
    Key {
        name: "uid",
        aliases: &[],
        variable: "",
        kind: "integer",
        default: "",
        bounds: Bounds::Count(0, ACCOUNT_ID_MAX as u64),
        what: "The user. Either this or `gid`.",
        set: |role, node| {
            role.uid = Some(node.count_u32()?);
            Ok(())
        },
    },
    Key {
        name: "gid",
        aliases: &[],
        variable: "",
        kind: "integer",
        default: "",
        bounds: Bounds::Count(0, ACCOUNT_ID_MAX as u64),
        what: "The group, by the caller's effective gid.",
        set: |role, node| {
            role.gid = Some(node.count_u32()?);
            Ok(())
        },
    },
    Key {
        name: "role",
        aliases: &[],
        variable: "",
        kind: "word",
        default: "",
        bounds: Bounds::Prose("observe, operate, admin"),
        what: "`observe`: read status, lists, logs, events. `operate`: also start, stop, restart, kill, scale, reset. `admin`: also reload and shut down.",
        set: |role, node| {
            let words = [("observe", Role::Observe), ("operate", Role::Operate), ("admin", Role::Admin)];
            role.role = Some(node.word(&words)?);
            Ok(())
        },
    },
    Key {
        name: "pool",
        aliases: &[],
        variable: "",
        kind: "name",
        default: "",
        bounds: Bounds::Prose("a pool or service of this file"),
        what: "Only on this pool or service; everywhere if it is left out.",
        set: |role, node| {
            role.pool = Some(PoolName::parse(node.text()?).map_err(|error| node.fault(error.expected))?);
            Ok(())
        },
    },
];

fn read_roles(daemon: &mut DaemonDraft, node: &Node<'_>) -> Result<(), Faults> {
    let mut faults = Faults::default();
    for item in node.items(Bounds::None)? {
        let Some(table) = faults.note(item.table()) else { continue };
        let mut draft = RoleDraft::default();
        let (written, wrong) = walk(ROLE_KEYS, &mut draft, table, &item.place);
        let whole = wrong.is_empty();
        faults.append(wrong);
        if whole && let Some(grant) = faults.note(finish_role(&draft, &item.place)) {
            if let (Some(pool), Some(place)) = (&grant.pool, written.get("pool")) {
                daemon.role_pools.push((pool.clone(), place.clone()));
            }
            daemon.roles.push(grant);
        }
    }
    faults.or(())
}

fn finish_role(draft: &RoleDraft, place: &Place) -> Result<RoleGrant, Fault> {
    let grantee = match (draft.uid, draft.gid) {
        (Some(uid), None) => Grantee::Uid(uid),
        (None, Some(gid)) => Grantee::Gid(gid),
        (Some(_), Some(_)) => return Err(place.fault("both uid and gid are written", "one of them")),
        (None, None) => return Err(place.fault("neither uid nor gid is written", "one of them")),
    };
    let role = draft.role.ok_or_else(|| place.fault("role is missing", "observe, operate or admin"))?;
    Ok(RoleGrant { grantee, role, pool: draft.pool.clone() })
}

/// Reads the path of a cgroup, which nothing leads out of.
fn cgroup(node: &Node<'_>) -> Result<PathBuf, Fault> {
    let text = node.text()?;
    let path = text.strip_prefix('/').unwrap_or(text);
    let plain = |part: &str| !part.is_empty() && part != "." && part != "..";
    if text.len() <= PATH_BYTES_MAX && path.split('/').all(plain) {
        Ok(PathBuf::from(text))
    } else {
        Err(node
            .fault("the path of a cgroup, such as /system.slice/halsup-workers.service, without empty parts, . and .."))
    }
}

/// What the daemon's log is divided into, for filters such as `info,heartbeat=debug`.
pub const LOG_CATEGORIES: [&str; 7] = ["pool", "worker", "heartbeat", "dispatch", "control", "spawn", "log"];

/// Reads a log filter without building it: levels, alone or behind the name of a category.
fn log_filter(node: &Node<'_>) -> Result<String, Fault> {
    let text = node.text()?;
    let level = |word: &str| matches!(word, "off" | "error" | "warn" | "info" | "debug" | "trace");
    let category = |word: &str| LOG_CATEGORIES.contains(&word);
    let directive = |word: &str| match word.split_once('=') {
        Some((name, value)) => category(name) && level(value),
        None => level(word),
    };
    if text.split(',').all(directive) {
        Ok(text.to_owned())
    } else {
        Err(node.fault("off, error, warn, info, debug or trace, or one of them for a category (pool, worker, heartbeat, dispatch, control, spawn, log) as in \"info,heartbeat=debug\""))
    }
}

/// Reads `[daemon]`.
pub(super) fn read(draft: &mut DaemonDraft, node: &Node<'_>) -> Result<(), Faults> {
    let (_, faults) = walk(KEYS, draft, node.table()?, &node.place);
    faults.or(())
}
