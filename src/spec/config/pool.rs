//! One pool or service: what it is when nothing is written, and what is checked once all its keys are read.
//!
//! Owns the defaults and the rules between keys of one pool. The rows of its keys are in `pool_keys`.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use super::atomforge;
use super::chromadb;
use super::claims::ClaimsDraft;
use super::dispatch::{BudgetDraft, DispatchDraft};
use super::error::{Fault, Faults, Place};
use super::keys::{Key, Written, apply, nearest, walk};
use super::node::Node;
use super::pool_keys::KEYS;
use super::pool_tables::HeartbeatDraft;
use crate::spec::template::names_port;
use crate::spec::{
    Identity, ImageName, Limit, Limits, LogSpec, Net, OnSupervisorDeath, PoolName, PoolPolicy, PoolSpec, Ports, Probe,
    Ready, Restart, Root, Seccomp, ServeHttp, Size, Startup, Stop,
};

/// What runs in a claimed worker when the claim says nothing else.
const SHELL: &str = "/bin/sh";

/// A pool may have at most this many workers, and so may all pools together.
pub(super) const WORKERS_MAX: u32 = 10_000;

impl PoolSpec {
    /// Whether a claim that names no command gets a shell, for want of a command of the pool's own.
    #[must_use]
    pub fn gives_a_shell(&self) -> bool {
        self.policy.claims.is_some() && self.command == [SHELL]
    }

    /// A pool of one worker that runs `command`, everything else as if nothing had been written.
    #[must_use]
    pub fn with_defaults(name: PoolName, command: Vec<String>) -> Self {
        let default = |value| Some(Limit { value, asked: false });
        Self {
            name,
            service: false,
            command,
            policy: PoolPolicy::default(),
            terminal: false,
            env: BTreeMap::new(),
            base_port: None,
            ports: None,
            root: Root::Host,
            net: Net::Parent,
            identity: Identity::Dynamic,
            link: Vec::new(),
            binds: Vec::new(),
            volumes: Vec::new(),
            limits: Limits {
                memory_bytes: default(4 << 30),
                memory_high_bytes: None,
                swap_bytes: default(0),
                oom_group: true,
                cpu_millis: default(2000),
                cpu_weight: None,
                pids: default(100),
                cpuset: None,
            },
            rlimits: BTreeMap::new(),
            seccomp: Seccomp::Default,
            ready: Ready::Exec,
            heartbeat_probe: None,
            listen: Vec::new(),
            log: LogSpec { max_bytes: 10 << 20, keep: 3, json: false },
            projects: Vec::new(),
            zero_copy_bytes: 1 << 20,
            serve: None,
            on_supervisor_death: OnSupervisorDeath::EndAfter(Duration::from_secs(60)),
        }
    }
}

/// One worker, ready at exec, restarted after 0.5 s and more, without heartbeats.
impl Default for PoolPolicy {
    fn default() -> Self {
        Self {
            size: Size { min: 1, max: 1 },
            startup: Startup {
                batch_size: 8,
                batch_delay: Duration::ZERO,
                ready_timeout: Duration::from_secs(30),
                waits_for_ready: false,
            },
            restart: Restart {
                enabled: true,
                delay: Duration::from_millis(500),
                delay_max: Duration::from_secs(30),
                jitter_percent: 20,
                stable_after: Duration::from_secs(10),
                max_restarts: 5,
                window: Duration::from_secs(60),
            },
            heartbeat: None,
            stop: Stop { signal: 15, grace: Duration::from_secs(10), kill_timeout: Duration::from_secs(10) },
            freeze_after: None,
            claims: None,
            dispatch: None,
        }
    }
}

/// A pool while it is read.
#[derive(Debug)]
pub(super) struct PoolDraft {
    pub(super) spec: PoolSpec,
    pub(super) size: Option<u32>,
    pub(super) min: Option<u32>,
    pub(super) max: Option<u32>,
    pub(super) claims: Option<ClaimsDraft>,
    pub(super) dispatch: Option<DispatchDraft>,
    pub(super) serve: Option<ServeHttp>,
    pub(super) open: Option<bool>,
    pub(super) request_max: Option<u64>,
    pub(super) answer_max: Option<u64>,
    pub(super) upgrade_max: Option<Duration>,
    pub(super) http_listen: Vec<SocketAddr>,
    pub(super) upgrade_idle: Option<Duration>,
    pub(super) heartbeat: HeartbeatDraft,
    pub(super) image: Option<ImageName>,
    pub(super) written: Written,
    pub(super) place: Place,
}

/// A pool whose own keys are right, and where they were written.
#[derive(Debug)]
pub(super) struct Checked {
    pub(super) spec: PoolSpec,
    written: Written,
    place: Place,
    budget: Option<BudgetDraft>,
    /// Where the gateway answers with this pool alone: the gateway's business, and none of its workers'.
    http_listen: Vec<SocketAddr>,
}

impl Checked {
    /// A pool that comes from no file.
    pub(super) fn outside(spec: PoolSpec) -> Self {
        let place = Place::outside(if spec.service { "service" } else { "pool" }).key(spec.name.as_str());
        Self { spec, written: Written::new(), place, budget: None, http_listen: Vec::new() }
    }

    /// A service that is made of what was written at `place`.
    pub(super) fn made(spec: PoolSpec, place: Place) -> Self {
        Self { spec, written: Written::new(), place, budget: None, http_listen: Vec::new() }
    }

    /// Where the pool was written.
    pub(super) const fn place(&self) -> &Place {
        &self.place
    }

    /// Where the gateway answers with this pool alone.
    pub(super) fn http_listen(&self) -> &[SocketAddr] {
        &self.http_listen
    }

    /// The budget that it shares, as it was written.
    pub(super) const fn budget(&self) -> Option<&BudgetDraft> {
        self.budget.as_ref()
    }

    /// Where `key` was written, or else the pool.
    pub(super) fn place_of(&self, key: &str) -> Place {
        self.written.get(key).cloned().unwrap_or_else(|| self.place.key(key))
    }
}

impl PoolDraft {
    pub(super) fn new(name: PoolName, place: Place) -> Self {
        Self {
            spec: PoolSpec::with_defaults(name, Vec::new()),
            size: None,
            min: None,
            max: None,
            claims: None,
            dispatch: None,
            serve: None,
            open: None,
            request_max: None,
            answer_max: None,
            upgrade_max: None,
            http_listen: Vec::new(),
            upgrade_idle: None,
            heartbeat: HeartbeatDraft::default(),
            image: None,
            written: Written::new(),
            place,
        }
    }

    /// Sets the key `name` from an option or a variable.
    pub(super) fn apply(&mut self, name: &'static str, text: &str, place: Place) -> Result<(), Faults> {
        self.written.insert(name, place.clone());
        apply(KEYS, self, name, text, place)
    }

    /// Lets variables of the environment fill what was not written. An empty variable says nothing.
    pub(super) fn fill_from(&mut self, environment: &BTreeMap<String, String>) -> Faults {
        let mut faults = Faults::default();
        // What is `/` has been said, or is a service's own.
        let has_root = self.spec.service || self.written.contains_key("root");
        let is_said = |key: &Key<Self>| self.written.contains_key(key.name) || (key.name == "image" && has_root);
        let free: Vec<_> = KEYS.iter().filter(|key| !key.variable.is_empty() && !is_said(key)).collect();
        for key in free {
            if let Some(text) = environment.get(key.variable).filter(|text| !text.is_empty()) {
                faults.note(self.apply(key.name, text, Place::outside(key.variable)));
            }
        }
        if let Some(claims) = &mut self.claims {
            faults.append(claims.fill_from(environment));
        }
        faults
    }

    fn place_of(&self, key: &str) -> Place {
        self.written.get(key).cloned().unwrap_or_else(|| self.place.key(key))
    }

    /// Checks the keys against each other.
    pub(super) fn finish(mut self) -> Result<Checked, Faults> {
        let mut faults = Faults::default();
        match self.image.take() {
            Some(_) if self.written.contains_key("root") => {
                faults.push(self.place_of("image").fault("image is written beside root", "one of them"));
            }
            Some(image) => self.spec.root = Root::Image(image),
            None => {}
        }
        if let Some(claims) = self.claims.take() {
            if let Some((size, policy)) = faults.note(claims.finish(&self.place_of("claims"))) {
                (self.spec.policy.size, self.spec.policy.claims) = (size, Some(policy));
            }
            self.spec.projects = claims.projects;
            self.check_claims(&mut faults);
            if !self.written.contains_key("command") {
                self.spec.command = vec![SHELL.to_owned()];
            }
        } else if let Some(size) = faults.note(self.finish_size()) {
            self.spec.policy.size = size;
        }
        self.finish_serve(&mut faults);
        self.spec.policy.startup.waits_for_ready = self.spec.ready != Ready::Exec;
        if let Some((heartbeat, probe)) =
            faults.note(self.heartbeat.finish(&self.spec.ready, &self.place_of("heartbeat")))
        {
            self.spec.policy.heartbeat = heartbeat;
            self.spec.heartbeat_probe = probe;
        }
        if self.spec.command.is_empty() && !self.written.contains_key("command") {
            faults.push(
                self.place_of("command")
                    .fault("missing", "a list such as [\"python3\", \"-m\", \"http.server\", \"{port}\"]"),
            );
        }
        // What a terminal's program is told when its terminal goes; a shell takes no notice of SIGTERM.
        if (self.spec.terminal || self.spec.policy.claims.is_some()) && !self.written.contains_key("stop_signal") {
            self.spec.policy.stop.signal = 1;
        }
        if let Some(place) = self.written.get("freeze_after")
            && !self.spec.terminal
            && self.spec.policy.claims.is_none()
        {
            let what = "freeze_after is written for workers of which nobody can know when they are needed again";
            faults.push(place.fault(what, "it beside claims or terminal = true"));
        }
        self.check_limits(&mut faults);
        self.check_ports(&mut faults);
        let budget = self.finish_dispatch(&mut faults);
        let Self { spec, written, place, http_listen, .. } = self;
        faults.or(()).map(|()| Checked { spec, written, place, budget, http_listen })
    }

    /// What it means that its workers serve HTTP.
    fn finish_serve(&mut self, faults: &mut Faults) {
        let Some(serve) = self.serve.take() else {
            for key in ["open", "request_max", "answer_max", "upgrade_max", "upgrade_idle", "http_listen"] {
                if let Some(place) = self.written.get(key) {
                    faults.push(
                        place.fault(format!("{key} is written for workers that do not serve"), "serve beside it"),
                    );
                }
            }
            return;
        };
        let place = self.place_of("serve");
        if self.spec.policy.claims.is_some() {
            faults.push(place.fault("serve is written beside claims", "one of them"));
        }
        if self.spec.base_port.is_none() {
            faults.push(place.fault("serve needs a port", "base_port to be written too"));
        }
        if self.spec.net != Net::Parent {
            faults.push(place.fault("requests do not reach another network", "net = \"parent\" with serve"));
        }
        if !self.written.contains_key("ready") {
            self.spec.ready = Ready::Probe(Probe::Tcp);
        }
        self.dispatch.get_or_insert_default().serves_http();
        self.spec.serve = Some(ServeHttp {
            open: self.open.unwrap_or(serve.open),
            request_bytes_max: self.request_max.unwrap_or(serve.request_bytes_max),
            answer_bytes_max: self.answer_max,
            upgrade_max: self.upgrade_max.or(serve.upgrade_max).filter(|most| !most.is_zero()),
            upgrade_idle: self.upgrade_idle.unwrap_or(serve.upgrade_idle),
        });
    }

    /// How requests are given to its workers, and the budget that it shares.
    fn finish_dispatch(&mut self, faults: &mut Faults) -> Option<BudgetDraft> {
        let draft = self.dispatch.take()?;
        if self.spec.policy.claims.is_some() {
            faults.push(self.place_of("dispatch").fault("dispatch is written beside claims", "one of them"));
        }
        self.spec.zero_copy_bytes = draft.zero_copy_bytes;
        let (policy, budget) = draft.finish();
        self.spec.policy.dispatch = Some(policy);
        budget
    }

    /// What waits to be claimed runs nothing yet that could be ready, beat or listen.
    fn check_claims(&self, faults: &mut Faults) {
        for key in ["size", "min", "max", "ready", "heartbeat", "base_port", "listen"] {
            if let Some(place) = self.written.get(key) {
                faults.push(place.fault(format!("{key} is written beside claims"), "one of them"));
            }
        }
        if self.spec.root == Root::Empty {
            let what = "claims bring directories, for which a root that is empty has no place";
            faults.push(self.place_of("root").fault(what, ""));
        }
    }

    fn finish_size(&self) -> Result<Size, Fault> {
        match (self.size, self.min, self.max) {
            (None, None, None) => Ok(Size { min: 1, max: 1 }),
            (Some(size), None, None) => Ok(Size { min: size, max: size }),
            (None, Some(min), Some(max)) if min <= max => Ok(Size { min, max }),
            (None, Some(min), Some(max)) => {
                Err(self.place_of("min").fault(format!("min {min} is more than max {max}"), ""))
            }
            (None, Some(_), None) => {
                Err(self.place_of("min").fault("min is written without max", "both, or size alone"))
            }
            (None, None, Some(_)) => {
                Err(self.place_of("max").fault("max is written without min", "both, or size alone"))
            }
            (Some(_), _, _) => {
                Err(self.place_of("size").fault("size is written beside min or max", "size alone, or min and max"))
            }
        }
    }

    fn check_limits(&self, faults: &mut Faults) {
        let limits = &self.spec.limits;
        if let (Some(high), Some(most)) = (limits.memory_high_bytes, limits.memory_bytes)
            && high.value > most.value
        {
            let which = if most.asked { "" } else { ", the default" };
            let memory = crate::spec::scalar::format_bytes(most.value);
            faults.push(self.place_of("memory_high").fault(format!("more than memory, which is {memory}{which}"), ""));
        }
        let targets: std::collections::BTreeSet<_> = self.spec.binds.iter().map(|bind| &bind.target).collect();
        if targets.len() < self.spec.binds.len() {
            faults.push(self.place_of("bind").fault("two binds have one target", ""));
        }
        let inside: std::collections::BTreeSet<_> = self.spec.volumes.iter().map(|volume| &volume.target).collect();
        if inside.len() < self.spec.volumes.len() || !inside.is_disjoint(&targets) {
            faults.push(self.place_of("volumes").fault("a volume's target is also that of another volume or bind", ""));
        }
    }

    /// There are enough for all who may live at once.
    fn check_shared_ports(&self, ports: Ports, faults: &mut Faults) {
        if self.spec.base_port.is_some() {
            faults.push(self.place_of("ports").fault("base_port is written too", "one of the two"));
        }
        let sessions = self.spec.policy.claims.as_ref().map_or(0, |claims| claims.sessions_max);
        let workers = self.spec.policy.size.max.saturating_add(sessions);
        if ports.count() < workers {
            let what = format!("{ports} is enough for {} workers, and {workers} may live at once", ports.count());
            faults.push(self.place_of("ports").fault(what, "a longer range, or less for each by FIRST-LAST/EACH"));
        }
    }

    /// Whatever needs a port has one, and the last worker's port exists.
    fn check_ports(&self, faults: &mut Faults) {
        if let Some(ports) = self.spec.ports {
            self.check_shared_ports(ports, faults);
        }
        let Some(base) = self.spec.base_port else {
            if self.spec.ports.is_some() {
                return;
            }
            let mut need = |place: Place, what: &str| {
                faults.push(place.fault(format!("{what} needs a port"), "base_port to be written too"));
            };
            let names = |template: &String| names_port(template) == Ok(true);
            if self.spec.command.iter().any(names) {
                need(self.place_of("command"), "{port}");
            }
            if self.spec.env.values().any(names) {
                need(self.place_of("env"), "{port}");
            }
            if matches!(self.spec.ready, Ready::Probe(_)) {
                need(self.place_of("ready"), "a probe");
            }
            let says_its_port = matches!(self.spec.ready, Ready::PortFile(_));
            if self.spec.heartbeat_probe.is_some() && !says_its_port {
                need(self.place_of("heartbeat"), "a probe");
            }
            return self.check_probed_net(faults);
        };
        let max = self.spec.policy.size.max;
        if u32::from(base) + max - 1 > u32::from(u16::MAX) {
            let what = format!("the ports of {max} workers from {base} go beyond 65535");
            faults.push(self.place_of("base_port").fault(what, ""));
        }
        self.check_probed_net(faults);
    }

    /// The daemon asks in its own network.
    fn check_probed_net(&self, faults: &mut Faults) {
        if self.spec.net != Net::Parent
            && (matches!(self.spec.ready, Ready::Probe(_)) || self.spec.heartbeat_probe.is_some())
        {
            faults.push(
                self.place_of("net").fault("a probe does not reach another network", "net = \"parent\" with probes"),
            );
        }
    }
}

/// Whether the variables that speak of all pools can be read at all.
pub(super) fn try_variables(environment: &BTreeMap<String, String>) -> Result<(), Faults> {
    let place = Place::outside("");
    let name = PoolName::parse("trial").map_err(|error| place.fault(error.to_string(), ""))?;
    PoolDraft::new(name, place).fill_from(environment).or(())
}

/// Reads one `[pool.NAME]` or `[service.NAME]`.
pub(super) fn read(
    name: PoolName,
    service: bool,
    node: &Node<'_>,
    environment: &BTreeMap<String, String>,
    front: bool,
) -> Result<Checked, Faults> {
    let mut draft = PoolDraft::new(name, node.place.clone());
    draft.spec.service = service;
    let (written, mut faults) = walk(KEYS, &mut draft, node.table()?, &node.place);
    draft.written = written;
    faults.append(draft.fill_from(environment));
    if front {
        faults.append(atomforge::fill(&mut draft, environment));
    }
    if service && draft.spec.name.as_str() == chromadb::SERVICE && !draft.written.contains_key("command") {
        faults.append(chromadb::fill(&mut draft, environment));
    }
    // Rules between keys say nothing true when one of the keys was not understood.
    if faults.is_empty() { draft.finish() } else { Err(faults) }
}

/// Reads the command: at least a program, each part a checked template.
pub(super) fn command(words: &[Node<'_>], place: &Place) -> Result<Vec<String>, Faults> {
    let mut faults = Faults::default();
    let mut command = Vec::new();
    for word in words {
        let checked = word.text().and_then(|text| template(text, &word.place).map(|()| text.to_owned()));
        command.extend(faults.note(checked));
    }
    if faults.is_empty() && command.first().is_none_or(String::is_empty) {
        faults.push(place.fault("the command is empty", "at least a program"));
    }
    faults.or(command)
}

fn template(text: &str, place: &Place) -> Result<(), Fault> {
    names_port(text).map(|_| ()).map_err(|error| {
        let near = nearest(error.shown.trim_matches(['{', '}']), ["port", "slot", "worker", "instance", "dir"]);
        let near = near.map(|word| format!("{{{word}}}"));
        place.fault(format!("{:?} is no placeholder", error.shown), error.expected).suggest(near)
    })
}

/// Checks one variable of a worker's environment, the name and the value as a template, and gives the value.
pub(super) fn variable(name: &str, value: &Node<'_>) -> Result<String, Fault> {
    let place = &value.place;
    let first = name.bytes().next().is_some_and(|b| b.is_ascii_alphabetic() || b == b'_');
    let inner = name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
    if !first || !inner || name.len() > 128 {
        return Err(place.fault("not the name of a variable", "letters, digits and '_', not a digit first"));
    }
    let reserved = ["LISTEN_", "WATCHDOG_", "HALSUP_", "LD_"];
    if name == "NOTIFY_SOCKET" || reserved.iter().any(|prefix| name.starts_with(prefix)) {
        return Err(place.fault("reserved", "another name than NOTIFY_SOCKET, LISTEN_*, WATCHDOG_*, HALSUP_* and LD_*"));
    }
    let text = value.text()?;
    template(text, place).map(|()| text.to_owned())
}
