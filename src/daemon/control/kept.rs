//! What is asked about sessions that have ended and are kept: their logs, and that they be let go.

use super::super::kept::Kept;
use super::super::state::Daemon;
use super::dispatch::{Asked, Outcome};
use crate::protocol::control::{Error, EventKind, LogsReply, ReleaseReply, Target};
use crate::protocol::varlink::Reply;

/// How much of a name that nobody has is said back, in characters.
const SHOWN_CHARS: usize = 64;

impl Daemon {
    /// The session of this name, if it is one of that pool.
    fn kept_in(&self, pool: &Target, session: &str) -> Result<&Kept, Error> {
        let is_there = |kept: &&Kept| matches!(pool, Target::Pool(pool) if pool.as_str() == kept.pool);
        let missing = || {
            let shown: String = session.chars().take(SHOWN_CHARS).collect();
            Error::NotFound { what: format!("session {shown}, ended and kept, of {pool}") }
        };
        self.kept.get(session).filter(is_there).ok_or_else(missing)
    }

    /// What it wrote.
    pub(super) fn told_kept_log(&self, pool: &Target, session: &str, lines: u32) -> Outcome {
        let entries = self.kept_in(pool, session).and_then(|kept| {
            let count = usize::try_from(lines).unwrap_or(usize::MAX);
            self.lines_of(&Kept::log_name(session), &kept.worker, kept.json, count)
        });
        match entries {
            Ok(entries) => Outcome::Reply(Reply::last(&LogsReply { entries })),
            Err(error) => error.into(),
        }
    }

    /// Lets go of it.
    pub(super) fn release_kept(&mut self, asked: Asked, pool: &Target, session: &str) -> Outcome {
        if let Err(error) = self.kept_in(pool, session) {
            return error.into();
        }
        self.audit_order(asked, "session_forget", session);
        self.record_order(asked, EventKind::Order, format!("forget session {session}"));
        self.forget_kept(session);
        Outcome::Reply(Reply::last(&ReleaseReply { achieved: 1, wanted: 1, ..ReleaseReply::default() }))
    }
}
