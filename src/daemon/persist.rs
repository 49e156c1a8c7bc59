//! What outlives this process: the records of workers and pools, the configuration in force, and death certificates.
//!
//! Written once a turn, after the engine has decided and before anything is done about it: a daemon that is killed leaves
//! nothing in the kernel that no record knows of, and no order that was answered is forgotten. Where the disk does not take
//! it, the daemon goes on from memory, says so in its status, starts nothing new, and tries again. Read back at the start
//! by the same rules as anything from outside: names by their grammar, numbers in their ranges.

use std::os::fd::BorrowedFd;
use std::time::Duration;

use serde::Serialize;
use serde_json::{Value, json};

use super::RunOptions;
use super::birth::chain;
use super::clock;
use super::kept::Kept;
use super::past::{FORMAT, Past, pool_key, worker_key};
use super::session::Session;
use super::state::Daemon;
use super::tasks::{KeptTask, TasksRecord};
use super::timers::Timer;
use super::tokens::Token;
use super::upgrade::Handover;
use crate::engine::{Change, Effect, WorkerRecord};
use crate::host::state_file::{RecordLog, StateFile, StateFileError};
use crate::protocol::control::DeathCertificate;
use crate::spec::{Generation, InstanceName, WorkerId};

/// Name of the file with the records, in the state directory.
pub(super) const STATE_NAME: &str = "state";
/// Name of the file with the certificates.
pub(super) const CERTIFICATES_NAME: &str = "certificates";
/// A file of certificates is rotated at this size.
const CERTIFICATES_BYTES_MAX: u64 = 4 << 20;
/// Pause before what could not be written is tried again.
const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// The files, and what keeps them from being written.
#[derive(Debug)]
pub(super) struct Persist {
    state: StateFile,
    certificates: RecordLog,
    /// What is said of the daemon itself.
    header: Value,
    trouble: Option<String>,
    retries: bool,
}

impl Persist {
    /// Reads what an earlier daemon has written in `dir`. Records of workers count only if the machine has not booted since.
    ///
    /// # Errors
    /// When a file cannot be read now, for want of memory or descriptors.
    pub(super) fn open(
        dir: BorrowedFd<'_>,
        instance: &InstanceName,
        boot: &str,
    ) -> Result<(Self, Past), StateFileError> {
        let stamp = clock::msec(clock::wall());
        let own = || dir.try_clone_to_owned().map_err(StateFileError::descriptor);
        let (state, records) = StateFile::open(own()?, STATE_NAME, stamp)?;
        let (certificates, exits) = RecordLog::open(own()?, CERTIFICATES_NAME, CERTIFICATES_BYTES_MAX, stamp)?;
        let mut persist = Self { state, certificates, header: Value::Null, trouble: None, retries: false };
        let mut past = Past::of(records, exits, instance, boot);
        if let Some(reason) = &past.foreign {
            past.damage.push(persist.state.put_aside(reason, stamp));
        }
        persist.header = json!({
            "format": FORMAT,
            "version": env!("CARGO_PKG_VERSION"),
            "instance": instance.as_str(),
            "boot": boot,
        });
        persist.state.put("daemon", &persist.header);
        Ok((persist, past))
    }

    /// Why nothing can be written, if so.
    pub(super) fn trouble(&self) -> Option<&str> {
        self.trouble.as_deref()
    }

    /// Keeps the text of the configuration in force, by which a later daemon sees what has changed.
    pub(super) fn keep_config(&mut self, text: &str) {
        self.state.put("config", &json!({ "text": text }));
    }

    /// The text of the configuration in force, which is kept for a later daemon.
    pub(super) fn config_in_force(&mut self, handover: Option<&Handover>, options: &RunOptions) -> String {
        let read = |path| std::fs::read_to_string(path).ok();
        let handed = handover.and_then(Handover::config).map(str::to_owned);
        let text = handed.or_else(|| options.without_file.map(str::to_owned));
        let text = text.or_else(|| options.config_path.as_ref().and_then(read)).unwrap_or_default();
        self.keep_config(&text);
        text
    }

    /// Keeps how far earlier daemons have counted: of what they ran and nobody takes over, no other record stays.
    pub(super) fn keep_generation(&mut self, last: Generation) {
        if let Some(header) = self.header.as_object_mut() {
            header.insert("generation".to_owned(), Value::from(last.0));
        }
        self.state.put("daemon", &self.header);
    }

    /// Keeps a session, or lets go of it.
    pub(super) fn keep_session(&mut self, key: &str, session: Option<&Session>) {
        self.put(key, session);
    }

    /// Keeps a session that has ended, or lets go of it.
    pub(super) fn keep_ended(&mut self, key: &str, kept: Option<&Kept>) {
        self.put(key, kept);
    }

    /// Keeps a token, or lets go of it.
    pub(super) fn keep_token(&mut self, key: &str, token: Option<&Token>) {
        self.put(key, token);
    }

    /// Keeps a task, or lets go of it.
    pub(super) fn keep_task(&mut self, key: &str, task: Option<&KeptTask>) {
        self.put(key, task);
    }

    /// Keeps what is known of all tasks together.
    pub(super) fn keep_tasks(&mut self, tasks: &TasksRecord) {
        self.put("tasks", Some(tasks));
    }

    fn put(&mut self, key: &str, record: Option<&impl Serialize>) {
        match record.map(|record| self.state.put_record(key, record)) {
            Some(Ok(())) => {}
            // Nothing in a record can fail to be JSON.
            Some(Err(error)) => tracing::error!(target: "state", %error, "write {key}"),
            None => self.state.remove(key),
        }
    }

    /// Says that everything is being ended by order.
    pub(super) fn keep_ending(&mut self) {
        if let Some(header) = self.header.as_object_mut() {
            header.insert("ending".to_owned(), Value::Bool(true));
        }
        self.state.put("daemon", &self.header);
    }

    /// Writes what has changed. Says so once when that begins to fail or succeeds again.
    fn flush(&mut self) {
        let (certificates, state) = (self.certificates.flush(), self.state.flush());
        self.note(certificates.and(state));
    }

    fn note(&mut self, written: Result<(), StateFileError>) {
        match written {
            Ok(()) => {
                if self.trouble.take().is_some() {
                    tracing::info!(target: "state", "the state is written again");
                }
            }
            Err(error) => {
                let sentence = chain(&error);
                if self.trouble.is_none() {
                    tracing::error!(target: "state", "{sentence}: going on from memory; nothing new is started until it can be written");
                }
                self.trouble = Some(sentence);
            }
        }
    }
}

impl Daemon {
    /// Writes down what the engine has decided, before it is carried out.
    pub(super) fn write_down(&mut self) {
        for change in self.engine.take_changes() {
            self.keep_change(change);
        }
        // While a disk takes nothing it is tried once a pause, not once a turn: a try is itself an event in the directory.
        self.write_state_now();
    }

    /// Has what is known of the worker of a claim written with the next that is, which is when it is bound.
    pub(super) fn write_down_of(&mut self, effect: &Effect) {
        if let Effect::Bind(worker, ..) = *effect
            && let Some(change) = self.engine.take_change_of(worker)
        {
            self.keep_change(change);
        }
    }

    fn keep_change(&mut self, change: Change) {
        match change {
            Change::Worker(worker, record) => {
                self.tell_of_worker(worker);
                self.write_worker(worker, record.as_deref());
            }
            Change::Pool(id, record) => {
                self.tell_of_pools();
                let Some(pool) = self.pools.get(&id) else { return };
                let key = pool_key(&pool.spec.name);
                let size = pool.spec.policy.size;
                let value = record.map(|record| {
                    let (wanted, paused, tuning) = (record.wanted, record.paused, record.tuning);
                    let (min, max) = (size.min, size.max);
                    let mut value =
                        json!({ "wanted": wanted, "paused": paused, "min": min, "max": max, "tuning": tuning });
                    if !record.breaker.is_blank() {
                        value["breaker"] = json!(record.breaker);
                    }
                    value
                });
                self.persist.put(&key, value.as_ref());
            }
            Change::Task(id, record) => self.write_task(id, record),
            Change::Tasks(totals, switched) => self.write_tasks(totals, switched),
        }
    }

    fn write_worker(&mut self, worker: WorkerId, record: Option<&WorkerRecord>) {
        let Some(pool) = self.pools.get(&worker.pool) else { return };
        let key = worker_key(&pool.spec.name, worker.slot);
        self.persist.put(&key, record);
    }

    /// Writes a certificate down; it is told afterwards.
    pub(super) fn write_certificate(&mut self, certificate: &DeathCertificate) {
        match serde_json::to_value(certificate) {
            Ok(value) => self.persist.certificates.add(&certificate.worker, &value),
            Err(error) => tracing::error!(target: "state", %error, "write the certificate of {}", certificate.worker),
        }
    }

    /// Writes what was changed while effects are carried out.
    pub(super) fn write_state_now(&mut self) {
        if !self.persist.retries {
            self.write_state_again();
        }
    }

    /// Writes all that is not written, and sets a timer for what could not be.
    pub(super) fn write_state_again(&mut self) {
        self.persist.retries = false;
        self.persist.flush();
        if self.persist.trouble.is_some() {
            self.persist.retries = true;
            self.timers.set(clock::after(self.now, RETRY_PAUSE), Timer::WriteState);
        }
    }

    /// Somebody has changed something in the state directory: what was removed or replaced is written anew.
    pub(super) fn look_after_state(&mut self) {
        if self.persist.state.was_replaced() {
            tracing::warn!(target: "state", "the state file was removed or changed by somebody else: it is written anew");
            let written = self.persist.state.rewrite();
            self.persist.note(written);
        }
        if self.persist.certificates.was_replaced() {
            tracing::warn!(target: "state", "the file of certificates was removed or changed by somebody else: it is written anew");
            let known = self.certificates.iter();
            // Nothing in a certificate can fail to be JSON.
            let known = known.filter_map(|one| Some((one.worker.as_str(), serde_json::to_value(one).ok()?)));
            let known: Vec<_> = known.collect();
            self.persist.certificates.restore(known.iter().map(|(worker, value)| (*worker, value)));
            let written = self.persist.certificates.flush();
            self.persist.note(written);
        }
    }

    /// Lets go of all that is known of workers and pools: they have ended, and the next daemon begins anew.
    pub(super) fn forget_state(&mut self) {
        for view in self.engine.workers() {
            if let Some(pool) = self.pools.get(&view.worker.pool) {
                self.persist.state.remove(&worker_key(&pool.spec.name, view.worker.slot));
            }
        }
        for pool in self.pools.values() {
            self.persist.state.remove(&pool_key(&pool.spec.name));
        }
    }

    /// The end: what is to outlive the daemon is on the disk, with nobody waiting any more.
    pub(super) fn sync_state(&mut self) {
        self.persist.flush();
        let synced = self.persist.certificates.sync().and(self.persist.state.sync());
        self.persist.note(synced);
    }
}

/// What tells one boot of this machine from another.
pub(super) fn boot_id() -> std::io::Result<String> {
    Ok(std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}
