//! The keys of `[pool.NAME]` and `[service.NAME]`.
//!
//! One row a key. What keys mean together is decided in `pool`.

use std::time::Duration;

use super::keys::{Bounds, Key};
use super::pool::{PoolDraft, WORKERS_MAX};
use super::pool_values::{asked, each, not_for_services, read_command, read_env, read_link, read_stop_signal};
use super::{claims, dispatch, paths, pool_tables, rlimits, serve_keys};
use crate::spec::{Cpuset, Identity, OnSupervisorDeath, Ports, VOLUMES_MAX};

/// The longest argument or value of the environment, in bytes.
pub(super) const TEXT_BYTES_MAX: usize = 32_768;
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(86_400);

/// The keys of `[pool.NAME]` and, but for the size, of `[service.NAME]`.
pub(super) const KEYS: &[Key<PoolDraft>] = &[
    Key {
        name: "command",
        aliases: &[],
        variable: "",
        kind: "list of strings",
        default: "",
        bounds: Bounds::Items(1024),
        what: "Program and arguments. `{port}`, `{slot}`, `{worker}`, `{instance}` and `{dir}` are replaced in each worker; `{{` and `}}` are literal braces. Required.",
        set: read_command,
    },
    Key {
        name: "terminal",
        aliases: &[],
        variable: "",
        kind: "boolean",
        default: "false",
        bounds: Bounds::None,
        what: "Whether the program runs on a terminal of its own, which `halsup attach` shows, instead of having pipes for its output.",
        set: |pool, node| {
            pool.spec.terminal = node.boolean()?;
            Ok(())
        },
    },
    Key {
        name: "size",
        aliases: &["pool_size"],
        variable: "",
        kind: "integer",
        default: "1",
        bounds: Bounds::Count(1, WORKERS_MAX as u64),
        what: "How many workers. Not for services.",
        set: |pool, node| {
            not_for_services(pool, node)?;
            pool.size = Some(node.count_u32()?);
            Ok(())
        },
    },
    Key {
        name: "min",
        aliases: &[],
        variable: "",
        kind: "integer",
        default: "",
        bounds: Bounds::Count(0, WORKERS_MAX as u64),
        what: "With `max`, instead of `size`: never fewer than this many.",
        set: |pool, node| {
            not_for_services(pool, node)?;
            pool.min = Some(node.count_u32()?);
            Ok(())
        },
    },
    Key {
        name: "max",
        aliases: &[],
        variable: "",
        kind: "integer",
        default: "",
        bounds: Bounds::Count(1, WORKERS_MAX as u64),
        what: "With `min`, instead of `size`: never more than this many.",
        set: |pool, node| {
            not_for_services(pool, node)?;
            pool.max = Some(node.count_u32()?);
            Ok(())
        },
    },
    Key {
        name: "env",
        aliases: &[],
        variable: "",
        kind: "table of strings",
        default: "{}",
        bounds: Bounds::Items(256),
        what: "The whole environment, beside what halsup sets; nothing is inherited. Same replacements as `command`. `NOTIFY_SOCKET`, `LISTEN_*`, `WATCHDOG_*`, `HALSUP_*` and `LD_*` are refused.",
        set: read_env,
    },
    Key {
        name: "base_port",
        aliases: &[],
        variable: "",
        kind: "integer",
        default: "",
        bounds: Bounds::Count(1, 65_535),
        what: "Worker N is told port `base_port` + N, by `{port}`. Ranges of pools in one network do not overlap.",
        set: |pool, node| {
            pool.spec.base_port =
                Some(u16::try_from(node.count()?).ok().ok_or_else(|| node.fault("a port from 1 to 65535"))?);
            Ok(())
        },
    },
    Key {
        name: "ports",
        aliases: &[],
        variable: "",
        kind: "ports",
        default: "",
        bounds: Bounds::Prose("FIRST-LAST, FIRST-LAST/EACH"),
        what: "Each living worker is told `EACH` (10) ports of its own out of these, by `{port}` (the first of them), `PORT`, `HALSUP_PORT_FIRST` and `HALSUP_PORT_LAST`. For sessions, whose number in the pool says nothing.",
        set: |pool, node| {
            pool.spec.ports = Some(Ports::parse(node.text()?).map_err(|expected| node.fault(expected))?);
            Ok(())
        },
    },
    Key {
        name: "root",
        aliases: &[],
        variable: "",
        kind: "word or path",
        default: "\"host\"",
        bounds: Bounds::Prose("host, empty, /path, image:NAME"),
        what: "What `/` is inside. `host`: a read-only view of the host with private `/tmp`, `/dev`, `/proc`, `/run`. `empty`: nothing but these and what is bound, read-only. A path: a writable overlay on that directory. `image:NAME`: the same on the files of an image that was imported, such as `image:alpine:3.20`.",
        set: |pool, node| {
            pool.spec.root = paths::root(node)?;
            Ok(())
        },
    },
    Key {
        name: "image",
        aliases: &[],
        variable: "WORKER_IMAGE",
        kind: "name",
        default: "",
        bounds: Bounds::Prose("the name of an image"),
        what: "`image = \"NAME\"` is `root = \"image:NAME\"`. The variable is for pools, not for services.",
        set: |pool, node| {
            pool.image = Some(paths::image(node)?);
            Ok(())
        },
    },
    Key {
        name: "net",
        aliases: &[],
        variable: "",
        kind: "word or path",
        default: "\"parent\"",
        bounds: Bounds::Prose("parent, own, /path"),
        what: "The network. `parent`: the daemon's. `own`: nothing but a loopback. A path: the namespace there, such as `/run/netns/blue`.",
        set: |pool, node| {
            pool.spec.net = paths::net(node)?;
            Ok(())
        },
    },
    Key {
        name: "identity",
        aliases: &[],
        variable: "",
        kind: "word",
        default: "\"dynamic\"",
        bounds: Bounds::Prose("dynamic, mapped, host:NAME, unsafe-root"),
        what: "Who it runs as. `dynamic`: an unprivileged user that nothing else uses. `mapped`: root inside, nobody outside. `host:NAME`: that user of the host, by name or number. `unsafe-root`: the host's root, without capabilities.",
        set: |pool, node| {
            pool.spec.identity = node.scalar(Identity::parse)?;
            Ok(())
        },
    },
    Key {
        name: "link",
        aliases: &[],
        variable: "",
        kind: "list of strings",
        default: "[]",
        bounds: Bounds::Items(256),
        what: "Files that appear as links in each worker's directory: absolute paths or glob patterns.",
        set: read_link,
    },
    Key {
        name: "bind",
        aliases: &["binds"],
        variable: "",
        kind: "list of strings",
        default: "[]",
        bounds: Bounds::Items(64),
        what: "Host files and directories that appear inside: `/path`, `/path:/inside` or `/path:/inside:rw`; read-only without `rw`.",
        set: |pool, node| {
            pool.spec.binds = each(node, Bounds::Length(2 * paths::PATH_BYTES_MAX + 4), paths::bind)?;
            Ok(())
        },
    },
    Key {
        name: "volumes",
        aliases: &["volume"],
        variable: "",
        kind: "list of strings",
        default: "[]",
        bounds: Bounds::Items(VOLUMES_MAX),
        what: "Named volumes that appear inside and outlive every worker: `name:/inside`, or `name:/inside:ro` for read-only. Made on first use; `halsup volume` looks after them.",
        set: |pool, node| {
            pool.spec.volumes = each(node, Bounds::Length(2 * paths::PATH_BYTES_MAX), paths::volume)?;
            Ok(())
        },
    },
    Key {
        name: "memory",
        aliases: &[],
        variable: "WORKER_MEMORY",
        kind: "size",
        default: "\"4g\"",
        bounds: Bounds::Bytes(1 << 20, 1 << 50),
        what: "`memory.max`; more is killed. `\"max\"` is no limit.",
        set: |pool, node| {
            pool.spec.limits.memory_bytes = asked(node.bytes_or_unlimited()?);
            Ok(())
        },
    },
    Key {
        name: "memory_high",
        aliases: &[],
        variable: "",
        kind: "size",
        default: "",
        bounds: Bounds::Bytes(1 << 20, 1 << 50),
        what: "`memory.high`; more is slowed down and reclaimed. At most `memory`.",
        set: |pool, node| {
            pool.spec.limits.memory_high_bytes = asked(node.bytes_or_unlimited()?);
            Ok(())
        },
    },
    Key {
        name: "swap",
        aliases: &[],
        variable: "",
        kind: "size",
        default: "0",
        bounds: Bounds::Bytes(0, 1 << 50),
        what: "`memory.swap.max`. `\"max\"` is no limit.",
        set: |pool, node| {
            pool.spec.limits.swap_bytes = asked(node.bytes_or_unlimited()?);
            Ok(())
        },
    },
    Key {
        name: "oom_group",
        aliases: &[],
        variable: "",
        kind: "boolean",
        default: "true",
        bounds: Bounds::None,
        what: "`memory.oom.group`: running out of memory takes the whole worker, never half of it.",
        set: |pool, node| {
            pool.spec.limits.oom_group = node.boolean()?;
            Ok(())
        },
    },
    Key {
        name: "cpus",
        aliases: &[],
        variable: "WORKER_CPUS",
        kind: "number",
        default: "2",
        bounds: Bounds::Prose("0.01 to 1024"),
        what: "`cpu.max`, in processors: `2`, `0.5`. `\"max\"` is no limit.",
        set: |pool, node| {
            pool.spec.limits.cpu_millis = asked(node.cpus_or_unlimited()?);
            Ok(())
        },
    },
    Key {
        name: "cpu_weight",
        aliases: &[],
        variable: "",
        kind: "integer",
        default: "",
        bounds: Bounds::Count(1, 10_000),
        what: "`cpu.weight`: share when processors are scarce; the kernel's default is 100.",
        set: |pool, node| {
            pool.spec.limits.cpu_weight = asked(Some(node.count()?));
            Ok(())
        },
    },
    Key {
        name: "pids",
        aliases: &["pids_limit"],
        variable: "WORKER_PIDS_LIMIT",
        kind: "integer",
        default: "100",
        bounds: Bounds::Count(2, 4_194_304),
        what: "`pids.max`: processes and threads, halsup's own init included. `\"max\"` is no limit.",
        set: |pool, node| {
            pool.spec.limits.pids = asked(node.count_or_unlimited()?);
            Ok(())
        },
    },
    Key {
        name: "cpuset",
        aliases: &[],
        variable: "",
        kind: "string",
        default: "",
        bounds: Bounds::Prose("processors 0 to 1023"),
        what: "`cpuset.cpus`, such as `\"0-1,4\"`.",
        set: |pool, node| {
            pool.spec.limits.cpuset = asked(Some(node.scalar(Cpuset::parse)?));
            Ok(())
        },
    },
    Key {
        name: "rlimits",
        aliases: &[],
        variable: "",
        kind: "table of integers",
        default: "{}",
        bounds: Bounds::Items(16),
        what: "Resource limits of each process, soft and hard, by lower-case name: `{ nofile = 1024, core = 0 }`. `\"unlimited\"` is no limit.",
        set: rlimits::read,
    },
    Key {
        name: "seccomp",
        aliases: &[],
        variable: "",
        kind: "word or path",
        default: "\"default\"",
        bounds: Bounds::Prose("default, unconfined, /path"),
        what: "System calls that are allowed: the built-in list, all, or a profile in Docker's JSON format.",
        set: |pool, node| {
            pool.spec.seccomp = paths::seccomp(node)?;
            Ok(())
        },
    },
    Key {
        name: "ready",
        aliases: &[],
        variable: "",
        kind: "word",
        default: "\"exec\"",
        bounds: Bounds::Prose("exec, notify, channel, http:/path, tcp, grpc, file:NAME, port-file:NAME"),
        what: "How a worker becomes ready. `exec`: as soon as its program runs. `notify`: `READY=1` by sd_notify. `channel`: a `ready` frame. `http:/path`: its port answers 2xx. `tcp`: its port accepts. `grpc`: its port speaks HTTP/2. `file:NAME`: the file exists in its directory. `port-file:NAME`: the same, and it says the port on which the worker listens.",
        set: |pool, node| {
            pool.spec.ready = paths::ready(node)?;
            Ok(())
        },
    },
    Key {
        name: "ready_timeout",
        aliases: &["ready_timeout_ms"],
        variable: "",
        kind: "duration",
        default: "\"30s\"",
        bounds: Bounds::Time(Duration::from_millis(10), DAY),
        what: "A worker that is not ready after this long is killed.",
        set: |pool, node| {
            pool.spec.policy.startup.ready_timeout = node.duration()?;
            Ok(())
        },
    },
    Key {
        name: "startup_batch_size",
        aliases: &[],
        variable: "",
        kind: "integer",
        default: "8",
        bounds: Bounds::Count(1, WORKERS_MAX as u64),
        what: "At most this many workers begin at once.",
        set: |pool, node| {
            pool.spec.policy.startup.batch_size = node.count_u32()?;
            Ok(())
        },
    },
    Key {
        name: "startup_batch_delay",
        aliases: &["startup_batch_delay_ms"],
        variable: "",
        kind: "duration",
        default: "\"0s\"",
        bounds: Bounds::Time(Duration::ZERO, HOUR),
        what: "Pause between two batches. None by default, because a start takes less than a millisecond.",
        set: |pool, node| {
            pool.spec.policy.startup.batch_delay = node.duration()?;
            Ok(())
        },
    },
    Key {
        name: "claims",
        aliases: &[],
        variable: "",
        kind: "boolean or table",
        default: "false",
        bounds: Bounds::None,
        what: "Whether workers wait, warm, until somebody claims them; then `command` (default `[\"/bin/sh\"]`) is what a claim starts that names no command. Instead of `size`.",
        set: |pool, node| {
            not_for_services(pool, node)?;
            claims::claims(&mut pool.claims, node)
        },
    },
    Key {
        name: "dispatch",
        aliases: &[],
        variable: "",
        kind: "boolean or table",
        default: "false",
        bounds: Bounds::None,
        what: "Whether workers are given requests (`halsup call`) over the channel, and how.",
        set: |pool, node| dispatch::dispatch(&mut pool.dispatch, node),
    },
    serve_keys::SERVE,
    serve_keys::OPEN,
    serve_keys::REQUEST_MAX,
    serve_keys::ANSWER_MAX,
    serve_keys::HTTP_LISTEN,
    serve_keys::UPGRADE_MAX,
    serve_keys::UPGRADE_IDLE,
    Key {
        name: "freeze_after",
        aliases: &[],
        variable: "",
        kind: "duration",
        default: "",
        bounds: Bounds::Time(Duration::from_secs(1), DAY),
        what: "With `claims` or `terminal`: a worker that has been idle for this long is frozen until somebody needs it. Default: never; see sessions.md.",
        set: |pool, node| {
            pool.spec.policy.freeze_after = Some(node.duration()?);
            Ok(())
        },
    },
    Key {
        name: "restart",
        aliases: &[],
        variable: "",
        kind: "boolean or table",
        default: "true",
        bounds: Bounds::None,
        what: "Whether and when an ended worker is started again. Keys below.",
        set: |pool, node| pool_tables::restart(&mut pool.spec.policy.restart, node),
    },
    Key {
        name: "heartbeat",
        aliases: &[],
        variable: "",
        kind: "boolean or table",
        default: "",
        bounds: Bounds::None,
        what: "How a worker shows that it is alive. On by default for `ready = \"channel\"`, off for all others. Keys below.",
        set: |pool, node| pool_tables::heartbeat(&mut pool.heartbeat, node),
    },
    Key {
        name: "stop_signal",
        aliases: &[],
        variable: "",
        kind: "signal",
        default: "\"SIGTERM\"",
        bounds: Bounds::Prose("name or 1 to 64"),
        what: "The signal that asks the program to end. With a terminal or `claims` it is `\"SIGHUP\"` by default, because shells take no notice of SIGTERM.",
        set: read_stop_signal,
    },
    Key {
        name: "stop_grace",
        aliases: &["stop_grace_ms"],
        variable: "",
        kind: "duration",
        default: "\"10s\"",
        bounds: Bounds::Time(Duration::ZERO, HOUR),
        what: "Time between that signal and the kill of all that is left.",
        set: |pool, node| {
            pool.spec.policy.stop.grace = node.duration()?;
            Ok(())
        },
    },
    Key {
        name: "kill_timeout",
        aliases: &["kill_timeout_ms"],
        variable: "",
        kind: "duration",
        default: "\"10s\"",
        bounds: Bounds::Time(Duration::from_millis(10), HOUR),
        what: "Time between the kill and the verdict `stuck`.",
        set: |pool, node| {
            pool.spec.policy.stop.kill_timeout = node.duration()?;
            Ok(())
        },
    },
    Key {
        name: "listen",
        aliases: &[],
        variable: "",
        kind: "list of strings",
        default: "[]",
        bounds: Bounds::Items(16),
        what: "Sockets that the daemon binds once and hands to every worker as `LISTEN_FDS`: `tcp:127.0.0.1:9000`, `unix:/run/name.sock`. They survive every restart.",
        set: |pool, node| {
            pool.spec.listen = each(node, Bounds::Length(256), paths::listen)?;
            Ok(())
        },
    },
    Key {
        name: "log",
        aliases: &[],
        variable: "",
        kind: "table",
        default: "",
        bounds: Bounds::None,
        what: "Its log files. Keys below.",
        set: |pool, node| pool_tables::log(&mut pool.spec.log, node),
    },
    Key {
        name: "on_supervisor_death",
        aliases: &[],
        variable: "",
        kind: "duration or word",
        default: "\"60s\"",
        bounds: Bounds::Time(Duration::ZERO, DAY),
        what: "What becomes of a worker when the daemon dies: it ends after this long unless a daemon has come back, at once with `\"0s\"`, never with `\"forever\"`.",
        set: |pool, node| {
            pool.spec.on_supervisor_death = match node.text() {
                Ok("forever") => OnSupervisorDeath::Forever,
                Ok(_) | Err(_) => OnSupervisorDeath::EndAfter(node.duration()?),
            };
            Ok(())
        },
    },
];
