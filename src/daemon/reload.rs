//! Changing the wanted pools while they run: all or nothing, and only what differs.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;

use super::adopt::Left;
use super::birth::chain;
use super::foresight::Habit;
use super::pool::{Pool, Templates, has_current_root, prepare};
use super::state::Daemon;
use super::upgrade::Handover;
use super::{Error, control::OWN_CALLS};
use crate::engine::{Answer, CallId, Input, Target};
use crate::protocol::control::ReloadReply;
use crate::spec::{CONFIG_BYTES_MAX, Config, Listen, PoolId, PoolName, PoolSpec, parse_config};

/// The daemon's own order to start everything, answered when all first workers are ready or cannot be.
pub(super) const FIRST_START: CallId = CallId(OWN_CALLS);
/// The daemon's own orders to restart what a reload has changed.
const RESTART_CHANGED: CallId = CallId(OWN_CALLS | 1);

impl Daemon {
    /// Reads the configuration again and changes what differs.
    ///
    /// # Errors
    /// One sentence; then nothing was changed.
    pub(super) fn reload(&mut self) -> Result<ReloadReply, String> {
        if self.state == crate::protocol::control::DaemonState::Stopping {
            return Err("the daemon is shutting down".to_owned());
        }
        self.manager.reloading(self.now.0 / 1000);
        let outcome = self.reload_from_file();
        self.manager.ready(&format!("halsup {} runs; pools: {}", env!("CARGO_PKG_VERSION"), self.pools.len()));
        self.catch_up_with_manager();
        outcome
    }

    fn reload_from_file(&mut self) -> Result<ReloadReply, String> {
        let path =
            self.config_path.clone().ok_or("there is no configuration file: pools came from the command line")?;
        let text = read_bounded(&path).map_err(|error| format!("read {}: {error}", path.display()))?;
        let config = parse_config(&text, &super::launch::environment()).map_err(|errors| errors.to_string())?;
        let reply = self.change_to(config)?;
        self.persist.keep_config(&text);
        self.config_text = text;
        let counts = [reply.added.len(), reply.changed.len(), reply.removed.len()].map(|count| count.to_string());
        let [added, changed, removed] = &counts;
        let fields = [("added", added.as_str()), ("changed", changed.as_str()), ("removed", removed.as_str())];
        self.audit("config_reload", &path.display().to_string(), &fields);
        tracing::info!(target: "pool", added = reply.added.len(), changed = reply.changed.len(), removed = reply.removed.len(), "reloaded");
        Ok(reply)
    }

    /// SIGHUP: the same, with the log as the only listener.
    pub(super) fn reload_by_signal(&mut self) {
        if let Err(sentence) = self.reload() {
            tracing::error!(target: "pool", "reload: {sentence}");
        }
    }

    fn change_to(&mut self, config: Config) -> Result<ReloadReply, String> {
        let (old, new) = (&self.spec, &config.daemon);
        if (&old.instance, &old.runtime_dir, &old.state_dir, &old.home, &old.cgroup, old.uid_base)
            != (&new.instance, &new.runtime_dir, &new.state_dir, &new.home, &new.cgroup, new.uid_base)
        {
            return Err(
                "instance, runtime_dir, state_dir, home, cgroup and uid_base change only with a restart of the daemon"
                    .to_owned(),
            );
        }
        let mut reply = ReloadReply::default();
        let wanted: BTreeMap<PoolName, PoolSpec> =
            config.pools.into_iter().map(|spec| (spec.name.clone(), spec)).collect();
        // First everything that can fail, on the side; then everything that cannot.
        let mut prepared = Vec::new();
        if let Err(sentence) = self.prepare_changes(&wanted, &config.daemon, &mut prepared) {
            self.discard(&wanted, prepared);
            return Err(sentence);
        }
        let gone: Vec<(PoolName, PoolId)> =
            self.names.iter().filter(|(name, _)| !wanted.contains_key(*name)).map(|(n, i)| (n.clone(), *i)).collect();
        for (name, id) in gone {
            reply.removed.push(name.to_string());
            self.leaving.insert(id);
            self.names.remove(&name);
            self.inputs.push(Input::PoolRemoved(id));
        }
        for change in prepared {
            let name = change.spec.name.to_string();
            match self.names.get(&change.spec.name).copied() {
                Some(id) => {
                    reply.changed.push(name);
                    self.redefine(id, change);
                }
                None => {
                    reply.added.push(name);
                    self.define(change);
                }
            }
        }
        self.redefine_tasks(config.tasks);
        self.spec = config.daemon;
        self.gateway_spec = config.gateway;
        self.look_after_gateway();
        super::log::best_effort(
            self.log.set(&self.spec.log_level.clone()),
            "the filter was checked with the configuration",
        );
        Ok(reply)
    }

    fn prepare_changes(
        &mut self,
        wanted: &BTreeMap<PoolName, PoolSpec>,
        daemon: &crate::spec::DaemonSpec,
        changes: &mut Vec<Change>,
    ) -> Result<(), String> {
        let Some(cgroups) = &self.cgroups else { return Err("the daemon has no cgroup".to_owned()) };
        let mut templates = Templates::default();
        for spec in wanted.values() {
            let running = self.names.get(&spec.name).and_then(|id| self.pools.get(id));
            if running.is_some_and(|pool| pool.spec == *spec && has_current_root(pool, daemon)) {
                continue;
            }
            if running.is_some_and(|pool| pool.spec.service != spec.service) {
                return Err(format!(
                    "{}: a pool cannot become a service, or the other way round, while it runs",
                    spec.name
                ));
            }
            if running.is_none()
                && self.leaving.iter().any(|id| self.pools.get(id).is_some_and(|pool| pool.spec.name == spec.name))
            {
                return Err(format!("{}: its predecessor of the same name is still being stopped", spec.name));
            }
            let kept = running.map_or(&[][..], |pool| &pool.prepared.listeners);
            let prepared = prepare(spec, daemon, cgroups, &mut templates, kept);
            let prepared = prepared.map_err(|error| {
                if error.is_fatal() {
                    // This process is in a template's mount namespace and cannot get back: every path now means another
                    // file. Whoever started the daemon starts it again.
                    tracing::error!(target: "pool", "{}", chain(&error));
                    std::process::abort();
                }
                format!("{}: {}", spec.name, chain(&error))
            })?;
            changes.push(Change { spec: spec.clone(), prepared });
        }
        Ok(())
    }

    /// Removes what was prepared for pools that do not come to be: of those that run, everything is theirs.
    fn discard(&self, wanted: &BTreeMap<PoolName, PoolSpec>, changes: Vec<Change>) {
        let Some(cgroups) = &self.cgroups else { return };
        let is_there = |name: &PoolName| self.pools.values().any(|pool| pool.spec.name == *name);
        for change in changes.iter().filter(|change| !is_there(&change.spec.name)) {
            change.prepared.unlink_sockets();
        }
        drop(changes);
        for name in wanted.keys().filter(|name| !is_there(name)) {
            // Most were not reached, and have none.
            if let Ok(cgroup) = cgroups.open_pool(name) {
                super::log::best_effort(cgroup.remove(cgroups), "empty; the next reload takes it over");
            }
        }
    }

    fn redefine(&mut self, id: PoolId, change: Change) {
        let Some(pool) = self.pools.get_mut(&id) else { return };
        // What the engine alone decides by changes under running workers; everything else needs new ones.
        let program_differs = PoolSpec { policy: change.spec.policy.clone(), ..pool.spec.clone() } != change.spec
            || pool.prepared.image != change.prepared.image;
        self.inputs.push(Input::PoolDefined(id, Box::new(change.spec.policy.clone())));
        pool.prepared.unlink_sockets_but(&change.prepared.listeners);
        let habit = pool.habit;
        *pool = Pool { id, spec: change.spec, prepared: change.prepared, habit };
        if program_differs {
            self.restart_changed(id);
        }
    }

    /// Prepares a pool once more as it is configured, for what it names has changed, and restarts its workers.
    pub(super) fn prepare_again(&mut self, id: PoolId) {
        let (Some(pool), Some(cgroups)) = (self.pools.get_mut(&id), &self.cgroups) else { return };
        match prepare(&pool.spec, &self.spec, cgroups, &mut Templates::default(), &pool.prepared.listeners) {
            Ok(prepared) => {
                pool.prepared.unlink_sockets_but(&prepared.listeners);
                pool.prepared = prepared;
                self.restart_changed(id);
            }
            Err(error) => {
                tracing::error!(target: "pool", "prepare pool {}: {}", pool.spec.name, chain(&error));
                if error.is_fatal() {
                    // As in a reload: every path means another file now.
                    std::process::abort();
                }
            }
        }
    }

    /// Restarts the workers of a pool whose configuration has changed.
    pub(super) fn restart_changed(&mut self, id: PoolId) {
        // At the start the engine has not heard of those yet that were taken over.
        let known = self.engine.workers().map(|view| view.worker).chain(self.live.keys().copied());
        let workers: Vec<_> = known.filter(|worker| worker.pool == id).collect();
        self.asked_by.extend(workers.into_iter().map(|worker| (worker, "a changed configuration".to_owned())));
        self.inputs.push(Input::RestartRequested(RESTART_CHANGED, Target::Pool(id)));
    }

    /// Adds a pool; the engine starts it.
    pub(super) fn define(&mut self, change: Change) {
        let policy = Box::new(change.spec.policy.clone());
        let id = self.add_pool(change);
        self.inputs.push(Input::PoolDefined(id, policy));
    }

    /// Adds a pool that the engine is told of by the caller.
    pub(super) fn add_pool(&mut self, change: Change) -> PoolId {
        let id = PoolId(self.next_pool);
        self.next_pool += 1;
        self.names.insert(change.spec.name.clone(), id);
        self.pools.insert(id, Pool { id, spec: change.spec, prepared: change.prepared, habit: Habit::default() });
        id
    }

    /// The engine has answered one of the daemon's own orders.
    pub(super) fn answer_own(&mut self, call: CallId, answer: &Answer) {
        if call == FIRST_START
            && let Some(tell) = self.options.when_ready.take()
        {
            let (status, workers) = (self.status_reply(), self.worker_infos(None));
            tell(&status, &workers);
        }
        // That of a task's worker.
        self.refuse_claim(call, answer);
        tracing::debug!(target: "pool", call = call.0, ?answer, "own order answered");
    }
}

/// A pool as it is to be.
#[derive(Debug)]
pub(super) struct Change {
    pub(super) spec: PoolSpec,
    pub(super) prepared: super::pool::Prepared,
}

/// Prepares every pool of a first configuration.
///
/// # Errors
/// [`Error::Pool`] for the first that cannot be.
pub(super) fn prepare_all(
    config: &Config,
    cgroups: &crate::host::cgroup::CgroupRoot,
    left: &Left,
    handover: Option<&Handover>,
) -> Result<Vec<Change>, Error> {
    let mut templates = Templates::default();
    let mut changes: Vec<Change> = Vec::new();
    for spec in &config.pools {
        match prepare(spec, &config.daemon, cgroups, &mut templates, &kept_listeners(spec, left, handover)) {
            Ok(prepared) => changes.push(Change { spec: spec.clone(), prepared }),
            Err(source) => {
                discard_sockets(&changes, left, handover);
                return Err(Error::Pool { name: spec.name.clone(), source });
            }
        }
    }
    Ok(changes)
}

/// The listeners that a pool goes on with: what was handed over is there also where no worker is left that would have it.
fn kept_listeners(spec: &PoolSpec, left: &Left, handover: Option<&Handover>) -> Vec<(Listen, OwnedFd)> {
    handover.iter().flat_map(|handed| handed.listeners(spec)).chain(left.listeners(spec)).collect()
}

/// Removes the sockets that were made for a start that fails; those of workers that live stay theirs.
pub(super) fn discard_sockets(changes: &[Change], left: &Left, handover: Option<&Handover>) {
    for change in changes {
        change.prepared.unlink_sockets_but(&kept_listeners(&change.spec, left, handover));
    }
}

fn read_bounded(path: &std::path::Path) -> std::io::Result<String> {
    use std::io::Read as _;
    let mut text = String::new();
    std::fs::File::open(path)?.take(CONFIG_BYTES_MAX as u64 + 1).read_to_string(&mut text)?;
    Ok(text)
}
