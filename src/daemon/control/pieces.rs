//! Long answers, piece by piece: each is made when the one before has been read, so no answer is held whole.
//!
//! Between two pieces workers may come and go: a piece goes on behind the last worker of the piece before.

use std::os::fd::AsFd as _;

use serde::Deserialize;

use super::super::state::Daemon;
use super::client::Task;
use super::dispatch::{Asked, Outcome};
use super::follow::LogFollower;
use super::roles::Principal;
use crate::engine::{SessionId, Target as EngineTarget, TaskId, WorkerView};
use crate::host::logfile::read_last_lines;
use crate::protocol::control::{
    CertificatesReply, CertificatesRequest, DeathCertificate, Error, InspectReply, ListReply, ListRequest, LogEntry,
    LogsReply, LogsRequest, PIECE_CERTIFICATES_MAX, PIECE_WORKERS_MAX, StatsReply, Stream, Target,
};
use crate::protocol::escape;
use crate::protocol::varlink::{REPLY_BYTES_MAX, Reply};
use crate::spec::{PoolId, WorkerId};

/// A piece of logs is sent when it has this much, in bytes, or this many workers were read.
const PIECE_LOG_BYTES: usize = 64 << 10;
const PIECE_LOG_WORKERS_MAX: usize = 16;

/// What is told of each worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::daemon) enum What {
    /// A line of a list.
    Info,
    /// Everything.
    Inspection,
    /// What it uses.
    Stats,
}

/// The rest of a long answer.
#[derive(Debug)]
pub(in crate::daemon) enum Pieces {
    /// Of workers behind `after`, for this user.
    Workers { what: What, target: EngineTarget, after: Option<WorkerId>, by: Principal },
    /// The next `left` certificates, older than that of the generation `after`, for this user.
    Certificates { target: Option<Target>, left: usize, after: Option<u64>, by: Principal },
    /// Sessions of requests behind `after`.
    CallSessions { pool: Option<PoolId>, after: Option<SessionId> },
    /// Tasks behind `after`, for this user.
    Tasks { after: Option<TaskId>, by: Principal },
    /// The last lines of workers behind `after`; then, with a follower, all further ones.
    Logs { target: EngineTarget, lines: usize, after: Option<WorkerId>, follower: Option<LogFollower> },
}

impl Pieces {
    /// The follower, and up to which worker it follows already.
    pub(super) fn follower(&mut self) -> Option<(&mut LogFollower, Option<WorkerId>)> {
        match self {
            Self::Logs { after, follower: Some(follower), .. } => {
                let after = *after;
                after.is_some().then_some((follower, after))
            }
            Self::Logs { follower: None, .. }
            | Self::Workers { .. }
            | Self::Certificates { .. }
            | Self::CallSessions { .. }
            | Self::Tasks { .. } => None,
        }
    }
}

/// A line of a JSON log file.
#[derive(Deserialize)]
struct Record {
    time: String,
    stream: Stream,
    text: String,
}

/// A line of a log file. A plain one does not hold when it was written, nor to which stream.
fn entry(worker: &str, line: &[u8], json: bool) -> LogEntry {
    let record: Option<Record> = if json { serde_json::from_slice(line).ok() } else { None };
    let worker = worker.to_owned();
    match record {
        Some(Record { time, stream, text }) => LogEntry { worker, stream, time, text },
        None => LogEntry { worker, stream: Stream::Stdout, time: String::new(), text: escape::bytes(line) },
    }
}

/// Whether a certificate is of a worker that the target names.
fn names(target: &Target, worker: &str) -> bool {
    match target {
        Target::All => true,
        Target::Pool(pool) => {
            let rest = worker.strip_prefix(pool.as_str());
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        }
        Target::Worker(..) => target.to_string() == worker,
    }
}

impl Daemon {
    pub(super) fn list(&self, asked: Asked, request: ListRequest) -> Outcome {
        self.of_workers(asked, What::Info, &request.pool.map_or(Target::All, Target::Pool))
    }

    pub(super) fn of_workers(&self, asked: Asked, what: What, target: &Target) -> Outcome {
        match self.resolve(target) {
            Err(error) => error.into(),
            Ok(target) if asked.more => {
                Outcome::Wait(Task::Pieces(Pieces::Workers { what, target, after: None, by: asked.by }))
            }
            Ok(target) => Outcome::Reply(self.workers_reply(what, &self.views(target).collect::<Vec<_>>(), asked.by)),
        }
    }

    fn workers_reply(&self, what: What, views: &[WorkerView], by: Principal) -> Reply {
        match what {
            What::Info => {
                let told = views.iter().map(|view| self.worker_for(by, self.worker_info(view)));
                Reply::last(&ListReply { workers: told.collect() })
            }
            What::Stats => {
                Reply::last(&StatsReply { workers: views.iter().map(|view| self.worker_stats(view)).collect() })
            }
            What::Inspection => {
                let alone = views.len() == 1;
                let told = views.iter().filter_map(|view| self.inspection(view, alone, by));
                Reply::last(&InspectReply { workers: told.collect() })
            }
        }
    }

    pub(super) fn told_certificates(&self, asked: Asked, request: CertificatesRequest) -> Outcome {
        let left = usize::try_from(request.last()).unwrap_or(usize::MAX);
        let target = request.target;
        // Certificates of a worker that is gone can still be asked for.
        if let Some(target) = &target
            && let Err(error) = self.resolve(target)
            && !self.certificates.iter().any(|certificate| names(target, &certificate.worker))
        {
            return error.into();
        }
        if asked.more {
            let by = asked.by;
            return Outcome::Wait(Task::Pieces(Pieces::Certificates { target, left, after: None, by }));
        }
        let certificates = self.latest(target.as_ref(), left, None, asked.by);
        Outcome::Reply(Reply::last(&CertificatesReply { certificates }))
    }

    /// The latest certificates as this user is told them, newest first, older than that of the generation `after`.
    pub(super) fn latest(
        &self,
        target: Option<&Target>,
        count: usize,
        after: Option<u64>,
        by: Principal,
    ) -> Vec<DeathCertificate> {
        let mut newest_first = self.certificates.iter().rev();
        if let Some(after) = after {
            newest_first.find(|certificate| certificate.generation == after);
        }
        let named = newest_first.filter(|one| target.is_none_or(|target| names(target, &one.worker)));
        named.take(count).map(|certificate| self.certificate_for(by, certificate)).collect()
    }

    pub(super) fn told_logs(&mut self, asked: Asked, request: &LogsRequest) -> Outcome {
        if let Some(session) = &request.session {
            return self.told_kept_log(&request.worker, session, request.lines());
        }
        let target = match self.resolve(&request.worker) {
            Ok(target) => target,
            Err(error) => return error.into(),
        };
        let lines = usize::try_from(request.lines()).unwrap_or(usize::MAX);
        if asked.more {
            let follower = (request.follow == Some(true)).then(|| LogFollower::new(target));
            return Outcome::Wait(Task::Pieces(Pieces::Logs { target, lines, after: None, follower }));
        }
        let mut reply = LogsReply::default();
        let mut bytes = 0_usize;
        for view in self.views(target) {
            match self.last_lines(view.worker, lines) {
                Ok(entries) => {
                    bytes = bytes.saturating_add(size(&entries));
                    reply.entries.extend(entries);
                }
                Err(error) => return error.into(),
            }
            if bytes > REPLY_BYTES_MAX {
                let reason = "the answer is too long: ask with `more`, or for less".into();
                return Error::Refused { reason }.into();
            }
        }
        Outcome::Reply(Reply::last(&reply))
    }

    fn last_lines(&self, worker: WorkerId, count: usize) -> Result<Vec<LogEntry>, Error> {
        let name = self.worker_name(worker);
        let json = self.pools.get(&worker.pool).is_some_and(|pool| pool.spec.log.json);
        self.lines_of(&name, &name, json, count)
    }

    /// The last lines of a log, said to be `worker`'s.
    pub(super) fn lines_of(&self, log: &str, worker: &str, json: bool, count: usize) -> Result<Vec<LogEntry>, Error> {
        if count == 0 {
            return Ok(Vec::new());
        }
        let last = read_last_lines(self.shared.log_dir.as_fd(), log, count).map_err(|error| {
            let cause = std::error::Error::source(&error)
                .map_or_else(|| error.to_string(), |source| format!("{error}: {source}"));
            Error::Failed { operation: "read the log of".into(), object: worker.to_owned(), cause }
        })?;
        Ok(last.lines.iter().map(|line| entry(worker, line, json)).collect())
    }

    /// The next piece, and what its client waits for then.
    pub(super) fn next_piece(&mut self, pieces: Pieces) -> (Reply, Task) {
        match pieces {
            Pieces::Workers { what, target, after, by } => self.workers_piece(what, target, after, by),
            Pieces::Certificates { target, left, after, by } => {
                let now = left.min(PIECE_CERTIFICATES_MAX);
                let mut certificates = self.latest(target.as_ref(), now.saturating_add(1), after, by);
                let more = certificates.len() > now && left > now;
                certificates.truncate(now);
                let after = certificates.last().map(|certificate| certificate.generation);
                let reply = Reply::last(&CertificatesReply { certificates });
                go_on(reply, more.then_some(Pieces::Certificates { target, left: left - now, after, by }))
            }
            Pieces::CallSessions { pool, after } => {
                let (reply, after) = self.sessions_piece(pool, after);
                let next = after.map(|after| Pieces::CallSessions { pool, after: Some(after) });
                go_on(Reply::last(&reply), next)
            }
            Pieces::Tasks { after, by } => {
                let (reply, after) = self.tasks_piece(after, by);
                go_on(Reply::last(&reply), after.map(|after| Pieces::Tasks { after: Some(after), by }))
            }
            Pieces::Logs { target, lines, after, follower } => self.logs_piece(target, lines, after, follower),
        }
    }

    fn workers_piece(&self, what: What, target: EngineTarget, after: Option<WorkerId>, by: Principal) -> (Reply, Task) {
        let max = match what {
            What::Info | What::Stats => PIECE_WORKERS_MAX,
            What::Inspection => PIECE_CERTIFICATES_MAX,
        };
        let mut views: Vec<WorkerView> = self.views_behind(target, after).take(max + 1).collect();
        let more = views.len() > max;
        views.truncate(max);
        let after = views.last().map(|view| view.worker);
        let reply = self.workers_reply(what, &views, by);
        go_on(reply, more.then_some(Pieces::Workers { what, target, after, by }))
    }

    fn views_behind(&self, target: EngineTarget, after: Option<WorkerId>) -> impl Iterator<Item = WorkerView> {
        self.views(target).filter(move |view| after.is_none_or(|after| view.worker > after))
    }

    fn logs_piece(
        &mut self,
        target: EngineTarget,
        lines: usize,
        mut after: Option<WorkerId>,
        mut follower: Option<LogFollower>,
    ) -> (Reply, Task) {
        // What those wrote that are followed already.
        let mut reply = follower.as_mut().map(LogFollower::take).unwrap_or_default();
        let workers: Vec<WorkerId> =
            self.views_behind(target, after).map(|view| view.worker).take(PIECE_LOG_WORKERS_MAX + 1).collect();
        let mut bytes = 0;
        let mut more = workers.len() > PIECE_LOG_WORKERS_MAX;
        for (at, worker) in workers.iter().copied().take(PIECE_LOG_WORKERS_MAX).enumerate() {
            match self.last_lines(worker, lines) {
                Ok(entries) => {
                    bytes += size(&entries);
                    reply.entries.extend(entries);
                }
                Err(error) => return (error.to_reply(), Task::Idle),
            }
            if follower.is_some() {
                self.begin_lines(worker);
            }
            after = Some(worker);
            if bytes > PIECE_LOG_BYTES {
                more |= at + 1 < workers.len();
                break;
            }
        }
        let reply = Reply::last(&reply);
        match follower {
            Some(follower) if !more => (Reply { continues: true, ..reply }, Task::Logs(follower)),
            follower => go_on(reply, more.then_some(Pieces::Logs { target, lines, after, follower })),
        }
    }
}

fn go_on(reply: Reply, next: Option<Pieces>) -> (Reply, Task) {
    match next {
        Some(pieces) => (Reply { continues: true, ..reply }, Task::Pieces(pieces)),
        None => (reply, Task::Idle),
    }
}

/// About how long entries are as JSON, in bytes.
fn size(entries: &[LogEntry]) -> usize {
    entries.iter().map(|entry| entry.text.len() + entry.worker.len() + 80).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_json_line_knows_more_than_a_plain_one() {
        let record = br#"{"time":"2026-01-01T00:00:00Z","worker":"web.3","stream":"stderr","text":"x","cut":true}"#;
        let told = entry("web.3", record, true);
        assert_eq!(
            (told.time.as_str(), told.stream, told.text.as_str()),
            ("2026-01-01T00:00:00Z", Stream::Stderr, "x")
        );
        let plain = entry("web.3", record, false);
        assert!(plain.time.is_empty() && plain.text.starts_with("{\"time\""));
        assert_eq!(entry("web.3", b"torn {\xff", true).text, "torn {\\xff", "a line that is no record is text");
    }

    #[test]
    fn a_target_names_its_workers_and_no_namesake() {
        let target = |text: &str| text.parse::<Target>().unwrap();
        for (text, worker, expected) in [
            ("all", "web.3", true),
            ("web", "web.3", true),
            ("web", "web", true),
            ("web", "web-2.3", false),
            ("we", "web.3", false),
            ("web.3", "web.3", true),
            ("web.3", "web.31", false),
            ("web.3", "web", false),
        ] {
            assert_eq!(names(&target(text), worker), expected, "{text} {worker}");
        }
    }
}
