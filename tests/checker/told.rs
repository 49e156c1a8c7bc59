//! What the daemon tells of itself, and whether it is so (I4).

use std::path::Path;

use serde_json::{Value, json};

use super::line::{self, Line, PING_BUDGET};
use super::proc::{self, Process};
use super::{Findings, Invariant};

/// One worker as it is told.
#[derive(Debug, Clone)]
pub(crate) struct Worker {
    pub(crate) name: String,
    pub(crate) pool: String,
    pub(crate) slot: u64,
    pub(crate) state: String,
    pub(crate) generation: Option<u64>,
    pub(crate) pid: Option<u32>,
    pub(crate) init_pid: Option<u32>,
    /// Nobody has it.
    pub(crate) is_warm: bool,
    pub(crate) cgroup: Option<String>,
}

impl Worker {
    fn new(told: &Value) -> Self {
        let text = |name: &str| told[name].as_str().unwrap_or_default().to_owned();
        let pid = |name: &str| told[name].as_u64().and_then(|pid| u32::try_from(pid).ok());
        Self {
            name: text("name"),
            pool: text("pool"),
            slot: told["slot"].as_u64().unwrap_or(u64::MAX),
            state: text("state"),
            generation: told["generation"].as_u64(),
            pid: pid("pid"),
            init_pid: pid("init_pid"),
            is_warm: told["occupancy"] == "warm",
            cgroup: told["cgroup"].as_str().map(str::to_owned),
        }
    }

    /// Whether something of it may be there.
    pub(crate) fn is_live(&self) -> bool {
        ["initializing", "healthy", "unhealthy", "draining", "stuck"].contains(&self.state.as_str())
    }

    /// Whether its program runs for certain.
    fn runs(&self) -> bool {
        ["healthy", "unhealthy"].contains(&self.state.as_str())
    }

    /// The name of its cgroup below its pool's.
    pub(crate) fn leaf(&self) -> String {
        format!("w-{}-{}", self.slot, self.generation.unwrap_or(0))
    }

    /// The name of its directories.
    pub(crate) fn place(&self) -> String {
        format!("{}-{}", self.name, self.generation.unwrap_or(0))
    }
}

/// What `Status` and `List` say at one moment.
#[derive(Debug, Clone)]
pub(crate) struct Told {
    pub(crate) status: Value,
    pub(crate) pid: u32,
    pub(crate) workers: Vec<Worker>,
}

impl Told {
    /// Asks, and pings; `None` and a violation where the daemon does not answer.
    pub(crate) fn ask(control: &Path, found: &mut Findings) -> Option<Self> {
        let mut line = match Line::connect(control, PING_BUDGET * 2) {
            Ok(line) => line,
            Err(error) => {
                found.add(Invariant::Latency, format!("the control socket cannot be connected to: {error}"));
                return None;
            }
        };
        let pinged = line.ask("Ping", &json!({}));
        let status = pinged.and_then(|_| line.ask("Status", &json!({})));
        let list = status.as_ref().and_then(|_| line.ask("List", &json!({})));
        line.surplus();
        line::judge(&line.calls, false, found);
        Some(Self::new(&status?["parameters"], &list?["parameters"]))
    }

    pub(crate) fn new(status: &Value, list: &Value) -> Self {
        let workers = list["workers"].as_array().map(Vec::as_slice).unwrap_or_default();
        Self {
            status: status.clone(),
            pid: status["pid"].as_u64().and_then(|pid| u32::try_from(pid).ok()).unwrap_or(0),
            workers: workers.iter().map(Worker::new).collect(),
        }
    }

    /// The names of its pools and services.
    pub(crate) fn pools(&self) -> Vec<&str> {
        self.status["pools"].as_array().into_iter().flatten().filter_map(|pool| pool["name"].as_str()).collect()
    }

    /// The live worker whose cgroup is `leaf` of `pool`.
    pub(crate) fn owner(&self, pool: &str, leaf: &str) -> Option<&Worker> {
        self.workers.iter().find(|worker| worker.is_live() && worker.pool == pool && worker.leaf() == leaf)
    }
}

/// I4: whether what is told is what runs: the daemon's pid, each worker's pids, cgroup and generation, and the counts.
pub(crate) fn true_to_life(told: &Told, base: Option<&Path>, processes: &[Process], found: &mut Findings) {
    let mut untrue = |what: String| found.add(Invariant::Truth, what);
    let there = |pid: u32| processes.iter().find(|one| one.pid == pid && !one.is_zombie()).cloned();
    // One that was cloned since the table was read is no lie.
    let there = |pid: u32| there(pid).or_else(|| proc::one(pid).filter(|one| !one.is_zombie()));
    if there(told.pid).is_none() {
        untrue(format!("the daemon's pid is told as {}, which is nobody", told.pid));
    }
    let pools = told.status["pools"].as_array().map(Vec::as_slice).unwrap_or_default();
    for worker in &told.workers {
        let Worker { name, state, .. } = worker;
        // Its init waits for a claim, and runs nothing until then.
        let claimable = pools.iter().any(|pool| pool["name"] == worker.pool.as_str() && pool["claims"].is_object());
        let is_parked = worker.runs() && worker.is_warm && claimable;
        let leaf = format!("/pool.{}/{}", worker.pool, worker.leaf());
        for (role, pid) in [("program", worker.pid), ("init", worker.init_pid)] {
            if is_parked && role == "program" {
                if let Some(pid) = pid {
                    untrue(format!("{name} waits for a claim and runs {pid}"));
                }
                continue;
            }
            let Some(pid) = pid else {
                if worker.runs() {
                    untrue(format!("{name} is {state} and no pid of its {role} is told"));
                }
                continue;
            };
            if !worker.is_live() {
                untrue(format!("{name} is {state} and {pid} is told as the pid of its {role}"));
                continue;
            }
            match there(pid) {
                None if worker.runs() => untrue(format!("{name} is {state} and its {role}, {pid}, does not run")),
                None => {}
                // A program may go into a cgroup below its own.
                Some(one) if format!("{}/", one.cgroup).contains(&format!("{leaf}/")) => {}
                Some(one) => untrue(format!("the {role} of {name}, {pid}, is in {} and not in {leaf}", one.cgroup)),
            }
        }
        let told_cgroup = worker.cgroup.as_deref().unwrap_or_default();
        if worker.runs() && !format!("/{told_cgroup}").ends_with(&leaf) {
            untrue(format!("{name} is generation {:?} and its cgroup is told as {told_cgroup}", worker.generation));
        }
        let dir = base.map(|base| base.join(format!("pool.{}", worker.pool)).join(worker.leaf()));
        if worker.runs() && !dir.is_some_and(|dir| dir.is_dir()) {
            untrue(format!("{name} is {state} and {leaf} is not there"));
        }
    }
    counts(told, found);
}

fn counts(told: &Told, found: &mut Findings) {
    let count_of = |workers: &[&Worker], state: &str| workers.iter().filter(|worker| worker.state == state).count();
    let everybody: Vec<&Worker> = told.workers.iter().collect();
    let mut sums = vec![("all".to_owned(), &told.status["counts"], everybody)];
    for pool in told.status["pools"].as_array().into_iter().flatten() {
        let name = pool["name"].as_str().unwrap_or_default();
        let own = told.workers.iter().filter(|worker| worker.pool == name).collect();
        sums.push((name.to_owned(), &pool["counts"], own));
    }
    for (name, counts, workers) in sums {
        for (state, count) in counts.as_object().into_iter().flatten() {
            let listed = count_of(&workers, state);
            if count.as_u64() != u64::try_from(listed).ok() {
                found.add(Invariant::Truth, format!("{name}: {count} {state} in the status, {listed} in the list"));
            }
        }
    }
}
