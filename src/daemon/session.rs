//! Sessions: claimed workers with a name, an owner and a purpose; what is remembered of each, and its end.
//!
//! A session is written down before anything is bound to its worker, and once more when its caller has been answered: a
//! daemon that starts over one that nobody was told of gives its worker back. Never binds (`bind.rs`).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::clock;
use super::state::Daemon;
use crate::engine::{CallId, Input, Return};
use crate::protocol::control::Claimed;
use crate::spec::{Generation, Limit, Limits, PoolName, WorkerId};

/// What a session may use.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct SessionLimits {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_millis: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pids: Option<u64>,
}

impl SessionLimits {
    /// Of limits as they are enforced.
    pub(super) fn of(limits: &Limits) -> Self {
        let value = |limit: Option<Limit<u64>>| limit.map(|limit| limit.value);
        Self {
            memory_bytes: value(limits.memory_bytes),
            cpu_millis: value(limits.cpu_millis),
            pids: value(limits.pids),
        }
    }
}

/// A claimed worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Session {
    /// Its name, which no other has.
    pub name: String,
    /// The spawn attempt that it has.
    pub generation: u64,
    /// Who claimed it.
    pub owner: u32,
    /// The directory that appears inside, by its path on the host.
    pub project: Option<String>,
    /// Where its program begins, as seen from inside; `None` is the worker's own directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cwd: Option<String>,
    /// Wall clock, in milliseconds since 1970.
    pub created_msec: u64,
    /// Whether its program has a terminal.
    pub terminal: bool,
    /// Whether nobody was to be attached to it when it began.
    #[serde(default)]
    pub detached: bool,
    /// What it may use; nothing written is no limit.
    #[serde(default)]
    pub limits: SessionLimits,
    /// What runs in it.
    pub command: Vec<String>,
    /// What the claim said to remember, each `name=value`.
    pub labels: Vec<String>,
    /// Whether its caller was told that it has it.
    #[serde(default)]
    pub answered: bool,
    /// Whether it is kept when its program has ended, until somebody releases it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub keeps: bool,
    /// Whether nothing of it is to stay behind, its last output included.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub vanishes: bool,
    /// The task that runs in it, if one does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task: Option<String>,
}

impl Session {
    /// As it is told.
    pub(super) fn info(&self) -> Claimed {
        Claimed {
            name: self.name.clone(),
            owner: self.owner,
            project: self.project.clone(),
            created: clock::rfc3339(clock::from_msec(self.created_msec)),
            terminal: self.terminal,
            command: self.command.clone(),
            labels: self.labels.clone(),
        }
    }
}

/// All sessions, and the names that are taken.
#[derive(Debug, Default)]
pub(super) struct Sessions {
    by_worker: BTreeMap<WorkerId, Session>,
    /// Names of sessions, and of claims that have no worker yet.
    names: BTreeMap<String, Option<WorkerId>>,
}

impl Sessions {
    /// Takes a name for a claim; `false` if it is taken.
    pub(super) fn reserve(&mut self, name: &str) -> bool {
        let free = !self.names.contains_key(name);
        if free {
            self.names.insert(name.to_owned(), None);
        }
        free
    }

    /// Gives the name of a claim back that came to nothing.
    pub(super) fn give_back(&mut self, name: &str) {
        if self.names.get(name) == Some(&None) {
            self.names.remove(name);
        }
    }

    /// A claim has got its worker.
    pub(super) fn insert(&mut self, worker: WorkerId, session: Session) {
        self.names.insert(session.name.clone(), Some(worker));
        self.by_worker.insert(worker, session);
    }

    /// The session of a worker.
    pub(super) fn of(&self, worker: WorkerId) -> Option<&Session> {
        self.by_worker.get(&worker)
    }

    fn remove(&mut self, worker: WorkerId) -> Option<Session> {
        let session = self.by_worker.remove(&worker)?;
        self.names.remove(&session.name);
        Some(session)
    }
}

/// The key of a session's record.
pub(super) fn session_key(pool: &PoolName, slot: u32) -> String {
    format!("session/{pool}/{slot}")
}

/// The daemon's own order to take a worker back.
pub(super) const fn abandon_call(generation: Generation) -> CallId {
    CallId(super::control::OWN_CALLS | 1 << 62 | generation.0)
}

impl Daemon {
    /// Remembers a session, now and for a later daemon.
    pub(super) fn keep_session(&mut self, worker: WorkerId, session: Session) {
        if let Some(pool) = self.pools.get(&worker.pool) {
            self.persist.keep_session(&session_key(&pool.spec.name, worker.slot), Some(&session));
        }
        self.sessions.insert(worker, session);
        self.tell_of_worker(worker);
    }

    /// Its caller has been told.
    pub(super) fn session_is_answered(&mut self, worker: WorkerId) {
        if let Some(session) = self.sessions.of(worker).cloned() {
            // What was kept under its name makes way.
            self.forget_kept(&session.name);
            self.keep_session(worker, Session { answered: true, ..session });
        }
    }

    /// It is given back, and nothing of it is to stay behind.
    pub(super) fn session_vanishes(&mut self, worker: WorkerId) {
        if let Some(session) = self.sessions.of(worker).cloned() {
            self.keep_session(worker, Session { vanishes: true, ..session });
        }
    }

    /// A worker's place is given up, or somebody else's from now on, and its session with it.
    pub(super) fn end_session(&mut self, worker: WorkerId) {
        let Some(session) = self.sessions.remove(worker) else { return };
        if let Some(pool) = self.pools.get(&worker.pool) {
            self.persist.keep_session(&session_key(&pool.spec.name, worker.slot), None);
        }
        self.tell_of_worker(worker);
        tracing::info!(target: "session", session = %session.name, "session {} has ended", session.name);
        self.keep_ended(worker, session);
    }

    /// Takes over the session of a worker that an earlier daemon had claimed for somebody. If it is `leased` and `lives`, and
    /// nobody was told of it or nothing was written down, it is given back; of a task whose program runs nobody has to be told.
    pub(super) fn take_session_over(
        &mut self,
        worker: WorkerId,
        generation: Generation,
        known: Option<Session>,
        leased: bool,
        (lives, runs): (bool, bool),
    ) {
        let known = known.map(|session| {
            let answered = session.answered || runs && session.task.is_some();
            Session { answered, ..session }
        });
        let answered = known.as_ref().is_some_and(|session| session.answered && session.generation == generation.0);
        if !leased {
            // It was given back, and its place begins anew.
            if let Some(pool) = self.pools.get(&worker.pool).filter(|_| known.is_some()) {
                self.persist.keep_session(&session_key(&pool.spec.name, worker.slot), None);
            }
            return;
        }
        if let Some(session) = known {
            // Also of one that has ended: its record goes with its place.
            self.keep_session(worker, session);
        }
        if lives && !answered {
            self.inputs.push(Input::ReleaseRequested(abandon_call(generation), worker, Return::Destroyed));
        }
    }
}
