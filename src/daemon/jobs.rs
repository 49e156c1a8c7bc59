//! Slow work that somebody waits for, done by helpers: this program once more, with a hidden word.
//!
//! A job is begun by a call, watched like any other child, and ends with an answer to whoever asked. At most [`JOBS_MAX`] run
//! at once; one that takes longer than [`PATIENCE`] is ended. A helper dies with the daemon, and what it leaves then is swept
//! at the next start.

use std::collections::BTreeMap;
use std::os::fd::AsFd as _;
use std::path::Path;
use std::time::Duration;

use mio::{Interest, Token};

use super::clock;
use super::control::{Outcome, Task};
use super::sources::Source;
use super::state::Daemon;
use super::timers::Timer;
use crate::host::helper::{Ended, Helper};
use crate::host::volume::usage::Usage;
use crate::protocol::control::{Empty, Error, ListVolumesReply};
use crate::protocol::varlink::Reply;

/// How many run at once.
const JOBS_MAX: usize = 8;
/// How long one may take.
const PATIENCE: Duration = Duration::from_secs(600);
/// This program, whatever lies where it was started from by now.
const SELF: &str = "/proc/self/exe";

/// What is done, and for whom.
#[derive(Debug)]
pub(super) struct Job {
    /// Place and number of the client that waits.
    pub(super) asked: (u32, u64),
    pub(super) kind: JobKind,
}

/// What becomes of a helper's words.
#[derive(Debug)]
pub(super) enum JobKind {
    /// Its numbers are put into this answer.
    Usage(ListVolumesReply),
    /// It is done when it ends.
    Plain {
        /// What is done.
        operation: &'static str,
        /// To what.
        object: String,
    },
}

#[derive(Debug)]
struct Running {
    job: Job,
    helper: Helper,
    token: Token,
}

/// The jobs under way, by number.
#[derive(Debug, Default)]
pub(super) struct Jobs {
    running: BTreeMap<u64, Running>,
    last: u64,
}

impl Daemon {
    /// Begins a job that a call asked for; its client waits.
    pub(super) fn begin_job(&mut self, job: Job, word: &str, arguments: &[String]) -> Outcome {
        match self.try_job(job, word, arguments) {
            Ok(()) => Outcome::Wait(Task::Order),
            Err(error) => error.into(),
        }
    }

    /// Begins a job.
    ///
    /// # Errors
    /// What is answered instead.
    pub(super) fn try_job(&mut self, job: Job, word: &str, arguments: &[String]) -> Result<(), Error> {
        if self.jobs.running.len() >= JOBS_MAX {
            return Err(Error::Refused { reason: format!("{JOBS_MAX} such jobs run already; try again") });
        }
        let failed = |error: &(dyn std::error::Error + 'static)| Error::Failed {
            operation: "begin".to_owned(),
            object: word.to_owned(),
            cause: super::birth::chain(error),
        };
        let state_dir = self.spec.state_dir.display().to_string();
        let mut words = vec!["helper", word, &state_dir];
        words.extend(arguments.iter().map(String::as_str));
        let helper = Helper::run(Path::new(SELF), &words, &[]).map_err(|error| failed(&error))?;
        let number = self.jobs.last.wrapping_add(1);
        let token = match self.sources.add(helper.pidfd().as_fd(), Source::Job(number), Interest::READABLE) {
            Ok(token) => token,
            Err(error) => {
                super::log::best_effort(helper.kill(), "it has ended by itself");
                super::log::best_effort(crate::host::spawn::wait(helper.pidfd()), "it is this daemon's child");
                return Err(failed(&error));
            }
        };
        self.jobs.last = number;
        self.timers.set(clock::after(self.now, PATIENCE), Timer::Job(number));
        self.jobs.running.insert(number, Running { job, helper, token });
        Ok(())
    }

    /// A helper may have ended.
    pub(super) fn on_job(&mut self, number: u64) {
        let Some(running) = self.jobs.running.remove(&number) else { return };
        let ended = match running.helper.ended() {
            Ok(Some(ended)) => ended,
            Ok(None) => {
                self.jobs.running.insert(number, running);
                return;
            }
            Err(error) => Ended { code: None, stdout: String::new(), stderr: error.to_string() },
        };
        self.sources.remove(running.token, running.helper.pidfd().as_fd());
        let reply = outcome(running.job.kind, &ended);
        if let Some(error) = &reply.error {
            tracing::warn!(target: "volume", %error, "{}", ended.stderr.trim());
        }
        self.control.answer_waiting(running.job.asked, &reply, self.now);
    }

    /// Ends a helper that takes too long.
    pub(super) fn on_job_timeout(&mut self, number: u64) {
        if let Some(running) = self.jobs.running.get(&number) {
            super::log::best_effort(running.helper.kill(), "it has just ended");
        }
    }

    /// The job whose helper has this pid.
    pub(super) fn job_of(&self, pid: i32) -> Option<u64> {
        let is_it = |running: &Running| {
            crate::host::spawn::pid_of(running.helper.pidfd()).is_some_and(|own| i64::from(own) == i64::from(pid))
        };
        self.jobs.running.iter().find(|(_, running)| is_it(running)).map(|(number, _)| *number)
    }

    /// Ends all helpers and waits for them, which SIGKILL sees to: the daemon ends.
    pub(super) fn end_jobs(&mut self) {
        for (_, running) in std::mem::take(&mut self.jobs.running) {
            super::log::best_effort(running.helper.kill(), "it has ended by itself");
            super::log::best_effort(crate::host::spawn::wait(running.helper.pidfd()), "it is this daemon's child");
            self.sources.remove(running.token, running.helper.pidfd().as_fd());
        }
    }
}

/// The answer that a helper's end makes.
fn outcome(kind: JobKind, ended: &Ended) -> Reply {
    let trouble = match (ended.code, ended.stderr.trim()) {
        (Some(0), _) => None,
        (None, "") => Some("it was ended before it was done".to_owned()),
        (_, complaint) => Some(complaint.strip_prefix("halsup: ").unwrap_or(complaint).to_owned()),
    };
    let failed = |operation: &str, object: String, cause| {
        Error::Failed { operation: operation.to_owned(), object, cause }.to_reply()
    };
    match (kind, trouble) {
        (JobKind::Usage(_), Some(cause)) => failed("count", "volumes".to_owned(), cause),
        (JobKind::Plain { operation, object }, Some(cause)) => failed(operation, object, cause),
        (JobKind::Plain { .. }, None) => Reply::last(&Empty {}),
        (JobKind::Usage(mut reply), None) => match serde_json::from_str::<BTreeMap<String, Usage>>(&ended.stdout) {
            Ok(counted) => {
                for volume in &mut reply.volumes {
                    let usage = counted.get(&volume.name);
                    volume.usage_bytes = usage.map(|usage| usage.bytes);
                    volume.usage_inodes = usage.map(|usage| usage.inodes);
                    volume.foreign_inodes = usage.map(|usage| usage.foreign);
                }
                Reply::last(&reply)
            }
            Err(error) => failed("count", "volumes".to_owned(), error.to_string()),
        },
    }
}
