//! Leases: requests whose bytes the daemon never sees. Whoever asks gets a connection to the worker, and says how it ended.
//!
//! To the engine a lease is a request: it waits, is given to a worker, and is over by an answer or without one. Here its
//! connection is made and checked to lead to the worker itself. The daemon keeps the same connection until the lease is over,
//! so that it can end it, and see by it when the worker has let go of what nobody wants any more: a worker that goes on with
//! a request is not given another.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::time::Duration;

use mio::{Interest, Token};
use rustix::io::{Errno, fcntl_dupfd_cloexec};
use rustix::net::{Shutdown, getpeername, shutdown};

use super::super::birth::chain;
use super::super::clock;
use super::super::control::{Asked, Outcome, Task};
use super::super::live::Watched;
use super::super::log::best_effort;
use super::super::probe_socket::{Question, Verdict};
use super::super::sources::Source;
use super::super::state::Daemon;
use super::{CREDIT, Heard, Metering, Open};
use crate::engine::{
    AVOIDED_MAX, AttemptId, Conclusion, Delivery, Demand, Input, Quality, RequestId, RequestInput, Time,
};
use crate::host::listener::check_listener;
use crate::host::sock_diag::listener_inode;
use crate::protocol::control::{
    EndLeaseReply, EndLeaseRequest, Error, LeaseOutcome, LeaseReply, LeaseRequest, RequestOutcome,
};
use crate::protocol::varlink::Reply;
use crate::spec::{Generation, Probe, WorkerId};

/// What is listened for while a connection is made, and once it was ended; in between it is its holder's.
const NEWS: Interest = Interest::READABLE.add(Interest::WRITABLE);

/// How far a lease is, before it is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// Who asked waits, for this.
    Asked(Purpose),
    /// Who asked has the connection.
    Granted,
}

/// What becomes of a connection that is leased.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// One request and its answer.
    Request,
    /// It changes its protocol, and lasts.
    Upgrade,
}

/// The connection of an attempt, as the daemon has it.
#[derive(Debug)]
enum Line {
    /// It is being made.
    Connecting(RequestId, Delivery, Question, Token),
    /// Whoever holds the lease has it too.
    Granted(OwnedFd),
    /// It was ended: its worker may still be at it.
    Ending(Watched),
}

/// The connections of one worker's leases.
#[derive(Debug, Default)]
pub(in crate::daemon) struct Lines {
    lines: BTreeMap<AttemptId, Line>,
    port: PortTrust,
}

/// How long it is believed that a worker's port is somebody else's, before it is looked at again.
const DISTRUST: Duration = Duration::from_secs(1);

/// Whether a worker's port is known to be its own.
#[derive(Debug, Default)]
enum PortTrust {
    #[default]
    Unknown,
    /// It is, as long as one of these sockets gets its connections.
    Own(BTreeSet<u64>),
    /// It was not when it was looked at, and why. Finding out took long: so it is not done for every request.
    Not(Time, String),
}

impl PortTrust {
    /// Why it is not to be used now, if that is known.
    fn refusal(&self, now: Time) -> Option<&str> {
        match self {
            Self::Not(since, reason) if clock::since(*since, now) < DISTRUST => Some(reason),
            Self::Not(..) | Self::Own(_) | Self::Unknown => None,
        }
    }

    /// Whether it is the worker's own still, which may have let go of it and live on.
    fn is_own(&self, port: u16) -> bool {
        let Self::Own(sockets) = self else { return false };
        let now = listener_inode(port).unwrap_or_else(|errno| {
            best_effort(Err::<(), _>(errno), "its owner is looked for instead");
            None
        });
        now.is_some_and(|inode| sockets.contains(&inode))
    }
}

impl Daemon {
    /// Takes the wish for a lease, and has the engine find a worker.
    pub(in crate::daemon) fn lease(&mut self, asked: Asked, request: LeaseRequest) -> Outcome {
        let pool = match self.resolve_pool(&request.pool) {
            Ok(pool) => pool,
            Err(error) => return error.into(),
        };
        let Some(serve) = self.pools.get(&pool).and_then(|pool| pool.spec.serve) else {
            let reason = format!("pool {} serves no HTTP: write `serve = \"http\"` into it", request.pool);
            return Error::Refused { reason }.into();
        };
        let purpose = if request.upgrade == Some(true) { Purpose::Upgrade } else { Purpose::Request };
        if purpose == Purpose::Upgrade && serve.upgrade_max.is_none() {
            let reason = format!("connections to pool {} keep their protocol: its `upgrade_max` is 0", request.pool);
            return Error::Refused { reason }.into();
        }
        if asked.oneway {
            return Error::Refused { reason: "a lease is for whoever hears its answer".into() }.into();
        }
        self.requests.last += 1;
        let id = RequestId(self.requests.last);
        let mut demand = self.demand_of_lease(id, &request);
        if purpose == Purpose::Upgrade {
            demand.timeout = demand.timeout.or(serve.upgrade_max);
        }
        let open = Open {
            waits: (asked.place, asked.number),
            uid: asked.by.uid,
            pool,
            command: request.summary.unwrap_or_else(|| "lease".to_owned()),
            args: None,
            session: None,
            correlation: request.correlation.unwrap_or_else(|| self.requests.name(id)),
            payload: None,
            stream: false,
            submitted: self.now,
            began: None,
            delivery: None,
            credit: CREDIT,
            meter: Metering::Unwanted,
            inflow: None,
            lease: Some(Stage::Asked(purpose)),
        };
        self.requests.open.insert(id, open);
        self.inputs.push(Input::Request(RequestInput::Submitted(id, pool, demand)));
        Outcome::Wait(Task::Request(id))
    }

    fn demand_of_lease(&self, id: RequestId, request: &LeaseRequest) -> Demand {
        let ms = |ms: Option<u64>| ms.map(Duration::from_millis);
        let mut hasher = DefaultHasher::new();
        match &request.fingerprint {
            Some(said) => ("lease", said).hash(&mut hasher),
            None => ("lease", self.requests.run, id.0).hash(&mut hasher),
        }
        let slot = |name: &String| {
            let (pool, slot) = name.rsplit_once('.')?;
            slot.parse::<u32>().ok().filter(|_| pool == request.pool.as_str())
        };
        let mut avoided = [None; AVOIDED_MAX];
        let named = request.not.iter().flatten().rev().filter_map(slot);
        for (place, slot) in avoided.iter_mut().zip(named) {
            *place = Some(slot);
        }
        Demand {
            timeout: ms(request.timeout_ms),
            queue_timeout: ms(request.queue_timeout_ms),
            fingerprint: hasher.finish(),
            avoided,
            ..Demand::default()
        }
    }

    /// Makes the connection of an attempt that is a lease's.
    pub(super) fn connect_lease(&mut self, id: RequestId, delivery: Delivery) {
        let (worker, attempt) = (delivery.worker, delivery.attempt);
        match self.begin_line(&delivery) {
            Ok((question, Verdict::Passed)) => self.grant(id, delivery, question.into_socket()),
            Ok((question, Verdict::Pending)) => {
                match self.sources.add(question.fd(), Source::Lease(worker, attempt), NEWS) {
                    Ok(token) => self.keep_line(&delivery, Line::Connecting(id, delivery, question, token)),
                    Err(error) => self.undelivered(&delivery, &error.to_string()),
                }
            }
            Ok((_, Verdict::Failed)) => self.undelivered(&delivery, "its port refuses connections"),
            Err(reason) => self.undelivered(&delivery, &reason),
        }
    }

    fn begin_line(&mut self, delivery: &Delivery) -> Result<(Question, Verdict), String> {
        let now = self.now;
        let live = self.live_mut(delivery.worker, delivery.generation).ok_or("it has just ended")?;
        let port = live.told.port.ok_or("it has no port")?;
        if let Some(reason) = live.leases.port.refusal(now) {
            return Err(reason.to_owned());
        }
        if !live.leases.port.is_own(port) {
            live.leases.port = match check_listener(port, &live.cgroup) {
                Ok(sockets) => PortTrust::Own(sockets),
                Err(error) if error.is_costly() => {
                    let reason = chain(&error);
                    live.leases.port = PortTrust::Not(now, reason.clone());
                    return Err(reason);
                }
                Err(error) => {
                    live.leases.port = PortTrust::Unknown;
                    return Err(chain(&error));
                }
            };
        }
        let mut question = Question::begin(port, &Probe::Tcp).map_err(|errno| format!("connect to it: {errno}"))?;
        let verdict = question.advance();
        Ok((question, verdict))
    }

    fn undelivered(&mut self, delivery: &Delivery, reason: &str) {
        let (attempt, worker, generation) = (delivery.attempt, delivery.worker, delivery.generation);
        let name = self.worker_name(worker);
        tracing::warn!(target: "dispatch", worker = %name, %reason, "have a request reach {name}: {reason}");
        self.inputs.push(Input::Request(RequestInput::Undelivered(attempt, worker, generation)));
    }

    fn keep_line(&mut self, delivery: &Delivery, line: Line) {
        if let Some(live) = self.live_mut(delivery.worker, delivery.generation) {
            live.leases.lines.insert(delivery.attempt, line);
        }
    }

    /// Passes the connection to whoever asked.
    fn grant(&mut self, id: RequestId, delivery: Delivery, socket: OwnedFd) {
        let passed = match fcntl_dupfd_cloexec(&socket, 0) {
            Ok(passed) => passed,
            Err(errno) => return self.undelivered(&delivery, &format!("pass its connection on: {errno}")),
        };
        let Some(reply) = self.lease_reply(id, &delivery) else { return };
        self.keep_line(&delivery, Line::Granted(socket));
        let Some(open) = self.requests.open.get_mut(&id) else { return };
        open.lease = Some(Stage::Granted);
        let waits = open.waits;
        self.control.grant_lease(waits, id, Reply::last(&reply).encode(), passed, self.now);
    }

    fn lease_reply(&self, id: RequestId, delivery: &Delivery) -> Option<LeaseReply> {
        let open = self.requests.open.get(&id)?;
        let spec = &self.pools.get(&open.pool)?.spec;
        let (serve, policy) = (spec.serve?, spec.policy.dispatch?);
        let ms = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        let left_ms = ms(clock::since(self.now, delivery.deadline));
        let upgrades = open.lease == Some(Stage::Asked(Purpose::Upgrade));
        let head_ms = ms(policy.timeout.saturating_sub(clock::since(open.submitted, self.now)));
        Some(LeaseReply {
            lease: self.requests.name(id),
            worker: self.worker_name(delivery.worker),
            generation: delivery.generation.0,
            port: self.live.get(&delivery.worker)?.told.port?,
            attempts: delivery.number,
            attempts_max: policy.attempts_max,
            backoff_ms: ms(policy.backoff),
            left_ms,
            head_ms: if upgrades { head_ms.min(left_ms) } else { left_ms },
            idle_ms: upgrades.then(|| ms(serve.upgrade_idle)),
            request_bytes_max: serve.request_bytes_max,
            answer_bytes_max: serve.answer_bytes_max,
            correlation: open.correlation.clone(),
        })
    }

    /// A connection has news: it is made, or its worker has let go of it.
    pub(in crate::daemon) fn on_lease(&mut self, worker: WorkerId, attempt: AttemptId) {
        let Some(live) = self.live.get_mut(&worker) else { return };
        let generation = live.generation;
        match live.leases.lines.remove(&attempt) {
            Some(Line::Connecting(id, delivery, mut question, token)) => match question.advance() {
                Verdict::Pending => {
                    live.leases.lines.insert(attempt, Line::Connecting(id, delivery, question, token));
                }
                verdict @ (Verdict::Passed | Verdict::Failed) => {
                    self.sources.remove(token, question.fd());
                    match verdict {
                        Verdict::Passed => self.grant(id, delivery, question.into_socket()),
                        Verdict::Failed | Verdict::Pending => {
                            self.undelivered(&delivery, "its port refuses connections");
                        }
                    }
                }
            },
            Some(Line::Ending(line)) if is_over(&line.fd) => {
                line.close(&mut self.sources);
                self.inputs.push(Input::Request(RequestInput::Released(attempt, worker, generation)));
            }
            Some(line @ (Line::Ending(_) | Line::Granted(_))) => {
                live.leases.lines.insert(attempt, line);
            }
            None => {}
        }
    }

    /// Whoever holds a lease on this connection says how it has ended.
    pub(in crate::daemon) fn end_lease(&mut self, held: &mut Option<RequestId>, request: &EndLeaseRequest) -> Outcome {
        let Some(id) = held.take_if(|id| self.requests.name(*id) == request.lease) else {
            return Error::NotFound { what: format!("lease {}, on this connection,", request.lease) }.into();
        };
        let open = self.requests.open.get(&id).filter(|open| open.lease == Some(Stage::Granted));
        let Some(Delivery { attempt, worker, generation, .. }) = open.and_then(|open| open.delivery) else {
            return Outcome::Reply(Reply::last(&EndLeaseReply { ended: false }));
        };
        if let Some(live) = self.live_mut(worker, generation) {
            live.leases.lines.remove(&attempt);
        }
        let (heard, quality) = match request.outcome {
            LeaseOutcome::Done => (Heard::Ended, Quality::Sound),
            LeaseOutcome::Failed => (Heard::Broken("it did not answer to the end".into()), Quality::Broken),
            LeaseOutcome::ServerError => (Heard::Broken("it answered a 5xx".into()), Quality::Broken),
        };
        self.requests.heard.insert(attempt, heard);
        self.inputs.push(Input::Request(RequestInput::Answered(attempt, worker, generation, quality)));
        Outcome::Reply(Reply::last(&EndLeaseReply { ended: true }))
    }

    /// A lease is over that somebody has: they are not told, but see their connection end, or have said so themselves.
    pub(super) fn conclude_lease(&mut self, id: RequestId, open: &Open, conclusion: Conclusion) {
        let (outcome, reason) = match conclusion {
            Conclusion::Answered(_) => (RequestOutcome::Answered, None),
            Conclusion::NeverStarted(reason) => (RequestOutcome::NeverStarted, Some(reason)),
            Conclusion::InDoubt(reason) => (RequestOutcome::InDoubt, Some(reason)),
        };
        self.remember_end(id, open, outcome, reason.map(super::word));
    }

    /// Nobody wants an attempt any more: its connection ends, in both directions, and then it is seen when the worker has
    /// written to it or closed it, which is the end of what it did. `false`: it is no lease's.
    pub(super) fn cancel_lease(&mut self, attempt: AttemptId, worker: WorkerId, generation: Generation) -> bool {
        let Some(live) = self.live.get_mut(&worker).filter(|live| live.generation == generation) else { return false };
        let socket = match live.leases.lines.remove(&attempt) {
            Some(Line::Connecting(_, _, question, token)) => {
                self.sources.remove(token, question.fd());
                self.inputs.push(Input::Request(RequestInput::Released(attempt, worker, generation)));
                return true;
            }
            Some(Line::Granted(socket)) => socket,
            Some(line @ Line::Ending(_)) => {
                live.leases.lines.insert(attempt, line);
                return true;
            }
            None => return false,
        };
        match shutdown(&socket, Shutdown::Both) {
            Ok(()) | Err(Errno::NOTCONN) => {}
            Err(errno) => best_effort(Err::<(), _>(errno), "its deadline ends it with its worker"),
        }
        let watched = self.sources.add(socket.as_fd(), Source::Lease(worker, attempt), NEWS);
        match watched {
            Ok(token) if !is_over(&socket) => {
                live.leases.lines.insert(attempt, Line::Ending(Watched { fd: socket, token }));
            }
            Ok(token) => {
                Watched { fd: socket, token }.close(&mut self.sources);
                self.inputs.push(Input::Request(RequestInput::Released(attempt, worker, generation)));
            }
            // It cannot be seen when the worker lets go: by its deadline it is taken for one that does not.
            Err(error) => best_effort(Err::<(), _>(error), "its deadline ends it with its worker"),
        }
        true
    }

    /// A worker has ended, and with it all connections to it.
    pub(in crate::daemon) fn end_leases(&mut self, worker: WorkerId) {
        let Some(live) = self.live.get_mut(&worker) else { return };
        for line in std::mem::take(&mut live.leases).lines.into_values() {
            match line {
                Line::Connecting(_, _, question, token) => self.sources.remove(token, question.fd()),
                Line::Ending(line) => line.close(&mut self.sources),
                Line::Granted(_) => {}
            }
        }
    }
}

/// Whether a connection that was shut down is over at the other end too.
fn is_over(socket: &OwnedFd) -> bool {
    getpeername(socket) == Err(Errno::NOTCONN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_that_is_somebody_elses_is_looked_at_again_after_a_second() {
        let at = |ms: u64| Time(ms * 1_000_000);
        let known = PortTrust::Not(at(5_000), "it is not".to_owned());
        assert_eq!(known.refusal(at(5_000)), Some("it is not"));
        assert_eq!(known.refusal(at(5_999)), Some("it is not"));
        assert_eq!(known.refusal(at(6_000)), None);
        assert_eq!(PortTrust::Own(BTreeSet::new()).refusal(at(0)), None);
        assert_eq!(PortTrust::Unknown.refusal(at(0)), None);
    }
}
