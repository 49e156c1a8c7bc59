//! What is wrong with a daemon's own pools, volumes and files, with what to do: every trouble that an operator may look for.
//!
//! Each check is said whether it is well or not, so that one sees what was looked at. Looks at what the daemon knows, and at
//! a few small files; nothing here takes long or changes anything.

use std::collections::BTreeSet;
use std::path::Path;

use super::super::birth::chain;
use super::super::pool::Pool;
use super::super::state::Daemon;
use super::{bad, good, partly};
use crate::engine::{State, Target, WorkerView};
use crate::host::port;
use crate::host::state_file::QUARANTINE;
use crate::protocol::control::{Cause, Check, DeathCertificate};
use crate::spec::{Net, PoolSpec, Ready, Root, VolumeName, format_bytes};

/// How a pool's own table is called in the configuration.
fn table(spec: &PoolSpec) -> String {
    format!("[{}.{}]", if spec.service { "service" } else { "pool" }, spec.name)
}

/// The variable that says which port a service has, for the one that has such a variable.
pub(super) fn chromadb_port(spec: &PoolSpec) -> &'static str {
    if spec.service && spec.name.as_str() == "chromadb" {
        ", or CHROMADB_PORT=8080 halsup daemon restart where the file says nothing of it"
    } else {
        ""
    }
}

/// What a pool is called in a check.
fn title(spec: &PoolSpec) -> String {
    format!("{} {}", if spec.service { "service" } else { "pool" }, spec.name)
}

impl Daemon {
    /// All checks of what this daemon runs.
    pub(in crate::daemon) fn troubles(&self) -> Vec<Check> {
        let mut checks = vec![good("daemon", format!("runs, pid {}", std::process::id()))];
        for pool in self.pools.values() {
            checks.push(self.pool_check(pool));
            checks.extend(self.limits_check(pool));
            checks.extend(self.network_checks(pool));
            checks.extend(root_check(&pool.spec));
            checks.extend(pool.prepared.lacks.as_deref().map(|lacks| image_check(&pool.spec, lacks)));
        }
        let used: BTreeSet<&VolumeName> =
            self.pools.values().flat_map(|pool| &pool.spec.volumes).map(|mount| &mount.name).collect();
        checks.extend(used.into_iter().map(|name| self.volume_check(name)));
        checks.push(self.room_check());
        checks.push(self.state_check());
        checks
    }

    /// Whether as many workers are warm as are to be, and no more: of a pool whose workers are claimed.
    fn warm_check(&self, pool: &Pool, sessions_max: u32) -> Check {
        let (name, pool_name) = (title(&pool.spec), &pool.spec.name);
        let (wanted, _, max) = self.engine.pool_size(pool.id).unwrap_or_default();
        let view = self.engine.claims(pool.id);
        let found = format!("{} of {wanted} workers are warm, {} are claimed", view.warm, view.leased);
        if view.warm > max {
            let fix = format!("halsup pool cleanup --pool {pool_name}, or a shorter `idle_timeout`");
            return bad(name, format!("{found}: more than {max} wait"), fix);
        }
        if view.warm >= wanted {
            return good(name, found);
        }
        if view.paused {
            return bad(name, format!("{found}; it is stopped"), format!("halsup pool start --pool {pool_name}"));
        }
        if view.leased >= sessions_max {
            let fix =
                format!("halsup release a session that is not needed, or a higher `sessions` in {}", table(&pool.spec));
            return bad(name, format!("{found}, which is as many as may be"), fix);
        }
        let failed = self.views(Target::Pool(pool.id)).find(|view| view.state != State::Healthy);
        let Some(view) = failed else { return partly(name, found, "more are on their way; look again") };
        let worker = self.worker_name(view.worker);
        let (why, fix) = self.why_not(pool, &view, &worker);
        bad(name, format!("{found}; {worker}: {why}"), fix)
    }

    /// Whether all workers that are wanted are ready; if not, why the first that is not is not.
    fn pool_check(&self, pool: &Pool) -> Check {
        if let Some(claims) = pool.spec.policy.claims {
            return self.warm_check(pool, claims.sessions_max);
        }
        let name = title(&pool.spec);
        let (wanted, ..) = self.engine.pool_size(pool.id).unwrap_or_default();
        let views: Vec<WorkerView> = self.views(Target::Pool(pool.id)).collect();
        let healthy = views.iter().filter(|view| view.state == State::Healthy).count();
        let count = format!("{healthy} of {wanted} workers are ready");
        if u32::try_from(healthy).is_ok_and(|healthy| healthy >= wanted) {
            return good(name, count);
        }
        let Some(view) = views.iter().find(|view| view.state != State::Healthy) else {
            let fix = format!("halsup start {}, or halsup scale {} {wanted}", pool.spec.name, pool.spec.name);
            return bad(name, count, fix);
        };
        let worker = self.worker_name(view.worker);
        let (why, fix) = self.why_not(pool, view, &worker);
        bad(name, format!("{count}; {worker}: {why}"), fix)
    }

    fn why_not(&self, pool: &Pool, view: &WorkerView, worker: &str) -> (String, String) {
        if let Some(trouble) = self.persist.trouble() {
            let fix = format!("make room on, or mend, the disk of {}", self.spec.state_dir.display());
            return (format!("the daemon's state cannot be written: {trouble}"), fix);
        }
        if let Some((_, failure)) = self.postponed.get(&view.worker) {
            return (format!("{}; it is tried again", failure.text), remedy(pool, &failure.stage, worker));
        }
        match view.state {
            State::Stopped => ("somebody stopped it".to_owned(), format!("halsup start {worker}")),
            State::Stuck => (
                "its processes do not end, because they hang in the kernel".to_owned(),
                format!("halsup inspect {worker} names them; mend the disk or mount they wait for, or boot anew"),
            ),
            State::Unhealthy => (
                "it does not answer its heartbeats".to_owned(),
                format!("halsup logs {worker}; a longer `heartbeat.timeout` in {}", table(&pool.spec)),
            ),
            State::Initializing | State::Draining | State::Restarting | State::Crashed | State::Healthy => {
                let last = self.certificates.iter().rev().find(|certificate| certificate.worker == worker);
                match last {
                    Some(certificate) => how_it_ended(pool, view.state, certificate),
                    None => (format!("it is {}", crate_state(view.state)), format!("halsup logs {worker}")),
                }
            }
        }
    }

    /// Limits that workers have run into, by the words of the seed.
    fn limits_check(&self, pool: &Pool) -> Option<Check> {
        let (mut found, mut keys) = (Vec::new(), BTreeSet::new());
        let limits = &pool.spec.limits;
        for view in self.views(Target::Pool(pool.id)) {
            let worker = self.worker_name(view.worker);
            let (forks_refused, oom_kills) = self.limit_watch.hits(view.worker);
            if self.last_exit.get(&view.worker) == Some(&Cause::Oom) || oom_kills > 0 {
                let limit = limits.memory_bytes.map(|limit| format_bytes(limit.value)).unwrap_or_default();
                found.push(format!("{worker}: OOMKilled: true (memory {limit})"));
                keys.insert("memory = \"8g\"");
            }
            if forks_refused > 0 {
                let limit = limits.pids.map(|limit| limit.value.to_string()).unwrap_or_default();
                found.push(format!("{worker}: pids limit reached ({limit})"));
                keys.insert("pids = 200");
            }
        }
        if found.is_empty() {
            return None;
        }
        let more = if found.len() > 3 { format!(" and {} more", found.len() - 3) } else { String::new() };
        found.truncate(3);
        let keys: Vec<&str> = keys.into_iter().collect();
        let fix = format!(
            "raise it by {} in {} and halsup daemon reload, or by WORKER_MEMORY and WORKER_PIDS_LIMIT when the daemon starts",
            keys.join(", "),
            table(&pool.spec)
        );
        Some(bad(format!("limits of {}", pool.spec.name), format!("{}{more}", found.join("; ")), fix))
    }

    /// Whether a pool reaches what listens at localhost, and whether a service that is ready can be reached there.
    fn network_checks(&self, pool: &Pool) -> Vec<Check> {
        let mut checks = Vec::new();
        if pool.spec.net != Net::Parent {
            let found =
                "its workers have a network of their own: they do not reach services at localhost, nor those them";
            let fix = format!("net = \"parent\" in {} shares the daemon's", table(&pool.spec));
            checks.push(partly(format!("network of {}", pool.spec.name), found, fix));
        }
        let view = self.views(Target::Pool(pool.id)).find(|view| view.state == State::Healthy);
        let port = view.and_then(|view| self.live.get(&view.worker)?.told.port);
        if let (Some(port), Net::Parent, true) = (port, &pool.spec.net, pool.spec.service)
            && port::check_free(port).is_ok()
        {
            let fix = format!(
                "have it listen on {{port}}, and say ready = \"tcp\" in {}, so that it is ready only when it does",
                table(&pool.spec)
            );
            checks.push(bad(format!("port of {}", pool.spec.name), format!("nobody listens on localhost:{port}"), fix));
        }
        checks
    }

    fn volume_check(&self, name: &VolumeName) -> Check {
        let title = format!("volume {name}");
        match self.shared.volumes.data(name) {
            Ok(_) => good(title, "is there"),
            Err(error) => {
                let fix =
                    format!("halsup volume create {name}, then restart its pool; or bring it back by halsup restore");
                bad(title, format!("{}: what its workers write is not kept", chain(&error)), fix)
            }
        }
    }

    fn room_check(&self) -> Check {
        match self.shared.volumes.room() {
            Ok(room) => super::room(room, &self.spec.state_dir),
            Err(error) => bad("room", chain(&error), "mend the disk of the state directory"),
        }
    }

    /// Files of the daemon's own that could not be written or read.
    fn state_check(&self) -> Check {
        if let Some(trouble) = self.persist.trouble() {
            let fix = format!("make room on, or mend, the disk of {}", self.spec.state_dir.display());
            return bad("state files", format!("cannot be written: {trouble}"), fix);
        }
        let damaged = damaged(&self.spec.state_dir.join(QUARANTINE));
        match damaged {
            0 => good("state files", "are whole"),
            count => bad(
                "state files",
                format!("{count} damaged files are in quarantine"),
                quarantine_fix(&self.spec.state_dir),
            ),
        }
    }
}

/// What to do about files in quarantine.
pub(super) fn quarantine_fix(state_dir: &Path) -> String {
    format!("read the .reason beside each in {}, then remove them", state_dir.join(QUARANTINE).display())
}

/// How many damaged files are kept; each has its reason beside it.
pub(super) fn damaged(quarantine: &Path) -> usize {
    let is_reason = |path: &Path| path.extension().is_some_and(|extension| extension == "reason");
    let entries = std::fs::read_dir(quarantine).into_iter().flatten().flatten();
    entries.filter(|entry| !is_reason(&entry.path())).count()
}

/// Whether the directory that a pool has as its root is there.
pub(super) fn root_check(spec: &PoolSpec) -> Option<Check> {
    let Root::Directory(path) = &spec.root else { return None };
    let name = format!("root of {}", spec.name);
    if path.is_dir() {
        return Some(good(name, format!("{} is there", path.display())));
    }
    let fix = format!("unpack a root file system there, or name another `root` in {}", table(spec));
    Some(bad(name, format!("unable to find {}", path.display()), fix))
}

/// The image that a pool has as its root is not there.
pub(super) fn image_check(spec: &PoolSpec, lacks: &str) -> Check {
    let (found, fix) = lacks.split_once(": ").unwrap_or((lacks, "halsup image import makes it of an archive"));
    bad(format!("root of {}", spec.name), found, fix)
}

const fn crate_state(state: State) -> &'static str {
    super::super::perform::worker_state(state).as_str()
}

/// The last end of a worker that is not ready, and what to do.
fn how_it_ended(pool: &Pool, state: State, certificate: &DeathCertificate) -> (String, String) {
    let worker = &certificate.worker;
    let reset = if state == State::Crashed {
        format!("; then halsup reset {worker}, since it was given up after too many restarts")
    } else {
        String::new()
    };
    if let Some(failure) = &certificate.start_failure {
        return (failure.text.clone(), format!("{}{reset}", remedy(pool, &failure.stage, worker)));
    }
    if certificate.cause == Cause::StartFailed {
        let seconds = pool.spec.policy.startup.ready_timeout.as_secs();
        let for_what = match &pool.spec.ready {
            Ready::Exec | Ready::Notify | Ready::Channel | Ready::File(_) | Ready::PortFile(_) => String::new(),
            Ready::Probe(_) => {
                format!(" on port {}", pool.spec.base_port.map_or_else(|| "?".to_owned(), |port| port.to_string()))
            }
        };
        let fix = format!(
            "halsup logs {worker} says why; more time by `ready_timeout` in {}; damaged data: halsup volume export, then rm and create{reset}",
            table(&pool.spec)
        );
        return (format!("failed to start within {seconds}s{for_what}"), fix);
    }
    // Everybody who may look at anything may ask this.
    let output = if certificate.owner.is_none() { certificate.last_output.as_str() } else { "" };
    let last = output.lines().rfind(|line| !line.trim().is_empty());
    let words = last.map(|line| format!(", with the words {line:?}")).unwrap_or_default();
    (format!("it ended: {}{words}", certificate.cause), format!("halsup logs {worker} says why{reset}"))
}

/// What to do about a start that failed at a stage.
fn remedy(pool: &Pool, stage: &str, worker: &str) -> String {
    let table = table(&pool.spec);
    match stage {
        "port" => {
            let variable = chromadb_port(&pool.spec);
            format!("use another port: `base_port` in {table}, then halsup daemon reload{variable}; or end who has it")
        }
        "volume" => "halsup volume ls says what there is and how much room is left".to_owned(),
        "cgroup" => "halsup doctor says which controllers are missing; write no limit for those".to_owned(),
        _ => format!("mend what is named, then halsup restart {worker}"),
    }
}
