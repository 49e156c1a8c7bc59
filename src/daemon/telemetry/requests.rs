//! What is told of requests, sessions and breakers. Each fact has the request's number and its correlation, which is the same
//! in the caller's answer, in the worker's frame and in the daemon's log.

use super::super::requests::{HeardTold, RequestTold};
use super::super::state::Daemon;
use super::Fact;
use crate::engine::{
    BreakerState, Conclusion, Delivery, Due, Quality, Reason, RequestEffect, RequestId, RequestInput, SessionId,
};
use crate::protocol::channel::{self, Verbatim};
use crate::spec::{PoolId, WorkerId};

/// A pool whose sessions are so full, in percent, is warned of.
const SESSIONS_WARNING_PERCENT: u32 = 80;
/// What a worker may tell of under names that are not the daemon's.
const WORKERS_OWN: [&str; 6] = ["python.", "tool.", "gpu.", "error.", "memory.", "cpu."];
/// Kinds of errors that have an event of their own.
const ERRORS: [&str; 5] = ["shape_mismatch", "device", "oom", "dtype_mismatch", "dimension_error"];
/// The longest text of a worker's event that is told, in bytes.
const TEXT_BYTES_MAX: usize = 4096;

impl Daemon {
    pub(super) fn tell_request_input(&mut self, input: RequestInput) {
        match input {
            RequestInput::Submitted(id, pool, demand) => {
                if let Some(session) = demand.session.filter(|session| !self.engine.has_session(*session)) {
                    self.tell_session_begins(session, pool, Some(id));
                }
            }
            RequestInput::SessionRequested(_, session, pool, _) => {
                if !self.engine.has_session(session) {
                    self.tell_session_begins(session, pool, None);
                }
            }
            RequestInput::SessionClosed(_, session) => self.tell_session_ends(session, "session_store.session.deleted"),
            RequestInput::Answered(_, worker, generation, quality) => {
                let name = match quality {
                    Quality::Sound | Quality::Refusal => "circuit_breaker.call.success",
                    Quality::Broken => "circuit_breaker.call.failure",
                };
                self.emit(Fact::of_generation(name, worker, generation));
            }
            RequestInput::Undelivered(_, worker, generation) => {
                self.emit(Fact::of_generation("circuit_breaker.call.failure", worker, generation));
            }
            RequestInput::Abandoned(_)
            | RequestInput::Released(..)
            | RequestInput::Unoccupied(..)
            | RequestInput::MemoryMeasured(..)
            | RequestInput::BreakersReset(..) => {}
        }
    }

    pub(super) fn tell_request_effect(&mut self, effect: RequestEffect) {
        match effect {
            RequestEffect::Queued(id) => {
                let Some(request) = self.requests.told(id) else { return };
                let queued = self.engine.dispatch(request.pool).map(|view| view.queued);
                self.emit(of(&request, "pool.queue.enqueued").count("queue_size", queued));
            }
            RequestEffect::Deliver(id, delivery) => self.tell_delivery(id, delivery),
            RequestEffect::Retrying(id, pause) => {
                let Some(request) = self.requests.told(id) else { return };
                let pause = u64::try_from(pause.as_millis()).unwrap_or(u64::MAX);
                self.emit(of(&request, "retry.attempt").count("attempt", request.attempts));
                self.emit(of(&request, "retry.backoff").count("delay_ms", pause));
            }
            RequestEffect::Conclude(id, conclusion) => self.tell_conclusion(id, conclusion),
            RequestEffect::BreakerChanged(pool, slot, state) => self.tell_breaker(pool, slot, state),
            RequestEffect::SessionEnded(session) => {
                if let Some((pool, name)) = self.requests.session_told(session) {
                    let fact = Fact::of_pool("bridge.session.pruned", self.pool_named(&pool)).count("count", 1);
                    self.emit(fact.with("session", name));
                }
                self.tell_session_ends(session, "session_store.session.expired");
            }
            RequestEffect::Tainted(worker) => self.emit(Fact::of_worker("worker.tainted", worker).count("count", 1)),
            RequestEffect::RecycleDue(worker, generation, due) => {
                let (why, bytes) = match due {
                    Due::Ttl => ("ttl", None),
                    Due::Requests => ("max_requests", None),
                    Due::Memory(bytes) => ("memory", Some(bytes)),
                };
                let fact = Fact::of_generation("worker.recycle_due", worker, generation).with("reason", why);
                self.emit(fact.count("memory_bytes", bytes));
            }
            RequestEffect::BudgetReached(pool) => {
                let policy = self.pools.get(&pool).and_then(|pool| pool.spec.policy.dispatch);
                let capacity = policy.and_then(|policy| policy.budget).map(|budget| budget.max);
                let load = self.engine.dispatch(pool).map(|view| view.in_flight);
                self.emit(Fact::of_pool("pool.capacity_reached", pool).count("capacity", capacity).count("load", load));
            }
            RequestEffect::Cancel(attempt, worker, generation) => {
                let fact = Fact::of_generation("request.cancelled", worker, generation);
                self.emit(fact.with("attempt", attempt.0));
            }
            RequestEffect::MeasureMemory(..) => {}
        }
    }

    fn tell_delivery(&mut self, id: RequestId, delivery: Delivery) {
        let Some(mut request) = self.requests.told(id) else { return };
        let first = request.delivery.is_none();
        (request.delivery, request.attempts) = (Some(delivery), delivery.number);
        let waited = self.usec_since(request.submitted);
        if first && waited > 0 {
            self.emit(of(&request, "pool.queue.dequeued").count("queue_time_us", waited));
        }
        let policy = self.pools.get(&request.pool).and_then(|pool| pool.spec.policy.dispatch);
        if policy.is_some_and(|policy| policy.worker_breaker.failures > 0 || policy.pool_breaker.failures > 0) {
            self.emit(of(&request, "circuit_breaker.call.allowed"));
        }
        if let Some(session) = request.session.clone().filter(|_| first) {
            self.emit(of(&request, "session.affinity.assigned").with("session", session));
        }
        if let Some(bytes) = request.payload_bytes {
            self.emit(of(&request, "zero_copy.export").count("bytes", bytes));
        }
        self.emit(of(&request, "pool.call.dispatched").with("queued", waited > 0));
        self.emit(of(&request, "grpc_worker.execute.start"));
    }

    fn tell_conclusion(&mut self, id: RequestId, conclusion: Conclusion) {
        let Some(request) = self.requests.told(id) else { return };
        let (heard, reason) = match conclusion {
            Conclusion::Answered(attempt) => (self.requests.heard_told(attempt), None),
            Conclusion::NeverStarted(reason) | Conclusion::InDoubt(reason) => (None, Some(reason)),
        };
        if let Some(reason) = reason {
            self.tell_refusal(&request, reason);
        }
        if let Some(heard) = &heard {
            self.tell_answer(&request, heard);
        }
        let success = heard.as_ref().is_some_and(|heard| heard.failure.is_none());
        let why = reason.map(|reason| super::super::requests::word(reason).to_owned());
        let why = why.or_else(|| heard.and_then(|heard| heard.failure).map(|failure| failure.reason));
        if request.delivery.is_some() {
            let name = if success { "grpc_worker.execute.stop" } else { "grpc_worker.execute.exception" };
            let begun = request.began.unwrap_or(request.submitted);
            let fact = of(&request, name).count("duration_us", self.usec_since(begun));
            self.emit(fact.with("reason", why.clone()));
        }
        if request.attempts > 1 {
            let name = if reason.is_none() { "retry.success" } else { "retry.exhausted" };
            self.emit(of(&request, name).count("attempts", request.attempts));
        }
        let fact = of(&request, "request.executed").count("duration_us", self.usec_since(request.submitted));
        let fact = fact.with("success", success).with("aborted", reason == Some(Reason::Abandoned));
        self.emit(fact.with("streaming", request.stream).with("reason", why));
    }

    /// Why a request has no answer, where that has an event of its own.
    fn tell_refusal(&mut self, request: &RequestTold, reason: Reason) {
        let view = self.engine.dispatch(request.pool);
        let fact = match reason {
            Reason::PoolSaturated => {
                let policy = self.pools.get(&request.pool).and_then(|pool| pool.spec.policy.dispatch);
                let fact = of(request, "pool.saturated").count("queue_size", view.map(|view| view.queued));
                let fact = fact.count("max_queue_size", policy.map(|policy| policy.queue_max));
                let fact = fact.with("available_workers", view.map(|view| view.available));
                fact.with("busy_workers", view.map(|view| view.busy))
            }
            Reason::QueueTimeout => {
                of(request, "pool.queue.timeout").count("queue_time_us", self.usec_since(request.submitted))
            }
            Reason::CircuitOpen => of(request, "circuit_breaker.call.rejected"),
            Reason::SessionWorkerUnavailable => of(request, "session.affinity.broken"),
            Reason::PoolNotFound
            | Reason::NotDispatched
            | Reason::WorkerTimeout
            | Reason::WorkerExit
            | Reason::Undelivered
            | Reason::WorkerBroken
            | Reason::WorkerBusy
            | Reason::SessionQuotaExceeded
            | Reason::NoWorkers
            | Reason::Quarantined
            | Reason::Abandoned
            | Reason::ShuttingDown => return,
        };
        self.emit(fact);
    }

    fn tell_answer(&mut self, request: &RequestTold, heard: &HeardTold) {
        if let Some(bytes) = heard.payload_bytes {
            self.emit(of(request, "zero_copy.import").count("bytes", bytes));
        }
        let threshold = self.pools.get(&request.pool).map_or(u64::MAX, |pool| pool.spec.zero_copy_bytes);
        if heard.result_bytes > threshold {
            self.emit(of(request, "zero_copy.fallback").count("bytes", heard.result_bytes));
        }
        let Some(failure) = &heard.failure else { return };
        let reason = || failure.reason.clone();
        match failure.category.as_deref() {
            // What the SDK says of an exception that the tool has not said anything of.
            Some("python_error") => {
                self.emit(of(request, "python.exception.unmapped").with("reason", reason()));
                self.emit(of(request, "error.python_exception").with("reason", reason()));
            }
            Some(_) => self.emit(of(request, "python.exception.mapped").with("reason", reason())),
            None => {}
        }
        if let Some(kind) = failure.category.as_deref().filter(|kind| ERRORS.contains(kind)) {
            self.emit(of(request, &format!("error.{kind}")).with("reason", failure.reason.clone()));
        }
    }

    fn tell_breaker(&mut self, pool: PoolId, slot: Option<u32>, state: BreakerState) {
        let name = match state {
            BreakerState::Closed => "circuit_breaker.closed",
            BreakerState::Open => "circuit_breaker.opened",
            BreakerState::HalfOpen => "circuit_breaker.half_open",
        };
        let failures = slot.and_then(|slot| self.engine.desks(pool).find(|desk| desk.slot == slot));
        let failures = failures.map(|desk| desk.failures);
        let fact = match slot {
            Some(slot) => Fact::of_worker(name, WorkerId { pool, slot }),
            None => Fact::of_pool(name, pool),
        };
        self.emit(fact.count("failure_count", failures));
    }

    fn tell_session_begins(&mut self, session: SessionId, pool: PoolId, request: Option<RequestId>) {
        let Some((_, name)) = self.requests.session_told(session) else { return };
        let correlation = request.and_then(|id| self.requests.told(id)).map(|request| request.correlation);
        for event in ["session.created", "session_store.session.created"] {
            let fact = Fact::of_pool(event, pool).count("count", 1).with("session", name.clone());
            self.emit(fact.with("correlation", correlation.clone()));
        }
        let max = self.pools.get(&pool).and_then(|pool| pool.spec.policy.dispatch).map(|policy| policy.sessions.max);
        let count = self.engine.session_count(pool).saturating_add(1);
        if let Some(max) = max
            && u64::from(count) * 100 >= u64::from(max) * u64::from(SESSIONS_WARNING_PERCENT)
        {
            let fact = Fact::of_pool("bridge.session.accumulation_warning", pool);
            self.emit(fact.count("current_sessions", count).count("max_sessions", max));
        }
    }

    fn tell_session_ends(&mut self, session: SessionId, stored: &str) {
        let Some((pool, name)) = self.requests.session_told(session) else { return };
        let pool = self.pool_named(&pool);
        for event in ["session.destroyed", stored] {
            self.emit(Fact::of_pool(event, pool).count("count", 1).with("session", name.clone()));
        }
    }

    fn pool_named(&self, name: &crate::spec::PoolName) -> PoolId {
        self.names.get(name).copied().unwrap_or(PoolId(0))
    }

    /// What a worker tells of itself.
    pub(in crate::daemon) fn emit_of_worker(&mut self, worker: WorkerId, event: &channel::Event) {
        if !self.telemetry.is_on() {
            return;
        }
        let own = WORKERS_OWN.iter().any(|prefix| event.event.starts_with(prefix));
        let name: String = event.event.chars().take(128).collect();
        let mut fact = Fact::of_worker(if own { name.as_str() } else { "worker.event" }, worker);
        for (into, said) in [(&mut fact.measurements, &event.measurements), (&mut fact.metadata, &event.metadata)] {
            if let Some(serde_json::Value::Object(fields)) = said.as_ref().and_then(short) {
                into.extend(fields);
            }
        }
        self.emit(fact.with("event", name).with("told_by", "worker"));
    }

    /// The numbers of a pool were asked for.
    pub(in crate::daemon) fn tell_status(&mut self, pool: PoolId) {
        if !self.telemetry.is_on() {
            return;
        }
        let Some(view) = self.engine.dispatch(pool) else { return };
        let fact = Fact::of_pool("pool.status", pool).count("requests", view.requests).count("queued", view.queued);
        let fact = fact.count("errors", view.errors).count("queue_timeouts", view.queue_timeouts);
        let fact = fact.count("pool_saturated", view.saturated).count("workers", view.workers);
        self.emit(fact.count("available", view.available).count("busy", view.busy));
    }
}

fn short(text: &Verbatim) -> Option<serde_json::Value> {
    (text.text().len() <= TEXT_BYTES_MAX).then(|| serde_json::from_str(text.text()).ok())?
}

/// A fact about a request.
fn of(request: &RequestTold, name: &str) -> Fact {
    let mut fact = Fact::of_pool(name, request.pool);
    (fact.worker, fact.generation) = request.delivery.map(|known| (known.worker, known.generation)).unzip();
    let fact = fact.with("request", request.name.clone()).with("correlation", request.correlation.clone());
    fact.with("command", request.command.clone())
}
