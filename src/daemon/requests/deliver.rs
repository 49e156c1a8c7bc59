//! Carries out what the engine decides about requests: to workers, and to whoever waits.

use std::os::fd::AsFd as _;
use std::time::Duration;

use super::super::clock;
use super::super::events::Happening;
use super::super::message::send_with;
use super::super::state::Daemon;
use super::lease::Stage;
use super::{Heard, Open};
use crate::engine::{
    AttemptId, BreakerState, Conclusion, Delivery, Due, Input, Reason, RequestEffect, RequestId, RequestInput,
};
use crate::protocol::channel::{self, Failure, RequestPayload, ToWorker};
use crate::protocol::control::{Error, EventKind, ExecuteReply, MadePayload, RequestFailure, RequestOutcome};
use crate::protocol::varlink::{self, Reply};
use crate::spec::{Generation, PoolId, WorkerId};

impl Daemon {
    /// Carries out one of the engine's effects about requests.
    pub(in crate::daemon) fn perform_request(&mut self, effect: RequestEffect) {
        match effect {
            RequestEffect::Queued(id) => self.note(id, "queue.enqueued", "waits for a worker"),
            RequestEffect::Deliver(id, delivery) => self.deliver(id, delivery),
            RequestEffect::Retrying(id, pause) => self.retrying(id, pause),
            RequestEffect::Cancel(attempt, worker, generation) => self.cancel(attempt, worker, generation),
            RequestEffect::Conclude(id, conclusion) => self.conclude_request(id, conclusion),
            RequestEffect::BreakerChanged(pool, slot, state) => self.breaker_changed(pool, slot, state),
            RequestEffect::SessionEnded(session) => {
                if let Some((pool, name)) = self.requests.forget_session(session) {
                    tracing::debug!(target: "dispatch", %pool, session = %name, "session {name} is over");
                }
            }
            RequestEffect::Tainted(worker) => {
                let name = self.worker_name(worker);
                self.tell_of(worker.pool, Some(worker), format!("{name} has crashed and is chosen last for a while"));
            }
            RequestEffect::RecycleDue(worker, _, due) => self.recycle_due(worker, due),
            RequestEffect::BudgetReached(pool) => {
                self.tell_of(pool, None, "the budget is used up: requests wait for other pools".to_owned());
            }
            RequestEffect::MeasureMemory(worker, generation) => self.measure_memory(worker, generation),
        }
    }

    fn note(&self, id: RequestId, event: &'static str, what: &str) {
        if let Some(open) = self.requests.open.get(&id) {
            let name = self.requests.name(id);
            tracing::debug!(target: "dispatch", event, request = %name, correlation = %open.correlation, "request {name} {what}");
        }
    }

    fn retrying(&mut self, id: RequestId, pause: Duration) {
        if let Some(attempt) = self.requests.open.get(&id).and_then(|open| open.delivery).map(|known| known.attempt) {
            self.end_attempt(attempt);
        }
        self.note(id, "retry.attempt", &format!("is tried again after {} ms", pause.as_millis()));
    }

    /// Hands an attempt to its worker.
    fn deliver(&mut self, id: RequestId, delivery: Delivery) {
        let now = self.now;
        let Some(open) = self.requests.open.get_mut(&id) else { return };
        open.began = open.began.or(Some(now));
        open.delivery = Some(delivery);
        open.credit = super::CREDIT;
        if open.lease.is_some() {
            return self.connect_lease(id, delivery);
        }
        if let Some(inflow) = &mut open.inflow {
            inflow.begin_again();
        }
        self.requests.attempts.insert(delivery.attempt, id);
        self.begin_bill(id, delivery);
        let open = &self.requests.open[&id];
        let (worker, generation) = (delivery.worker, delivery.generation);
        let socket = self.live.get(&worker).filter(|live| live.generation == generation);
        let socket = socket.and_then(|live| live.channel.as_ref());
        let sent = match (frame_of(open, &delivery, now).encode(), socket) {
            (Ok(frame), Some(socket)) => {
                let fd = open.payload.as_ref().map(|payload| payload.fd.as_fd());
                send_with(socket.fd.as_fd(), &frame, fd).map_err(|errno| errno.to_string())
            }
            (Err(error), _) => Err(error.to_string()),
            (Ok(_), None) => Err("it has no channel any more".to_owned()),
        };
        if let Err(reason) = sent {
            tracing::debug!(target: "dispatch", worker = %self.worker_name(worker), %reason, "hand a request over; it is tried elsewhere");
            self.requests.attempts.remove(&delivery.attempt);
            self.inputs.push(Input::Request(RequestInput::Undelivered(delivery.attempt, worker, generation)));
        }
    }

    /// What its worker still says of an attempt counts no more, and what it has called for is not waited for.
    fn end_attempt(&mut self, attempt: AttemptId) {
        self.requests.attempts.remove(&attempt);
        self.end_calls_of(attempt);
    }

    fn cancel(&mut self, attempt: AttemptId, worker: WorkerId, generation: Generation) {
        self.end_attempt(attempt);
        if self.cancel_lease(attempt, worker, generation) {
            return;
        }
        self.say_to(worker, generation, &ToWorker::Cancel { id: channel::RequestId::new(attempt.0) });
    }

    /// Says something to a worker on its channel. What does not go through, the worker's next deadline shows.
    pub(super) fn say_to(&mut self, worker: WorkerId, generation: Generation, frame: &ToWorker) {
        let Some(live) = self.live_mut(worker, generation) else { return };
        let Some(socket) = &live.channel else { return };
        let sent = frame
            .encode()
            .map_err(|error| error.to_string())
            .and_then(|frame| send_with(socket.fd.as_fd(), &frame, None).map_err(|errno| errno.to_string()));
        if let Err(reason) = sent {
            live.junk += 1;
            tracing::debug!(target: "dispatch", worker = %self.worker_name(worker), %reason, "speak on a channel");
        }
    }

    /// Tells whoever waits what became of a request.
    fn conclude_request(&mut self, id: RequestId, conclusion: Conclusion) {
        let heard = match conclusion {
            Conclusion::Answered(attempt) => self.requests.heard.remove(&attempt),
            // What was wrong with the answer that is none.
            Conclusion::InDoubt(Reason::WorkerBroken) => {
                let last = self.requests.open.get(&id).and_then(|open| open.delivery);
                last.and_then(|delivery| self.requests.heard.remove(&delivery.attempt))
            }
            Conclusion::NeverStarted(_) | Conclusion::InDoubt(_) => None,
        };
        let Some(open) = self.requests.open.remove(&id) else { return };
        if let Some(delivery) = open.delivery {
            self.end_attempt(delivery.attempt);
            self.requests.holding.remove(&(delivery.worker, id));
        }
        if open.lease == Some(Stage::Granted) {
            return self.conclude_lease(id, &open, conclusion);
        }
        self.forget_session_never_begun(&open);
        let name = self.requests.name(id);
        let answer = match (conclusion, heard) {
            (Conclusion::Answered(_), Some(Heard::Result(answer, fd))) => {
                let reply =
                    self.reply_of(&open, name, answer.payload.map(|payload| made(payload.bytes, payload.in_request)));
                let result = answer.result.as_ref();
                self.remember_end(id, &open, RequestOutcome::Answered, None);
                return self.say_answer(&open, varlink::encode_with(&reply, "result", result, false), fd);
            }
            (Conclusion::Answered(_), Some(Heard::Error(failed))) => {
                self.failure(&open, name, RequestOutcome::Answered, failed.error)
            }
            (Conclusion::Answered(_) | Conclusion::InDoubt(_), Some(Heard::Broken(what))) => {
                let worker = open.delivery.map_or_else(String::new, |delivery| self.worker_name(delivery.worker));
                let message = format!("no answer of {worker} that could be passed on: {what}");
                self.failure(&open, name, RequestOutcome::InDoubt, said("worker", "worker_broken", message))
            }
            // The engine concludes so only what was heard in this turn.
            (Conclusion::Answered(_), None | Some(Heard::Ended)) => self.failure(
                &open,
                name,
                RequestOutcome::InDoubt,
                said("worker", "worker_broken", "its answer was lost".into()),
            ),
            (Conclusion::NeverStarted(reason), _) => {
                self.failure(&open, name, RequestOutcome::NeverStarted, self.why(&open, reason))
            }
            (Conclusion::InDoubt(reason), _) => {
                self.failure(&open, name, RequestOutcome::InDoubt, self.why(&open, reason))
            }
        };
        self.note_failure(&answer);
        self.remember_end(id, &open, answer.outcome, Some(&answer.reason));
        let reply: Reply = Error::RequestFailed(Box::new(answer)).to_reply();
        self.control.answer_waiting(open.waits, &reply, self.now);
    }

    /// The session of a request that was refused may never have begun: then nobody will tell of its end.
    fn forget_session_never_begun(&mut self, open: &Open) {
        let pool = self.pools.get(&open.pool).map(|pool| pool.spec.name.clone());
        let key = pool.zip(open.session.clone());
        let known = key.and_then(|key| self.requests.sessions.get(&key).copied());
        if let Some(session) = known.filter(|session| !self.engine.has_session(*session)) {
            self.requests.forget_session(session);
        }
    }

    /// Another program becomes the daemon, which knows of no request: whoever waits for one is told what became of it. Should
    /// this program stay after all, nothing of them goes on in it.
    pub(in crate::daemon) fn leave_requests(&mut self) {
        self.leave_tools();
        for (id, open) in std::mem::take(&mut self.requests.open) {
            let (outcome, what) = match open.delivery {
                Some(_) => (RequestOutcome::InDoubt, "its worker goes on without being asked for the answer"),
                None => (RequestOutcome::NeverStarted, "send it again"),
            };
            self.inputs.push(Input::Request(RequestInput::Abandoned(id)));
            if open.lease == Some(Stage::Granted) {
                // Its holder's connection to this daemon ends, and so does the lease.
                continue;
            }
            let failure = said("pool", "daemon_upgraded", format!("the daemon was upgraded meanwhile: {what}"));
            let failure = self.failure(&open, self.requests.name(id), outcome, failure);
            self.note_failure(&failure);
            self.remember_end(id, &open, outcome, Some(&failure.reason));
            self.control.answer_waiting(open.waits, &Error::RequestFailed(Box::new(failure)).to_reply(), self.now);
        }
        self.requests.attempts.clear();
        self.requests.holding.clear();
    }

    fn note_failure(&self, failure: &RequestFailure) {
        let (request, correlation) = (&failure.request, &failure.correlation);
        tracing::debug!(target: "dispatch", %request, %correlation, reason = %failure.reason, "request {request} has no result: {}", failure.message);
    }

    fn reply_of(&self, open: &Open, request: String, payload: Option<MadePayload>) -> ExecuteReply {
        let usec = |duration: Duration| u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        let began = open.began.unwrap_or(self.now);
        ExecuteReply {
            payload,
            request: Some(request),
            worker: open.delivery.map(|delivery| self.worker_name(delivery.worker)),
            generation: open.delivery.map(|delivery| delivery.generation.0),
            attempts: open.delivery.map(|delivery| delivery.number),
            queued_usec: Some(usec(clock::since(open.submitted, began))),
            usec: Some(usec(clock::since(open.submitted, self.now))),
            correlation: Some(open.correlation.clone()),
            bill: self.bill_of(open),
            ..ExecuteReply::default()
        }
    }

    fn say_answer(&mut self, open: &Open, frame: Vec<u8>, fd: Option<std::os::fd::OwnedFd>) {
        self.control.finish_request(open.waits, frame, fd, self.now);
    }

    fn failure(&self, open: &Open, request: String, outcome: RequestOutcome, said: Failure) -> RequestFailure {
        RequestFailure {
            request,
            outcome,
            category: said.category.unwrap_or_else(|| "application".to_owned()),
            reason: said.reason.unwrap_or_else(|| "application".to_owned()),
            message: said.message,
            details: said.details.and_then(|details| serde_json::from_str(details.text()).ok()),
            traceback: said.traceback,
            worker: open.delivery.map(|delivery| self.worker_name(delivery.worker)),
            attempts: open.delivery.map_or(0, |delivery| delivery.number),
            correlation: open.correlation.clone(),
            bill: if outcome == RequestOutcome::Answered { self.bill_of(open) } else { None },
        }
    }

    /// A reason of the engine's in words.
    fn why(&self, open: &Open, reason: Reason) -> Failure {
        let pool = self.pools.get(&open.pool).map_or_else(String::new, |pool| pool.spec.name.to_string());
        let worker = open.delivery.map_or_else(String::new, |delivery| self.worker_name(delivery.worker));
        let after = humantime::format_duration(Duration::from_millis(
            u64::try_from(clock::since(open.submitted, self.now).as_millis()).unwrap_or(u64::MAX),
        ));
        let (category, message) = match reason {
            Reason::PoolNotFound => ("pool", format!("pool {pool} is gone")),
            Reason::NotDispatched => {
                let text = format!("pool {pool} does not dispatch: write `dispatch = true` into it");
                ("pool", text)
            }
            Reason::PoolSaturated => ("pool", format!("as many requests wait for pool {pool} as may")),
            Reason::QueueTimeout => ("timeout", format!("no worker of {pool} was free within {after}")),
            Reason::WorkerTimeout => ("timeout", format!("no answer of {worker} within {after}")),
            Reason::WorkerExit => ("worker", format!("{worker} ended while it had the request")),
            Reason::Undelivered => ("worker", format!("no worker of {pool} took the request")),
            Reason::WorkerBroken => ("worker", format!("{worker} answered that it is broken")),
            Reason::WorkerBusy => ("pool", "the session's worker is busy".to_owned()),
            Reason::SessionWorkerUnavailable => ("pool", "the session's worker is gone".to_owned()),
            Reason::SessionQuotaExceeded => ("pool", format!("pool {pool} has as many sessions as may be")),
            Reason::NoWorkers => ("pool", format!("no worker of {pool} is up, nor on its way")),
            Reason::CircuitOpen => ("pool", format!("the circuit breaker of pool {pool} is open")),
            Reason::Quarantined => {
                let text = format!(
                    "this request has killed workers of {pool}: `halsup breaker reset {pool}` lets it through again"
                );
                ("worker", text)
            }
            Reason::Abandoned => ("pool", "nobody waits for it".to_owned()),
            Reason::ShuttingDown => ("pool", "the daemon is shutting down".to_owned()),
        };
        said(category, word(reason), message)
    }

    fn breaker_changed(&mut self, pool: PoolId, slot: Option<u32>, state: BreakerState) {
        let state = match state {
            BreakerState::Closed => "closed",
            BreakerState::Open => "open",
            BreakerState::HalfOpen => "half-open",
        };
        let worker = slot.map(|slot| WorkerId { pool, slot });
        let whose = match (worker, self.pools.get(&pool)) {
            (Some(worker), _) => self.worker_name(worker),
            (None, Some(pool)) => format!("pool {}", pool.spec.name),
            (None, None) => return,
        };
        self.tell_of(pool, worker, format!("the circuit breaker of {whose} is {state}"));
    }

    fn recycle_due(&mut self, worker: WorkerId, due: Due) {
        let why = match due {
            Due::Ttl => "is as old as it may become".to_owned(),
            Due::Requests => "was given as many requests as it may be".to_owned(),
            Due::Memory(bytes) => format!("uses {}", crate::spec::format_bytes(bytes)),
        };
        let name = self.worker_name(worker);
        self.tell_of(worker.pool, Some(worker), format!("{name} {why} and will be replaced"));
    }

    /// Records something that happened to requests as an event.
    fn tell_of(&mut self, pool: PoolId, worker: Option<WorkerId>, text: String) {
        let pool = self.pools.get(&pool).map(|pool| pool.spec.name.to_string());
        tracing::info!(target: "dispatch", pool, "{text}");
        let pool = if worker.is_some() { None } else { pool };
        self.record(Happening { pool, worker, ..Happening::new(EventKind::Request, text) });
    }

    fn measure_memory(&mut self, worker: WorkerId, generation: Generation) {
        let Some(live) = self.live_mut(worker, generation) else { return };
        match live.cgroup.stats().map(|stats| stats.memory_bytes) {
            Ok(Some(bytes)) => {
                self.inputs.push(Input::Request(RequestInput::MemoryMeasured(worker, generation, bytes)));
            }
            // Without the controller nobody knows, and `halsup status` says so.
            Ok(None) => {}
            Err(error) => super::super::log::best_effort(Err::<(), _>(error), "it is asked again later"),
        }
    }

    /// Lets go of what was heard in this turn and belongs to nobody.
    pub(in crate::daemon) fn forget_unclaimed_answers(&mut self) {
        for (attempt, _) in std::mem::take(&mut self.requests.heard) {
            tracing::debug!(target: "dispatch", attempt = attempt.0, "an answer came for an attempt that nobody waits for");
        }
    }
}

/// The frame of an attempt.
pub(super) fn frame_of(open: &Open, delivery: &Delivery, now: crate::engine::Time) -> ToWorker {
    let left = clock::since(now, delivery.deadline);
    ToWorker::Request(Box::new(channel::Request {
        id: channel::RequestId::new(delivery.attempt.0),
        command: open.command.clone(),
        args: open.args.clone(),
        deadline_ms: Some(u64::try_from(left.as_millis()).unwrap_or(u64::MAX)),
        stream: open.stream,
        credit: if open.stream { super::CREDIT } else { 0 },
        input: open.inflow.is_some(),
        session: open.session.clone(),
        correlation: Some(open.correlation.clone()),
        payload: open
            .payload
            .as_ref()
            .map(|payload| RequestPayload { bytes: payload.said.bytes, shared: payload.is_lent() }),
    }))
}

/// A reason in the one word that programs know it by.
pub(in crate::daemon) const fn word(reason: Reason) -> &'static str {
    match reason {
        Reason::PoolNotFound => "pool_not_found",
        Reason::NotDispatched => "not_dispatched",
        Reason::PoolSaturated => "pool_saturated",
        Reason::QueueTimeout => "queue_timeout",
        Reason::WorkerTimeout => "worker_timeout",
        Reason::WorkerExit => "worker_exit",
        Reason::Undelivered => "undelivered",
        Reason::WorkerBroken => "worker_broken",
        Reason::WorkerBusy => "worker_busy",
        Reason::SessionWorkerUnavailable => "session_worker_unavailable",
        Reason::SessionQuotaExceeded => "session_quota_exceeded",
        Reason::NoWorkers => "no_workers_available",
        Reason::CircuitOpen => "circuit_open",
        Reason::Quarantined => "quarantined",
        Reason::Abandoned => "abandoned",
        Reason::ShuttingDown => "shutting_down",
    }
}

fn made(bytes: u64, in_request: bool) -> MadePayload {
    MadePayload { bytes, in_request: in_request.then_some(true) }
}

fn said(category: &str, reason: &str, message: String) -> Failure {
    Failure {
        message,
        reason: Some(reason.to_owned()),
        category: Some(category.to_owned()),
        details: None,
        traceback: None,
    }
}
