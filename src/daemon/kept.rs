//! Sessions that have ended and stay known, with how they ended and what they wrote, until somebody releases them: those
//! whose claim said so (`spawn --no-rm`).
//!
//! Nothing runs in them and no worker is theirs any more: what is kept is a record, which outlives the daemon, and the log,
//! which is moved away from its place before the next worker begins one there. Bounded: the oldest give way.

use std::collections::BTreeMap;
use std::os::fd::AsFd as _;

use serde::{Deserialize, Serialize};

use super::clock;
use super::control::Asked;
use super::log::best_effort;
use super::session::Session;
use super::state::Daemon;
use crate::host::logfile::LogFile;
use crate::protocol::control::{Cause, DeathCertificate, SessionInfo, WorkerState};
use crate::spec::WorkerId;

/// What its log is called behind its name; no worker can be called so.
pub(super) const ENDED_LOG: &str = "@ended";

/// So many are kept of one user in one pool.
const OF_A_USER_MAX: usize = 20;
/// So many are kept in all.
const ALL_MAX: usize = 1_000;

/// A session that has ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Kept {
    /// As it was, without what only its owner is told.
    pub(super) session: Session,
    /// Its pool.
    pub(super) pool: String,
    /// The worker that it had.
    pub(super) worker: String,
    /// What `/` was inside, as the configuration writes it.
    pub(super) root: String,
    /// Whether its log is one of JSON lines.
    pub(super) json: bool,
    /// When its worker was started, and when that ended; RFC 3339.
    pub(super) started: String,
    pub(super) ended: String,
    /// The number of its end among all, by which the oldest is known.
    pub(super) number: u64,
    /// How its program ended.
    pub(super) cause: Cause,
}

impl Kept {
    /// The name of its log.
    pub(super) fn log_name(session: &str) -> String {
        format!("{session}{ENDED_LOG}")
    }

    /// As it is listed.
    pub(super) fn info(&self) -> SessionInfo {
        SessionInfo {
            name: self.session.name.clone(),
            worker: self.worker.clone(),
            pool: self.pool.clone(),
            state: WorkerState::Stopped,
            frozen: false,
            started: self.started.clone(),
            image: self.root.starts_with('/').then(|| self.root.clone()),
            owner: Some(self.session.owner),
            project: self.session.project.clone(),
            columns: None,
            rows: None,
            viewers: 0,
            writer: None,
            ended: Some(self.ended.clone()),
            exit: Some(self.cause),
        }
    }
}

/// The key of its record.
pub(super) fn kept_key(session: &str) -> String {
    format!("kept/{session}")
}

/// What gives way for the one that was kept last: the oldest of its owner in its pool, or of all.
fn surplus(kept: &BTreeMap<String, Kept>, latest: &Kept) -> Option<String> {
    let of_same = |one: &&Kept| one.pool == latest.pool && one.session.owner == latest.session.owner;
    let oldest =
        |all: &mut dyn Iterator<Item = &Kept>| all.min_by_key(|one| one.number).map(|one| one.session.name.clone());
    if kept.values().filter(of_same).count() > OF_A_USER_MAX {
        return oldest(&mut kept.values().filter(of_same));
    }
    if kept.len() > ALL_MAX { oldest(&mut kept.values()) } else { None }
}

impl Daemon {
    /// A session has ended: it is kept if its claim said so and nobody has given it back.
    pub(super) fn keep_ended(&mut self, worker: WorkerId, session: Session) {
        if !session.keeps || !session.answered {
            return;
        }
        let Some(pool) = self.pools.get(&worker.pool) else { return };
        let name = pool.worker_name(worker.slot);
        let of_it = |one: &&DeathCertificate| one.worker == name && one.generation == session.generation;
        let certificate = self.certificates.iter().rev().find(of_it);
        let cause = certificate.map_or(Cause::Unknown, |one| one.cause);
        if cause == Cause::Released {
            return;
        }
        let started = certificate.and_then(|one| one.started.clone());
        let kept = Kept {
            pool: pool.spec.name.to_string(),
            root: pool.spec.root.to_string(),
            json: pool.spec.log.json,
            started: started.unwrap_or_else(|| clock::rfc3339(clock::from_msec(session.created_msec))),
            ended: certificate.map_or_else(|| clock::rfc3339(clock::wall()), |one| one.ended.clone()),
            number: self.kept.values().map(|one| one.number).max().map_or(0, |last| last + 1),
            cause,
            worker: name,
            session: Session { command: Vec::new(), labels: Vec::new(), ..session },
        };
        let session = kept.session.name.clone();
        let moved = LogFile::hand_over(self.shared.log_dir.as_fd(), &kept.worker, &Kept::log_name(&session));
        best_effort(moved, "its log goes with its place");
        tracing::info!(target: "session", session = %session, "session {session} is kept: {cause}");
        self.persist.keep_ended(&kept_key(&session), Some(&kept));
        self.kept.insert(session.clone(), kept.clone());
        self.tell_of_kept(&session);
        if let Some(oldest) = surplus(&self.kept, &kept) {
            tracing::info!(target: "session", session = %oldest, "session {oldest} is kept no longer: there are newer ones");
            self.forget_kept(&oldest);
        }
    }

    /// Lets go of a session that has ended, with its log.
    pub(super) fn forget_kept(&mut self, session: &str) {
        if self.kept.remove(session).is_some() {
            // Before its record: of a daemon that is killed in between, a record stays that can be released, and no log of nobody's.
            let forgotten = LogFile::forget(self.shared.log_dir.as_fd(), &Kept::log_name(session));
            best_effort(forgotten, "`halsup gc` removes it, or the next one that is kept under its name");
            self.persist.keep_ended(&kept_key(session), None);
            self.tell_of_kept(session);
        }
    }

    /// Whether a caller may have a name that a session had which is kept: its owner begins anew under it.
    pub(super) fn may_begin_anew(&self, session: &str, asked: &Asked) -> bool {
        let is_his = |kept: &Kept| kept.session.owner == asked.by.uid;
        self.kept.get(session).is_none_or(|kept| is_his(kept) || self.sees_all(asked.by.uid))
    }

    /// The daemon ends, and all sessions with it: those that are to be kept are.
    pub(super) fn keep_all_ended(&mut self) {
        let workers: Vec<WorkerId> = self.engine.workers().map(|view| view.worker).collect();
        workers.into_iter().for_each(|worker| self.end_session(worker));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(number: u64, owner: u32, pool: &str) -> Kept {
        let session = serde_json::json!({ "name": format!("s{number}"), "generation": number, "owner": owner,
            "project": null, "created_msec": 0, "terminal": false, "command": [], "labels": [] });
        Kept {
            session: serde_json::from_value(session).unwrap(),
            pool: pool.to_owned(),
            worker: format!("{pool}.{number}"),
            root: "host".to_owned(),
            json: false,
            started: String::new(),
            ended: String::new(),
            number,
            cause: Cause::Exited(0),
        }
    }

    #[test]
    fn the_oldest_of_its_own_gives_way_and_nobody_elses() {
        let all = (0..20).map(|number| kept(number, 1, "a")).chain([kept(20, 2, "a"), kept(21, 1, "b")]);
        let mut all: BTreeMap<String, Kept> = all.map(|one| (one.session.name.clone(), one)).collect();
        let latest = kept(22, 2, "b");
        all.insert("s22".to_owned(), latest.clone());
        assert_eq!(surplus(&all, &latest), None);
        let latest = kept(23, 1, "a");
        all.insert("s23".to_owned(), latest.clone());
        assert_eq!(surplus(&all, &latest).as_deref(), Some("s0"));
    }
}
