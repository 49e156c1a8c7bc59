//! What workers say about requests: answers, chunks, events.
//!
//! A frame counts for a request only if its attempt is in this very worker (HARDENING M9); that an answer is the right one's
//! is the engine's to say. A worker that lies, floods or forges harms only itself.

use std::os::fd::OwnedFd;

use super::super::birth::chain;
use super::super::state::Daemon;
use super::{CREDIT, Heard};
use crate::engine::{AttemptId, Input, Quality, RequestId, RequestInput};
use crate::host::payload::{PayloadKind, check_payload};
use crate::protocol::channel::{self, Answer, Chunk, Credit, Event, Failed, ToWorker};
use crate::protocol::control::{ExecuteReply, MadePayload};
use crate::protocol::varlink;
use crate::spec::{Generation, WorkerId};

/// The longest event of a worker that is logged, in bytes.
const EVENT_BYTES_MAX: usize = 1024;

impl Daemon {
    /// A worker's answer to an attempt.
    pub(in crate::daemon) fn on_answer(
        &mut self,
        worker: WorkerId,
        generation: Generation,
        answer: Answer,
        passed: Option<OwnedFd>,
    ) {
        let attempt = AttemptId(answer.id.number());
        let lent = self.requests.attempts.get(&attempt).and_then(|id| self.requests.open.get(id));
        let lent = lent.and_then(|open| open.payload.as_ref()).filter(|payload| payload.is_lent());
        let checked = match (answer.payload, passed) {
            (None, _) => Ok(None),
            (Some(payload), _) if payload.in_request => match lent {
                Some(memory) => check_payload(&memory.fd, payload.bytes, PayloadKind::Lent).map(|_| None),
                // The request is concluded already, or lent nothing: then nobody is told of it.
                None => Ok(None),
            },
            (Some(payload), Some(fd)) => check_payload(&fd, payload.bytes, PayloadKind::Immutable).map(|_| Some(fd)),
            (Some(_), None) => Err(crate::host::payload::PayloadError::NoMemfd),
        };
        let forged = answer.payload.is_some_and(|payload| payload.in_request) && lent.is_none();
        let (heard, quality) = match checked {
            Ok(_) if forged && self.requests.attempts.contains_key(&attempt) => {
                (Heard::Broken("it answered in memory that was not lent".into()), Quality::Broken)
            }
            Ok(fd) => (Heard::Result(answer, fd), Quality::Sound),
            Err(error) => (Heard::Broken(format!("its payload was refused: {}", chain(&error))), Quality::Broken),
        };
        self.keep_answer(worker, generation, attempt, heard, quality);
    }

    /// A worker's error, which is an answer too.
    pub(in crate::daemon) fn on_failed(&mut self, worker: WorkerId, generation: Generation, failed: Box<Failed>) {
        let attempt = AttemptId(failed.id.number());
        self.keep_answer(worker, generation, attempt, Heard::Error(failed), Quality::Refusal);
    }

    fn keep_answer(
        &mut self,
        worker: WorkerId,
        generation: Generation,
        attempt: AttemptId,
        heard: Heard,
        quality: Quality,
    ) {
        // Of two in one turn the first counts, as it would in two.
        if self.requests.heard.contains_key(&attempt) {
            return self.count_junk(worker);
        }
        if self.requests.of_attempt(attempt, worker, generation).is_some() {
            self.requests.heard.insert(attempt, heard);
        }
        self.inputs.push(Input::Request(RequestInput::Answered(attempt, worker, generation, quality)));
    }

    pub(super) fn count_junk(&mut self, worker: WorkerId) {
        if let Some(live) = self.live.get_mut(&worker) {
            live.junk += 1;
        }
    }

    /// A piece of a stream.
    pub(in crate::daemon) fn on_chunk(
        &mut self,
        worker: WorkerId,
        generation: Generation,
        chunk: &Chunk,
        passed: Option<OwnedFd>,
    ) {
        let attempt = AttemptId(chunk.id.number());
        let Some(id) = self.requests.of_attempt(attempt, worker, generation) else { return self.count_junk(worker) };
        let payload = match (chunk.payload, passed) {
            (None, _) => Ok(None),
            (Some(said), Some(fd)) => check_payload(&fd, said.bytes, PayloadKind::Immutable).map(|_| Some(fd)),
            (Some(_), None) => Err(crate::host::payload::PayloadError::NoMemfd),
        };
        let Some(open) = self.requests.open.get_mut(&id) else { return };
        let (Ok(fd), true, 1..) = (payload, open.stream, open.credit) else { return self.count_junk(worker) };
        open.credit -= 1;
        let reply = ExecuteReply {
            payload: chunk.payload.map(|said| MadePayload { bytes: said.bytes, in_request: None }),
            ..ExecuteReply::default()
        };
        let frame = varlink::encode_with(&reply, "chunk", chunk.data.as_ref(), true);
        let waits = open.waits;
        self.control.pass_on(waits, frame, fd, self.now);
    }

    /// A client has read all that its stream has sent so far: its worker may send more.
    pub(in crate::daemon) fn grant_credit(&mut self, id: RequestId) {
        let Some(open) = self.requests.open.get_mut(&id) else { return };
        let Some(delivery) = open.delivery.filter(|_| open.stream && open.credit <= CREDIT / 2) else { return };
        let count = CREDIT - open.credit;
        open.credit = CREDIT;
        let credit = Credit { id: channel::RequestId::new(delivery.attempt.0), count };
        self.say_to(delivery.worker, delivery.generation, &ToWorker::Credit(credit));
    }

    /// A worker tells of something.
    pub(in crate::daemon) fn on_event(&mut self, worker: WorkerId, event: &Event) {
        self.emit_of_worker(worker, event);
        let text = |value: &Option<channel::Verbatim>| {
            value.as_ref().map_or(String::new(), |value| value.text().chars().take(EVENT_BYTES_MAX).collect())
        };
        let (measurements, metadata) = (text(&event.measurements), text(&event.metadata));
        let name = self.worker_name(worker);
        tracing::debug!(target: "dispatch", worker = %name, event = %event.event, %measurements, %metadata, "{name} tells of {}", event.event);
    }

    /// A worker that was taken over is asked to let go of what an earlier daemon has given it.
    pub(in crate::daemon) fn have_forgotten(&mut self, worker: WorkerId, generation: Generation) {
        let dispatches = self.pools.get(&worker.pool).is_some_and(|pool| pool.spec.policy.dispatch.is_some());
        if self.pools.get(&worker.pool).is_some_and(|pool| pool.spec.serve.is_some()) {
            // The connections of its leases have ended with the daemon that held them.
            self.inputs.push(Input::Request(RequestInput::Unoccupied(worker, generation)));
        } else if dispatches {
            self.say_to(worker, generation, &ToWorker::Forget);
        }
    }
}
