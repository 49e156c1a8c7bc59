//! The reference of the configuration, printed from the rows of keys that the file is read by.
//!
//! What is printed here is what is checked; nothing of it is written a second time.

use super::atomforge;
use super::chromadb::{CHROMADB_PROGRAM, VARIABLES};
use super::claims::CLAIM_KEYS;
use super::daemon::{KEYS as DAEMON_KEYS, ROLE_KEYS};
use super::dispatch::{BREAKER_KEYS, DISPATCH_KEYS};
use super::gateway::KEYS as GATEWAY_KEYS;
use super::keys::Key;
use super::pool_keys::KEYS as POOL_KEYS;
use super::pool_tables::{HEARTBEAT_KEYS, LOG_KEYS, RESTART_KEYS};
use super::snakepit::{self, BESIDE, KEPT_KEYS};
use super::tasks::TASK_KEYS;

const INTRODUCTION: &str = "\
# Configuration

One TOML file of at most 1 MiB. `halsup check FILE` says all that is wrong with it, each with its line. An unknown key is
an error. Every key has a default but `command`, which `[service.chromadb]` alone can do without.

```toml
[pool.web]
command = [\"python3\", \"-m\", \"http.server\", \"{port}\"]
size = 3
base_port = 8001
ready = \"tcp\"
```

Values:

* **size**: a number of bytes or a text with unit, `\"64k\"`, `\"512M\"`, `\"4g\"`, `\"64KiB\"`; all units are powers of 1,024.
* **duration**: a text with unit, `\"500ms\"`, `\"30s\"`, `\"1h 30m\"`. Keys that end in `_ms` or `_seconds` take a bare integer.
* **no limit** is only ever written as `\"max\"` or `\"unlimited\"`.
* **name**: 1 to 63 of `a-z`, `0-9` and `-`, not `-` first.
* **path**: absolute, without `..`.

A limit that is written down, here or in the environment, is enforced or the start is refused. A default is enforced where
the host can, and `halsup status` says where it cannot.
";

const TOGETHER: &str = "\
## All pools together

At most 256 pools and services and 10,000 workers. No two have one name, overlapping ports in one network, or the same
`listen`.
";

const ENVIRONMENT: &str = "\
## Environment

An empty variable says nothing. The `HALSUP_*` variables override the file. The `WORKER_*` variables fill in for pools whose
file or options say nothing, because a file speaks of one pool and a variable of all: option over file over variable over
default. Those of `tasks` override the file and mean something only where it has the table; a name that ends in `_MS` takes
milliseconds.

| variable | key |
|---|---|
";

/// Renders the reference as Markdown: every key with type, default, range and what it does.
#[must_use]
pub fn reference() -> String {
    let mut out = INTRODUCTION.to_owned();
    section(&mut out, "`[daemon]`", "The daemon's own settings.", DAEMON_KEYS);
    section(&mut out, "`daemon.roles`", "Each `{ uid = 1000, role = \"operate\", pool = \"web\" }`.", ROLE_KEYS);
    let gateway = "HTTP for the world: a service of its own, `gateway`, that runs as nobody in an empty root. Without this table there is none. Docs: `docs/gateway.md`.";
    section(&mut out, "`[gateway]`", gateway, GATEWAY_KEYS);
    let pools = "A pool of like workers. `[service.NAME]` is the same for a supervised singleton, without `size`, `min` and `max`.";
    section(&mut out, "`[pool.NAME]` and `[service.NAME]`", pools, POOL_KEYS);
    section(&mut out, "`[pool.NAME.restart]`", "Or `restart = true` or `false`.", RESTART_KEYS);
    section(&mut out, "`[pool.NAME.claims]`", "Or `claims = true` or `false`. Docs: `docs/sessions.md`.", CLAIM_KEYS);
    section(
        &mut out,
        "`[pool.NAME.dispatch]`",
        "Or `dispatch = true` or `false`. Docs: `docs/dispatch.md`.",
        DISPATCH_KEYS,
    );
    let breakers = "`worker_breaker` and `pool_breaker`.";
    section(&mut out, "`[pool.NAME.dispatch.worker_breaker]`", breakers, BREAKER_KEYS);
    section(&mut out, "`[pool.NAME.heartbeat]`", "Or `heartbeat = true` or `false`.", HEARTBEAT_KEYS);
    section(&mut out, "`[pool.NAME.log]`", "Files of the worker's output.", LOG_KEYS);
    chromadb(&mut out);
    let tasks = "What runs for prompts, under a terminal. Without the table there are no tasks. Docs: `docs/tasks.md`.";
    section(&mut out, "`[tasks]`", tasks, TASK_KEYS);
    of_snakepit(&mut out);
    out.push('\n');
    out.push_str(TOGETHER);
    out.push('\n');
    out.push_str(ENVIRONMENT);
    variables(&mut out, "daemon", DAEMON_KEYS);
    variables(&mut out, "pool.NAME", POOL_KEYS);
    variables(&mut out, "pool.NAME.claims", CLAIM_KEYS);
    variables(&mut out, "tasks", TASK_KEYS);
    variables(&mut out, "gateway", GATEWAY_KEYS);
    variables(&mut out, "snakepit", snakepit::WHOLE_KEYS);
    of_atomforge(&mut out);
    out
}

/// AtomForge's variables.
fn of_atomforge(out: &mut String) {
    out.push_str(
        "\nOf the pool that `[gateway]` names as its own (`pool`), these fill in what the file does not say; a table that is \
         written says all that\nis in it:\n\n| variable | what it fills |\n|---|---|\n",
    );
    for (variable, what) in atomforge::VARIABLES {
        out.push_str(&format!("| `{variable}` | {what} |\n"));
    }
}

/// The keys of Snakepit, under its own names.
fn of_snakepit(out: &mut String) {
    let whole = "What Snakepit is configured by; docs: `docs/snakepit.md`. An atom is a text, with or without its colon. A time is a whole number of milliseconds or a duration.";
    section(out, "`[snakepit]`", whole, snakepit::WHOLE_KEYS);
    let shared = "Of one pool in `pools`; in `[snakepit]` and `[snakepit.pool_config]` of all of them.";
    section(out, "`[[snakepit.pools]]`, `[snakepit]`", shared, snakepit::SHARED_KEYS);
    let beside = BESIDE.map(|name| format!("`{name}`")).join(", ");
    out.push_str(&format!("\nAlso these keys of `[pool.NAME]`: {beside}.\n"));
    section(out, "`[snakepit.crash_barrier]`", "Or of a pool.", snakepit::BARRIER_KEYS);
    section(out, "`[snakepit.zero_copy]`", "Payloads in memory.", snakepit::ZERO_COPY_KEYS);
    section(out, "`[snakepit.python_runtime]`", "The interpreter.", snakepit::RUNTIME_KEYS);
    section(out, "`[snakepit.grpc_listener]`", "The Elixir side.", snakepit::LISTENER_KEYS);
    let kept: Vec<String> = KEPT_KEYS.iter().map(|key| format!("`{}`", key.name)).collect();
    out.push_str(&format!("\nRead and checked, and without effect here: {}.\n", kept.join(", ")));
}

fn section<T>(out: &mut String, title: &str, introduction: &str, keys: &[Key<T>]) {
    out.push_str(&format!("\n## {title}\n\n{introduction}\n\n"));
    out.push_str("| key | type | default | range | what it does |\n|---|---|---|---|---|\n");
    for key in keys {
        let default = if key.default.is_empty() { String::new() } else { format!("`{}`", key.default) };
        let range = key.bounds.range().unwrap_or_default();
        let aliases: Vec<String> = key.aliases.iter().map(|alias| format!("`{alias}`")).collect();
        let also = if aliases.is_empty() { String::new() } else { format!(" Also {}.", aliases.join(", ")) };
        out.push_str(&format!("| `{}` | {} | {default} | {range} | {}{also} |\n", key.name, key.kind, key.what));
    }
}

/// The service that needs no command.
fn chromadb(out: &mut String) {
    out.push_str("\n## `[service.chromadb]`\n\n");
    out.push_str(&format!(
        "Without `command` it is ChromaDB as `examples/install-chromadb.sh` installs it, `{CHROMADB_PROGRAM}`: ready when \
         `/api/v2/heartbeat`\nanswers, which it is asked every 5 s from then on, with its data in the volume \
         `hal9000-chromadb`. Every key can be written, and is then\nas written; `volumes`, or a `bind` at the directory \
         of the data, takes the volume's place, and `env` is added to. Variables say what is not\nwritten:\n\n"
    ));
    out.push_str("| variable | what it says | default |\n|---|---|---|\n");
    for (variable, what, default) in VARIABLES {
        out.push_str(&format!("| `{variable}` | {what} | `{default}` |\n"));
    }
    out.push_str(
        "\nChromaDB asks nobody who they are, so it listens where only this host reaches it; `CHROMADB_HOST=0.0.0.0` is for \
         networks in which\neverybody may read and remove what it holds. Where there is no configuration file, the daemon has \
         this service if the program is there.\n",
    );
}

fn variables<T>(out: &mut String, table: &str, keys: &[Key<T>]) {
    for key in keys.iter().filter(|key| !key.variable.is_empty()) {
        out.push_str(&format!("| `{}` | `{table}.{}` |\n", key.variable, key.name));
    }
}
