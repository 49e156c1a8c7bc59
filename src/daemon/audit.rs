//! The audit log and the security log: who did what to which worker, and what looks like an attack or a limit.
//!
//! This daemon writes whole lines, and so do commands that act on the state directory by hand (`recovery::record`); what a turn has to say is written at its end, in one call for each file. Lines
//! that the disk does not take are counted and told of in the daemon's log; nobody waits for them. The files are
//! `<state_dir>/logs/audit.log` and `security.log`, mode 0640, rotated at 10 MiB, five kept. Whoever adds something that
//! people do to workers calls [`Daemon::audit_order`]; what happens by itself goes through [`Daemon::audit`].

use std::os::fd::BorrowedFd;
use std::time::Duration;

use super::clock;
use super::control::Asked;
use super::state::Daemon;
use crate::engine::Time;
use crate::host::logfile::{LogFile, LogFileError, Stream};
use crate::protocol::audit::{AuditEntry, Severity};
use crate::protocol::control::{Cause, DeathCertificate};
use crate::spec::{Generation, LogSpec, WorkerId};

/// Size of a file at which it is rotated, and how many are kept.
const FILES: LogSpec = LogSpec { max_bytes: 10 << 20, keep: 5, json: false };
/// Who does what happens by itself.
const NOBODY: &str = "halsup";
/// Refused calls that are written down in one such time; more are counted.
const REFUSALS_MAX: u32 = 10;
const REFUSALS_TIME: Duration = Duration::from_secs(1);
/// The signal by which a system call filter ends a program.
const SIGSYS: i32 = 31;

/// Both logs.
#[derive(Debug)]
pub(super) struct Audit {
    audit: LogFile,
    security: LogFile,
    /// Lines of this turn, for each.
    pending: [Vec<u8>; 2],
    /// Bytes that are known to be lost, for each.
    lost: [u64; 2],
    /// Since when refusals are counted, how many there were, and how many of them were not written down.
    refusals: (Option<Time>, u32, u32),
}

impl Audit {
    /// Opens both in the directory of logs.
    ///
    /// # Errors
    /// [`LogFileError`].
    pub(super) fn open(dir: BorrowedFd<'_>) -> Result<Self, LogFileError> {
        Ok(Self {
            audit: LogFile::open(dir, "audit", FILES)?,
            security: LogFile::open(dir, "security", FILES)?,
            pending: [Vec::new(), Vec::new()],
            lost: [0; 2],
            refusals: (None, 0, 0),
        })
    }

    /// Writes what has come together.
    fn flush(&mut self) {
        for ((log, pending), (lost, name)) in [&mut self.audit, &mut self.security]
            .into_iter()
            .zip(&mut self.pending)
            .zip(self.lost.iter_mut().zip(["audit", "security"]))
        {
            if pending.is_empty() {
                continue;
            }
            log.append(Stream::Stdout, &std::mem::take(pending), clock::wall());
            let now = log.dropped_bytes();
            if now > *lost {
                tracing::warn!(target: "audit", bytes = now - *lost, "the {name} log lost lines that the disk did not take");
            }
            *lost = now;
        }
    }

    /// How many refusals to speak of now: `None` is none, else also those that were not told before.
    fn tells_refusal(&mut self, now: Time) -> Option<u32> {
        let (since, told, untold) = &mut self.refusals;
        if since.is_none_or(|since| clock::since(since, now) >= REFUSALS_TIME) {
            (*since, *told) = (Some(now), 0);
        }
        *told = told.saturating_add(1);
        if *told > REFUSALS_MAX {
            *untold = untold.saturating_add(1);
            return None;
        }
        Some(std::mem::take(untold))
    }
}

impl Daemon {
    /// Writes what this turn has brought. To be called at the end of each turn.
    pub(super) fn flush_audit(&mut self) {
        self.audit.flush();
    }

    fn entry(&self, event: &str, fields: &[(&str, &str)]) -> AuditEntry {
        let own = [("container".to_owned(), self.spec.instance.to_string())];
        let more = fields.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        AuditEntry {
            time: clock::rfc3339(clock::wall()),
            severity: None,
            event: event.to_owned(),
            fields: own.into_iter().chain(more).collect(),
        }
    }

    /// Writes down that something happened to `resource`, by itself.
    pub(super) fn audit(&mut self, event: &str, resource: &str, more: &[(&str, &str)]) {
        self.audit_by(NOBODY, event, resource, more);
    }

    fn audit_by(&mut self, user: &str, event: &str, resource: &str, more: &[(&str, &str)]) {
        let mut fields = vec![("user", user), ("resource", resource)];
        fields.extend_from_slice(more);
        let line = self.entry(event, &fields).audit_line();
        self.audit.pending[0].extend_from_slice(line.as_bytes());
    }

    /// Writes down that somebody did something to `resource`.
    pub(super) fn audit_order(&mut self, asked: Asked, event: &str, resource: &str) {
        self.audit_order_more(asked, event, resource, &[]);
    }

    /// The same, with what came of it.
    pub(super) fn audit_order_more(&mut self, asked: Asked, event: &str, resource: &str, more: &[(&str, &str)]) {
        let (uid, pid) = (asked.by.uid.to_string(), asked.by.pid.to_string());
        let fields: Vec<(&str, &str)> = [("pid", &*pid)].iter().chain(more).copied().collect();
        self.audit_by(&uid, event, resource, &fields);
    }

    /// Writes something down that is to be looked at. `worker` is `-` where it is about none.
    pub(super) fn audit_security(&mut self, severity: Severity, event: &str, worker: &str, more: &[(&str, &str)]) {
        let mut fields = vec![("worker", worker)];
        fields.extend_from_slice(more);
        let entry = AuditEntry { severity: Some(severity), ..self.entry(event, &fields) };
        self.audit.pending[1].extend_from_slice(entry.security_line().as_bytes());
    }

    /// Writes down that somebody was refused; of a flood only how many there were.
    pub(super) fn audit_refusal(&mut self, (uid, pid): (u32, i32), method: &str, reason: &str) {
        let Some(untold) = self.audit.tells_refusal(self.now) else { return };
        let (uid, pid, untold) = (uid.to_string(), pid.to_string(), untold.to_string());
        let fields = [("user", &*uid), ("pid", &*pid), ("call", method), ("reason", reason), ("untold", &*untold)];
        self.audit_security(Severity::Medium, "ACCESS_DENIED", "-", &fields);
    }

    /// Writes down that a worker was started.
    pub(super) fn audit_spawn(&mut self, worker: WorkerId, generation: Generation) {
        let Some(live) = self.live.get(&worker) else { return };
        let (uid, pid, generation) = (live.uid.to_string(), live.init_pid.to_string(), generation.0.to_string());
        let name = self.worker_name(worker);
        self.audit("worker_spawn", &name, &[("generation", &generation), ("pid", &pid), ("uid", &uid)]);
    }

    /// Writes down how a worker ended.
    pub(super) fn audit_end(&mut self, certificate: &DeathCertificate) {
        let (cause, generation) = (certificate.cause.to_string(), certificate.generation.to_string());
        let by = certificate.asked_by.clone().unwrap_or_else(|| "-".to_owned());
        let worker = certificate.worker.clone();
        self.audit("worker_stop", &worker, &[("cause", &cause), ("generation", &generation), ("asked_by", &by)]);
        match certificate.cause {
            Cause::Oom => {
                let kills = certificate.oom_kills.map_or_else(|| "-".to_owned(), |kills| kills.to_string());
                self.audit_security(Severity::High, "OOM_KILL", &worker, &[("OOMKilled", "true"), ("kills", &kills)]);
            }
            Cause::Signal(SIGSYS) => {
                self.audit_security(Severity::High, "SYSCALL_BLOCKED", &worker, &[("generation", &generation)]);
            }
            Cause::Exited(_)
            | Cause::Signal(_)
            | Cause::Heartbeat
            | Cause::Deadline
            | Cause::Recycled
            | Cause::Released
            | Cause::StartFailed
            | Cause::Requested
            | Cause::Shutdown
            | Cause::Unknown => {}
        }
    }
}
