//! The reference of the configuration, printed from the rows of keys that the file is read by.
//!
//! What is printed here is what is checked; nothing of it is written a second time.

use super::claims::CLAIM_KEYS;
use super::daemon::{KEYS as DAEMON_KEYS, ROLE_KEYS};
use super::keys::Key;
use super::pool_keys::KEYS as POOL_KEYS;
use super::pool_tables::{HEARTBEAT_KEYS, LOG_KEYS, RESTART_KEYS};

const INTRODUCTION: &str = "\
# Configuration

One TOML file of at most 1 MiB. `halsup check FILE` says all that is wrong with it, each with its line. An unknown key is
an error. Every key has a default but `command`.

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
default.

| variable | key |
|---|---|
";

/// Renders the reference as Markdown: every key with type, default, range and what it does.
#[must_use]
pub fn reference() -> String {
    let mut out = INTRODUCTION.to_owned();
    section(&mut out, "`[daemon]`", "The daemon's own settings.", DAEMON_KEYS);
    section(&mut out, "`daemon.roles`", "Each `{ uid = 1000, role = \"operate\", pool = \"web\" }`.", ROLE_KEYS);
    let pools = "A pool of like workers. `[service.NAME]` is the same for a supervised singleton, without `size`, `min` and `max`.";
    section(&mut out, "`[pool.NAME]` and `[service.NAME]`", pools, POOL_KEYS);
    section(&mut out, "`[pool.NAME.restart]`", "Or `restart = true` or `false`.", RESTART_KEYS);
    section(&mut out, "`[pool.NAME.claims]`", "Or `claims = true` or `false`. Docs: `docs/sessions.md`.", CLAIM_KEYS);
    section(&mut out, "`[pool.NAME.heartbeat]`", "Or `heartbeat = true` or `false`.", HEARTBEAT_KEYS);
    section(&mut out, "`[pool.NAME.log]`", "Files of the worker's output.", LOG_KEYS);
    out.push('\n');
    out.push_str(TOGETHER);
    out.push('\n');
    out.push_str(ENVIRONMENT);
    variables(&mut out, "daemon", DAEMON_KEYS);
    variables(&mut out, "pool.NAME", POOL_KEYS);
    variables(&mut out, "pool.NAME.claims", CLAIM_KEYS);
    out
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

fn variables<T>(out: &mut String, table: &str, keys: &[Key<T>]) {
    for key in keys.iter().filter(|key| !key.variable.is_empty()) {
        out.push_str(&format!("| `{}` | `{table}.{}` |\n", key.variable, key.name));
    }
}
